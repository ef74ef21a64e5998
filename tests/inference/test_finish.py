"""Finishes: shapes as declared, clips kept apart, numbers as written; runs over OPERATIONS."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kernel.errors import SpecError
from kernel.inference.finish import OPERATIONS, Lengths, build, delta
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


def test_a_batch_norm_over_the_wave_is_applied_before_the_mel_layer() -> None:
    """A checkpoint's numbers reach the operation, and the layer's own padding stays zero."""
    keys = {"kind": "mel_in_net", "rate": 16000, "hop": 128, "mel_power": 1.0}
    fe = front_end({"preset": "jeong_16000"})
    wave = torch.from_numpy(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 1, 1, 8000)).astype(np.float32))
    plain = build([keys], fe)
    filled = plain.with_constants({0: {"wave_scale": 1.5, "wave_offset": 0.25}})
    assert torch.equal(filled(wave), plain(wave * 1.5 + 0.25))
    assert torch.equal(plain(wave), build([{**keys, "wave_scale": 1.0}], fe)(wave))
    assert not torch.equal(filled(wave), plain(wave))


def test_cuts_of_a_padded_batch_end_at_their_own_lengths() -> None:
    """Nine frames of one cut, thirty of another: what stands beyond them does not count."""
    finish = build(["delta", {"kind": "scale", "divide": 2.0}], ARGUS)
    x = torch.rand(2, 1, ARGUS.bins, 30, generator=torch.Generator().manual_seed(2))
    own = np.array([9, 30])
    got = finish.batch(x, Lengths(host=own, device=torch.from_numpy(own)))
    for i, frames in enumerate(own):
        assert torch.allclose(got[i:i + 1, ..., :frames], finish(x[i:i + 1, ..., :frames]), atol=1e-5)
    assert torch.allclose(finish.batch(x), finish(x), atol=1e-5)
    assert not torch.allclose(finish.batch(x)[0, ..., :9], got[0, ..., :9], atol=1e-5)


def test_lengths_change_where_an_operation_changes_them() -> None:
    finish = build([{"kind": "mel_in_net", "rate": 44100, "hop": 500}], front_end({"preset": "wave"}))
    found = finish._lengths(finish.operations[0], torch.Size((3, 1, 1, 9000)), np.array([3000, 500, 3000]))
    assert found.tolist() == [finish.shape(n)[2] for n in (3000, 500, 3000)] and found.dtype == np.int64


def test_cuts_of_several_lengths_share_a_batch_only_where_every_operation_can() -> None:
    can, cannot = [kind for kind in OPERATIONS if OPERATIONS[kind].ragged], "time_first"
    assert {"delta", "scale", "normalise"} <= set(can) and not OPERATIONS[cannot].ragged
    assert build(["delta"], ARGUS).ragged and build([], ARGUS).ragged
    assert not build(["delta", cannot], ARGUS).ragged and not build([cannot], ARGUS).ragged


def test_time_comes_first_after_an_odd_number_of_turns() -> None:
    once, twice = build(["time_first"], ARGUS), build(["time_first", "time_first"], ARGUS)
    assert once.time_first and not twice.time_first and not build(["delta"], ARGUS).time_first
    assert once.shape(7) == (1, 7, ARGUS.bins) and twice.shape(7) == (1, ARGUS.bins, 7)
    assert once.frames(7) == twice.frames(7) == 7


def test_constants_go_to_the_operation_of_their_place() -> None:
    plain = build([{"kind": "scale", "divide": 2.0}, {"kind": "scale", "divide": 3.0}], ARGUS)
    filled = plain.with_constants({1: {"divide": 5.0}})
    x = torch.full((1, 1, ARGUS.bins, 2), 30.0)
    assert torch.allclose(filled(x), x / 10) and torch.allclose(plain(x), x / 6)


@pytest.mark.parametrize("entry", [3, None, {"divide": 2}, {"kind": 5}, {"kind": "scales", "divide": 2}])
def test_an_entry_that_is_no_operation_is_named_by_its_place(entry: Any) -> None:
    with pytest.raises(SpecError, match=r"finish\[1\]"):
        build(["delta", entry], ARGUS)
