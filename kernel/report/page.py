"""report.html: one self-contained page out of report.json, for people.

Owns the sections and their words; charts draws, report collects. Works offline: no script, no font, no file
beside it. Every figure on the page is in report.json. A report that lacks a part (the engine died early)
gives a page without it.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from ..units import seconds_text
from . import charts
from .page_style import CSS

MAX_FAULTS, MAX_STEPS = 40, 400  # lines of a table; the rest is in report.json
GB, MB = 1e9, 1e6


def page(report: Mapping[str, Any], pictures: Mapping[str, str] | None = None) -> str:
    """The page as text.

    report    what report.json holds
    pictures  row id -> data URI of a spectrogram, for the clips shown
    """
    sections = [
        _verdict(report),
        _headline(report),
        _faults(report),
        _memory(report),
        _stages(report),
        _members(report),
        _lengths(report),
        _store(report),
        _steps(report),
        _clips(report.get("worst") or [], pictures or {}, "Worst predictions", WORST),
        _clips(report.get("uncertain") or [], pictures or {}, "Most uncertain clips", UNCERTAIN),
        _provenance(report),
    ]
    title = f"Hourglass: {report.get('ensemble', 'report')}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{CSS}</style></head>'
        f"<body><main>{_top(report)}{''.join(sections)}</main></body></html>\n"
    )


def encode_page(text: str) -> bytes:
    """UTF-8 bytes; names that are no text (surrogates) are shown escaped."""
    return text.encode("utf-8", "backslashreplace")


WORST = (
    "Predicted rows whose true labels rank lowest, by the labels given to the rehearsal. A row of the same wrong class "
    "again and again points at a class; single rows point at labels."
)
UNCERTAIN = (
    "Predicted rows whose best two classes have nearly the same score. Pictures: log-mel spectrograms, low "
    "frequencies at the bottom, time to the right."
)


# -- pieces
# -----------------------------------------------------------------------------------------------------------


def section(title: str, note: str, body: str) -> str:
    """One card; nothing when it would be empty."""
    return (
        f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{body}</section>' if body else ""
    )


def rows_table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A table; cells are HTML already, columns in `numeric` are right-aligned."""
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if i in numeric else ''}>{cell}</{tag}>" for i, cell in enumerate(row)
        )

    return (f"<table><tr>{cells(header, 'th')}</tr>" + "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
            + "</table>") if rows else ""


def key(entries: Sequence[tuple[str, str]]) -> str:
    """Legend of (name, colour variable)."""
    return "".join(
        f'<span class="key"><i style="background:var({colour})"></i>{escape(name)}</span>'
        for name, colour in entries
    )


def bytes_text(size: float) -> str:
    """12.3 GB or 45 MB."""
    return (
        f"{size / GB:.2f} GB"
        if abs(size) >= 0.1 * GB
        else f"{size / MB:.0f} MB"
        if size >= MB or size == 0
        else f"{size / 1e3:.0f} kB"
    )


def show(value: float, unit: str) -> str:
    return seconds_text(value) if unit == "s" else bytes_text(value) if unit == "B" else f"{value:.0f}"


def tile(value: str, words: str, share: float | None = None) -> str:
    """One big number, with a bar of how much of the limit it is."""
    bar = ""
    if share is not None:
        colour = "--good" if share <= 0.85 else "--warn" if share <= 1.0 else "--bad"
        bar = f'<span class="meter"><i style="width:{100 * min(1.0, share):.1f}%;background:var({colour})"></i></span>'
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(words)}</span>{bar}</div>'


def colours(report: Mapping[str, Any]) -> dict[str, str]:
    """Member name -> colour variable."""
    return {m["name"]: f"--c{i % (charts.SERIES - 1)}" for i, m in enumerate(report.get("members", []))}


def of_net(net_id: str, known: Mapping[str, str]) -> str:
    """Colour of a net by its member; grey for stages that are no net."""
    return known.get(net_id.rpartition(".")[0], "--c7")


# -- sections
# ---------------------------------------------------------------------------------------------------------


def _top(report: Mapping[str, Any]) -> str:
    """Title, verdict and the one sentence that says what this page is."""
    verdict = report.get("rehearsal")
    degraded = bool(report.get("prior_rows") or report.get("partial_rows") or report.get("fault_counts"))
    if verdict:
        badge = ("pass", "PASS") if verdict["passed"] else ("fail", "FAIL")
        about = (
            f"Rehearsal of {report['rows']:,} rows, and what it foretells for a hidden test set of {verdict['clips']:,} "
            f"rows, {verdict['hours']:.1f} h of audio."
        )
    else:
        badge = ("mid", "DEGRADED") if degraded else ("pass", "COMPLETE")
        about = "One run of the kernel: what it predicted, what it cost, and what went wrong."
    if report.get("random_weights"):
        about += " Random weights: this bundle was built to be timed; its scores mean nothing."
    about = " ".join([about, *(text[0].upper() + text[1:] for text in report.get("remarks", []))])
    return (
        f'<h1>Hourglass: {escape(str(report.get("ensemble", "run")))}<span class="badge {badge[0]}">{badge[1]}</span></h1>'
        f'<p class="soft">{escape(about)}</p>'
    )


def _headline(report: Mapping[str, Any]) -> str:
    rows, prior, limits, store = (
        report["rows"],
        report["prior_rows"],
        report["limits"],
        report.get("store", {}),
    )
    wall, ram, disk = (
        report.get("wall_s", 0.0),
        report.get("peak_ram_bytes", 0),
        store.get("disk_peak_bytes", 0),
    )
    faults = sum(report.get("fault_counts", {}).values())
    return (
        '<div class="tiles">'
        + "".join(
            (
                tile(
                    f"{rows - prior:,} of {rows:,}",
                    f"rows predicted, {report['partial_rows']:,} of them by a part of the ensemble, "
                    f"{prior:,} hold the prior",
                ),
                tile(
                    seconds_text(wall),
                    f"of {seconds_text(limits['seconds'])} wall time",
                    wall / max(1e-9, limits["seconds"]),
                ),
                tile(
                    bytes_text(ram),
                    f"peak memory of {bytes_text(limits['ram_bytes'])}",
                    ram / max(1, limits["ram_bytes"]),
                ),
                tile(
                    bytes_text(disk),
                    f"peak spill to disk of {bytes_text(limits['disk_bytes'])}",
                    disk / max(1, limits["disk_bytes"]),
                ),
                tile(f"{faults:,}" if faults else "none", "faults" if faults != 1 else "fault"),
            )
        )
        + "</div>"
    )


def _verdict(report: Mapping[str, Any]) -> str:
    """Forecast against every limit."""
    verdict = report.get("rehearsal")
    if not verdict:
        return ""
    rows = []
    for line in verdict["verdict"]:
        good, margin = line["passed"], 1 - line["scaled"] / line["allowed"] if line["allowed"] else 0.0
        bar = charts.share_bar(
            [
                (min(line["scaled"], line["allowed"]), "--good" if good else "--bad", "forecast"),
                (max(0.0, line["allowed"] - line["scaled"]), "--faint", "room"),
            ]
        )
        rows.append(
            (
                f'<b class="{"good" if good else "bad"}">{"PASS" if good else "FAIL"}</b>',
                escape(line["what"]),
                show(line["raw"], line["unit"]),
                show(line["scaled"], line["unit"]),
                show(line["allowed"], line["unit"]),
                f"{100 * margin:+.0f} %",
                bar,
            )
        )
    slower = f"x {verdict['slowdown']:g} slower"
    body = rows_table(
        ("", "limit", "forecast here", slower, "allowed", "margin", "share of the limit"), rows, (2, 3, 4, 5)
    )
    walls = "; ".join(verdict.get("walls", []))
    notes = "".join(f"<br>{escape(line)}." for line in verdict.get("notes", []))
    problems = "".join(f'<p class="bad">{escape(text)}</p>' for text in verdict.get("problems", []))
    return section(
        "Will it fit?",
        f"Forecast for the hidden test set from the costs measured in this rehearsal; time is also "
        f"shown for a machine {verdict['slowdown']:g} times slower. Allowed time is the kernel's own stop mark.",
        f'{problems}{body}<p class="note">Walls of this rehearsal: {escape(walls)}.{notes}</p>',
    )


def _faults(report: Mapping[str, Any]) -> str:
    faults, counts = report.get("faults", []), report.get("fault_counts", {})
    if not counts:
        return ""
    summary = ", ".join(f"{code} x {n}" for code, n in sorted(counts.items(), key=lambda c: -c[1]))
    rows = [
        (
            f"{f.get('t', 0):.1f} s",
            escape(f["code"]),
            f"<code>{escape(str(f['where']))}</code>",
            escape(f["message"][:300]),
        )
        for f in faults[:MAX_FAULTS]
    ]
    more = (
        f'<p class="note">... and {len(faults) - MAX_FAULTS} more in report.json</p>'
        if len(faults) > MAX_FAULTS
        else ""
    )
    return section(
        "What went wrong",
        f"Every degradation is listed; a fault costs a row or a member, never the run. {summary}.",
        rows_table(("when", "fault", "where", "what happened, and what to do"), rows) + more,
    )


def _memory(report: Mapping[str, Any]) -> str:
    points = report.get("timeline", [])
    if len(points) < 2:
        return ""

    def line(name: str, field: str, colour: str, fill: bool = False) -> charts.Series:
        return charts.Series(
            name=name,
            colour=colour,
            fill=fill,
            points=[(p["t"], p[field] / GB) for p in points if field in p],
        )

    series = [line("used", "used", "--c0"), line("store (spectrograms in RAM)", "store", "--c2", True),
              line("spill on disk", "disk", "--c1")]
    limit = min(report["limits"]["ram_bytes"], points[-1].get("limit", report["limits"]["ram_bytes"])) / GB
    levels = [
        charts.Level(name=f"limit {limit:.1f} GB", y=limit, colour="--bad"),
        charts.Level(
            name=f"95 %: spectrograms go to disk from here ({0.95 * limit:.1f} GB)",
            y=0.95 * limit,
            colour="--warn",
        ),
    ]
    chart = charts.line_chart(series, levels, lambda v: f"{v:.3g} GB", "memory over time")
    return section(
        "Memory",
        "Memory that counts against the limit, the part of it that the store holds, and the spill file, "
        "over the run.",
        key([(s.name, s.colour) for s in series]) + chart,
    )


def _stages(report: Mapping[str, Any]) -> str:
    stages = [s for s in report.get("stages", []) if "end_s" in s]
    if not stages:
        return ""
    known = colours(report)
    spans = [
        charts.Span(
            lane=str(s.get("device", "main")),
            start=s["start_s"],
            stop=s["end_s"],
            colour=of_net(s["name"], known),
            label=s["name"],
            title=f"{s['name']}: {s['start_s']:.1f} to {s['end_s']:.1f} s"
            + (f", {s['rows']} rows" if "rows" in s else ""),
        )
        for s in stages
    ]
    spans.sort(key=lambda span: (span.lane != "main", span.lane, span.start))
    end = max([span.stop for span in spans] + [p["t"] for p in report.get("timeline", [])[-1:]])
    return section(
        "Stages",
        "What ran when, one lane per device; hover over a bar for its times. Grey: set-up and publications.",
        key(list(known.items())) + charts.lanes(spans, end, "stages over time"),
    )


def _members(report: Mapping[str, Any]) -> str:
    members = report.get("members", [])
    known, total = colours(report), sum(m["seconds"] for m in members) or 1.0
    rows = []
    for m in members:
        nets = m["nets"]
        lost = max((n["skipped_rows"] for n in nets), default=0)
        failed = [n for n in nets if n["failed"]]
        covered = charts.share_bar([(m["rows"], known[m["name"]], f"{m['rows']} rows by every fold"),
                                    (max(0, report["rows"] - m["rows"]), "--faint", "not by this member")])
        trouble = [
            f'<span class="bad">{escape(n["id"])}: {escape(n["failed"][:160])}</span>' for n in failed[:3]
        ]
        trouble += [f'<span class="warn">{lost} rows skipped</span>'] if lost else []
        tiled = sum(n.get("tiled_rows", 0) for n in nets)
        trouble += [f'<span class="warn">{tiled} rows in tiles (memory)</span>'] if tiled else []
        done = sum(n["rows"] for n in nets)
        rows.append(
            (
                f'<i style="color:var({known[m["name"]]})">&#9632;</i> {escape(m["name"])}<br><span class="soft">'
                f"{escape(m['family'])}</span>",
                f"{m['weight']:g}",
                f"{m['nets_done']}/{len(nets)}",
                f"{m['rows']:,}{covered}",
                f"{m['seconds']:.1f}",
                f"{100 * m['seconds'] / total:.0f} %",
                f"{1000 * m['seconds'] / done:.1f}" if done else "",
                "<br>".join([*(escape(p) for p in sorted({n["path"] for n in nets if n["path"]})), *trouble]),
            )
        )
    header = ("member", "weight", "nets", "rows covered", "seconds", "share", "ms/row/net", "ran on")
    return section(
        "Members",
        "What each member of the ensemble covered and cost. Coverage counts rows that every fold of the "
        "member has scored; seconds include loading.",
        rows_table(header, rows, (1, 2, 4, 5, 6)),
    )


def _lengths(report: Mapping[str, Any]) -> str:
    body, lengths = "", report.get("lengths_s") or {}
    if sum(lengths.get("counts", [])):
        body += charts.histogram(
            lengths["counts"],
            [0] * len(lengths["counts"]),
            lengths["edges_s"],
            ("seconds", "rows"),
            "lengths of the clips",
            150,
        )
    groups: dict[str, tuple[list[str], dict[str, Any]]] = {}  # members that computed the same, together
    for name, group in (report.get("groups") or {}).items():
        groups.setdefault(repr(group), ([], group))[0].append(name)
    for names, group in list(groups.values())[:3]:
        cells, padding = sum(group["cells"]), sum(group["padding"])
        body += (
            f'<p class="note" style="margin-top:10px"><b>{escape(", ".join(names))}</b>: {group["forwards"]:,} forward '
            f"passes in {group['widths']:,} different length{'s' if group['widths'] != 1 else ''}; "
            f"{100 * padding / max(1, cells):.2f} % of the computed frames are padding.</p>"
        )
        if group["widths"] > 1:
            body += charts.histogram(
                [c - p for c, p in zip(group["cells"], group["padding"], strict=True)],
                group["padding"],
                group["edges"],
                ("frames per clip", "frames computed"),
                "length groups",
                150,
            )
    if len(groups) > 3:
        body += f'<p class="note">{len(groups) - 3} more in report.json</p>'
    return section(
        "Lengths",
        "Clips are predicted at full length. On a CPU each alone; on a GPU in groups of nearly equal "
        "length, so that next to nothing is padding.",
        body,
    )


def _store(report: Mapping[str, Any]) -> str:
    store = report.get("store") or {}
    hits = store.get("hits")
    if not hits:
        return ""
    known = {"ram": ("--c2", "in RAM", store.get("ram_peak_bytes", 0)),
             "disk": ("--c1", "in the spill file", store.get("disk_peak_bytes", 0))}
    tiers = [
        (name, count, *known.get(name, ("--c7", "computed again", None))) for name, count in hits.items()
    ]
    total, first = sum(hits.values()) or 1, store.get("first_spill_s")
    rows = [
        (
            f'<i style="color:var({colour})">&#9632;</i> {escape(name)}',
            words,
            f"{count:,}",
            f"{100 * count / total:.1f} %",
            bytes_text(peak) if peak is not None else "",
        )
        for name, count, colour, words, peak in tiers
    ]
    spilled = (
        "Nothing was spilled." if first is None else f"The first array went to disk after {first:.1f} s."
    )
    notes = "<br>".join(escape(str(n)) for n in store.get("notes", [])[:6])
    return section(
        "Store",
        f"Where spectrograms were found when a net asked for them. {spilled}",
        charts.share_bar([(count, colour, f"{name}: {count}") for name, count, colour, _, _ in tiers])
        + rows_table(("tier", "", "hits", "share", "peak size"), rows, (2, 3, 4))
        + f'<p class="note">{notes}</p>',
    )


def _steps(report: Mapping[str, Any]) -> str:
    """Forecast against outcome, step by step."""
    forecast = report.get("forecast") or {}
    steps = forecast.get("steps", [])
    if not steps:
        return ""
    known = colours(report)
    longest = max([*(s["seconds"] for s in steps), *(s["forecast_s"] for s in steps), 1e-9])
    rows = []
    for s in steps[:MAX_STEPS]:
        bars = "".join(
            f'<span class="meter" style="margin-top:{gap}px"><i style="width:{100 * value / longest:.1f}%;'
            f'background:var({colour})"></i></span>'
            for value, colour, gap in (
                (s["forecast_s"], "--c7", 3),
                (s["seconds"], of_net(s["net"], known), 2),
            )
        )
        ratio = f'{s["seconds"] / s["forecast_s"]:.2f}' if s["forecast_s"] > 0 else ""
        rows.append(
            (
                escape(s["net"]),
                escape(s["kind"]),
                f"{s['done']:,}/{s['rows']:,}",
                f"{s['forecast_s']:.1f}",
                f"{s['seconds']:.1f}",
                f"{s.get('loading_s', 0):.1f}",
                ratio,
                bars,
            )
        )
    header = (
        "net",
        "step",
        "rows",
        "forecast s",
        "took s",
        "of it loading",
        "ratio",
        "forecast (grey), outcome",
    )
    table = rows_table(header, rows, (2, 3, 4, 5, 6))
    if len(rows) > 12:
        table = f"<details><summary>{len(rows)} steps</summary>{table}</details>"
    middle = forecast.get("median_ratio")
    note = "What the plan expected of each step just before it started, and what it took; it learns from every step."
    return section(
        "Plan against outcome", note + (f" Median outcome / forecast: {middle:.2f}." if middle else ""), table
    )


def _clips(entries: Sequence[Mapping[str, Any]], pictures: Mapping[str, str], title: str, note: str) -> str:
    cards = []
    for entry in entries:
        image = pictures.get(entry["row"])
        shown = f'<img src="{image}" alt="log-mel spectrogram">' if image else ""
        best = ", ".join(
            f"{name} {score:.3g}" for name, score in zip(entry["best"][:2], entry["scores"][:2], strict=False)
        )
        name, true = escape(entry["row"]), ", ".join(entry.get("truth", ()))
        truth = f'<span class="good">rank {entry["rank"]}, true: {escape(true)}</span>' if true else ""
        cards.append(f'<div class="clip">{shown}<b title="{name}">{name}</b>{truth}'
                     f'<span class="soft">{escape(best)}</span></div>')
    return section(title, note, f'<div class="clips">{"".join(cards)}</div>' if cards else "")


def _source(meter: str) -> str:
    """What the meter read, without the long path of a control group."""
    kind, slash, path = meter.partition(" /")
    return f"{kind}, {path.rpartition('/')[2]}" if slash else meter


def _provenance(report: Mapping[str, Any]) -> str:
    guard, device, marks = report.get("guard", {}), report.get("device", {}), report.get("marks", {})
    shown: list[tuple[str, Any, Callable[[Any], str]]] = [
        ("bundle", report.get("bundle"), str),
        ("device", device.get("about"), str),
        ("back end", device.get("path"), str),
        ("memory read from", report.get("meter"), _source),
        ("limits", report["limits"].get("name"), str),
        (
            "stop, TERM, KILL, exit",
            [marks.get(k) for k in ("stop_s", "term_s", "kill_s", "exit_s")] if marks else None,
            lambda values: ", ".join(seconds_text(v) for v in values),
        ),
        (
            "publications",
            report.get("publications"),
            lambda times: f"{len(times)}, the last at {seconds_text(times[-1])}",
        ),
        ("hours of audio", report.get("seconds_of_audio"), lambda s: f"{s / 3600:.2f}"),
        ("clips not in the sample", report.get("extra_clips"), str),
        ("engine starts", guard.get("attempts"), str),
        ("prior submission written after", guard.get("prior_s"), lambda s: f"{s:.2f} s"),
        (
            "kernel",
            guard.get("pinned"),
            lambda pinned: "pushed form, bundle pinned by sha256" if pinned else "UNPINNED",
        ),
        ("exit code", guard.get("exit_code"), str),
    ]
    return section(
        "How it ran",
        "All figures of this page are in report.json.",
        rows_table(
            ("", ""),
            [
                (escape(name), escape(words(value)))
                for name, value, words in shown
                if value not in (None, "", [])
            ],
        ),
    )
