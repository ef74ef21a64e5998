"""The GPU schedule: passes of many rows share batches of near equal length, exactly.

Owns the groups' batches of a window of rows: collated and sent in a thread of their own while the device
computes those before, halved when memory runs out, merged back per row. Does not choose windows (steps) or
lengths that go together (batches), and does not mask (models).
"""
from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from ..errors import ClipError
from ..inference import backends
from ..inference.net import UNFIT, LoadedNet, merge, row_inputs
from ..sound.decode import Row
from . import length_groups

ROWS_PER_BATCH = 512  # OsciiArt's cap per batch
PADDING = 0.02  # share of computed cells that may be padding (issue: under 2 %)
# input values of one batch (64 MB of float32): 131 thousand frames of 128 bins, 6 minutes of waveform
CELLS_PER_BATCH = 1 << 24
# of the device that the activations of one batch may take, by the measured bytes per frame
MEMORY_SHARE = 0.5
STAGED_AHEAD = 2  # batches on the device or on their way to it, beside the one that is computed

Held = dict[int, dict[str, torch.Tensor]]
Chosen = Sequence[tuple[int, int]]  # (row, pass) of each place in a batch
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Window:
    """Rows that share batches.

    held  inputs on the host, cut and finished: place in `rows` -> name -> f32[P, C, M, T]; broken rows are
          left out
    """

    rows: Sequence[Row]
    held: Held


@dataclass(frozen=True, kw_only=True)
class StagedBatch:
    """Passes of a window, `width` frames wide each, on the device, or why they do not get there; last: the
    window's last.
    """

    window: Window
    chosen: Chosen
    width: int
    staged: backends.Staged | Exception
    last: bool


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A window's answers: (row, f64[K]) of every row that is not broken, [NaN] where the device cannot hold a
    row even alone.

    waited   seconds until the window's first batch was there
    seconds  from then to its last answer
    """

    window: Window
    answers: list[tuple[Row, np.ndarray]]
    waited: float
    seconds: float


def frames_per_batch(net: LoadedNet) -> int:
    """Most frames of one batch: by the input's size, the device's memory, and what has run out of memory
    before.
    """
    stage = net.recipe.stages[net.recipe.timed]
    most = max(1, CELLS_PER_BATCH // max(1, stage.fe.channels * stage.fe.bins))
    if net.runner.device.memory_bytes and net.cost.bytes_b > 0:
        most = min(most, max(1, int(MEMORY_SHARE * net.runner.device.memory_bytes / net.cost.bytes_b)))
    return most if net.fitting_frames is None else min(most, net.fitting_frames)


def open_window(
    net: LoadedNet, store: Any, rows: Sequence[Row], failed: Callable[[Row, ClipError], None]
) -> Window:
    """A window of `rows`; those that are broken go to `failed`."""
    held: Held = {}
    for index, row in enumerate(rows):
        try:
            held[index] = row_inputs(net, store, row)
        except ClipError as error:
            failed(row, error)
    return Window(rows=rows, held=held)


def predict_grouped(
    net: LoadedNet,
    windows: Iterator[Window],
    max_frames: Callable[[LoadedNet], int] = frames_per_batch,
    flight: Callable[[Sequence[Row]], AbstractContextManager[Any]] = nullcontext,
) -> Generator[Answered]:
    """Answers window by window, in length groups of at most `max_frames` frames. Padding is masked, or absent
    where the net cannot be masked.

    windows  drawn in a thread of its own, which also collates and sends their batches while the device
             computes earlier ones
    flight   entered with a window's rows while they are on the device
    """
    with closing(_ahead(_stage_windows(net, windows, max_frames), STAGED_AHEAD)) as coming:
        while True:
            asked = time.monotonic()
            batch = next(coming, None)
            if batch is None:
                return
            window, answers, began = batch.window, dict[tuple[int, int], np.ndarray](), time.monotonic()
            with flight(window.rows):
                while True:
                    answers.update(
                        zip(
                            batch.chosen,
                            _run_batch(net, window.held, batch.chosen, batch.width, batch.staged),
                            strict=True,
                        )
                    )
                    if batch.last:
                        break
                    batch = next(coming)
            of_rows = {
                i: [answers[i, p] for p in range(x[net.recipe.timed].shape[0])]
                for i, x in window.held.items()
            }
            yield Answered(window=window, waited=began - asked, seconds=time.monotonic() - began, answers=[
                (window.rows[i], UNFIT if any(x is UNFIT for x in outs) else merge(net, np.stack(outs)))
                for i, outs in of_rows.items()])


def _ahead(items: Iterator[T], count: int) -> Generator[T]:
    """The items, drawn in a thread of their own, `count` before they are asked for; an error of theirs is
    raised here.
    """
    end: Any = object()
    # the loaders want the cores
    pool = ThreadPoolExecutor(1, "inputs", initializer=torch.set_num_threads, initargs=(1,))
    try:
        coming = deque(pool.submit(next, items, end) for _ in range(count))
        while (item := coming.popleft().result()) is not end:
            coming.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def _stage_windows(
    net: LoadedNet, windows: Iterator[Window], max_frames: Callable[[LoadedNet], int]
) -> Iterator[StagedBatch]:
    """Every batch of every window, on the device."""
    timed = net.recipe.timed
    for window in windows:
        units = [(index, p) for index, x in window.held.items() for p in range(x[timed].shape[0])]
        frames = [window.held[index][timed].shape[-1] for index, _ in units]
        plan = length_groups.group(
            frames,
            max_cells=max_frames(net),
            max_rows=ROWS_PER_BATCH,
            padding=PADDING,
            exact=not getattr(net.module, "maskable", False),
            min_frames=int(getattr(net.module, "min_frames", 1)),
        )
        for number, batch in enumerate(plan, 1):
            chosen = [units[i] for i in batch.rows]
            yield StagedBatch(window=window, chosen=chosen, width=batch.width, last=number == len(plan),
                              staged=_stage(net, window.held, chosen, batch.width))


def _stage(net: LoadedNet, held: Held, chosen: Chosen, width: int) -> backends.Staged | Exception:
    """A batch on the device, zeros beyond each row's own length; the error, to be met where the batch is
    due.
    """
    frames = torch.tensor([held[i][net.recipe.timed].shape[-1] for i, _ in chosen])
    collated = {}
    try:
        for name in net.recipe.stages:
            parts = [held[i][name][p] for i, p in chosen]
            if name == net.recipe.timed:
                collated[name] = net.runner.zeros((len(parts), *parts[0].shape[:-1], width))
                for place, x in zip(collated[name], parts, strict=True):
                    place[..., :x.shape[-1]] = x
            else:
                collated[name] = torch.stack(parts)
        return net.runner.stage(collated, frames if bool((frames != width).any()) else None)
    except Exception as error:  # out of memory, of whichever kind: halves the batch
        return error


def _run_batch(
    net: LoadedNet, held: Held, chosen: Chosen, width: int, staged: backends.Staged | Exception
) -> list[np.ndarray]:
    """f32[K] for each of a batch; halves itself when memory runs out, down to UNFIT for a row that fails
    alone.
    """
    try:
        if isinstance(staged, Exception):
            raise staged
        out = net.runner(staged)
    except Exception as error:
        if not backends.is_out_of_memory(error):
            raise
        message = str(error)  # leaving the handler frees what the failed forward held
    else:
        own = sum(held[i][net.recipe.timed].shape[-1] for i, _ in chosen)
        net.count(width, width * len(chosen), width * len(chosen) - own)
        return list(out)
    backends.release(net.runner.device)
    if len(chosen) == 1:
        net.runner.notes.append(
            f"out of memory at 1 x {width}: this net has no say in that row ({message[:80]})"
        )
        return [UNFIT]
    net.runner.notes.append(f"out of memory at {len(chosen)} x {width}: batch halved ({message[:80]})")
    half = len(chosen) // 2
    net.fitting_frames = half * width
    return [answer for part in (chosen[:half], chosen[half:])
            for answer in _run_batch(net, held, part, width, _stage(net, held, part, width))]
