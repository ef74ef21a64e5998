"""What a run takes for granted: every value that decides about a training and is not in its recipe, as text.

Owns the sentences, which name the recipe's key, so that an author can set it. Does not choose values: they
are the defaults of recipe.Recipe and recipe.Train, of the data adapters and of kernel.spec.Ensemble.
"""
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from kernel.spec import Ensemble

from .class_list import FAT2019
from .data import ADAPTER, ADAPTERS
from .folds import COUNT
from .recipe import Recipe, Train
from .text_formats import toml_value

OFF: tuple[Any, ...] = (None, False, 0, "", (), {}, [])  # A default that does nothing is not named.
DRAWN = ("balance", "negatives")  # They matter where sampling is "balanced".
PLAIN = Train()
SHIPPED = ("profile", "mean")  # Of the ensemble's keys, those that decide what is built.


def _line(where: str, values: Iterable[tuple[str, Any]]) -> list[str]:
    shown = ", ".join(f"{key} = {toml_value(value)}" for key, value in values if value not in OFF)
    return [f"default {where}: {shown}"] if shown else []


def _of_data(given: Mapping[str, Any]) -> list[str]:
    name = given.get("adapter", ADAPTER)
    if name not in ADAPTERS:
        return []  # read_clips refuses it with a hint.
    known = inspect.signature(ADAPTERS[name]).parameters.values()
    keys = {"adapter": ADAPTER} | {p.name: p.default for p in known if p.kind is p.KEYWORD_ONLY}
    return _line("[data]", ((key, value) for key, value in keys.items() if key not in given))


def _of_train(recipe: Recipe) -> list[str]:
    """One line for all members with the same keys left open."""
    names: dict[str, list[str]] = {}
    for member in recipe.members:
        given = {**recipe.train, **member.train}
        balanced = given.get("sampling", Train.sampling) == "balanced"
        values = ((f.name, getattr(PLAIN, f.name)) for f in fields(Train)
                  if f.name not in given and (balanced or f.name not in DRAWN))
        for line in _line("[train]", values):
            names.setdefault(line, []).append(member.name)
    every = len(names) == 1
    return [line if every else line.replace("[train]", f"[train] of {', '.join(members)}")
            for line, members in names.items()]


def name_defaults(recipe: Recipe) -> list[str]:
    """One sentence for each group of defaults that a run of the recipe uses."""
    lines = []
    if not recipe.classes:
        lines.append(f"default classes: the 80 of FAT2019 ({FAT2019.name}), as the recipe names no file; "
                     'for others write classes = "classes.txt", one name a line')
    lines += _of_data(recipe.data)
    lines += _line("[folds]", [("count", COUNT)] if "count" not in recipe.folds else [])
    taken = ((f.name, f.default) for f in fields(Ensemble) if f.name in SHIPPED)
    lines += _line("[ensemble]", ((key, value) for key, value in taken if key not in recipe.ensemble))
    return [*lines, *_of_train(recipe)]
