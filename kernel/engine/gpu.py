"""The GPU schedule: blocks of rows made ready while the device computes earlier ones.

Owns the blocks, the order in which they run, how large a batch may be, and bringing answers to the nets'
runs. What happens to a block on the device is `batches`. Does not choose lengths that go together
(length_groups), cut and finish (inference), mask (models) or settle what a failure costs (net_run).
"""
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..cache.store import Store
from ..errors import ClipError
from ..inference.devices import is_lost
from ..inference.member import Arrays, LoadedNet
from ..inference.packing import stage_block
from ..inference.recipe import Recipe
from ..inference.staging import Lane, StagedBlock
from ..sound.rows import Row
from . import length_groups
from .batches import BatchedNets, Unsent
from .feed import Feed
from .net_run import NetRun
from .opener import LeftSeconds
from .seats import Seat

BLOCK_ROWS = 512  # most rows that are made ready together
BLOCKS = 32  # at least, per step: the device waits for the first one, the loaders for the last
# Loaded beyond the one that is made ready: long clips load faster, for their length, than short ones
BLOCKS_AHEAD = 6
FIRST_ROWS = 32  # loaded while the net is read and built
ROWS_PER_BATCH = 512  # Source: OsciiArt's FAT2019 solution
PADDING = 0.02  # share of the computed cells that may be padding
VALUES_PER_BATCH = 1 << 24  # 64 MB of float32: 131 thousand frames of 128 bins, 6 minutes of waveform
BLOCK_BYTES = 1 << 28  # of stored arrays that are sent together: some 25 minutes of waveform
MEMORY_SHARE = 0.5  # of the device that the activations of one batch may take, by the measured bytes per cell


def cells_per_batch(net: LoadedNet) -> int:
    """Most cells of one batch: by the input's size, the device's memory, and what was too much before."""
    stage = net.recipe.stages[net.recipe.timed]
    stored = net.recipe.view.fixed or 1024
    values = stage.fe.channels * stage.fe.bins * stored / max(1, stage.finish.frames(stored))
    most = max(1, int(VALUES_PER_BATCH / max(1.0, values)))
    if net.runner.device.memory_bytes and net.cost.bytes_b > 0:
        most = min(most, max(1, int(MEMORY_SHARE * net.runner.device.memory_bytes / net.cost.bytes_b)))
    return most if net.fitting_cells is None else min(most, net.fitting_cells)


def open_block(
    net: LoadedNet,
    store: Arrays,
    rows: Sequence[Row],
    lose: Callable[[Row, ClipError], None],
    lane: Lane,
    max_cells: int | None = None,
) -> StagedBlock | None:
    """A block of `rows` on its way to the device, in batches that suit the net; broken rows go to `lose`."""
    intake = net.intake

    def group(frames: Sequence[int]) -> list[tuple[Sequence[int], int]]:
        batches = length_groups.group(
            frames,
            max_cells=max_cells or cells_per_batch(net),
            max_rows=ROWS_PER_BATCH,
            padding=PADDING,
            exact=intake.exact,
            min_frames=intake.min_frames,
        )
        return [(batch.rows, batch.width) for batch in batches]

    return stage_block(intake, store.get, rows, lose, lane, group)


@dataclass
class _Pace:
    """How fast blocks go by: cells that are left, cells that were done, and the seconds these took."""

    left: float
    done: float = 0.0
    seconds: float = 0.0
    blocks: int = 0

    def add(self, cells: float, seconds: float) -> None:
        """A block has been answered. The first one, which torch prepares its kernels for, tells no pace."""
        self.left -= cells
        self.blocks += 1
        if self.blocks > 1:
            self.done += cells
            self.seconds += seconds

    def needed_s(self) -> float:
        """Seconds that the rest will take with as many nets as now; 0 where nothing is known."""
        return max(0.0, self.left) * self.seconds / self.done if self.done else 0.0


class GpuSchedule:
    """Nets of one intake over the same rows on a GPU.

    runs    of the nets; opened: the nets themselves in the same order, the first one there, the others
            perhaps still being read and built
    left_s  seconds that they have: where not all will end in time, the last ones leave, so that no crowd
            stands half done at the stop mark
    """

    def __init__(
        self,
        runs: Sequence[NetRun],
        opened: Sequence[Future[LoadedNet]],
        feed: Feed,
        lane: Lane,
        stop: Callable[[], bool],
        left_s: LeftSeconds = lambda: math.inf,
    ) -> None:
        self._runs = runs
        self._opened = opened
        self._net = opened[0].result()
        self._feed = feed
        self._lane = lane
        self._stop = stop
        self._left_s = left_s

    def predict(self, todo: Sequence[int]) -> Iterator[None]:
        """Scores block by block; the next blocks are made ready meanwhile. Yields after each block."""
        seats = [
            Seat(opened=opened, count=run.count, fail=run.fail, settle=partial(_settle, run),
                 intake=self._net.intake.key)
            for run, opened in zip(self._runs, self._opened, strict=True)
        ]
        batched = BatchedNets(seats, self._lane, self._stage)
        rows = self._runs[0].rows
        pace = _Pace(left=float(self._runs[0].cells[todo].sum()))
        with closing(batched.predict(self._open_blocks(self._cut(todo)), self._flight)) as answered:
            for done in answered:
                numbers = np.array([rows.number(row) for row in done.rows], np.intp)
                cells = float(self._runs[0].cells[numbers].sum())
                shares = self._shares(list(done.probs), len(numbers), cells)
                for place, probs in done.probs.items():
                    run = self._runs[place]
                    run.loading_s += done.waited / len(self._runs)
                    run.timing.add(len(numbers), cells, done.seconds * shares[place])
                    run.journal.choose(run.net_id, self._opened[place].result().runner.path)
                    run.put_all(numbers, probs)
                if self._stop():
                    return
                pace.add(cells, done.waited + done.seconds)
                self._shrink(seats, pace, shares)
                yield

    def _shares(self, places: Sequence[int], rows: int, cells: float) -> dict[int, float]:
        """Each net's part of a block's seconds, by multiply-adds; equal parts where one's are unknown."""
        costs = [self._opened[place].result().cost for place in places]
        work = [cost.gmac_a * rows + cost.gmac_b * cells for cost in costs]
        if min(work, default=0.0) <= 0:
            work = [1.0] * len(places)
        return {place: own / sum(work) for place, own in zip(places, work, strict=True)}

    def _shrink(self, seats: Sequence[Seat], pace: _Pace, shares: Mapping[int, float]) -> None:
        """Let the last nets leave where what is left takes longer than there is time, but not the first."""
        left_s = self._left_s()
        there = [place for place, seat in enumerate(seats) if not seat.gone]
        while len(there) > 1 and pace.needed_s() > left_s:
            place = there.pop()
            seats[place].gone = True
            pace.seconds *= 1.0 - shares.get(place, 0.0)
            self._runs[place].notes.append("left its batches to others: not all would have ended in time")

    def _flight(self, rows: Sequence[Row]) -> AbstractContextManager[None]:
        run = self._runs[0]
        return run.journal.flight("batch", [row.id for row in rows], *(run.net_id for run in self._runs))

    def _cut(self, todo: Sequence[int]) -> list[list[int]]:
        """The rows in blocks, by number, cells and bytes; a suspect is a block of its own."""
        run = self._runs[0]
        suspects = set[int]().union(*(run.suspects() for run in self._runs))
        most = min(cells_per_batch(self._net) / 2, float(run.cells[todo].sum()) / BLOCKS)
        bytes_of = self._bytes_per_row(todo)
        blocks: list[list[int]] = []
        held = 0.0
        sent = 0.0
        for i, size in zip(todo, bytes_of, strict=True):
            alone = i in suspects or (blocks and blocks[-1][-1] in suspects)
            full = held + run.cells[i] > most or sent + size > BLOCK_BYTES
            if not blocks or alone or full or len(blocks[-1]) == BLOCK_ROWS:
                blocks.append([])
                held = sent = 0.0
            blocks[-1].append(i)
            held += run.cells[i]
            sent += size
        return blocks

    def _bytes_per_row(self, todo: Sequence[int]) -> np.ndarray:
        """f64[n], most stored bytes of each row, all inputs together."""
        seconds = self._runs[0].rows.heard_s[todo]
        sizes = np.zeros(len(todo))
        for stage in self._net.recipe.stages.values():
            sizes += [stage.fe.max_bytes(int(s * stage.fe.rate) + 1) for s in seconds]
        return sizes

    def _open_blocks(self, blocks: Sequence[Sequence[int]]) -> Iterator[StagedBlock | Unsent]:
        """Blocks on their way to the device; the loaders work on later ones."""
        recipe = self._net.recipe
        for block in blocks[:BLOCKS_AHEAD]:
            self._feed.prefetch(recipe, block)
        for number, block in enumerate(blocks):
            if number + BLOCKS_AHEAD < len(blocks):
                self._feed.prefetch(recipe, blocks[number + BLOCKS_AHEAD])
            self._feed.load(recipe, block, self._stop)
            if self._stop():
                return
            rows = [self._runs[0].rows.all[i] for i in block]
            try:
                staged = self._stage(rows)
            except BaseException as error:
                if is_lost(error):
                    raise
                yield Unsent(rows=rows, error=error)
            else:
                if staged is not None:
                    yield staged

    def _stage(self, rows: Sequence[Row]) -> StagedBlock | None:
        """Rows on their way to the device, in batches that suit all the nets that are there."""
        there = [opened.result() for opened in self._opened if opened.done() and not opened.exception()]
        cells = min(cells_per_batch(net) for net in there)
        return open_block(self._net, self._feed.store, rows, self._runs[0].rows.lose, self._lane, cells)


def _settle(run: NetRun, row: Row, error: BaseException) -> None:
    """What an error at a row costs, once, however many of its passes meet it."""
    if row.id not in run.skipped and row.id not in run.rows.reasons:
        run.settle(run.rows.number(row), error)


def longest_first(run: NetRun, recipe: Recipe, store: Store, todo: Sequence[int]) -> list[int]:
    """Rows by falling length, exact where it is known: the order on a GPU.

    Windows stay in their own order, in which their recordings are read.

    Rows of near equal length share batches. Short clips load slowest for their length: in the plan's order,
    shortest first, the device would wait for them with nothing loaded ahead (measured: 6 to 8 % of a run of
    one net).
    """
    if any(run.rows.all[i].start is not None for i in todo):
        return list(todo)
    fe = recipe.stages[recipe.timed].fe
    return sorted(todo, key=lambda i: -(store.frames(fe, run.rows.all[i]) or run.cells[i]))
