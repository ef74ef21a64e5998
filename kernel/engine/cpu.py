"""The CPU schedule: no forward ever holds two clips, and rows run side by side where the net allows it.

Owns which rows run together and which alone, how much memory they may take together, and the timing of each
row. A net that was recorded takes one thread for a row wherever it runs, so that its bytes depend neither on
the memory nor on the cores. Does not settle what a failure costs (net_run) or choose nets (plan).
"""
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from ..cache.store import Store
from ..inference.devices import is_out_of_memory
from ..inference.member import LoadedNet, predict_alone, tiled
from ..memory import Meter
from .feed import Feed
from .net_run import NetRun, Timing

BLOCK_ROWS = 32  # rows whose arrays are loaded before a net runs on them: few, so that scores come early
WARM_UP = 3  # first forwards of a net on a CPU: torch still chooses and compiles its kernels, once
SIDE_SHARE = 0.1  # of the memory that forwards side by side may take together; a larger one runs alone
MEMORY_MARK = 0.97  # a forward must fit under this share of the limit
SMALL_BYTES = 1 << 26  # forwards up to 64 MB lie within the store's reserve

Stop = Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one row: probabilities f64[K] or an error; neither when the run had to stop before it.

    forwards  (frames of a pass, cells in all) of each forward;  whole: at full length, not in tiles
    """

    probs: np.ndarray | None = None
    error: BaseException | None = None
    forwards: tuple[tuple[int, int], ...] = ()
    whole: bool = True
    seconds: float = 0.0


class Cores:
    """The threads for rows side by side, one core each, and the memory they may take; one for the whole run.

    side_bytes  most that forwards side by side may need together
    """

    def __init__(self, count: int, meter: Meter) -> None:
        self.count = count
        self.side_bytes = int(SIDE_SHARE * meter.limit().limit_bytes)  # of the bound that is really there
        self.threads = ThreadPoolExecutor(count, "rows", initializer=torch.set_num_threads, initargs=(1,))
        self._meter = meter

    def beside(self, need: float) -> int:
        """How many forwards of `need` bytes may run at once: 1 where nobody knows the need."""
        return min(self.count, int(self.side_bytes // need)) if need > 0 else 1

    def lack(self, need: float) -> int:
        """Bytes that `need` more would lack under 97 % of the limit; 0 or less when they are there."""
        if need < SMALL_BYTES:
            return 0
        reading = self._meter.read()
        return int(reading.used_bytes + need - MEMORY_MARK * reading.limit_bytes)

    def make_room(self, need: float, store: Store) -> bool:
        """True when a forward of `need` bytes fits beside everything but the store, which then gives way."""
        lacking = self.lack(need)
        if lacking > 0:
            if lacking > store.stats().ram_bytes:
                return False
            store.make_room(lacking)
        return True


class CpuSchedule:
    """One net over rows on the CPU."""

    def __init__(self, run: NetRun, net: LoadedNet, cores: Cores, feed: Feed, stop: Stop) -> None:
        self._run = run
        self._net = net
        self._cores = cores
        self._feed = feed
        self._stop = stop
        self._met: set[int] = set()  # widths for which torch has prepared its kernels
        self._forwards = 0

    def predict(self, todo: Sequence[int]) -> Iterator[None]:
        """Scores block by block: load, then run, since both want the same cores. Yields after each block."""
        for start in range(0, len(todo), BLOCK_ROWS):
            if self._stop():
                return
            block = todo[start:start + BLOCK_ROWS]
            self._run.loading_s += self._feed.load(self._net.recipe, block, self._stop)
            self.predict_block(block)
            yield

    def predict_block(self, block: Sequence[int]) -> None:
        """Rows whose arrays are there: small forwards of a recorded net side by side, others one by one."""
        beside = self._choose_beside(block)
        suspects = self._run.suspects()
        careful = [i for i in block if beside[i] < 2 or i in suspects]
        # No core waits long for the last one
        crowd = sorted(set(block) - set(careful), key=lambda i: -self._run.cells[i])
        while crowd and self._forwards + len(careful) < WARM_UP:
            careful.append(crowd.pop())
        self._predict_one_by_one(careful)
        self._predict_one_by_one(self._predict_crowd(crowd, beside))

    def _choose_beside(self, block: Sequence[int]) -> dict[int, int]:
        """Row -> how many of its size may run at once."""
        if not self._net.runner.recorded:
            return dict.fromkeys(block, 1)
        beside = {i: self._cores.beside(self._need_bytes(i)) for i in block}
        together = max((count * self._need_bytes(i) for i, count in beside.items() if count > 1), default=0.0)
        if self._cores.lack(together) > 0:  # others have taken the memory meanwhile
            return dict.fromkeys(block, 1)
        return beside

    def _need_bytes(self, i: int) -> float:
        """Bytes of the largest forward of row i, by the manifest."""
        cost = self._net.cost
        return cost.bytes_a + cost.bytes_b * self._net.recipe.cells_at_once(float(self._run.cells[i]))

    def _predict_one_by_one(self, rows: Sequence[int]) -> None:
        for i in rows:
            first = self._forwards < WARM_UP
            recorded = self._net.runner.recorded
            answer = (
                self._cores.threads.submit(self._attempt_alone, i).result()
                if recorded
                else self._attempt_alone(i)
            )
            timing = self._settle(i, answer)
            if first and answer.whole and answer.error is None:
                self._run.setup_s += answer.seconds
            elif timing is not None:
                timing.add(1, self._run.cells[i], answer.seconds)

    def _predict_crowd(self, crowd: Sequence[int], beside: dict[int, int]) -> list[int]:
        """Rows side by side; gives those back that ran out of memory: alone they may fit."""
        began = time.monotonic()
        again: list[int] = []
        timed: list[tuple[Timing, int, float]] = []
        for i, answer in self._abreast(crowd, beside):
            if answer.error is not None and is_out_of_memory(answer.error):
                again.append(i)
                continue
            timing = self._settle(i, answer)
            if timing is not None:
                timed.append((timing, i, answer.seconds))
        in_threads_s = sum(seconds for *_, seconds in timed)
        share = (time.monotonic() - began) / max(1e-9, in_threads_s)  # wall seconds of a thread's second
        for timing, i, seconds in timed:
            timing.add(1, self._run.cells[i], share * seconds)
        return again

    def _abreast(self, rows: Sequence[int], beside: dict[int, int]) -> Iterator[tuple[int, Answer]]:
        """(row, answer) in the order of `rows`, by falling need: no more in flight than each allows."""
        flying: deque[tuple[int, Future[Answer]]] = deque()
        for i in rows:
            while flying and beside[i] < self._cores.count and len(flying) >= beside[i]:
                number, future = flying.popleft()
                yield number, future.result()
            flying.append((i, self._cores.threads.submit(self._attempt, i, self._net)))
        for number, future in flying:
            yield number, future.result()

    def _attempt_alone(self, i: int) -> Answer:
        """One row, in tiles where its forward would not fit into memory at full length."""
        if self._cores.make_room(self._need_bytes(i), self._feed.store):
            return self._attempt(i, self._net)
        try:
            return self._attempt(i, tiled(self._net))
        except MemoryError as error:
            return Answer(error=error)

    def _attempt(self, i: int, net: LoadedNet) -> Answer:
        """One row through the net; in a thread of its own where the net is recorded."""
        row = self._run.rows.all[i]
        if self._stop() or row.id in self._run.rows.reasons:
            return Answer()
        began = time.monotonic()
        forwards: list[tuple[int, int]] = []
        try:
            with self._run.flight([row]):
                probs = predict_alone(net, self._feed.store, row, forwards)
        except BaseException as error:
            # Users' own nets may raise anything, KeyboardInterrupt too: it costs this net this row
            return Answer(error=error, seconds=time.monotonic() - began)
        return Answer(
            probs=probs, forwards=tuple(forwards), whole=net is self._net, seconds=time.monotonic() - began
        )

    def _settle(self, i: int, answer: Answer) -> Timing | None:
        """One row's answer on the board; where its seconds are to be booked, None for nowhere."""
        if answer.error is not None:
            self._run.settle(i, answer.error)
            return self._run.timing  # a row that it cannot do takes its time, too
        if answer.probs is None:
            return None
        new = {width for width, _ in answer.forwards} - self._met
        for width, cells in answer.forwards:
            self._run.count(width, cells)
        self._met |= new
        self._forwards += len(answer.forwards)
        self._run.put(i, answer.probs)
        if not answer.whole:
            self._run.tiled_rows += 1
        return self._run.fresh if new else self._run.timing
