"""A rehearsal: the very kernel that is pushed, in a fake /kaggle tree, under the competition's limits, and
what it foretells.

Owns the command line, the run inside its walls and the verdict. The tree is replica's, the walls are
confine's, the forecast is outlook's. Started by the guard (`infer_kernel.py --rehearse`). Does not predict
anything itself: the pushed kernel does, in its own process. Linux only.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import pin, spec
from ..errors import HourglassError, SpecError
from ..files import write_atomically
from ..limits import Limits, limits
from ..report.page import encode_page, page
from ..report.pictures import draw_rows
from ..sound.decode import window_ids
from ..units import parse_bytes
from . import fake_kaggle, labels, sandbox
from .forecast import SLOWDOWN, Line, foretell, unmeasured

DRAWN_S = 60.0  # most seconds of a clip in a picture
STUB_ROWS = 3  # what the public test set of many code competitions holds when a version is saved


def _count(text: str) -> int:
    """A number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of at least 1")
    return value


def _factor(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0")
    return value


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The rehearsal's command line."""
    parser = argparse.ArgumentParser(
        prog="infer_kernel.py --rehearse", description="Run the pushed kernel under its limits."
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument(
        "--clips", type=Path, required=True, help="folder of clips; they become the test folder"
    )
    parser.add_argument("--working", type=Path, default=Path("out/rehearsal"))
    parser.add_argument("--limits", default=None, help="profile: fat2019, code-gpu, code-cpu, birdclef-cpu90")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--ram", type=parse_bytes)
    parser.add_argument("--disk", type=parse_bytes)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--loaders", type=_count)
    parser.add_argument("--first", type=_count)
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--expect-clips", type=_count, help="rows of the hidden test set (FAT2019: 3361)")
    parser.add_argument(
        "--expect-hours", type=_factor, help="hours of audio in the hidden test set (FAT2019: 9.7)"
    )
    parser.add_argument(
        "--repeat-to",
        type=_count,
        help="repeat the clips up to this number, cut or repeated to --expect-hours "
        "if that is given: a full-size run from few clips",
    )
    parser.add_argument(
        "--slowdown", type=_factor, default=SLOWDOWN, help="factor for a slower machine (default 1.3)"
    )
    parser.add_argument(
        "--labels", type=Path, help="CSV with fname and labels of the clips: score, and the worst predictions"
    )
    parser.add_argument(
        "--simulate-commit",
        action="store_true",
        help="first run with an empty test folder, as at 'Save Version', then rehearse on --clips (train clips)",
    )
    return parser.parse_args(list(arguments))


def find_pushed(kernel_file: Path, bundle: Path, manifest: spec.Manifest, text: bytes, tree: Path) -> Path:
    """The pushed form of the kernel for this bundle: the file itself, or a filled copy of the repository's
    own.
    """
    source = kernel_file.read_text(encoding="utf-8")
    digest = hashlib.sha256(text).hexdigest()
    known = pin.read_constant(source)
    if known is not None:
        if known["manifest_sha256"] != digest:
            raise SpecError(
                f"{kernel_file} was built for bundle {known['bundle']}, not for {bundle} ({manifest.bundle}); "
                "use the push folder that was built with it"
            )
        return kernel_file
    value = pin.constant(manifest, digest, asdict(limits(manifest.ensemble.profile)), "rehearsal")
    target = tree / pin.SCRIPT
    target.write_text(pin.fill_constant(source, value), encoding="utf-8")
    return target


def run_kernel(script: Path, root: Path, working: Path, chosen: argparse.Namespace,
               run_limits: Limits) -> tuple[int, list[str]]:
    """Exit code of the kernel inside the walls around its input `root`, and the walls in words; its lines
    appear as they come.
    """
    command = [
        sys.executable,
        "-I",
        "-u",
        str(script),
        "--input",
        str(root),
        "--working",
        str(working),
        "--limits",
        run_limits.name,
        "--seconds",
        str(run_limits.seconds),
        "--offset",
        "0",
        "--ram",
        str(run_limits.ram_bytes),
        "--disk",
        str(run_limits.disk_bytes),
        "--device",
        chosen.device,
    ]
    for name in ("loaders", "first"):
        if getattr(chosen, name) is not None:
            command += [f"--{name}", str(getattr(chosen, name))]
    command += ["--strict"] if chosen.strict else []
    walls = sandbox.build_walls(root, run_limits.ram_bytes, run_limits.cores)
    print(f"[rehearsal] profile {run_limits.name}: " + "; ".join(walls.lines), flush=True)
    try:
        code = subprocess.run([*walls.prefix, *command], preexec_fn=walls.enter, check=False).returncode
    finally:
        walls.leave()
    return code, list(walls.lines)


def run_commit(
    tree: Path, script: Path, chosen: argparse.Namespace, run_limits: Limits, ensemble: spec.Ensemble
) -> str:
    """What the kernel leaves when a version is saved: a sample of three rows and an empty test folder.

    Raises  SpecError when that is no valid submission
    """
    root, working = tree / "commit/input", tree / "commit/working"
    fake_kaggle.lay_bundle(root, chosen.bundle)
    ids = [f"clip{i}.wav" for i in range(STUB_ROWS)] if ensemble.windows is None else \
        window_ids("clip", STUB_ROWS * ensemble.windows.seconds, ensemble.windows)
    fake_kaggle.write_sample(root / "competitions/rehearsal", ids, ensemble)
    (root / "competitions/rehearsal/test").mkdir()
    print("[rehearsal] as at 'Save Version': three rows in the sample, an empty test folder", flush=True)
    code, _ = run_kernel(
        script, root, working, argparse.Namespace(**{**vars(chosen), "strict": False}), run_limits
    )
    path = working / "submission.csv"
    found = (
        [line.split(",")[0] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        if path.exists()
        else []
    )
    if code != 0 or found != ids:
        raise SpecError(
            f"at 'Save Version' the kernel ended with exit code {code} and rows {found}: do not push it"
        )
    return (
        "'Save Version': with an empty test folder the kernel left a valid submission of three prior rows. Kaggle shows the "
        "hidden test set to the rerun only, so this rehearsal ran on the clips of --clips instead"
    )


def find_problems(report: dict[str, Any], code: int, lines: Sequence[Line]) -> list[str]:
    """Why the rehearsal fails; empty when it passes."""
    problems = [line.problem() for line in lines if not line.passed]
    if code != 0:
        problems.append(f"the kernel ended with exit code {code}")
    if not report["guard"]["finished"]:
        problems.append("the engine did not finish; the last published submission stayed")
    failed = [net["id"] for member in report["members"] for net in member["nets"] if net["failed"]]
    if failed:
        problems.append(f"{len(failed)} nets failed: {', '.join(failed[:5])}; see the faults")
    if report["partial_rows"]:
        problems.append(f"{report['partial_rows']} rows were scored by a part of the ensemble only")
    if unmeasured(report):
        problems.append(
            "no forecast for " + ", ".join(unmeasured(report)) + ": no net of it ran here; see the faults"
        )
    return problems


def print_verdict(report: dict[str, Any], lines: Sequence[Line]) -> None:
    """The table for the hidden test set."""
    verdict = report["rehearsal"]
    slower = f"x {verdict['slowdown']:g} slower"
    print(
        f"\nforecast for {verdict['clips']} rows, {verdict['hours']:.2f} h of audio (allowed time: the kernel's own stop mark)"
    )
    print(f"      {'':<26}{'here':>12}{slower:>14}{'allowed':>12}   margin")
    for line in lines:
        print(line.text())
    for note in verdict["notes"]:
        print(f"      {note}")


def judge(
    report: dict[str, Any], code: int, chosen: argparse.Namespace, run_limits: Limits, notes: list[str]
) -> list[Line]:
    """The forecast's lines; puts the verdict into the report."""
    seen = max(1, report["rows"])
    clips = chosen.expect_clips or seen
    hours = chosen.expect_hours or report["seconds_of_audio"] / 3600 * clips / seen
    lines = foretell(report, clips, hours, run_limits, chosen.slowdown)
    problems = find_problems(report, code, lines)
    if report["prior_rows"]:
        notes = [
            *notes,
            f"{report['prior_rows']} of {seen} rows hold only the prior: report.json names each and why",
        ]
    notes = [
        *notes,
        f"longest clip here: {report['longest_s']:g} s; longer hidden clips need more memory and time each",
    ]
    report["rehearsal"] |= {
        "clips": clips,
        "hours": hours,
        "slowdown": chosen.slowdown,
        "passed": not problems,
        "problems": problems,
        "notes": notes,
        "verdict": [{**asdict(line), "passed": line.passed, "margin": line.margin} for line in lines],
    }
    return lines


def rehearse(chosen: argparse.Namespace, kernel_file: Path) -> int:
    """Exit code: 0 every limit passes, 1 one fails or the run was not clean.

    Raises  HourglassError when there is nothing to rehearse
    """
    text = (chosen.bundle / "manifest.json").read_bytes()
    manifest = spec.load_manifest(text)
    run_limits = limits(chosen.limits or manifest.ensemble.profile, chosen.seconds, chosen.ram, chosen.disk)
    chosen.working.mkdir(parents=True, exist_ok=True)
    report_path = chosen.working / "report.json"
    with tempfile.TemporaryDirectory(prefix="rehearsal-", dir=chosen.working.parent) as folder:
        tree = Path(folder)
        script = find_pushed(kernel_file, chosen.bundle, manifest, text, tree)
        notes = (
            [run_commit(tree, script, chosen, run_limits, manifest.ensemble)]
            if chosen.simulate_commit
            else []
        )
        fake_kaggle.lay_bundle(tree / "input", chosen.bundle)
        laid = fake_kaggle.lay_clips(
            tree / "input", chosen.clips, manifest.ensemble, chosen.repeat_to, chosen.expect_hours
        )
        print(f"[rehearsal] {len(laid.ids)} rows" + "".join(f"; {note}" for note in laid.notes), flush=True)
        code, walls = run_kernel(script, tree / "input", chosen.working, chosen, run_limits)
        report = json.loads(report_path.read_bytes())
        if code not in (0, 1) or "costs" not in report:
            print(
                f"[rehearsal] FAIL: the kernel ended with exit code {code} without a full report; see {report_path}"
            )
            return 1
        report["rehearsal"] = {"walls": walls}
        lines = judge(report, code, chosen, run_limits, [*notes, *laid.notes])
        if chosen.labels is not None:
            labels.add_truth(report, chosen.labels, chosen.working / "submission.csv", manifest.ensemble)
        shown = {entry["row"] for entry in [*report["uncertain"], *report.get("worst", [])]}
        drawn = fake_kaggle.rows_of(laid, manifest.ensemble, shown)
        pictures = draw_rows(drawn, manifest.ensemble.max_seconds or DRAWN_S, lambda: False)
    write_atomically(report_path, (json.dumps(report, indent=1) + "\n").encode())
    write_atomically(chosen.working / "report.html", encode_page(page(report, pictures)))
    print_verdict(report, lines)
    passed = report["rehearsal"]["passed"]
    for problem in report["rehearsal"]["problems"]:
        print(f"FAIL  {problem}")
    print(
        f"\n{'PASS' if passed else 'FAIL'}: submission.csv, report.html and report.json in {chosen.working}"
    )
    return 0 if passed else 1


def main(arguments: Sequence[str], kernel_file: str) -> int:
    """Exit code of a rehearsal: 0 PASS, 1 FAIL, 2 nothing to rehearse."""
    chosen = read_arguments(arguments)
    if not sys.platform.startswith("linux"):
        print(
            "[rehearsal] a rehearsal needs Linux: its walls are Linux's own; use a container there",
            file=sys.stderr,
        )
        return 2
    try:
        return rehearse(chosen, Path(kernel_file))
    except (HourglassError, OSError) as error:
        print(f"[rehearsal] {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2
