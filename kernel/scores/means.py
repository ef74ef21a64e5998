"""The means: several parts' scores become one, row by row, whatever is missing.

Owns the table `MEANS` and its functions. Each takes the parts f64[n, N, K] (NaN rows are missing), their
weights f64[n], or f64[n, K] where they depend on the class, and a power, and gives f64[N, K], with NaN where
no part with a weight above 0 is present: in the whole row, or in the class. Knows neither nets nor ensembles.
"""
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import SpecError, did_you_mean
from ..spec import LEAST_PROBABILITY

LOGIT_EDGE = 1e-15  # probabilities are kept this far from 0 and 1 before logit
TIE_SHARE = 1e-6  # weight of the mean probability against one vote: decides ties, never a majority
ROUNDING = 1e-12  # of the median: weights that sum to half but for rounding are half


def present(scores: np.ndarray) -> np.ndarray:
    """bool[...]: rows of f[..., K] without NaN or infinity."""
    return np.isfinite(scores).all(axis=-1)


def mean(
    name: str, stack: np.ndarray, weights: Sequence[float] | np.ndarray = (), power: float = 2.0
) -> np.ndarray:
    """f64[N, K] mean `name` over the parts f[n, N, K]; in each row the weights of the parts present sum to 1.

    weights  one per part, or f[n, K] one per part and class; empty = all alike; weight 0 does not count
    Returns NaN in rows, or classes of rows, where no part counts.
    Raises   SpecError for an unknown mean or a wrong number of weights
    """
    if name not in MEANS:
        raise SpecError(f"mean: {name!r} is unknown; {did_you_mean(name, MEANS)}")
    if len(weights) and len(weights) != len(stack):
        raise SpecError(f"mean: {len(weights)} weights for {len(stack)} parts; give one each")
    chosen = np.asarray(weights if len(weights) else np.ones(len(stack)), np.float64)
    if chosen.ndim == 2 and chosen.shape[1] != np.shape(stack)[2]:
        raise SpecError(f"mean: weights for {chosen.shape[1]} of {np.shape(stack)[2]} classes; give one each")
    if not (np.isfinite(chosen) & (chosen >= 0)).all():
        raise SpecError(
            f"mean: weights {chosen.tolist()} hold a negative one, or none; use 0 to leave a part out"
        )
    return MEANS[name](np.asarray(stack, np.float64), chosen, power)


def _shares(stack: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parts with NaN rows zeroed, and weights f64[n, N, 1], or f64[n, N, K] where they depend on the class,
    that sum to 1 over the parts present in each row (NaN if none).
    """
    there = present(stack)
    if weights.ndim == 2:
        shares = np.where(there[..., None], weights[:, None, :], 0.0)
        total = shares.sum(axis=0)
        shares /= np.where(total > 0, total, np.nan)
        return np.where(there[..., None], stack, 0.0), shares
    share = np.where(there, np.asarray(weights, np.float64)[:, None], 0.0)
    total = share.sum(axis=0)
    share /= np.where(total > 0, total, np.nan)
    return np.where(there[..., None], stack, 0.0), share[..., None]


def _arithmetic(stack: np.ndarray, weights: np.ndarray, power: float) -> np.ndarray:
    """Plain weighted mean."""
    values, share = _shares(stack, weights)
    return (share * values).sum(axis=0)


def _geometric(stack: np.ndarray, weights: np.ndarray, power: float) -> np.ndarray:
    """exp of the mean log; values below 1e-30 count as that. The default."""
    values, share = _shares(stack, weights)
    return np.exp((share * np.log(np.maximum(values, LEAST_PROBABILITY))).sum(axis=0))


def _logit(stack: np.ndarray, weights: np.ndarray, power: float) -> np.ndarray:
    """sigmoid of the mean logit."""
    values, share = _shares(stack, weights)
    p = np.clip(values, LOGIT_EDGE, 1.0 - LOGIT_EDGE)
    return 1.0 / (1.0 + np.exp(-(share * (np.log(p) - np.log1p(-p))).sum(axis=0)))


def _power(stack: np.ndarray, weights: np.ndarray, power: float) -> np.ndarray:
    """(mean of x^power)^(1/power), power != 0; values below 1e-30 count as that when the power is
    negative.

    Computed relative to the value that decides at a large power: nothing overflows, and no sum becomes 0.
    """
    values, share = _shares(stack, weights)
    values = np.maximum(values, LEAST_PROBABILITY if power < 0 else 0.0)
    decides = (_max if power > 0 else _min)(stack, weights, power)
    decides = np.maximum(decides, LEAST_PROBABILITY)
    ratios = np.where(share > 0, values / decides, 1.0)
    return decides * (share * ratios**power).sum(axis=0) ** (1.0 / power)


def _max(stack: np.ndarray, weights: np.ndarray, power: float) -> np.ndarray:
    """Largest value; weights only leave parts out."""
    return -_min(-stack, weights, power)


def _min(stack: np.ndarray, weights: np.ndarray, power: float) -> np.ndarray:
    """Smallest value; weights only leave parts out."""
    _, share = _shares(stack, weights)
    smallest = np.where(share > 0, stack, np.inf).min(axis=0)
    return np.where(np.isinf(smallest), np.nan, smallest)


def _median(stack: np.ndarray, weights: np.ndarray, power: float) -> np.ndarray:
    """Weighted median: where exactly half of the weight lies below, the mean of the two middle values
    (np.median for equal).
    """
    values, share = _shares(stack, weights)
    share = np.broadcast_to(share, values.shape)
    order = np.argsort(np.where(share > 0, values, np.inf), axis=0, kind="stable")
    values = np.take_along_axis(values, order, 0)
    below = np.cumsum(np.take_along_axis(share, order, 0), axis=0)
    low = np.argmax(below >= 0.5 - ROUNDING, axis=0)[None]
    high = np.argmax(below > 0.5 + ROUNDING, axis=0)[None]
    middle = (np.take_along_axis(values, low, 0) + np.take_along_axis(values, high, 0))[0] / 2
    return np.where(np.isnan(below[-1]), np.nan, middle)


def _rank(stack: np.ndarray, weights: np.ndarray, power: float) -> np.ndarray:
    """Per class, each part's ranks over the rows, in (0, 1], then the arithmetic mean."""
    return _arithmetic(np.stack([_ranks(part) for part in stack]), weights, power)


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Per class, rank over the present rows / their number: (0, 1], ties share their mean rank, NaN rows stay
    NaN.
    """
    there = present(scores)
    out = np.full(scores.shape, np.nan)
    for k in range(scores.shape[1]):
        out[there, k] = ranks_of_column(scores[there, k])
    return out


def ranks_of_column(column: np.ndarray) -> np.ndarray:
    """f64[N]: rank of each of N scores / N, in (0, 1]; ties share their mean rank."""
    ordered = np.sort(column)
    first = np.searchsorted(ordered, column, "left")
    last = np.searchsorted(ordered, column, "right")
    return np.asarray((first + 1 + last) / 2 / max(1, len(column)))


def _minmax(stack: np.ndarray, weights: np.ndarray, power: float) -> np.ndarray:
    """Per-class min-max over the rows, then the arithmetic mean. Source: DCASE 2019 report of Shugaev et al.
    (9th, FAT2019).
    """
    return _arithmetic(np.stack([_rescale(part) for part in stack]), weights, power)


def _rescale(scores: np.ndarray) -> np.ndarray:
    """Per class, min-max over the present rows to [0, 1]; a class that is constant there keeps its value."""
    there = present(scores)
    if not there.any():
        return scores
    low = scores[there].min(axis=0)
    high = scores[there].max(axis=0)
    flat = high <= low
    return np.where(flat, scores, (scores - low) / np.where(flat, 1.0, high - low))


def _vote(stack: np.ndarray, weights: np.ndarray, power: float) -> np.ndarray:
    """Share of the votes: each part votes for its best class (the lowest class number among equals).

    Where weights depend on the class: for the best of those in which it has a weight.

    Tie rule: classes with equally many votes are ordered by their mean probability, then by the lowest class
    number.
    """
    values, share = _shares(stack, weights)
    heard = values if weights.ndim == 1 else np.where(weights[:, None, :] > 0, values, -np.inf)
    best = heard.argmax(axis=-1)
    votes = (share * (best[..., None] == np.arange(stack.shape[-1]))).sum(axis=0)
    return (votes + TIE_SHARE * (share * values).sum(axis=0)) / (1.0 + TIE_SHARE)


def _vlom(stack: np.ndarray, weights: np.ndarray, power: float) -> np.ndarray:
    """Half the geometric mean, half the root of the mean square. Source:
    VSydorskyy/BirdCLEF_2025_2nd_place inference_class.py 73.
    """
    return (_geometric(stack, weights, power) + _power(stack, weights, 2.0)) / 2


# The names stand in kernel.spec, too, which checks ensembles without numpy; a test compares the two.
MEANS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
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
    "vlom": _vlom,
}
