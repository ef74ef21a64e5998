"""Cost against the number of clips, and of starting: whole runs of the kernel in processes of their own.

    python -m benchmarks.scaling [--sizes 250 1000 4000] [--rounds 5] [--quick]

Clips are hard links to 50 short ones (the lengths of FAT2019 x 0.3), one small net on the CPU. Printed:
seconds per clip (slope) and fixed seconds (intercept) of a least-squares line through the medians, wall and
CPU; memory beside torch and the store; and seconds from the guard's start to the prior submission and to the
end of a run of one row, a bound of the first prediction.
"""
from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.pipeline import ROOT, Method, build_bundle, ours, run_once, write_sample
from benchmarks.rounds import Seconds, describe_machine, draw_seconds, median, write_clips

import numpy as np  # isort: skip

DISTINCT = 50  # Clips, each of so much of a FAT2019 length:
SHARE = 0.3
# Not ru_maxrss, which remembers that of the parent.
TORCH = ("import torch; torch.ones(8, 8) @ torch.ones(8, 8); "
         "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])")


def make_input(folder: Path, sources: Path, clips: int) -> Path:
    """An input of `clips` hard links, sample included."""
    files = sorted(sources.iterdir())
    (folder / "test").mkdir(parents=True)
    names = [f"clip{number:05d}.wav" for number in range(clips)]
    for number, name in enumerate(names):
        os.link(files[number % len(files)], folder / "test" / name)
    write_sample(folder, names)
    return folder


def time_start(method: Method) -> tuple[float, float]:
    """Seconds from the start to the first submission.csv, and to the end of the run."""
    method.out.unlink(missing_ok=True)
    start = time.perf_counter()
    process = subprocess.Popen(
        [*method.command, "--first", "1"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not method.out.exists() and process.poll() is None:
        time.sleep(0.002)
    prior = time.perf_counter() - start
    process.wait()
    return prior, time.perf_counter() - start


def beside_store(working: Path, torch_bytes: float) -> float:
    """MB of the last run beside torch and the store: guard, engine, net and its activations."""
    report = json.loads((working / "report.json").read_bytes())
    return float(report["peak_own_bytes"] - report["store"]["ram_peak_bytes"] - torch_bytes) / 1e6


def show_lines(times: dict[int, list[Seconds]], memory: dict[int, list[float]]) -> None:
    print(f"{'clips':>7}{'wall s':>10}{'CPU s':>10}{'MB beside torch and the store':>34}")
    for size, values in times.items():
        beside = statistics.median(memory[size])
        print(f"{size:>7}{median(values):>10.2f}{median(values, 1):>10.2f}{beside:>34.0f}")
    for kind, name in enumerate(("wall", "CPU")):
        slope, intercept = np.polyfit(list(times), [median(values, kind) for values in times.values()], 1)
        print(
            f"{name}: {1e3 * slope:.2f} ms per clip + {intercept:.2f} s; "
            + ", ".join(
                f"{size}: {median(values, kind) / (slope * size + intercept):.2f} of the line"
                for size, values in times.items()
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[250, 1000, 4000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="50, 200 and 800 clips, 2 rounds")
    given = parser.parse_args()
    sizes, rounds = ([50, 200, 800], 2) if given.quick else (given.sizes, given.rounds)
    print(describe_machine("torch", "numpy"), f"| medians of {rounds} interleaved rounds")
    held = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True, check=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_clips(folder / "sources", [SHARE * s for s in draw_seconds(DISTINCT)])
        bundle = build_bundle(folder, "padded", 1, 8, False)
        inputs = {size: make_input(folder / f"in{size}", folder / "sources", size) for size in sizes}
        methods = {size: ours(bundle, data, folder / f"out{size}") for size, data in inputs.items()}
        times: dict[int, list[Seconds]] = {size: [] for size in sizes}
        memory: dict[int, list[float]] = {size: [] for size in sizes}
        starts = []
        for _ in range(rounds):
            for size, method in methods.items():
                times[size].append(run_once(method))
                memory[size].append(beside_store(method.out.parent, 1024.0 * int(held.stdout)))
            starts.append(time_start(methods[sizes[0]]))
    show_lines(times, memory)
    print(f"guard start to prior submission {statistics.median(s[0] for s in starts):.2f} s; "
          f"start to the end of a run of one row {statistics.median(s[1] for s in starts):.2f} s")
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"children's largest resident set {largest / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
