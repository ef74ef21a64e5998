"""A real headless browser, where one is installed: measures a page and takes its picture.

`python -m tests.helpers.browser out/rehearsal/report.html docs/report.png` renders a report for a README.
"""
from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

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


def measure(page: Path, width: int) -> dict[str, int]:
    """Sizes in px of a page in a window of `width`: its own, and the widths of its pictures in all."""
    figures = (
        "innerWidth",
        "document.documentElement.scrollWidth",
        "document.documentElement.scrollHeight",
        "[...document.images].reduce((sum, image) => sum + image.naturalWidth, 0)",
    )
    script = f"<script>document.title = [{','.join(figures)}]</script></body>"
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        copy = Path(folder) / "page.html"
        copy.write_bytes(page.read_bytes().replace(b"</body>", script.encode()))
        out = browse(f"--window-size={width},900", "--dump-dom", copy.as_uri())
    found = re.findall(r"<title>([\d,]+)</title>", out)[0].split(",")
    return dict(zip(("inner", "scroll", "height", "pictures"), map(int, found), strict=True))


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
