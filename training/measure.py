"""What out-of-fold predictions are worth: scores with confidence intervals, on all clips and on parts of
them.

Owns the bootstrap and the rules which classes can be measured. Metrics are kernel.scores.metrics, blending is
kernel.scores.blend.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kernel.scores import blend, metrics
from kernel.spec import Ensemble

from .data import Clips
from .run import Trained

Metric = Callable[[np.ndarray, np.ndarray], float]
ROUNDS = 1000  # bootstrap rounds; 2.5 % and 97.5 % quantiles need about that many


@dataclass(frozen=True, kw_only=True)
class Score:
    """A value, its 95 % interval over resampled groups, and how many clips and (clip, class) pairs it rests
    on.
    """

    value: float
    low: float
    high: float
    clips: int
    pairs: int

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.3f} to {self.high:.3f})"


def out_of_fold(ensemble: Ensemble, nets: Sequence[Trained], clips: int) -> blend.Board:
    """Board [clips, K] on which every net has the rows of its own held-out fold, NaN elsewhere."""
    board = blend.Board(clips, len(ensemble.classes))
    for net in nets:
        board.add(f"{net.member}.{net.fold}", net.hold, net.held)
    return board


def accuracy(truth: np.ndarray, scores: np.ndarray) -> float:
    """Share of clips whose best score lies at the class of the (single) label."""
    return metrics.accuracy(truth.argmax(axis=1), scores)


def measure(truth: np.ndarray, scores: np.ndarray, groups: Sequence[str], metric: Metric = metrics.lwlrap,
            seed: int = 0) -> Score:
    """Score of labelled clips; the interval resamples whole groups, since clips of one recording are not
    independent.

    Raises  ValueError when no clip has a label
    """
    labelled = truth.any(axis=1)
    truth, scores = truth[labelled], scores[labelled]
    names = np.asarray(groups)[labelled]
    members = [np.flatnonzero(names == name) for name in np.unique(names)]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(ROUNDS):
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        values.append(metric(truth[rows], scores[rows]))
    low, high = np.quantile(values, [0.025, 0.975])
    return Score(
        value=metric(truth, scores),
        low=float(low),
        high=float(high),
        clips=len(truth),
        pairs=int(truth.sum()),
    )


def measurable(clips: Clips, folds: np.ndarray) -> np.ndarray:
    """bool[K], classes with clips in at least two folds: only these were ever trained while being held
    out.
    """
    return np.array([len(set(folds[clips.targets[:, k] > 0])) > 1 for k in range(clips.targets.shape[1])])


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """lwlrap of one class over `clips` clips of `groups` groups; measured = clips in at least two folds."""

    name: str
    clips: int
    groups: int
    value: float
    measured: bool


def per_class(clips: Clips, scores: np.ndarray, folds: np.ndarray) -> list[ClassScore]:
    """One entry per class, in class order; a class without a clip has NaN."""
    values, weights = metrics.lwlrap_per_class(clips.targets, scores)
    known = measurable(clips, folds)
    out = []
    for k, name in enumerate(clips.classes):
        rows = np.flatnonzero(clips.targets[:, k] > 0)
        out.append(
            ClassScore(
                name=name,
                clips=len(rows),
                groups=len({clips.groups[i] for i in rows}),
                value=float(values[k]) if weights[k] > 0 else float("nan"),
                measured=bool(known[k]),
            )
        )
    return out
