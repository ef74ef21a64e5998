"""The first screen of the README: one competition by a plain script and by Hourglass, measured and drawn.

    python benchmarks/faults_baseline.py --json out/faults.json      24 faults, some ten minutes
    python benchmarks/first_screen.py --faults out/faults.json       the rest; writes docs/first_screen.json
    python benchmarks/first_screen.py --draw                         the picture and README's table, from it

Both score the same rendered clips with the same nets and weights (benchmarks/first_screen.toml is what
benchmarks/plain_script.py computes), each in a process of its own, in turns; medians. Peak memory is the
largest resident set of the plain script, and of guard and engine together. Asserts nothing about time.
"""
from __future__ import annotations

import argparse
import ast
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SCRIPT = ROOT / "benchmarks" / "plain_script.py"
TOML = ROOT / "benchmarks" / "first_screen.toml"
FIGURES = ROOT / "docs" / "first_screen.json"
PICTURE = ROOT / "docs" / "first_screen.svg"
README = ROOT / "README.md"
BEGIN, END = "<!-- first screen -->", "<!-- end -->"
RATE = 44_100
SIDES = ("plain", "hourglass")
NAMES = {"plain": "a plain script", "hourglass": "Hourglass"}


def count_lines(path: Path) -> int:
    """Lines that somebody wrote: without blank ones, comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    skipped: set[int] = set()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and number not in skipped
               for number, line in lines)


def render(folder: Path, clips: int) -> None:
    """Clips of 0.5 to 15 s, most of them short, and their sample: tones that are struck again and again."""
    import numpy as np
    import soundfile

    (folder / "test").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"{number:05d}.wav" for number in range(clips)]
    for name, seconds in zip(names, np.quantile([0.5, 2, 4, 8, 15], rng.random(clips)), strict=True):
        t = np.arange(int(seconds * RATE)) / RATE
        struck = np.exp(-4 * (t * rng.uniform(0.5, 3) % 1))
        wave = 0.3 * struck * np.sin(2 * np.pi * rng.uniform(100, 4000) * t)
        soundfile.write(folder / "test" / name, wave + 0.01 * rng.standard_normal(len(t)), RATE)
    classes = (ROOT / "ensembles/classes/fat2019.txt").read_text(encoding="utf-8").split()
    with open(folder / "sample_submission.csv", "w", newline="") as file:
        csv.writer(file).writerows([["fname", *classes], *([name, *[0] * len(classes)] for name in names)])


def run(side: str, top: Path, working: Path) -> tuple[float, float]:
    """(wall seconds, peak bytes) of one side."""
    working.mkdir()
    bundle, places = str(top / "out" / "bundle"), (str(top / "in"), str(working))
    command = [sys.executable, str(SCRIPT), bundle, *places]
    if side == "hourglass":
        kernel = str(top / "out" / "push" / "infer_kernel.py")
        command = [sys.executable, kernel, "--bundle", bundle, "--input", places[0], "--working", places[1],
                   "--device", "cpu", "--limits", "fat2019"]
    began = time.monotonic()
    with open(working / "said.txt", "w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if status:
        raise SystemExit(f"{side} failed: {(working / 'said.txt').read_text()[-2000:]}")
    if side == "hourglass":
        return seconds, float(json.loads((working / "report.json").read_bytes())["peak_own_bytes"])
    return seconds, usage.ru_maxrss * 1024.0


def read_scores(path: Path) -> list[list[float]]:
    with open(path, newline="") as file:
        return [[float(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]


def measure(clips: int, rounds: int, faults: dict[str, dict[str, str]]) -> dict[str, Any]:
    """All figures of the first screen."""
    from builder import assembly

    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="first-screen-") as folder:
        top = Path(folder)
        render(top / "in", clips)
        assembly.build(assembly.BuildRequest(ensemble=TOML, out=top / "out"), say=lambda _: None)
        for number in range(rounds):
            for side in SIDES:
                taken[side].append(run(side, top, top / f"{side}-{number}"))
                print(f"{side}: {taken[side][-1][0]:.1f} s, {taken[side][-1][1] / 1e9:.2f} GB", flush=True)
        ours, theirs = (read_scores(top / f"{side}-0" / "submission.csv") for side in ("hourglass", "plain"))
    apart = max(abs(a - b) for one, other in zip(ours, theirs, strict=True)
                for a, b in zip(one, other, strict=True))
    return {
        "clips": clips,
        "rounds": rounds,
        "largest_difference": apart,
        "lines": {"plain": count_lines(SCRIPT), "hourglass": count_lines(TOML)},
        "seconds": {side: round(statistics.median(t for t, _ in taken[side]), 1) for side in SIDES},
        "peak_bytes": {side: round(statistics.median(b for _, b in taken[side])) for side in SIDES},
        "faults": faults,
    }


def count_survived(figures: dict[str, Any], side: str) -> int:
    return sum(verdict[side] == "survived" for verdict in figures["faults"].values())


def table(figures: dict[str, Any]) -> str:
    """README's table: every figure and the command that gives it."""
    whole, screen = "`python benchmarks/faults_baseline.py`", "`python benchmarks/first_screen.py`"
    lines_of, seconds, peak = figures["lines"], figures["seconds"], figures["peak_bytes"]
    survived = [str(count_survived(figures, side)) for side in SIDES]
    rows = [
        ("lines written (both import the nets)", f"{lines_of['plain']} of Python",
         f"{lines_of['hourglass']} of TOML", screen),
        (f"survived of {len(figures['faults'])} faults", *survived, whole),
        (f"seconds, {figures['clips']} clips", *(f"{seconds[side]:.0f}" for side in SIDES), screen),
        ("peak memory", *(f"{peak[side] / 1e9:.2f} GB" for side in SIDES), screen),
        ("the scores", "-", f"the same within {figures['largest_difference']:.0e}", screen),
    ]
    lines = [("", *NAMES.values(), "measured by"), ("---",) * 4, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


STYLE = """<style>
text{font:13px system-ui,"Segoe UI","DejaVu Sans",sans-serif;fill:#1d2329}
.b{font-weight:600;font-size:15px}.s{fill:#5c6670;font-size:12px}
.ok{fill:#2f8f4e}.no{fill:#c43d3d}.wrong{fill:#b87a14}.bar{fill:#3b6fb6}.peer{fill:#9aa5b0}
@media(prefers-color-scheme:dark){text{fill:#e4e8ec}.s{fill:#9aa5b0}.ok{fill:#55bd78}.no{fill:#e8696b}
.wrong{fill:#dda03c}.bar{fill:#6c9fe0}.peer{fill:#5c6670}}
</style>"""
LEFT, CELL, WIDTH = 150, 25, 860


def draw(figures: dict[str, Any]) -> str:
    """The picture: a square per fault and side, and bars for seconds and memory."""
    parts = [STYLE]
    count = len(figures["faults"])
    parts.append(_text(0, 18, f"{count} faults: who still has a submission that can be scored?", "b"))
    for row, side in enumerate(SIDES):
        y = 34 + row * (CELL + 8)
        parts.append(_text(0, y + 17, NAMES[side]))
        for at, (name, verdict) in enumerate(figures["faults"].items()):
            css = "ok" if verdict[side] == "survived" else "wrong" if "WRONG" in verdict[side] else "no"
            about = escape(f"{name}: {verdict[side]}")
            parts.append(f'<g><title>{about}</title><rect x="{LEFT + at * CELL}" y="{y}" '
                         f'width="{CELL - 4}" height="{CELL - 4}" rx="3" class="{css}"/></g>')
        parts.append(_text(LEFT + count * CELL + 12, y + 17, f"{count_survived(figures, side)}", "b"))
    y = 118
    legend = (("ok", "survived", 0), ("wrong", "silently wrong", 110), ("no", "no submission", 250))
    for css, words, x in legend:
        parts.append(f'<rect x="{LEFT + x}" y="{y - 10}" width="11" height="11" rx="2" class="{css}"/>')
        parts.append(_text(LEFT + x + 17, y, words, "s"))
    bars = (("seconds", "seconds", "s", 1.0), ("peak memory", "peak_bytes", "GB", 1e9))
    for title, key, unit, scale in bars:
        y += 32
        parts.append(_text(0, y, f"{title}, {figures['clips']} clips, the same nets and scores", "b"))
        most = max(figures[key].values())
        for side in SIDES:
            y += 24
            wide = 560 * figures[key][side] / most
            parts.append(_text(0, y, NAMES[side]))
            parts.append(f'<rect x="{LEFT}" y="{y - 13}" width="{wide:.1f}" height="16" rx="3" '
                         f'class="{"bar" if side == "hourglass" else "peer"}"/>')
            shown = f"{figures[key][side] / scale:.{0 if unit == 's' else 2}f} {unit}"
            parts.append(_text(LEFT + wide + 10, y, shown, "b"))
    about = "The same competition by a plain script and by Hourglass; README has the figures as a table"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 16}" role="img" '
            f'aria-label="{about}">\n' + "\n".join(parts) + "\n</svg>\n")


def _text(x: float, y: float, words: str, css: str = "") -> str:
    style = f' class="{css}"' if css else ""
    return f'<text x="{x:.0f}" y="{y}"{style}>{escape(words)}</text>'


def fill(page: str, figures: dict[str, Any]) -> str:
    """README with its table made anew."""
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{table(figures)}\n{END}", page, flags=re.DOTALL)


def main() -> None:
    """Measure, unless only to be drawn; then draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=Path, help="what faults_baseline.py --json wrote")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draw", action="store_true", help="from docs/first_screen.json alone")
    chosen = parser.parse_args()
    if not chosen.draw:
        if chosen.faults is None:
            known = json.loads(FIGURES.read_bytes())["faults"]  # the rest is measured anew
        else:
            known = json.loads(chosen.faults.read_bytes())
        figures = measure(chosen.clips, chosen.rounds, known)
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    figures = json.loads(FIGURES.read_bytes())
    PICTURE.write_text(draw(figures), encoding="utf-8")
    README.write_text(fill(README.read_text(encoding="utf-8"), figures), encoding="utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
