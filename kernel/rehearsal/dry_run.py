"""The dry run at save time: some training recordings through the engine, on Kaggle's own machine.

When a version is saved the test set of a code competition is empty or a placeholder, so that a run shows
nothing. Owns whether that is so, which recordings are tried, and what is told of them: the side files
dry_run.csv and dry_run.json and the forecast for the hidden test set. Started by the guard in a process of
its own, once submission.csv is settled; it never touches that file, and the guard does not start it while
Kaggle scores.
"""
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from .. import spec
from ..errors import HourglassError, SampleMissing
from ..files import write_atomically
from ..limits import Limits, marks
from ..order import Order, Sample, load_order
from ..report.contents import RehearsalReport, Report, encode_report, load_report
from ..report.terminal import say, show, verdict_table
from ..scores.submission import read_sample
from ..sound.clips import SUFFIXES
from ..sound.rows import clip_ids
from . import fake_kaggle
from .forecast import SLOWDOWN, forecast

STUB_CLIPS = 3  # the most clips that a placeholder names: published kernels meet one to three
MOST_LISTED = 5000  # files of a training folder that are looked at; a mount takes a while for each thousand
MOST_ROWS = 10_000_000  # of a test set, when the most that fit is looked for
SCORES, REPORT = "dry_run.csv", "dry_run.json"
FAILED = 1


def is_placeholder(sample: Sequence[str], report: Report, windows: spec.Windows | None) -> bool:
    """True when the test set that was run is none: no audio at all, or a sample of very few recordings."""
    return report.seconds_of_audio == 0 or len(set(clip_ids(tuple(sample), windows))) <= STUB_CLIPS


def find_folder(input: Path, name: str) -> Path:
    """The folder of this name in the competition's data, wherever they are mounted.

    Raises  SampleMissing
    """
    given = Path(name)
    places = [given] if given.is_absolute() else [input / name]
    if not given.is_absolute():
        for pattern in ("competitions/*", "*", "datasets/*/*"):
            places += [folder / name for folder in sorted(input.glob(pattern))]
    for place in places:
        if place.is_dir():
            return place
    raise SampleMissing(f"no folder {name!r} below {input} or in the data mounted there; give its name as it "
                        "stands in the competition's data")


def choose_clips(folder: Path, count: int) -> list[str]:
    """`count` audio files below `folder`, evenly spread over their sorted names (POSIX, relative).

    Raises  SampleMissing when there is none
    """
    names: list[str] = []
    for place, below, files in os.walk(folder):
        below.sort()
        here = Path(place).relative_to(folder)
        names += [(here / name).as_posix() for name in sorted(files) if Path(name).suffix.lower() in SUFFIXES]
        if len(names) >= MOST_LISTED:
            break
    if not names:
        raise SampleMissing(f"no audio file below {folder}; give another folder")
    names = sorted(names[:MOST_LISTED])
    count = min(count, len(names))
    return [names[i * len(names) // count] for i in range(count)]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Recordings to be tried: where they are, their names, and the rows that they make."""

    folder: Path
    names: tuple[str, ...]
    ids: tuple[str, ...]


def lay_trial(order: Order, ensemble: spec.Ensemble, clips: str, count: int) -> Trial:
    """The recordings that are tried; one without a readable header has no windows, and is named.

    Windows are named by the file alone: recordings of several folders are brought into one, below the order's
    private folder, and of two that share a name the first is tried.

    Raises  SampleMissing
    """
    folder = find_folder(order.input, clips)
    names = choose_clips(folder, count)
    if ensemble.windows is not None and any("/" in name for name in names):
        named = {Path(name).stem: name for name in reversed(names)}
        names = sorted(named.values())
        for name in names:
            fake_kaggle.link(folder / name, order.state / "dry-run/clips" / Path(name).name)
        folder, names = order.state / "dry-run/clips", [Path(name).name for name in names]
    found = {name: fake_kaggle.row_ids(name, folder / name, ensemble) for name in names}
    silent = [name for name, ids in found.items() if not ids]
    if silent:
        say(f"[hourglass] DRY RUN: {len(silent)} of {len(names)} recordings have no readable sound: "
            + ", ".join(silent[:5]))
    if len(silent) == len(names):
        raise SampleMissing(f"none of {len(names)} recordings of {clips!r} has a row; give another folder")
    ids = {id: None for several in found.values() for id in several}
    return Trial(folder=folder, names=tuple(name for name in names if found[name]), ids=tuple(ids))


def describe_order(
    order: Order, trial: Trial, ensemble: spec.Ensemble, seconds: float, began: float
) -> Order:
    """The engine's order for a trial: private and working folders of its own, the same limits but the clock.
    """
    state = order.state / "dry-run"
    for name in ("working", "input"):
        (state / name).mkdir(parents=True)
    fake_kaggle.write_sample(state / "input", trial.ids, ensemble)
    path = state / "input" / "sample_submission.csv"
    boot = time.clock_gettime(time.CLOCK_BOOTTIME) - (time.monotonic() - began)
    return replace(
        order,
        clips=trial.folder,
        working=state / "working",
        state=state,
        sample=Sample(path=path, header=tuple(read_sample(path).header), ids=trial.ids),
        limits=replace(order.limits, seconds=seconds),
        marks=marks(seconds),
        started=began,
        started_boot=boot,
        offset_s=0.0,
        first=None,
        attempt=1,
    )


def count_fitting(report: Report, allowed: Limits) -> int:
    """Most rows like those in a report that fit into the limits, on a machine that is slower by the usual
    factor; 0 when not even one does.
    """
    hours = report.seconds_of_audio / 3600 / max(1, report.rows)
    low, high = 0, MOST_ROWS
    while low < high:
        middle = (low + high + 1) // 2
        fits = all(line.passed for line in forecast(report, middle, hours * middle, allowed))
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def judge(report: Report, wanted: spec.DryRun, allowed: Limits) -> RehearsalReport:
    """The forecast for the hidden test set, by what the trial cost on this machine."""
    rows = wanted.expect_clips or count_fitting(report, allowed)
    hours = wanted.expect_hours or report.seconds_of_audio / 3600 * rows / max(1, report.rows)
    verdict = forecast(report, max(1, rows), hours, allowed)
    failed = [net.id for member in report.members for net in member.nets if net.failed]
    problems = [f"{line.what}: {show(line.scaled, line.unit)} forecast on a slower machine, "
                f"{show(line.allowed, line.unit)} allowed" for line in verdict if not line.passed]
    problems += [f"{len(failed)} nets failed: {', '.join(failed[:5])}"] if failed else []
    problems += [f"{report.prior_rows} of {report.rows} rows hold the prior"] if report.prior_rows else []
    notes = [f"measured on {report.rows} rows, processor {name_processor()}"]
    if wanted.expect_clips is None:
        notes.append("[dry_run] names no expect_clips: these are the most rows that fit")
    return RehearsalReport(walls=(), clips=rows, hours=hours, slowdown=SLOWDOWN, passed=not problems,
                           problems=tuple(problems), notes=tuple(notes), verdict=tuple(verdict))


def name_processor(path: str = "/proc/cpuinfo") -> str:
    """What this machine's processor calls itself."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else "unknown"


def run_trial(
    order: Order, ensemble: spec.Ensemble, wanted: spec.DryRun, seconds: float, began: float
) -> None:
    """The trial, its side files and its lines.

    Raises  HourglassError, OSError
    """
    trial = lay_trial(order, ensemble, wanted.clips, wanted.count)
    say(f"[hourglass] DRY RUN: {len(trial.names)} recordings of {trial.folder}, {len(trial.ids)} rows, into "
        f"{SCORES}; submission.csv is settled and stays as it is")
    own = describe_order(order, trial, ensemble, seconds, began)
    from ..engine.heartbeat import Heartbeat
    from ..engine.loop import Engine

    Engine(own, Heartbeat(own.state / "heartbeat.json")).execute()
    report = load_report((own.working / "report.json").read_bytes())
    if not isinstance(report, Report):
        raise HourglassError("the engine left no full report")
    verdict = judge(report, wanted, order.limits)
    write_atomically(order.working / SCORES, (own.working / "submission.csv").read_bytes())
    write_atomically(order.working / REPORT, encode_report(replace(report, rehearsal=verdict)))
    say("[hourglass] DRY RUN " + verdict_table(verdict))
    for problem in verdict.problems:
        say(f"[hourglass] DRY RUN: FAIL  {problem}")


def main(*arguments: str) -> NoReturn:
    """A dry run for the guard; ends the process now: a thread that a library left must not keep it."""
    code = try_clips(*arguments)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads any more
            stream.flush()
    os._exit(code)


def try_clips(state: str, clips: str, count: str, seconds: str) -> int:
    """Exit code of a dry run: 0 done or not needed, 1 failed with a reason.

    clips, count  from the command line, "" where the ensemble's own hold
    seconds       it may take
    """
    began = time.monotonic()
    order = load_order(Path(state, "run.json").read_bytes())
    manifest = spec.load_manifest(order.manifest.read_bytes(), "manifest.json")
    asked = manifest.ensemble.dry_run or spec.DryRun(clips=clips)
    wanted = replace(asked, clips=clips or asked.clips, count=int(count or asked.count))
    try:
        report = load_report((order.working / "report.json").read_bytes())
        windows = manifest.ensemble.windows
        if not isinstance(report, Report) or not is_placeholder(order.sample.ids, report, windows):
            say("[hourglass] no dry run: the test set is there")
            return 0
        run_trial(order, manifest.ensemble, wanted, float(seconds), began)
        return 0
    except (HourglassError, OSError) as error:
        print(f"[hourglass] DRY RUN failed: {error}", file=sys.stderr, flush=True)
        return FAILED
    finally:
        shutil.rmtree(order.state / "dry-run", ignore_errors=True)
