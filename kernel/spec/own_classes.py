"""Members whose nets have classes of their own: the rules between their keys, and reading their files.

Owns what `classes_map`, `proxies`, `proxy_scores` and `missing` may say together. A map is class_maps'.
"""
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .class_maps import PROXIES, PROXY_SCORES, check_class_map, read_class_map, read_missing
from .parts import Member, Stacker
from .strict import require, require_choice


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


def read_class_maps(data: dict[str, Any], folder: Path) -> dict[str, Any]:
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
