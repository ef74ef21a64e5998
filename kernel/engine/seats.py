"""One net among those that share batches on a device: its forwards, its answers, and what a failure costs it.

Owns `Seat`: launching a block's batches, splitting one that fails down to the row that is to blame, merging
the answers on the device and reading them. Does not order blocks (batches) or book what is lost (net_run).
"""
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from ..errors import DeviceError
from ..inference.answers import check_frames, merge_passes, score_frames
from ..inference.devices import is_lost, is_out_of_memory, lacks_engine, release
from ..inference.member import LoadedNet
from ..inference.staging import Drawn, Fetched, Lane, StagedBlock
from ..sound.rows import Row

T = TypeVar("T")
Scores = np.ndarray | list[np.ndarray]  # f64[n, K], or f64[F, K] of each row from a net of frames
RERUN_ROWS = 32  # most passes that half precision could not hold and that are computed together again


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a net said to a block, on its way to the host.

    answers  f32[P, K] of its passes, on the device; None for a net of frames
    fetched  f64[n, K], or f64[b, F, K] of each batch from a net of frames
    """

    answers: torch.Tensor | None
    fetched: Sequence[Fetched]


@dataclass(kw_only=True)
class Seat:
    """One net's place among nets that share batches.

    opened  the net, perhaps still being read and built
    count   called with width, cells and padded cells of every batch
    fail    called with what the net has failed of, once
    settle  called with a row that the net cannot do, and what it raises there
    intake  how the batches suit its net; one that wants them otherwise leaves unscored. None = not looked at
    gone    whether it has no more part in these batches
    looked  whether its net was looked at
    was_half  whether a batch has run in half precision, which may have been given up since
    """

    opened: Future[LoadedNet]
    count: Callable[[int, int, int], None]
    fail: Callable[[BaseException], None]
    settle: Callable[[Row, BaseException], None]
    intake: Hashable = None
    gone: bool = False
    looked: bool = False
    was_half: bool = False

    def takes_part(self) -> bool:
        """True where the net is there and these batches suit it; it leaves where they do not."""
        if not self.gone and not self.looked:
            net = self.attempt(self.opened.result)
            self.looked = True
            if net is not None and self.intake is not None and net.intake.key != self.intake:
                self.gone = True
        return not self.gone

    def attempt(self, work: Callable[[], T]) -> T | None:
        """What `work` gives, or None where the net has failed of it. Raises the error of a lost device."""
        try:
            return work()
        except BaseException as error:  # whatever a net's own code raises costs this net
            if is_lost(error):
                raise
            self.gone = True
            self.fail(error)
        return None

    def run(
        self, lane: Lane, block: StagedBlock, places: slice, width: int, drawn: Drawn | None
    ) -> list[torch.Tensor]:
        """f32[b, K] or [b, F, K] of the passes of a batch in order, halved when it fails; NaN[1, 1] for one
        that fails alone.

        drawn  the batch, where it is there; None: it is drawn here

        Raises  the error of a lost device; DeviceError where there is no way to compute one row
        """
        net = self.opened.result()
        count = places.stop - places.start
        try:
            inputs, own = drawn or block.draw(places, width)
            self.was_half = self.was_half or net.runner.half
            out = net.runner.launch(inputs, net.lengths(own, inputs))
            self._check(net, out, count)
        except BaseException as error:  # users' own nets may raise anything: it costs the row to blame
            if is_lost(error):
                raise
            if count == 1:
                self._fail_alone(lane, block, places.start, width, error)
            kind = _kind(error)
            message = str(error)[:80]  # leaving the handler frees what the failed forward held
        else:
            cells = width * count
            self.count(width, cells, cells - int(block.lengths[places].sum()))
            return [out]
        drawn = None
        release(lane.device)
        if count == 1:
            return [torch.full((1, 1), torch.nan, device=block.merging.device)]
        self._note_halved(net, kind, count, width, message)
        middle = places.start + count // 2
        first = self.run(lane, block, slice(places.start, middle), width, None)
        return first + self.run(lane, block, slice(middle, places.stop), width, None)

    @staticmethod
    def _check(net: LoadedNet, out: torch.Tensor, count: int) -> None:
        """Raises ValueError for answers that do not go with the passes asked for."""
        if len(out) != count:
            raise ValueError(f"the net gave {list(out.shape)} for {count} inputs; give one row for each")
        if net.recipe.member.frames is not None:
            check_frames(tuple(out.shape), 1)

    def _fail_alone(
        self, lane: Lane, block: StagedBlock, place: int, width: int, error: BaseException
    ) -> None:
        """One pass fails alone: what that costs."""
        net = self.opened.result()
        kind = _kind(error)
        if kind == "no engine":
            raise DeviceError(
                f"{net.recipe.member.name}: no way to compute one row of {width} frames on "
                f"{lane.device.name} ({str(error)[:200]}); run this net on the CPU"
            ) from error
        if kind == "out of memory":
            net.runner.notes.append(
                f"{kind} at 1 x {width}: this net has no say in that row ({str(error)[:80]})"
            )
        else:
            self.settle(block.rows[int(block.row_of[place])], error)

    @staticmethod
    def _note_halved(net: LoadedNet, kind: str, count: int, width: int, message: str) -> None:
        notes = net.runner.notes
        if kind in ("out of memory", "no engine"):
            notes.append(f"{kind} at {count} x {width}: batch halved ({message})")
            net.fitting_cells = (count // 2) * width
        elif not any(note.startswith(kind) for note in notes):  # the rows that are to blame are named, too
            notes.append(f"{kind} at {count} x {width}: such batches are halved ({message})")

    def merge(self, lane: Lane, block: StagedBlock, outs: Sequence[torch.Tensor]) -> Told:
        """The block's answers on their way to the host."""
        net = self.opened.result()
        if net.recipe.member.frames is not None:
            fetched = [lane.fetch(_score_frames(net, out)) for out in outs]
            return Told(answers=None, fetched=fetched)
        classes = net.recipe.width(max(out.shape[1] for out in outs))
        answers = torch.cat([out.expand(-1, classes) for out in outs])
        return Told(answers=answers, fetched=[lane.fetch(_merge_rows(net, answers, block))])

    def read(self, lane: Lane, block: StagedBlock, told: Told) -> Scores:
        """What the net said to each row, waited for; what half precision could not hold runs in fp32."""
        if told.answers is not None:
            scores: Scores = told.fetched[0].read()
        else:
            scores = [np.empty(0)] * len(block.rows)
            answers = (answer for part in told.fetched for answer in part.read())
            for row, answer in zip(block.row_of, answers, strict=True):
                scores[row] = answer
        if self.was_half:
            broken = np.array([not np.isfinite(answer).all() for answer in scores])
            scores = self._rerun(lane, block, told, scores, broken) if broken.any() else scores
        if isinstance(scores, list):
            self._refuse_passes(block, scores)
        return scores

    def _refuse_passes(self, block: StagedBlock, scores: list[np.ndarray]) -> None:
        """Rows of which a net of frames has heard several passes: it has no say in them."""
        passes = np.bincount(block.row_of, minlength=len(block.rows))
        for row in np.flatnonzero(passes > 1).tolist():
            try:
                check_frames((1, *scores[row].shape), int(passes[row]))
            except ValueError as error:
                self.settle(block.rows[row], error)
            scores[row] = np.full((1, 1), np.nan)

    def _rerun(
        self, lane: Lane, block: StagedBlock, told: Told, scores: Scores, broken: np.ndarray
    ) -> Scores:
        """The scores after the passes of some rows were computed in fp32."""
        net = self.opened.result()
        for batch, width in block.batches:
            chosen = np.flatnonzero(broken[block.row_of[batch]]) + batch.start
            for piece in np.array_split(chosen, -(-len(chosen) // RERUN_ROWS)) if len(chosen) else ():
                for places, out in self._run_exact(lane, block, piece, width):
                    if told.answers is not None:
                        told.answers[torch.from_numpy(places).to(out.device)] = out
                        continue
                    again = lane.fetch(_score_frames(net, out)).read()
                    for row, answer in zip(block.row_of[places], again, strict=True):
                        scores[row] = answer
        return scores if told.answers is None else lane.fetch(_merge_rows(net, told.answers, block)).read()

    def _run_exact(
        self, lane: Lane, block: StagedBlock, places: np.ndarray, width: int
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """(passes, their answers in fp32), halved when it fails; nothing for one that fails alone."""
        net = self.opened.result()
        out = None
        try:
            inputs, own = block.draw(places, width)
            out = net.runner.launch_exact(inputs, net.lengths(own, inputs))
            self._check(net, out, len(places))
        except BaseException as error:
            if is_lost(error):
                raise
            if len(places) == 1:
                self._fail_alone(lane, block, int(places[0]), width, error)
            out = None
        if out is not None:
            yield places, out
            return
        release(lane.device)
        if len(places) > 1:
            for half in np.array_split(places, 2):
                yield from self._run_exact(lane, block, half, width)


def seat_of(
    net: LoadedNet,
    count: Callable[[int, int, int], None] = lambda *_: None,
    fail: Callable[[BaseException], None] | None = None,
    settle: Callable[[Row, BaseException], None] | None = None,
) -> Seat:
    """A seat for a net that is there; without `fail` and `settle` its failures are raised."""

    def raise_it(error: BaseException) -> None:
        raise error

    opened: Future[LoadedNet] = Future()
    opened.set_result(net)
    settle = settle or (lambda row, error: raise_it(error))
    return Seat(opened=opened, count=count, fail=fail or raise_it, settle=settle)


def _kind(error: BaseException) -> str:
    """What a failed batch failed of, in a few words."""
    if is_out_of_memory(error):
        return "out of memory"
    return "no engine" if lacks_engine(error) else type(error).__name__


def _score_frames(net: LoadedNet, out: torch.Tensor) -> torch.Tensor:
    """f64[B, F, K] of a batch of windows from the net's answers f32[B, F, K]."""
    if out.dim() == 2:  # a window that failed alone
        return out.double()
    return net.recipe.in_order(score_frames(net.activate, net.recipe.before_activation(out)))


def _merge_rows(net: LoadedNet, answers: torch.Tensor, block: StagedBlock) -> torch.Tensor:
    """f64[n, K] of a block's rows from the net's answers f32[P, K]."""
    shares = block.merging[1].view(torch.float64)
    rule = net.recipe.view.merge_rule
    answers = net.recipe.before_activation(answers)
    merged = merge_passes(rule, net.activate, answers, block.merging[0], shares, len(block.rows))
    return net.recipe.in_order(merged)
