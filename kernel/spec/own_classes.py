"""Members that know other classes than the ensemble, or weigh otherwise in some: rules, and reading files.

Owns what `classes_map`, `proxies`, `proxy_scores`, `missing` and `weights_by` may say together. The files
are class_maps' and weights_by's.
"""
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import did_you_mean
from .class_maps import PROXIES, PROXY_SCORES, check_class_map, read_class_map, read_missing
from .groups import Group
from .parts import Member, Part, Stacker
from .strict import require, require_choice
from .weights_by import read_weights_by


def check_own_classes(member: Member, classes: int, where: str) -> None:
    """The rules of a member whose net has classes of its own."""
    require_choice(member.proxies, PROXIES, f"{where}.proxies")
    require_choice(member.proxy_scores, PROXY_SCORES, f"{where}.proxy_scores")
    read_missing(member.missing, f"{where}.missing")
    if member.classes_map is None:
        for key in ("proxies", "proxy_scores", "missing"):
            default = getattr(Member, key)
            given = getattr(member, key)
            told = f"{where}.{key}: {given!r} without `classes_map`; add that, or remove this key"
            require(given == default, told)
        return
    require(
        not member.classes_from,
        f"{where}.classes_map: give it as the name of a CSV file, with the net's labels in `classes_from`",
    )
    check_class_map(member.classes_map, classes, f"{where}.classes_map")
    require(
        member.proxy_scores == "probabilities" or member.activation != "none",
        f'{where}.proxy_scores: "logits", but activation = "none" says that the net gives probabilities; '
        'write "probabilities"',
    )
    heaviest = max(member.classes_map.weights)
    require(
        heaviest <= 1 or member.proxies == "mean" or member.proxy_scores == "logits",
        f"{where}.classes_map: weight {heaviest:g} x a probability may leave 0..1; give weights up to 1, or "
        'proxies = "mean"',
    )


def check_stacker_inputs(stacker: Stacker, members: Sequence[Member], classes: int, where: str) -> None:
    """Raises SpecError for an input that leaves classes to others: a stacker reads a score of each."""
    for member in members:
        theirs = member.classes_map
        open_classes = theirs is not None and not all(theirs.knows(classes))
        require(
            member.name not in stacker.inputs or not open_classes or member.missing_score is not None,
            f"{where}.inputs: {member.name!r} does not know every class, and a stacker reads a score of "
            f"each; give {member.name!r} the number that the stacker was trained with, such as missing = 0.5",
        )


def check_weights_by(
    weights_by: Mapping[str, Sequence[float]], parts: Sequence[Part | Group], classes: Sequence[str]
) -> None:
    """Raises SpecError, unless weights by class are those of parts, and each class has one where it is known.

    A class that no part knows holds the prior.
    """
    names = [part.name for part in parts]
    for name, weights in weights_by.items():
        require(name in names, f"weights_by: {name!r} is no member; {did_you_mean(name, names)}")
        require(
            len(weights) == len(classes) and all(0 <= weight < math.inf for weight in weights),
            f"weights_by.{name}: {len(weights)} weights for {len(classes)} classes; one each, 0 or more",
        )
    grouped = {name for part in parts if isinstance(part, Group) for name in part.members}
    for k, name in enumerate(classes if weights_by else ()):
        found: dict[str, float] = {}
        for part in parts:  # a group stands behind its members
            if _speaks(part, k, len(classes), found):
                found[part.name] = weights_by[part.name][k] if part.name in weights_by else part.weight
        deciding = [weight for part, weight in found.items() if part not in grouped]
        known = any(_speaks(part, k, len(classes), {}) for part in parts)
        require(
            any(weight > 0 for weight in deciding) or not known,
            f"weights_by: class {name!r}: every member that knows it has weight 0; give one of them more",
        )


def _speaks(part: Part | Group, k: int, classes: int, weights: Mapping[str, float]) -> bool:
    """True where the part has a score for class number k, be it the number of `missing`; a group where one
    of its members has a weight above 0 there.
    """
    if isinstance(part, Group):
        return any(weights.get(name, 0.0) > 0 for name in part.members)
    if isinstance(part, Stacker) or part.classes_map is None or part.missing_score is not None:
        return True
    return part.classes_map.knows(classes)[k]


def read_own_classes(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tables with the numbers of the files that `classes_map` and `weights_by` name."""
    return _read_weights_by(_read_class_maps(data, folder), folder)


def _read_weights_by(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tables with `weights_by`, where it names a file, as one weight per class of each part there."""
    named = data.get("weights_by")
    classes = data.get("classes")
    if not isinstance(named, str) or not isinstance(classes, (list, tuple)):
        return data  # `load` says what is wrong with it.
    usual: dict[str, float] = {}
    for key in ("members", "stackers", "groups"):
        for part in data.get(key, ()):
            if isinstance(part, dict) and isinstance(part.get("name"), str):
                weight = part.get("weight", 1.0)
                usual[part["name"]] = float(weight) if isinstance(weight, (int, float)) else 1.0
    where = f"weights_by = {named!r}"
    groups = data.get("class_groups", {})
    group_of = {name: group for group, held in groups.items() for name in held}
    names = list(map(str, classes))
    return {**data, "weights_by": read_weights_by(folder / named, names, group_of, usual, where)}


def _read_class_maps(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tables with every member's `classes_map`, where it names a file, as its numbers.

    The labels in `classes_from` are then done with: the bundle holds what the map takes of them.
    """
    members = data.get("members")
    classes = data.get("classes")
    if not isinstance(members, list) or not isinstance(classes, (list, tuple)):
        return data  # `load` says what is wrong with it.
    read = []
    for i, member in enumerate(members):
        named = member.get("classes_map") if isinstance(member, dict) else None
        if isinstance(named, str):
            labels = member.get("classes_from")
            require(
                isinstance(labels, (list, tuple)) and bool(labels) and all(map(_is_text, labels)),
                f"members[{i}].classes_from: {labels!r}; with `classes_map` list the labels of the net's "
                "outputs in their order, or name a text file with one per line",
            )
            where = f"members[{i}].classes_map = {named!r}"
            found = read_class_map(folder / named, labels, [str(name) for name in classes], where)
            member = {**member, "classes_from": (), "classes_map": asdict(found)}
        read.append(member)
    return {**data, "members": read}


def _is_text(value: object) -> bool:
    return isinstance(value, str)
