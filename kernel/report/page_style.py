"""The look of report.html: colours for light and dark, and the layout. Nothing is loaded from anywhere."""

CSS = """
:root{--c0:#3b6fb6;--c1:#d9822b;--c2:#3f9b6b;--c3:#8a63b8;--c4:#b0527a;--c5:#5b8f9b;--c6:#a08a2e;
--c7:#7a7f87;--good:#2f8f4e;--bad:#c43d3d;--warn:#b87a14;--ink:#1d2329;--soft:#5c6670;--faint:#d8dde2;
--paper:#f4f6f8;--card:#fff}
@media(prefers-color-scheme:dark){:root{--c0:#6c9fe0;--c1:#e69b4f;--c2:#5fbf8b;--c3:#ab88d8;--c4:#d27a9f;
--c5:#7fb4c0;--c6:#c9b256;--c7:#98a0a9;--good:#55bd78;--bad:#e8696b;--warn:#dda03c;--ink:#e4e8ec;
--soft:#9aa5b0;--faint:#343c45;--paper:#14181d;--card:#1c2229}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,"Segoe UI","DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:20px 20px 40px}
h1{font-size:22px;margin:0;overflow-wrap:anywhere}
h2{font-size:16px;margin:0 0 2px}
p{margin:2px 0 8px;overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--faint);border-radius:8px;padding:14px 18px;
margin:14px 0}
.soft{color:var(--soft)}
.note{color:var(--soft);font-size:13.5px}
.scroll{overflow-x:auto}
.tiles{display:grid;grid-template-columns:repeat(5,1fr);gap:12px;margin:14px 0 0}
.tile{background:var(--card);border:1px solid var(--faint);border-radius:8px;padding:10px 14px}
.tile b{display:block;font-size:21px;line-height:1.3}
.tile span{color:var(--soft);font-size:13px}
.meter{display:block;height:5px;border-radius:3px;background:var(--faint);margin-top:6px;overflow:hidden}
.meter i{display:block;height:5px}
.badge{display:inline-block;padding:2px 12px;border-radius:6px;color:#fff;font-weight:600;font-size:16px;
vertical-align:2px;margin-left:10px}
.pass{background:var(--good)}
.fail{background:var(--bad)}
.mid{background:var(--warn)}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th{text-align:left;font-weight:600;color:var(--soft);border-bottom:1px solid var(--faint);
padding:3px 10px 3px 0;white-space:nowrap}
td{padding:4px 10px 4px 0;border-bottom:1px solid var(--faint);vertical-align:top}
tr:last-child td{border-bottom:0}
.l{min-width:13em;overflow-wrap:anywhere}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.good{color:var(--good)}
.bad{color:var(--bad)}
.warn{color:var(--warn)}
svg{display:block;width:100%;min-width:760px;height:auto;
font:12px system-ui,"Segoe UI","DejaVu Sans",sans-serif}
svg text{fill:var(--ink)}
svg .dim{fill:var(--soft)}
svg .onbar{fill:var(--card);font-size:11.5px}
.axis{stroke:var(--soft);fill:none}
.grid{stroke:var(--faint)}
.key{font-size:13px;margin:4px 14px 4px 0;overflow-wrap:anywhere;display:inline-block}
.key i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:5px;vertical-align:-1px}
.share{display:flex;height:9px;border-radius:3px;overflow:hidden;background:var(--faint);min-width:90px;
margin-top:6px}
.share i{display:block;height:9px}
td .share{margin-left:8px}
.clips{display:grid;grid-template-columns:repeat(4,1fr);gap:14px;margin-top:8px}
.clip{font-size:12.5px;min-width:0}
.clip img{width:100%;height:76px;display:block;border-radius:4px;background:#000008}
.clip b{display:block;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;margin-top:3px}
.clip span{display:block;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.why{grid-template-columns:repeat(3,1fr)}
.clip img.time{height:18px;border-radius:3px;margin-top:5px;image-rendering:pixelated}
.clip .said{white-space:normal;overflow:visible;text-overflow:clip;overflow-wrap:anywhere}
details summary{cursor:pointer;color:var(--soft)}
code{font-size:13px}
@media(max-width:760px){.tiles,.clips{grid-template-columns:repeat(2,1fr)}
.why{grid-template-columns:1fr}}
"""
