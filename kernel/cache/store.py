"""The store: every front end's array of every row, computed once and kept as long as there is room.

Owns the loader threads and the promise of `get`: it never fails for lack of space; what fits nowhere is
computed again. Which tier an array goes to is `kernel.cache.tiers`; how much fits in RAM `kernel.cache.ram`;
the spill files `kernel.cache.disk`. Does not decode or transform (the caller's `produce` does), and does not
know nets, plans or devices.

Loader threads are two plain ThreadPoolExecutors, not joblib.Parallel: several consumers ask at once (a
Parallel object runs one call at a time), a consumer that waits must not queue behind the look-ahead, threads
must outlast a call (each sets its own intra-op threads and in-flight mark), and `prefer="threads"` is a hint
that an outer parallel_config may override.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..errors import ClipError, ClipUnreadable, StoreError
from ..sound.decode import Row
from ..sound.frontends import FrontEnd
from .ram import Reads, StoreLimits
from .tiers import Shelf, Tiers

__all__ = ["Store", "StoreLimits"]

Produce: TypeAlias = Callable[[FrontEnd, Sequence[Row]], Iterator[tuple[Row, "np.ndarray | ClipError"]]]

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

    def __init__(self, *, produce: Produce, meter: Reads, limits: StoreLimits, scratch: Path, loaders: int,
                 enter_loader: Callable[[], None] | None = None, clock: Callable[[], float] = time.monotonic):
        self._produce, self._clock = produce, clock
        self._tiers = Tiers(meter, limits, scratch, loaders, clock)
        enter = enter_loader or (lambda: None)
        self._ahead = ThreadPoolExecutor(loaders, "loader", enter)
        self._waited_for = ThreadPoolExecutor(loaders, "recompute", enter)

    def get(self, fe: FrontEnd, row: Row) -> np.ndarray:
        """array[C, M, T] of a row, read-only: from RAM, from disk, or computed now.

        Raises  ClipError when the clip is broken
        """
        self._tiers.relieve()
        shelf = self._tiers.shelf(fe)
        while True:
            with self._tiers.lock:
                broken, pending = shelf.broken.get(row.id), shelf.pending.get(row.id)
                coming = shelf.coming.get(row.id)
            if broken is not None:
                # a new one: a shared traceback would hold every reader's frames
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

    def warm(self, fe: FrontEnd, rows: Sequence[Row], stop: Callable[[], bool] | None = None) -> None:
        """Return once every row has been produced, is known broken, or has no place (then `get` computes it).

        stop  asked every 0.2 s; True ends the waiting

        Raises  what `produce` raised, if that was no ClipError
        """
        waiting = self._look_ahead(fe, rows)
        while waiting and not (stop is not None and stop()):
            done, waiting = wait(waiting, timeout=POLL_S if stop is not None else None)
            for future in done:
                if not future.cancelled():
                    future.result()

    def prefetch(self, fe: FrontEnd, rows: Sequence[Row]) -> None:
        """As `warm`, without waiting."""
        self._look_ahead(fe, rows)

    def frames(self, fe: FrontEnd, row: Row) -> int | None:
        """Exact T of a row's array once it was produced, else None."""
        return self._tiers.shelf(fe).frames.get(row.id)

    def expect(self, fe: FrontEnd, uses: int) -> None:
        """Tell how many passes over this front end are still to come: what spilling is weighed against."""
        self._tiers.shelf(fe).uses = max(1, uses)

    def forget(self, fe: FrontEnd) -> None:
        """Drop everything of a front end, after its last member."""
        self._tiers.forget(fe)

    def relieve(self) -> None:
        """Give RAM back if others' memory needs it; `get` does so too, the engine may at any time."""
        self._tiers.relieve()

    def make_room(self, size: int) -> None:
        """Move `size` bytes out of RAM whatever the meter says: before a forward that needs more than the
        reserve.
        """
        self._tiers.make_room(size)

    @property
    def errors(self) -> dict[str, ClipError]:
        """Row id -> why it has no array, over all front ends."""
        with self._tiers.lock:
            return {
                row_id: error
                for shelf in self._tiers.shelves.values()
                for row_id, error in shelf.broken.items()
            }

    def stats(self) -> dict[str, Any]:
        """Figures for the report: hits per tier, bytes, peaks, spills, faults, notes and the timeline of the
        tiers.
        """
        return self._tiers.stats()

    def close(self) -> None:
        """Cancel the look-ahead and remove the spill files; does not wait for a loader that hangs."""
        for pool in (self._ahead, self._waited_for):
            pool.shutdown(wait=False, cancel_futures=True)
        self._tiers.disk.close()

    # -- loader threads
    # --------------------------------------------------------------------------------------------------

    def _look_ahead(self, fe: FrontEnd, rows: Iterable[Row]) -> set[Future[Any]]:
        """Futures of all productions that these rows wait for; one task per clip."""
        shelf = self._tiers.shelf(fe)
        futures: set[Future[Any]] = set()
        clips: dict[str, list[Row]] = {}
        with self._tiers.lock:  # tasks take the same lock at their end, so that none ends before it is noted
            self._tiers.calls += 1
            for row in rows:
                pending = shelf.pending.get(row.id)
                if pending is not None and not pending.cancelled():
                    futures.add(pending)
                elif not self._tiers.has(shelf, row.id):
                    clips.setdefault(row.clip.id, []).append(row)
            for clip_id, group in clips.items():
                future = self._ahead.submit(self._produce_ahead, shelf, group)
                futures.add(future)
                shelf.pending.update((row.id, future) for row in group)
                if len(group) > 1:
                    shelf.siblings[clip_id] = group
        return futures

    def _produce_ahead(self, shelf: Shelf, rows: list[Row]) -> None:
        try:
            if not shelf.forgotten:
                self._produce_rows(shelf, rows, None)
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
            later = [r for r in shelf.siblings.get(row.clip.id, ())
                     if (r.start or 0) > (row.start or 0) and not self._tiers.has(shelf, r.id)]
            work = self._waited_for.submit(self._produce_rows, shelf, [row, *later], row)
            # who asks for these meanwhile waits for this decoding
            shelf.coming.update((r.id, work) for r in later)
        try:
            array = work.result()
        except MemoryError:
            self._tiers.make_room(4 * self._tiers.estimate(shelf.fe, row))
            try:
                array = self._waited_for.submit(self._produce_rows, shelf, [row], row).result()
            except MemoryError as error:
                raise ClipUnreadable(
                    f"{row.id}: does not fit in memory even alone; give the run more RAM"
                ) from error
        finally:
            with self._tiers.lock:
                for r in later:
                    if shelf.coming.get(r.id) is work:
                        del shelf.coming[r.id]
        if array is None:
            with self._tiers.lock:
                broken = shelf.broken.get(row.id)
            raise broken or StoreError(
                f"{row.id}: the front end gave nothing for this row; report this as a bug"
            )
        return array

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
