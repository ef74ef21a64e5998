"""Training batches: which clips are drawn in an epoch, and what a net sees of them.

Owns `Job` (what one net is trained on), the draws, the crops and the order augment -> mix -> finish. Every
random number comes from the seed, the epoch and the number of the batch, so that any epoch can be repeated
without its predecessors. Does not decode and does not keep arrays (features).
"""
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kernel.errors import SpecError
from kernel.inference import views
from kernel.inference.recipe import CutFirst, Recipe
from kernel.sound.rows import Row

from . import augment, mixers
from .features import Features
from .recipe import Train


@dataclass(frozen=True, kw_only=True)
class Batch:
    """inputs: name -> f32[B, ...] as the net takes them; targets f32[B, K]; noisy bool[B]."""

    inputs: dict[str, torch.Tensor]
    targets: torch.Tensor
    noisy: torch.Tensor


def chances(targets: np.ndarray, noisy: np.ndarray, train: Train) -> np.ndarray:
    """f64[N], the share of the draws that each clip gets; sums to 1.

    Balanced sampling: a clip weighs the mean of count^-balance over its classes, and all negatives together
    get `negatives`. With any sampling, all noisy clips together get `noisy`.
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


@dataclass(frozen=True, kw_only=True)
class Job:
    """One net to train: member `recipe` on `fold`.

    rows, targets, noisy  of all clips; learn, hold: positions of the training and the held-out clips
    folder                where checkpoint, log and result of this net go
    start                 weights to start from, or None
    worth                 f64 of all rows: how often a pseudo-labelled one is drawn, 0 = a clip; None: none is
    share                 of the draws that go to pseudo-labelled rows
    """

    recipe: Recipe
    train: Train
    fold: int
    seed: int
    classes: int
    rows: Sequence[Row]
    targets: np.ndarray
    noisy: np.ndarray
    learn: np.ndarray
    hold: np.ndarray
    folder: Path
    start: dict[str, torch.Tensor] | None = None
    worth: np.ndarray | None = None
    share: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.recipe.member.name}.{self.fold}"

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the weights but code and audio; what is resumed must have the same."""
        member = self.recipe.member
        fronts = {name: stage.fe.key for name, stage in self.recipe.stages.items()}
        learnt = [(self.rows[i].id, self.targets[i].tolist(), bool(self.noisy[i])) for i in self.learn]
        deciding = (member.family, sorted(member.params.items()), member.named_inputs(), fronts, self.train,
                    self.seeds, learnt, self.classes)
        if self.worth is not None:
            deciding += (self.worth[self.learn].tolist(), self.share)  # type: ignore[assignment]
        return hashlib.sha256(repr(deciding).encode()).hexdigest()[:16]

    @property
    def seeds(self) -> tuple[int, ...]:
        return (self.seed, zlib.crc32(self.name.encode()))


def draw_shares(job: Job) -> np.ndarray:
    """f64[len(learn)], the share of the draws of each row that a net learns from; sums to 1."""
    targets, noisy = job.targets[job.learn], job.noisy[job.learn]
    if job.worth is None:
        return chances(targets, noisy, job.train)
    worth = job.worth[job.learn]
    soft = worth > 0
    shares = np.empty(len(worth))
    shares[~soft] = (1 - job.share) * chances(targets[~soft], noisy[~soft], job.train)
    shares[soft] = job.share * worth[soft] / worth[soft].sum()
    return shares / shares.sum()  # without pseudo-labelled rows in this fold the others get all


class Batches:
    """Batches of the clips that one net learns from; exactly one input with a time axis is cropped."""

    def __init__(self, job: Job, features: Features) -> None:
        stages = job.recipe.stages
        timed = [name for name, stage in stages.items() if stage.fe.time]
        if len(timed) != 1 or isinstance(stages[timed[0]].fe, CutFirst):
            raise SpecError(
                f"member {job.recipe.member.name}: training crops exactly one input along time, in frames; "
                f"found {timed}"
            )
        self._job = job
        self._features = features
        self._chances = draw_shares(job)
        self._augment = augment.build(job.train.augment)
        self._mix = mixers.build(job.train.mixers)
        clips = len(job.learn) if job.worth is None else int((job.worth[job.learn] == 0).sum())
        self._draws = job.train.samples or clips
        self.count = max(1, self._draws // job.train.batch)

    def class_shares(self) -> np.ndarray:
        """f64[K], the mean target of every class among the draws."""
        return self._chances @ self._job.targets[self._job.learn].astype(np.float64)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch; the next one is made while the net learns from the last."""
        train = self._job.train
        learn = self._job.learn
        rng = np.random.default_rng([*self._job.seeds, epoch])
        plainly = train.sampling == "uniform" and train.noisy is None and self._job.worth is None
        if plainly and train.samples in (0, len(learn)):
            drawn = learn[rng.permutation(len(learn))]
        else:
            drawn = learn[rng.choice(len(learn), self._draws, p=self._chances)]
        plain = epoch >= train.epochs - train.clean_epochs
        whole = len(drawn) // train.batch * train.batch
        parts = np.array_split(drawn[: max(train.batch, whole)], self.count)
        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(self._make, parts[0], epoch, 0, plain)
            for number in range(1, len(parts)):
                coming = ahead.submit(self._make, parts[number], epoch, number, plain)
                yield waiting.result()
                waiting = coming
            yield waiting.result()

    def _make(self, part: np.ndarray, epoch: int, number: int, plain: bool) -> Batch:
        """The batch of some clips, given by their positions."""
        rng = np.random.default_rng([*self._job.seeds, epoch, number])
        targets = self._job.targets[part]
        inputs = {}
        drawn = [self._copy(self._job.rows[i], rng, plain) for i in part]
        for name, stage in self._job.recipe.stages.items():
            arrays = [self._features.get(stage.fe, row) for row in drawn]
            if stage.fe.time:
                x = np.stack([self._crop(array, stage.fe, rng, plain) for array in arrays])
                if not plain:
                    x, targets = self._mix(x, targets, rng)
            else:
                x = np.stack(arrays)
            finished = stage.finish(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)))
            inputs[name] = finished.clone()  # Out of inference mode, so that gradients may pass.
        noisy = torch.from_numpy(self._job.noisy[part])
        return Batch(inputs=inputs, targets=torch.from_numpy(targets), noisy=noisy)

    def _copy(self, row: Row, rng: np.random.Generator, plain: bool) -> Row:
        """The row or one of its altered copies, each as likely as the others."""
        count = 0 if plain else self._job.train.wave_variants
        return self._features.copies(row, count)[int(rng.integers(count + 1))] if count else row

    def _crop(self, array: np.ndarray, fe: Any, rng: np.random.Generator, plain: bool) -> np.ndarray:
        shorts = self._job.train.crop_short
        short = shorts[int(rng.integers(len(shorts)))]
        x = augment.crop(array, self._job.train.crop, views.pad_value(array, fe), short, rng)
        return x if plain else self._augment(x, rng)
