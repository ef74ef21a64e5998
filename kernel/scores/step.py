"""What every step on a table of scores is: its keys, its scope, and what it may see.

Owns `Step`, the `Piece` of a table that a step changes at once, the `Sheet` of what is known of rows and
classes, and values that differ by class. Which steps there are is `steps`'; when they run is `levels`'.
"""
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..errors import SpecError, did_you_mean
from ..spec.groups import read_csv

# A row alone; the rows of one recording; all rows of the table. A wider scope waits for more rows.
SCOPES = ("row", "recording", "table")
EDGE = 1e-15  # probabilities are kept this far from 0 and 1 before logit
DEFAULT = "default"  # the key of a per-class table for all groups that it does not name


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What is known of the rows and columns of a table before any score.

    classes     names of the columns
    groups      name of a group of classes -> its classes
    ids         ids of the rows
    files       of each row the name of its recording
    recordings  row numbers int[n] of each recording, in time order, each id once
    same        int[N]: of each row the first one with its id, which it equals; None: no id is repeated
    """

    classes: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ids: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    recordings: tuple[np.ndarray, ...] = ()
    same: np.ndarray | None = None

    def columns(self, groups: Iterable[str] | None) -> np.ndarray:
        """bool[K]: the classes of these groups; None = all of them.

        Raises  SpecError for an unknown group
        """
        if groups is None:
            return np.ones(len(self.classes), bool)
        wanted: set[str] = set()
        for name in groups:
            if name not in self.groups:
                near = did_you_mean(name, self.groups) if self.groups else "the ensemble has none"
                raise SpecError(f"{name!r} is none of class_groups; {near}")
            wanted.update(self.groups[name])
        return np.array([name in wanted for name in self.classes])

    def place(self, name: str) -> int:
        """Number of a class. Raises SpecError for an unknown one."""
        if name not in self.classes:
            raise SpecError(f"{name!r} is no class; {did_you_mean(name, self.classes)}")
        return self.classes.index(name)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows that a step changes at once: of its scope, in time order where that is a recording.

    values  f64[n, K]; NaN where a score is missing: a row, or a class that nothing has scored there yet
    rows    int[n]: their numbers in the whole table
    others  scores f64[N, K] of members and groups by name, for steps with `gate`
    acted   bool[n, K]: where an earlier gate of the same table has changed a score; gates write it
    """

    values: np.ndarray
    rows: np.ndarray
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    acted: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool))

    def beside(self, shift: int) -> np.ndarray:
        """f64[n, K]: of each score the one `shift` rows later; where that is missing, the nearest one before
        it on the way there, at last the score itself.
        """
        out = self.values
        count = len(out)
        for step in range(1, min(abs(shift), count - 1) + 1):  # farther away there is no row
            at = np.arange(count) + (step if shift > 0 else -step)
            inside = np.clip(at, 0, count - 1)
            there = self.values[inside]
            out = np.where((at == inside)[:, None] & np.isfinite(there), there, out)
        return out


Function = Callable[[Piece], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A change of a table of scores.

    scope    of SCOPES: which rows one result depends on; a key of the user's own steps
    formula  what it does, as the documentation has it
    source   where the formula comes from
    goldens  names of published results that it reproduces, of contracts/goldens
    """

    scope: ClassVar[str] = "row"
    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""
    goldens: ClassVar[tuple[str, ...]] = ()

    def bind(self, sheet: Sheet) -> Function:
        """The step for a table: piece -> its new values f64[n, K]; missing ones stay so, whatever it gives.

        Raises  SpecError for keys that do not fit the table
        """
        raise NotImplementedError

    def reads(self) -> tuple[str, ...]:
        """Names of the members and groups whose scores it reads beside its own table."""
        return ()


def per_class(value: Any, sheet: Sheet, what: str, least: float = 0.0) -> np.ndarray:
    """f64[K] of a number, a list with one per class, a table by group (`default` for the others), or the text
    of a CSV with the columns `class` or `group`, and `value`.

    Raises  SpecError naming `what`, also for a value below `least`
    """
    if isinstance(value, str):
        value = _of_csv(value, what)
    if isinstance(value, Mapping):
        value = _of_table(value, sheet, what)
    numbers = [value] * len(sheet.classes) if isinstance(value, (int, float)) else value
    if not isinstance(numbers, Sequence) or len(numbers) != len(sheet.classes):
        raise SpecError(f"{what}: {_short(value)}; give a number, one per class ({len(sheet.classes)}), a "
                        "table by class group, or a CSV file")
    found = np.empty(len(numbers))
    for k, number in enumerate(numbers):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not number >= least:
            raise SpecError(f"{what}: {number!r} for {sheet.classes[k]}; give a number of at least {least:g}")
        found[k] = number
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _of_csv(text: str, what: str) -> dict[str, float]:
    """Class or group -> number."""
    if not text.endswith("\n"):
        raise SpecError(f"{what}: {text!r} is no number and no CSV file; end its name with .csv")
    found = {}
    for row in read_csv(text, what):
        name = row.get("class", row.get("group"))
        if name is None or "value" not in row:
            raise SpecError(f"{what}: needs the columns class (or group) and value, it has {', '.join(row)}")
        try:
            found[name] = float(row["value"])
        except ValueError as error:
            raise SpecError(f"{what}: {row['value']!r} for {name} is no number") from error
    return found


def _of_table(table: Mapping[str, Any], sheet: Sheet, what: str) -> list[Any]:
    """One value per class of a table by class or group."""
    by_class = {name: group for group, names in sheet.groups.items() for name in names}
    known = {*sheet.classes, *sheet.groups, DEFAULT}
    for name in table:
        if name not in known:
            near = did_you_mean(name, known)
            raise SpecError(f"{what}: {name!r} is no class and none of class_groups; {near}")
    values = []
    for name in sheet.classes:
        keys = [key for key in (name, by_class.get(name), DEFAULT) if key is not None and key in table]
        if not keys:
            raise SpecError(f"{what}: nothing for {name!r}; name its group, or add `{DEFAULT}`")
        values.append(table[keys[0]])
    return values


def logit(p: np.ndarray, edge: float = EDGE) -> np.ndarray:
    """Logits of probabilities, kept `edge` away from 0 and 1."""
    p = np.clip(p, edge, 1.0 - edge)
    return np.asarray(np.log(p) - np.log1p(-p))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Probabilities of logits; no overflow."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, e) / (1.0 + e))


def only(values: np.ndarray, columns: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """`changed` in these columns bool[K], `values` in the others."""
    return values if not columns.any() else np.where(columns, changed, values)


def pattern_of(text: str, names: Sequence[str]) -> re.Pattern[str]:
    """A regular expression with these named groups. Raises SpecError."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise SpecError(f"pattern: {text!r} is no regular expression ({error})") from error
    missing = [name for name in names if name not in pattern.groupindex]
    if missing:
        raise SpecError(f"pattern: {text!r} has no group (?P<{missing[0]}>...)")
    return pattern
