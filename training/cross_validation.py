"""Cross-validation of one recipe: each member is trained on each fold and scores the clips it did not see.

Owns the run folder: one sub-folder per net with checkpoint, log, weights and held-out scores, so that a
killed run goes on where it stopped. Does not train a net itself (trainer), and does not write the ensemble
(export) or the card (model_card).
"""
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import save_file

from builder import dry_run
from kernel import models
from kernel.errors import SpecError
from kernel.inference.recipe import Recipe as NetRecipe
from kernel.inference.recipe import build_recipe
from kernel.spec import Ensemble, Member

from . import curves, effects, folds, trainer
from .data import Clips
from .epoch_progress import Progress
from .features import Features
from .pseudo import Pseudo
from .recipe import MemberRecipe, Recipe


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One finished net.

    hold, held  positions of the held-out clips, and f32[len(hold), K], their probabilities
    record      what done.json says of its training
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


class CrossValidation:
    """A recipe on a set of clips.

    A context manager: its spill files go at the end of `with`.

    folder  where everything goes; device: torch's name of it; jobs: loader threads
    pseudo  rows with soft labels that train in every fold, but where their recording is held out
    """

    def __init__(self, recipe: Recipe, clips: Clips, folder: Path, device: str = "cpu", jobs: int = 2,
                 progress: Progress | None = None, pseudo: Pseudo | None = None) -> None:
        self.recipe = recipe
        self.clips = clips
        self.folder = folder
        self.device = device
        self.jobs = jobs
        self.progress = progress or Progress(quiet=True)
        self.pseudo = pseudo
        self.folds = folds.split(clips, int(recipe.folds.get("count", folds.COUNT)), recipe.seed)
        settings = [recipe.settings(member) for member in recipe.members]
        kinds = {repr(s.wave_effects) for s in settings if s.wave_variants}
        if len(kinds) > 1:
            raise SpecError(
                "train.wave_effects: members differ; give all members with wave_variants the same effects"
            )
        effect = next((effects.build(s.wave_effects) for s in settings if s.wave_variants), None)
        more = pseudo.rows if pseudo is not None else ()
        if twice := sorted(set(clips.ids) & {row.id for row in more}):
            raise SpecError(f"{twice[0]!r} is a clip and a pseudo-labelled row; rename one of the files")
        self.features = Features(clips.folder, clips.ids, recipe.max_seconds, jobs, effect, more)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the spill files; the arrays of rows cannot be had any more."""
        self.features.close()

    @property
    def numbers(self) -> list[int]:
        """Folds that are trained."""
        return list(self.recipe.folds.get("run", [])) or sorted({int(f) for f in self.folds})

    def train(self) -> Iterator[Trained]:
        """Every net of the recipe, member by member; finished ones are read, not trained again."""
        self.progress.expect({f"{m.name}.{fold}": self.recipe.settings(m).epochs for m in self.recipe.members
                              for fold in self.numbers})
        made = {member.name: self._stages(member) for member in self.recipe.members}  # All before any clip.
        for member in self.recipe.members:
            stages = made[member.name]
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
                        f"{job.folder}: was trained with other settings or clips; "
                        "give another --out or remove it"
                    )
                yield net

    def _stages(self, member: MemberRecipe) -> NetRecipe:
        """The member's stages, once its untrained net has taken a synthetic clip through them.

        Raises  SpecError naming the member: front end, finish and channels that do not fit together
        """
        stages = build_recipe(self._ensemble(member), kernel_member(member))
        net = models.build(member.family, dict(member.params), len(self.clips.classes))
        dry_run.run_once(stages, net.eval(), len(self.clips.classes))
        return stages

    def _ensemble(self, member: MemberRecipe) -> Ensemble:
        return Ensemble(name=self.recipe.name, classes=self.clips.classes, members=(kernel_member(member),),
                        frontends=self.recipe.frontends)

    def _job(self, member: MemberRecipe, stages: NetRecipe, fold: int) -> trainer.Job:
        usable = self.features.usable[: len(self.clips)]
        for rows, purpose in ((self.folds != fold, "train"), (self.folds == fold, "measure")):
            if not (rows & usable).any():
                broken = next((f": {error}" for error in self.features.errors.values()), "")
                raise SpecError(
                    f"fold {fold}: no clip to {purpose} it on, of {rows.sum()} in the table; correct "
                    f"folds.run, or the clips{broken}"
                )
        job = trainer.Job(
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
        return job if self.pseudo is None else self._with_pseudo(job, self.pseudo)

    def _with_pseudo(self, job: trainer.Job, pseudo: Pseudo) -> trainer.Job:
        """The job with the pseudo-labelled rows behind the clips, but those of recordings held out."""
        count = len(self.clips)
        held = {self.clips.groups[i] for i in job.hold} | {self.features.rows[i].clip.id for i in job.hold}
        held |= {Path(self.clips.ids[i]).stem for i in job.hold}
        free = np.array([name not in held for name in pseudo.recordings])
        return replace(
            job,
            targets=np.concatenate([job.targets, pseudo.labels]),
            noisy=np.concatenate([job.noisy, np.zeros(len(free), bool)]),
            worth=np.concatenate([np.zeros(count), pseudo.worth]),
            share=pseudo.share,
            learn=np.concatenate([job.learn, count + np.flatnonzero(free & self.features.usable[count:])]),
        )

    def _train_one(self, member: MemberRecipe, job: trainer.Job) -> None:
        start = None
        earlier = self.recipe.pretraining(member)
        if earlier is not None:
            start = self._run(replace(job, train=earlier, folder=job.folder / "pretrain")).weights
        result = self._run(replace(job, start=start))
        write_net(job.folder, member.name, job.fold, job.hold, result, job.fingerprint)
        curves.draw(job.folder / "log.csv", job.folder / "curve.png")

    def _run(self, job: trainer.Job) -> trainer.Result:
        return trainer.Trainer(job, self.features, self.device, self.progress).run()


def write_net(folder: Path, member: str, fold: int, hold: np.ndarray, result: trainer.Result,
              fingerprint: str = "") -> None:
    """Writes weights.safetensors (fp16), held.npz and, last, done.json into the folder of a net.

    hold  int[n], positions of the held-out clips; fingerprint: the job's, where there is one
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(result.weights, folder / "weights.safetensors")
    np.savez_compressed(folder / "held.npz", hold=hold, held=result.held.astype(np.float32))
    state = result.state
    record = {
        "job": fingerprint,
        "member": member,
        "fold": fold,
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
