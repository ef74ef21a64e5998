"""The whole of train.py: a recipe and clips come in; nets, scores, an ensemble TOML and a model card go out.

Owns the order in which that happens. Nets are cross_validation's, numbers evaluation's, files export's, and
the text is model_card's.
"""
import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from kernel.errors import SpecError
from kernel.inference.devices import find_devices
from kernel.scores import blend
from kernel.scores.metrics import lwlrap
from kernel.spec import Ensemble, load

from . import data, evaluation, export, external_clips, model_card, pseudo, stackers
from .class_list import find_classes, read_classes
from .cross_validation import CrossValidation, Trained
from .defaults import name_defaults
from .epoch_progress import Progress
from .recipe import Recipe, Train, load_recipe

Value = TypeVar("Value", str, float)


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What the command line asks for; train.py documents the defaults of `out` and `into`."""

    recipe: Path
    data: Path
    out: Path | None = None
    into: Path | None = None
    small: bool = False
    threads: int = 2
    device: str = "auto"
    write: bool = True
    command: str = ""
    pseudo: Path | None = None
    soundscapes: Path | None = None
    round: int = 1


def train(request: TrainRequest) -> model_card.Facts | None:
    """Trains what is not trained yet and writes the results; None when nothing was to be written.

    Raises  SpecError, DeviceError
    """
    torch.set_num_threads(request.threads)
    recipe, clips = _read(request)
    folder = request.out or Path("out/train") / (recipe.name + ("_small" if request.small else ""))
    devices, notes = find_devices(request.device)
    ships = recipe.ship and not request.small
    root = request.recipe.resolve().parents[min(2, len(request.recipe.resolve().parents) - 1)]
    ships = ships and (root / "pyproject.toml").is_file()  # an installed copy is no place for results
    into = request.into or (root if ships else folder)
    with ExitStack() as stack:
        with closing(Progress()) as progress:
            for note in notes:
                progress.say(note)
            work = stack.enter_context(
                CrossValidation(recipe, clips, folder, devices[0].name, request.threads, progress,
                                _read_pseudo(request, recipe, clips)))
            _check_found(work, progress.say)
            nets = list(work.train())
        if not request.write:
            return None
        facts = write_all(work, nets, request, into)
    print(
        f"{recipe.name}: out-of-fold scores\n\n{model_card.score_table(facts)}\n\n"
        f"written: {into / 'weights' / recipe.card}, {into / 'ensembles' / (recipe.name + '.toml')}, "
        f"{len(facts.sizes)} weights files, {folder / 'oof.npz'}\n\n"
        f"To build a bundle of it:\n\n{_build_command(into / 'ensembles' / (recipe.name + '.toml'))}"
    )
    return facts


def _build_command(toml: Path) -> str:
    """The command that makes a bundle of the written TOML; its weights lie where the builder looks."""
    return f"python build_dataset.py {shlex.quote(str(toml))} --out out --owner YOUR_NAME"


def _read(request: TrainRequest) -> tuple[Recipe, data.Clips]:
    """The recipe and its clips, once the defaults that it leaves open are named.

    Raises  SpecError
    """
    recipe = load_recipe(request.recipe)
    if request.small:
        recipe = recipe.scaled_small()
    for line in name_defaults(recipe):
        print(line, flush=True)
    clips = data.read_clips(recipe.data, request.data, read_classes(recipe, request.recipe))
    if request.small and recipe.small.clips:
        clips = data.subset(clips, recipe.small.clips, recipe.seed)
    absent = [name for name, count in zip(clips.classes, clips.targets.sum(axis=0), strict=True) if not count]
    print(f"{len(clips)} clips of {len(clips.classes)} classes below {clips.folder}"
          + (f"; {len(absent)} classes without a clip: {', '.join(absent[:5])}" if absent else "")
          + (" ..." if len(absent) > 5 else ""), flush=True)
    return recipe, clips


def _check_found(work: CrossValidation, say: Callable[[str], None]) -> None:
    """Nothing, when every clip of the table is there; a word on those that are not.

    Raises  SpecError when none is
    """
    gone = [row.id for row in work.features.rows[: len(work.clips)] if row.clip.path is None]
    if len(gone) == len(work.clips):
        raise SpecError(
            f"{work.clips.folder}: none of the {len(gone)} clips of the table is there, e.g. {gone[0]!r}; "
            "correct --data, or in [data] the folder and the column of file names"
        )
    if gone:
        say(f"{len(gone)} of {len(work.clips)} clips are not in {work.clips.folder}, e.g. {gone[0]!r}")


def _read_pseudo(request: TrainRequest, recipe: Recipe, clips: data.Clips) -> pseudo.Pseudo | None:
    """The pseudo-labels that the command names, as the recipe's round wants them. Raises SpecError."""
    for i, turn in enumerate(recipe.pseudo):
        pseudo.check_round(turn, f"pseudo[{i}]")
    if request.pseudo is None:
        if request.soundscapes is not None or request.round != 1:
            raise SpecError("--soundscapes and --round go with --pseudo NPZ; give that, or remove them")
        return None
    if request.soundscapes is None:
        raise SpecError("--pseudo: give the folder of the recordings that were scored, --soundscapes DIR")
    turn = pseudo.choose_round(recipe.pseudo, request.round)
    found = pseudo.read(request.pseudo, request.soundscapes, clips.classes, turn)
    what = f"{len(found.rows)} windows of {len(set(found.recordings))} recordings"
    print(f"pseudo-labels: {what}, {found.share:.0%} of the draws", flush=True)
    return found


def _refer(path: Path, ensembles: Path, values: Sequence[Value]) -> str | Sequence[Value]:
    """The path as seen from the ensemble's folder if it lies below it, else the values themselves."""
    if path.resolve().is_relative_to(ensembles.resolve()):
        return path.resolve().relative_to(ensembles.resolve()).as_posix()
    return list(values)


def write_toml(work: CrossValidation, recipe_path: Path, into: Path, values: dict[str, float]) -> Ensemble:
    """Writes INTO/ensembles/NAME.toml and returns it as the kernel reads it.

    Raises  SpecError
    """
    recipe = work.recipe
    ensembles = into / "ensembles"
    classes = _refer(find_classes(recipe, recipe_path), ensembles, read_classes(recipe, recipe_path))
    prior: str | Sequence[float] | None = None  # The kernel then takes the uniform one.
    if recipe.prior:
        file = recipe_path.parent / recipe.prior
        prior = _refer(file, ensembles, [float(line) for line in file.read_text(encoding="utf-8").split()])
    text = export.ensemble_text(recipe, classes, work.numbers, values, prior)
    return export.write_ensemble(ensembles / f"{recipe.name}.toml", text)


def train_stackers(work: CrossValidation, ensemble: Ensemble, nets: Sequence[Trained]) -> list[Trained]:
    """The recipe's stackers, trained on the members' out-of-fold scores.

    Raises  SpecError
    """
    members = {member.name for member in ensemble.members}
    board = evaluation.out_of_fold(ensemble, [net for net in nets if net.member in members], len(work.clips))
    scores = {member.name: blend.merge_folds(member, board) for member in ensemble.members}
    made: list[Trained] = []
    for stacker, recipe in zip(ensemble.stackers, work.recipe.stackers, strict=True):
        table = stackers.make_table(stacker, ensemble, scores, work.clips.targets, work.folds)
        settings = load(Train, recipe.train, f"{stacker.name}.train")
        made += stackers.train_stacker(stacker, table, settings, work.recipe.seed, work.folder)
    return made


def merged_scores(ensemble: Ensemble, board: blend.Board) -> dict[str, np.ndarray]:
    """Member or stacker -> f64[N, K] out-of-fold probabilities, NaN rows where none; "" = ensemble."""
    scores = {part.name: blend.merge_folds(part, board) for part in ensemble.parts}
    return scores | {"": evaluation.blend_board(ensemble, board)}


def write_all(
    work: CrossValidation, nets: Sequence[Trained], request: TrainRequest, into: Path
) -> model_card.Facts:
    """Writes weights, TOML, card and the run folder's oof.npz; returns what the card tells.

    into  folder with (or for) weights/ and ensembles/
    Raises  SpecError
    """
    recipe = work.recipe
    clips = work.clips
    ensemble = write_toml(work, request.recipe, into, {})
    nets = [*nets, *train_stackers(work, ensemble, nets)]
    scores = merged_scores(ensemble, evaluation.out_of_fold(ensemble, nets, len(clips)))
    labelled = clips.targets.any(axis=1)
    scored = {name: labelled & np.isfinite(found).all(axis=1) for name, found in scores.items()}
    values = {name: lwlrap(clips.targets[rows], scores[name][rows])
              for name, rows in scored.items() if rows.any()}
    ensemble = write_toml(work, request.recipe, into, values)
    sizes = export.copy_weights(recipe, nets, into / "weights")
    export.write_scores(work.folder / "oof.npz", clips.ids, clips.classes, work.folds, scores, clips.targets)
    external = []
    if recipe.elsewhere:
        external = external_clips.describe(work, nets, ensemble, scores[""], recipe.elsewhere, request.data)
    facts = model_card.Facts(
        recipe=recipe,
        ensemble=ensemble,
        clips=clips,
        folds=work.folds,
        nets=nets,
        scores=scores,
        sizes=sizes,
        command=request.command,
        external=external,
    )
    (into / "weights" / recipe.card).write_text(model_card.write(facts, recipe.notes), encoding="utf-8")
    return facts
