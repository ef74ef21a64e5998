"""Folds: which clips a net may learn from and which it is measured on.

Owns the split. Groups (recordings, speakers, takes) never stand in two folds, and every class is spread as
evenly as its groups allow. Does not know where clips come from (data).
"""
import numpy as np

from kernel.errors import SpecError

from .data import Clips

COUNT = 5  # Folds of a recipe that names no number.

def split(clips: Clips, count: int, seed: int) -> np.ndarray:
    """int[N], the fold in 0..count-1 of every clip; the same for the same clips and seed, whatever their
    order.

    Prescribed folds are kept, for every clip of such a group. The other groups are placed one by one, those
    with the rarest classes and the most clips first, each where its classes are furthest below their share
    (iterative stratification).
    Source: Sechidis et al. 2011, with groups in place of samples.
    Raises  SpecError for fewer groups than folds, or a group with two prescribed folds
    """
    groups = sorted(set(clips.groups))
    if count < 2 or len(groups) < count:
        raise SpecError(f"folds.count: {count} for {len(groups)} groups of clips; use 2 to {len(groups)}")
    index = {name: g for g, name in enumerate(groups)}
    of_clip = np.array([index[name] for name in clips.groups])
    # Columns: every class, then "any clip", so that clips without a label are spread too.
    has = np.column_stack([clips.targets > 0, np.ones(len(clips))])
    counts = np.zeros((len(groups), has.shape[1]))
    np.add.at(counts, of_clip, has)
    fold_of = np.full(len(groups), -1)
    for g, fold in zip(of_clip, clips.fixed, strict=True):
        if fold >= 0 and fold_of[g] not in (-1, fold):
            raise SpecError(
                f"folds: clips of the group {groups[g]!r} are prescribed to two folds; a group stands in "
                "one, so correct the column of folds or of groups"
            )
        if fold >= count:
            raise SpecError(
                f"folds: the group {groups[g]!r} is prescribed to fold {fold}; "
                f"use {clips.fixed.max() + 1} folds"
            )
        fold_of[g] = fold if fold >= 0 else fold_of[g]
    total = counts.sum(axis=0)
    have = np.zeros((count, has.shape[1]))
    for g in np.flatnonzero(fold_of >= 0):
        have[fold_of[g]] += counts[g]
    noise = np.random.default_rng(seed).random((len(groups), 1 + count))
    rarity = np.array([total[row > 0].min() for row in counts])
    for g in np.lexsort((noise[:, 0], -counts[:, -1], rarity)):
        if fold_of[g] < 0:
            weights = (counts[g] > 0) / np.maximum(total, 1)
            missing = ((total / count - have) * weights).sum(axis=1)
            fold_of[g] = int(np.lexsort((noise[g, 1:], -missing))[0])
            have[fold_of[g]] += counts[g]
    return fold_of[of_clip]
