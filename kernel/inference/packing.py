"""Packs the stored arrays of some rows on the host and sends them: a block's way onto the device.

Owns `stage_block` and what the host must still do per row: ask the views for their cuts (starts are drawn and
loudness is summed here, in float64), find what a pad writes, and put the arrays one after the other. What the
device then does with them is `staging`.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import ClipError
from ..sound.rows import Row
from ..sound.source import Source
from .cuts import Cuts, pad_value
from .distort import perspectives
from .recipe import CutFirst, Stage
from .staging import (
    ALL_ROWS,
    CORNER,
    FILL,
    FLIP,
    LENGTH,
    MASK,
    OFFSET,
    PERSPECTIVE,
    PLAIN_ROWS,
    START,
    STORED,
    Intake,
    Lane,
    StagedBlock,
    StagedInput,
    plan_row,
)
from .streams import Streams, prepare
from .views import Crops

# Lengths of passes -> (places, width) of each batch, every pass once
Group = Callable[[Sequence[int]], Sequence[tuple[Sequence[int], int]]]


@dataclass(kw_only=True)
class _Read:
    """One input of the rows read so far: their arrays, and their passes."""

    stage: Stage
    arrays: list[np.ndarray] = field(default_factory=list)
    cuts: list[Cuts] = field(default_factory=list)

    def per_pass(self, values: Sequence[np.ndarray], counts: np.ndarray) -> np.ndarray:
        """[..., P] of one array [..., passes] per row; a row's only pass stands for all its passes."""
        return np.concatenate(
            [
                v if v.shape[-1] == n else np.repeat(v, n, axis=-1)
                for v, n in zip(values, counts, strict=True)
            ],
            axis=-1,
        )


def stage_block(
    intake: Intake,
    get: Callable[[Source, Row], np.ndarray],
    rows: Sequence[Row],
    lose: Callable[[Row, ClipError], None],
    lane: Lane,
    group: Group,
) -> StagedBlock | None:
    """The rows on their way to the device, None where none is left; rows that are broken go to `lose`.

    Raises  torch.OutOfMemoryError and its like when the device has no room
    """
    good, read = _read_rows(intake, get, rows, lose)
    if not good:
        return None
    recipe = intake.recipe
    counts = np.max([[len(cut) for cut in part.cuts] for part in read.values()], axis=0)
    timed = read[recipe.timed]
    frames = np.repeat(_own_frames(timed), counts)
    groups = _group_alike(group, frames, np.repeat(_other_lengths(read, recipe.timed), counts, axis=0))
    order = np.concatenate([places for places, _ in groups])
    ends = np.cumsum([len(places) for places, _ in groups]).tolist()
    batches = [
        (slice(end - len(places), end), width) for (places, width), end in zip(groups, ends, strict=True)
    ]
    shares = np.concatenate([recipe.view.shares(int(n)) for n in counts])
    merging = np.stack([np.repeat(np.arange(len(good)), counts), shares.view(np.int64)])[:, order]
    arrays = {part.stage.fe.key: part.arrays for part in read.values()}
    values = {name: _values(part, counts)[:, order] for name, part in read.items()}
    sent = {f"stored {key}": _pack(lane, some) for key, some in arrays.items()}
    sent |= {f"values {name}": _pack(lane, [some]).reshape(some.shape) for name, some in values.items()}
    sent["merging"] = _pack(lane, [merging]).reshape(merging.shape)
    there, ready = lane.send(sent)
    inputs = {}
    for name, part in read.items():
        stored = there[f"stored {part.stage.fe.key}"]
        inputs[name] = _stage(part, stored, there[f"values {name}"], values[name])
    return StagedBlock(
        rows=good,
        inputs=inputs,
        timed=recipe.timed,
        row_of=merging[0],
        lengths=frames[order],
        batches=batches,
        merging=there["merging"],
        held=there,
        ready=ready,
    )


def _own_frames(timed: _Read) -> list[int]:
    """Frames of the net's input for each row; before the finish where that leaves no time axis."""
    finish = timed.stage.finish
    return [finish.frames(cut.length) if finish.ragged else cut.length for cut in timed.cuts]


def _other_lengths(read: dict[str, _Read], timed: str) -> np.ndarray:
    """i64[n, I], frames of each row in the inputs beside the timed one, before their finish."""
    others = [[cut.length for cut in part.cuts] for name, part in read.items() if name != timed]
    return np.array(others, np.int64).reshape(len(others), len(read[timed].cuts)).T


def _group_alike(
    group: Group, frames: np.ndarray, others: np.ndarray
) -> list[tuple[Sequence[int], int]]:
    """The batches: only passes whose inputs beside the timed one have equal lengths share one."""
    batches: list[tuple[Sequence[int], int]] = []
    for lengths in np.unique(others, axis=0):
        places = np.flatnonzero((others == lengths).all(axis=1))
        batches += [
            (places[list(chosen)].tolist(), width) for chosen, width in group(frames[places].tolist())
        ]
    return batches


def _read_rows(
    intake: Intake,
    get: Callable[[Source, Row], np.ndarray],
    rows: Sequence[Row],
    lose: Callable[[Row, ClipError], None],
) -> tuple[list[Row], dict[str, _Read]]:
    """The rows that have all their arrays, and every input's arrays and passes."""
    good: list[Row] = []
    read = {name: _Read(stage=stage) for name, stage in intake.recipe.stages.items()}
    streams = [_draw_streams(part.stage, rows) for part in read.values()]
    for place, row in enumerate(rows):
        try:
            arrays = [get(part.stage.fe, row) for part in read.values()]
        except ClipError as error:
            lose(row, error)
            continue
        good.append(row)
        for part, array, drawn in zip(read.values(), arrays, streams, strict=True):
            part.arrays.append(array)
            own = drawn[place] if drawn else None
            part.cuts.append(plan_row(part.stage, array, row.id, intake.least, own))
    return good, read


def _draw_streams(stage: Stage, rows: Sequence[Row]) -> list[Streams] | None:
    """The random streams of the rows' passes, seeded all at once; None where the view draws none or few."""
    view = stage.view
    if isinstance(stage.fe, CutFirst) or not isinstance(view, Crops):
        return None
    turns = [-1 - p for p in range(view.passes)] if view.flip else []
    return prepare([row.id for row in rows], 0, [*range(view.passes), *turns])


def _pack(lane: Lane, arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """[n] all arrays one after the other, in their own dtype, ready to be sent."""
    dtype = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
    packed = lane.room(sum(array.size for array in arrays), dtype)
    into = packed.numpy()
    start = 0
    for array in arrays:
        into[start : start + array.size] = array.reshape(-1)
        start += array.size
    return packed


def _values(part: _Read, counts: np.ndarray) -> np.ndarray:
    """i64[PLAIN_ROWS or ALL_ROWS, P]: where each pass lies in the packed arrays, and what is done to it."""
    fe = part.stage.fe
    cuts = part.cuts
    sizes = np.array([array.size for array in part.arrays])
    stored = np.array([array.shape[2] for array in part.arrays])
    first = np.cumsum(sizes) - sizes
    offsets: Sequence[np.ndarray] = first[:, None]
    if isinstance(fe, CutFirst):
        one = fe.channels * fe.bins * stored
        offsets = [f + step * np.arange(len(cut)) for f, step, cut in zip(first, one, cuts, strict=True)]
    fills = [
        pad_value(array, fe) if cut.padded(array.shape[2]) else 0.0
        for array, cut in zip(part.arrays, cuts, strict=True)
    ]
    special = any(cut.masks is not None or cut.warps is not None for cut in cuts)
    values = np.zeros((ALL_ROWS if special else PLAIN_ROWS, int(counts.sum())), np.int64)
    values[OFFSET] = part.per_pass(offsets, counts)
    values[STORED] = np.repeat(stored, counts)
    values[START] = part.per_pass([cut.starts for cut in cuts], counts)
    values[LENGTH] = np.repeat([cut.length for cut in cuts], counts)
    values[FILL] = np.repeat(np.array(fills, np.float64), counts).view(np.int64)
    if cuts[0].flips is not None:
        values[FLIP] = part.per_pass([cut.flips for cut in cuts if cut.flips is not None], counts)
    if cuts[0].masks is not None:
        masks = [cut.masks.T for cut in cuts if cut.masks is not None]
        values[MASK : MASK + 4] = part.per_pass(masks, counts)
    warps = [cut.warps for cut in cuts if cut.warps is not None]
    if warps:
        values[CORNER] = part.per_pass([warp.corners for warp in warps], counts)
        matrices = perspectives(np.concatenate([warp.moved for warp in warps]))
        values[PERSPECTIVE:] = matrices.reshape(-1, 9).T.copy().view(np.int64)
    return values


def _stage(part: _Read, data: torch.Tensor, values: torch.Tensor, host: np.ndarray) -> StagedInput:
    """One input on the device; what is decided about it is read from the host's copy of the values."""
    last = host[START] + host[LENGTH]
    warps = part.cuts[0].warps
    return StagedInput(
        stage=part.stage,
        data=data,
        values=values,
        lengths=host[LENGTH],
        padded=bool((host[START] < 0).any() or (last > host[STORED]).any()),
        flipped=bool(host[FLIP].any()),
        masked=part.cuts[0].masks is not None,
        warped=host[CORNER] >= 0 if warps is not None else None,
        zoom=warps.zoom if warps is not None else 1.0,
    )
