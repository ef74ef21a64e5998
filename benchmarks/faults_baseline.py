"""The same faults for Hourglass and for the plain script every Kaggler writes: how many does each survive?

Prints a table; asserts nothing. Survived = a submission that can be scored (header, ids, order, finite values
in 0..1), exit code 0, before the limit; "WRONG" = it looks so, but a row that the fault does not touch, or
all rows, silently changed. `python benchmarks/faults_baseline.py [--only WORD] [--json FILE]`
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import soundfile  # noqa: E402

from tests.faults.test_faults_clips import silent_hours  # noqa: E402
from tests.helpers.bundles import built_once  # noqa: E402
from tests.helpers.guard_runs import GuardRun, wait_for  # noqa: E402
from tests.helpers.injectors import control_group, in_mounts, inside  # noqa: E402
from tests.helpers.invariants import find_broken  # noqa: E402
from tests.helpers.whole_runs import (  # noqa: E402
    Place,
    find_engine,
    flip_bit,
    make_crowd,
    make_place,
    render_clip,
    rows_of,
    run_whole,
    write_sample,
)

VICTIM = "c05.wav"
During = Callable[[subprocess.Popen[str], Path], None]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault: what is done to the input or the bundle, how the run is wrapped, what strikes meanwhile.

    touches  rows that may honestly differ from the run without faults; None: any may
    """

    name: str
    make: Callable[[Path], Place] = make_place
    harm: Callable[[Place, Path], object] = lambda place, bundle: None
    prefix: Callable[[Place], tuple[str, ...]] = lambda place: ()
    during: Callable[[subprocess.Popen[str]], object] | None = None
    group_bytes: int | None = None
    seconds: float = 100.0
    touches: tuple[str, ...] | None = (VICTIM,)


def clip(place: Place) -> Path:
    return place.clips / VICTIM


def hide(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def strange_ids(place: Place, bundle: Path) -> None:
    names = ["nan", "007", "null"]
    for name in names:
        render_clip(place.clips / f"{name}.wav", 0.5, 1)
        (place.clips / f"{name}.wav").rename(place.clips / name)
    write_sample(place.folder / "in", [*place.ids, *names])


def with_bom(place: Place, bundle: Path) -> None:
    path = place.folder / "in" / "sample_submission.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))


def worker_of(process: subprocess.Popen[str]) -> int:
    """The process that does the work: the engine, or the plain script itself."""
    return find_engine(process) or process.pid


def after(seconds: float, number: int, whole: bool = False) -> Callable[[subprocess.Popen[str]], None]:
    def strike(process: subprocess.Popen[str]) -> None:
        time.sleep(seconds)
        if process.poll() is None:
            os.kill(process.pid if whole else worker_of(process), number)
    return strike


def full_disk(place: Place) -> tuple[str, ...]:
    out = place.folder / "out"
    kept = place.folder / "kept"
    kept.mkdir()
    script = (f"mkdir -p {out}; mount -t tmpfs -o size=64k none {out}; "
              f"(sleep 1.5; head -c 1m /dev/zero > {out}/ballast 2>/dev/null) & "
              f'"$@"; code=$?; rm -f {out}/ballast; cp -a {out}/. {kept}/; exit $code')
    return ("unshare", "-Urm", "sh", "-c", script, "sh")


def read_only_python(place: Place) -> tuple[str, ...]:
    return in_mounts(
        f"mount --bind {sys.prefix} {sys.prefix} && mount -o remount,bind,ro {sys.prefix} && "
        "export HOME=/nowhere NUMBA_CACHE_DIR=/nowhere/cache"
    )


FAULTS = [
    Fault(name="no fault", touches=()),
    Fault(name="a clip that is text", harm=lambda p, b: clip(p).write_text("no audio")),
    Fault(name="a clip of 0 bytes", harm=lambda p, b: clip(p).write_bytes(b"")),
    Fault(name="a clip without samples", harm=lambda p, b: soundfile.write(clip(p), np.zeros(0), 22_050)),
    Fault(name="a clip that is missing", harm=lambda p, b: clip(p).unlink()),
    Fault(name="a clip that is a FIFO", harm=lambda p, b: hide(clip(p), os.mkfifo), seconds=60),
    Fault(name="a clip cut in half", harm=lambda p, b: clip(p).write_bytes(clip(p).read_bytes()[:9000])),
    Fault(
        name="a clip of NaN samples",
        harm=lambda p, b: soundfile.write(clip(p), np.full(9999, np.nan), 22_050, subtype="FLOAT"),
    ),
    Fault(
        name="two hours of silence in 1 MB, 2 GB of memory",
        group_bytes=2 * 10**9,
        harm=lambda p, b: hide(clip(p), silent_hours),
    ),
    Fault(name="ids nan, 007, null", harm=strange_ids, touches=None),
    Fault(name="sample with BOM and CRLF", harm=with_bom, touches=()),
    Fault(name="kill -9 of the worker", during=after(2.5, signal.SIGKILL), touches=()),
    Fault(
        name="SIGTERM after 4 s of a long run",
        make=lambda f: make_crowd(f, 3000),
        during=after(4, signal.SIGTERM, True),
        touches=None,
    ),
    Fault(name="the worker stopped (SIGSTOP)", during=after(2.5, signal.SIGSTOP), seconds=60, touches=None),
    Fault(name="4,000 clips in 30 s", make=lambda f: make_crowd(f, 4000), seconds=30, touches=None),
    Fault(
        name="650 MB of memory, 60 clips of 60 s",
        make=lambda f: make_crowd(f, 60, seconds=60.0),
        group_bytes=650 * 10**6,
        seconds=120,
        touches=None,
    ),
    Fault(name="150 MB of memory", group_bytes=150 * 10**6, touches=None),
    Fault(name="output disk full", prefix=full_disk, touches=None),
    Fault(
        name="a flipped bit in one net's weights",
        harm=lambda p, b: flip_bit(b / "plain.0.safetensors", -6),
        touches=None,
    ),
    Fault(
        name="a weights file missing", harm=lambda p, b: (b / "plain.0.safetensors").unlink(), touches=None
    ),
    Fault(name="64 file descriptors", prefix=lambda p: ("prlimit", "--nofile=64:64"), touches=()),
    Fault(
        name="/dev/shm of 1 MB",
        prefix=lambda p: in_mounts("mount -t tmpfs -o size=1m none /dev/shm"),
        touches=(),
    ),
    Fault(name="read-only Python, no HOME", prefix=read_only_python, touches=()),
    Fault(name="no network", prefix=lambda p: ("unshare", "-Urn"), touches=()),
]


def run_plain(
    place: Place, bundle: Path, seconds: float, prefix: tuple[str, ...], during: During | None
) -> GuardRun:
    """The plain script on the same place; killed at the limit, as Kaggle does."""
    (place.folder / "out").mkdir(exist_ok=True)
    began = time.monotonic()
    process = subprocess.Popen(
        [
            *prefix,
            sys.executable,
            str(ROOT / "benchmarks" / "plain_script.py"),
            str(bundle),
            str(place.folder / "in"),
            str(place.folder / "out"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        if during is not None:
            during(process, place.folder / "out")
        out, _ = process.communicate(timeout=max(0.1, began + seconds - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
    return GuardRun(
        code=process.returncode,
        wall_s=time.monotonic() - began,
        out=out,
        working=place.folder / "out",
        sample=place.folder / "in" / "sample_submission.csv",
        scratch=place.folder / "none",
        budget_s=seconds,
        mark="none",
    )


def strike(
    fault: Fault, plain: bool, folder: Path, reference: dict[str, list[str]] | None
) -> tuple[str, dict[str, list[str]]]:
    """(verdict, rows) of one fault for one of the two."""
    place = fault.make(folder)
    bundle = Path(shutil.copytree(built_once() / "bundle", folder / "bundle"))
    fault.harm(place, bundle)
    ids = set(place.ids)

    def during(process: subprocess.Popen[str], working: Path) -> None:
        if not plain:
            wait_for(lambda: find_engine(process) or process.poll() is not None, 20)
        if fault.during is not None:
            fault.during(process)

    prefix = fault.prefix(place)
    if fault.group_bytes:
        with control_group("memory", "memory.limit_in_bytes", fault.group_bytes) as group:
            run = execute(plain, place, bundle, fault.seconds, inside(group), during)
    else:
        run = execute(plain, place, bundle, fault.seconds, prefix, during)
    if (folder / "kept").is_dir():
        shutil.copytree(folder / "kept", run.working, dirs_exist_ok=True)
    broken = [text for text in find_broken(run) if "report" not in text and "left" not in text]
    if broken:
        return "lost: " + broken[0][:60].replace("\n", " "), {}
    rows = rows_of(run)
    touched = ids if fault.touches is None else set(fault.touches)
    if reference is not None and any(
        rows[id] != reference[id] for id in reference if id in rows and id not in touched
    ):
        return "WRONG: other rows changed", rows
    if plain and "bit" in fault.name and reference is not None and rows != reference:
        return "WRONG: silently other scores", rows
    return "survived", rows


def execute(
    plain: bool, place: Place, bundle: Path, seconds: float, prefix: tuple[str, ...], during: During
) -> GuardRun:
    if plain:
        return run_plain(place, bundle, seconds, prefix, during)
    return run_whole(place, bundle, seconds=seconds, prefix=prefix, during=during)


def main() -> None:
    """Run both through every fault and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="faults whose name holds this word")
    parser.add_argument("--json", type=Path, help="write the verdicts there, too")
    chosen = parser.parse_args()
    survived = {True: 0, False: 0}
    references: dict[bool, dict[str, list[str]]] = {}
    listed: dict[str, dict[str, str]] = {}
    faults = [f for f in FAULTS if chosen.only in f.name or f.name == "no fault"]
    print(f"{'fault':<48}{'Hourglass':<34}plain script")
    with tempfile.TemporaryDirectory(prefix="baseline-") as top:
        for number, fault in enumerate(faults):
            verdicts = {}
            for plain in (False, True):
                folder = Path(top) / f"{number}-{plain}"
                rows: dict[str, list[str]] = {}
                try:
                    verdicts[plain], rows = strike(fault, plain, folder, references.get(plain))
                except BaseException as error:
                    # Pytest skips where this machine does not allow the injector.
                    if type(error).__name__ != "Skipped":
                        raise
                    verdicts[plain] = f"left out: {error}"
                if fault.name == "no fault":
                    references[plain] = rows
                survived[plain] += verdicts[plain] == "survived"
            print(f"{fault.name:<48}{verdicts[False]:<34}{verdicts[True]}", flush=True)
            listed[fault.name] = {"hourglass": verdicts[False], "plain": verdicts[True]}
    if chosen.json is not None:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    print(f"\nof {len(faults)}: Hourglass survives {survived[False]}, the plain script {survived[True]}")


if __name__ == "__main__":
    main()
