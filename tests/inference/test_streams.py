"""Random streams of passes: seeded many at once they are numpy's own, so no draw and no byte moves."""
from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.inference import streams, views
from kernel.sound import frontends


def numpys(row_id: str, seed: int, index: int) -> np.random.Generator:
    digest = hashlib.blake2b(f"{row_id}\0{seed}\0{index}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def test_words_are_those_of_numpy_s_seed_sequence() -> None:
    """Small numbers, whose upper half is no word of numpy's entropy, and the largest too."""
    drawn = np.random.default_rng(0).integers(0, 2**64, 300, np.uint64)
    entropy = np.concatenate([drawn, np.array([0, 1, 2**32 - 1, 2**32, 2**64 - 1], np.uint64)])
    for value, words in zip(entropy.tolist(), streams._seed_words(entropy), strict=True):
        assert (words == np.random.SeedSequence(value).generate_state(4, np.uint64)).all()


@given(st.lists(st.text(max_size=12), min_size=1, max_size=4, unique=True), st.integers(0, 3))
def test_prepared_streams_draw_what_single_ones_draw(row_ids: list[str], seed: int) -> None:
    for row_id, own in zip(row_ids, streams.prepare(row_ids, seed, [0, 3, -1]), strict=True):
        for index in (0, 3, -1, 7):  # the last one was not prepared
            wanted = numpys(row_id, seed, index)
            for found in (own.of(index), streams.Streams(row_id=row_id, seed=seed).of(index)):
                state = wanted.bit_generator.state
                assert found.integers(1000) == wanted.integers(1000) and found.random() == wanted.random()
                wanted.bit_generator.state = state


@pytest.mark.parametrize("kind", ["crops", "strength_crops", "zoom"])
def test_views_cut_alike_with_prepared_streams(kind: str) -> None:
    fe = frontends.build({"preset": "argus"})
    more = {"short": "random"} | ({"mask_bins": 12, "mask_frames": 12} if kind == "crops" else {})
    view = views.build({"kind": kind, "flip": 0.5, **more}, fe)
    rng = np.random.default_rng(1)
    for frames in (40, 300, 700):
        x = rng.standard_normal((1, 128, frames)).astype(np.float32)
        indices = [*range(view.passes), *(-1 - p for p in range(view.passes))]
        (prepared,) = streams.prepare(["a.wav"], 0, indices)
        one, two = view.plan(x, "a.wav"), view.plan(x, "a.wav", streams=prepared)
        assert (one.starts == two.starts).all() and (one.flips == two.flips).all()
        assert one.masks is None or (one.masks == two.masks).all()
        assert one.warps is None or (one.warps.moved == two.warps.moved).all()
