"""One net over the rows of one run: what it has said, what it could not do, and what it took.

Owns `NetRun`: a net's scores and skipped rows are written here alone, its figures by the one step that runs
the net. Both schedules work through it.
Does not run the net (cpu, gpu), choose it (plan) or open it (step).
"""
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from ..errors import ClipError, text_of
from ..inference.devices import is_lost
from ..inference.recipe import Recipe
from ..scores.blend import Board
from ..sound.rows import Row
from ..spec import Part
from . import plan
from .heartbeat import Heartbeat
from .journal import Journal
from .run_rows import RunRows
from .window_rows import WindowRows

ROUNDING = 1e-3  # beyond 0..1, which half precision may leave of a softmax


@dataclass
class Timing:
    """Least-squares fit of seconds = a x rows + b x cells over everything a net was timed on."""

    rows_rows: float = 0.0
    rows_cells: float = 0.0
    cells_cells: float = 0.0
    rows_s: float = 0.0
    cells_s: float = 0.0
    rows: int = 0
    cells: float = 0.0
    seconds: float = 0.0

    def add(self, rows: int, cells: float, seconds: float) -> None:
        """Take in one timed piece of work."""
        work = Timing(
            rows * rows, rows * cells, cells * cells, rows * seconds, cells * seconds, rows, cells, seconds
        )
        self.merge(work)

    def solve(self) -> tuple[float, float]:
        """(a, b), both >= 0; scaled so that the measured work itself comes out exactly."""
        det = self.rows_rows * self.cells_cells - self.rows_cells ** 2
        a = b = 0.0
        if det > 1e-9 * self.rows_rows * self.cells_cells:
            a = max(0.0, (self.rows_s * self.cells_cells - self.cells_s * self.rows_cells) / det)
            b = max(0.0, (self.cells_s * self.rows_rows - self.rows_s * self.rows_cells) / det)
        if a + b == 0.0:
            b = self.seconds / max(1.0, self.cells)
        scale = self.seconds / max(1e-12, a * self.rows + b * self.cells)
        return a * scale, b * scale

    def merge(self, other: "Timing") -> None:
        """Take in everything that another fit has seen."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True, kw_only=True)
class Lacking:
    """What a net still lacks: mask bool[N], rows in all, and the cells it computes for them."""

    mask: np.ndarray
    rows: int
    cells: float


@dataclass(kw_only=True)
class NetRun:
    """A net's run over the rows.

    recipe    stages of its member; None for a stacker, or where they cannot be built
    cells     f64[N], most cells the net computes for each row, all its passes together
    windows   where rows are made of the frames of several windows, which and when
    intake    how its member wants its inputs, known once a net of it was opened: what may share batches
    scored    rows it has put on the board in this process
    widths    frames of a forward -> i64[3]: cells, padded cells and forwards of that width in all
    timing    work in widths that it had met;  fresh: work in new ones, for which torch prepares its kernels
              once
    skipped   row id -> why this net cannot do that row
    out_of_range  whether it has given scores that are no probabilities
    failed    why the net was given up, or None
    """

    net_id: str
    part: Part
    rows: RunRows
    board: Board
    journal: Journal
    heartbeat: Heartbeat
    recipe: Recipe | None = None
    cells: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scored: int = 0
    seconds: float = 0.0
    loading_s: float = 0.0
    setup_s: float = 0.0
    tiled_rows: int = 0
    widths: dict[int, np.ndarray] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)
    fresh: Timing = field(default_factory=Timing)
    path: str = ""
    failed: str | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    windows: WindowRows | None = None
    intake: Hashable = None
    out_of_range: bool = False
    _known: tuple[tuple[int, int], Lacking] | None = None

    def lacking(self) -> Lacking:
        """What the net still lacks; found anew only after its rows on the board, or a clip, have changed."""
        key = (self.board.changes(self.net_id), self.rows.changes)
        if self._known is None or self._known[0] != key:
            mask = self.rows.left()
            if key[0]:  # else every net shares one mask
                mask = mask & ~self.board.covered(self.net_id)
                mask[self.passed()] = False
            cells = float(self.cells[mask].sum()) if len(self.cells) else 0.0
            self._known = key, Lacking(mask=mask, rows=int(np.count_nonzero(mask)), cells=cells)
        return self._known[1]

    def missing(self) -> list[int]:
        """Numbers of the rows that the net still lacks, in running order."""
        order = self.rows.order
        missing: list[int] = order[self.lacking().mask[order]].tolist()
        return missing

    @property
    def answered(self) -> int:
        """Rows that it has scored, or had to pass over, in this process."""
        return self.scored + len(self.skipped)

    def is_gone(self, i: int) -> bool:
        """True where the net will never hear row i: its clip is broken, or the net passes over it."""
        row_id = self.rows.all[i].id
        passed = row_id in self.skipped or row_id in self.journal.quarantined_with(self.net_id)
        return passed or bool(self.rows.lost[i])

    def passed(self) -> list[int]:
        """Numbers of the rows that the net has had to pass over."""
        return self.rows.places([*self.skipped, *self.journal.quarantined_with(self.net_id)])

    def suspects(self) -> set[int]:
        """Numbers of the rows in flight with this net at an earlier crash."""
        return set(self.rows.places(self.journal.suspects_with(self.net_id)))

    def opening(self) -> AbstractContextManager[None]:
        """Name the net itself while it is read, built and tried."""
        return self.journal.flight("net", [self.net_id], self.net_id)

    def flight(self, rows: Sequence[Row]) -> AbstractContextManager[None]:
        """Name the rows that this net touches while it does."""
        return self.journal.flight("batch", [row.id for row in rows], self.net_id)

    def timed(self) -> plan.Todo:
        """All work that was timed so far; first forwards, which are set-up, are not in it."""
        return plan.Todo(
            rows=self.timing.rows + self.fresh.rows, cells=self.timing.cells + self.fresh.cells
        )

    def count(self, width: int, cells: int, padded: int = 0) -> None:
        """Note one forward of `cells` cells, `padded` of them padding, in passes `width` frames wide."""
        totals = self.widths.setdefault(width, np.zeros(3, np.int64))
        totals += cells, padded, 1

    def begin(self, todo: list[int]) -> list[int]:
        """Numbers of the rows whose windows the net has to hear for the rows `todo`."""
        return todo if self.windows is None else self.windows.begin(todo)

    def finish_rows(self, last: bool = False) -> None:
        """Put the rows on the board of which all windows have answered; `last`: look at every row."""
        for i, probs in self.windows.ready(last) if self.windows is not None else ():
            if probs is None:
                self.skip(i, ValueError("no window of this row has an answer of the net"))
            else:
                self._add(i, probs)

    def put(self, i: int, probs: np.ndarray) -> None:
        """Row i's probabilities f64[K] on the board, for each row of its id; NaN or infinity is no say.

        Where rows are made of frames, f64[F, K] of its window wait for `finish_rows`.
        """
        if not np.isfinite(probs).all():
            self.skip(i, ValueError("the net gave NaN or infinity for this row; the other nets decide it"))
            return
        values, classes = probs.shape[-1], self.board.shape[1]
        if values != classes:
            self.skip(i, ValueError(f"the net gave {values} values for this row, not {classes} classes"))
            return
        self._check_range(i, probs)
        if self.windows is not None:
            self.windows.take(i, probs)
            self.heartbeat.beat()
        else:
            self._add(i, probs)

    def _check_range(self, i: int, probs: np.ndarray) -> None:
        """Name a net whose scores are no probabilities, once."""
        if not self.out_of_range and (probs.min() < -ROUNDING or probs.max() > 1.0 + ROUNDING):
            self.out_of_range = True
            self.rows.recorder.fault(
                "ScoresOutOfRange",
                self.net_id,
                f"gave {probs.min():.3g} to {probs.max():.3g} for {self.rows.all[i].id}, which are no "
                "probabilities: in the file they are cut to 0..1; give the member another activation",
            )

    def _add(self, i: int, probs: np.ndarray) -> None:
        places = self.rows.places([self.rows.all[i].id])
        self.board.add(self.net_id, np.array(places), np.repeat(probs[None], len(places), axis=0))
        self.scored += len(places)
        self.heartbeat.beat()

    def put_all(self, numbers: np.ndarray, probs: np.ndarray | Sequence[np.ndarray]) -> None:
        """As `put`, for rows `numbers` int[n] with f64[n, K]; rows that it has passed over stay so.

        Where rows are made of frames, f64[F, K] of each window.
        """
        if self.windows is not None or not isinstance(probs, np.ndarray):
            for i, answer in zip(numbers.tolist(), probs, strict=True):
                if not self.is_gone(i):
                    self.put(i, answer)
            return
        sound = np.isfinite(probs).all(axis=1)
        for i in numbers[~sound].tolist():
            if not self.is_gone(i):
                self.put(i, np.array([np.nan]))
        for i in np.flatnonzero(sound & ((probs < -ROUNDING) | (probs > 1.0 + ROUNDING)).any(axis=1))[:1]:
            self._check_range(int(numbers[i]), probs[i])
        sound &= ~self.rows.lost[numbers]
        passed = self.passed()
        if passed:
            sound &= ~np.isin(numbers, passed)
        places, source = self.rows.spread(numbers[sound])
        if len(places):
            self.board.add(self.net_id, places, probs[sound][source])
        self.scored += len(places)
        self.heartbeat.beat()

    def settle(self, i: int, error: BaseException) -> None:
        """What an error at row i costs: the row where the clip is broken, else this net's say in it.

        Raises  the error itself where the device is lost: only a new process helps
        """
        if isinstance(error, ClipError):
            self.rows.lose(self.rows.all[i], error)
        elif is_lost(error):
            raise error
        else:
            self.skip(i, error)

    def skip(self, i: int, error: BaseException) -> None:
        """This net cannot do row i; the other nets still do."""
        row_id = self.rows.all[i].id
        self.pass_over(row_id, text_of(error))
        self.heartbeat.beat()  # it was something done, too
        self.rows.recorder.error(f"{self.net_id} {row_id}", error)

    def pass_over(self, row_id: str, why: str) -> None:
        """Note that the net never has a say in this row."""
        self.skipped[row_id] = why
        self.give_up([row_id])

    def give_up(self, row_ids: Sequence[str]) -> None:
        """Note that the net passes over the rows with these ids; the other nets decide them."""
        places = self.rows.places(row_ids)
        self.rows.tried[places] = True
        self.board.give_up(self.net_id, places)

    def fail(self, error: BaseException) -> None:
        """Give the net up; the others go on."""
        self.failed = f"{type(error).__name__}: {text_of(error)}"
        self.board.give_up(self.net_id)
        self.rows.recorder.error(self.net_id, error)

    def save(self) -> None:
        """Keep the net's scores over a crash."""
        self.journal.save_scores(self.net_id, self.board.get(self.net_id))
