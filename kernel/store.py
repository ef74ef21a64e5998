"""The store: every front end's array of every row, computed once and kept as long as there is room.

Owns three tiers (RAM array, spill file, recompute), admission, and the loader threads. `get` never fails for lack of space:
what fits nowhere is computed again. Never LRU: members read all rows in the same order, where LRU hits nothing and
"stop filling" hits what fits. Entries leave RAM only when others' memory pushes the meter over the mark, and with `forget`.
Does not decode or transform (the caller's `produce` does), and does not know nets, plans or devices.

Loader threads are two plain ThreadPoolExecutors, not joblib.Parallel: several consumers ask at once (a Parallel object runs
one call at a time), a consumer that waits must not queue behind the look-ahead, threads must outlast a call (each sets its
own intra-op threads and in-flight mark), and `prefer="threads"` is a hint that an outer parallel_config may override.
"""
from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .audio import Row
from .budget import Budget, Reads, StoreLimits, return_memory
from .errors import ClipError, ClipUnreadable, StoreError
from .frontends import FrontEnd
from .spill import Disk, Extent, Rate

__all__ = ["Store", "StoreLimits"]

Produce: TypeAlias = Callable[[FrontEnd, Sequence[Row]], Iterator[tuple[Row, "np.ndarray | ClipError"]]]

HAND_BYTES, HAND_SHARE = 64_000_000, 0.025  # arrays without a place, computed ahead: min(64 MB, 2.5 % of the limit)
HAND_CALLS = 4  # look-ahead calls after which an unused one may be dropped
USES = 5  # passes over a front end that are still to come, unless `expect` says: the folds of one member
BACK_OFF_EVERY_S = 2.0  # at most one back-off in this time (reliability.md 5, row 5)
SLOW_READ_EVERY = 16  # of reads from a disk slower than recomputing, one is made all the same, to notice a recovery
SLOW_WRITE_EVERY_S = 60.0  # and one write to such a disk in this time
MAX_SAMPLES = 500  # of the tier timeline; the interval doubles when they are reached
POLL_S = 0.2


class _Shelf:
    """Everything known about one front end."""

    __slots__ = ("fe", "ram", "disk", "frames", "broken", "banned", "pending", "siblings", "speed", "uses", "ram_bytes",
                 "forgotten")

    def __init__(self, fe: FrontEnd):
        self.fe = fe
        self.ram: dict[str, np.ndarray] = {}
        self.disk: dict[str, Extent] = {}
        self.frames: dict[str, int] = {}
        self.broken: dict[str, ClipError] = {}
        self.banned: set[str] = set()  # rows whose bytes came back wrong from disk: not put there again
        self.pending: dict[str, Future[Any]] = {}
        self.siblings: dict[str, list[Row]] = {}  # rows of one recording that found no place: produced together again
        self.speed = Rate(None)  # bytes per second of producing
        self.uses = USES
        self.ram_bytes = 0
        self.forgotten = False


class Store:
    """Arrays by (front end, row). Thread-safe.

    produce       produce(fe, rows of ONE clip) yields (row, array[C, M, T] or ClipError); called in loader threads only
    meter         read() gives limit_bytes and used_bytes
    scratch       folder for the spill files, on a disk, not the output folder
    loaders       threads that look ahead; as many again serve consumers that wait
    enter_loader  called once in each loader thread (the engine sets one intra-op thread there)
    clock         seconds, for tests
    """

    def __init__(self, *, produce: Produce, meter: Reads, limits: StoreLimits, scratch: Path, loaders: int,
                 enter_loader: Callable[[], None] | None = None, clock: Callable[[], float] = time.monotonic):
        self._produce, self._clock, self.limits = produce, clock, limits
        self._budget = Budget(meter, limits, loaders, clock)
        self._disk = Disk(scratch, limits.disk_bytes, limits.keep_free_bytes, limits.any_filesystem, clock)
        self._opened = clock()
        self._lock = threading.RLock()
        self._shelves: dict[str, _Shelf] = {}
        self._hand: OrderedDict[tuple[str, str], tuple[np.ndarray, int]] = OrderedDict()
        self._hand_bytes = self._call = self._slow_reads = 0
        self._hits: Counter[str] = Counter(ram=0, disk=0, recompute=0)
        self._counts: Counter[str] = Counter(produced=0, recomputes=0, spilled=0, moved=0, dropped=0, corrupt=0, lost=0)
        self._first_spill: float | None = None
        self._notes: list[str] = []
        self._timeline: list[dict[str, float]] = []
        self._sample_every_s, self._sampled = 0.5, -float("inf")
        self._backing_off = threading.Lock()
        self._backed_off = -float("inf")
        self._slow_write, self._unmanaged = clock(), False
        self._ahead = ThreadPoolExecutor(loaders, "loader", enter_loader or (lambda: None))
        self._waited_for = ThreadPoolExecutor(loaders, "recompute", enter_loader or (lambda: None))

    # -- what consumers call ---------------------------------------------------------------------------------------------

    def get(self, fe: FrontEnd, row: Row) -> np.ndarray:
        """array[C, M, T] of a row, read-only: from RAM, from disk, or computed now.

        Raises  ClipError when the clip is broken
        """
        self.relieve()
        shelf = self._shelf(fe)
        while True:
            with self._lock:
                if row.id in shelf.broken:
                    error = shelf.broken[row.id]
                    raise type(error)(*error.args)  # a new one: a shared traceback would hold every reader's frames
                array, extent, pending = shelf.ram.get(row.id), shelf.disk.get(row.id), shelf.pending.get(row.id)
                if array is not None:
                    self._hits["ram"] += 1
                    return array
                held = self._take_from_hand(fe.key, row.id)
                if held is not None:
                    self._hits["recompute"] += 1
                    return held
            if extent is not None:
                array = self._read_disk(shelf, row, extent)
                if array is not None:
                    return array
            if pending is not None and not pending.cancel():  # running: its result is on the way
                wait([pending])
                continue
            return self._recompute(shelf, row)

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
        with self._lock:
            return self._shelf(fe).frames.get(row.id)

    def expect(self, fe: FrontEnd, uses: int) -> None:
        """Tell how many passes over this front end are still to come: what the disk is weighed against."""
        self._shelf(fe).uses = max(1, uses)

    def forget(self, fe: FrontEnd) -> None:
        """Drop everything of a front end after its last member."""
        with self._lock:
            shelf = self._shelves.pop(fe.key, None)
            if shelf is None:
                return
            shelf.forgotten = True
            for future in shelf.pending.values():
                future.cancel()
            self._budget.release(shelf.ram_bytes)
            shelf.ram.clear()
            for key in [k for k in self._hand if k[0] == fe.key]:
                self._take_from_hand(*key)
        self._disk.forget(fe.key)
        return_memory()

    @property
    def errors(self) -> dict[str, ClipError]:
        """Row id -> why it has no array, over all front ends."""
        with self._lock:
            return {row_id: error for shelf in self._shelves.values() for row_id, error in shelf.broken.items()}

    def close(self) -> None:
        """Cancel the look-ahead and remove the spill files; does not wait for a loader that hangs."""
        for pool in (self._ahead, self._waited_for):
            pool.shutdown(wait=False, cancel_futures=True)
        self._disk.close()

    def stats(self) -> dict[str, Any]:
        """Figures for the report: hits per tier, bytes, peaks, spills, faults, notes and the timeline of the tiers."""
        with self._lock:
            self._sample()
            shelves = list(self._shelves.values())
            return {
                "hits": dict(self._hits), **self._counts,
                "rows_ram": sum(len(s.ram) for s in shelves), "rows_disk": sum(len(s.disk) for s in shelves),
                "ram_bytes": self._budget.kept, "ram_peak_bytes": self._budget.peak_kept,
                "reserved_bytes": self._budget.reserved, "hand_bytes": self._hand_bytes,
                "mark_bytes": self._budget.mark_bytes, "used_peak_bytes": self._budget.peak_used,
                "disk_bytes": self._disk.bytes, "disk_peak_bytes": self._disk.peak_bytes,
                "disk_rejected": self._disk.rejected, "disk_errors": dict(self._disk.errors),
                "first_spill_s": self._first_spill, "notes": self._notes + self._disk.notes,
                "timeline": list(self._timeline),
            }

    def relieve(self) -> None:
        """Move entries out of RAM if others' memory has pushed the meter over the mark, down to 90 % of the limit."""
        if self._budget.excess() <= 0 or self._clock() - self._backed_off < BACK_OFF_EVERY_S:
            return
        if self._backing_off.acquire(blocking=False):
            try:
                self._back_off()
                self._backed_off = self._clock()
            finally:
                self._backing_off.release()

    # -- producing -------------------------------------------------------------------------------------------------------

    def _look_ahead(self, fe: FrontEnd, rows: Iterable[Row]) -> set[Future[Any]]:
        """Futures of all productions that these rows wait for; one task per clip."""
        shelf = self._shelf(fe)
        futures: set[Future[Any]] = set()
        clips: dict[str, list[Row]] = {}
        with self._lock:
            self._call += 1
            for row in rows:
                pending = shelf.pending.get(row.id)
                if pending is not None and not pending.cancelled():
                    futures.add(pending)
                elif not self._has(shelf, row.id):
                    clips.setdefault(row.clip.id, []).append(row)
            for clip_id, group in clips.items():
                future = self._ahead.submit(self._produce_ahead, shelf, group)
                futures.add(future)
                shelf.pending.update((row.id, future) for row in group)
                if len(group) > 1:
                    shelf.siblings[clip_id] = group
        return futures

    def _has(self, shelf: _Shelf, row_id: str) -> bool:
        return row_id in shelf.ram or row_id in shelf.disk or row_id in shelf.broken or (shelf.fe.key, row_id) in self._hand

    def _produce_ahead(self, shelf: _Shelf, rows: list[Row]) -> None:
        try:
            if not shelf.forgotten:
                self._produce_rows(shelf, rows, None)
        except MemoryError:
            self._make_room(shelf, rows[0])  # `get` computes these rows when they are wanted
        finally:
            with self._lock:
                for row in rows:
                    shelf.pending.pop(row.id, None)

    def _recompute(self, shelf: _Shelf, row: Row) -> np.ndarray:
        """The array computed now, ahead of everything that nobody waits for yet.

        Later windows of the same recording that have no array either come out of the same decoding, while there is room.
        """
        with self._lock:
            self._hits["recompute"] += 1
            later = [r for r in shelf.siblings.get(row.clip.id, ())
                     if (r.start or 0) > (row.start or 0) and not self._has(shelf, r.id)]
        try:
            array = self._waited_for.submit(self._produce_rows, shelf, [row, *later], row).result()
        except MemoryError:
            self._make_room(shelf, row)
            try:
                array = self._waited_for.submit(self._produce_rows, shelf, [row], row).result()
            except MemoryError as error:
                raise ClipUnreadable(f"{row.id}: does not fit in memory even alone; give the run more RAM") from error
        if array is None:
            with self._lock:
                broken = shelf.broken.get(row.id)
            raise broken or StoreError(f"{row.id}: the front end gave nothing for this row; report this as a bug")
        return array

    def _produce_rows(self, shelf: _Shelf, rows: Sequence[Row], wanted: Row | None) -> np.ndarray | None:
        """Produce rows of one clip, each into its tier; returns the array of `wanted`, whatever became of it.

        A row that nobody waits for and that would find no place ends the work.
        """
        self.relieve()
        answer = None
        results = iter(self._produce(shelf.fe, rows))
        for expected in rows:
            size = self._estimate(shelf.fe, expected)
            reserved = size if self._budget.reserve(size) else 0
            if not (expected is wanted or reserved or self._wants_disk(shelf, size) or self._fits_hand(size)):
                break
            started = self._clock()
            try:
                row, result = next(results)
            except StopIteration:
                self._budget.settle(reserved, 0)
                break
            except BaseException:
                self._budget.settle(reserved, 0)
                raise
            if isinstance(result, ClipError):
                self._budget.settle(reserved, 0)
                with self._lock:
                    shelf.broken[row.id] = result
                continue
            shelf.speed.add(result.nbytes, self._clock() - started)
            result = _own(result)
            self._place(shelf, row, result, reserved, ahead=row is not wanted)
            if row is wanted:
                answer = result
        return answer

    def _place(self, shelf: _Shelf, row: Row, array: np.ndarray, reserved: int, ahead: bool) -> None:
        """Put a new array into RAM, else on disk, else in the hand if it was computed ahead; ends the reservation."""
        size = array.nbytes
        with self._lock:
            again = row.id in shelf.frames
            shelf.frames[row.id] = array.shape[-1]
            self._counts["produced"] += 1
            self._counts["recomputes"] += again
            self._sample()
            useless = shelf.forgotten or row.id in shelf.ram or row.id in shelf.disk
        if useless:
            self._budget.settle(reserved, 0)
            return
        missing = max(0, size - reserved)  # the header told less than there is, or nothing could be reserved
        if (missing == 0 or self._budget.reserve(missing)) and self._keep(shelf, row.id, array, reserved + missing):
            return
        self._budget.settle(reserved, 0)
        extent = self._disk.write(shelf.fe.key, row.id, array) if self._wants_disk(shelf, size, row.id) else None
        with self._lock:
            if extent is not None:
                self._note_spill(shelf, row.id, extent)
            elif ahead and self._fits_hand(size):
                self._hand[shelf.fe.key, row.id] = (array, self._call)
                self._hand_bytes += size

    def _keep(self, shelf: _Shelf, row_id: str, array: np.ndarray, reserved: int) -> bool:
        """Put an admitted array into RAM, unless another thread was faster; always True: the reservation is settled."""
        with self._lock:
            new = not shelf.forgotten and row_id not in shelf.ram
            if new:
                shelf.ram[row_id] = array
                shelf.ram_bytes += array.nbytes
            self._budget.settle(reserved, array.nbytes if new else 0)
        return True

    def _note_spill(self, shelf: _Shelf, row_id: str, extent: Extent) -> None:
        if not shelf.forgotten:
            shelf.disk[row_id] = extent
            self._counts["spilled"] += 1
            if self._first_spill is None:
                self._first_spill = round(self._clock() - self._opened, 3)

    def _estimate(self, fe: FrontEnd, row: Row) -> int:
        """Upper bound of a row's stored bytes by its header, capped against headers that lie."""
        clip = row.clip
        samples = clip.samples_claimed if row.stop is None else row.stop - (row.start or 0)
        size = fe.max_bytes(int(samples * fe.rate / clip.rate) + 1 if clip.rate > 0 else 1)
        return min(size, self.limits.clip_bytes) if self.limits.clip_bytes > 0 else size

    # -- tiers -----------------------------------------------------------------------------------------------------------

    def _shelf(self, fe: FrontEnd) -> _Shelf:
        with self._lock:
            shelf = self._shelves.get(fe.key)
            if shelf is None:
                shelf = self._shelves[fe.key] = _Shelf(fe)
            return shelf

    def _read_disk(self, shelf: _Shelf, row: Row, extent: Extent) -> np.ndarray | None:
        """The array from disk, or None: recompute it (the disk is slower than that, or its bytes are wrong)."""
        size = int(np.prod(extent.shape)) * shelf.fe.dtype.itemsize
        reading, producing = self._disk.reading.seconds(size), shelf.speed.seconds(size)
        if reading is not None and producing is not None and reading > producing:
            self._slow_reads += 1
            if self._slow_reads % SLOW_READ_EVERY:
                return None
        lost = not self._disk.holds(shelf.fe.key, extent)
        array = None if lost else self._disk.read(shelf.fe.key, row.id, extent, shelf.fe.dtype)
        with self._lock:
            if array is not None:
                self._hits["disk"] += 1
            elif shelf.disk.get(row.id) is extent:
                del shelf.disk[row.id]
                self._counts["lost" if lost else "corrupt"] += 1
                if not lost:
                    shelf.banned.add(row.id)
        return array

    def _wants_disk(self, shelf: _Shelf, size: int, row_id: str = "") -> bool:
        """True if the disk has room and writing once and reading `uses` times is cheaper than computing `uses` times."""
        if row_id in shelf.banned or not self._disk.open_for(size):
            return False
        producing = shelf.speed.seconds(size)
        writing, reading = self._disk.writing.seconds(size), self._disk.reading.seconds(size)
        if producing is None or writing is None or reading is None or writing + shelf.uses * reading < shelf.uses * producing:
            return True
        if self._clock() - self._slow_write >= SLOW_WRITE_EVERY_S:
            self._slow_write = self._clock()
            return True
        return False

    def _fits_hand(self, size: int) -> bool:
        """True if an array computed ahead can be held until its first use; drops what earlier calls left unused."""
        room = min(HAND_BYTES, int(HAND_SHARE * self._budget.limit_bytes))
        with self._lock:
            while self._hand and self._hand_bytes + size > room:
                key, (_, call) = next(iter(self._hand.items()))
                if call > self._call - HAND_CALLS:
                    return False
                self._take_from_hand(*key)
            return self._hand_bytes + size <= room

    def _take_from_hand(self, key: str, row_id: str) -> np.ndarray | None:
        held = self._hand.pop((key, row_id), None)
        if held is None:
            return None
        self._hand_bytes -= held[0].nbytes
        return held[0]

    def _back_off(self) -> None:
        for _ in range(3):
            if self._evict(self._budget.excess(0.0)) == 0:
                break
            return_memory()
        left = self._budget.excess(0.0)
        if left > 0 and not self._unmanaged:
            self._unmanaged = True
            self._notes.append(f"memory of others keeps the meter {left / 1e6:.0f} MB too high; the store cannot free it")

    def _evict(self, need: int) -> int:
        """Bytes moved out of RAM: to disk if that pays, else dropped. Newest entries first: the scan meets them last."""
        freed = 0
        while freed < need:
            with self._lock:
                shelf = max(self._shelves.values(), key=lambda s: s.ram_bytes, default=None)
                if shelf is None or not shelf.ram:
                    break
                row_id, array = next(reversed(shelf.ram.items()))
            extent = None
            if self._wants_disk(shelf, array.nbytes, row_id):
                extent = self._disk.write(shelf.fe.key, row_id, array)
            with self._lock:
                if shelf.ram.pop(row_id, None) is None:
                    continue  # forgotten meanwhile
                shelf.ram_bytes -= array.nbytes
                self._budget.release(array.nbytes)
                self._counts["moved" if extent else "dropped"] += 1
                if extent is not None:
                    self._note_spill(shelf, row_id, extent)
            freed += array.nbytes
            del array
        return freed

    def _make_room(self, shelf: _Shelf, row: Row) -> None:
        """After a MemoryError: free as much as the row should have needed, several times over."""
        self._evict(4 * self._estimate(shelf.fe, row))
        return_memory()

    def _sample(self) -> None:
        """Add a point to the timeline when one is due; thins it when it grows long. Hold the lock."""
        now = self._clock()
        if now - self._sampled < self._sample_every_s:
            return
        self._sampled = now
        self._timeline.append({"t": round(now - self._opened, 2), "ram": self._budget.kept, "disk": self._disk.bytes,
                               "used": self._budget.used_bytes, "limit": self._budget.limit_bytes})
        if len(self._timeline) > MAX_SAMPLES:
            self._timeline, self._sample_every_s = self._timeline[::2], 2 * self._sample_every_s


def _own(array: np.ndarray) -> np.ndarray:
    """The array read-only, contiguous, and holding no more memory than its own bytes."""
    array = np.ascontiguousarray(array)
    if isinstance(array.base, np.ndarray) and array.base.nbytes > array.nbytes:
        array = array.copy()
    array.flags.writeable = False
    return array
