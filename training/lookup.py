"""From an entry of a recipe, such as {kind = "mixup", alpha = 0.4}, to the function that it names.

Owns the check of kinds and keys for the tables of augmentations, effects, mixers, losses, schedules and data
layouts. A key is a keyword-only argument of the function. Does not know what the functions do.
"""
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from kernel.errors import SpecError, did_you_mean

Made = TypeVar("Made")
# Of a default, of a value that may stand in its place, and in an author's words; bool is a number in Python
KINDS: tuple[tuple[Any, Any, str], ...] = (
    (str, str, "text"),
    (bool, bool, "true or false"),
    ((int, float), (int, float), "a number"),
    ((tuple, list), (tuple, list), "a list"),
)


def find(table: Mapping[str, Callable[..., Made]], entry: Mapping[str, Any], where: str, *,
         named_by: str = "kind", default: str | None = None, more: Sequence[str] = ()) -> Callable[..., Made]:
    """The function that an entry names, its keys filled in.

    named_by  the key that holds the name; default: the name where the entry has none
    more      further keys to propose to an author who mistyped one
    Raises    SpecError naming the unknown name or key
    """
    keys = dict(entry)
    name = keys.pop(named_by, default)
    if name not in table:
        raise SpecError(f"{where}.{named_by}: {name!r} is unknown; {did_you_mean(str(name), table)}")
    found = inspect.signature(table[name]).parameters.values()
    known = {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}
    for key, value in keys.items():
        if key not in known:
            hint = did_you_mean(key, [*known, *more])
            raise SpecError(f"{where}.{key}: unknown key of {named_by} {name!r}; {hint}")
        _check_like(value, known[key], f"{where}.{key}")
    return partial(table[name], **keys)


def _check_like(value: Any, default: Any, where: str) -> None:
    """Raises SpecError for a value of another kind than the key's default."""
    for kind, allowed, word in KINDS:
        if isinstance(default, kind):
            if not isinstance(value, allowed) or isinstance(value, bool) != isinstance(default, bool):
                raise SpecError(f"{where}: expected {word}, got {value!r}")
            return


def find_all(table: Mapping[str, Callable[..., Made]], entries: Sequence[Mapping[str, Any]],
             where: str) -> list[tuple[float, Callable[..., Made]]]:
    """(chance, function) of each entry; the chance is 1 where the entry gives none.

    Raises  SpecError naming the entry and the unknown kind or key
    """
    found = []
    for i, entry in enumerate(entries):
        keys = {key: value for key, value in entry.items() if key != "chance"}
        found.append((entry.get("chance", 1.0), find(table, keys, f"{where}[{i}]", more=("chance",))))
    return found
