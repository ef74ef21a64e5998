"""Training batches: which clips are drawn in an epoch, and what a step sees of them.

Owns the draws, the crops and the order augment -> mix -> finish. Every random number comes from (seed, epoch,
step), so any epoch can be repeated without its predecessors.
"""
from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kernel.errors import SpecError
from kernel.inference import net, views

from . import augment, mixers
from .recipe import Train


@dataclass(frozen=True, kw_only=True)
class Batch:
    """inputs: name -> f32[B, ...] as the net takes them; targets f32[B, K]; noisy bool[B]."""

    inputs: dict[str, torch.Tensor]
    targets: torch.Tensor
    noisy: torch.Tensor


def chances(targets: np.ndarray, noisy: np.ndarray, train: Train) -> np.ndarray:
    """f64[N], the share of the draws that each clip gets; sums to 1.

    Balanced: a clip weighs the mean of count^-balance over its classes; negatives share `negatives`; noisy
    clips share `noisy`.
    """
    weights = np.ones(len(targets))
    labelled = targets.any(axis=1)
    if train.sampling == "balanced":
        rarity = np.maximum(1, (targets > 0).sum(axis=0)) ** -train.balance
        weights[labelled] = (targets[labelled] > 0) @ rarity / (targets[labelled] > 0).sum(axis=1)
        if labelled.any() and not labelled.all():
            weights[labelled] *= (1 - train.negatives) / weights[labelled].sum()
            weights[~labelled] = train.negatives / (~labelled).sum()
    if train.noisy is not None and noisy.any() and not noisy.all():
        for part, share in ((noisy, train.noisy), (~noisy, 1 - train.noisy)):
            weights[part] *= share / weights[part].sum()
    return weights / weights.sum()


class Batches:
    """Batches of one net's training clips.

    recipe   the member's stages (kernel.inference.net.Recipe); exactly one input with a time axis is cropped
    features `get(front end, row)`; rows, targets, noisy: the training clips alone
    """

    def __init__(
        self,
        recipe: net.Recipe,
        features: Any,
        rows: list[Any],
        targets: np.ndarray,
        noisy: np.ndarray,
        train: Train,
        seed: tuple[int, ...],
    ) -> None:
        timed = [name for name, stage in recipe.stages.items() if stage.fe.time]
        if len(timed) != 1 or isinstance(recipe.stages[recipe.timed].fe, net.CutFirst):
            raise SpecError(
                f"member {recipe.member.name}: training crops exactly one input along time, in frames; found {timed}"
            )
        self._recipe, self._features, self._rows = recipe, features, rows
        self._targets, self._noisy, self._train, self._seed = targets, noisy, train, seed
        self._chances = chances(targets, noisy, train)
        self._steps = augment.build(train.augment)
        self._mix = mixers.build(train.mixers)
        drawn = train.samples or len(rows)
        self.steps = max(1, drawn // train.batch)

    def class_shares(self) -> np.ndarray:
        """f64[K], the mean target of every class among the draws."""
        return self._chances @ self._targets.astype(np.float64)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch; the next one is made while the net learns from the last."""
        train = self._train
        rng = np.random.default_rng([*self._seed, epoch])
        if train.sampling == "uniform" and train.noisy is None and train.samples in (0, len(self._rows)):
            drawn = rng.permutation(len(self._rows))
        else:
            drawn = rng.choice(len(self._rows), train.samples or len(self._rows), p=self._chances)
        plain = epoch >= train.epochs - train.clean_epochs
        parts = np.array_split(drawn[: max(train.batch, len(drawn) // train.batch * train.batch)], self.steps)
        with ThreadPoolExecutor(1) as ahead:
            waiting = None
            for step, part in enumerate([*parts, None]):
                coming = None if part is None else ahead.submit(self._make, part, epoch, step, plain)
                if waiting is not None:
                    yield waiting.result()
                waiting = coming

    def _make(self, part: np.ndarray, epoch: int, step: int, plain: bool) -> Batch:
        rng = np.random.default_rng([*self._seed, epoch, step])
        targets = self._targets[part]
        inputs = {}
        drawn = [self._copy(self._rows[i], rng, plain) for i in part]
        for name, stage in self._recipe.stages.items():
            arrays = [self._features.get(stage.fe, row) for row in drawn]
            if stage.fe.time:
                x = np.stack([self._crop(array, stage.fe, rng, plain) for array in arrays])
                x, targets = (x, targets) if plain else self._mix(x, targets, rng)
            else:
                x = np.stack(arrays)
            finished = stage.finish(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)))
            inputs[name] = finished.clone()  # out of inference mode, so that gradients may pass
        return Batch(
            inputs=inputs, targets=torch.from_numpy(targets), noisy=torch.from_numpy(self._noisy[part])
        )

    def _copy(self, row: Any, rng: np.random.Generator, plain: bool) -> Any:
        """The row or one of its altered copies, all alike."""
        count = 0 if plain else self._train.wave_variants
        return self._features.copies(row, count)[int(rng.integers(count + 1))] if count else row

    def _crop(self, array: np.ndarray, fe: Any, rng: np.random.Generator, plain: bool) -> np.ndarray:
        short = self._train.crop_short
        x = augment.crop(
            array, self._train.crop, views.pad_value(array, fe), short[int(rng.integers(len(short)))], rng
        )
        return x if plain else self._steps(x, rng)
