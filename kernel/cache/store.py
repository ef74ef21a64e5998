"""The store: every front end's array of every row, computed once and kept as long as there is room.

Owns the loader threads and the promise of `get`: it never fails for lack of space; what fits nowhere is
computed again. Which tier an array goes to is decided in `kernel.cache.tiers`. Does not decode or transform
(the caller's `produce` does), and does not know nets, plans or devices.

Loader threads are two plain ThreadPoolExecutors, not joblib.Parallel: several consumers ask at once (a
Parallel object runs one call at a time), a consumer that waits must not queue behind the look-ahead, threads
must outlast a call (each sets its own intra-op threads and in-flight mark), and `prefer="threads"` is a hint
that an outer parallel_config may override.
"""
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..errors import ClipError, ClipUnreadable, StoreError
from ..memory import Meter
from ..sound.rows import Row
from ..sound.scopes import OfRecording
from ..sound.source import Source
from .ram import StoreLimits
from .shelf import Shelf
from .tiers import Stats, Tiers

__all__ = ["Store", "StoreLimits"]

Produce: TypeAlias = Callable[[Source, Sequence[Row]], Iterator[tuple[Row, np.ndarray | ClipError]]]

POLL_S = 0.2


class Store:
    """Arrays by (front end, row). Thread-safe.

    produce       produce(fe, rows of ONE clip) yields (row, array[C, M, T] or ClipError) in the order of the
                  rows; called in loader threads only
    meter         read() gives limit_bytes and used_bytes
    scratch       folder for the spill files: on a disk, not the output folder
    loaders       threads that look ahead; as many again serve consumers that wait
    enter_loader  called once in each loader thread (the engine sets one intra-op thread there)
    clock         seconds, for tests
    """

    def __init__(
        self,
        *,
        produce: Produce,
        meter: Meter,
        limits: StoreLimits,
        scratch: Path,
        loaders: int,
        enter_loader: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._produce = produce
        self._clock = clock
        self._tiers = Tiers(meter, limits, scratch, loaders, clock)
        self._ahead = ThreadPoolExecutor(loaders, "loader", enter_loader)
        self._waited_for = ThreadPoolExecutor(loaders, "recompute", enter_loader)

    def get(self, fe: Source, row: Row) -> np.ndarray:
        """array[C, M, T] of a row, read-only: from RAM, from disk, or computed now.

        Raises  ClipError when the clip is broken
        """
        if isinstance(fe, OfRecording):
            return fe.read(self._get(fe, fe.entry(row)), row)
        return self._get(fe, row)

    def _get(self, fe: Source, row: Row) -> np.ndarray:
        self._tiers.relieve()
        shelf = self._tiers.shelf(fe)
        while True:
            with self._tiers.lock:
                broken = shelf.broken.get(row.id)
                pending = shelf.pending.get(row.id)
                coming = shelf.coming.get(row.id)
            if broken is not None:
                # A new one: a shared traceback would hold every reader's frames
                raise type(broken)(*broken.args)
            array = self._tiers.find(shelf, row.id)
            if array is not None:
                return array
            if coming is not None and not coming.done():
                wait([coming])
            elif pending is None or pending.cancel():
                return self._recompute(shelf, row)
            else:
                wait([pending])  # running: its result is on the way

    def warm(self, fe: Source, rows: Sequence[Row], stop: Callable[[], bool] = lambda: False) -> None:
        """Return once every row has been produced, is known broken, or has no place (then `get` computes it).

        stop  asked every 0.2 s; True ends the waiting

        Raises  what `produce` raised, if that was no ClipError
        """
        waiting = self._look_ahead(fe, rows)
        while waiting and not stop():
            done, waiting = wait(waiting, timeout=POLL_S)
            for future in done:
                if not future.cancelled():
                    future.result()

    def prefetch(self, fe: Source, rows: Sequence[Row]) -> None:
        """As `warm`, without waiting."""
        self._look_ahead(fe, rows)

    def frames(self, fe: Source, row: Row) -> int | None:
        """Exact T of a row's array once it was produced, else None."""
        if isinstance(fe, OfRecording):
            return fe.fixed if fe.entry(row).id in self._tiers.shelf(fe).frames else None
        return self._tiers.shelf(fe).frames.get(row.id)

    def expect(self, fe: Source, uses: int) -> None:
        """Tell how many passes over this front end are still to come: what spilling is weighed against."""
        self._tiers.shelf(fe).uses = max(1, uses)

    def forget(self, fe: Source) -> None:
        """Drop everything of a front end, after its last member."""
        self._tiers.forget(fe)

    def make_room(self, size: int) -> None:
        """Move `size` bytes out of RAM, whatever the meter says: a forward needs more than the reserve."""
        self._tiers.make_room(size)

    @property
    def errors(self) -> dict[str, ClipError]:
        """Row id -> why it has no array, over all front ends."""
        with self._tiers.lock:
            shelves = self._tiers.shelves.values()
            return {row_id: error for shelf in shelves for row_id, error in shelf.broken.items()}

    def stats(self) -> Stats:
        """Figures for the report: hits per tier, bytes, peaks, spills, faults and notes."""
        return self._tiers.stats()

    def close(self) -> None:
        """Cancel the look-ahead and remove the spill files; does not wait for a loader that hangs."""
        for pool in (self._ahead, self._waited_for):
            pool.shutdown(wait=False, cancel_futures=True)
        self._tiers.disk.close()

    # -- loader threads

    def _look_ahead(self, fe: Source, rows: Iterable[Row]) -> set[Future[None]]:
        """Futures of all productions that these rows wait for; one task per clip."""
        if isinstance(fe, OfRecording):
            rows = list({row.clip.id: fe.entry(row) for row in rows}.values())
        shelf = self._tiers.shelf(fe)
        futures: set[Future[None]] = set()
        clips: dict[str, list[Row]] = {}
        with self._tiers.lock:  # tasks take the same lock at their end, so that none ends before it is noted
            self._tiers.hand.calls += 1
            for row in rows:
                pending = shelf.pending.get(row.id)
                if pending is not None and not pending.cancelled():
                    futures.add(pending)
                elif not self._tiers.has(shelf, row.id):
                    clips.setdefault(row.clip.id, []).append(row)
            for clip_id, group in clips.items():
                group.sort(key=lambda row: row.start or 0)
                future = self._queue(shelf, clip_id, group)
                futures.add(future)
                shelf.pending.update((row.id, future) for row in group)
                shelf.know_siblings(clip_id, group)
        return futures

    def _queue(self, shelf: Shelf, clip_id: str, group: list[Row]) -> Future[None]:
        """A task that produces rows of one clip; windows of a recording wait for those asked for before.

        Side by side they would each read the recording from its beginning.
        """
        if group[0].start is None:
            return self._ahead.submit(self._produce_ahead, shelf, group)
        task: Future[None] = Future()
        last = shelf.last.get(clip_id)
        shelf.last[clip_id] = task

        def begin(_: object = None) -> None:
            try:
                self._ahead.submit(self._run_queued, task, shelf, group)
            except RuntimeError:  # closed meanwhile
                task.cancel()

        if last is None:
            begin()
        else:
            last.add_done_callback(begin)
        return task

    def _run_queued(self, task: Future[None], shelf: Shelf, group: list[Row]) -> None:
        """Do what `_queue` has promised; the next task for the recording begins then."""
        try:
            if task.set_running_or_notify_cancel():
                self._produce_ahead(shelf, group)
        except BaseException as error:
            task.set_exception(error)
        else:
            if not task.cancelled():
                task.set_result(None)
        with self._tiers.lock:
            if shelf.last.get(group[0].clip.id) is task:
                del shelf.last[group[0].clip.id]

    def _produce_ahead(self, shelf: Shelf, rows: list[Row]) -> None:
        try:
            if not shelf.forgotten:
                self._work(shelf, rows, None)
        except MemoryError:
            # `get` computes these rows when wanted
            self._tiers.make_room(4 * self._tiers.estimate(shelf.fe, rows[0]))
        finally:
            with self._tiers.lock:
                for row in rows:
                    shelf.pending.pop(row.id, None)

    def _recompute(self, shelf: Shelf, row: Row) -> np.ndarray:
        """The array computed now, ahead of everything that nobody waits for yet.

        Later windows of the same recording that have no array either come out of the same decoding, while
        there is room.
        """
        with self._tiers.lock:
            self._tiers.hits["recompute"] += 1
            later = [other for other in shelf.siblings_after(row) if not self._tiers.has(shelf, other.id)]
            work = self._waited_for.submit(self._work, shelf, [row, *later], row)
            # Who asks for these meanwhile waits for this decoding
            shelf.coming.update((other.id, work) for other in later)
        try:
            array = work.result()
        except MemoryError:
            self._tiers.make_room(4 * self._tiers.estimate(shelf.fe, row))
            try:
                array = self._waited_for.submit(self._work, shelf, [row], row).result()
            except MemoryError as error:
                raise ClipUnreadable(
                    f"{row.id}: does not fit in memory even alone; give the run more RAM"
                ) from error
        finally:
            with self._tiers.lock:
                for other in later:
                    if shelf.coming.get(other.id) is work:
                        del shelf.coming[other.id]
        if array is None:
            with self._tiers.lock:
                broken = shelf.broken.get(row.id)
            raise broken or StoreError(
                f"{row.id}: the front end gave nothing for this row; report this as a bug"
            )
        return array

    def _work(self, shelf: Shelf, rows: Sequence[Row], wanted: Row | None) -> np.ndarray | None:
        """As `_produce_rows`, once there is room for the waves."""
        with self._tiers.budget.work(self._tiers.work_bytes(shelf.fe, rows[0])):
            return self._produce_rows(shelf, rows, wanted)

    def _produce_rows(self, shelf: Shelf, rows: Sequence[Row], wanted: Row | None) -> np.ndarray | None:
        """Produce rows of one clip, each into its tier; returns the array of `wanted`, whatever became of it.

        Bytes are reserved before they exist. A row that nobody waits for and that would find no place ends
        the work.
        """
        tiers = self._tiers
        tiers.relieve()
        answer = None
        results = iter(self._produce(shelf.fe, rows))
        for expected in rows:
            size = tiers.estimate(shelf.fe, expected)
            reserved = size if tiers.budget.reserve(size) else 0
            if not (expected is wanted or reserved or tiers.has_place(shelf, size)):
                break
            started = self._clock()
            try:
                row, result = next(results)
            except BaseException as error:
                tiers.budget.settle(reserved, 0)
                if isinstance(error, StopIteration):
                    break
                raise
            if isinstance(result, ClipError):
                tiers.budget.settle(reserved, 0)
                with tiers.lock:
                    shelf.broken[row.id] = result
                continue
            shelf.speed.add(result.nbytes, self._clock() - started)
            result = _own(result)
            tiers.place(shelf, row.id, result, reserved, ahead=row is not wanted)
            if row is wanted:
                answer = result
        return answer


def _own(array: np.ndarray) -> np.ndarray:
    """The array read-only, contiguous, and holding no more memory than its own bytes."""
    array = np.ascontiguousarray(array)
    if isinstance(array.base, np.ndarray) and array.base.nbytes > array.nbytes:
        array = array.copy()
    array.flags.writeable = False
    return array
