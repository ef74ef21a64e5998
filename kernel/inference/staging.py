"""Stored arrays on their way into a net's batches: packed on the host, cut and finished where the device is.

Owns `Lane` (the way of bytes to a device and of answers back), `Intake` (how nets want their inputs) and
`StagedBlock`: the stored arrays of some rows, sent once per row and front end in their stored dtype, and the
batches that nets with one intake draw from them. What a view does to a row comes as values (`cuts`), what an
operation does to a batch is `operations`. Does not choose which rows share a batch (engine) or run nets.
"""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..sound.rows import Row
from .cuts import Cuts
from .deltas import Lengths, take_frames
from .devices import Device
from .distort import distort_many
from .recipe import CutFirst, Recipe, Stage
from .streams import Streams


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """Answers on their way to the host; `read` waits for them."""

    read: Callable[[], np.ndarray]


class Lane:
    """The way to one device and back. On a GPU copies travel from pinned memory on a stream of their own.

    sent_bytes  of everything sent so far
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.sent_bytes = 0
        self._cuda = torch.device(device.name).type == "cuda"
        self._copies = torch.cuda.Stream(device.name) if self._cuda else None

    def room(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """[count] on the host, uninitialised, pinned where a GPU will read it."""
        return torch.empty(count, dtype=dtype, pin_memory=self._cuda)

    def send(
        self, values: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], torch.cuda.Event | None]:
        """The values on the device, and the event that ends their copy; None where there is none."""
        self.sent_bytes += sum(value.nbytes for value in values.values())
        if self._copies is None:
            return {k: v.to(self.device.name) for k, v in values.items()}, None
        with torch.cuda.stream(self._copies):
            moved = {k: v.to(self.device.name, non_blocking=True) for k, v in values.items()}
            ready = torch.cuda.Event()
            ready.record(self._copies)
        return moved, ready

    def accept(self, values: Mapping[str, torch.Tensor], ready: torch.cuda.Event | None) -> None:
        """Let the device's own stream wait for a copy, and keep the values' memory until it is done."""
        if ready is not None:
            stream = torch.cuda.current_stream(self.device.name)
            stream.wait_event(ready)
            for value in values.values():
                value.record_stream(stream)

    def fetch(self, values: torch.Tensor) -> Fetched:
        """The values on their way to the host; nothing waits before they are read."""
        if not self._cuda:
            return Fetched(read=values.numpy)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device.name))

        def read() -> np.ndarray:
            done.synchronize()
            return host.numpy()

        return Fetched(read=read)


@dataclass(frozen=True, kw_only=True)
class Intake:
    """How nets want their inputs; nets with one intake share batches.

    least       fewest stored frames of a row; shorter ones are padded to it
    min_frames  fewest frames of the net's input
    maskable    True: rows of different lengths may share a batch
    """

    recipe: Recipe
    least: int
    min_frames: int
    maskable: bool

    @property
    def key(self) -> tuple[object, ...]:
        """Equal keys mean equal batches."""
        return self.recipe.key, self.least, self.min_frames, self.maskable

    @property
    def exact(self) -> bool:
        """True where only rows of one length share a batch: all have one, or none may be padded."""
        ragged = self.recipe.stages[self.recipe.timed].finish.ragged
        return self.recipe.view.fixed is not None or not self.maskable or not ragged


def plan_row(
    stage: Stage, stored: np.ndarray, row_id: str, least: int, streams: Streams | None = None
) -> Cuts:
    """The passes over a row's stored array; one that keeps its own length has at least `least` frames."""
    if isinstance(stage.fe, CutFirst):  # they were cut before they were stored
        cuts = Cuts(starts=np.zeros(len(stored) // stage.fe.channels, np.int64), length=stored.shape[2])
    else:
        cuts = stage.view.plan(stored, row_id, streams=streams)
    own = stage.fe.time and stage.view.fixed is None
    return replace(cuts, length=least) if own and cuts.length < least else cuts


# Rows of the values that go with each pass; float64 travels as its bits
OFFSET, STORED, START, LENGTH, FILL, FLIP, CORNER, MASK, PERSPECTIVE = 0, 1, 2, 3, 4, 5, 6, 7, 11
PLAIN_ROWS, ALL_ROWS = 6, 20  # without corner, mask and perspective; with them


Places = slice | np.ndarray  # passes of a block, in the order of its batches
Drawn = tuple[dict[str, torch.Tensor], np.ndarray | None]  # a batch, and its own lengths where it is padded


def _choose(values: torch.Tensor, places: Places) -> torch.Tensor:
    """[..., B] columns of values [..., P]."""
    if isinstance(places, slice):
        return values[..., places]
    return values[..., torch.from_numpy(places).to(values.device, non_blocking=True)]


@dataclass(frozen=True, kw_only=True)
class StagedInput:
    """One input of a block's passes.

    data     [n] stored arrays one after the other, in their stored dtype, on the device
    values   i64[PLAIN_ROWS or ALL_ROWS, P] on the device: where each pass lies and what is done to it
    lengths  i64[P] on the host, own frames of each pass before the finish
    padded   True where a pass reaches beyond what is stored
    warped   bool[P] on the host, passes that are distorted; None = none
    """

    stage: Stage
    data: torch.Tensor
    values: torch.Tensor
    lengths: np.ndarray
    padded: bool
    flipped: bool
    masked: bool
    warped: np.ndarray | None
    zoom: float

    def cut(self, places: Places, width: int) -> torch.Tensor:
        """[B, C, M, width] of some passes as stored; beyond a pass's own length stands anything."""
        values = _choose(self.values, places)
        fe = self.stage.fe
        bands = fe.channels * fe.bins
        stored = values[STORED][:, None]
        time = torch.arange(width, device=values.device)
        frame = values[START][:, None] + time
        index = torch.minimum(frame.clamp(min=0), stored - 1) + values[OFFSET][:, None]
        band = torch.arange(bands, device=values.device)[:, None] * stored[..., None]
        x = torch.take(self.data, index[:, None] + band)
        if self.padded:
            inside = (frame >= 0) & (frame < stored)
            fill = values[FILL].view(torch.float64).to(x.dtype)
            x = torch.where(inside[:, None], x, fill[:, None, None])
        x = x.reshape(-1, fe.channels, fe.bins, width)
        if self.masked:
            x = _mask(x, values)
        if self.warped is not None:
            x = self._warp(x, values, np.flatnonzero(self.warped[places]))
        if self.flipped:
            back = torch.where(values[FLIP][:, None] > 0, values[LENGTH][:, None] - 1 - time, time)
            x = take_frames(x, back.clamp_(min=0))
        return x

    def _warp(self, x: torch.Tensor, values: torch.Tensor, places: np.ndarray) -> torch.Tensor:
        if not len(places):
            return x
        chosen = torch.from_numpy(places).to(x.device, non_blocking=True)
        matrices = values[PERSPECTIVE:, chosen].T.contiguous().view(torch.float64).reshape(-1, 3, 3)
        moved = distort_many(x[chosen], values[CORNER, chosen], self.zoom, matrices)
        return x.index_copy(0, chosen, moved)


def _mask(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    low, high, first, last = (values[MASK + i][:, None] for i in range(4))
    rows = torch.arange(x.shape[2], device=x.device)
    columns = torch.arange(x.shape[3], device=x.device)
    blank = ((rows >= low) & (rows < high))[:, :, None] | ((columns >= first) & (columns < last))[:, None]
    return x.masked_fill(blank[:, None], 0)


@dataclass(frozen=True, kw_only=True)
class StagedBlock:
    """Rows whose stored arrays are on the device, and the batches of their passes.

    rows     that can be predicted;  row_of: i64[P] on the host, the place in `rows` of each pass
    lengths  i64[P] on the host, own frames of each pass of the net's input, in the order of the batches;
             before the finish where that leaves no time axis
    batches  (passes, width) of each batch
    merging  i64[2, P] on the device: row of each pass, and its share in that row (the bits of a float64)
    held     everything of it on the device;  ready: the end of its copy there, None where there was none
    """

    rows: Sequence[Row]
    inputs: Mapping[str, StagedInput]
    timed: str
    row_of: np.ndarray
    lengths: np.ndarray
    batches: Sequence[tuple[slice, int]]
    merging: torch.Tensor
    held: Mapping[str, torch.Tensor]
    ready: torch.cuda.Event | None

    @torch.inference_mode()
    def draw(self, places: Places, width: int) -> Drawn:
        """Some passes cut and finished, zeros beyond own lengths; and these, None where none is padded."""
        own = self.lengths[places]
        padded = bool((own != width).any())
        drawn = {name: self._finish(given, places, width) for name, given in self.inputs.items()}
        if padded:
            drawn[self.timed] = _clear_tail(drawn[self.timed], own, width)
        return drawn, own if padded else None

    def _finish(self, given: StagedInput, places: Places, width: int) -> torch.Tensor:
        own = given.lengths[places]
        longest = int(own.max())
        finish = given.stage.finish
        ragged = bool((own != longest).any())
        free = given is self.inputs[self.timed] and given.stage.view.fixed is None and finish.ragged
        if free and finish.frames(longest) == longest:  # as wide as the batch: few different widths
            ragged = ragged or longest != width
            longest = width
        lengths = Lengths(host=own, device=_choose(given.values[LENGTH], places)) if ragged else None
        return finish.batch(given.cut(places, longest), lengths)


def _clear_tail(x: torch.Tensor, own: np.ndarray, width: int) -> torch.Tensor:
    """x with zeros beyond each row's own length, `width` frames wide."""
    x = torch.nn.functional.pad(x, (0, width - x.shape[-1]))
    lengths = torch.from_numpy(own).to(x.device, non_blocking=True)
    beyond = torch.arange(width, device=x.device) >= lengths[:, None]
    return x.masked_fill(beyond.reshape(len(x), *[1] * (x.dim() - 2), width), 0.0)
