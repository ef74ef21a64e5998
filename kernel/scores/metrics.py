"""Scores of predictions: label-weighted label-ranking average precision (lwlrap) and accuracy.

Owns the official definitions and their edge rules. Does not read files and does not choose models.

Rank rule (lwlrap). A clip's classes are ranked by falling score; among EQUAL scores the higher class index
ranks first. That is the official code (argsort, reversed) with a stable sort; the official sort is unstable,
so there ties have no defined order.
Source: DCASE-REPO/dcase2019_task2_baseline evaluation.py.
"""
import numpy as np


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
