"""Hand-over of spectrograms from loaders to the consumer: the store against its peers on the same arrays.

    python -m benchmarks.store [--clips 1000] [--rounds 5] [--loaders 2] [--scratch DIR] [--quick]

Producing is one copy, so this is nearly pure hand-over. First pass: everything is produced and read once by
the main process; later pass: everything is read once more. Rounds are interleaved; medians and ratios to the
plain list are printed.

Peers: a plain list (one thread, no limits); joblib.Parallel threads into a dict; joblib.Memory on the same
disk; and the cache of the 44th-place FAT2019 kernel: worker processes that fill a Manager().dict, asking for
memory and disk at every access.
"""
from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import psutil

from kernel.cache.ram import StoreLimits
from kernel.cache.store import Store
from kernel.memory import Meter
from kernel.sound.decode import Clip
from kernel.sound.frontends import FrontEnd, build
from kernel.sound.rows import Row

BINS = 128  # Of the argus front end, and so the frames of the longest clip (30 s).
LONGEST = 1918
GB = 10**9
TEMPLATE = np.random.default_rng(0).random((1, BINS, LONGEST), dtype=np.float32)
Pass = tuple[float, float]


def make(frames: int) -> np.ndarray:
    return np.ascontiguousarray(TEMPLATE[..., :frames])


def read(array: np.ndarray) -> float:
    """A strided read of a spectrogram: the consumer touches what it was given."""
    return float(array[..., ::16].sum())


def rows_of(lengths: Sequence[int]) -> list[Row]:
    return [
        Row(id=str(i), clip=Clip(id=str(i), rate=44100, samples_claimed=690 * (n - 1)))
        for i, n in enumerate(lengths)
    ]


def two_passes(first: Callable[[], float], later: Callable[[], float]) -> Pass:
    times = []
    for call in (first, later):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times[0], times[1]


def run_store(lengths: Sequence[int], loaders: int, scratch: Path, ram: int, disk: int) -> Pass:
    def produce(fe: FrontEnd, rows: Sequence[Row]) -> Iterator[tuple[Row, np.ndarray]]:
        for row in rows:
            yield row, make(lengths[int(row.id)])

    fe = build({"preset": "argus"})
    rows = rows_of(lengths)
    store = Store(produce=produce, meter=Meter(), scratch=scratch / "store", loaders=loaders,
                  limits=StoreLimits(ram_bytes=ram, disk_bytes=disk))
    store.expect(fe, 10**9)  # Producing is free here: without this no disk would be used.

    def consume() -> float:
        total = 0.0
        for start in range(0, len(rows), 64):
            store.warm(fe, rows[start:start + 64])
            total += sum(read(store.get(fe, row)) for row in rows[start:start + 64])
        return total

    try:
        return two_passes(consume, consume)
    finally:
        store.close()


def run_list(lengths: Sequence[int], loaders: int, scratch: Path) -> Pass:
    arrays: list[np.ndarray] = []

    def first() -> float:
        arrays.extend(make(n) for n in lengths)
        return sum(map(read, arrays))

    return two_passes(first, lambda: sum(map(read, arrays)))


def run_joblib_threads(lengths: Sequence[int], loaders: int, scratch: Path) -> Pass:
    arrays: dict[int, np.ndarray] = {}

    def first() -> float:
        jobs = joblib.Parallel(n_jobs=loaders, prefer="threads", return_as="generator_unordered")(
            joblib.delayed(lambda i, n: (i, make(n)))(i, n) for i, n in enumerate(lengths))
        arrays.update(jobs)
        return sum(map(read, arrays.values()))

    return two_passes(first, lambda: sum(map(read, arrays.values())))


def run_joblib_memory(lengths: Sequence[int], loaders: int, scratch: Path) -> Pass:
    memory = joblib.Memory(scratch / "joblib", verbose=0)
    cached = memory.cache(lambda i, n: make(n))

    def consume() -> float:
        return sum(read(cached(i, n)) for i, n in enumerate(lengths))

    try:
        return two_passes(consume, consume)
    finally:
        shutil.rmtree(scratch / "joblib")


def fill_shared(cache: Any, i: int, n: int) -> None:
    """What a worker of the 44th-place kernel does for one clip. Source: its submission.ipynb."""
    if i not in cache:
        array = make(n)
        if psutil.virtual_memory().percent < 90 and shutil.disk_usage(".").free > 500 * 10**6:
            cache[i] = array


def run_manager_dict(lengths: Sequence[int], loaders: int, scratch: Path) -> Pass:
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager, context.Pool(loaders) as pool:
        cache = manager.dict()

        def first() -> float:
            pool.starmap(fill_shared, [(cache, i, n) for i, n in enumerate(lengths)], chunksize=8)
            return later()

        def later() -> float:
            return sum(read(cache[i]) for i in range(len(lengths)))

        return two_passes(first, later)


def bookkeeping(lengths: Sequence[int], scratch: Path) -> float:
    """Bytes the store holds besides the arrays, as a share of theirs."""
    def produce(fe: FrontEnd, rows: Sequence[Row]) -> Iterator[tuple[Row, np.ndarray]]:
        for row in rows:
            yield row, make(lengths[int(row.id)])

    fe = build({"preset": "argus"})
    rows = rows_of(lengths)
    store = Store(produce=produce, meter=Meter(), scratch=scratch / "books", loaders=1,
                  limits=StoreLimits(ram_bytes=100 * GB, disk_bytes=0))
    tracemalloc.start()
    store.warm(fe, rows)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    data = store.stats().ram_bytes
    store.close()
    return (size - data) / data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loaders", type=int, default=2)
    parser.add_argument(
        "--scratch", type=Path, default=None, help="folder on a disk (default: the temporary folder)"
    )
    parser.add_argument("--quick", action="store_true", help="200 clips, 2 rounds")
    given = parser.parse_args()
    if given.quick:
        given.clips = 200
        given.rounds = 2
    lengths = np.random.default_rng(1).integers(20, LONGEST + 1, given.clips).tolist()
    size = sum(lengths) * BINS * 4
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        scratch = Path(folder)
        peers: dict[str, Callable[[], Pass]] = {
            "plain list, one thread": lambda: run_list(lengths, given.loaders, scratch),
            "store, all in RAM": lambda: run_store(lengths, given.loaders, scratch, 100 * GB, 0),
            "store, half on disk": lambda: run_store(lengths, given.loaders, scratch, size // 2, 100 * GB),
            "store, all on disk": lambda: run_store(lengths, given.loaders, scratch, 0, 100 * GB),
            "joblib.Parallel threads, dict": lambda: run_joblib_threads(lengths, given.loaders, scratch),
            "joblib.Memory": lambda: run_joblib_memory(lengths, given.loaders, scratch),
            "Manager().dict, processes (44th)": lambda: run_manager_dict(lengths, given.loaders, scratch),
        }
        times: dict[str, list[Pass]] = {name: [] for name in peers}
        for _ in range(given.rounds):
            for name, call in peers.items():
                times[name].append(call())
        share = bookkeeping(lengths, scratch)
    print(f"{given.clips} clips, {size / 2**30:.2f} GiB, {given.loaders} loaders, {os.cpu_count()} cores, "
          f"medians of {given.rounds} interleaved rounds")
    print(
        f"{'':34}{'first pass':>11}{'x list':>8}{'us/clip':>9}{'later pass':>12}{'x list':>8}{'us/clip':>9}"
    )
    medians = {name: [statistics.median(t[k] for t in times[name]) for k in (0, 1)] for name in peers}
    base = medians["plain list, one thread"]
    for name, (first, later) in medians.items():
        print(f"{name:<34}{first:>10.3f}s{first / base[0]:>8.2f}{first / given.clips * 1e6:>9.0f}"
              f"{later:>11.3f}s{later / base[1]:>8.2f}{later / given.clips * 1e6:>9.0f}")
    print(f"store bookkeeping: {share:.3%} of the bytes kept")


if __name__ == "__main__":
    main()
