"""Nets that share batches on a device: the same staged blocks for all of them.

Owns `BatchedNets`: launching a block's batches on every net and reading the answers one block later, so that
nothing waits for a single batch. A net that fails is left out, the others go on. Does not choose rows or make
blocks ready (gpu), run one net (seats), cut and finish (inference) or book what a failure costs (net_run).
"""
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from ..inference.devices import is_lost, is_out_of_memory, lacks_engine, release
from ..inference.staging import Drawn, Lane, StagedBlock
from ..sound.rows import Row
from .ahead import Ahead
from .seats import Scores, Seat, Told

SENT_AHEAD = 2  # blocks on the device or on their way to it, beside those that are computed

Flight = Callable[[Sequence[Row]], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Unsent:
    """Rows that did not reach the device, and why."""

    rows: Sequence[Row]
    error: BaseException


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What the nets say to a block's rows.

    probs    place of a net among the nets -> f64[n, K], or f64[F, K] of each row from a net of frames; NaN in
             rows that fail on the device even alone; nets that have failed are left out
    waited   seconds until the block was there
    seconds  from then, or from the answers before, to these
    """

    rows: Sequence[Row]
    probs: dict[int, Scores]
    waited: float
    seconds: float


@dataclass(kw_only=True)
class _Launched:
    """A block whose batches are on their way through the nets."""

    block: StagedBlock
    waited: float
    began: float
    told: dict[int, Told] = field(default_factory=dict)


class BatchedNets:
    """Nets of one intake that answer blocks of rows.

    lane   the way to their device
    stage  a block of rows made ready now: for rows that did not reach the device at first; None = none left
    """

    def __init__(
        self, seats: Sequence[Seat], lane: Lane, stage: Callable[[Sequence[Row]], StagedBlock | None]
    ) -> None:
        self._seats = seats
        self._lane = lane
        self._stage = stage
        self._last = 0.0  # when the last answers were there

    def predict(
        self, blocks: Iterator[StagedBlock | Unsent], flight: Flight = nullcontext
    ) -> Generator[Answered]:
        """Answers block by block; the next block is launched before one's answers are read.

        blocks  drawn in a thread of its own, while the device computes earlier ones
        flight  entered with the rows that are on the device; a block of one row is alone there
        """
        before: _Launched | None = None
        with ExitStack() as marks, closing(Ahead(blocks, SENT_AHEAD)) as coming:
            while self._alive():
                asked = time.monotonic()
                # What is not ready yet keeps no answers waiting; what runs alone waits for them
                item = coming.next() if before is None or coming.ready() else None
                if before is not None and (item is None or _runs_alone(item)):
                    answered = self._answer(before)
                    marks.close()
                    before = None
                    yield answered
                if item is None:
                    item = coming.next()
                if item is None:
                    return
                alone = _runs_alone(item)
                waited = time.monotonic() - asked
                marks.close()
                ahead = before.block.rows if before is not None else ()
                marks.enter_context(flight([*ahead, *item.rows]))
                if isinstance(item, Unsent):
                    yield from self._retry(item, waited)
                    marks.close()
                    continue
                launched = self._launch(item, waited)
                if before is not None or alone:
                    answered = self._answer(before or launched)
                    marks.close()
                    if not alone:
                        marks.enter_context(flight(item.rows))
                    yield answered
                before = None if alone else launched
            if before is not None:
                yield self._answer(before)

    def _alive(self) -> bool:
        return not all(seat.gone for seat in self._seats)

    def _retry(self, item: Unsent, waited: float) -> Generator[Answered]:
        """Rows that did not reach the device, in halves; one that does not even alone gets no answer."""
        release(self._lane.device)
        memory = is_out_of_memory(item.error) or lacks_engine(item.error)
        message = str(item.error)[:80]
        nets = [(place, seat.opened.result()) for place, seat in self._open_seats()]
        if len(item.rows) == 1:
            for place, net in nets:
                if memory:
                    net.runner.notes.append(f"out of memory: a row does not reach the device ({message})")
                else:
                    self._seats[place].settle(item.rows[0], item.error)
            probs: dict[int, Scores] = {place: np.full((1, 1), np.nan) for place, _ in nets}
            yield Answered(rows=item.rows, probs=probs, waited=waited, seconds=0.0)
            return
        for _, net in nets:
            what = "out of memory" if memory else type(item.error).__name__
            if memory or not any(note.startswith(what) for note in net.runner.notes):
                net.runner.notes.append(f"{what}: {len(item.rows)} rows are sent in halves ({message})")
        half = len(item.rows) // 2
        for rows in (item.rows[:half], item.rows[half:]):
            error: BaseException | None = None
            block = None
            try:
                block = self._stage(rows)
            except BaseException as raised:
                if is_lost(raised):
                    raise
                error = raised
            if error is not None:  # outside of the handler, which holds what the failed try held
                yield from self._retry(Unsent(rows=rows, error=error), waited)
            elif block is not None:
                yield self._answer(self._launch(block, waited))
            waited = 0.0

    def _open_seats(self) -> Iterator[tuple[int, Seat]]:
        """The nets that are there; those that cannot be opened fail here."""
        for place, seat in enumerate(self._seats):
            if seat.takes_part():
                yield place, seat

    def _launch(self, block: StagedBlock, waited: float) -> _Launched:
        """Every batch of a block on every net; nothing is waited for."""
        launched = _Launched(block=block, waited=waited, began=time.monotonic())
        self._lane.accept(block.held, block.ready)
        parts: dict[int, list[torch.Tensor]] = {}
        if all(seat.gone or seat.opened.done() for seat in self._seats):
            for places, width in block.batches:
                drawn = self._draw(block, places, width)
                for place, seat in self._open_seats():
                    self._launch_batch(seat, block, (places, width), drawn, parts.setdefault(place, []))
        else:  # one after the other: the next ones are read and built meanwhile
            for place, seat in self._open_seats():
                for batch in block.batches:
                    drawn = self._draw(block, *batch)
                    self._launch_batch(seat, block, batch, drawn, parts.setdefault(place, []))
        for place, seat in self._open_seats():
            told = seat.attempt(partial(seat.merge, self._lane, block, parts.get(place, [])))
            if told is not None:
                launched.told[place] = told
        return launched

    def _draw(self, block: StagedBlock, places: slice, width: int) -> Drawn | None:
        """A batch, cut and finished; None where that fails, and each net halves it for itself."""
        try:
            return block.draw(places, width)
        except BaseException as error:
            if is_lost(error):
                raise
        release(self._lane.device)
        return None

    def _launch_batch(
        self,
        seat: Seat,
        block: StagedBlock,
        batch: tuple[slice, int],
        drawn: Drawn | None,
        outs: list[torch.Tensor],
    ) -> None:
        if not seat.gone:
            outs += seat.attempt(lambda: seat.run(self._lane, block, *batch, drawn)) or []

    def _answer(self, launched: _Launched) -> Answered:
        """What the nets said to a block, waited for; rows that half precision could not hold run again."""
        probs = {}
        for place, told in launched.told.items():
            seat = self._seats[place]
            read = seat.attempt(partial(seat.read, self._lane, launched.block, told))
            if read is not None:
                probs[place] = read
        began = max(launched.began, self._last)
        self._last = time.monotonic()
        return Answered(rows=launched.block.rows, probs=probs, waited=launched.waited,
                        seconds=self._last - began)


def _runs_alone(item: StagedBlock | Unsent) -> bool:
    """True for a single row, perhaps a suspect, and for what has failed to reach the device."""
    return isinstance(item, Unsent) or len(item.rows) == 1
