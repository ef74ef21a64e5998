"""One recipe from clips to nets: features, folds, every (member, fold), out-of-fold predictions.

Owns the run folder: one sub-folder per net with checkpoint, log, weights and held-out scores, so that a
killed run goes on where it stopped. Does not write the ensemble or the card (export, card).
"""
from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from kernel.errors import SpecError
from kernel.inference import net as predict
from kernel.spec import Ensemble, Member

from . import curves, effects, folds, loop
from .data import Clips
from .features import Features
from .progress import Progress
from .recipe import MemberRecipe, Recipe


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One finished net: hold = positions of the held-out clips, held f32[len(hold), K] their
    probabilities.
    """

    member: str
    fold: int
    weights: Path
    hold: np.ndarray
    held: np.ndarray
    record: dict[str, Any]


def kernel_member(member: MemberRecipe) -> Member:
    """The member as the kernel sees it."""
    return Member(
        name=member.name,
        family=member.family,
        params=member.params,
        frontend=member.frontend,
        finish=member.finish,
        inputs=member.inputs,
        view=member.view,
        activation=member.activation,
        weight=member.weight,
    )


class Run:
    """A recipe on a set of clips.

    folder    where everything goes; device: torch name; jobs: loader threads
    """

    def __init__(self, recipe: Recipe, clips: Clips, folder: Path, device: str = "cpu", jobs: int = 2,
                 progress: Progress | None = None) -> None:
        self.recipe, self.clips, self.folder, self.device, self.jobs = recipe, clips, folder, device, jobs
        self.progress = progress or Progress(quiet=True)
        self.folds = folds.split(clips, int(recipe.folds.get("count", 5)), recipe.seed)
        settings = [recipe.settings(member) for member in recipe.members]
        kinds = {repr(s.wave_effects) for s in settings if s.wave_variants}
        if len(kinds) > 1:
            raise SpecError(
                "train.wave_effects: members differ; give all members with wave_variants the same effects"
            )
        effect = next((effects.build(s.wave_effects) for s in settings if s.wave_variants), None)
        self.features = Features(clips.folder, clips.ids, recipe.max_seconds, jobs, effect)

    @property
    def numbers(self) -> list[int]:
        """Folds that are trained."""
        return list(self.recipe.folds.get("run", [])) or sorted({int(f) for f in self.folds})

    def train(self) -> Iterator[Trained]:
        """Every net of the recipe, member by member; finished ones are read, not trained again."""
        self.progress.expect({f"{m.name}.{fold}": self.recipe.settings(m).epochs for m in self.recipe.members
                              for fold in self.numbers})
        for member in self.recipe.members:
            stages = predict.build_recipe(self._ensemble(member), kernel_member(member))
            for stage in stages.stages.values():
                self.features.warm(stage.fe, self.recipe.settings(member).wave_variants)
            for id, error in self.features.errors.items():
                self.progress.say(f"left out: {id}: {error}")
            for fold in self.numbers:
                job = self._job(member, stages, fold)
                if not (job.folder / "done.json").exists():
                    self._train_one(member, job)
                self.progress.finish(job.name)
                net = read_net(job.folder)
                if net.record["job"] != job.fingerprint:
                    raise SpecError(
                        f"{job.folder}: was trained with other settings or clips; give another --out or remove it"
                    )
                yield net

    def _ensemble(self, member: MemberRecipe) -> Ensemble:
        return Ensemble(name=self.recipe.name, classes=self.clips.classes, members=(kernel_member(member),),
                        frontends=self.recipe.frontends)

    def _job(self, member: MemberRecipe, stages: predict.Recipe, fold: int) -> loop.Job:
        usable = self.features.usable
        return loop.Job(
            recipe=stages,
            train=self.recipe.settings(member),
            fold=fold,
            seed=self.recipe.seed,
            classes=len(self.clips.classes),
            rows=self.features.rows,
            targets=self.clips.targets,
            noisy=self.clips.noisy,
            learn=np.flatnonzero((self.folds != fold) & usable),
            hold=np.flatnonzero((self.folds == fold) & usable),
            folder=self.folder / f"{member.name}_{fold}",
        )

    def _train_one(self, member: MemberRecipe, job: loop.Job) -> None:
        started = job
        earlier = self.recipe.pretraining(member)
        if earlier is not None:
            first = replace(job, train=earlier, folder=job.folder / "pretrain")
            started = replace(
                job, start=loop.Loop(first, self.features, self.device, self.progress).run().weights
            )
        result = loop.Loop(started, self.features, self.device, self.progress).run()
        write_net(job, result)
        curves.draw(job.folder / "log.csv", job.folder / "curve.png")


def write_net(job: loop.Job, result: loop.Result) -> None:
    """Writes weights.safetensors (fp16), held.npz and, last, done.json into the job's folder."""
    folder = job.folder
    save_file(result.weights, folder / "weights.safetensors")
    np.savez_compressed(folder / "held.npz", hold=job.hold, held=result.held.astype(np.float32))
    state = result.state
    record = {
        "job": job.fingerprint,
        "member": job.recipe.member.name,
        "fold": job.fold,
        "epochs": state.epoch,
        "seconds": round(state.seconds, 1),
        "losses": state.losses,
        "scores": state.scores,
        "best_epoch": state.best_epoch,
        "threads": torch.get_num_threads(),
    }
    (folder / "done.json").write_text(json.dumps(record))


def read_net(folder: Path) -> Trained:
    """A finished net of a run folder.

    Raises  SpecError when it is not finished
    """
    try:
        record = json.loads((folder / "done.json").read_text())
    except OSError as error:
        raise SpecError(
            f"{folder}: no finished net ({error.strerror}); run train.py again with the same --out"
        ) from error
    with np.load(folder / "held.npz") as arrays:
        return Trained(member=record["member"], fold=record["fold"], weights=folder / "weights.safetensors",
                       hold=arrays["hold"], held=arrays["held"], record=record)
