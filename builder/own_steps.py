"""The trial of an ensemble's steps on scores: each is carried out before a bundle is written.

Owns the tables on which steps are tried: whole ones, with gaps, and with one row. How they are carried out is
kernel.scores.steps'.
"""
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from kernel.errors import HourglassError, SpecError
from kernel.scores.levels import open_levels, scopes
from kernel.scores.own_step import OwnStep
from kernel.scores.step import Sheet
from kernel.scores.steps import Bound, Circumstances, carry_out
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from kernel.spec import Ensemble

FILES = (("trial_S01_20250101_060000", 12), ("trial_S02_20250101_220000", 12), ("trial", 1))


def make_rows() -> list[Row]:
    """Rows of two recordings of one minute, and of one whose name tells nothing."""
    return [Row(id=f"{name}_{5 * (i + 1)}", clip=Clip(id=name, rate=1), start=5 * i, stop=5 * (i + 1))
            for name, count in FILES for i in range(count)]


def make_table(rows: int, classes: int, seed: int) -> np.ndarray:
    """f64[N, K], mostly small scores, as nets give them."""
    return np.random.RandomState(seed).uniform(0.001, 0.999, (rows, classes)) ** 3


def try_all(path: Path, here: Ensemble, say: Callable[[str], None]) -> None:
    """Nothing, when every step gives the same scores in 0..1 twice, on tables with and without gaps.

    path  of the TOML, for messages;  here: the ensemble with own files where they lie on this machine

    Raises  SpecError naming the step
    """
    def fault(where: str, error: HourglassError) -> None:
        raise SpecError(f"{where}: {error}") from error

    try:
        levels = open_levels(here, make_rows(), fault)
        for name, steps in levels.steps.items():
            for bound in steps:
                _try(bound, [held for held in levels.steps if held != name], levels.sheet, fault)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
    told = scopes(here)
    count = sum(".steps[" in where for where in told)
    if count:
        compared = [where for where, scope in told.items() if scope == "table"]
        rest = f"; complete members only, because of {compared[0]}" if compared else ""
        say(f"{count} steps on scores fit{rest}")


def _try(
    bound: Bound, others: Sequence[str], sheet: Sheet, fault: Callable[[str, HourglassError], None]
) -> None:
    """One step on a table without gaps and on one with some. Raises SpecError."""
    count, classes = len(sheet.ids), len(sheet.classes)
    for gaps in ((), (0, 5, 6, 23)):
        table = make_table(count, classes, 0)
        table[list(gaps)] = np.nan
        how = Circumstances(
            others={name: make_table(count, classes, 1 + i) for i, name in enumerate(others)},
            final=np.ones(count, bool), partial=np.zeros(count, bool), complete=True, fault=fault,
        )
        first, _ = carry_out([bound], table.copy(), sheet, how)
        again, _ = carry_out([bound], table.copy(), sheet, how)
        if not np.array_equal(first, again, equal_nan=True):
            raise SpecError(f"{bound.where}: gives other scores a second time; seed what is random, and keep "
                            "nothing between calls")
        if isinstance(bound.step, OwnStep) and bound.step.scope == "row" and not gaps:
            halves = [carry_out([bound], np.where(half[:, None], table, np.nan), sheet, how)[0][half]
                      for half in (np.arange(count) < 13, np.arange(count) >= 13)]
            if not np.allclose(np.concatenate(halves), first, rtol=1e-9, atol=1e-12):
                raise SpecError(f'{bound.where}: scope = "row", but rows have other scores in other company; '
                                'write scope = "recording" or "table"')
