"""The classes of a recipe: its own file, or the list of FAT2019.

Owns where the file lies and what may stand in it. Which list is used is said by defaults.
"""
from pathlib import Path

from kernel.errors import SpecError

from .recipe import Recipe

FAT2019 = Path(__file__).resolve().parent.parent / "ensembles" / "classes" / "fat2019.txt"


def find_classes(recipe: Recipe, path: Path) -> Path:
    """The class file of a recipe read from `path`: its own, or the one of FAT2019."""
    return (path.parent / recipe.classes).resolve() if recipe.classes else FAT2019


def read_classes(recipe: Recipe, path: Path) -> tuple[str, ...]:
    """Class names of a recipe read from `path`.

    Raises  SpecError
    """
    listed = find_classes(recipe, path)
    try:
        names = [line for line in listed.read_text(encoding="utf-8-sig").split("\n") if line]
    except OSError as error:
        raise SpecError(
            f"{path}: classes = {recipe.classes!r}: {listed} cannot be read ({error.strerror}); give a file "
            "with one class name a line, relative to the recipe's own folder"
        ) from error
    except ValueError as error:
        raise SpecError(f"{path}: classes = {recipe.classes!r}: not UTF-8 ({error})") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or len(names) < 2:
        raise SpecError(
            f"{path}: classes = {recipe.classes!r}: "
            + (f"{twice[0]!r} stands there twice" if twice else f"{len(names)} names")
            + "; give at least two names, one a line, each once"
        )
    return tuple(names)
