"""A 1 GB limit against none: peak memory, equal bytes, wall time ratio.

Prints a table; asserts nothing about time. 1.5 GB of stored arrays (145 clips of 60 s as raw waves) beside
about 0.4 GB of engine run with no limit, under the configured cap, and in a memory control group of that size
where this machine allows one. Then a limit of 150 MB, which torch alone exceeds.
`python benchmarks/memory_limit.py [--clips 145] [--rounds 5]`
"""
from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.helpers.guard_runs import GuardRun  # noqa: E402
from tests.helpers.injectors import control_group, inside  # noqa: E402
from tests.helpers.invariants import find_broken  # noqa: E402
from tests.helpers.whole_runs import bulky_build, make_crowd, run_whole  # noqa: E402

LIMIT = 10**9


def digest(run: GuardRun) -> str:
    return hashlib.sha256((run.working / "submission.csv").read_bytes()).hexdigest()[:16]


def limited(kind: str) -> Any:
    """A context whose value is the control group, None without one."""
    return control_group("memory", "memory.limit_in_bytes", LIMIT) if kind == "group" else nullcontext()


def run_kind(kind: str, place: Any) -> GuardRun:
    """One run: no limit, the cap, or the cap inside a control group."""
    with limited(kind) as group:
        arguments = () if kind == "none" else ("--ram", "1GB")
        return run_whole(
            place, bulky_build() / "bundle", *arguments, seconds=300, prefix=inside(group) if group else ()
        )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=145, help="of 60 s: 10.6 MB stored each")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved")
    chosen = parser.parse_args()
    kinds = ["none", "cap", "group"]
    runs: dict[str, list[GuardRun]] = {kind: [] for kind in kinds}
    digests: dict[str, set[str]] = {kind: set() for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        # Clips that must be resampled are dearer to compute again than to read from a disk.
        place = make_crowd(Path(folder), chosen.clips, seconds=60.0, different=8, rate=48_000)
        for _ in range(chosen.rounds):
            for kind in list(kinds):
                try:
                    run = run_kind(kind, place)
                except BaseException as error:  # pytest's skip, where no group can be made
                    if type(error).__name__ != "Skipped":
                        raise
                    print(f"{kind}: left out, {error}")
                    kinds.remove(kind)
                    continue
                runs[kind].append(run)
                digests[kind].add(digest(run))
                for broken in find_broken(run):
                    print(f"{kind}: BROKEN {broken}")
        small = run_whole(place, bulky_build() / "bundle", "--ram", "150MB", seconds=60)
    base = statistics.median(run.wall_s for run in runs["none"])
    print(
        f"\n{'limit':<10}{'wall s':>8}{'ratio':>8}{'peak GB':>9}{'spilled GB':>12}{'recomputed':>12}  bytes"
    )
    for kind in kinds:
        wall = statistics.median(run.wall_s for run in runs[kind])
        store = runs[kind][-1].report["store"]
        same = "same" if digests[kind] == digests["none"] else "DIFFERENT"
        peak = max(run.report["peak_ram_bytes"] for run in runs[kind])
        print(
            f"{kind:<10}{wall:8.1f}{wall / base:8.2f}{peak / 1e9:9.2f}"
            f"{store['disk_peak_bytes'] / 1e9:12.2f}{store['hits']['recompute']:12d}  {same}"
        )
    message = next((f["message"] for f in small.report["faults"] if f["code"] == "MemoryTooSmall"), "MISSING")
    print(
        f"\n150 MB: exit {small.code}, "
        f"{small.report['prior_rows']} of {small.report['rows']} rows keep the prior; {message}"
    )


if __name__ == "__main__":
    main()
