"""A rehearsal: the very kernel that is pushed, in a fake /kaggle tree, under the competition's limits, and what it foretells.

Owns the fake tree, the walls around the run, the forecast for the hidden test set and the PASS or FAIL per limit.
Started by the guard (`infer_kernel.py --rehearse`). Does not predict anything itself: the pushed kernel does, in its own process.
"""
from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import confine, pushed, spec
from .audio import probe, window_ids
from .clips import SUFFIXES
from .errors import HourglassError, SampleMissing, SpecError
from .journal import write_atomically
from .limits import Limits, limits, marks, parse_bytes
from .report import gigabytes, seconds_text

SLOWDOWN = 1.3  # a Kaggle machine may be this much slower than this one: kaggle.md 2.1
GUARD_S = 3.0  # guard, imports and set-up, before and after the engine's own clock


@dataclass(frozen=True, kw_only=True)
class Line:
    """One limit of the verdict: what is foretold, raw and on a slower machine, against what is allowed."""

    what: str
    raw: float
    scaled: float
    allowed: float
    unit: str

    @property
    def passed(self) -> bool:
        return self.scaled <= self.allowed

    def text(self) -> str:
        show = {"s": seconds_text, "B": gigabytes}.get(self.unit, lambda v: f"{v:.0f}")
        margin = (1 - self.scaled / self.allowed) * 100 if self.allowed else 0.0
        return (f"{'PASS' if self.passed else 'FAIL'}  {self.what:<26}{show(self.raw):>12}{show(self.scaled):>14}"
                f"{show(self.allowed):>12}   {margin:+.0f} %")


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The rehearsal's command line."""
    parser = argparse.ArgumentParser(prog="infer_kernel.py --rehearse", description="Run the pushed kernel under its limits.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--clips", type=Path, required=True, help="folder of clips; they become the test folder")
    parser.add_argument("--working", type=Path, default=Path("out/rehearsal"))
    parser.add_argument("--limits", default=None, help="profile: fat2019, code-gpu, code-cpu, birdclef-cpu90")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--ram", type=parse_bytes)
    parser.add_argument("--disk", type=parse_bytes)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--loaders", type=int)
    parser.add_argument("--first", type=int)
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--expect-clips", type=int, help="rows of the hidden test set (FAT2019: 3361)")
    parser.add_argument("--expect-hours", type=float, help="hours of audio in the hidden test set (FAT2019: 9.7)")
    parser.add_argument("--repeat-to", type=int, help="repeat the clips up to this many rows: a full-size run from few clips")
    parser.add_argument("--slowdown", type=float, default=SLOWDOWN, help="factor for a slower machine (default 1.3)")
    parser.add_argument("--labels", type=Path, help="CSV fname,labels of the clips: shows the worst predictions")
    parser.add_argument("--simulate-commit", action="store_true", help="also run with an empty test folder, as at 'Save version'")
    return parser.parse_args(list(arguments))


def link(source: Path, target: Path) -> None:
    """`target` holds the bytes of `source`: a hard link where possible, a copy elsewhere."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def find_audio(folder: Path) -> list[Path]:
    """Audio files below a folder, sorted by path.

    Raises  SampleMissing when there is none
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise SampleMissing(f"--clips {folder}: no audio file; give a folder of wav, flac, ogg, mp3 or aiff files")
    return files


def make_tree(tree: Path, bundle: Path, clips: Path, ensemble: spec.Ensemble, repeat_to: int | None) -> int:
    """A fake /kaggle below `tree`: attached dataset, competition with sample and test folder; gives the number of rows."""
    dataset, competition = tree / "input/datasets/owner/bundle", tree / "input/competitions/rehearsal"
    for path in bundle.iterdir():
        if path.is_file():
            link(path, dataset / path.name)
    files = find_audio(clips)
    ids: list[str] = []
    wanted = repeat_to or len(files)
    for number in range(wanted):
        source = files[number % len(files)]
        name = source.relative_to(clips).as_posix()
        name = name if number < len(files) else f"again{number // len(files)}/{name}"
        link(source, competition / "test" / name)
        ids += _row_ids(name, source, ensemble)
    header = ["fname", *ensemble.classes] if ensemble.output.format == "probabilities" else \
        ["fname", ensemble.output.label_column or "label"]
    with open(competition / "sample_submission.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([id, *["0"] * (len(header) - 1)] for id in ids)
    return len(ids)


def _row_ids(name: str, path: Path, ensemble: spec.Ensemble) -> list[str]:
    """The sample's ids for one clip: itself, or one per window."""
    if ensemble.windows is None:
        return [name]
    clip = probe(name, path, path.parent)
    seconds = clip.samples_claimed / clip.rate if clip.rate else 0.0
    return window_ids(Path(name).stem, min(seconds, ensemble.max_seconds or 900.0), ensemble.windows)


def find_pushed(kernel_file: Path, bundle: Path, manifest: spec.Manifest, text: bytes, tree: Path) -> Path:
    """The pushed form of the kernel for this bundle: the file itself, or a filled copy of the repository's own."""
    source = kernel_file.read_text(encoding="utf-8")
    digest = hashlib.sha256(text).hexdigest()
    known = pushed.read_constant(source)
    if known is not None:
        if known["manifest_sha256"] != digest:
            raise SpecError(f"{kernel_file} was built for bundle {known['bundle']}, not for {bundle} ({manifest.bundle}); "
                            "use the push folder that was built with it")
        return kernel_file
    value = pushed.constant(manifest, digest, asdict(limits(manifest.ensemble.profile)), "rehearsal")
    target = tree / pushed.SCRIPT
    target.write_text(pushed.fill_constant(source, value), encoding="utf-8")
    return target


def run_kernel(script: Path, tree: Path, chosen: argparse.Namespace, run_limits: Limits, walls: confine.Walls) -> int:
    """Exit code of the kernel inside the walls; its lines appear as they come."""
    command = [*walls.prefix, sys.executable, "-I", "-u", str(script), "--input", str(tree / "input"), "--working",
               str(chosen.working), "--limits", run_limits.name, "--seconds", str(run_limits.seconds), "--offset", "0",
               "--ram", str(run_limits.ram_bytes), "--disk", str(run_limits.disk_bytes), "--device", chosen.device]
    for name in ("loaders", "first"):
        if getattr(chosen, name) is not None:
            command += [f"--{name}", str(getattr(chosen, name))]
    command += ["--strict"] if chosen.strict else []
    return subprocess.run(command, preexec_fn=walls.enter, check=False).returncode


def foretell(report: dict[str, Any], clips: int, hours: float, run_limits: Limits, slowdown: float) -> list[Line]:
    """What a hidden test set of `clips` rows and `hours` of audio needs, by the costs this run measured.

    time  guard + set-up + per net (set-up + a x rows + b x frames) + loading per second of audio
    """
    seen_s, seen = max(1e-9, report["seconds_of_audio"]), max(1, report["rows"] - report["prior_rows"])
    audio_s = hours * 3600
    total = GUARD_S + report["setup_s"]
    for member in report["members"]:
        cost = report["costs"]["members"].get(member["name"])
        if cost is not None:
            frames = cost["frames_per_row"] * seen / seen_s * audio_s / clips  # frames follow the audio, not the rows
            total += len(member["nets"]) * (cost["setup_s"] + clips * (cost["seconds_a"] + cost["seconds_b"] * frames))
    total += audio_s * sum(report["costs"]["frontends"].values())
    stored = report["store"]["stored_bytes"] * audio_s / seen_s
    base = report["peak_ram_bytes"] - report["store"]["ram_peak_bytes"]
    mark = 0.95 * run_limits.ram_bytes
    in_ram = min(stored, max(0.0, mark - base))
    stop = marks(run_limits.seconds).stop_s
    return [Line(what="time of everything", raw=total, scaled=total * slowdown, allowed=stop, unit="s"),
            Line(what="memory beside the cache", raw=base, scaled=base, allowed=mark, unit="B"),
            Line(what="memory with the cache", raw=base + in_ram, scaled=base + in_ram, allowed=mark, unit="B"),
            Line(what="spill to disk", raw=stored - in_ram, scaled=stored - in_ram, allowed=run_limits.disk_bytes, unit="B")]


def print_verdict(lines: list[Line], clips: int, hours: float, slowdown: float) -> bool:
    """The table for the hidden test set; True when every limit passes."""
    print(f"\nforecast for {clips} rows, {hours:.2f} h of audio (allowed time = the kernel's own stop mark)")
    print(f"      {'':<26}{'here':>12}{f'x {slowdown:g} slower':>14}{'allowed':>12}   margin")
    for line in lines:
        print(line.text())
    return all(line.passed for line in lines)


def rehearse(chosen: argparse.Namespace, kernel_file: Path) -> int:
    """Exit code: 0 every limit passes, 1 one fails or the run was not clean.

    Raises  HourglassError when there is nothing to rehearse
    """
    text = (chosen.bundle / "manifest.json").read_bytes()
    manifest = spec.load_manifest(text)
    run_limits = limits(chosen.limits or manifest.ensemble.profile, chosen.seconds, chosen.ram, chosen.disk)
    chosen.working.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rehearsal-", dir=chosen.working.parent) as folder:
        tree = Path(folder)
        rows = make_tree(tree, chosen.bundle, chosen.clips, manifest.ensemble, chosen.repeat_to)
        script = find_pushed(kernel_file, chosen.bundle, manifest, text, tree)
        walls = confine.build_walls(tree / "input", run_limits.ram_bytes)
        print(f"[rehearsal] {rows} rows, profile {run_limits.name}: " + "; ".join(walls.lines), flush=True)
        try:
            code = run_kernel(script, tree, chosen, run_limits, walls)
        finally:
            walls.leave()
    report_path = chosen.working / "report.json"
    report = json.loads(report_path.read_bytes())
    if code not in (0, 1) or "costs" not in report:
        print(f"[rehearsal] FAIL: the kernel ended with exit code {code} without a full report; see {report_path}")
        return 1
    seen = max(1, report["rows"])
    clips = chosen.expect_clips or seen
    hours = chosen.expect_hours or report["seconds_of_audio"] / 3600 * clips / seen
    lines = foretell(report, clips, hours, run_limits, chosen.slowdown)
    passed = print_verdict(lines, clips, hours, chosen.slowdown) and code == 0
    report["rehearsal"] = {"walls": list(walls.lines), "clips": clips, "hours": hours, "slowdown": chosen.slowdown,
                           "passed": passed, "verdict": [{**asdict(line), "passed": line.passed} for line in lines]}
    write_atomically(report_path, (json.dumps(report, indent=1) + "\n").encode())
    print(f"\n{'PASS' if passed else 'FAIL'}: {chosen.working / 'submission.csv'}, {report_path}")
    return 0 if passed else 1


def main(arguments: Sequence[str], kernel_file: str) -> int:
    """Exit code of a rehearsal: 0 PASS, 1 FAIL, 2 nothing to rehearse."""
    try:
        return rehearse(read_arguments(arguments), Path(kernel_file))
    except (HourglassError, OSError) as error:
        print(f"[rehearsal] {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2
