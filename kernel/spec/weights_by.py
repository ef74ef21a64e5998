"""Weights of members by class and by group of classes: the CSV file that people write, as numbers.

Owns the file's columns and their mistakes. What the weights are used for is scores.class_weights'.
"""
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import did_you_mean
from .class_maps import nearest, read_cells
from .strict import require

NAMING = ("class", "group")  # the columns that say whose weights a line holds


@dataclass(frozen=True, kw_only=True)
class _Lines:
    """What the lines of a file say: cells by class, by group, and the group of each class."""

    by_class: dict[str, dict[str, float]] = field(default_factory=dict)
    by_group: dict[str, dict[str, float]] = field(default_factory=dict)
    group_of: dict[str, str] = field(default_factory=dict)


def read_weights_by(
    path: Path, classes: Sequence[str], groups: Mapping[str, str], usual: Mapping[str, float], where: str
) -> dict[str, tuple[float, ...]]:
    """Part -> its weight for each class, of the parts that have a column in the file.

    classes  the ensemble's classes;  groups: class -> its group, as `class_groups` says
    usual    part -> its key `weight`, which holds where the file says nothing

    A line with a class holds that class's weights, one with a group alone those of its classes; an empty cell
    of a class's line leaves its group's weight. A class's line may name its group.

    Raises  SpecError naming the file, the line and what to do
    """
    rows = read_cells(path, where)
    require(bool(rows), f"{where}: {path.name} is empty; begin with the header class,group,MEMBER,...")
    head = [cell.strip() for cell in rows[0][1]]
    for name in head:
        require(
            name in NAMING or name in usual,
            f"{where}: {path.name}, column {name!r} is no member; {did_you_mean(name, [*usual, *NAMING])}",
        )
    require(len(set(head)) == len(head), f"{where}: {path.name}: a column stands twice in {head}")
    require(
        any(name in NAMING for name in head) and any(name in usual for name in head),
        f"{where}: {path.name}: columns {head}; give `class`, `group` where there are any, and members",
    )
    found = _Lines(group_of={name: group for name, group in groups.items() if name in classes})
    for number, row in rows[1:]:
        at = f"{where}: {path.name}, line {number}"
        require(len(row) == len(head), f"{at}: {len(row)} cells, the header has {len(head)}")
        _take_line(dict(zip(head, row, strict=True)), classes, found, at)
    for name in found.by_group:
        named = set(found.group_of.values())
        told = f"{where}: {path.name}: no class is of group {name!r}; " + (
            nearest(name, named) if named else "give lines of its classes, or the key class_groups")
        require(name in named, told)
    return {
        part: tuple(_weight_of(part, name, found, usual[part]) for name in classes)
        for part in head if part in usual
    }


def _take_line(cells: dict[str, str], classes: Collection[str], found: _Lines, at: str) -> None:
    """Take in what one line says. Raises SpecError."""
    name = cells.pop("class", "")
    group = cells.pop("group", "")
    require(bool(name or group), f"{at}: neither a class nor a group; name one")
    weights: dict[str, float] = {}
    for part, text in cells.items():
        if not text.strip():
            continue
        try:
            weights[part] = float(text)
        except ValueError:
            weights[part] = math.nan
        require(0 <= weights[part] < math.inf, f"{at}: weight {text!r} of {part}; give a number, 0 or more")
    if not name:
        require(group not in found.by_group, f"{at}: group {group!r} has a line already; remove one")
        found.by_group[group] = weights
        return
    require(name in classes, f"{at}: class {name!r} is not in `classes`; {nearest(name, classes)}")
    require(name not in found.by_class, f"{at}: class {name!r} has a line already; remove one")
    found.by_class[name] = weights
    if group:
        usual = found.group_of.setdefault(name, group)
        require(usual == group, f"{at}: class {name!r} is of group {group!r}, class_groups says {usual!r}")


def _weight_of(part: str, name: str, found: _Lines, usual: float) -> float:
    """A part's weight for a class: the class's own, else its group's, else the usual one."""
    of_group = found.by_group.get(found.group_of.get(name, ""), {})
    return found.by_class.get(name, {}).get(part, of_group.get(part, usual))
