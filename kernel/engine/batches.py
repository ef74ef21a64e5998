"""Nets that share batches on a device: folds of a member over the same staged blocks.

Owns `BatchedNets`: launching a block's batches on every net, halving them when memory runs out, merging the
answers on the device and reading them one block later, so that nothing waits for a single batch. A net that
fails is left out, the others go on. Does not choose rows or make blocks ready (gpu), cut and finish
(inference) or settle what a failure costs (net_run).
"""
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from ..errors import DeviceError
from ..inference.answers import merge_passes
from ..inference.devices import is_lost, is_out_of_memory, lacks_engine, release
from ..inference.member import LoadedNet
from ..inference.staging import Fetched, Lane, Places, StagedBlock
from ..sound.rows import Row
from .ahead import Ahead

SENT_AHEAD = 2  # blocks on the device or on their way to it, beside those that are computed

Flight = Callable[[Sequence[Row]], AbstractContextManager[object]]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Unsent:
    """Rows that did not reach the device, and why."""

    rows: Sequence[Row]
    error: Exception


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What the nets say to a block's rows.

    probs    place of a net among the nets -> f64[n, K], NaN in rows that do not fit on the device even
             alone; nets that have failed are left out
    waited   seconds until the block was there
    seconds  from then, or from the answers before, to these
    """

    rows: Sequence[Row]
    probs: dict[int, np.ndarray]
    waited: float
    seconds: float


@dataclass(kw_only=True)
class Seat:
    """One net's place among nets that share batches.

    opened  the net, perhaps still being read and built
    count   called with width, cells and padded cells of every batch
    fail    called with what the net has failed of, once
    """

    opened: Future[LoadedNet]
    count: Callable[[int, int, int], None]
    fail: Callable[[BaseException], None]
    failed: bool = False


def seat_of(
    net: LoadedNet,
    count: Callable[[int, int, int], None] = lambda *_: None,
    fail: Callable[[BaseException], None] | None = None,
) -> Seat:
    """A seat for a net that is there; without `fail` its failures are raised."""

    def raise_it(error: BaseException) -> None:
        raise error

    opened: Future[LoadedNet] = Future()
    opened.set_result(net)
    return Seat(opened=opened, count=count, fail=fail or raise_it)


@dataclass(kw_only=True)
class _Launched:
    """A block whose batches are on their way through the nets."""

    block: StagedBlock
    waited: float
    began: float
    answers: dict[int, torch.Tensor] = field(default_factory=dict)
    merged: dict[int, Fetched] = field(default_factory=dict)


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
        return not all(seat.failed for seat in self._seats)

    def _retry(self, item: Unsent, waited: float) -> Generator[Answered]:
        """Rows that did not reach the device, in halves; one that does not fit even alone gets no answer."""
        if not (is_out_of_memory(item.error) or lacks_engine(item.error)):
            raise item.error
        release(self._lane.device)
        message = str(item.error)[:80]
        nets = [(place, seat.opened.result()) for place, seat in self._open_seats()]
        if len(item.rows) == 1:
            for _, net in nets:
                net.runner.notes.append(f"out of memory: a row does not reach the device ({message})")
            probs = {place: np.full((1, 1), np.nan) for place, _ in nets}
            yield Answered(rows=item.rows, probs=probs, waited=waited, seconds=0.0)
            return
        for _, net in nets:
            net.runner.notes.append(f"out of memory: {len(item.rows)} rows are sent in halves ({message})")
        half = len(item.rows) // 2
        for rows in (item.rows[:half], item.rows[half:]):
            error: Exception | None = None
            try:
                block = self._stage(rows)
                if block is not None:
                    yield self._answer(self._launch(block, waited))
            except Exception as raised:
                error = raised
            if error is not None:  # outside of the handler, which holds what the failed try held
                yield from self._retry(Unsent(rows=rows, error=error), waited)
            waited = 0.0

    def _open_seats(self) -> Iterator[tuple[int, Seat]]:
        """The nets that are there; those that cannot be opened fail here."""
        for place, seat in enumerate(self._seats):
            if not seat.failed and self._try(seat, seat.opened.result) is not None:
                yield place, seat

    def _try(self, seat: Seat, work: Callable[[], T]) -> T | None:
        """What `work` gives, or None where this net has failed of it. Raises the error of a lost device."""
        try:
            return work()
        except BaseException as error:  # whatever a net's own code raises costs this net
            if is_lost(error):
                raise
            seat.failed = True
            seat.fail(error)
        return None

    def _launch(self, block: StagedBlock, waited: float) -> _Launched:
        """Every batch of a block on every net; nothing is waited for."""
        launched = _Launched(block=block, waited=waited, began=time.monotonic())
        self._lane.accept(block.held, block.ready)
        parts: dict[int, list[torch.Tensor]] = {}
        if all(seat.failed or seat.opened.done() for seat in self._seats):
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
            outs = parts.get(place, [])
            if sum(len(out) for out in outs) == len(block.lengths):
                self._merge(place, seat, outs, launched)
        return launched

    def _draw(self, block: StagedBlock, places: Places, width: int) -> "Drawn | None":
        """A batch, cut and finished; None where it does not fit, and each net halves it for itself."""
        try:
            return block.draw(places, width)
        except Exception as error:
            if not (is_out_of_memory(error) or lacks_engine(error)):
                raise
        release(self._lane.device)
        return None

    def _launch_batch(self, seat: Seat, block: StagedBlock, batch: tuple[slice, int], drawn: "Drawn | None",
                      outs: list[torch.Tensor]) -> None:
        if not seat.failed:
            outs += self._try(seat, lambda: self._run(seat, block, *batch, drawn)) or []

    def _run(
        self, seat: Seat, block: StagedBlock, places: slice, width: int, drawn: "Drawn | None"
    ) -> list[torch.Tensor]:
        """f32[b, K] of the passes of a batch in order, halved when memory runs out; NaN for one that does not
        fit alone.
        """
        net = seat.opened.result()
        count = places.stop - places.start
        try:
            inputs, own = drawn or block.draw(places, width)
            out = net.runner.launch(inputs, net.lengths(own, inputs))
        except Exception as error:
            memory = is_out_of_memory(error)
            if not memory and not lacks_engine(error):
                raise
            if not memory and count == 1:
                raise DeviceError(
                    f"{net.recipe.member.name}: no way to compute one row of {width} frames on "
                    f"{self._lane.device.name} ({str(error)[:200]}); run this net on the CPU"
                ) from error
            message = str(error)[:80]  # leaving the handler frees what the failed forward held
        else:
            cells = width * count
            seat.count(width, cells, cells - int(block.lengths[places].sum()))
            return [out]
        drawn = None
        release(self._lane.device)
        what = "out of memory" if memory else "no engine"
        if count == 1:
            net.runner.notes.append(f"{what} at 1 x {width}: this net has no say in that row ({message})")
            return [torch.full((1, 1), torch.nan, device=block.merging.device)]
        net.runner.notes.append(f"{what} at {count} x {width}: batch halved ({message})")
        middle = places.start + count // 2
        net.fitting_cells = (count // 2) * width
        first = self._run(seat, block, slice(places.start, middle), width, None)
        return first + self._run(seat, block, slice(middle, places.stop), width, None)

    def _merge(self, place: int, seat: Seat, outs: Sequence[torch.Tensor], launched: _Launched) -> None:
        """The block's answers on their way to the host."""
        def merge() -> Fetched:
            classes = max(out.shape[1] for out in outs)
            answers = torch.cat([out.expand(-1, classes) for out in outs])
            launched.answers[place] = answers
            return self._lane.fetch(_merge_rows(seat.opened.result(), answers, launched.block))

        fetched = self._try(seat, merge)
        if fetched is not None:
            launched.merged[place] = fetched

    def _answer(self, launched: _Launched) -> Answered:
        """What the nets said to a block, waited for; rows that half precision could not hold run again."""
        probs = {}
        for place in launched.merged:
            told = self._try(self._seats[place], partial(self._read, place, launched))
            if told is not None:
                probs[place] = told
        began = max(launched.began, self._last)
        self._last = time.monotonic()
        return Answered(rows=launched.block.rows, probs=probs, waited=launched.waited,
                        seconds=self._last - began)

    def _read(self, place: int, launched: _Launched) -> np.ndarray:
        """f64[n, K] of one net, rows that half precision could not hold computed again in fp32."""
        probs = launched.merged[place].read()
        net = self._seats[place].opened.result()
        broken = ~np.isfinite(probs).all(axis=1)
        return self._rerun(net, place, broken, launched) if net.runner.half and broken.any() else probs

    def _rerun(self, net: LoadedNet, place: int, broken: np.ndarray, launched: _Launched) -> np.ndarray:
        """f64[n, K] after the passes of some rows were computed in fp32."""
        block = launched.block
        answers = launched.answers[place]
        for batch, width in block.batches:
            chosen = np.flatnonzero(broken[block.row_of[batch]]) + batch.start
            for piece in np.array_split(chosen, -(-len(chosen) // 32)) if len(chosen) else ():
                inputs, own = block.draw(piece, width)
                out = net.runner.launch_exact(inputs, net.lengths(own, inputs))
                answers[torch.from_numpy(piece).to(answers.device)] = out
        return self._lane.fetch(_merge_rows(net, answers, block)).read()


def _runs_alone(item: StagedBlock | Unsent) -> bool:
    """True for a single row, perhaps a suspect, and for what has failed to reach the device."""
    return isinstance(item, Unsent) or len(item.rows) == 1


Drawn = tuple[dict[str, torch.Tensor], np.ndarray | None]


def _merge_rows(net: LoadedNet, answers: torch.Tensor, block: StagedBlock) -> torch.Tensor:
    """f64[n, K] of a block's rows from the net's answers f32[P, K]."""
    shares = block.merging[1].view(torch.float64)
    rule = net.recipe.view.merge_rule
    return merge_passes(rule, net.activate, answers, block.merging[0], shares, len(block.rows))
