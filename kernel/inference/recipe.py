"""A member without its weights: for each of its inputs a front end, a view and a finish.

Owns how they are built from an ensemble, and how many cells a row costs. A net with its weights is `member`.
"""
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from .. import spec
from ..errors import ModelLoadFailed, SpecError
from ..sound import frontends, own
from ..sound.source import Source
from . import finish, views
from .class_maps import MappedClasses, open_class_map

# Tiles of one clip per forward on a CPU: small enough for its caches and for rows side by side.
PASSES_PER_BATCH = 4
Scores = TypeVar("Scores", np.ndarray, torch.Tensor)
CONSTANTS = "finish."  # what the names of a blob begin with that belong to the finish, not to the net


class CutFirst:
    """A front end behind a view that cuts the wave (a `Source`): the cuts' arrays, stacked along channels."""

    uneven = True

    def __init__(self, fe: Source, view: views.View) -> None:
        self.fe = fe
        self.name = fe.name
        self.view = view
        self.key = f"{fe.key}-{view.key}"
        self.rate = fe.rate
        self.dtype = fe.dtype
        self.channels = fe.channels
        self.bins = fe.bins
        self.pad = fe.pad
        self.time = fe.time
        self.fixed = fe.fixed
        self.max_frames = fe.max_frames
        self.max_bytes = fe.max_bytes

    def of_row(self, wave: np.ndarray, row_id: str) -> np.ndarray:
        """[P*C, M, T] of P cuts of the wave."""
        return np.concatenate([self.fe.of_row(cut, row_id) for cut in self.view.cut_wave(wave, row_id)])


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One input of a net: front end, view, finish."""

    fe: Source
    view: views.View
    finish: finish.Finish

    @property
    def source(self) -> Source:
        """The front end itself, without a view before it."""
        return self.fe.fe if isinstance(self.fe, CutFirst) else self.fe

    def cut(self, stored: np.ndarray, row_id: str) -> np.ndarray:
        """[P, C, M, t] in the stored dtype."""
        if isinstance(self.fe, CutFirst):
            return stored.reshape(-1, self.fe.channels, *stored.shape[1:])
        return self.view.cut(stored, row_id) if self.fe.time else stored[None]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything of a member but its weights.

    stages   input name -> Stage; `timed` is the input that carries the time axis, `view` that input's view
    columns  which of the net's outputs is each class; empty = they are in the ensemble's order
    own_classes  how the net's own classes become the ensemble's; None = it has these
    """

    member: spec.Member
    stages: dict[str, Stage]
    timed: str
    view: views.View
    columns: tuple[int, ...] = ()
    own_classes: MappedClasses | None = None

    def width(self, found: int) -> int:
        """Values of an answer: as found, or the net's own number where all passes failed and gave NaN[1]."""
        own = self.own_classes
        named = len(self.columns) if own is None else own.map.outputs
        return named if found == 1 and named else found

    def before_activation(self, answers: Scores) -> Scores:
        """What the activation gets of the answers: logits of the classes it knows, where these are mapped.

        Raises  ValueError for another number of values than the map has labels
        """
        own = self.own_classes
        return own.apply(answers) if own is not None and own.logits else answers

    @property
    def key(self) -> tuple[object, ...]:
        """Equal keys mean that a row's inputs are equal."""
        stages = tuple(
            (name, s.fe.key, s.view.key, repr(s.finish.operations)) for name, s in self.stages.items()
        )
        return stages, self.timed

    def in_order(self, scores: Scores) -> Scores:
        """Probabilities [..., K] in the ensemble's order, of a net with another one or its own classes.

        A class that the net does not know holds 0: in the blend the net has no say there.

        Raises  ValueError for another number of values than the map has labels
        """
        own = self.own_classes
        if own is not None:
            return own.expand(scores if own.logits else own.apply(scores))
        return scores[..., list(self.columns)] if self.columns else scores

    @property
    def takes_constants(self) -> bool:
        """True where an operation of a finish may take numbers from the checkpoint."""
        operations = [entry for stage in self.stages.values() for entry in stage.finish.operations]
        return any(isinstance(entry, finish.InNetMel) for entry in operations)

    @property
    def time_axis(self) -> int:
        """Axis of time in the net's input: -1, or -2 where time stands before frequency."""
        return -2 if self.stages[self.timed].finish.time_first else -1

    def cells(self, seconds: float) -> float:
        """Upper bound of the frames a net works through for a row of `seconds`, all its passes together."""
        stage = self.stages[self.timed]
        stored = stage.fe.max_frames(int(seconds * stage.fe.rate) + 1)
        return float(self.view.count(stored) * stage.finish.frames(self.view.fixed or stored))

    def cells_at_once(self, cells: float) -> float:
        """Frames of the largest forward of a row of `cells` frames on a CPU: many cuts run in several."""
        fixed = self.view.fixed
        if fixed is None:
            return cells
        return min(cells, PASSES_PER_BATCH * self.stages[self.timed].finish.frames(fixed))

    def smallest(self, min_frames: int) -> int:
        """Stored frames needed so that the finish gives at least `min_frames`."""
        have = self.stages[self.timed].finish.frames
        if self.view.fixed is not None:
            return self.view.fixed
        low, high = 1, max(1, min_frames)
        while have(high) < min_frames:
            high *= 2
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if have(middle) >= min_frames else (middle + 1, high)
        return low


def open_source(ensemble: spec.Ensemble, name: str) -> Source:
    """The front end [frontends.NAME]; one that looks at whole recordings where rows are their windows.

    Raises  SpecError
    """
    fe = own.open_front_end(ensemble.frontends[name], name)
    if ensemble.windows is None or isinstance(fe, own.OwnFrontEnd) or fe.scope == "window":
        return fe
    if fe.piece_seconds != ensemble.windows.seconds:
        raise SpecError(
            f"frontends.{name}: piece_seconds = {fe.piece_seconds:g} and windows.seconds = "
            f"{ensemble.windows.seconds:g} must be equal where scope = {fe.scope!r}; correct one of them"
        )
    if ensemble.windows.context_seconds:
        raise SpecError(
            f"frontends.{name}: scope = {fe.scope!r} and windows.context_seconds do not go together; give "
            "the front end context_frames, or scope = \"window\""
        )
    return fe.of_recording()


def _check_keeps_time(member: spec.Member, fe: Source) -> None:
    """Raises SpecError for a front end whose columns do not follow the wave of a window."""
    if isinstance(fe, frontends.FrontEnd) and (fe.trim_db is not None or fe.layout != "plain"):
        raise SpecError(
            f"member {member.name}: frames want a front end that keeps time; {fe.name} has trim_db = "
            f"{fe.trim_db} and layout = {fe.layout!r}"
        )


def build_recipe(ensemble: spec.Ensemble, member: spec.Member) -> Recipe:
    """Front ends, views and finishes of a member.

    Raises  SpecError for unknown kinds or keys
    """
    stages: dict[str, Stage] = {}
    for name, entry in member.named_inputs().items():
        fe = open_source(ensemble, entry.frontend)
        view = views.build(member.view, fe)
        if member.frames is not None:
            _check_keeps_time(member, fe)
        source: Source = CutFirst(fe, view) if fe.time and view.domain == "wave" else fe
        stages[name] = Stage(fe=source, view=view, finish=finish.build(entry.finish, fe))
    timed = next((name for name, stage in stages.items() if stage.fe.time), None)
    if timed is None:
        raise SpecError(
            f"member {member.name}: no input has a time axis; give it a spectrogram or a waveform"
        )
    theirs = member.classes_from
    columns = tuple(theirs.index(name) for name in ensemble.classes) if theirs else ()
    own_classes = open_class_map(member, len(ensemble.classes))
    return Recipe(
        member=member,
        stages=stages,
        timed=timed,
        view=stages[timed].view,
        columns=columns,
        own_classes=own_classes,
    )


def constant_key(input_name: str, operation: int, key: str) -> str:
    """Name in a net's blob of a number that an operation of its finish takes from the checkpoint."""
    return f"{CONSTANTS}{input_name}.{operation}.{key}"


def fill_constants(
    recipe: Recipe, state: Mapping[str, torch.Tensor]
) -> tuple[Recipe, dict[str, torch.Tensor]]:
    """The recipe with the finishes' numbers that a net's blob holds, and the net's own tensors.

    Raises  ModelLoadFailed for a number that no operation takes
    """
    own = {key: value for key, value in state.items() if not key.startswith(CONSTANTS)}
    if len(own) == len(state):
        return recipe, own
    constants: dict[str, dict[int, dict[str, float]]] = {}
    for name in state.keys() - own.keys():
        entry, operation, key = name.removeprefix(CONSTANTS).rsplit(".", 2)
        constants.setdefault(entry, {}).setdefault(int(operation), {})[key] = float(state[name])
    try:
        stages = dict(recipe.stages)
        for entry, values in constants.items():
            stages[entry] = replace(stages[entry], finish=stages[entry].finish.with_constants(values))
    except (KeyError, TypeError) as error:
        raise ModelLoadFailed(
            f"{recipe.member.name}: {error}; its finish is another than the bundle was built "
            "with: build it again"
        ) from error
    return replace(recipe, stages=stages), own
