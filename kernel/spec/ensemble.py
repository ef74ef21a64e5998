"""An ensemble as data: the typed form of the TOML that people write, and its rules.

Owns `Ensemble`, what its own keys mean, and the rules between all keys; members and stackers are `parts`.
Does not build anything: front ends, views, finishes and families check their own parameters.
"""
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SpecError, did_you_mean
from .attached import check_origin
from .dry_run import DryRun, check_dry_run
from .groups import Group, check_class_groups, check_groups, read_beside
from .own_classes import check_own_classes, check_stacker_inputs, check_weights_by, read_own_classes
from .parts import Member, Part, Stacker
from .strict import load, read_toml, require, require_choice
from .windows import Windows, check_frame_keys, check_no_frame_keys, check_windows

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}\Z")
# The functions are kernel.scores.means.MEANS, which stands above this module; a test compares the names.
# Each with its scope: the rows that one result depends on.
MEAN_SCOPES = {
    "geometric": "row", "arithmetic": "row", "logit": "row", "rank": "table", "power": "row",
    "min": "row", "max": "row", "median": "row", "minmax": "table", "vote": "row", "vlom": "row",
}
FRAMES = ("average_max", "max_average", "average")  # kernel.scores.frames.RULES, compared by a test too
MEANS = tuple(MEAN_SCOPES)
# These compare rows: only complete members may take part
ROW_DEPENDENT_MEANS = tuple(name for name, scope in MEAN_SCOPES.items() if scope == "table")
ACTIVATIONS = ("sigmoid", "softmax", "none")
# The smallest score in a blend and in a submission: one exact zero would make every geometric mean zero.
LEAST_PROBABILITY = 1e-30
LONGEST_CLIP_S = 60.0  # longer clips are cut there, unless the ensemble says otherwise


@dataclass(frozen=True, kw_only=True)
class Output:
    """Form of submission.csv.

    format        "probabilities" (one column per class) or "label" (one column with the best class)
    label_column  name of the label column; None or not in the sample = the first column after the id, and a
                  sample whose columns are classes is refused
    labels        class -> text written (default: the class name)
    smoothing     kernel over neighbouring windows of one clip, odd length, e.g. [0.1, 0.8, 0.1]: short for a
                  last step {kind = "smooth", weights = [...]}
    steps         what is done to the finished table, in order: tables with `kind`
                  (kernel.scores.steps.STEPS) or with `file = "my_post.py:function"`
    """

    format: str = "probabilities"
    label_column: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    smoothing: tuple[float, ...] = ()
    steps: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """A whole solution as data; docs/ensembles.md lists every key.

    name             a-z, 0-9, "_", "-" and ".": part of the dataset's default name
    classes          class names, or a text file beside the TOML with one per line
    members          [[members]]: the first-level nets
    frontends        [frontends.NAME]: what is stored of a clip; {preset = ...} or kernel.sound.frontends'
                     keys
    stackers         [[stackers]]: second-level nets
    about            one sentence for the dataset's page
    profile          limits it runs under: fat2019, code-gpu, code-cpu or birdclef-cpu90
                     (kernel.limits.PROFILES)
    mean             over members and stackers: kernel.scores.means.MEANS
    mean_power       exponent of the mean "power"
    weights_by       CSV file beside the TOML with a column for each member, stacker or group that weighs
                     differently by class: lines of a class, or of a group of classes; else its `weight` holds
    row_independent  false where the metric compares rows: then only complete members count, as they do by
                     themselves where a mean or a step has the scope "table"
    max_seconds      longer clips are cut there; None = 60, or with [windows] no limit
    prior            score of each class in rows that nothing could predict, or a text file beside the TOML;
                     empty = uniform
    output           [output]: form of submission.csv
    windows          [windows]: rows are windows of long recordings
    groups           [[groups]]: members with a mean and steps of their own
    class_groups     group -> its classes, for steps that treat groups of classes differently; or a CSV file
                     beside the TOML with the columns class and group (or primary_label and class_name)
    dry_run          [dry_run]: training recordings that are tried when a version is saved
    """

    name: str
    classes: tuple[str, ...]
    members: tuple[Member, ...]
    frontends: dict[str, dict[str, Any]] = field(default_factory=dict)
    stackers: tuple[Stacker, ...] = ()
    about: str = ""
    profile: str = "fat2019"
    mean: str = "geometric"
    mean_power: float = 2.0
    weights_by: dict[str, tuple[float, ...]] = field(default_factory=dict)
    row_independent: bool = True
    max_seconds: float | None = None
    prior: tuple[float, ...] = ()
    output: Output = field(default_factory=Output)
    windows: Windows | None = None
    groups: tuple[Group, ...] = ()
    class_groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dry_run: DryRun | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the blend is made of: the members, then the stackers."""
        return *self.members, *self.stackers

    @property
    def longest_s(self) -> float:
        """Seconds of audio that are read of a clip at most; infinite where a recording is read to its end."""
        return self.max_seconds or (math.inf if self.windows else LONGEST_CLIP_S)


def check(ensemble: Ensemble) -> Ensemble:
    """The ensemble itself, once every rule that needs no other module holds.

    Raises  SpecError naming the key
    """
    _check_whole(ensemble)
    names = [part.name for part in ensemble.parts]
    for i, member in enumerate(ensemble.members):
        _check_member(member, ensemble.frontends, f"members[{i}]")
        _check_class_order(member.classes_from, ensemble.classes, f"members[{i}].classes_from")
        check_own_classes(member, len(ensemble.classes), f"members[{i}]")
        if member.frames is not None:
            _check_frames(member, ensemble, f"members[{i}]")
        else:
            check_no_frame_keys(member, f"members[{i}]")
    for i, stacker in enumerate(ensemble.stackers):
        _check_stacker(stacker, names[:len(ensemble.members)], f"stackers[{i}]")
        check_stacker_inputs(stacker, ensemble.members, len(ensemble.classes), f"stackers[{i}]")
    check_groups(ensemble.groups, names)
    check_weights_by(ensemble.weights_by, [*ensemble.parts, *ensemble.groups], ensemble.classes)
    check_class_groups(ensemble.class_groups, ensemble.classes)
    names += [group.name for group in ensemble.groups]
    for name in names:
        require(names.count(name) == 1, f"members: the name {name!r} is used twice")
    for i, group in enumerate(ensemble.groups):
        _check_name(group.name, f"groups[{i}].name")
        require_choice(group.mean, MEANS, f"groups[{i}].mean")
        require(group.mean != "power" or group.mean_power != 0,
                f'groups[{i}].mean_power: 0 has no root; write mean = "geometric", which is its limit')
    return ensemble


def _check_whole(ensemble: Ensemble) -> None:
    """The rules of the ensemble's own keys."""
    classes = ensemble.classes
    require(len(classes) >= 2 and len(set(classes)) == len(classes), "classes: at least two names, each once")
    prior = ensemble.prior
    require(
        not prior or (len(prior) == len(classes) and all(0 <= p <= 1 for p in prior)),
        f"prior: {len(prior)} values for {len(classes)} classes; one each, in 0..1",
    )
    _check_name(ensemble.name, "name")
    if ensemble.windows is not None:
        check_windows(ensemble.windows)
        framed = any(member.frames for member in ensemble.members)
        require(
            framed or ensemble.windows.context_every == 1,
            "windows.context_every: every row needs a context of its own where no member has `frames`",
        )
    if ensemble.dry_run is not None:
        check_dry_run(ensemble.dry_run)
    require(bool(ensemble.members), "members: none; add at least one [[members]]")
    require_choice(ensemble.mean, MEANS, "mean")
    require(
        ensemble.mean != "power" or ensemble.mean_power != 0,
        'mean_power: 0 has no root; write mean = "geometric", which is its limit',
    )
    require_choice(ensemble.output.format, ("probabilities", "label"), "output.format")
    weights = ensemble.output.smoothing
    require(
        not weights or (len(weights) % 2 == 1 and min(weights) >= 0 and weights[len(weights) // 2] > 0),
        f"output.smoothing: {list(weights)}; give an odd number of weights >= 0, the middle one, for the row "
        "itself, above 0",
    )


def _check_member(member: Member, frontends: Collection[str], where: str) -> None:
    _check_part(member, where)
    require(
        bool(member.frontend) != bool(member.inputs),
        f"{where}: give either `frontend` (one input) or `inputs` (several), not both and not neither",
    )
    for name, entry in member.named_inputs().items():
        if entry.frontend not in frontends:
            raise SpecError(
                f"{where}.{name}.frontend: {entry.frontend!r} is not in [frontends]; "
                + did_you_mean(entry.frontend, frontends)
            )
    require(
        member.output is None or member.family == "onnx",
        f'{where}.output: {member.output!r}; only a graph (family = "onnx") has outputs to choose from',
    )
    require(
        len(member.fold_weights) in (0, len(member.folds)),
        f"{where}.fold_weights: {len(member.fold_weights)} weights for {len(member.folds)} folds",
    )


def _check_class_order(theirs: Collection[str], ours: Collection[str], where: str) -> None:
    """Raises SpecError, unless another order of the classes holds each of them once."""
    if not theirs:
        return
    missing = sorted(set(ours) - set(theirs))
    extra = sorted(set(theirs) - set(ours))
    require(
        sorted(theirs) == sorted(ours),
        f"{where}: not the classes in another order ({len(theirs)} names for {len(ours)} classes; missing "
        f"{missing[:3]}, unknown {extra[:3]}); list each class once, in the order of the net's outputs",
    )


def _check_frames(member: Member, ensemble: Ensemble, where: str) -> None:
    """The rules of a member whose net gives one score per frame."""
    require_choice(str(member.frames), FRAMES, f"{where}.frames")
    if ensemble.windows is None:
        raise SpecError(f"{where}.frames: rows are made of frames only with [windows]")
    check_frame_keys(member, ensemble.windows, where)
    kind = member.view.get("kind", "full")
    require(kind == "full", f"{where}.view: with frames the net hears a whole context; {kind!r} cuts it")
    require(not member.view.get("flip"), f"{where}.view.flip: mirrored frames are those of another time")


def _check_stacker(stacker: Stacker, members: Collection[str], where: str) -> None:
    _check_part(stacker, where)
    require_choice(stacker.features, ("concat", "per_class"), f"{where}.features")
    for name in stacker.inputs:
        if name not in members:
            raise SpecError(f"{where}.inputs: {name!r} is no member; {did_you_mean(name, members)}")
    require(
        len(stacker.average_weights) in (0, len(stacker.inputs)),
        f"{where}.average_weights: one weight per input, {len(stacker.inputs)} in all",
    )


def _check_part(part: Part, where: str) -> None:
    """The rules that members and stackers share."""
    _check_name(part.name, f"{where}.name")
    require(
        len(part.folds) > 0 and len(set(part.folds)) == len(part.folds),
        f"{where}.folds: {list(part.folds)}; list each fold number once, at least one",
    )
    require(
        len(part.folds) == 1 or part.weights is None or "{fold}" in part.weights,
        f"{where}.weights: {part.weights!r} has no {{fold}} although there are {len(part.folds)} folds",
    )
    require(
        part.weight >= 0,
        f"{where}.weight: {part.weight} is negative; use 0 to leave the part out of the final mean",
    )
    if part.source is not None:
        check_origin(part.source, part.folds, f"{where}.source")
    require_choice(part.fold_mean, MEANS, f"{where}.fold_mean")
    if part.activation is not None:
        require_choice(part.activation, ACTIVATIONS, f"{where}.activation")


def _check_name(name: str, where: str) -> None:
    require(
        NAME.match(name) is not None,
        f"{where}: {name!r}; use a-z, 0-9, '_', '-' and '.', at most 64 characters",
    )


def load_ensemble(path: Path) -> Ensemble:
    """Ensemble of a TOML file; `classes` and `prior` may name a text file beside it, one value per line.

    Raises  SpecError
    """
    return parse_ensemble(read_toml(path, "an ensemble TOML"), path)


def parse_ensemble(data: Mapping[str, Any], path: Path) -> Ensemble:
    """Ensemble of the tables read from `path`.

    Raises  SpecError
    """
    try:
        named = dict(data)
        for key, kind in (("classes", str), ("prior", float)):
            if isinstance(named.get(key), str):
                named[key] = _read_list(path.parent / named[key], kind, f"{key} = {named[key]!r}")
        named = read_beside(named, path.parent)
        named = read_own_classes(_read_class_orders(named, path.parent), path.parent)
        return check(load(Ensemble, named))
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def _read_class_orders(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tables with every member's `classes_from`, where it names a file, as a list."""
    members = data.get("members")
    if not isinstance(members, list):
        return data  # `load` says what is wrong with it.
    read = []
    for i, member in enumerate(members):
        named = member.get("classes_from") if isinstance(member, dict) else None
        if isinstance(named, str):
            where = f"members[{i}].classes_from = {named!r}"
            member = {**member, "classes_from": _read_list(folder / named, str, where)}
        read.append(member)
    return {**data, "members": read}


def _read_list(path: Path, kind: type[str] | type[float], where: str) -> list[Any]:
    """The values of a text file, one per line."""
    try:
        return [kind(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except OSError as error:
        raise SpecError(
            f"{where}: {path} cannot be read ({error.strerror}); give its place relative to the TOML's own "
            "folder, or write the values as a list"
        ) from error
    except ValueError as error:
        raise SpecError(f"{where}: {error}") from error
