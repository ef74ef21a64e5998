"""Windows of long recordings on a GPU's schedule: the scores are those of the CPU's.

A stand-in device computes on the CPU. Frames of overlapping contexts, front ends that look at whole
recordings, time before frequency.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch

from kernel import spec
from kernel.engine import gpu, loop
from kernel.engine.heartbeat import Heartbeat
from kernel.inference import backends, devices
from kernel.models import custom
from tests.engine.test_devices import computing_on_cpu, scores, stand_ins
from tests.helpers import TESTS, small_ensembles
from tests.helpers.ensemble_runs import write_sample
from tests.helpers.orders import make_order

RATE = 8000
COUNT = 9
MEL = {"rate": RATE, "n_fft": 256, "hop": 128, "mels": 16, "fmax": 4000.0}
SCOPE: dict[str, Any] = {"scope": "recording", "piece_seconds": 2.0, "norm": "z"}
PLAIN = spec.Member(
    name="plain", family="simple_cnn", params={"base": 4, "channels": 1}, frontend="mel",
    finish=("time_first",), folds=(0, 1),
)
FRAMED = spec.Member(
    name="framed", family=f"{TESTS}/ensembles/faulty.py:Frames", frontend="mel", frames="average_max",
    folds=(0, 1),
)
ENSEMBLES = {
    "context": ((FRAMED, PLAIN), MEL, spec.Windows(seconds=2.0, context_seconds=4.0)),
    "recording": ((replace(PLAIN, finish=()),), {**MEL, **SCOPE}, spec.Windows(seconds=2.0)),
}


@pytest.fixture(scope="module", params=list(ENSEMBLES))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    members, frontend, windows = ENSEMBLES[request.param]
    ensemble = spec.check(
        spec.Ensemble(
            name=request.param,
            classes=("a", "b", "c"),
            members=members,
            frontends={"mel": frontend},
            windows=windows,
        )
    )
    return small_ensembles.build(ensemble, tmp_path_factory.mktemp(request.param))


@contextmanager
def open_engine(place: Path, bundle: Path, device: str) -> Iterator[loop.Engine]:
    """An engine in this process over the windows of two recordings; the last one lies behind the end."""
    folder, state = place / "in" / "test", place / "state"
    folder.mkdir(parents=True)
    state.mkdir()
    for i in range(2):
        wave = np.random.default_rng(i).standard_normal(int((2 * COUNT - 0.5) * RATE))
        soundfile.write(folder / f"r{i}.wav", wave * np.logspace(-0.5, -3, len(wave)), RATE)
    ids = [f"r{i}_{2 * (n + 1)}" for i in range(2) for n in range(COUNT + 1)]
    write_sample(place / "in", ["row_id", "a", "b", "c"], ids)
    found = stand_ins(device)
    threads = torch.get_num_threads()
    with (
        mock.patch.object(devices, "find_devices", lambda _: (found, [])),
        mock.patch.object(custom, "FOLDER", TESTS / "ensembles"),  # no wheel is unpacked here
        mock.patch("signal.signal"),
    ):
        opened = loop.Engine(make_order(place / "in", bundle, state), Heartbeat(state / "heartbeat.json"))
        try:
            yield opened
        finally:
            opened.run.feed.store.close()
            torch.set_num_threads(threads)


def run(place: Path, bundle: Path, device: str) -> dict[str, np.ndarray]:
    with (
        open_engine(place, bundle, device) as opened,
        computing_on_cpu(lambda device: None),
        mock.patch.object(gpu, "BLOCKS", 3),
    ):
        opened.execute()
        assert not [net.net_id for net in opened.run.nets.values() if net.failed or net.skipped]
        return scores(opened)


def test_the_scores_are_those_of_the_cpu(tmp_path: Path, bundle: Path) -> None:
    on_cpu = run(tmp_path / "cpu", bundle, "cpu")
    on_gpu = run(tmp_path / "gpu", bundle, "cuda:0")
    behind = [COUNT, 2 * COUNT + 1]
    for net_id, expected in on_cpu.items():
        assert np.isnan(expected[behind]).all() and np.isfinite(np.delete(expected, behind, 0)).all()
        np.testing.assert_allclose(on_gpu[net_id], expected, atol=1e-5)
        assert np.ptp(np.delete(expected, behind, 0), axis=0).max() > 1e-4


def strike_at(number: int, module: Any) -> Callable[..., Any]:
    """Answers of a net that raises for every batch that holds its `number`-th input."""
    poison: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []

    def answer(inputs: backends.Inputs, frames: torch.Tensor | None) -> torch.Tensor:
        x = inputs["x"]
        if not poison:
            seen.extend(x.clone())
            poison.extend(seen[number:number + 1])
        if any(torch.equal(one, bad) for one in x for bad in poison):
            raise ValueError("not this one")
        return backends.call_net(module, inputs, frames)

    return answer


def test_a_window_that_a_net_of_frames_cannot_do_costs_its_own_row(tmp_path: Path) -> None:
    """Its neighbours are made of the windows that have answered, and nothing else is lost."""
    members, frontend, windows = ENSEMBLES["context"]
    ensemble = spec.Ensemble(
        name="one", classes=("a", "b", "c"), members=(replace(FRAMED, folds=(0,)),),
        frontends={"mel": frontend}, windows=windows,
    )
    bundle = small_ensembles.build(spec.check(ensemble), tmp_path / "built")
    plain = run(tmp_path / "plain", bundle, "cpu")["framed.0"]

    def prepare(module: Any, device: Any, samples: Sequence[Any], **more: Any) -> backends.Runner:
        answer = strike_at(4, module.eval())
        return backends.Runner(device=stand_ins("cpu")[0], path="", run=answer, exact=answer)

    for device in ("cpu", "cuda:0"):
        with (
            open_engine(tmp_path / device[:3], bundle, device) as opened,
            mock.patch.object(backends, "prepare", prepare),
        ):
            opened.execute()
            net = opened.run.nets["framed.0"]
            assert net.skipped == {"r0_10": "not this one"} and net.failed is None
            found = scores(opened)["framed.0"]
        lost = np.isnan(found).all(axis=1) & ~np.isnan(plain).all(axis=1)
        assert np.flatnonzero(lost).tolist() == [4]
        if device == "cpu":
            on_cpu = found
            changed = (found != plain).any(axis=1) & ~np.isnan(found).all(axis=1)
            assert set(np.flatnonzero(changed)) <= {3, 5}
        np.testing.assert_allclose(found, on_cpu, atol=1e-6)
