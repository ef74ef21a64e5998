"""Class maps: a net with classes of its own, as data, and the CSV file that people write.

Owns `ClassMap`, its rules and its reader. What is computed by it is inference.class_maps' (a net's values)
and scores.class_weights' (which member has a say in which class).
"""
import csv
import difflib
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import SpecError, did_you_mean
from .strict import require

COLUMNS = ("label", "class", "weight")
PROXIES = ("max", "mean")
PROXY_SCORES = ("probabilities", "logits")
RENORMALISE = "renormalise"
SHOWN = 5  # wrong lines of a file that a message names


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """Which of a net's outputs speak for which of the ensemble's classes, line by line of the CSV file.

    outputs  values that the net gives, one for each label of `classes_from`
    takes    output of each line, 0 to outputs - 1
    gives    place of the line's class in the ensemble's `classes`
    weights  weight of each line, above 0
    """

    outputs: int
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    weights: tuple[float, ...]

    def knows(self, classes: int) -> tuple[bool, ...]:
        """For each class whether the net knows it: True where at least one line names it."""
        named = set(self.gives)
        return tuple(k in named for k in range(classes))


def check_class_map(found: ClassMap, classes: int, where: str) -> None:
    """Raises SpecError, unless the lines of a map name outputs and classes that there are, each pair once."""
    lines = list(zip(found.gives, found.takes, strict=False))
    require(
        len(lines) == len(found.gives) == len(found.takes) == len(found.weights),
        f"{where}: {len(found.takes)} outputs, {len(found.gives)} classes and {len(found.weights)} weights; "
        "give one of each per line",
    )
    require(
        bool(lines), f"{where}: names none of the ensemble's classes; map at least one, or drop the member"
    )
    for k, output in lines:
        require(0 <= k < classes, f"{where}: class number {k}, there are {classes}")
        require(0 <= output < found.outputs, f"{where}: output {output}, the net has {found.outputs}")
    require(
        lines == sorted(set(lines)), f"{where}: lines out of order, or an output twice for the same class"
    )
    bad = [weight for weight in found.weights if not (0 < weight < math.inf)]
    require(not bad, f"{where}: weight {bad[:1]}; give numbers above 0, or leave the line out")


def read_class_map(path: Path, labels: Sequence[str], classes: Sequence[str], where: str) -> ClassMap:
    """The map of a CSV file with the columns label, class and weight; no weight means 1.

    labels   names of the net's outputs, in their order
    classes  the ensemble's classes

    A line of weight 0 counts as left out. A file without a header is read in that order of columns.

    Raises  SpecError naming the file, the line and what to do
    """
    lines = _read_lines(path, labels, classes, where)
    place = {name: k for k, name in enumerate(classes)}
    output: dict[str, list[int]] = {}
    for j, label in enumerate(labels):
        output.setdefault(label, []).append(j)
    wrong: list[str] = []
    seen: dict[tuple[str, str], int] = {}
    found: list[tuple[int, int, float]] = []
    for number, label, name, text in lines:
        problem = _find_problem(label, name, output, place, hint=len(wrong) < SHOWN)
        weight = _read_weight(text)
        if problem is None and weight is None:
            problem = f"weight {text!r}; give a number, 0 or more"
        if problem is None and (label, name) in seen:
            problem = f"{label!r} stands for {name!r} in line {seen[label, name]} already; remove one of them"
        if problem is not None:
            wrong.append(f"line {number}: {problem}")
            continue
        seen[label, name] = number
        if weight:
            found.append((place[name], output[label][0], weight))
    if wrong:
        more = f" (and {len(wrong) - SHOWN} lines more)" if len(wrong) > SHOWN else ""
        raise SpecError(f"{where}: {path.name}, " + "; ".join(wrong[:SHOWN]) + more)
    found.sort()  # the order of the lines does not matter
    read = ClassMap(
        outputs=len(labels),
        takes=tuple(j for _, j, _ in found),
        gives=tuple(k for k, _, _ in found),
        weights=tuple(weight for _, _, weight in found),
    )
    check_class_map(read, len(classes), where)
    return read


def _find_problem(
    label: str, name: str, output: dict[str, list[int]], place: Collection[str], hint: bool
) -> str | None:
    """What is wrong with the names of a line; `hint`: also what it may have meant, which takes a while."""
    if name not in place:
        return f"class {name!r} is not in `classes`; {nearest(name, place) if hint else ''}"
    if label not in output:
        tail = nearest(label, output) if hint else ""
        return f"label {label!r} is none of the {len(output)} in `classes_from`; {tail}"
    if len(output[label]) > 1:
        first, second = output[label][:2]
        return f"label {label!r} stands twice in `classes_from` (outputs {first}, {second}); rename one there"
    return None


def nearest(word: str, names: Collection[str]) -> str:
    """Tail of a message: the nearest of many names, or how they begin."""
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"they begin with {', '.join(list(names)[:3])}"


def _read_weight(text: str) -> float | None:
    """The weight of a line, 1 where the cell is empty; None for what is none."""
    try:
        weight = float(text) if text.strip() else 1.0
    except ValueError:
        return None
    return weight if 0 <= weight < math.inf else None


def read_cells(path: Path, where: str) -> list[tuple[int, list[str]]]:
    """(line number, cells) of a CSV file beside the TOML; empty lines are left out.

    Raises  SpecError when it cannot be read
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except OSError as error:
        raise SpecError(
            f"{where}: {path} cannot be read ({error.strerror}); give its place relative to the TOML's own "
            "folder"
        ) from error
    except (ValueError, csv.Error) as error:
        raise SpecError(f"{where}: {path}: no CSV file in UTF-8 ({error})") from error


def _read_lines(
    path: Path, labels: Collection[str], classes: Collection[str], where: str
) -> Iterable[tuple[int, str, str, str]]:
    """(line number, label, class, weight as text) of every line behind the header.

    Raises  SpecError for a header that names no columns of ours
    """
    rows = read_cells(path, where)
    require(bool(rows), f"{where}: {path.name} is empty; give lines of {','.join(COLUMNS)}")
    head = [cell.strip() for cell in rows[0][1]]
    if {"label", "class"} <= set(head):
        for name in head:
            require(name in COLUMNS, f"{where}: {path.name}, column {name!r}; {did_you_mean(name, COLUMNS)}")
        require(len(set(head)) == len(head), f"{where}: {path.name}, a column stands twice in {head}")
        body = rows[1:]
    else:
        is_line = len(head) in (2, 3) and (rows[0][1][0] in labels or rows[0][1][1] in classes)
        require(
            is_line,
            f"{where}: {path.name}, line {rows[0][0]}: {head}; begin with the header {','.join(COLUMNS)}",
        )
        head = list(COLUMNS[:len(head)])
        body = rows
    lines = []
    for number, row in body:
        require(
            len(row) == len(head),
            f"{where}: {path.name}, line {number}: {len(row)} cells, the first line has {len(head)}; write a "
            "name that holds a comma in double quotes",
        )
        cells = dict(zip(head, row, strict=True))
        lines.append((number, cells["label"], cells["class"], cells.get("weight", "")))
    return lines


def read_missing(missing: float | str, where: str) -> float | None:
    """The probability of a class that a member does not know; None for "renormalise".

    missing  "renormalise", a number in 0..1 or a text such as "1/234"

    Raises  SpecError for anything else
    """
    if missing == RENORMALISE:
        return None
    number: float = math.nan
    if isinstance(missing, str):
        above, slash, below = missing.partition("/")
        if slash and above.strip().isdecimal() and below.strip().isdecimal() and int(below):
            number = int(above) / int(below)
    else:
        number = float(missing)
    require(
        0 <= number <= 1,
        f'{where}: {missing!r}; give "{RENORMALISE}" (the members that know a class decide it), or a '
        'probability in 0..1 such as 0.5 (which is logit 0) or "1/234"',
    )
    return number
