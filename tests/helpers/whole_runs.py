"""Whole runs of the product for the fault matrix: bundles, rendered clips, one run with its invariants.

Owns `Place` (a folder with an input, ready to run), the bundles and `run_whole`. What must hold after a run
is `invariants.find_broken`; the strikes are tests/ensembles/faulty.py, which rides in a bundle built for
tests only.
"""
from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile

from builder import assembly, code_wheel
from tests.helpers import TESTS
from tests.helpers.bundles import order
from tests.helpers.guard_runs import GuardRun, run_guard, wait_for
from tests.helpers.invariants import find_broken, read_table

CLASSES = ("bark", "meow", "hiss")
RATE = 22_050
CLIPS = 12
# What the bundle for tests adds to modules of the product: a call before a folder is listed, before a clip is
# read, before a row is predicted and before a candidate is validated.
TAILS = {
    "kernel/sound/clips.py": """
import os as _os
from ..custom.faulty import strike as _strike
class _Mount:
    def __getattr__(self, name):
        return getattr(_os, name)
    def scandir(self, folder):
        _strike("list", _os.path.basename(folder))
        return _os.scandir(folder)
os = _Mount()
""",
    "kernel/sound/decode.py": """
from ..custom.faulty import strike as _strike
_strike("import")
_probe, _decode = probe, decode
def probe(id, path, root):
    _strike("probe", id)
    return _probe(id, path, root)
def decode(clip, max_seconds):
    _strike("decode", clip.id)
    return _decode(clip, max_seconds)
""",
    "kernel/sound/recording.py": """
from ..custom.faulty import strike as _strike
_open, _read = Recording._open, Recording._read
def _open_struck(self):
    _strike("decode", self.clip.id)
    _open(self)
def _read_struck(self):
    _strike("read", f"{self.clip.id}@{self.done}")
    _read(self)
Recording._open, Recording._read = _open_struck, _read_struck
""",
    "kernel/inference/member.py": """
import sys as _sys
_row_inputs = row_inputs
def row_inputs(net, store, row):
    found = _sys.modules.get("hourglass_custom_faulty")
    if found is not None:
        found.strike("row", row.id)
    return _row_inputs(net, store, row)
""",
    "kernel/scores/submission.py": """
from ..custom.faulty import strike as _strike
_validate = validate
def validate(*arguments):
    _strike("publish")
    return _validate(*arguments)
""",
}


def strikes(*plan: dict[str, Any]) -> dict[str, str]:
    """Environment that makes the faulty bundle strike."""
    return {"HOURGLASS_STRIKES": json.dumps(plan)}


@cache
def faulty_build(name: str = "faulty") -> Path:
    """OUT of a bundle that can be struck, of tests/ensembles/NAME.toml; shared: read only."""
    plain = code_wheel.kernel_files

    def with_tails(root: Path) -> dict[str, bytes]:
        files = plain(root)
        return files | {name: files[name] + tail.encode() for name, tail in TAILS.items()}

    with mock.patch.object(code_wheel, "kernel_files", with_tails):
        return _build(name)


@cache
def bulky_build() -> Path:
    """OUT of the bundle with large stored arrays; shared: read only."""
    return _build("bulky")


def _build(name: str) -> Path:
    out = Path(tempfile.mkdtemp(prefix=f"bundle-{name}-"))
    atexit.register(shutil.rmtree, out, True)
    assembly.build(order(out, ensemble=TESTS / "ensembles" / f"{name}.toml"), say=lambda _: None)
    return out


def render_clip(path: Path, seconds: float, seed: int, rate: int = RATE, **form: Any) -> Path:
    """A seeded chirp in noise, written as 16-bit sound."""
    rng = np.random.default_rng(seed)
    t = np.arange(max(1, int(seconds * rate))) / rate
    wave = 0.4 * np.sin(2 * np.pi * (200 + 100 * seed % 1700) * t * (1 + t))
    wave += 0.05 * rng.standard_normal(len(t))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, **form)
    return path


def write_sample(folder: Path, ids: Sequence[str]) -> None:
    """A sample submission for the test bundles."""
    lines = [",".join(("fname", *CLASSES)), *(f"{id},0,0,0" for id in ids)]
    (folder / "sample_submission.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder to run in: `folder`/in with a sample and clips."""

    folder: Path

    @property
    def clips(self) -> Path:
        return self.folder / "in" / "test"

    @property
    def ids(self) -> list[str]:
        return [row[0] for row in read_table(self.folder / "in" / "sample_submission.csv")[1:]]


def make_place(folder: Path, clips: int = CLIPS, extra: Sequence[str] = ()) -> Place:
    """A place with `clips` rendered clips of 0.3 to 1.5 s; `extra` ids get no file yet."""
    place = Place(folder=folder)
    names = [f"c{i:02d}.wav" for i in range(clips)]
    for i, name in enumerate(names):
        render_clip(place.clips / name, 0.3 + 1.2 * i / max(1, clips - 1), i)
    write_sample(folder / "in", [*names, *extra])
    return place


def make_crowd(folder: Path, count: int, seconds: float = 0.5, different: int = 8, rate: int = RATE) -> Place:
    """A place with `count` clips that are hard links to a few files."""
    place = Place(folder=folder)
    sources = [render_clip(folder / "sources" / f"{i}.wav", seconds, i, rate) for i in range(different)]
    names = [f"c{i:05d}.wav" for i in range(count)]
    place.clips.mkdir(parents=True)
    for i, name in enumerate(names):
        os.link(sources[i % different], place.clips / name)
    write_sample(folder / "in", names)
    return place


def run_whole(
    place: Place,
    bundle: Path,
    *arguments: str,
    seconds: float = 120.0,
    plan: Sequence[dict[str, Any]] = (),
    during: Callable[[subprocess.Popen[str], Path], None] | None = None,
    prefix: Sequence[str] = (),
    kernel: Path | None = None,
    **env: str,
) -> GuardRun:
    """A finished run on `place`, after a thread has looked at its submission all the time.

    plan    strikes of the faulty bundle
    prefix  command words put before the kernel's (unshare, prlimit, strace ...)
    """
    marks = place.folder / "marks"
    marks.mkdir(exist_ok=True)
    torn: list[str] = []
    ended = threading.Event()

    def harm(process: subprocess.Popen[str], working: Path) -> None:
        watcher.start()
        if during is not None:
            during(process, working)

    watcher = threading.Thread(target=_watch_submission, args=(place, ended, torn), daemon=True)
    more = {"kernel": kernel} if kernel is not None else {}
    try:
        run = run_guard(
            place.folder,
            bundle,
            *arguments,
            seconds=seconds,
            during=harm,
            prefix=tuple(prefix),
            HOURGLASS_MARKS=str(marks),
            OMP_WAIT_POLICY="PASSIVE",
            **strikes(*plan),
            **env,
            **more,
        )
    finally:
        ended.set()
    watcher.join()
    return replace(run, torn=tuple(torn))


def _watch_submission(place: Place, ended: threading.Event, torn: list[str]) -> None:
    """Every 50 ms: the submission, once there, stays there and is whole."""
    path = place.folder / "out" / "submission.csv"
    ids = place.ids
    last = 0
    while not ended.wait(0.05):
        try:
            found = path.stat()
            table = read_table(path) if found.st_ino != last else None
        except FileNotFoundError:
            if last:
                torn.append("the submission vanished")
            continue
        last = found.st_ino
        if table is not None and (
            [row[0] for row in table[1:]] != ids or any(len(row) != len(table[0]) for row in table)
        ):
            torn.append(f"the submission was not whole: {len(table)} rows, expected {len(ids) + 1}")


def check(run: GuardRun, fault: str | None = None, **more: Any) -> None:
    """Every invariant holds, and the report names the fault; a run without a fault has none in its report."""
    broken = find_broken(run, fault=fault, **more)
    assert broken == [], "\n".join([*broken, run.out[-4000:]])
    if fault is None:
        assert run.report["faults"] == [], run.report["faults"]


def rows_of(run: GuardRun) -> dict[str, list[str]]:
    """Row id -> cells of the submission."""
    return {row[0]: row[1:] for row in read_table(run.working / "submission.csv")[1:]}


def prior_rows(run: GuardRun) -> set[str]:
    """Ids whose row holds the uniform prior of the test bundles."""
    return {id for id, cells in rows_of(run).items() if cells == [f"{1 / 3:.6e}"] * 3}


def find_engine(process: subprocess.Popen[str]) -> int | None:
    """Process id of the engine below a guard (or below the command words before it)."""
    pending = [process.pid]
    while pending:
        pid = pending.pop()
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            if is_engine(child):
                return child
            pending.append(child)
    return None


def is_engine(pid: int) -> bool:
    try:
        return b"kernel.run" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def has_scores(working: Path) -> bool:
    """True once the engine has published something."""
    report = working / "report.json"
    return report.is_file() and b'"publications"' in report.read_bytes()


def wait_for_engine(process: subprocess.Popen[str]) -> int:
    return wait_for(lambda: find_engine(process), 15.0)


def wait_for_guard(process: subprocess.Popen[str]) -> int:
    """Process id of the guard below its watcher."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(wait_for(lambda: children.read_text().split())[0])


def flip_bit(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def sleep_after_start(process: subprocess.Popen[str], seconds: float) -> None:
    """Wait, but not longer than the run lasts."""
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
