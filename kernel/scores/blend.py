"""From the nets' probabilities to one score per row and class: folds -> members -> stackers -> ensemble.

Owns the `Board` (what every net has said so far), the means, the blend with everything that may be missing,
stacker features and neighbour smoothing. Compares and merges numbers only: it runs no net, plans nothing and
writes no file.

A row is missing in a net as a whole: one NaN in a row makes the row missing there.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import SpecError, did_you_mean
from ..spec import Ensemble, Member, Stacker

# least score: the geometric mean of an exact 0 would be 0 for the whole ensemble (reliability.md 2.3)
FLOOR = 1e-30
LOGIT_EDGE = 1e-15  # probabilities are kept this far from 0 and 1 before logit
TIE_SHARE = 1e-6  # weight of the mean probability against one vote: decides ties, never a majority

Mean = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


class Board:
    """Probabilities of every net, f32[N, K]; NaN = not yet."""

    def __init__(self, rows: int, classes: int):
        self.shape = (rows, classes)
        self._scores: dict[str, np.ndarray] = {}
        self._covered: dict[str, np.ndarray] = {}

    def add(self, net_id: str, rows: np.ndarray, probs: np.ndarray) -> None:
        """Put `probs` f[n, K] of the row numbers `rows` int[n] on the board; later values replace earlier
        ones.

        Raises  ValueError when the shapes do not fit the board
        """
        rows = np.asarray(rows, dtype=np.intp)
        if probs.shape != (len(rows), self.shape[1]):
            raise ValueError(
                f"{net_id}: scores of shape {probs.shape} for {len(rows)} rows x {self.shape[1]} classes"
            )
        if net_id not in self._scores:
            self._covered[net_id] = np.zeros(self.shape[0], bool)
            self._scores[net_id] = np.full(self.shape, np.nan, np.float32)
        self._scores[net_id][rows] = probs
        self._covered[net_id][rows] = present(np.asarray(probs))

    def load(self, net_id: str, scores: np.ndarray) -> None:
        """Put saved scores f[N, K] of a whole net on the board.

        Raises  ValueError when the shape does not fit the board
        """
        if scores.shape != self.shape:
            raise ValueError(
                f"{net_id}: saved scores of shape {scores.shape}, this run has {self.shape}; delete the file"
            )
        self._covered[net_id] = present(scores)
        self._scores[net_id] = scores.astype(np.float32)

    def get(self, net_id: str) -> np.ndarray:
        """f32[N, K] of one net, NaN where it has not said anything; read-only."""
        if net_id not in self._scores:
            return np.broadcast_to(np.float32(np.nan), self.shape)
        view = self._scores[net_id].view()
        view.flags.writeable = False
        return view

    def covered(self, net_id: str) -> np.ndarray:
        """bool[N]: rows on which the net has said something usable."""
        if net_id not in self._scores:
            return np.zeros(self.shape[0], bool)
        return self._covered[net_id].copy()


def present(scores: np.ndarray) -> np.ndarray:
    """bool[...]: rows of f[..., K] without NaN or infinity."""
    return np.isfinite(scores).all(axis=-1)


# -- means: (stack f64[n, N, K], weights f64[n], power) -> f64[N, K]; NaN where no part with weight > 0 is
# present ------------


def _shares(stack: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parts with NaN rows zeroed, and weights f64[n, N, 1] that sum to 1 over the parts present in each row
    (NaN if none).
    """
    there = present(stack)
    share = np.where(there, np.asarray(weights, np.float64)[:, None], 0.0)
    total = share.sum(axis=0)
    share /= np.where(total > 0, total, np.nan)
    return np.where(there[..., None], stack, 0.0), share[..., None]


def _arithmetic(stack: np.ndarray, weights: np.ndarray, power: float = 2.0) -> np.ndarray:
    """Plain weighted mean."""
    values, share = _shares(stack, weights)
    return (share * values).sum(axis=0)


def _geometric(stack: np.ndarray, weights: np.ndarray, power: float = 2.0) -> np.ndarray:
    """exp of the mean log; values below FLOOR count as FLOOR."""
    values, share = _shares(stack, weights)
    return np.exp((share * np.log(np.maximum(values, FLOOR))).sum(axis=0))


def _logit(stack: np.ndarray, weights: np.ndarray, power: float = 2.0) -> np.ndarray:
    """sigmoid of the mean logit."""
    values, share = _shares(stack, weights)
    p = np.clip(values, LOGIT_EDGE, 1.0 - LOGIT_EDGE)
    return 1.0 / (1.0 + np.exp(-(share * (np.log(p) - np.log1p(-p))).sum(axis=0)))


def _power(stack: np.ndarray, weights: np.ndarray, power: float = 2.0) -> np.ndarray:
    """(mean of x^power)^(1/power), power != 0; values below FLOOR count as FLOOR when the power is
    negative.
    """
    if power == 0:
        raise SpecError('mean_power: 0 has no root; write mean = "geometric", which is its limit')
    values, share = _shares(stack, weights)
    values = np.maximum(values, FLOOR if power < 0 else 0.0)
    return ((share * values**power).sum(axis=0)) ** (1.0 / power)


def _extreme(stack: np.ndarray, weights: np.ndarray, worst: float) -> np.ndarray:
    _, share = _shares(stack, weights)
    values = np.where(share > 0, stack, worst)
    best = values.max(axis=0) if worst < 0 else values.min(axis=0)
    return np.where(np.isinf(best), np.nan, best)


def _max(stack: np.ndarray, weights: np.ndarray, power: float = 2.0) -> np.ndarray:
    """Largest value; weights only leave parts out."""
    return _extreme(stack, weights, -np.inf)


def _min(stack: np.ndarray, weights: np.ndarray, power: float = 2.0) -> np.ndarray:
    """Smallest value; weights only leave parts out."""
    return _extreme(stack, weights, np.inf)


def _median(stack: np.ndarray, weights: np.ndarray, power: float = 2.0) -> np.ndarray:
    """Weighted median: where exactly half of the weight lies below, the mean of the two middle values
    (np.median for equal).
    """
    values, share = _shares(stack, weights)
    share = np.broadcast_to(share, values.shape)
    order = np.argsort(np.where(share > 0, values, np.inf), axis=0, kind="stable")
    values, share = np.take_along_axis(values, order, 0), np.take_along_axis(share, order, 0)
    below = np.cumsum(share, axis=0)
    low = np.argmax(below >= 0.5 - 1e-12, axis=0)[None]
    high = np.argmax(below > 0.5 + 1e-12, axis=0)[None]
    middle = (np.take_along_axis(values, low, 0) + np.take_along_axis(values, high, 0))[0] / 2
    return np.where(np.isnan(below[-1]), np.nan, middle)


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Per class, rank over the present rows / their number: (0, 1], ties share their mean rank, NaN rows stay
    NaN.
    """
    there = present(scores)
    out = np.full(scores.shape, np.nan)
    for k in range(scores.shape[1]):
        column = scores[there, k]
        ordered = np.sort(column)
        low, high = np.searchsorted(ordered, column, "left"), np.searchsorted(ordered, column, "right")
        out[there, k] = (low + 1 + high) / 2 / max(1, len(column))
    return out


def _rank(stack: np.ndarray, weights: np.ndarray, power: float = 2.0) -> np.ndarray:
    """Per class, each part's ranks over the rows, in (0, 1], then the arithmetic mean."""
    return _arithmetic(np.stack([_ranks(part) for part in stack]), weights)


def _rescale(scores: np.ndarray) -> np.ndarray:
    """Per class, min-max over the present rows to [0, 1]; a class that is constant there keeps its value."""
    there = present(scores)
    if not there.any():
        return scores
    low, high = scores[there].min(axis=0), scores[there].max(axis=0)
    flat = high <= low
    return np.where(flat, scores, (scores - low) / np.where(flat, 1.0, high - low))


def _minmax(stack: np.ndarray, weights: np.ndarray, power: float = 2.0) -> np.ndarray:
    """Per-class min-max over the rows, then the arithmetic mean. Source: DCASE 2019 report of Shugaev et al.
    (9th, FAT2019).
    """
    return _arithmetic(np.stack([_rescale(part) for part in stack]), weights)


def _vote(stack: np.ndarray, weights: np.ndarray, power: float = 2.0) -> np.ndarray:
    """Share of the votes: each part votes for its best class (the lowest class number among equals).

    Tie rule: classes with equally many votes are ordered by their mean probability, then by the lowest class
    number.
    """
    values, share = _shares(stack, weights)
    best = values.argmax(axis=-1)
    votes = (share * (best[..., None] == np.arange(stack.shape[-1]))).sum(axis=0)
    return (votes + TIE_SHARE * (share * values).sum(axis=0)) / (1.0 + TIE_SHARE)


MEANS: dict[str, Mean] = {
    "geometric": _geometric,
    "arithmetic": _arithmetic,
    "logit": _logit,
    "rank": _rank,
    "power": _power,
    "min": _min,
    "max": _max,
    "median": _median,
    "minmax": _minmax,
    "vote": _vote,
}


def mean(name: str, stack: np.ndarray, weights: Sequence[float] = (), power: float = 2.0) -> np.ndarray:
    """f64[N, K] mean `name` over the parts f[n, N, K]; per row, weights are renormalised over the parts that
    are present.

    weights  one per part, empty = all alike; parts of weight 0 do not count
    Returns NaN in rows where no part counts.
    Raises   SpecError for an unknown mean or a wrong number of weights
    """
    if name not in MEANS:
        raise SpecError(f"mean: {name!r} is unknown; {did_you_mean(name, MEANS)}")
    if weights and len(weights) != len(stack):
        raise SpecError(f"mean: {len(weights)} weights for {len(stack)} parts; give one each")
    chosen = np.asarray(weights if weights else np.ones(len(stack)), np.float64)
    if (chosen < 0).any():
        raise SpecError(f"mean: weights {list(weights)} hold a negative one; use 0 to leave a part out")
    return MEANS[name](np.asarray(stack, np.float64), chosen, power)


# -- the ensemble
# -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Blend:
    """What the submission is written from.

    values      f64[N, K], finite, in [1e-30, 1]
    parts       int[N]: members and stackers that went into each row
    full        bool[N]: every net of every part with weight > 0 went into the row
    prior_rows  bool[N]: rows without any part; they hold the prior
    """

    values: np.ndarray
    parts: np.ndarray
    full: np.ndarray
    prior_rows: np.ndarray


def net_ids(part: Member | Stacker) -> list[str]:
    return [f"{part.name}.{fold}" for fold in part.folds]


def merge_folds(part: Member | Stacker, board: Board) -> np.ndarray:
    """f64[N, K] mean over the folds that are present in each row; NaN rows where none is."""
    if len(part.folds) == 1:
        return board.get(net_ids(part)[0]).astype(np.float64)
    stack = np.stack([board.get(net_id) for net_id in net_ids(part)])
    return mean(part.fold_mean, stack, getattr(part, "fold_weights", ()))


def _all(masks: Iterable[np.ndarray]) -> np.ndarray:
    """bool[N]: rows that are True in every mask bool[N]."""
    return np.asarray(np.logical_and.reduce(list(masks)))


def complete_rows(part: Member | Stacker, board: Board) -> np.ndarray:
    """bool[N]: rows that every fold of the part covers."""
    return _all(board.covered(net_id) for net_id in net_ids(part))


def blend(
    ensemble: Ensemble, board: Board, prior: np.ndarray, finished: Collection[str] | None = None
) -> Blend:
    """The ensemble's scores from whatever is on the board.

    Weighted mean over members and stackers, renormalised in each row over those that are present. Two
    fallbacks:
    - a row that has no part with weight > 0 takes the present members equally (an ensemble whose stackers
    decide
      and whose members have weight 0, before the stackers have run);
    - a row that has no part at all takes `prior` f[K].
    With `row_independent = false` a part counts only when it is complete: all its nets are in `finished` (net
    ids), or, without that list, cover every row that any net covers. While no part is complete, what is there
    counts as it is.
    """
    parts: list[Member | Stacker] = [*ensemble.members, *ensemble.stackers]
    merged = np.stack([merge_folds(part, board) for part in parts])
    if not ensemble.row_independent:
        keep = [_is_complete(part, board, finished, parts) for part in parts]
        if any(keep):
            merged[[not k for k in keep]] = np.nan
    weights = [part.weight for part in parts]
    there = present(merged)
    counted = there & (np.asarray(weights) > 0)[:, None]
    values = mean(ensemble.mean, merged, weights, ensemble.mean_power)
    lone = np.asarray(~counted.any(axis=0) & there.any(axis=0))
    if lone.any():
        members = np.array([1.0 if isinstance(part, Member) else 0.0 for part in parts])
        values = np.where(
            lone[:, None], mean(ensemble.mean, merged, list(members), ensemble.mean_power), values
        )
    prior_rows = ~present(values)
    values = np.where(prior_rows[:, None], np.asarray(prior, np.float64)[None], values)
    deciding = [part for part in parts if part.weight > 0] or parts
    used = np.where(lone, there[:len(ensemble.members)].sum(axis=0), counted.sum(axis=0))
    full = _all(complete_rows(part, board) for part in deciding) & ~prior_rows & ~lone
    return Blend(
        values=np.clip(values, FLOOR, 1.0),
        parts=np.where(prior_rows, 0, used),
        full=full,
        prior_rows=prior_rows,
    )


def _is_complete(part: Member | Stacker, board: Board, finished: Collection[str] | None,
                 parts: Iterable[Member | Stacker]) -> bool:
    if finished is not None:
        return all(net_id in finished for net_id in net_ids(part))
    seen = ~_all(~board.covered(net_id) for p in parts for net_id in net_ids(p))
    return bool(seen.any() and not (seen & ~complete_rows(part, board)).any())


def _inputs(stacker: Stacker, ensemble: Ensemble) -> list[Member]:
    by_name = {member.name: member for member in ensemble.members}
    return [by_name[name] for name in stacker.inputs]


def stacker_rows(stacker: Stacker, ensemble: Ensemble, board: Board) -> np.ndarray:
    """int[n]: row numbers on which every fold of every input has spoken."""
    return np.flatnonzero(_all(complete_rows(member, board) for member in _inputs(stacker, ensemble)))


def stacker_features(stacker: Stacker, ensemble: Ensemble, board: Board) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers whose inputs are complete, and the stacker's input for them.

    Returns  rows int[n]; "concat": f32[n, inputs * K] in the order of stacker.inputs (argus);
             "per_class": f32[n, K, inputs] and, when average_weights are given, their weighted average last
             (qrfaction)
    """
    inputs, rows = _inputs(stacker, ensemble), stacker_rows(stacker, ensemble, board)
    stack = np.stack([merge_folds(member, board)[rows] for member in inputs])
    if stacker.features == "concat":
        return rows, stack.transpose(1, 0, 2).reshape(len(rows), len(inputs) * board.shape[1]).astype(
            np.float32
        )
    if stacker.average_weights:
        stack = np.concatenate([stack, mean("arithmetic", stack, stacker.average_weights)[None]])
    return rows, np.ascontiguousarray(stack.transpose(1, 2, 0), dtype=np.float32)


def smooth(values: np.ndarray, rows_by_clip: Iterable[Sequence[int]], kernel: Sequence[float]) -> np.ndarray:
    """f64[N, K] with each row mixed with its neighbours in the same recording; at its ends the kernel is
    renormalised.

    rows_by_clip  row numbers of each recording in time order
    kernel        odd number of weights >= 0, the middle one (> 0) for the row itself
    """
    weights = np.asarray(kernel, np.float64)
    if len(weights) % 2 == 0 or (weights < 0).any() or weights[len(weights) // 2] <= 0:
        raise SpecError(
            f"output.smoothing: {list(kernel)}; give an odd number of weights >= 0 with a positive middle one"
        )
    reach = len(weights) // 2
    out = np.array(values, np.float64)
    for rows in rows_by_clip:
        index = np.asarray(rows, np.intp)
        total = np.zeros((len(index), values.shape[1]))
        mass = np.zeros(len(index))
        for shift in range(-reach, reach + 1):
            here = np.arange(max(0, -shift), min(len(index), len(index) - shift))
            total[here] += weights[shift + reach] * values[index[here + shift]]
            mass[here] += weights[shift + reach]
        out[index] = total / mass[:, None]
    return out
