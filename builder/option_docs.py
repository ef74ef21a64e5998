"""The tables of docs/options.md, made from the command lines they describe: `python -m builder.option_docs`.

Owns the list of commands. How a table gets into its place is ensemble_docs'. An option without a help text is
an error, so that none can be added and forgotten.
"""
import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import build_dataset
import hourglass
import infer_kernel
import train
from kernel.errors import SpecError
from kernel.rehearsal import options
from training.text_formats import markdown_table

from . import ensemble_docs

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"
COMMANDS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "build": build_dataset.make_parser,
    "rehearse": options.make_parser,
    "kernel": infer_kernel.make_parser,
    "train": train.make_parser,
    "score": hourglass.make_score_parser,
}


def list_options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option and argument that a user can give, in the order of the help, `--help` apart."""
    for action in parser._actions:  # argparse has no public list of them
        if action.help is not argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
            yield action


def value_of(action: argparse.Action) -> str:
    """What is given with an option, in the words of its help; a dash where it takes no value."""
    if action.nargs == 0:
        return "-"
    if action.choices is not None:
        return ", ".join(f"`{choice}`" for choice in action.choices)
    shown = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return f"`{shown}`"


def option_table(parser: argparse.ArgumentParser) -> str:
    """Every option of a command.

    Raises  SpecError for an option without a help text
    """
    rows = []
    for action in list_options(parser):
        names = ", ".join(f"`{name}`" for name in action.option_strings or [action.dest])
        if not action.help:
            raise SpecError(f"{parser.prog}: {names}: no help text; say what it does, its default and unit")
        rows.append((names, value_of(action), action.help))
    return markdown_table(("option", "value", "what it does"), rows)


TABLES: dict[str, Callable[[], str]] = {
    name: lambda made=made: option_table(made())  # type: ignore[misc]  # mypy knows no such lambda
    for name, made in COMMANDS.items()
}


def fill(page: str) -> str:
    """The page with every table made anew.

    Raises  SpecError for a place that names no table, or a table without a place
    """
    return ensemble_docs.fill(page, TABLES, "docs/options.md")


def main() -> None:
    """Writes the page."""
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE}: {len(TABLES)} tables")


if __name__ == "__main__":
    main()
