"""The GPU schedule: passes of many rows share batches of near equal length, exactly.

Owns the groups' batches of one window of rows: collated in a thread of their own while the device computes the one before, halved
when memory runs out, merged back per row. Does not choose windows (steps), lengths that go together (batches) or mask (models).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from . import backends, batches, predict
from .audio import Row
from .errors import ClipError
from .predict import UNFIT, LoadedNet

ROWS_PER_BATCH = 512  # OsciiArt's cap per batch
PADDING = 0.02  # share of computed cells that may be padding (issue: under 2 %)
CELLS_PER_BATCH = 1 << 24  # input values of one batch (64 MB of float32): 131 thousand frames of 128 bins, 6 minutes of waveform
MEMORY_SHARE = 0.5  # of the device that the activations of one batch may take, by the measured bytes per frame

Held = dict[int, dict[str, torch.Tensor]]
Chosen = Sequence[tuple[int, int]]  # (row, pass) of each place in a batch


def frames_per_batch(net: LoadedNet) -> int:
    """Most frames of one batch: by the input's size, the device's memory, and what has run out of memory before."""
    stage = net.recipe.stages[net.recipe.timed]
    most = max(1, CELLS_PER_BATCH // max(1, stage.fe.channels * stage.fe.bins))
    if net.runner.device.memory_bytes and net.cost.bytes_b > 0:
        most = min(most, max(1, int(MEMORY_SHARE * net.runner.device.memory_bytes / net.cost.bytes_b)))
    return most if net.fitting_frames is None else min(most, net.fitting_frames)


def predict_grouped(net: LoadedNet, store: Any, rows: Sequence[Row], max_frames: int,
                    failed: Callable[[Row, ClipError], None]) -> Iterator[tuple[Row, np.ndarray]]:
    """(row, f64[K]) of `rows` in length groups: `hold`, then `predict_held`."""
    yield from predict_held(net, rows, hold(net, store, rows, failed), max_frames)


def hold(net: LoadedNet, store: Any, rows: Sequence[Row], failed: Callable[[Row, ClipError], None]) -> Held:
    """Inputs of every row, cut and finished on the host: place in `rows` -> name -> f32[P, C, M, T]; broken rows are left out."""
    held: Held = {}
    for index, row in enumerate(rows):
        try:
            held[index] = predict.row_inputs(net, store, row)
        except ClipError as error:
            failed(row, error)
    return held


def predict_held(net: LoadedNet, rows: Sequence[Row], held: Held, max_frames: int) -> Iterator[tuple[Row, np.ndarray]]:
    """(row, f64[K]) in length groups of at most `max_frames` frames. Padding is masked, or absent where the net cannot be masked.

    A row that does not fit on the device even alone gives [NaN]: this net has no say in it.
    """
    timed = net.recipe.timed
    units = [(index, p) for index, x in held.items() for p in range(x[timed].shape[0])]
    frames = [held[index][timed].shape[-1] for index, _ in units]
    plan = batches.group(frames, max_cells=max_frames, max_rows=ROWS_PER_BATCH, padding=PADDING,
                         exact=not getattr(net.module, "maskable", False), min_frames=int(getattr(net.module, "min_frames", 1)))
    answers: dict[tuple[int, int], np.ndarray] = {}
    for chosen, outs in _run_all(net, held, [([units[i] for i in batch.rows], batch.width) for batch in plan]):
        answers.update(zip(chosen, outs, strict=True))
    for index in held:
        of_row = [answers[index, p] for p in range(held[index][timed].shape[0])]
        yield rows[index], UNFIT if any(x is UNFIT for x in of_row) else predict.merge(net, np.stack(of_row))


def _run_all(net: LoadedNet, held: Held, plan: list[tuple[Chosen, int]]) -> Iterator[tuple[Chosen, list[np.ndarray]]]:
    """(places, answers) batch by batch; the next batch is collated and sent while this one is computed."""
    with ThreadPoolExecutor(1, "collate", initializer=torch.set_num_threads, initargs=(1,)) as pool:  # the loaders want the cores
        coming = [pool.submit(_stage, net, held, *plan[0])] if plan else []
        for number, (chosen, width) in enumerate(plan):
            this = coming.pop()
            if number + 1 < len(plan):
                coming.append(pool.submit(_stage, net, held, *plan[number + 1]))
            yield chosen, _run_batch(net, held, chosen, width, this.result)


def _stage(net: LoadedNet, held: Held, chosen: Chosen, width: int) -> backends.Staged:
    """A batch on the device, zeros beyond each row's own length."""
    frames = torch.tensor([held[i][net.recipe.timed].shape[-1] for i, _ in chosen])
    collated = {}
    for name in net.recipe.stages:
        parts = [held[i][name][p] for i, p in chosen]
        if name == net.recipe.timed:
            collated[name] = parts[0].new_zeros((len(parts), *parts[0].shape[:-1], width))
            for place, x in zip(collated[name], parts, strict=True):
                place[..., :x.shape[-1]] = x
        else:
            collated[name] = torch.stack(parts)
    return net.runner.stage(collated, frames if bool((frames != width).any()) else None)


def _run_batch(net: LoadedNet, held: Held, chosen: Chosen, width: int, staged: Callable[[], backends.Staged]) -> list[np.ndarray]:
    """f32[K] for each of a batch; halves itself when memory runs out, down to UNFIT for a row that fails alone."""
    try:
        out = net.runner(staged())
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
        net.runner.notes.append(f"out of memory at 1 x {width}: this net has no say in that row ({message[:80]})")
        return [UNFIT]
    net.runner.notes.append(f"out of memory at {len(chosen)} x {width}: batch halved ({message[:80]})")
    half = len(chosen) // 2
    net.fitting_frames = half * width
    return [answer for part in (chosen[:half], chosen[half:])
            for answer in _run_batch(net, held, part, width, lambda part=part: _stage(net, held, part, width))]  # type: ignore[misc]
