"""The rows of one run: what is to be predicted, in which order, and what no net can score.

Owns `RunRows`. Which rows a sample asks for is sound.rows'; which net still lacks a row is net_run's.
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..errors import ClipError
from ..report.recorder import Recorder
from ..sound.rows import Row
from . import plan

UNKNOWN_S = 10.0  # seconds of a clip whose header nobody has read, where no other one was read either


@dataclass(kw_only=True)
class RunRows:
    """One row per line of the sample submission. Only `lose` changes anything once the run has begun.

    An id that the sample repeats has several rows. The first of them is predicted, and what becomes of it
    holds for all.

    all       the rows in the order of the sample
    wanted    numbers of the rows to predict (not broken, not beyond --first, each id once), in running order
    seconds   f64[N], lengths by the headers, capped; where a header was not read, the others' median. For
              planning only
    recorder  hears of each lost row once
    lost      bool[N]: rows that keep the prior, since their clip is broken
    tried     bool[N]: rows that a net has had to pass over
    changes   how many rows were lost: what is known of the rows that are left holds until it grows
    reasons   row id -> code of the error that lost it
    """

    all: Sequence[Row]
    wanted: list[int]
    seconds: np.ndarray
    recorder: Recorder
    lost: np.ndarray = field(init=False)
    tried: np.ndarray = field(init=False)
    changes: int = 0
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lost, self.tried = np.zeros((2, len(self.all)), bool)
        self.order = np.asarray(self.wanted, np.intp)
        self._wanted = np.zeros(len(self.all), bool)
        self._wanted[self.order] = True
        self._left = (-1, self._wanted)
        self._numbers: dict[str, list[int]] = {}
        for i, row in enumerate(self.all):
            self._numbers.setdefault(row.id, []).append(i)

    @cached_property
    def heard_s(self) -> np.ndarray:
        """f64[N]: `seconds` with what a net hears around a window."""
        around = [(row.before + row.after) / max(1, row.clip.rate) for row in self.all]
        return np.asarray(self.seconds + np.array(around))

    def number(self, row: Row) -> int:
        """Number of a row: of the first one, where its id is repeated."""
        return self._numbers[row.id][0]

    @cached_property
    def by_clip(self) -> dict[str, list[int]]:
        """Clip id -> numbers of all its rows."""
        found: dict[str, list[int]] = {}
        for i, row in enumerate(self.all):
            found.setdefault(row.clip.id, []).append(i)
        return found

    def places(self, row_ids: Iterable[str]) -> list[int]:
        """Numbers of all rows with these ids; ids that this run does not have are left out."""
        return [i for row_id in row_ids for i in self._numbers.get(row_id, ())]

    def left(self) -> np.ndarray:
        """bool[N]: rows to predict whose clip is not known to be broken; the same array until one is lost."""
        changes = self.changes
        if self._left[0] != changes:
            self._left = (changes, self._wanted & ~self.lost)
        return self._left[1]

    def spread(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of all rows with the ids of rows `numbers` int[n], place in `numbers` of each)."""
        if len(self._numbers) == len(self.all):
            return numbers, np.arange(len(numbers))
        same = [self._numbers[self.all[i].id] for i in numbers.tolist()]
        places = np.array([i for group in same for i in group], np.intp)
        return places, np.repeat(np.arange(len(numbers)), [len(group) for group in same])

    def lose(self, row: Row, error: ClipError) -> None:
        """Give a row up: it keeps the prior and is named once."""
        if row.id not in self.reasons:
            self.reasons[row.id] = error.code
            self.lost[self.places([row.id])] = True
            self.changes += 1
            self.recorder.error(row.id, error)


def open_rows(
    rows: Sequence[Row], first: int | None, longest_s: float, windowed: bool, recorder: Recorder
) -> RunRows:
    """The rows of a run; those whose header says that they are broken are lost at once.

    first      predict the first rows only; None = all
    longest_s  seconds of a clip that are read at most
    windowed   rows are windows: those of one recording stay together, since it is decoded once
    """
    seconds = np.array([_claimed_seconds(row, longest_s) for row in rows])
    unread = np.array([row.clip.unread for row in rows], bool)
    if unread.any():
        known = seconds[~unread & (seconds > 0)]
        seconds[unread] = np.median(known) if len(known) else min(UNKNOWN_S, longest_s)
    asked = len(rows) if first is None else min(first, len(rows))
    numbers = {rows[i].id: i for i in reversed(range(asked)) if rows[i].clip.error is None}
    good = sorted(numbers.values())
    if windowed:
        wanted = sorted(good, key=lambda i: (rows[i].clip.id, rows[i].start or 0))
    else:
        wanted = [good[i] for i in plan.order_rows([float(seconds[i]) for i in good])]
    opened = RunRows(all=rows, wanted=wanted, seconds=seconds, recorder=recorder)
    for row in rows:
        if row.clip.error is not None:
            opened.lose(row, row.clip.error)
    return opened


def _claimed_seconds(row: Row, longest_s: float) -> float:
    """Length of a row by its header, capped; 0 where the header tells nothing."""
    if not row.clip.rate:
        return 0.0
    if row.start is not None and row.stop is not None:
        return (row.stop - row.start) / row.clip.rate
    return min(longest_s, row.clip.samples_claimed / row.clip.rate)
