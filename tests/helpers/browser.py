"""A real headless browser, where one is installed: measures a page and takes its picture.

`python -m tests.helpers.browser out/rehearsal/report.html docs/report.png` renders a report for a README.
"""
from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
)
COLOURS = 128  # of a picture for a README
# A window is never narrower than some 500 px, a frame is as narrow as it is told to be
FRAME = """<!doctype html><body style="margin:0"><script>
onmessage = event => { document.title = event.data }
</script><iframe src="page.html" style="border:0;display:block;width:%dpx;height:900px"></iframe></body>"""
MEASURE = """
const found = []
const visible = (element, box) => {  // The part of a box that no scrolling ancestor hides
  let [left, top, right, bottom] = [box.left, box.top, box.right, box.bottom]
  for (let up = element; up; up = up.parentElement) {
    if (getComputedStyle(up).overflowX === 'visible') continue
    const clip = up.getBoundingClientRect()
    left = Math.max(left, clip.left); right = Math.min(right, clip.right)
    top = Math.max(top, clip.top); bottom = Math.min(bottom, clip.bottom)
  }
  return {left, top, right, bottom}
}
// A line box is higher than its letters: texts may share some px of it, a label and a bar none
const meet = (a, b, shared) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > shared
const texts = []
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const words = node.data.trim()
  const parent = node.parentElement
  if (!words || parent.closest('script, title, details:not([open]) > :not(summary)')) continue
  const range = document.createRange()
  range.selectNodeContents(node)
  const boxes = [...range.getClientRects()].filter(box => box.width > 0)
  if (boxes.length > 2 && words.length / boxes.length < 4) found.push('letter under letter: ' + words)
  if (getComputedStyle(parent).textOverflow === 'ellipsis') continue
  for (const box of boxes) texts.push({words, parent, box: visible(parent, box), own: box})
}
texts.forEach((a, i) => texts.slice(i + 1).forEach(b => {
  if (a.parent !== b.parent && meet(a.box, b.box, 3)) found.push(`text over text: ${a.words} | ${b.words}`)
}))
const bars = [...document.querySelectorAll('svg rect')].map(bar => [bar, bar.getBoundingClientRect()])
for (const {words, parent, own} of texts.filter(text => text.parent.closest('svg'))) {
  const inside = parent.classList.contains('onbar')
  const others = inside ? bars.filter(([bar]) => !bar.parentElement.contains(parent)) : bars
  if (others.some(([, box]) => meet(own, box, 0.5))) found.push('label over a bar: ' + words)
  const bar = inside && parent.parentElement.querySelector('rect').getBoundingClientRect()
  if (bar && (own.left < bar.left || own.right > bar.right)) found.push('label beyond its bar: ' + words)
  const chart = parent.closest('svg').getBoundingClientRect()
  if (own.left < chart.left - 1 || own.right > chart.right + 1) found.push('label cut off: ' + words)
  if (own.height < 9) found.push('too small to read: ' + words)
}
parent.postMessage(JSON.stringify({
  inner: innerWidth,
  scroll: document.documentElement.scrollWidth,
  height: document.documentElement.scrollHeight,
  pictures: [...document.images].reduce((sum, image) => sum + image.naturalWidth, 0),
  found: [...new Set(found)],
}), '*')
"""


def browse(*arguments: str) -> str:
    """What the browser printed; it starts with an empty profile."""
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        return subprocess.run(
            [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *arguments],
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        ).stdout


def measure(page: Path, width: int) -> dict[str, Any]:
    """Sizes in px of a page in a frame of `width`, the widths of its pictures in all, and what is unreadable.

    `found` lists letters under letters, texts over texts, and labels over bars, beyond them or cut off.
    """
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        script = f"<script>onload = () => {{{MEASURE}}}</script></body>"
        (Path(folder) / "page.html").write_bytes(page.read_bytes().replace(b"</body>", script.encode()))
        frame = Path(folder) / "frame.html"
        frame.write_text(FRAME % width)
        size = f"--window-size={max(width, 600)},900"
        out = browse(size, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
    sizes: dict[str, Any] = json.loads(html.unescape(re.findall(r"<title>(.+?)</title>", out, re.DOTALL)[0]))
    return sizes


def take_picture(page: Path, target: Path, width: int = 1280, most: int | None = None) -> None:
    """A PNG of the page at full height, or of its first `most` px."""
    height = measure(page, width)["height"]
    browse(
        f"--window-size={width},{min(height, most or height)}",
        f"--screenshot={target.resolve()}",
        page.resolve().as_uri(),
    )
    from PIL import Image

    with Image.open(target) as image:
        image.convert("RGB").quantize(COLOURS).save(target, optimize=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--most", type=int, help="px of height at most")
    chosen = parser.parse_args()
    if BROWSER is None:
        raise SystemExit("no Chromium here; on Debian: apt-get install chromium")
    take_picture(chosen.page, chosen.png, chosen.width, chosen.most)
    print(f"{chosen.png}: {chosen.png.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
