"""Opens nets for a GPU in a thread of their own, while the device computes.

Owns `Opener`, and the `Hints` that a step gets. What opening means is the step's; which net comes next is
asked of the dispatcher.
"""
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from ..inference.devices import Device
from ..inference.member import LoadedNet
from .net_run import NetRun

Upcoming = Callable[[], NetRun | None]
LeftSeconds = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What a step is told of its surroundings: the net to open ahead, and the seconds that it has."""

    upcoming: Upcoming = lambda: None
    left_s: LeftSeconds = lambda: math.inf


class Opener:
    """One device's nets, opened one after the other. Used by that device's thread alone.

    open_run  reads and builds the net of a run on a device
    """

    def __init__(self, open_run: Callable[[NetRun, Device], LoadedNet], device: Device) -> None:
        self._open_run = open_run
        self._device = device
        self._pool = ThreadPoolExecutor(1, "opener", initializer=torch.set_num_threads, initargs=(1,))
        self._next: Future[tuple[NetRun, Future[LoadedNet]] | None] | None = None

    def open(self, run: NetRun) -> Future[LoadedNet]:
        """The run's net, perhaps opened ahead; its errors are raised by the future."""
        ahead = self._take_next()
        if ahead is not None and ahead[0] is run and run.failed is None:
            return ahead[1]
        return self._pool.submit(self._open, run)

    def open_next(self, upcoming: Upcoming) -> None:
        """Open the net that `upcoming` names, after all that are being opened now."""
        self._next = self._pool.submit(self._open_ahead, upcoming)

    def _take_next(self) -> tuple[NetRun, Future[LoadedNet]] | None:
        """What was opened ahead; waits only where it is being opened now."""
        ahead, self._next = self._next, None
        return None if ahead is None or ahead.cancel() else ahead.result()

    def _open_ahead(self, upcoming: Upcoming) -> tuple[NetRun, Future[LoadedNet]] | None:
        opened: Future[LoadedNet] = Future()
        run = None
        try:
            run = upcoming()
            if run is not None:
                opened.set_result(self._open(run))
        except BaseException as error:  # told when the net is wanted
            opened.set_exception(error)
        return None if run is None else (run, opened)

    def _open(self, run: NetRun) -> LoadedNet:
        """The net, its weights on a stream of their own: they do not wait for the batches before them."""
        with self._own_stream():
            net = self._open_run(run, self._device)
            if self._cuda:
                torch.cuda.current_stream(self._device.name).synchronize()
            return net

    @property
    def _cuda(self) -> bool:
        return self._device.cuda and torch.cuda.is_available()

    def _own_stream(self) -> AbstractContextManager[object]:
        if not self._cuda:
            return nullcontext()
        with torch.cuda.device(self._device.name):
            return torch.cuda.stream(torch.cuda.Stream(self._device.name))
