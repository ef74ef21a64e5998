"""Precision and layout of a net on a GPU, tried on its first batch: on the CPU here, and on a GPU."""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kernel import models
from kernel.inference import backends, ways
from kernel.inference.devices import Device
from kernel.inference.runner import Runner
from tests.helpers.devices import EVERYWHERE, device_of

CPU = Device(name="cpu", about="")
ONES = {"x": torch.zeros(3, 1)}


def answer(value: float, seconds: float = 0.0) -> Callable[[Any, Any], torch.Tensor]:
    def run(inputs: Any, frames: Any) -> torch.Tensor:
        time.sleep(seconds)
        return torch.full((len(inputs["x"]), 2), value)

    return run


def runner_of(precision: ways.Precision | None = None, exact: Any = None, **runs: Any) -> Runner:
    """A runner with ways by name ("_" for ", "); fp32 takes 20 ms and gives ones."""
    exact = exact or answer(1.0, 0.02)
    tried = []
    for name, run in runs.items():
        tried.append(ways.Way(name=name.replace("__", ", ").replace("_", "-"), build=lambda run=run: run))
    return Runner(device=CPU, path="torch cuda, folded, fp32", run=exact, exact=exact, ways=tried,
                  precision=precision or ways.Precision())


def test_the_fastest_way_that_agrees_is_taken_and_told_to_the_other_folds() -> None:
    runs = {"fp16__channels_last": answer(1.001), "fp16": answer(1.001, 0.01),
            "fp32__channels_last": answer(1.000001, 0.01)}
    first = runner_of(**runs)
    assert np.allclose(first(ONES), 1.001) and first.half and not first.ways
    assert first.path == "torch cuda, folded, fp16, channels-last"
    assert "timed on 3 passes: fp32 2" in first.notes[0] and "fp16, channels-last 0." in first.notes[0]
    second = runner_of(first.precision, **{**runs, "fp16": answer(1.0), "fp16__channels_last": answer(1.01)})
    assert np.allclose(second(ONES), 1.01) and second.path == first.path and not second.notes


def test_fp32_stays_where_nothing_is_faster_and_folds_try_nothing_then() -> None:
    first = runner_of(exact=answer(1.0), fp16=answer(1.0, 0.02))
    assert np.array_equal(first(ONES), np.ones((3, 2))) and first.path.endswith("folded, fp32")
    assert not first.half and first.precision.way == "fp32"

    def refuse(inputs: Any, frames: Any) -> torch.Tensor:
        raise AssertionError("nothing is tried")

    assert np.array_equal(runner_of(first.precision, fp16=refuse)(ONES), np.ones((3, 2)))


def test_layout_alone_must_agree_as_fp32_does() -> None:
    found = runner_of(fp32__channels_last=answer(1.001))
    assert np.array_equal(found(ONES), np.ones((3, 2)))
    assert "fp32, channels-last differed" in found.notes[0] and found.path.endswith("folded, fp32")
    taken = runner_of(fp32__channels_last=answer(1.000001))
    assert np.allclose(taken(ONES), 1.000001, atol=1e-7) and not taken.half
    assert taken.path == "torch cuda, folded, fp32, channels-last"


def test_a_fold_that_the_member_s_way_does_not_suit_runs_in_fp32_alone() -> None:
    known = ways.Precision(way="fp16")
    found = runner_of(known, fp16=answer(1.5), fp32__channels_last=answer(1.0))
    assert np.array_equal(found(ONES), np.ones((3, 2))) and found.path.endswith("folded, fp32")
    assert known.way == "fp16" and "differed" in found.notes[0]


def test_a_way_that_fails_is_named_and_full_memory_tries_again_later() -> None:
    full = [torch.OutOfMemoryError("CUDA out of memory")]

    def fast(inputs: Any, frames: Any) -> torch.Tensor:
        if full:
            raise full.pop()
        return answer(1.0)(inputs, frames)

    def broken(inputs: Any, frames: Any) -> torch.Tensor:
        raise RuntimeError("expected scalar type Half but found Float")

    found = runner_of(fp16__channels_last=broken, fp16=fast)
    with pytest.raises(torch.OutOfMemoryError):
        found(ONES)
    assert found.ways and found.precision.way is None
    found(ONES)
    assert found.path.endswith("folded, fp16") and "scalar type" in found.notes[0]


def test_where_no_memory_is_left_for_a_trial_of_one_row_it_runs_in_fp32() -> None:
    def build() -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    found = runner_of()
    found.ways = [ways.Way(name="fp16", build=build)]
    with pytest.raises(torch.OutOfMemoryError):
        found(ONES)
    assert np.array_equal(found({"x": torch.zeros(1, 1)}), np.ones((1, 2))) and not found.ways
    assert found.path.endswith("folded, fp32") and "no memory" in found.notes[0]


def test_probabilities_agree_as_logarithms() -> None:
    exact = torch.full((2, 206), 1e-5)
    exact[:, 0] = 0.9
    found = runner_of(exact=lambda x, f: exact, fp16=lambda x, f: torch.where(exact > 0.5, exact, 0.0))
    found.probabilities = True
    assert np.array_equal(found({"x": torch.zeros(2, 1)}), exact.numpy())
    assert "log-probabilities" in found.notes[0]


@pytest.mark.parametrize("path", ["fp16, channels-last", "fp32, channels-last", "fp16", "fp32"])
def test_a_report_s_path_tells_the_way(path: str) -> None:
    assert ways.way_of(f"torch cuda, folded, {path}") == path
    assert ways.way_of("torch cpu, folded, channels-last, frozen") is None and ways.way_of(None) is None


@pytest.mark.parametrize("where", EVERYWHERE)
@pytest.mark.parametrize("family", ["simple_cnn", "dense_pyramid", "resnet_max", "hierarchical_cnn"])
def test_every_way_agrees_with_fp32_on_padded_batches(family: str, where: str) -> None:
    torch.manual_seed(0)
    net = models.build(family, models.FAMILIES[family].tiny, 5).eval().requires_grad_(False)
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
    device = device_of(where)
    net = net.to(where)
    inputs = {"x": torch.randn(3, net.channels, 32, 96, device=where)}
    for frames in (None, torch.tensor([96, 80, 64])):
        with torch.inference_mode():
            want = backends.call_net(net, inputs, frames)
            for way in backends.find_ways(net, device):
                got = way.build()(inputs, frames).float()
                assert ways.differ(got, want, False) <= way.tolerance, way.name
    kinds = {value.dtype for value in net.state_dict().values() if value.is_floating_point()}
    assert kinds == {torch.float32}  # the net itself is as before
