"""Which member has how much say in which class: classes that one does not know, and weights by class.

Owns the weights of a blend and the scores of classes that a member does not know. The means themselves are
means', the order of the whole is blend's.
"""
from collections.abc import Sequence

import numpy as np

from ..spec import Ensemble, Member, Part
from .means import mean, present

ALL = slice(None)


def known_classes(part: Part, classes: int) -> np.ndarray:
    """bool[K]: the classes that the part's nets know."""
    if isinstance(part, Member) and part.classes_map is not None:
        return np.array(part.classes_map.knows(classes))
    return np.ones(classes, bool)


def speaking(part: Part, classes: int) -> np.ndarray:
    """bool[K]: the classes in which the part has a say: those it knows; all where `missing` is a number."""
    if isinstance(part, Member) and part.missing_score is not None:
        return np.ones(classes, bool)
    return known_classes(part, classes)


def part_weights(ensemble: Ensemble) -> np.ndarray:
    """Weights of the parts in the ensemble's mean: f64[parts], or f64[parts, K] where the class matters."""
    parts = ensemble.parts
    usual = np.array([part.weight for part in parts], np.float64)
    said = np.stack([speaking(part, len(ensemble.classes)) for part in parts])
    if said.all() and not ensemble.weights_by:
        return usual
    own = np.stack([
        np.array(ensemble.weights_by[part.name]) if part.name in ensemble.weights_by
        else np.full(len(ensemble.classes), part.weight)
        for part in parts
    ])
    return np.where(said, own, 0.0)


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


def blend_by_class(
    ensemble: Ensemble, merged: np.ndarray, weights: np.ndarray, columns: slice = ALL
) -> tuple[np.ndarray, np.ndarray]:
    """f64[n, k] of the parts' f64[parts, n, k] under f64[parts, k], and bool[n]: rows with a class that only
    parts of weight 0 decide.

    In each row and class the weights of the parts that are there and have a say sum to 1. Where only parts of
    weight 0 are there, members among them count equally; NaN where no part has a say.
    """
    values = mean(ensemble.mean, merged, weights, ensemble.mean_power)
    there = np.asarray(present(merged).any(axis=0))
    nobody = np.isnan(values) & there[:, None]
    if not nobody.any():
        return values, np.zeros(len(values), bool)
    alone = mean(ensemble.mean, merged, _equally(ensemble.parts, ensemble, columns), ensemble.mean_power)
    lone = nobody & ~np.isnan(alone)
    return np.where(lone, alone, values), lone.any(axis=1)


def _equally(parts: Sequence[Part], ensemble: Ensemble, columns: slice) -> np.ndarray:
    """f64[parts, k]: 1 for every member in every class in which it has a say."""
    rows = [speaking(part, len(ensemble.classes))[columns] * isinstance(part, Member) for part in parts]
    return np.stack(rows).astype(np.float64)
