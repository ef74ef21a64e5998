"""A step of the user's own: a function of their Python file on a table of scores.

Owns its keys, its call and the checks of what it gives. Finding and importing the file is `spec.own_files`.
"""
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import SpecError, StepFailed, did_you_mean, text_of
from ..spec import own_files
from .step import SCOPES, Function, Piece, Sheet, Step


@dataclass(frozen=True, kw_only=True)
class About:
    """What the function hears of its rows: their ids, the recordings they belong to, the classes' names."""

    ids: tuple[str, ...]
    files: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OwnStep(Step):
    """The user's function `fn(scores f64[n, K], about) -> array[n, K]` of numbers in 0..1.

    file   "my_post.py:fn": the file beside the TOML, and the function in it
    scope  which rows one result depends on: "row" (it is called with any number of them), "recording" (with
           the rows of one, in time order) or "table" (with all rows). Rows that are missing are left out,
           single missing scores are 0. `about` has ids and files, a text per row, and classes
    """

    formula: ClassVar[str] = "fn(x, about)"
    source: ClassVar[str] = "your own file"
    file: str
    scope: str = "table"  # type: ignore[misc]  # a key here, fixed in every other step

    def __post_init__(self) -> None:
        name, colon, function = self.file.rpartition(":")
        if not (colon and name.endswith(".py") and function.isidentifier()):
            raise SpecError(f'file = {self.file!r}; write "my_post.py:function"')
        if self.scope not in SCOPES:
            raise SpecError(f"scope = {self.scope!r} is unknown; {did_you_mean(self.scope, SCOPES)}")

    @functools.cached_property
    def function(self) -> Any:
        """The function itself; the file is imported when it is first asked for. Raises SpecError."""
        path = own_files.find(self.file.rpartition(":")[0], f"file = {self.file!r}")
        return _function_of(str(path), own_files.digest(path), self.file.rpartition(":")[2])

    def bind(self, sheet: Sheet) -> Function:
        def call(piece: Piece) -> np.ndarray:
            there = np.isfinite(piece.values).any(axis=1)
            rows = piece.rows[there].tolist()
            about = About(ids=tuple(sheet.ids[i] for i in rows), files=tuple(sheet.files[i] for i in rows),
                          classes=sheet.classes)
            given = _call(self.function, np.nan_to_num(piece.values[there]), about, self.file)
            out = np.full(piece.values.shape, np.nan)
            out[there] = given
            return out

        return call


def _call(function: Any, scores: np.ndarray, about: About, file: str) -> np.ndarray:
    """What the function gives, as f64[n, K]. Raises StepFailed for anything else."""
    try:
        given = np.asarray(function(scores, about))
    except (MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a user's function may raise anything
        raise StepFailed(f"{file}: {type(error).__name__}: {text_of(error)} ({len(scores)} rows)") from error
    shape = (len(about.ids), len(about.classes))
    if given.shape != shape or given.dtype.kind not in "fiub":
        raise StepFailed(f"{file}: gave {given.dtype} {list(given.shape)}, expected numbers {list(shape)}")
    return given.astype(np.float64)


@functools.lru_cache(maxsize=32)
def _function_of(path: str, digest: str, name: str) -> Any:
    """The function `name` of a file whose code has this digest. Raises SpecError."""
    module = own_files.load(Path(path))
    value = getattr(module, name, None)
    if not callable(value):
        held = [key for key, held in vars(module).items() if callable(held) and not key.startswith("_")]
        near = did_you_mean(name, held) if held else "it has none"
        raise SpecError(f"{path}: no function {name!r}; {near}")
    return value
