"""Where in time a net's answer for one row comes from: what it says of each part of the row.

Owns the parts: the passes of the view where it makes several, the frames where the net gives them, else
pieces that the net hears alone. For a few rows beside a run. Does not score rows (member) or draw (report).
"""
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..sound.frontends import FrontEnd
from ..sound.rows import Row
from ..sound.scopes import OfRecording
from ..sound.waves import trim_bounds
from . import views
from .member import Arrays, LoadedNet, row_inputs, tiled
from .recipe import PASSES_PER_BATCH, CutFirst, Recipe

# A row that a net hears as a whole: at most so many pieces, of so many seconds at least; our choice
PIECES, PIECE_S = 8, 1.0
PASSES = "passes"
FRAMES = "frames"
ALONE = "pieces"


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What a net says of parts of a row.

    kind      "passes": as it was scored; "frames": one score per frame; "pieces": each heard alone
    spans_s   f64[P, 2], begin and end of each part, in seconds from the row's first sample; a part may reach
              beyond the row
    scores    f64[P, K] probabilities
    """

    kind: str
    spans_s: np.ndarray
    scores: np.ndarray

    def in_bins(self, seconds: float, count: int, begin_s: float = 0.0) -> np.ndarray:
        """f64[count, K]: mean score of the parts over each of `count` equal bins of the row; NaN: none.

        begin_s  where the spans' second 0 lies in the row
        """
        centres = (np.arange(count)[:, None] + 0.5) * seconds / count - begin_s
        over = (self.spans_s[:, 0] <= centres) & (centres < self.spans_s[:, 1])
        held = over.sum(axis=1, keepdims=True)
        sums = over.astype(np.float64) @ self.scores
        return np.divide(sums, held, out=np.full_like(sums, np.nan), where=held > 0)


def row_seconds(row: Row) -> float:
    """Length of the row itself, without what a net hears around it, as the clip's header claims."""
    samples = row.window or row.clip.samples_claimed
    return samples / max(1, row.clip.rate)


def keeps_time(recipe: Recipe) -> bool:
    """True where the stored array's frames follow the clip's own time: it was not laid out anew."""
    fe = recipe.stages[recipe.timed].source
    return not isinstance(fe, FrontEnd) or fe.layout == "plain"


def trimmed_seconds(recipe: Recipe, wave: Callable[[int], np.ndarray]) -> float:
    """Seconds of silence that the front end cuts from the beginning of a clip.

    wave  gives its samples f32[S] at a rate in Hz; asked only where ends are cut
    """
    fe = recipe.stages[recipe.timed].source
    if not isinstance(fe, FrontEnd) or fe.trim_db is None:
        return 0.0
    return trim_bounds(wave(fe.rate), fe.trim_db, edges=fe.trim_edges)[0] / fe.rate


def find_moments(net: LoadedNet, store: Arrays, row: Row) -> Moments | None:
    """What the net says of each part of the row; None where it hears the row as one part.

    Where the front end cuts silent ends, seconds count from what is left: see `trimmed_seconds`.

    Raises  ClipError, and whatever the net's own code raises
    """
    recipe = net.recipe
    if recipe.member.frames is not None:
        return _of_frames(net, _activated(net, net.runner(row_inputs(net, store, row))[0]), row)
    kind = PASSES
    inputs = row_inputs(net, store, row)
    if _count(inputs) == 1:
        frame_wise = getattr(net.module, "clip_and_frames", None)
        if frame_wise is not None:
            with torch.inference_mode():
                return _of_frames(net, frame_wise(inputs["x"])[1][0].T.double().numpy(), row)
        stored = store.get(recipe.stages[recipe.timed].fe, row).shape[-1]
        share = max(1 / PIECES, min(1 / 2, PIECE_S / max(1e-9, _heard(recipe, row)[1])))
        frames = max(net.intake.least, math.ceil(stored * share))
        if recipe.view.fixed is not None or frames >= stored:
            return None
        kind = ALONE
        net = tiled(net, frames)
        inputs = row_inputs(net, store, row)
    passes = _count(inputs)
    answers = [net.runner({name: value[at:at + PASSES_PER_BATCH] for name, value in inputs.items()})
               for at in range(0, passes, PASSES_PER_BATCH)]
    spans = _pass_spans(net.recipe, store, row)
    if spans is None or len(spans) != passes:
        return None
    return Moments(kind=kind, spans_s=spans, scores=_activated(net, np.concatenate(answers)))


def _count(inputs: dict[str, torch.Tensor]) -> int:
    return int(next(iter(inputs.values())).shape[0])


def _activated(net: LoadedNet, answers: np.ndarray) -> np.ndarray:
    """f64[P, K] probabilities in the ensemble's order."""
    return net.recipe.in_order(np.asarray(net.activate(np.asarray(answers, np.float64)), np.float64))


def _of_frames(net: LoadedNet, scores: np.ndarray, row: Row) -> Moments:
    """Equal frames over all that the net hears."""
    before, heard = _heard(net.recipe, row)
    edges = -before + heard * np.arange(len(scores) + 1) / len(scores)
    return Moments(kind=FRAMES, spans_s=np.stack([edges[:-1], edges[1:]], axis=1), scores=scores)


def _heard(recipe: Recipe, row: Row) -> tuple[float, float]:
    """Seconds before the row that its stored array holds, and seconds of that array."""
    rate = max(1, row.clip.rate)
    fe = recipe.stages[recipe.timed].fe
    if isinstance(fe, OfRecording) and row.window:
        before = fe.fe.context_frames * fe.fe.hop / fe.rate
        return before, row_seconds(row) + 2 * before
    return row.before / rate, row.heard / rate


def _pass_spans(recipe: Recipe, store: Arrays, row: Row) -> np.ndarray | None:
    """f64[P, 2] of the view's passes, in seconds; None where they cannot be told without the wave."""
    stage = recipe.stages[recipe.timed]
    before, heard = _heard(recipe, row)
    if isinstance(stage.fe, CutFirst):
        if isinstance(stage.fe.view, views.StrengthCrops):
            return None
        array = np.broadcast_to(np.float32(0), (1, 1, max(1, round(heard * stage.fe.rate))))
        cuts = stage.fe.view.plan(array, row.id)
        frame_s = 1 / stage.fe.rate
    else:
        array = store.get(stage.fe, row)
        cuts = stage.view.plan(array, row.id)
        frame_s = _frame_seconds(stage.fe) or heard / array.shape[-1]
    starts = cuts.starts * frame_s - before
    return np.stack([starts, starts + cuts.length * frame_s], axis=1)


def _frame_seconds(fe: object) -> float | None:
    """Seconds from frame to frame; None where only the array's length tells."""
    if not isinstance(fe, FrontEnd) or fe.fixed is not None or fe.layout != "plain":
        return None
    return (1 if fe.spectrum == "wave" else fe.hop) / fe.rate
