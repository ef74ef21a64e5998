"""Finishes: shapes as declared, clips kept apart, numbers as written; runs over OPERATIONS."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kernel.errors import SpecError
from kernel.inference.finish import OPERATIONS, build, delta
from kernel.sound.frontends import build as front_end

ARGUS = front_end({"preset": "argus"})
# Smallest table of every step and a front end it fits
EXAMPLES: dict[str, tuple[dict[str, Any], str]] = {
    "scale": ({"divide": 255.0}, "daisukelab"),
    "normalise": ({"mean": [0.3], "std": [0.5]}, "simongrest"),
    "imagenet": ({}, "filipmu_colour"),
    "mel_in_net": ({"rate": 44100}, "wave"),
    "flatten": ({}, "qrfaction_length"),
    "fold": ({"frames": 256}, "htsat"),
}


@pytest.mark.parametrize("kind", OPERATIONS)
@pytest.mark.parametrize("frames", [1, 4, 300])
def test_every_step_keeps_its_shape_promise_and_keeps_cuts_apart(kind: str, frames: int) -> None:
    table, preset = EXAMPLES.get(kind, ({}, "viel"))
    fe = front_end({"preset": preset})
    finish = build([{"kind": kind, **table}], fe)
    x = (
        torch.rand(3, fe.channels, fe.bins, fe.fixed or frames, generator=torch.Generator().manual_seed(0))
        + 0.1
    )
    out = finish(x)
    c, m, t = finish.shape(x.shape[3])
    assert out.dtype == torch.float32 and out.shape[0] == 3 and out.numel() == 3 * c * m * t
    assert finish.frames(x.shape[3]) == (m if finish.time_first else t) and torch.isfinite(out).all()
    assert torch.equal(out[1:2], finish(x[1:2]))  # a cut's result does not depend on its neighbours


def test_steps_run_in_order_on_any_stored_dtype() -> None:
    fe = front_end({"preset": "daisukelab"})
    x = torch.full((2, 1, 128, 5), 255, dtype=torch.uint8)
    once = build([{"kind": "scale", "divide": 255}], fe)(x)
    twice = build([{"kind": "scale", "divide": 255}, {"kind": "scale", "divide": 255}, "repeat"], fe)(x)
    assert torch.equal(once, torch.ones(2, 1, 128, 5)) and twice.shape == (2, 3, 128, 5)
    assert torch.allclose(twice, torch.tensor(1 / 255))


def test_imagenet_equals_its_definition() -> None:
    x = torch.rand(1, 3, 224, 7)
    got = build(["imagenet"], front_end({"preset": "filipmu_colour"}))(x)
    assert torch.allclose(got[:, 1], (x[:, 1] - 0.456) / 0.224)


def test_frequency_map_rises_with_frequency() -> None:
    got = build(["frequency_map"], front_end({"preset": "ex4_mel"}))(torch.zeros(1, 1, 128, 3))
    assert got[0, 1, 0, 0] == -1 and got[0, 1, -1, 2] == 1 and (got[0, 1].diff(dim=0) > 0).all()


@pytest.mark.parametrize("frames", range(1, 9))
def test_delta_of_short_clips_repeats_their_ends(frames: int) -> None:
    x = torch.randn(2, 5, frames, generator=torch.Generator().manual_seed(1))
    left = (9 - frames) // 2
    grown = torch.cat([x[..., :1]] * left + [x] + [x[..., -1:]] * (9 - frames - left), dim=-1)
    assert torch.equal(delta(x), delta(grown)[..., left : left + frames])


def test_delta_of_a_line_is_its_slope() -> None:
    line = torch.arange(40.0) * 3 + 2
    assert torch.allclose(delta(line), torch.full((40,), 3.0), atol=1e-4)
    assert torch.allclose(delta(torch.arange(40.0) ** 2, order=2), torch.full((40,), 2.0), atol=1e-2)


@pytest.mark.parametrize("rate, mel_power", [(44100, 2.0), (16000, 1.0)])
def test_in_net_mel_by_fft_and_by_convolution_agree(rate: int, mel_power: float) -> None:
    wave = 0.1 * np.random.default_rng(0).standard_normal(20000).astype(np.float32)
    fe = front_end({"preset": "wave", "rate": rate})
    table = {"kind": "mel_in_net", "rate": rate, "hop": 500, "mel_power": mel_power}
    one, two = (
        build([{**table, "transform": t}], fe)(torch.from_numpy(wave)[None, None, None])
        for t in ("fft", "convolution")
    )
    assert one.shape == (1, 1, 64, 40) and one.max() == 0 and (one - two).abs().max() <= 5e-3


def test_in_net_mel_of_silence_is_flat() -> None:
    got = build([{"kind": "mel_in_net", "rate": 44100}], front_end({"preset": "wave"}))(
        torch.zeros(1, 1, 1, 3000)
    )
    assert torch.equal(got, torch.zeros(1, 1, 64, 6))


@pytest.mark.parametrize(
    "steps, word",
    [
        (["deltas"], "delta"),
        ([{"kind": "scale"}], "divide"),
        ([{"kind": "scale", "divide": 0}], "divide"),
        ([{"kind": "scale", "divide": 2, "by": 1}], "by"),
        (["imagenet"], "channels"),
        (["delta", "repeat"], "repeat"),
        (["delta", "squeeze"], "squeeze"),
        ([{"kind": "mel_in_net", "rate": 44100}], "waveform"),
        ([{"kind": "delta", "width": 4}], "odd"),
        ([{"kind": "normalise", "mean": [0, 1], "std": [1]}], "as many"),
        ([{"kind": "delta", "orders": [0]}], "orders"),
    ],
)
def test_wrong_steps_are_named(steps: list[Any], word: str) -> None:
    with pytest.raises(SpecError, match=word):
        build(steps, ARGUS)
