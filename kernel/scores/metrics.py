"""Scores of predictions: label-weighted label-ranking average precision (lwlrap), macro ROC-AUC, padded cMAP
and accuracy.

Owns the official definitions, their edge rules and the table `METRICS`. Does not read files and does not
choose models.

Rank rule (lwlrap). A clip's classes are ranked by falling score; among EQUAL scores the higher class index
ranks first. That is the official code (argsort, reversed) with a stable sort; the official sort is unstable,
so there ties have no defined order.
Source: DCASE-REPO/dcase2019_task2_baseline evaluation.py.
"""
from collections.abc import Callable

import numpy as np

from .means import ranks_of_column

PADDING_ROWS = 5  # of padded cMAP: rows in which every class is true and found


def _checked(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth = np.asarray(truth) > 0
    scores = np.asarray(scores, np.float64)
    if truth.ndim != 2 or truth.shape != scores.shape:
        raise ValueError(
            f"truth {truth.shape} and scores {scores.shape}: give two arrays of one shape [clips, classes]"
        )
    if np.isnan(scores).any():
        raise ValueError(
            f"scores: NaN in row {int(np.isnan(scores).any(axis=1).argmax())}; NaN has no rank, fill it first"
        )
    return truth, scores


def _precisions(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """f64[N, K]: at every true class the share of true classes among those ranked at or above it; 0
    elsewhere.
    """
    order = np.argsort(scores, axis=1, kind="stable")[:, ::-1]
    hits = np.take_along_axis(truth, order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, truth.shape[1] + 1) * hits
    out = np.empty_like(precision)
    np.put_along_axis(out, order, precision, axis=1)
    return out


def lwlrap(truth: np.ndarray, scores: np.ndarray) -> float:
    """lwlrap in 0..1: the mean precision over all (clip, true class) pairs.

    truth   [N, K], true where > 0; clips without a true class are skipped
    scores  [N, K], any order-preserving scale, no NaN
    Raises  ValueError on shapes, NaN, or no true class at all
    """
    truth, scores = _checked(truth, scores)
    if not truth.any():
        raise ValueError("truth: no true class in any clip; lwlrap is undefined (0/0)")
    return float(_precisions(truth, scores).sum() / truth.sum())


def lwlrap_per_class(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(lwlrap f64[K], weight f64[K]) of every class; their product sums to `lwlrap`. A class that is never
    true has 0 and 0.

    Raises  ValueError as `lwlrap`
    """
    truth, scores = _checked(truth, scores)
    counts = truth.sum(axis=0)
    if not counts.any():
        raise ValueError("truth: no true class in any clip; lwlrap is undefined (0/0)")
    return _precisions(truth, scores).sum(axis=0) / np.maximum(1, counts), counts / counts.sum()


def macro_auc_per_class(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """f64[K]: of each class the area under the ROC curve, 0..1: the share of its (positive, negative) pairs
    of rows in the right order, ties counting half; NaN where it has no positive, or no negative.

    Raises  ValueError on shapes or NaN
    """
    truth, scores = _checked(truth, scores)
    positives = truth.sum(axis=0)
    pairs = positives * (len(truth) - positives)
    order = np.stack([ranks_of_column(column) for column in scores.T], axis=1) * len(truth)
    above = np.where(truth, order, 0.0).sum(axis=0) - positives * (positives + 1) / 2
    return np.asarray(np.where(pairs > 0, above / np.maximum(1, pairs), np.nan))


def macro_auc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Mean of `macro_auc_per_class` over the classes that have a positive, as BirdCLEF has scored since 2024.

    NaN where a class is true in every row: its area is undefined, and the official score, too.
    Source: VSydorskyy/BirdCLEF_2025_2nd_place code_base/utils/metrics.py 5, 26; scikit-learn 1.9.

    truth   [N, K], true where > 0
    scores  [N, K], any order-preserving scale, no NaN
    Raises  ValueError on shapes, NaN, or no true class at all
    """
    held = (np.asarray(truth) > 0).any(axis=0)
    if not held.any():
        raise ValueError("truth: no true class in any row; macro ROC-AUC is undefined")
    return float(macro_auc_per_class(truth, scores)[held].mean())


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Average precision of one class, 0..1: the precision at each distinct score, weighted by the share of
    the positives found there; equal scores are found together.

    truth bool[N] with a positive, scores f[N]. Source: scikit-learn's average_precision_score.
    """
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(truth[order])
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of each distinct score
    precision = found[last] / (last + 1)
    return float((np.diff(found[last], prepend=0) * precision).sum() / found[-1])


def padded_cmap(truth: np.ndarray, scores: np.ndarray) -> float:
    """Macro average precision after five rows in which every class is true and has the score 1, as BirdCLEF
    2023 scored: classes without a positive count, and few positives weigh less.

    Source: evaluation page of kaggle.com/competitions/birdclef-2023.

    truth   [N, K], true where > 0;  scores [N, K] in 0..1, no NaN
    Raises  ValueError on shapes, NaN or scores outside 0..1
    """
    truth, scores = _checked(truth, scores)
    if scores.size and not (scores.min() >= 0.0 and scores.max() <= 1.0):
        raise ValueError(f"scores: {scores.min():g} to {scores.max():g}; padded cMAP wants 0..1")
    pad = np.ones((PADDING_ROWS, truth.shape[1]))
    truth, scores = np.concatenate([truth, pad > 0]), np.concatenate([scores, pad])
    return float(np.mean([average_precision(truth[:, k], scores[:, k]) for k in range(truth.shape[1])]))


def accuracy(labels: np.ndarray, scores: np.ndarray) -> float:
    """Share of rows in 0..1 whose largest score lies at the label; among equal scores the lower class index
    counts.

    labels  int[N] class indices; scores [N, K], no NaN
    Raises  ValueError on shapes, NaN or no rows
    """
    labels = np.asarray(labels)
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or len(labels) == 0:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape}: give [N] and [N, K] with N >= 1")
    if np.isnan(scores).any():
        raise ValueError(f"scores: NaN in row {int(np.isnan(scores).any(axis=1).argmax())}; fill it first")
    return float((scores.argmax(axis=1) == labels).mean())


# Of a table of truth [N, K] and scores f[N, K]; larger is better.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "lwlrap": lwlrap,
    "macro_auc": macro_auc,
    "padded_cmap": padded_cmap,
}
# To these, a row without any true class is a negative of every class; to the others it says nothing.
COUNTING_NEGATIVES = ("macro_auc", "padded_cmap")
