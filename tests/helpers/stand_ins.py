"""Devices that are not there: an engine in this process that takes a GPU's way and computes on the CPU."""
from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile
import torch

from kernel.engine import loop
from kernel.engine.heartbeat import Heartbeat
from kernel.inference import backends, devices
from kernel.inference.devices import Device
from tests.helpers.orders import make_order

CLASSES = ("bark", "meow", "hiss")
CLIPS = 9


def make_input(folder: Path, repeated: Sequence[str] = ()) -> Path:
    (folder / "test").mkdir(parents=True)
    names = [f"c{i}.wav" for i in range(CLIPS)]
    for i, name in enumerate(names):
        wave = 0.1 * np.random.default_rng(i).standard_normal(int(44_100 * (0.6 + 0.33 * i)))
        soundfile.write(folder / "test" / name, wave, 44_100, subtype="PCM_16")
    with open(folder / "sample_submission.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["fname", *CLASSES])
        writer.writerows([name, 0, 0, 0] for name in [*names, *repeated])
    return folder


@contextmanager
def open_engine(
    place: Path,
    bundle: Path,
    found: list[Device],
    attempt: int = 1,
    repeated: Sequence[str] = (),
    first: int | None = None,
) -> Iterator[loop.Engine]:
    """An engine in this process that finds these devices; later attempts find what earlier ones left.

    repeated  ids that stand at the end of the sample once more;  first: rows to predict
    """
    data, state = place / "in", place / "state"
    if attempt == 1:
        make_input(data, repeated)
        state.mkdir()
    order = make_order(data, bundle, state, first=first, attempt=attempt)
    threads = torch.get_num_threads()
    with mock.patch.object(devices, "find_devices", lambda _: (found, [])), mock.patch("signal.signal"):
        opened = loop.Engine(order, Heartbeat(state / "heartbeat.json"))
        try:
            yield opened
        finally:
            opened.run.feed.store.close()
            torch.set_num_threads(threads)


def stand_ins(*names: str) -> list[Device]:
    return [Device(name=name, about="stand-in", memory_bytes=10**9) for name in names]


@contextmanager
def computing_on_cpu(watch: Callable[[Device], Any]) -> Iterator[None]:
    """Nets for any device run plainly on the CPU; `watch` is called with the device before every batch."""

    def prepare(
        module: torch.nn.Module, device: Device, samples: Any, **more: Any
    ) -> backends.Runner:
        net = module.eval()

        def run(inputs: backends.Inputs, frames: torch.Tensor | None) -> torch.Tensor:
            watch(device)
            return backends.call_net(net, inputs, frames)

        return backends.Runner(
            device=Device(name="cpu", about=""), path=f"stand-in {device.name}", run=run, exact=run
        )

    with mock.patch.object(backends, "prepare", prepare):
        yield


def scores(opened: loop.Engine) -> dict[str, np.ndarray]:
    return {net_id: np.array(opened.run.board.get(net_id)) for net_id in opened.run.nets}
