"""Rows through one net on a CPU: no batch ever holds two clips, and several rows run side by side where the
net allows it.

Owns which rows run together and which alone, what a row's failure costs (that row in that net), and the books
of what it took. Does not load spectrograms or choose nets (steps).
"""
from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..errors import ClipError
from ..inference import backends
from ..inference.net import LoadedNet, predict_alone, tiled
from .state import Scene, Timing

WARM_UP = 3  # first forwards of a net on a CPU: torch still chooses and compiles its kernels, once
MEMORY_MARK = 0.97  # a forward must fit under this share of the limit
SMALL_BYTES = 1 << 26  # forwards up to 64 MB: within the store's reserve

Stop = Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one row: probabilities f64[K] or an error; neither when the run had to stop before it.

    forwards  (frames of a pass, frames in all) of each forward; whole: at full length, not in tiles
    """

    probs: np.ndarray | None = None
    error: BaseException | None = None
    forwards: tuple[tuple[int, int], ...] = ()
    whole: bool = True
    seconds: float = 0.0


def run_window(scene: Scene, net_id: str, net: LoadedNet, window: list[int], stop: Stop) -> None:
    """Rows of a window. No batch ever holds two clips; small forwards of a recorded net run side by side, one
    thread each.

    A recorded net takes one thread for a row wherever it runs, so that its bytes depend neither on the memory
    nor on the cores.
    """
    def attempt(i: int, check: bool = True) -> Answer:
        return Answer() if stop() else _attempt(scene, net_id, net, i, check)

    frames, again = scene.frames[net.recipe.member.name], list[int]()
    suspects, need = scene.journal.suspects_with(net_id), {i: need_bytes(scene, net, i) for i in window}
    beside = {i: _fitting(scene, net, need[i]) for i in window}
    if (
        lacking_bytes(scene, max((count * need[i] for i, count in beside.items() if count > 1), default=0.0))
        > 0
    ):
        beside = dict.fromkeys(window, 1)  # others have taken the memory meanwhile
    careful = [i for i in window if beside[i] < 2 or scene.rows[i].id in suspects]
    # longest first: no core waits long for the last one
    crowd = sorted(set(window) - set(careful), key=lambda i: -frames[i])
    while crowd and net.batches + len(careful) < WARM_UP:
        careful.append(crowd.pop())

    def run_careful(rows: list[int]) -> None:
        for i in rows:
            first = net.batches < WARM_UP
            answer = scene.side.submit(attempt, i).result() if net.runner.recorded else attempt(i)
            timing = _settle(scene, net_id, net, i, answer)
            if first and answer.whole:
                scene.nets[net_id].setup_s += answer.seconds
            elif timing is not None:
                timing.add(1, frames[i], answer.seconds)

    run_careful(careful)
    began, timed = time.monotonic(), list[tuple[Timing, int, float]]()
    for i, answer in _abreast(scene, partial(attempt, check=False), crowd, beside):
        if answer.error is not None and backends.is_out_of_memory(answer.error):
            again.append(i)  # alone it may fit
            continue
        timing = _settle(scene, net_id, net, i, answer)
        if timing is not None:
            timed.append((timing, i, answer.seconds))
    # of the wall in a thread's second
    share = (time.monotonic() - began) / max(1e-9, sum(seconds for *_, seconds in timed))
    for timing, i, seconds in timed:
        timing.add(1, frames[i], share * seconds)
    run_careful(again)


def _fitting(scene: Scene, net: LoadedNet, need: float) -> int:
    """How many forwards of `need` bytes may run at once: 1 for nets that are not recorded or whose need
    nobody knows.
    """
    return min(scene.workers, int(scene.side_bytes // need)) if net.runner.recorded and need > 0 else 1


def _abreast(scene: Scene, attempt: Callable[[int], Answer], rows: list[int],
             beside: dict[int, int]) -> Iterator[tuple[int, Answer]]:
    """(row, answer) in the order of `rows`, sorted by falling need: no more of them in flight than each
    allows.
    """
    flying: deque[tuple[int, Future[Answer]]] = deque()
    for i in rows:
        while flying and beside[i] < scene.workers and len(flying) >= beside[i]:
            number, future = flying.popleft()
            yield number, future.result()
        flying.append((i, scene.side.submit(attempt, i)))
    for number, future in flying:
        yield number, future.result()


def _attempt(scene: Scene, net_id: str, net: LoadedNet, i: int, check: bool) -> Answer:
    """One row through the net; in a thread of the pool where the net is recorded."""
    row, began = scene.rows[i], time.monotonic()
    if row.id in scene.broken:
        return Answer()
    forwards: list[tuple[int, int]] = []
    with scene.journal.flight("batch", [row.id], net_id):
        try:
            chosen = net if not check or fits(scene, net, i) else tiled(net)
            probs = predict_alone(chosen, scene.store, row, forwards)
        except (Exception, SystemExit) as error:
            # users' own nets may raise anything: it costs this net this row
            return Answer(error=error)
    return Answer(
        probs=probs, forwards=tuple(forwards), whole=chosen is net, seconds=time.monotonic() - began
    )


def _settle(scene: Scene, net_id: str, net: LoadedNet, i: int, answer: Answer) -> Timing | None:
    """One row's answer on the board; where its seconds are to be booked, None for nowhere."""
    row, state = scene.rows[i], scene.nets[net_id]
    if isinstance(answer.error, ClipError):
        scene.lose(row, answer.error)
    elif answer.error is not None:
        if backends.is_lost(answer.error):
            raise answer.error
        scene.skip(net_id, row, answer.error)
    if answer.probs is None:
        return None
    widths = len(net.widths)
    for width, cells in answer.forwards:
        net.count(width, cells)
    put(scene, net_id, i, answer.probs)
    state.tiled_rows += not answer.whole
    return state.fresh if len(net.widths) > widths else state.timing


def need_bytes(scene: Scene, net: LoadedNet, i: int) -> float:
    """Bytes of the largest forward of a row, by the manifest."""
    return net.cost.bytes_a + net.cost.bytes_b * net.recipe.cells_at_once(
        float(scene.frames[net.recipe.member.name][i])
    )


def lacking_bytes(scene: Scene, need: float) -> int:
    """Bytes that are not there for `need` more, the limit's last 3 % left alone; 0 or less when they are."""
    if need < SMALL_BYTES:
        return 0
    reading = scene.meter.read()
    return int(reading.used_bytes + need - MEMORY_MARK * reading.limit_bytes)


def fits(scene: Scene, net: LoadedNet, i: int) -> bool:
    """True when the forward of row i fits into memory beside everything but the store, which then gives
    way.
    """
    lacking = lacking_bytes(scene, need_bytes(scene, net, i))
    if lacking <= 0:
        return True
    if lacking > scene.store.stats()["ram_bytes"]:
        return False
    scene.store.make_room(lacking)
    return True


def put(scene: Scene, net_id: str, i: int, probs: np.ndarray) -> None:
    """One row's probabilities f64[K] on the board; NaN or infinity means that this net has no say in this
    row.
    """
    if not np.isfinite(probs).all():
        scene.skip(
            net_id,
            scene.rows[i],
            ValueError("the net gave NaN or infinity for this row; the other nets decide it"),
        )
        return
    scene.board.add(net_id, np.array([i]), probs[None])
    scene.nets[net_id].rows += 1
    scene.heartbeat.progress += 1
