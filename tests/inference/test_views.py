"""Views cut, pad and merge as their systems did, by row id and nothing else; runs over VIEWS."""
from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel import models
from kernel.errors import SpecError
from kernel.inference import distort
from kernel.inference.answers import keep
from kernel.inference.finish import build as finish
from kernel.inference.views import MERGES, VIEWS, build, keys
from kernel.sound.frontends import build as front_end
from tests import contracts
from tests.helpers import recipe

ARGUS = front_end({"preset": "argus"})
IMAGE = front_end({"preset": "daisukelab"})
PINNED = [1.0, 670.0, 932.0, 759.0]
views = pytest.mark.parametrize("kind", VIEWS)


def ramp(frames: int, bins: int = 128) -> np.ndarray:
    """array[1, bins, frames] whose frame t holds t."""
    return np.broadcast_to(np.arange(frames, dtype=np.float32), (1, bins, frames)).copy()


def sized(kind: str, frames: int) -> dict[str, Any]:
    """Spec of a kind, cut to `frames` where it has a length."""
    return {"kind": kind} | ({"frames": frames} if "frames" in keys(kind) else {})


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# Contract of every kind


@views
@pytest.mark.parametrize("frames", [1, 127, 128, 129, 700])
@pytest.mark.parametrize("fe", [ARGUS, IMAGE], ids=["float32", "uint8"])
def test_shape_dtype_count_and_source(kind: str, frames: int, fe: Any) -> None:
    view = build(sized(kind, 128), fe)
    x = (np.random.default_rng(0).integers(1, 255, (1, 128, frames))).astype(fe.dtype)
    before = x.copy()
    cuts = view.cut(x, "clip.wav")
    assert cuts.dtype == x.dtype and cuts.shape[1:3] == x.shape[:2] and len(cuts) <= view.count(frames)
    assert cuts.shape[3] == (frames if view.fixed is None else view.fixed)
    assert np.array_equal(x, before) and cuts.min() >= 0 and cuts.max() <= x.max()


@views
def test_cuts_depend_on_row_id_and_seed_only(kind: str) -> None:
    spec = sized(kind, 64) | {"flip": 0.5}
    x = np.random.default_rng(0).standard_normal((1, 128, 5000)).astype(np.float32)
    once = build(spec, ARGUS).cut(x, "a.wav")
    build(spec, ARGUS).cut(x, "b.wav")
    assert np.array_equal(once, build(spec, ARGUS).cut(x, "a.wav"))
    others = [
        build(spec, ARGUS).cut(x, name, seed)
        for name, seed in (("b.wav", 0), ("c.wav", 0), ("a.wav", 1), ("a.wav", 2))
    ]
    assert any(not np.array_equal(once, other) for other in others)


def test_known_random_start_never_moves() -> None:
    """Pinned: a change of the seeding would change published submissions."""
    assert (
        build({"kind": "crops", "frames": 10, "passes": 4}, IMAGE)
        .cut(ramp(1000), "0a1b.wav")[:, 0, 0, 0]
        .tolist()
        == PINNED
    )


@views
def test_every_key_is_listed_and_loads(kind: str) -> None:
    listed = keys(kind)
    assert {"merge", "pass_weights", "flip", "domain"} <= set(listed)
    assert build({"kind": kind, **listed}, ARGUS) == build({"kind": kind}, ARGUS)
    assert VIEWS[kind].__doc__ and not VIEWS[kind].__doc__.startswith(kind)


def test_arrays_without_time_are_left_alone() -> None:
    fe = front_end({"preset": "qrfaction_statistics"})
    x = np.random.default_rng(0).standard_normal((1, 128, 12)).astype(np.float32)
    for kind in VIEWS:
        assert np.array_equal(build({"kind": kind}, fe).cut(x, "a"), x[None])
        assert build({"kind": kind}, fe).fixed == 12


# Single kinds


@pytest.mark.parametrize(
    "frames, count", [(1, 1), (256, 1), (257, 2), (384, 2), (385, 3), (500, 3), (1000, 7), (1918, 14)]
)
def test_tile_counts_of_the_paper_table(frames: int, count: int) -> None:
    view = build({"kind": "tiles"}, ARGUS)
    assert view.count(frames) == count == len(view.cut(ramp(frames), "a"))


@settings(max_examples=50, deadline=None)
@given(frames=st.integers(1, 900), step=st.integers(1, 128))
def test_tiles_cover_the_clip_and_pad_with_its_minimum(frames: int, step: int) -> None:
    x = ramp(frames, 1) - 50
    cuts = build({"kind": "tiles", "frames": 128, "step": step}, ARGUS).cut(x, "a")[:, 0, 0]
    whole = np.full(128 + (len(cuts) - 1) * step, np.nan)
    for i, tile in enumerate(cuts):
        whole[i * step : i * step + 128] = tile
    left = (len(whole) - frames) // 2
    assert np.array_equal(whole[left : left + frames], x[0, 0])
    assert (whole[:left] == -50).all() and (whole[left + frames :] == -50).all()


def test_chunks_are_regular() -> None:
    starts = build({"kind": "chunks", "frames": 256, "passes": 8}, ARGUS).cut(ramp(956), "a")[:, 0, 0, 0]
    assert starts.tolist() == [0, 100, 200, 300, 400, 500, 600, 700]
    strided = build({"kind": "chunks", "frames": 128, "stride": 48}, IMAGE)
    assert (
        strided.count(128) == 1
        and strided.count(129) == 2
        and len(strided.cut(ramp(400), "a")) == strided.count(400) == 7
    )


def test_positions_choose_start_middle_end_or_the_left_pad() -> None:
    fe = front_end({"preset": "wave"})
    view = build({"kind": "positions", "frames": 100}, fe)
    assert view.cut(ramp(301, 1), "a")[:, 0, 0, 0].tolist() == [0, 100, 201]
    short = view.cut(ramp(51, 1) + 1, "a")[:, 0, 0]
    assert [int(np.flatnonzero(row)[0]) for row in short] == [0, 24, 49] and short.shape == (3, 100)


def test_strength_crops_prefer_loud_parts_and_take_the_start_of_flat_clips() -> None:
    view = build({"kind": "strength_crops", "frames": 128, "passes": 200}, IMAGE)
    # Rows 84 and up do not count
    flat = np.concatenate([np.full((1, 84, 2000), 7, np.float32), ramp(2000, 44)], axis=1)
    assert (view.cut(flat, "a")[:, 0, -1, 0] == 0).all()
    x = np.zeros((1, 128, 2000), np.uint8)
    x[:, :84, 1500:1600] = 200
    x[:, 84:, 200:400] = 255
    cuts = view.cut(x, "a")
    assert all(cut[0, :84].any() for cut in cuts)


def test_random_start_is_uniform_over_the_clip() -> None:
    starts = (
        build({"kind": "crops", "frames": 128, "passes": 4000}, IMAGE)
        .cut(ramp(138, 1), "a")[:, 0, 0, 0]
        .astype(int)
    )
    assert set(starts) == set(range(11)) and np.bincount(starts).min() > 250


def test_short_side_decides_where_the_pad_goes() -> None:
    x = ramp(3, 1) + 1
    for side, left in (("right", 0), ("left", 7), ("centre", 3)):
        got = build({"kind": "crops", "frames": 10, "passes": 1, "short": side}, IMAGE).cut(x, "a")[0, 0, 0]
        assert got.tolist() == [0.0] * left + [1, 2, 3] + [0.0] * (7 - left)
    many = build({"kind": "crops", "frames": 10, "passes": 100, "short": "random"}, IMAGE).cut(x, "a")[
        :, 0, 0
    ]
    assert {int(row.argmax()) - 2 for row in many} == set(range(8))


def test_masks_blank_one_band_each() -> None:
    x = np.full((1, 128, 300), 9, np.uint8)
    for cut in build({"kind": "crops", "passes": 6, "mask_bins": 12, "mask_frames": 12}, IMAGE).cut(x, "a"):
        assert (cut == 0).sum() == 12 * 128 + 12 * 128 - 144 and (x == 9).all()


def test_flip_mirrors_about_the_given_share() -> None:
    cuts = build({"kind": "crops", "frames": 128, "passes": 1000, "flip": 0.5}, IMAGE).cut(ramp(128, 1), "a")[
        :, 0, 0
    ]
    turned = (cuts[:, 0] == 127).mean()
    assert 0.4 < turned < 0.6 and set(cuts[:, 0]) == {0, 127}
    assert (build({"kind": "full", "flip": 1.0}, ARGUS).cut(ramp(50), "a")[0, 0, 0, 0]) == 49


def test_zoom_passes_and_shares() -> None:
    fe = front_end({"preset": "simongrest"})
    view = build({"kind": "zoom"}, fe)
    x = np.random.default_rng(0).random((1, 256, 700)).astype(np.float32)
    cuts = view.cut(x, "a")
    assert cuts.shape == (9, 1, 256, 256) and any(
        np.array_equal(cuts[0], x[..., s : s + 256]) for s in range(445)
    )
    logits = np.random.default_rng(1).standard_normal((9, 5))
    want = 0.4 * sigmoid(logits[0]) + 0.6 * sigmoid(logits[1:]).mean(axis=0)
    assert np.allclose(view.merge(logits, sigmoid), want, atol=1e-12)


def test_distort_anchors_its_corner_and_rests_at_nothing() -> None:
    x = np.random.default_rng(0).random((2, 40, 50)).astype(np.float32)
    assert np.allclose(distort.distort(x, 0, 1.0, np.zeros(4)), x, atol=1e-5)
    for corner, place in enumerate(((0, 0), (-1, 0), (0, -1), (-1, -1))):
        got = distort.distort(x, corner, 1.1, np.zeros(4))
        assert np.allclose(got[(..., *place)], x[(..., *place)], atol=1e-5) and not np.allclose(
            got, x, atol=1e-2
        )
    h = distort.perspective(np.array([0.01, 0.02, 0.03, 0.04]))
    corner = h @ np.array([-1, -1, 1])
    assert np.allclose(corner[:2] / corner[2], [-1.03, -1.01])


def test_wave_domain_cuts_samples_before_the_front_end() -> None:
    fe = front_end({"preset": "ex4_mel"})
    view = build({"kind": "chunks", "domain": "wave", "frames": 44100, "passes": 3}, fe)
    wave = np.random.default_rng(0).standard_normal(100000).astype(np.float32)
    cuts = view.cut_wave(wave, "a")
    assert [len(cut) for cut in cuts] == [44100] * 3 and np.array_equal(cuts[2], wave[-44100:])
    assert {fe(cut).shape[2] for cut in cuts} == {view.fixed} and view.count(len(wave)) == 3
    assert np.array_equal(view.cut_wave(wave[:100], "a")[0][22000:22100], wave[:100])


# Merges


def test_merges() -> None:
    logits = np.array([[0.0, 2.0], [1.0, -2.0], [3.0, 0.5]])
    want = {
        "mean": sigmoid(logits).mean(axis=0),
        "logit_mean": sigmoid(logits.mean(axis=0)),
        "max": sigmoid(logits).max(axis=0),
        "attention": (sigmoid(logits) ** 2).sum(axis=0) / sigmoid(logits).sum(axis=0),
    }
    assert set(want) == set(MERGES)
    for rule, value in want.items():
        got = build({"kind": "full", "merge": rule}, ARGUS).merge(logits, sigmoid)
        assert got.dtype == np.float64 and np.allclose(got, value, atol=1e-12)
    weighted = build({"kind": "positions", "pass_weights": [1, 0, 3]}, ARGUS).merge(logits, sigmoid)
    assert np.allclose(weighted, (sigmoid(logits[0]) + 3 * sigmoid(logits[2])) / 4)


def test_a_pass_that_says_nothing_has_no_attention() -> None:
    view = build({"kind": "full", "merge": "attention"}, ARGUS)
    assert np.array_equal(view.merge(np.zeros((3, 2)), keep), [0.0, 0.0])
    patches = np.array([[[0.9, 0.0], [0.1, 0.0]], [[0.0, 0.5], [0.0, 0.5]]])  # two passes of two answers each
    assert np.allclose(view.merge(patches, keep), [0.82, 0.5])


def test_too_few_pass_weights_are_an_error() -> None:
    with pytest.raises(SpecError, match="pass_weights"):
        build({"kind": "full", "pass_weights": [1.0]}, ARGUS).merge(np.zeros((2, 3)), sigmoid)


@pytest.mark.parametrize(
    "spec, word",
    [
        ({"kind": "tile"}, "tiles"),
        ({"kind": "tiles", "frame": 3}, "frames"),
        ({"kind": "tiles", "merge": "mea"}, "mean"),
        ({"kind": "full", "frames": 3}, "unknown key"),
        ({"kind": "tiles", "frames": 0}, "frames"),
        ({"kind": "full", "flip": 2.0}, "flip"),
        ({"kind": "crops", "short": "middle"}, "short"),
        ({"kind": "tiles", "frames": "256"}, "int"),
        ({"kind": "full", "fe": 1}, "fe"),
        ({"kind": "full", "domain": "waves"}, "wave"),
        ({"kind": "tiles", "domain": "wave"}, "trim_db"),
        ({"kind": "full", "merge_rule": "max"}, "merge"),
    ],
)
def test_wrong_views_are_named(spec: dict[str, Any], word: str) -> None:
    with pytest.raises(SpecError, match=word):
        build(spec, ARGUS)


# argus, whole


END_TO_END = json.loads((contracts.GOLDENS / "argus_end_to_end.json").read_text())


@pytest.fixture(scope="module")
def argus_net() -> torch.nn.Module:
    family, params = contracts.MODELS["argus_auxskip"]
    net = models.build(family, params, 80).eval()
    checkpoint = recipe.fill_state_dict(net.state_dict(), END_TO_END["gain"])
    net.load_state_dict(checkpoint)
    return net


@pytest.mark.parametrize("case", END_TO_END["cases"], ids=[case["name"] for case in END_TO_END["cases"]])
def test_argus_end_to_end(case: dict[str, Any], argus_net: torch.nn.Module) -> None:
    x = (12 * recipe.make_input(case["name"], 1, 128, case["frames"]) - 35).astype(np.float32)
    x = np.maximum(x, x.max() - 80)
    view = build({"kind": "tiles", "frames": END_TO_END["tile"], "step": END_TO_END["step"]}, ARGUS)
    cuts = view.cut(x, case["name"])
    assert len(cuts) == case["tiles"]
    with torch.inference_mode():
        logits = argus_net(finish(["delta", {"kind": "scale", "divide": 100}], ARGUS)(torch.from_numpy(cuts)))
    got = view.merge(logits.numpy(), sigmoid)
    assert np.abs(got - np.array(case["probabilities"])).max() <= END_TO_END.get("tolerance", 1e-4)


def test_the_middle_and_beside_it():
    """The row's own window out of a context, and the same moved in time; beyond the ends there are zeros."""
    fe = front_end({"rate": 100, "n_fft": 64, "hop": 10, "mels": 4})
    wave = np.arange(1, 1001, dtype=np.float32)  # 10 s around a window of 5 s
    view = build({"kind": "positions", "frames": 500, "domain": "wave", "shifts": [0, -250, 125, 300]}, fe)
    cuts = view.cut_wave(wave, "r")
    assert view.count(1000) == len(cuts) == 4
    for cut, first in zip(cuts[:3], (250, 0, 375), strict=True):
        np.testing.assert_array_equal(cut, wave[first:first + 500])
    np.testing.assert_array_equal(cuts[3], np.append(wave[550:], np.zeros(50, np.float32)))
