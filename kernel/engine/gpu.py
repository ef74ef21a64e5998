"""The GPU schedule: passes of many rows share batches, made ready while the device computes.

Owns the blocks of rows, the order in which they run, and their batches: collated and sent in a thread of
their own, halved when memory runs out, merged back per row. Does not choose lengths that go together
(length_groups), mask (models) or settle what a failure costs (net_run).
"""
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from ..cache.store import Store
from ..errors import ClipError
from ..inference.backends import Sent
from ..inference.devices import is_out_of_memory, release
from ..inference.member import UNFIT, LoadedNet, merge, row_inputs
from ..inference.recipe import Recipe
from ..sound.rows import Row
from . import length_groups
from .feed import Feed
from .net_run import NetRun

BLOCK_ROWS = 512  # most rows that are made ready together
BLOCKS = 32  # at least, per step: the device waits for the first one, the loaders for the last
# Loaded beyond the one that is made ready: long clips load faster, for their length, than short ones
BLOCKS_AHEAD = 6
FIRST_ROWS = 32  # loaded while the net is read and built
ROWS_PER_BATCH = 512  # Source: OsciiArt's FAT2019 solution
PADDING = 0.02  # share of the computed cells that may be padding
VALUES_PER_BATCH = 1 << 24  # 64 MB of float32: 131 thousand frames of 128 bins, 6 minutes of waveform
MEMORY_SHARE = 0.5  # of the device that the activations of one batch may take, by the measured bytes per cell
SENT_AHEAD = 2  # batches on the device or on their way to it, beside the one that is computed

Held = dict[int, dict[str, torch.Tensor]]
Chosen = Sequence[tuple[int, int]]  # (row, pass) of each place in a batch
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows that share batches.

    held  inputs on the host, cut and finished: place in `rows` -> name -> f32[P, C, M, T]; lost rows are left
          out
    """

    rows: Sequence[Row]
    held: Held


@dataclass(frozen=True, kw_only=True)
class SentBatch:
    """Passes of a block on the device, or why they do not get there.

    width  frames that are computed of each pass;  last: whether it is the block's last batch
    """

    block: Block
    chosen: Chosen
    width: int
    sent: Sent | Exception
    last: bool


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A block's answers: (row, f64[K]) of each row, [NaN] where the device cannot hold a row even alone.

    waited   seconds until the block's first batch was there
    seconds  from then to its last answer
    """

    block: Block
    answers: list[tuple[Row, np.ndarray]]
    waited: float
    seconds: float


def cells_per_batch(net: LoadedNet) -> int:
    """Most cells of one batch: by the input's size, the device's memory, and what was too much before."""
    fe = net.recipe.stages[net.recipe.timed].fe
    most = max(1, VALUES_PER_BATCH // max(1, fe.channels * fe.bins))
    if net.runner.device.memory_bytes and net.cost.bytes_b > 0:
        most = min(most, max(1, int(MEMORY_SHARE * net.runner.device.memory_bytes / net.cost.bytes_b)))
    return most if net.fitting_cells is None else min(most, net.fitting_cells)


def open_block(
    net: LoadedNet, store: Store, rows: Sequence[Row], lose: Callable[[Row, ClipError], None]
) -> Block:
    """A block of `rows`; those that are broken go to `lose`."""
    held: Held = {}
    for index, row in enumerate(rows):
        try:
            held[index] = row_inputs(net, store, row)
        except ClipError as error:
            lose(row, error)
    return Block(rows=rows, held=held)


class BatchedNet:
    """A net that answers blocks of rows in padded batches; nets that cannot be masked get no padding.

    count      called with width, cells and padded cells of every batch
    max_cells  most cells of one batch of the net, asked before each block
    """

    def __init__(self, net: LoadedNet, count: Callable[[int, int, int], None],
                 max_cells: Callable[[LoadedNet], int] = cells_per_batch) -> None:
        self._net = net
        self._count = count
        self._max_cells = max_cells

    def predict(
        self,
        blocks: Iterator[Block],
        flight: Callable[[Sequence[Row]], AbstractContextManager[object]] = nullcontext,
    ) -> Generator[Answered]:
        """Answers block by block.

        blocks  drawn in a thread of its own, which also collates and sends their batches while the device
                computes earlier ones
        flight  entered with a block's rows while they are on the device
        """
        with closing(_draw_ahead(self._send_blocks(blocks), SENT_AHEAD)) as coming:
            while True:
                asked = time.monotonic()
                batch = next(coming, None)
                if batch is None:
                    return
                began = time.monotonic()
                answers: dict[tuple[int, int], np.ndarray] = {}
                with flight(batch.block.rows):
                    answers |= self._answer(batch)
                    while not batch.last:
                        batch = next(coming)
                        answers |= self._answer(batch)
                rows = list(self._merge(batch.block, answers))
                yield Answered(
                    block=batch.block, answers=rows, waited=began - asked, seconds=time.monotonic() - began
                )

    def _answer(self, batch: SentBatch) -> dict[tuple[int, int], np.ndarray]:
        """(row, pass) -> f32[K] of one batch."""
        outs = self._run(batch.block.held, batch.chosen, batch.width, batch.sent)
        return dict(zip(batch.chosen, outs, strict=True))

    def _merge(
        self, block: Block, answers: dict[tuple[int, int], np.ndarray]
    ) -> Iterator[tuple[Row, np.ndarray]]:
        """(row, f64[K]) of each row of a block from the answers of its passes."""
        for i, inputs in block.held.items():
            outs = [answers[i, p] for p in range(self._timed(inputs).shape[0])]
            unfit = any(out is UNFIT for out in outs)
            yield block.rows[i], UNFIT if unfit else merge(self._net, np.stack(outs))

    def _timed(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The input with the time axis, f32[P, C, M, T]."""
        return inputs[self._net.recipe.timed]

    def _frames(self, held: Held, chosen: Chosen) -> list[int]:
        """Frames of each place's own row."""
        axis = self._net.recipe.time_axis
        return [self._timed(held[i]).shape[axis] for i, _ in chosen]

    def _send_blocks(self, blocks: Iterator[Block]) -> Iterator[SentBatch]:
        """Every batch of every block, on the device."""
        module = self._net.module
        for block in blocks:
            places = [(i, p) for i, inputs in block.held.items() for p in range(self._timed(inputs).shape[0])]
            batches = length_groups.group(
                self._frames(block.held, places),
                max_cells=self._max_cells(self._net),
                max_rows=ROWS_PER_BATCH,
                padding=PADDING,
                exact=not getattr(module, "maskable", False) or self._net.recipe.time_axis != -1,
                min_frames=int(getattr(module, "min_frames", 1)),
            )
            for number, batch in enumerate(batches, 1):
                chosen = [places[i] for i in batch.rows]
                sent = self._send(block.held, chosen, batch.width)
                yield SentBatch(
                    block=block, chosen=chosen, width=batch.width, sent=sent, last=number == len(batches)
                )

    def _send(self, held: Held, chosen: Chosen, width: int) -> Sent | Exception:
        """A batch on the device, zeros beyond each row's length; or the error, raised where the batch is
        due.
        """
        frames = torch.tensor(self._frames(held, chosen))
        collated = {}
        try:
            for name in self._net.recipe.stages:
                parts = [held[i][name][p] for i, p in chosen]
                if name == self._net.recipe.timed and self._net.recipe.time_axis == -1:
                    collated[name] = self._net.runner.zeros((len(parts), *parts[0].shape[:-1], width))
                    for place, x in zip(collated[name], parts, strict=True):
                        place[..., :x.shape[-1]] = x
                else:
                    collated[name] = torch.stack(parts)
            padded = bool((frames != width).any())
            return self._net.runner.send(collated, frames if padded else None)
        except Exception as error:  # out of memory, of whichever kind: halves the batch
            return error

    def _run(self, held: Held, chosen: Chosen, width: int, sent: Sent | Exception) -> list[np.ndarray]:
        """f32[K] for each place of a batch, halved when memory runs out; UNFIT for a row that fails alone."""
        notes = self._net.runner.notes
        try:
            if isinstance(sent, Exception):
                raise sent
            out = self._net.runner(sent)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = str(error)[:80]  # leaving the handler frees what the failed forward held
        else:
            cells = width * len(chosen)
            self._count(width, cells, cells - sum(self._frames(held, chosen)))
            return list(out)
        release(self._net.runner.device)
        if len(chosen) == 1:
            notes.append(f"out of memory at 1 x {width}: this net has no say in that row ({message})")
            return [UNFIT]
        notes.append(f"out of memory at {len(chosen)} x {width}: batch halved ({message})")
        half = len(chosen) // 2
        self._net.fitting_cells = half * width
        first = self._run(held, chosen[:half], width, self._send(held, chosen[:half], width))
        return first + self._run(held, chosen[half:], width, self._send(held, chosen[half:], width))


def _draw_ahead(items: Iterator[T], count: int) -> Generator[T]:
    """The items, drawn `count` ahead in a thread of their own; an error of theirs is raised here."""
    # The loaders want the cores
    pool = ThreadPoolExecutor(1, "inputs", initializer=torch.set_num_threads, initargs=(1,))
    try:
        coming: deque[Future[T | None]] = deque(pool.submit(next, items, None) for _ in range(count))
        while (item := coming.popleft().result()) is not None:
            coming.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


class GpuSchedule:
    """One net over rows on a GPU."""

    def __init__(self, run: NetRun, net: LoadedNet, feed: Feed, stop: Callable[[], bool]) -> None:
        self._run = run
        self._net = net
        self._feed = feed
        self._stop = stop

    def predict(self, todo: Sequence[int]) -> Iterator[None]:
        """Scores block by block; the next blocks are made ready meanwhile. Yields after each block."""
        batched = BatchedNet(self._net, self._run.count)
        with closing(batched.predict(self._open_blocks(self._cut(todo)), self._run.flight)) as answered:
            for done in answered:
                numbers = [self._run.rows.number(row) for row, _ in done.answers]
                self._run.loading_s += done.waited
                self._run.timing.add(len(numbers), float(self._run.cells[numbers].sum()), done.seconds)
                for row, probs in done.answers:
                    self._run.put(self._run.rows.number(row), probs)
                if self._stop():
                    return
                yield

    def _cut(self, todo: Sequence[int]) -> list[list[int]]:
        """The rows in blocks, by number and by cells; a suspect is a block of its own."""
        cells = self._run.cells
        suspects = self._run.suspects()
        most = min(cells_per_batch(self._net) / 2, float(cells[todo].sum()) / BLOCKS)
        blocks: list[list[int]] = []
        held = 0.0
        for i in todo:
            alone = i in suspects or (blocks and blocks[-1][-1] in suspects)
            if not blocks or alone or held + cells[i] > most or len(blocks[-1]) == BLOCK_ROWS:
                blocks.append([])
                held = 0.0
            blocks[-1].append(i)
            held += cells[i]
        return blocks

    def _open_blocks(self, blocks: Sequence[Sequence[int]]) -> Iterator[Block]:
        """Blocks with their arrays cut and finished; the loaders work on later ones."""
        recipe = self._net.recipe
        for block in blocks[:BLOCKS_AHEAD]:
            self._feed.prefetch(recipe, block)
        for number, block in enumerate(blocks):
            if number + BLOCKS_AHEAD < len(blocks):
                self._feed.prefetch(recipe, blocks[number + BLOCKS_AHEAD])
            self._feed.load(recipe, block, self._stop)
            if self._stop():
                return
            rows = [self._run.rows.all[i] for i in block]
            yield open_block(self._net, self._feed.store, rows, self._run.rows.lose)


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
