"""Steps on the finished table, between the blend and the file, as an ensemble's [output] asks for them.

Owns `apply` and the steps. A new step is a function here, a key of `kernel.spec.Output` and a line in
`apply`.
"""
from collections.abc import Iterable, Sequence

import numpy as np

from ..sound.rows import Row
from ..spec import Output


def apply(
    values: np.ndarray,
    rows: Sequence[Row],
    output: Output,
    prior_rows: np.ndarray | None = None,
    prior_cells: np.ndarray | None = None,
) -> np.ndarray:
    """f64[N, K] scores of `rows` after every step that `output` asks for.

    prior_rows  bool[N]: rows without any prediction, which no step touches or mixes into others; None: none
    prior_cells bool[N, K]: single scores of which the same holds; None: none
    """
    if output.smoothing:
        left_out = prior_rows
        if prior_cells is not None:
            left_out = prior_cells if prior_rows is None else prior_cells | prior_rows[:, None]
        values = smooth(values, recordings(rows), output.smoothing, left_out)
    return values


def recordings(rows: Sequence[Row]) -> list[list[int]]:
    """Row numbers of each recording, in time order."""
    found: dict[str, list[int]] = {}
    for i in sorted(range(len(rows)), key=lambda i: rows[i].start or 0):
        found.setdefault(rows[i].clip.id, []).append(i)
    return list(found.values())


def smooth(
    values: np.ndarray,
    recordings: Iterable[Sequence[int]],
    weights: Sequence[float],
    left_out: np.ndarray | None = None,
) -> np.ndarray:
    """f64[N, K] with each row mixed with its neighbours in the same recording.

    recordings  row numbers of each recording in time order
    weights     an odd number of weights >= 0, the middle one, for the row itself, above 0; at the ends of a
                recording, and beside a row that is left out, those that remain sum to 1
    left_out    bool[N], or [N, K]: rows, or scores, that stay as they are and go into no other; None: none
    """
    if left_out is not None and left_out.ndim == 2:
        return _smooth_cells(values, recordings, weights, ~left_out)
    reach = len(weights) // 2
    counts = np.ones(len(values), bool) if left_out is None else ~left_out
    out = np.array(values, np.float64)
    for rows in recordings:
        index = np.asarray(rows, np.intp)
        total = np.zeros((len(index), values.shape[1]))
        mass = np.zeros(len(index))
        for shift, weight in enumerate(weights, -reach):
            here = np.arange(max(0, -shift), min(len(index), len(index) - shift))
            here = here[counts[index[here + shift]]]
            total[here] += weight * values[index[here + shift]]
            mass[here] += weight
        mixed = counts[index]
        out[index[mixed]] = total[mixed] / mass[mixed, None]
    return out


def _smooth_cells(
    values: np.ndarray, recordings: Iterable[Sequence[int]], weights: Sequence[float], counts: np.ndarray
) -> np.ndarray:
    """As `smooth`, where each score counts or not for itself, bool[N, K]."""
    reach = len(weights) // 2
    out = np.array(values, np.float64)
    for rows in recordings:
        index = np.asarray(rows, np.intp)
        total, mass = np.zeros((2, len(index), values.shape[1]))
        for shift, weight in enumerate(weights, -reach):
            here = np.arange(max(0, -shift), min(len(index), len(index) - shift))
            share = weight * counts[index[here + shift]]
            total[here] += share * values[index[here + shift]]
            mass[here] += share
        np.divide(total, mass, out=total, where=counts[index])
        out[index] = np.where(counts[index], total, out[index])
    return out
