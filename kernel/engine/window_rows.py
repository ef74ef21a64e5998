"""Frames of windows become rows: a window is heard once and serves every row that it reaches.

Owns which windows a net has to hear for the rows it lacks, the answers that wait for others, and the moment
at which a row is complete. How frames become a score is scores.frames'.
"""
import bisect
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..scores import frames
from ..sound.rows import Row
from .run_rows import RunRows


class WindowRows:
    """One net's windows over the rows of a run. Used by one step at a time.

    merging  how the windows' answers become rows
    gone     whether the net can never hear the window of this row
    """

    def __init__(self, merging: frames.Merging, rows: RunRows, gone: Callable[[int], bool]) -> None:
        self._merging = merging
        self._windows = merging.windows
        self._rows = rows
        self._gone = gone
        self._reach = merging.reach
        self._places: dict[str, list[tuple[int, int]]] = {}  # clip id -> (start, number of its row)
        for i in {rows.number(row): None for row in rows.all if row.window and row.clip.error is None}:
            row = rows.all[i]
            self._places.setdefault(row.clip.id, []).append((row.start or 0, i))
        for places in self._places.values():
            places.sort()
        self._pending: dict[int, dict[int, int]] = {}  # row -> its windows: offset -> row
        self._reached: dict[int, set[int]] = {}  # window -> rows that wait for it
        self._answers: dict[int, np.ndarray] = {}
        self._touched: set[int] = set()  # rows of which a window has answered since they were looked at

    def begin(self, todo: Sequence[int]) -> list[int]:
        """The windows to hear for these rows, in time order, each recording's together."""
        self._answers = {}
        self._touched = set()
        self._pending = {i: self._around(i) for i in todo}
        self._reached = {}
        for i, windows in self._pending.items():
            for j in windows.values():
                self._reached.setdefault(j, set()).add(i)
        wanted = [j for j in self._reached if not self._gone(j)]
        order = {self._rows.all[i].clip.id: place for place, i in reversed(list(enumerate(todo)))}
        return sorted(wanted, key=lambda j: (order[self._rows.all[j].clip.id], self._rows.all[j].start or 0))

    def take(self, i: int, answer: np.ndarray) -> None:
        """Keep a window's answer f64[F, K] for the rows it reaches."""
        self._answers[i] = answer
        self._touched |= self._reached.get(i, set())

    def ready(self, last: bool = False) -> Iterator[tuple[int, np.ndarray | None]]:
        """(row, f64[K]) of rows whose windows have all answered or never will; None: not one has.

        last  look at every row, not at those alone of which a window has answered since the last time
        """
        looked_at = sorted(self._pending if last else self._touched & self._pending.keys())
        self._touched = set()
        for i in looked_at:
            windows = self._pending[i]
            if self._gone(i):  # lost or passed over: it gets no score
                self._drop(i)
            elif all(j in self._answers or self._gone(j) for j in windows.values()):
                there = {offset: self._answers[j] for offset, j in windows.items() if j in self._answers}
                self._drop(i)
                yield i, self._merging.row_of(there) if there else None

    def _drop(self, i: int) -> None:
        """A row waits no longer; answers for which nobody waits are forgotten."""
        for j in self._pending.pop(i).values():
            self._reached[j].discard(i)
            if not self._reached[j]:
                self._answers.pop(j, None)

    def _around(self, i: int) -> dict[int, int]:
        """The windows that row i is made of: offset -> row."""
        row = self._rows.all[i]
        found = {offset: j for offset in self._reach if (j := self._find(row, offset)) is not None}
        if self._windows.context_every > 1:
            found = {o: j for o, j in found.items() if self._is_on_grid(j)} or {0: found[0]}
        if self._windows.edges == "inside":
            inside = {offset: j for offset, j in found.items() if _is_inside(self._rows.all[j])}
            found = inside or found
        return found

    def _is_on_grid(self, j: int) -> bool:
        """True where the context of row j is one of those that are heard."""
        row = self._rows.all[j]
        return round((row.start or 0) / row.window) % self._windows.context_every == 0

    def _find(self, row: Row, offset: int) -> int | None:
        """Number of the row whose window begins so many windows later; None where the sample has none."""
        places = self._places[row.clip.id]
        start = (row.start or 0) + offset * row.window
        slack = 1 + abs(offset)  # where a window is no whole number of samples
        at = bisect.bisect_left(places, (start - slack, -1))
        return places[at][1] if at < len(places) and places[at][0] <= start + slack else None


def _is_inside(row: Row) -> bool:
    """True where all that a net hears lies in the recording, as its header tells."""
    start = row.start or 0
    return start >= row.before and start + row.window + row.after <= row.clip.samples_claimed
