"""What out-of-fold predictions are worth: scores with confidence intervals.

Owns the bootstrap, the board of out-of-fold scores and the rule which classes can be measured. Has no metric
and no mean of its own (kernel.scores).
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from kernel.errors import HourglassError
from kernel.scores import blend, levels, metrics
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from kernel.spec import Ensemble, net_ids

from .cross_validation import Trained
from .data import Clips

Metric = Callable[[np.ndarray, np.ndarray], float]
ROUNDS = 1000  # Bootstrap rounds; the quantiles at 2.5 % and 97.5 % need about that many.


@dataclass(frozen=True, kw_only=True)
class Score:
    """A value, its 95 % interval over resampled groups, and the clips and (clip, class) pairs behind it."""

    value: float
    low: float
    high: float
    clips: int
    pairs: int

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.3f} to {self.high:.3f})"


def out_of_fold(ensemble: Ensemble, nets: Sequence[Trained], clips: int) -> blend.Board:
    """Board [clips, K] on which every net has the rows of its own held-out fold, NaN elsewhere."""
    board = blend.open_board(ensemble, clips)
    for net in nets:
        board.add(f"{net.member}.{net.fold}", net.hold, net.held)
    return board


def blend_board(ensemble: Ensemble, board: blend.Board) -> np.ndarray:
    """f64[N, K] probabilities of the ensemble, NaN rows where no net scored the clip.

    Steps on scores see each clip as a recording of one row.
    Raises  HourglassError where a step fails
    """
    classes = len(ensemble.classes)
    rows = [Row(id=str(i), clip=Clip(id=str(i))) for i in range(board.shape[0])]
    every = [net_id for part in ensemble.parts for net_id in net_ids(part)]
    whole = levels.open_levels(ensemble, rows, _refuse).blend(board, np.full(classes, 1 / classes), every)
    return np.where(whole.prior_rows[:, None], np.nan, whole.values)


def _refuse(where: str, error: HourglassError) -> NoReturn:
    raise error


def accuracy(truth: np.ndarray, scores: np.ndarray) -> float:
    """Share of clips whose best score lies at the class of the (single) label."""
    return metrics.accuracy(truth.argmax(axis=1), scores)


def measure(truth: np.ndarray, scores: np.ndarray, groups: Sequence[str], metric: Metric = metrics.lwlrap,
            seed: int = 0) -> Score:
    """Score of the labelled clips; to a metric that counts negatives, of all.

    The interval resamples whole groups, since clips of one recording are not independent.
    Raises  ValueError when no clip has a label
    """
    negatives = metric in [metrics.METRICS[name] for name in metrics.COUNTING_NEGATIVES]
    labelled = np.ones(len(truth), bool) if negatives else truth.any(axis=1)
    truth = truth[labelled]
    scores = scores[labelled]
    names = np.asarray(groups)[labelled]
    members = [np.flatnonzero(names == name) for name in np.unique(names)]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(ROUNDS):
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if truth[rows].any():
            values.append(metric(truth[rows], scores[rows]))
    low, high = np.nanquantile(values, [0.025, 0.975])  # a metric may be undefined on some draws
    return Score(value=metric(truth, scores), low=float(low), high=float(high), clips=len(truth),
                 pairs=int(truth.sum()))


def gain(truth: np.ndarray, first: np.ndarray, second: np.ndarray, groups: Sequence[str],
         metric: Metric = metrics.lwlrap) -> Score:
    """How far the scores `second` lie above `first` on the labelled clips that both have, with its interval.

    Both are resampled together, so that what makes a clip hard for both leaves the interval.
    Raises  ValueError when no clip has a label
    """
    both = np.concatenate([first, second], axis=1)
    rows = np.isfinite(both).all(axis=1)
    classes = first.shape[1]

    def differ(labels: np.ndarray, scores: np.ndarray) -> float:
        return metric(labels, scores[:, classes:]) - metric(labels, scores[:, :classes])

    return measure(truth[rows], both[rows], np.asarray(groups)[rows].tolist(), differ)


def measurable(clips: Clips, folds: np.ndarray) -> np.ndarray:
    """bool[K], classes with clips in at least two folds: no other was ever both trained and held out."""
    return np.array([len(set(folds[clips.targets[:, k] > 0])) > 1 for k in range(clips.targets.shape[1])])
