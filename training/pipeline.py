"""The whole of train.py: recipe and clips in; nets, out-of-fold scores, ensemble TOML, weights and model card
out.

Owns the order of these steps. Text is card, files are export, numbers are measure, nets are run.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kernel.inference import backends
from kernel.scores import blend
from kernel.scores.metrics import lwlrap
from kernel.spec import Ensemble, Member, Stacker, load

from . import card, data, elsewhere, export, measure, stack
from .progress import Progress
from .recipe import Recipe, Train, load_recipe, read_classes
from .run import Run, Trained

UNIFORM = None  # no prior file: the kernel then uses the uniform one


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the command line asks for; `out` and `into` None = the defaults that train.py documents."""

    recipe: Path
    data: Path
    out: Path | None = None
    into: Path | None = None
    small: bool = False
    threads: int = 2
    device: str = "auto"
    write: bool = True
    command: str = ""


def train(order: Order) -> card.Facts | None:
    """Trains what is not trained yet and writes the results; None when nothing was to be written.

    Raises  SpecError, DeviceError
    """
    torch.set_num_threads(order.threads)
    recipe = load_recipe(order.recipe)
    if order.small:
        recipe = recipe.scaled_small()
    clips = data.read_clips(recipe.data, order.data, read_classes(recipe, order.recipe))
    if order.small and recipe.small.clips:
        clips = data.subset(clips, recipe.small.clips, recipe.seed)
    folder = order.out or Path("out/train") / (recipe.name + ("_small" if order.small else ""))
    devices, notes = backends.find_devices(order.device)
    with Progress() as progress:
        for note in notes:
            progress.say(note)
        work = Run(recipe, clips, folder, devices[0].name, order.threads, progress)
        nets = list(work.train())
    if not order.write:
        return None
    into = order.into or (order.recipe.resolve().parents[2] if recipe.ship and not order.small else folder)
    facts = write_all(work, nets, order, into)
    print(
        f"{recipe.name}: out-of-fold scores\n\n{card.score_table(facts)}\n\nwritten: {into / 'weights' / recipe.card}, "
        f"{into / 'ensembles' / (recipe.name + '.toml')}, {len(facts.sizes)} weights files, {folder / 'oof.npz'}"
    )
    return facts


def _reference(recipe_path: Path, named: str, ensembles: Path, values: Sequence[Any]) -> Any:
    """`named` (relative to the recipe) as seen from the ensemble's folder if it lies there, else the values
    themselves.
    """
    path = (recipe_path.parent / named).resolve()
    return (
        path.relative_to(ensembles.resolve()).as_posix()
        if path.is_relative_to(ensembles.resolve())
        else list(values)
    )


def write_toml(work: Run, recipe_path: Path, into: Path, values: dict[str, float]) -> Ensemble:
    """Writes INTO/ensembles/NAME.toml and returns it as the kernel reads it.

    Raises  SpecError
    """
    recipe: Recipe = work.recipe
    ensembles = into / "ensembles"
    classes = _reference(recipe_path, recipe.classes, ensembles, read_classes(recipe, recipe_path))
    prior = UNIFORM
    if recipe.prior:
        lines = (recipe_path.parent / recipe.prior).read_text(encoding="utf-8").split()
        prior = _reference(recipe_path, recipe.prior, ensembles, [float(line) for line in lines])
    text = export.ensemble_text(recipe, classes, work.numbers, values, prior)
    return export.write_ensemble(ensembles / f"{recipe.name}.toml", text)


def train_stackers(work: Run, ensemble: Ensemble, nets: Sequence[Trained]) -> list[Trained]:
    """The recipe's stackers, trained on the members' out-of-fold scores.

    Raises  SpecError
    """
    members = {member.name for member in ensemble.members}
    board = measure.out_of_fold(ensemble, [net for net in nets if net.member in members], len(work.clips))
    scores = {member.name: blend.merge_folds(member, board) for member in ensemble.members}
    made: list[Trained] = []
    for stacker, recipe in zip(ensemble.stackers, work.recipe.stackers, strict=True):
        table = stack.make_table(stacker, ensemble, scores, work.clips.targets, work.folds)
        settings = load(Train, recipe.train, f"{stacker.name}.train")
        made += stack.train_stacker(stacker, table, settings, work.recipe.seed, work.folder)
    return made


def merged_scores(ensemble: Ensemble, board: blend.Board) -> dict[str, np.ndarray]:
    """Member name -> f64[N, K] out-of-fold probabilities, NaN rows where none; "" = the ensemble by
    kernel.scores.blend.
    """
    parts: list[Member | Stacker] = [*ensemble.members, *ensemble.stackers]
    scores = {part.name: blend.merge_folds(part, board) for part in parts}
    whole = blend.blend(ensemble, board, np.full(len(ensemble.classes), 1 / len(ensemble.classes)))
    scores[""] = np.where(whole.prior_rows[:, None], np.nan, whole.values)
    return scores


def write_all(work: Run, nets: Sequence[Trained], order: Order, into: Path) -> card.Facts:
    """Writes weights, TOML, card and the run folder's oof.npz; returns what the card tells.

    into  folder with (or for) weights/ and ensembles/
    Raises  SpecError
    """
    recipe, clips = work.recipe, work.clips
    ensemble = write_toml(work, order.recipe, into, {})
    nets = [*nets, *train_stackers(work, ensemble, nets)]
    scores = merged_scores(ensemble, measure.out_of_fold(ensemble, nets, len(clips)))
    labelled = clips.targets.any(axis=1)
    values = {name: lwlrap(clips.targets[rows], found[rows])
              for name, found in scores.items() if (rows := labelled & np.isfinite(found).all(axis=1)).any()}
    ensemble = write_toml(work, order.recipe, into, values)
    sizes = export.copy_weights(recipe, nets, into / "weights")
    export.write_scores(work.folder / "oof.npz", clips.ids, clips.classes, work.folds, scores, clips.targets)
    lines = (
        elsewhere.report(work, nets, ensemble, scores[""], recipe.elsewhere, order.data)
        if recipe.elsewhere
        else []
    )
    facts = card.Facts(
        recipe=recipe,
        ensemble=ensemble,
        clips=clips,
        folds=work.folds,
        nets=nets,
        scores=scores,
        sizes=sizes,
        command=order.command,
        elsewhere=lines,
    )
    (into / "weights" / recipe.card).write_text(card.write(facts, recipe.notes), encoding="utf-8")
    return facts
