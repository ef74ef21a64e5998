"""Which member has how much say in which class: classes that one does not know, and weights by class.

Owns the weights of a blend and the scores of classes that a member does not know. The means are means', the
order of the whole is blend's.
"""
from collections.abc import Sequence

import numpy as np

from ..spec import Ensemble, Group, Member, Part, Stacker

ALL = slice(None)
BLOCK_ROWS = 1024  # that are looked at at once


def known_classes(part: Part | Group, classes: int) -> np.ndarray:
    """bool[K]: the classes that the part's nets know."""
    if isinstance(part, Member) and part.classes_map is not None:
        return np.array(part.classes_map.knows(classes))
    return np.ones(classes, bool)


def speaking(part: Part | Group, classes: int) -> np.ndarray:
    """bool[K]: the classes in which the part has a say: those it knows; all where `missing` is a number."""
    if isinstance(part, Member) and part.missing_score is not None:
        return np.ones(classes, bool)
    return known_classes(part, classes)


def part_weights(ensemble: Ensemble, parts: Sequence[Part | Group]) -> np.ndarray:
    """Weights of parts in a mean: f64[parts], or f64[parts, K] where they depend on the class."""
    said = np.stack([speaking(part, len(ensemble.classes)) for part in parts])
    usual = np.array([part.weight for part in parts], np.float64)
    if said.all() and not any(part.name in ensemble.weights_by for part in parts):
        return usual
    own = [
        np.broadcast_to(ensemble.weights_by.get(part.name, part.weight), said.shape[1]) for part in parts
    ]
    return np.where(said, np.stack(own), 0.0)


def unknown_classes(ensemble: Ensemble) -> tuple[str, ...]:
    """The classes in which no part has a say: the prior stands there in every row."""
    said = np.stack([speaking(part, len(ensemble.classes)) for part in ensemble.parts])
    return tuple(name for k, name in enumerate(ensemble.classes) if not said[:, k].any())


def fill_unknown(part: Part, table: np.ndarray, classes: int, columns: slice = ALL) -> np.ndarray:
    """f64[n, k] of a part with `missing` in the classes that it does not know, 0 where others decide these.

    table    scores of the classes `columns` of K;  NaN rows stay so
    """
    if not isinstance(part, Member) or part.classes_map is None:
        return table
    number = part.missing_score
    unknown = ~known_classes(part, classes)[columns]
    return np.where(unknown & ~np.isnan(table), 0.0 if number is None else number, table)


def equal_weights(ensemble: Ensemble, parts: Sequence[Part | Group]) -> np.ndarray:
    """Weights for rows, or classes of rows, that only parts of weight 0 have: 1 for each but stackers, in the
    form of `part_weights`.
    """
    alike = np.array([0.0 if isinstance(part, Stacker) else 1.0 for part in parts])
    weights = part_weights(ensemble, parts)
    if weights.ndim == 1:
        return alike
    said = np.stack([speaking(part, len(ensemble.classes)) for part in parts])
    return np.where(said, alike[:, None], 0.0)


def fill_prior(values: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Puts the prior f[K] where a merged table f64[N, K] is NaN.

    Returns  bool[N]: rows that are all prior, and bool[N, K]: cells that are in other rows; None: not one
    """
    rows = np.zeros(len(values), bool)
    cells: np.ndarray | None = None
    for start in range(0, len(values), BLOCK_ROWS):
        block = values[start:start + BLOCK_ROWS]
        lacking = np.isnan(block)
        whole = lacking.all(axis=1)
        rows[start:start + BLOCK_ROWS] = whole
        np.copyto(block, prior, where=lacking)
        lacking[whole] = False
        if lacking.any():
            cells = np.zeros(values.shape, bool) if cells is None else cells
            cells[start:start + BLOCK_ROWS] = lacking
    return rows, cells
