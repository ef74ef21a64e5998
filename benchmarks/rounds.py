"""What the benchmarks share: interleaved rounds, medians of wall and CPU seconds, clips, and the machine.

Import it before numpy and torch: it closes the traps of thread pools that would spoil every row of a table,
ours and the peers'.
"""
from __future__ import annotations

import os

for _name, _value in (("OPENBLAS_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE")):
    os.environ.setdefault(_name, _value)  # Two pools in one process clash, and waiting threads would spin.
import datetime  # noqa: E402
import importlib.metadata  # noqa: E402
import platform  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Mapping  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

Seconds = tuple[float, float]  # wall, CPU of this process


def describe_machine(*packages: str) -> str:
    """Date, processor, cores, load and versions: what a table is worth nothing without."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return (
        f"{datetime.date.today()} | {model}, {len(os.sched_getaffinity(0))} cores, "
        f"load {os.getloadavg()[0]:.1f} | Python {platform.python_version()}, {versions}"
    )


def time_call(call: Callable[[], object]) -> Seconds:
    wall = time.perf_counter()
    cpu = time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def race(methods: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Seconds]]:
    """(wall, CPU) seconds of each method in each of the interleaved rounds, after one untimed call."""
    times: dict[str, list[Seconds]] = {name: [] for name in methods}
    for call in methods.values():
        call()
    for _ in range(rounds):
        for name, call in methods.items():
            times[name].append(time_call(call))
    return times


def median(times: list[Seconds], kind: int = 0) -> float:
    return statistics.median(seconds[kind] for seconds in times)


def ratio(peer: list[Seconds], own: list[Seconds], kind: int = 0) -> float:
    """Median over the rounds of peer / own: how many times faster `own` is."""
    return statistics.median(p[kind] / o[kind] for p, o in zip(peer, own, strict=True))


def draw_seconds(clips: int, seed: int = 0) -> list[float]:
    """Clip lengths like FAT2019's: log-normal, 0.3 to 30 s, median 5 s, mean 7.4 s."""
    values = np.clip(np.random.default_rng(seed).lognormal(np.log(5.0), 0.95, clips), 0.3, 30.0)
    return [float(v) for v in values]


def write_clips(folder: Path, seconds: list[float], rate: int = 44_100) -> list[str]:
    """Names of mono 16-bit wav clips written to `folder`: noisy chirps."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, length in enumerate(seconds):
        rng = np.random.default_rng(number)
        t = np.arange(int(length * rate)) / rate
        chirp = np.sin(2 * np.pi * (200 * t + rng.uniform(10, 300) * t * t))
        wave = 0.3 * chirp + 0.01 * rng.standard_normal(len(t))
        names.append(f"clip{number:05d}.wav")
        soundfile.write(folder / names[-1], wave.astype(np.float32), rate, subtype="PCM_16")
    return names
