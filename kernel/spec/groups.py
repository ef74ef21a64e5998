"""Groups as data: members with a mean of their own, and classes that belong together.

Owns what the keys of [[groups]] mean, their rules, and which files beside a TOML are read into it (class
groups, tables of steps). What a step does with its keys is scores.steps'.
"""
import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SpecError, did_you_mean
from .strict import require

MOST_CSV_BYTES = 300_000  # they travel inside the manifest, which has 1 MB
# Columns of a table of classes, ours first; then those of Kaggle's taxonomy.csv in BirdCLEF 2025 and 2026.
CLASS_COLUMNS = (("class", "group"), ("primary_label", "class_name"))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Some parts with a mean of their own; to the ensemble they count as one.

    name        unique among members, stackers and groups
    members     names of members, stackers and earlier groups; each is in one group at most
    mean        over them, by their `weight`: kernel.scores.means.MEANS
    mean_power  exponent of the mean "power"
    weight      weight in the final mean, or in the group that holds this one
    steps       what is done to the group's scores, in order: tables with `kind`
                (kernel.scores.steps.STEPS) or with `file = "my_post.py:function"`
    """

    name: str
    members: tuple[str, ...]
    mean: str = "geometric"
    mean_power: float = 2.0
    weight: float = 1.0
    steps: tuple[Any, ...] = ()


def check_groups(groups: Sequence[Group], parts: Sequence[str]) -> None:
    """Nothing, when every group has known members that no other group has.

    Raises  SpecError naming the key
    """
    held: dict[str, str] = {}
    for i, group in enumerate(groups):
        where = f"groups[{i}]"
        require(bool(group.members), f"{where}.members: none; name at least one member")
        require(group.weight >= 0,
                f"{where}.weight: {group.weight} is negative; use 0 to leave the group out")
        known = [*parts, *(earlier.name for earlier in groups[:i])]
        for name in group.members:
            if name not in known:
                raise SpecError(f"{where}.members: {name!r} is no member, stacker or earlier group; "
                                + did_you_mean(name, known))
            require(name not in held, f"{where}.members: {name!r} is in the group {held.get(name)!r} already")
            held[name] = group.name


def check_class_groups(groups: Mapping[str, Collection[str]], classes: Collection[str]) -> None:
    """Raises SpecError, unless each class is in one group at most, and each name is a class."""
    seen: dict[str, str] = {}
    for group, names in groups.items():
        for name in names:
            if name not in classes:
                raise SpecError(f"class_groups.{group}: {name!r} is no class; {did_you_mean(name, classes)}")
            require(name not in seen, f"class_groups.{group}: {name!r} is in {seen.get(name)!r} already")
            seen[name] = group


def read_beside(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The tables of a TOML with what its steps and class groups name as CSV files read into them.

    Raises  SpecError
    """
    read = dict(data)
    if isinstance(read.get("class_groups"), str):
        where = f"class_groups = {read['class_groups']!r}"
        classes = read.get("classes")
        names = [str(name) for name in classes] if isinstance(classes, list) else []
        read["class_groups"] = _class_groups(_read(folder / read["class_groups"], where), names, where)
    for key in ("members", "stackers", "groups"):
        if isinstance(read.get(key), list):
            read[key] = [_with_tables(part, folder, f"{key}[{i}]") for i, part in enumerate(read[key])]
    if "output" in read:
        read["output"] = _with_tables(read["output"], folder, "output")
    return read


def _with_tables(part: Any, folder: Path, where: str) -> Any:
    """A part whose steps hold the text of each CSV file that they name."""
    if not isinstance(part, dict) or not isinstance(part.get("steps"), list):
        return part  # `load` says what is wrong with it
    return {**part, "steps": [
        {key: _read(folder / value, f"{where}.steps[{i}].{key} = {value!r}")
         if isinstance(value, str) and value.endswith(".csv") else value for key, value in step.items()}
        if isinstance(step, dict) else step for i, step in enumerate(part["steps"])]}


def _read(path: Path, where: str) -> str:
    """The text of a CSV file, ending with a line break: so a text that was read differs from a name."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SpecError(f"{where}: {path} cannot be read ({error.strerror}); give its place relative to the "
                        "TOML's own folder") from error
    except ValueError as error:
        raise SpecError(f"{where}: {path} is no UTF-8 text ({error})") from error
    require(len(text) <= MOST_CSV_BYTES,
            f"{where}: {len(text)} characters; at most {MOST_CSV_BYTES} fit into a bundle's manifest")
    return text.replace("\r\n", "\n").rstrip("\n") + "\n"


def read_csv(text: str, where: str) -> list[dict[str, str]]:
    """Rows of a CSV text by the names of its header.

    Raises  SpecError for a text without a header, or a row of another length
    """
    header, *rows = [row for row in csv.reader(io.StringIO(text)) if row] or [[]]
    names = [name.strip() for name in header]
    require(len(set(names)) == len(names) > 0, f"{where}: no header, or one with a name twice: {names}")
    for i, row in enumerate(rows, 2):
        require(len(row) == len(names), f"{where}: line {i} has {len(row)} cells, the header {len(names)}")
    return [dict(zip(names, map(str.strip, row), strict=True)) for row in rows]


def _class_groups(text: str, classes: Sequence[str], where: str) -> dict[str, list[str]]:
    """Group -> its classes, of a CSV that may hold more classes than the ensemble has."""
    rows = read_csv(text, where)
    columns = next((pair for pair in CLASS_COLUMNS if rows and set(pair) <= set(rows[0])), None)
    if columns is None:
        raise SpecError(f"{where}: needs the columns class and group (or primary_label and class_name)")
    groups = {row[columns[0]]: row[columns[1]] for row in rows}
    missing = [name for name in classes if name not in groups]
    require(not missing, f"{where}: no line for {len(missing)} classes: {', '.join(missing[:3])}")
    found: dict[str, list[str]] = {}
    for name in classes:
        found.setdefault(groups[name], []).append(name)
    return found
