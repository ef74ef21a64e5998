"""The tables of docs/training.md, made from the code they describe: `python -m builder.training_docs`.

Owns the list of these tables; how a table looks and where it goes is ensemble_docs'. A key without a
description in its docstring is an error, so that no key can be added and forgotten.
"""
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kernel.errors import SpecError
from training import augment, data, effects, losses, mixers, optim, pseudo, recipe
from training.text_formats import markdown_table

from . import ensemble_docs

PAGE = Path(__file__).resolve().parent.parent / "docs" / "training.md"
WORDS = {  # torch's own classes: their docstrings say more than a table can hold.
    "adam": "Adam",
    "adamw": "Adam with decoupled weight decay",
    "nadam": "Adam with Nesterov momentum",
    "amsgrad": "Adam that keeps the largest second moment",
    "sgd": "gradient descent, with `momentum` and `nesterov`",
}


def own_keys(function: Callable[..., Any]) -> dict[str, Any]:
    """Key -> default of a function that an entry of a recipe names: its keyword-only arguments."""
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}


def first_paragraph(function: Callable[..., Any]) -> str:
    """What a function does, without the description of its keys, its errors and its sources."""
    return " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())


def choice_table(table: Mapping[str, Callable[..., Any]]) -> str:
    """Every choice of a table with its keys.

    Raises  SpecError for a choice without a docstring
    """
    rows = []
    for name, function in table.items():
        meaning = first_paragraph(function)
        if not meaning:
            raise SpecError(f"{name}: no docstring; say in one what it does")
        rows.append((f"`{name}`", meaning, ensemble_docs.settings(own_keys(function).items())))
    return markdown_table(("kind", "what it does", "keys and defaults"), rows)


def adapter_table(function: Callable[..., data.Clips]) -> str:
    """Every key of one adapter with default and meaning.

    Raises  SpecError for a key without a meaning
    """
    meanings = ensemble_docs.describe_keys(function)
    rows = []
    for key, default in own_keys(function).items():
        if key not in meanings:
            raise SpecError(
                f"{function.__name__}: {key}: no line in the docstring; add `{key}  what it means`"
            )
        rows.append((f"`{key}`", ensemble_docs.toml(default), meanings[key]))
    return markdown_table(("key", "default", "meaning"), rows)


def optimiser_table() -> str:
    """Every optimiser and the keys that each takes of torch's."""
    keys = ", ".join(f"`{key}`" for key in sorted(optim.OPTIMISER_KEYS))
    rows = ((f"`{name}`", WORDS[name]) for name in optim.OPTIMISERS)
    return markdown_table(("kind", "what it is"), rows) + f"\n\nKeys, as torch has them: {keys}."


TABLES: dict[str, Callable[[], str]] = {
    "recipe": lambda: ensemble_docs.key_table(recipe.Recipe),
    "train": lambda: ensemble_docs.key_table(recipe.Train),
    "member": lambda: ensemble_docs.key_table(recipe.MemberRecipe),
    "stacker": lambda: ensemble_docs.key_table(recipe.StackerRecipe),
    "small": lambda: ensemble_docs.key_table(recipe.Small),
    **{f"data_{name}": lambda made=made: adapter_table(made)  # type: ignore[misc]
       for name, made in data.ADAPTERS.items()},
    "augment": lambda: choice_table(augment.AUGMENTATIONS),
    "mixers": lambda: choice_table(mixers.MIXERS),
    "wave_effects": lambda: choice_table(effects.EFFECTS),
    "loss": lambda: choice_table(losses.LOSSES),
    "optimiser": optimiser_table,
    "pseudo": lambda: ensemble_docs.key_table(recipe.PseudoRound),
    "soften": lambda: choice_table(pseudo.SOFTEN),
    "pseudo_sampling": lambda: choice_table(pseudo.SAMPLINGS),
    "schedule": lambda: choice_table(optim.SCHEDULES),
}


def fill(page: str) -> str:
    """The page with every table made anew.

    Raises  SpecError for a place that names no table, or a table without a place
    """
    return ensemble_docs.fill(page, TABLES, "docs/training.md")


def main() -> None:
    """Writes the page."""
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE}: {len(TABLES)} tables")


if __name__ == "__main__":
    main()
