"""Where in time a net's answer comes from: passes, frames, pieces; and the bins that a page shows."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kernel import models, spec
from kernel.inference import moments
from kernel.inference.member import LoadedNet, load_plain, predict_alone
from kernel.inference.recipe import build_recipe
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from kernel.sound.source import Source

CLASSES = ("bark", "meow", "hiss")
RATE = 44_100


class Front:
    """A store that computes: noise that is loud in the third second alone."""

    def __init__(self, seconds: float) -> None:
        wave = 0.001 * np.random.default_rng(0).standard_normal(int(seconds * RATE))
        wave[2 * RATE : 3 * RATE] *= 300
        self._wave = wave.astype(np.float32)

    def get(self, fe: Source, row: Row) -> np.ndarray:
        start, stop = row.start or 0, row.stop or len(self._wave)
        return fe.of_row(self._wave[max(0, start - row.before) : stop + row.after], row.id)


def row_of(seconds: float, **more: int) -> Row:
    return Row(id="a", clip=Clip(id="a", rate=RATE, samples_claimed=int(seconds * RATE)), **more)


def loaded(
    fe: dict[str, Any] | None = None, windows: dict[str, float] | None = None, **more: Any
) -> LoadedNet:
    member = {"name": "net", "family": "simple_cnn", "params": {"base": 4, "channels": 1}, "frontend": "fe"}
    made = spec.check(spec.load(spec.Ensemble, {
        "name": "mine", "classes": CLASSES,
        "frontends": {"fe": {"preset": "argus", "trim_db": "none", **(fe or {})}},
        "members": [member | more], **({"windows": windows} if windows else {})}))
    first = made.members[0]
    torch.manual_seed(0)
    state = models.build(first.family, first.params, len(CLASSES)).state_dict()
    return load_plain(build_recipe(made, first), state, len(CLASSES))


def find(net: LoadedNet, seconds: float, row: Row | None = None) -> moments.Moments:
    found = moments.find_moments(net, Front(seconds), row or row_of(seconds))
    assert found is not None
    return found


def test_passes_are_the_ones_that_were_scored() -> None:
    net = loaded(view={"kind": "tiles", "frames": 128, "step": 64})
    found = find(net, 5.0)
    assert found.kind == "passes" and np.allclose(np.diff(found.spans_s), 128 * 690 / RATE)
    assert np.allclose(np.diff(found.spans_s[:, 0]), 64 * 690 / RATE)
    assert found.spans_s[0, 0] <= 0 and found.spans_s[-1, 1] >= 5.0
    merged = predict_alone(net, Front(5.0), row_of(5.0))
    assert np.allclose(found.scores.mean(axis=0), merged, atol=1e-6), "their mean is the row's score"


def test_a_net_that_hears_all_at_once_is_asked_for_pieces() -> None:
    found = find(loaded(), 10.0)
    assert found.kind == "pieces" and len(found.scores) == 8
    loud = found.scores[(found.spans_s[:, 0] < 2.9) & (found.spans_s[:, 1] > 2.1)]
    quiet = found.scores[found.spans_s[:, 0] > 4]
    assert np.abs(loud - quiet.mean(axis=0)).max() > 3 * np.abs(quiet - quiet.mean(axis=0)).max()
    short = find(loaded(), 3.0)
    assert len(short.scores) == 3, "pieces of a second at least"


def test_a_net_of_one_fixed_pass_hears_one_part() -> None:
    net = loaded(view={"kind": "crops", "frames": 256, "passes": 1})
    assert moments.find_moments(net, Front(5.0), row_of(5.0)) is None


def test_a_wave_that_is_cut_first_has_its_passes_too() -> None:
    net = loaded(view={"kind": "chunks", "frames": RATE, "passes": 3, "domain": "wave"})
    assert np.allclose(find(net, 5.0).spans_s, [[0, 1], [2, 3], [4, 5]])


def test_frames_of_a_window_begin_before_the_row() -> None:
    """A net of frames hears its context: the row begins inside."""
    net = loaded(frames="average", windows={"seconds": 2.0, "context_seconds": 4.0})
    net.runner.run = lambda inputs, frames: torch.linspace(-4, 4, 12)[None, :, None].expand(1, 12, 3)
    row = row_of(5.0, start=RATE, stop=3 * RATE, before=RATE, after=RATE)
    found = moments.find_moments(net, Front(5.0), row)
    assert found is not None and found.kind == "frames"
    assert np.allclose([found.spans_s[0, 0], found.spans_s[-1, 1]], [-1, 3])
    bins = found.in_bins(2.0, 4)
    assert np.allclose(bins[:, 0], 1 / (1 + np.exp(-np.linspace(-4, 4, 12)[[3, 5, 6, 8]])), atol=0.2)
    assert (np.diff(bins[:, 0]) > 0).all()


def test_a_detector_tells_its_frames() -> None:
    """As family `sed` does: frame-wise probabilities beside the clip's own."""
    net = loaded(view={"kind": "crops", "frames": 256, "passes": 1}, activation="none")
    frames = torch.linspace(0, 1, 8).expand(1, 3, 8)
    net.module.clip_and_frames = lambda x: (frames.mean(-1), frames)
    found = find(net, 4.0)
    assert found.kind == "frames" and np.allclose(found.scores, np.linspace(0, 1, 8)[:, None])
    assert np.allclose(found.spans_s[:, 0], np.arange(8) / 2)


def test_bins_are_means_of_what_covers_them() -> None:
    spans = np.array([[0.0, 2.0], [1.0, 3.0]])
    made = moments.Moments(kind="passes", spans_s=spans, scores=np.array([[0.2], [0.4]]))
    bins = made.in_bins(4.0, 4)[:, 0]
    assert np.allclose(bins[:3], [0.2, 0.3, 0.4]) and np.isnan(bins[3])


@pytest.mark.parametrize(
    "fe, aligned", [({}, True), ({"trim_db": 60.0}, True), ({"preset": "osciiart_pad8"}, False)]
)
def test_what_was_laid_out_anew_does_not_keep_time(fe: dict[str, Any], aligned: bool) -> None:
    assert moments.keeps_time(loaded(fe).recipe) is aligned


def test_seconds_of_a_trimmed_clip_are_found_again() -> None:
    """Silence, a second of noise, silence: its array begins where the noise does."""
    wave = np.zeros(4 * RATE, np.float32)
    wave[2 * RATE : 3 * RATE] = np.random.default_rng(0).standard_normal(RATE)
    asked = []

    def at(rate: int) -> np.ndarray:
        asked.append(rate)
        return wave

    assert moments.trimmed_seconds(loaded().recipe, at) == 0.0 and asked == [], "nothing is cut, none read"
    begin = moments.trimmed_seconds(loaded({"trim_db": 60.0}).recipe, at)
    assert asked == [RATE] and 1.9 < begin <= 2.0
    made = moments.Moments(kind="passes", spans_s=np.array([[0.0, 1.0]]), scores=np.array([[0.5]]))
    heard = np.isfinite(made.in_bins(4.0, 8, begin)[:, 0])
    assert heard.tolist() == [False] * 4 + [True] * 2 + [False] * 2
