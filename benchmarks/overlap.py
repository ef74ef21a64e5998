"""Overlap of loading and computing: a whole run of the engine against its stages alone.

    python -m benchmarks.overlap [--clips 600] [--rounds 7] [--quick]

GPU schedule: the device is a stand-in that sleeps for every batch, as long as asked for, and uses no core;
"slowest" is the longer of loading alone and sleeping alone, at three ratios of the two. CPU schedule: a real
net; fold 0 loads and computes, fold 1 computes alone, and loading alone is timed apart; both want the same
cores, so the bound is the sum. A real GPU wants some of a core for launches and copies: expect a little less
there.
"""
from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.pipeline import CLASSES, build_bundle, write_input
from benchmarks.rounds import describe_machine

import numpy as np  # isort: skip
import torch  # isort: skip

from kernel.engine import loop
from kernel.engine.heartbeat import Heartbeat
from kernel.inference import backends
from kernel.inference.devices import Device
from tests.helpers.orders import make_order

SLEEPS = (0.6, 1.0, 1.4)  # sleeping in all / loading alone


class Asleep:
    """A runner that sleeps `per_frame` seconds for every frame of a batch: a GPU, to all the rest."""

    def __init__(self, per_frame: float) -> None:
        self.per_frame = per_frame
        self.slept = 0.0

    def prepare(self, *_: Any, **__: Any) -> backends.Runner:
        return backends.Runner(
            device=Device(name="cpu", about=""), path="asleep", run=self.run, exact=self.run
        )

    def run(self, inputs: backends.Inputs, frames: torch.Tensor | None) -> torch.Tensor:
        x = inputs["x"]
        seconds = self.per_frame * x.shape[0] * x.shape[-1]
        time.sleep(seconds)
        self.slept += seconds
        return torch.zeros(len(x), len(CLASSES))


@contextmanager
def open_engine(folder: Path, bundle: Path, data: Path, asleep: Asleep | None) -> Iterator[loop.Engine]:
    """An engine ready to run in this process, its device asleep or the CPU."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        state = Path(place)
        order = make_order(data, bundle, state, seconds=3600.0, device="cpu", loaders=None)
        with ExitStack() as patches:
            if asleep is not None:
                device = Device(name="cuda:0", about="asleep", memory_bytes=16 * 10**9)
                find = "kernel.inference.devices.find_devices"
                patches.enter_context(mock.patch(find, lambda _: ([device], [])))
                patches.enter_context(mock.patch.object(backends, "prepare", asleep.prepare))
            gc.collect()
            gc.freeze()  # as kernel.run does
            yield loop.Engine(order, Heartbeat(state / "heartbeat.json"))
            gc.unfreeze()


def load_alone(opened: loop.Engine) -> float:
    """Seconds of loading every row, with nothing else to do."""
    feed = opened.run.feed
    stage = next(iter(opened.run.recipes()["net"].stages.values()))
    start = time.perf_counter()
    feed.store.warm(stage.fe, [feed.rows.all[i] for i in feed.rows.wanted])
    seconds = time.perf_counter() - start
    close(opened)
    return seconds


def close(opened: loop.Engine) -> None:
    """Drop the store and end the heartbeat."""
    opened.run.feed.store.close()
    opened.run.heartbeat.close()


def run_steps(opened: loop.Engine) -> list[float]:
    """Seconds of each net's step, in order, as the engine takes them; the store is dropped at the end."""
    seconds = []
    while (step := opened.dispatcher.take()) is not None:
        nets = [opened.run.nets[net_id] for net_id in step.net_ids]
        device = opened.run.devices[0]
        outcomes = opened.steps.run_all(step, nets, device, lambda: False, lambda: None)
        opened.dispatcher.finish(step, outcomes)
        seconds.append(sum(outcome.seconds for outcome in outcomes))
    close(opened)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="100 clips, 2 rounds")
    given = parser.parse_args()
    clips, rounds = (100, 2) if given.quick else (given.clips, given.rounds)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(describe_machine("torch"), f"| {clips} clips, medians of {rounds} interleaved rounds")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = write_input(folder / "input", clips)
        one = build_bundle(folder / "one", "padded", 1, 8, False)
        two = build_bundle(folder / "two", "padded", 2, 8, False)
        loading: list[float] = []
        whole: dict[str, list[float]] = {}

        def time_loading() -> float:
            with open_engine(folder, one, data, None) as opened:
                loading.append(load_alone(opened))
                return float(opened.run.nets["net.0"].cells.sum())

        for _ in range(rounds):
            for share in SLEEPS:
                frames = time_loading()  # just before: the machine may be slower a minute later
                asleep = Asleep(share * loading[-1] / frames)
                with open_engine(folder, one, data, asleep) as opened:
                    wall = run_steps(opened)[0]
                slowest = max(loading[-1], asleep.slept)
                name = f"GPU schedule, sleeping {share:.1f} x loading: whole / slowest stage"
                whole.setdefault(name, []).append(wall / slowest)
            time_loading()
            with open_engine(folder, two, data, None) as opened:
                first, second = run_steps(opened)
            whole.setdefault("CPU schedule: whole / sum of the stages alone", []).append(
                first / (loading[-1] + second)
            )
        print(
            f"loading alone {np.median(loading):.2f} s ({min(loading):.2f} to {max(loading):.2f}), "
            f"{frames:.0f} frames"
        )
        for name, values in whole.items():
            print(f"{name:<66}{np.median(values):6.3f}   rounds {', '.join(f'{v:.2f}' for v in values)}")


if __name__ == "__main__":
    main()
