"""Ten random faults at random times in one run, all invariants checked: `python -m tests.helpers.chaos
--seeds 30` (or --seed N for one).

The faults of a seed are the same everywhere; the instants at which signals strike depend on how fast the
machine is. A seed that fails is printed with its faults, so that it can be run again alone.
"""
from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helpers.guard_runs import GuardRun  # noqa: E402
from tests.helpers.invariants import find_broken  # noqa: E402
from tests.helpers.whole_runs import (
    faulty_build,
    find_engine,
    flip_bit,
    make_place,
    run_whole,
    sleep_after_start,
)  # noqa: E402

CLIPS, SECONDS, FAULTS = 16, 60.0, 10
DECODER_DEEDS = (
    "kill",
    "segv",
    "abort",
    "exit0",
    "hang",
    "stop",
    "raise",
    "strange",
    "memory_error",
    "sysexit",
    "sleep",
    "connect",
    "grandchild",
    "thread",
    "deaf",
)
NET_DEEDS = (
    "nan",
    "inf",
    "huge",
    "zeros",
    "wide",
    "raise",
    "strange",
    "kill",
    "sleep",
    "cuda_lost",
    "hold_the_interpreter",
)
# cost their row
LASTING = {"nan", "inf", "huge", "zeros", "wide", "raise", "strange", "memory_error", "sysexit", "connect"}
KINDS = ("decode", "decode", "decode", "forward", "forward", "outside", "before")


@dataclass
class Chaos:
    """What one seed does to a run.

    plan      strikes of the test bundle
    outside   (seconds after the start, what): signals, and files changed meanwhile
    before    what is broken before the start
    affected  rows whose bytes may differ from the run without faults
    """

    plan: list[dict[str, Any]] = field(default_factory=list)
    outside: list[tuple[float, str]] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    affected: set[str] = field(default_factory=set)

    def about(self) -> str:
        inside = [
            f"{s['do']} at {s['at']} of {s['id']}" + (f" x{s['times']}" if "times" in s else "")
            for s in self.plan
        ]
        return "; ".join([*self.before, *inside, *(f"{what} after {at:.1f} s" for at, what in self.outside)])


def draw(seed: int) -> Chaos:
    """The ten faults of a seed."""
    rng, chaos = random.Random(seed), Chaos()
    for _ in range(FAULTS):
        id, kind = f"c{rng.randrange(CLIPS):02d}.wav", rng.choice(KINDS)
        if kind in ("decode", "forward"):
            deed = rng.choice(DECODER_DEEDS if kind == "decode" else NET_DEEDS)
            strike: dict[str, Any] = {"at": kind, "id": id, "do": deed, "seconds": 0.5}
            if deed not in LASTING:
                strike["times"] = 1
            else:
                chaos.affected.add(id)
            chaos.plan.append(strike)
        elif kind == "outside":
            chaos.outside.append(
                (
                    rng.uniform(0.2, 12.0),
                    rng.choice(
                        (
                            "kill engine",
                            "stop engine for 1 s",
                            "pause all for 3 s",
                            "delete clip " + id,
                            "truncate clip " + id,
                            "remove spill",
                        )
                    ),
                )
            )
        else:
            chaos.before.append(
                rng.choice(("junk in clip " + id, "flip a bit of the sound net", "old temporary file"))
            )
    chaos.affected |= {
        text.rpartition(" ")[2] for text in chaos.before + [w for _, w in chaos.outside] if " clip " in text
    }
    return chaos


def harm_before(chaos: Chaos, folder: Path, bundle: Path) -> None:
    """The faults that are there when the run starts."""
    for what in chaos.before:
        if what.startswith("junk"):
            (folder / "in" / "test" / what.rpartition(" ")[2]).write_bytes(b"junk" * 50)
        elif what.startswith("flip"):
            flip_bit(bundle / "sound.0.safetensors", -9)
        else:
            (folder / "out").mkdir(exist_ok=True)
            (folder / "out" / ".submission.csv.1.tmp").write_bytes(b"half")


def harm_during(chaos: Chaos, folder: Path) -> Callable[[subprocess.Popen[str], Path], None]:
    """The faults that strike from outside at their times."""
    def harm(process: subprocess.Popen[str], working: Path) -> None:
        began = time.monotonic()
        for at, what in sorted(chaos.outside):
            sleep_after_start(process, began + at - time.monotonic())
            if process.poll() is not None:
                return
            strike_outside(what, process, folder)
    return harm


def strike_outside(what: str, process: subprocess.Popen[str], folder: Path) -> None:
    engine = find_engine(process)
    if what.startswith(("delete", "truncate")):
        clip = folder / "in" / "test" / what.rpartition(" ")[2]
        if clip.exists():
            clip.unlink() if what.startswith("delete") else os.truncate(clip, 2000)
    elif what == "remove spill":
        for spill in (folder / "scratch").glob("*/spill"):
            shutil.rmtree(spill, ignore_errors=True)
    elif engine is not None and process.poll() is None:
        try:
            if what == "kill engine":
                os.kill(engine, signal.SIGKILL)
                return
            group = [engine] if what.startswith("stop") else [process.pid, engine]
            for pid in group:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(1.0 if what.startswith("stop") else 3.0)
            for pid in reversed(group):
                os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return  # it ended in between


def run_seed(seed: int, folder: Path, reference: GuardRun | None = None) -> tuple[Chaos, GuardRun, list[str]]:
    """The faults of a seed, its run, and every invariant it breaks."""
    chaos, place = draw(seed), make_place(folder, CLIPS)
    bundle = Path(shutil.copytree(faulty_build() / "bundle", folder / "bundle"))
    harm_before(chaos, folder, bundle)
    run = run_whole(place, bundle, seconds=SECONDS, plan=chaos.plan, during=harm_during(chaos, folder))
    if run.report.get("partial_rows", 1) or {"BudgetTooSmall", "EngineGivenUp"} & set(run.faults):
        reference = None  # nets or time were lost: rows are valid, but not those of the whole ensemble
    return chaos, run, find_broken(run, reference=reference, affected=chaos.affected)


def main(arguments: list[str]) -> int:
    """0 when every seed keeps every invariant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=30, help="how many, from 0")
    parser.add_argument("--seed", type=int, help="this one only")
    chosen = parser.parse_args(arguments)
    seeds = range(chosen.seeds) if chosen.seed is None else [chosen.seed]
    failed = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as top:
        reference = run_whole(make_place(Path(top) / "unharmed", CLIPS), faulty_build() / "bundle")
        for seed in seeds:
            chaos, run, broken = run_seed(seed, Path(top) / str(seed), reference)
            predicted = run.report.get("rows", 0) - run.report.get("prior_rows", 0)
            verdict = "BROKEN " + "; ".join(broken) if broken else "kept"
            print(
                f"seed {seed:3d}: {verdict} | {predicted} of {CLIPS} rows predicted, "
                f"{run.report.get('guard', {}).get('attempts', 0)} attempts, {run.wall_s:.1f} s | {chaos.about()}",
                flush=True,
            )
            if broken:
                failed.append(seed)
                print(run.out[-3000:])
    print(
        f"{len(seeds) - len(failed)} of {len(seeds)} seeds kept every invariant"
        + (f"; broken: {failed}" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
