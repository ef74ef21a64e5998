"""Where every array of the store lies: in RAM, in a spill file, in hand for one use, or nowhere.

Owns the choice of a tier for each new array, what leaves RAM and when, and the figures for the report.
Computes no array and starts no thread: that is the store's.

Never LRU: members read all rows in the same order, where LRU hits nothing and "stop filling" hits what fits.
Entries leave RAM only when others' memory pushes the meter over the mark, newest first (the scan meets them
last), and with `forget`.
"""
import gc
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..memory import Meter
from ..sound.loading import count_graph_bytes, count_work_bytes
from ..sound.rows import Row
from ..sound.source import Source
from .disk import Disk, Extent
from .ram import Budget, Hand, StoreLimits, return_memory
from .shelf import Shelf

BACK_OFF_EVERY_S = 2.0  # at most one back-off in this time
UNMANAGED_RISE = 1.01  # after a back-off that did not help, the next one waits for this rise of the meter
# A disk slower than computing is left alone, but one read in so many and one write in this time are made all
# the same, to notice when it recovers.
SLOW_READ_EVERY = 16
SLOW_WRITE_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Figures of a store for the report: bytes, counts, and seconds since it was opened."""

    hits: dict[str, int]
    produced: int
    recomputes: int
    spilled: int
    moved: int
    dropped: int
    corrupt: int
    lost: int
    rows_ram: int
    rows_disk: int
    ram_bytes: int
    ram_peak_bytes: int
    reserved_bytes: int
    hand_bytes: int
    mark_bytes: int
    used_peak_bytes: int
    disk_bytes: int
    disk_peak_bytes: int
    disk_rejected: str | None
    disk_errors: dict[str, int]
    first_spill_s: float | None
    notes: tuple[str, ...]


class Tiers:
    """Arrays by (front end key, row id). Thread-safe; arguments as for `Store`."""

    def __init__(
        self, meter: Meter, limits: StoreLimits, scratch: Path, loaders: int, clock: Callable[[], float]
    ) -> None:
        self.limits = limits
        self.lock = threading.RLock()
        self.budget = Budget(meter, limits, loaders, clock)
        self.hand = Hand()
        self.disk = Disk(scratch, limits, clock)
        self.shelves: dict[str, Shelf] = {}
        self.hits: Counter[str] = Counter(ram=0, disk=0, recompute=0)
        events = ("produced", "recomputes", "spilled", "moved", "dropped", "corrupt", "lost")
        self.counts: Counter[str] = Counter(dict.fromkeys(events, 0))
        self._clock = clock
        self._opened = self._slow_write = clock()
        self._slow_reads = 0
        self._first_spill: float | None = None
        self._notes: list[str] = []
        self._backing_off = threading.Lock()
        self._backed_off = -float("inf")
        self._unmanaged = -1  # bytes in use up to which backing off has proved useless

    # -- finding

    def shelf(self, fe: Source) -> Shelf:
        with self.lock:
            shelf = self.shelves.get(fe.key)
            if shelf is None:
                shelf = self.shelves[fe.key] = Shelf(fe)
            return shelf

    def has(self, shelf: Shelf, row_id: str) -> bool:
        """True if the row needs no computing, or is known broken."""
        held = (shelf.fe.key, row_id) in self.hand.arrays
        return held or row_id in shelf.ram or row_id in shelf.disk or row_id in shelf.broken

    def find(self, shelf: Shelf, row_id: str) -> np.ndarray | None:
        """The array from RAM, from the hand (once) or from disk; None: compute it."""
        with self.lock:
            array = shelf.ram.get(row_id)
            if array is not None:
                self.hits["ram"] += 1
                return array
            array = self.hand.take(shelf.fe.key, row_id)
            if array is not None:
                self.hits["recompute"] += 1
                return array
            extent = shelf.disk.get(row_id)
        return None if extent is None else self._read_disk(shelf, row_id, extent)

    def _read_disk(self, shelf: Shelf, row_id: str, extent: Extent) -> np.ndarray | None:
        """The array from disk, or None where recomputing is quicker or the bytes are not what was written."""
        size = int(np.prod(extent.shape)) * shelf.fe.dtype.itemsize
        reading = self.disk.reading.seconds(size)
        producing = shelf.speed.seconds(size)
        if reading is not None and producing is not None and reading > producing:
            self._slow_reads += 1
            if self._slow_reads % SLOW_READ_EVERY:
                return None
        lost = not self.disk.holds(shelf.fe.key, extent)
        array = None if lost else self.disk.read(shelf.fe.key, row_id, extent, shelf.fe.dtype)
        with self.lock:
            if array is not None:
                self.hits["disk"] += 1
            elif shelf.disk.get(row_id) is extent:
                del shelf.disk[row_id]
                self.counts["lost" if lost else "corrupt"] += 1
                if not lost:
                    shelf.banned.add(row_id)
        return array

    # -- placing

    def estimate(self, fe: Source, row: Row) -> int:
        """Upper bound of a row's stored bytes by its header, capped against headers that lie."""
        clip = row.clip
        size = fe.max_bytes(int(row.heard * fe.rate / clip.rate) + 1 if clip.rate > 0 else 1)
        return min(size, self.limits.clip_bytes) if self.limits.clip_bytes > 0 else size

    def work_bytes(self, fe: Source, row: Row) -> int:
        """Bytes of the waves, and of a graph's own values, while a row is decoded and its array made."""
        if row.clip.unread:
            return self.limits.work_bytes
        graph = count_graph_bytes(fe, row.heard / max(1, row.clip.rate))
        return min(count_work_bytes(row, fe.rate) + graph, self.limits.work_bytes)

    def has_place(self, shelf: Shelf, size: int) -> bool:
        """True if an array that found no room in RAM could go to disk or into the hand."""
        return self._wants_disk(shelf, size) or self._fits_hand(size)

    def place(self, shelf: Shelf, row_id: str, array: np.ndarray, reserved: int, ahead: bool) -> None:
        """Put a new array into RAM, else on disk, else, if it was computed `ahead`, into the hand.

        Ends the reservation.
        """
        size = array.nbytes
        with self.lock:
            self.counts["produced"] += 1
            self.counts["recomputes"] += row_id in shelf.frames
            shelf.frames[row_id] = array.shape[-1]
            useless = shelf.forgotten or row_id in shelf.ram or row_id in shelf.disk
        missing = max(0, size - reserved)  # the header told less than there is, or nothing could be reserved
        if not useless and (missing == 0 or self.budget.reserve(missing)):
            self._keep(shelf, row_id, array, reserved + missing)
            return
        self.budget.settle(reserved, 0)
        if useless:
            return
        extent = self._spill(shelf, row_id, array)
        with self.lock:
            if extent is not None:
                self._note_spill(shelf, row_id, extent)
            elif ahead and (shelf.fe.key, row_id) not in self.hand.arrays and self._fits_hand(size):
                self.hand.put(shelf.fe.key, row_id, array)

    def _keep(self, shelf: Shelf, row_id: str, array: np.ndarray, reserved: int) -> None:
        """Put an admitted array into RAM, unless another thread was faster or the shelf is forgotten."""
        with self.lock:
            new = not shelf.forgotten and row_id not in shelf.ram
            if new:
                shelf.ram[row_id] = array
                shelf.ram_bytes += array.nbytes
            self.budget.settle(reserved, array.nbytes if new else 0)

    def _spill(self, shelf: Shelf, row_id: str, array: np.ndarray) -> Extent | None:
        """Where the array lies on disk now; None when it did not go there."""
        if row_id in shelf.banned or not self._wants_disk(shelf, array.nbytes):
            return None
        return self.disk.write(shelf.fe.key, row_id, array)

    def _note_spill(self, shelf: Shelf, row_id: str, extent: Extent) -> None:
        if not shelf.forgotten:
            shelf.disk[row_id] = extent
            self.counts["spilled"] += 1
            if self._first_spill is None:
                self._first_spill = round(self._clock() - self._opened, 3)

    def _wants_disk(self, shelf: Shelf, size: int) -> bool:
        """True if the disk has room, and writing once and reading in each pass to come takes less time than
        computing in each of them.
        """
        if not self.disk.open_for(size):
            return False
        producing = shelf.speed.seconds(size)
        writing = self.disk.writing.seconds(size)
        reading = self.disk.reading.seconds(size)
        if producing is None or writing is None or reading is None:
            return True
        if writing + shelf.uses * reading < shelf.uses * producing:
            return True
        if self._clock() - self._slow_write >= SLOW_WRITE_EVERY_S:
            self._slow_write = self._clock()
            return True
        return False

    def _fits_hand(self, size: int) -> bool:
        with self.lock:
            return self.hand.fits(size, self.budget.limit_bytes)

    # -- leaving

    def relieve(self) -> None:
        """Move entries out of RAM if others' memory has pushed the meter over the mark, down to 90 % of the
        limit.
        """
        if self.budget.excess() <= 0 or self._clock() - self._backed_off < BACK_OFF_EVERY_S:
            return
        if self._backing_off.acquire(blocking=False):
            try:
                self._back_off()
                self._backed_off = self._clock()
            finally:
                self._backing_off.release()

    def _back_off(self) -> None:
        """Evict what is too much; where the meter does not follow, stop until it rises again: it is not our
        memory.
        """
        need = self.budget.excess(0.0)
        before = self.budget.used_bytes
        if need <= 0 or before <= self._unmanaged:
            return
        freed = self.make_room(need)
        if self._is_stuck(before, freed):
            gc.collect()
            return_memory()
            if self._is_stuck(before, freed):
                self._unmanaged = int(UNMANAGED_RISE * before)
                self._notes.append(
                    f"UnmanagedMemory: {freed / 1e6:.0f} MB left the store, the meter still shows "
                    f"{self.budget.used_bytes / 1e6:.0f} of {self.budget.limit_bytes / 1e6:.0f} MB"
                )

    def _is_stuck(self, before: int, freed: int) -> bool:
        """True if the meter is still too high and has not followed what was freed."""
        return self.budget.excess(0.0) > 0 and before - self.budget.used_bytes <= freed / 2

    def make_room(self, size: int) -> int:
        """Bytes that left RAM, for the disk if that pays, else dropped: `size` or more, or all there are."""
        freed = 0
        while freed < size:
            with self.lock:
                shelf = max(self.shelves.values(), key=lambda s: s.ram_bytes, default=None)
                if shelf is None or not shelf.ram:
                    break
                row_id, array = next(reversed(shelf.ram.items()))
            extent = self._spill(shelf, row_id, array)
            with self.lock:
                if shelf.ram.pop(row_id, None) is None:
                    continue  # forgotten meanwhile
                shelf.ram_bytes -= array.nbytes
                self.budget.release(array.nbytes)
                self.counts["moved" if extent else "dropped"] += 1
                if extent is not None:
                    self._note_spill(shelf, row_id, extent)
            freed += array.nbytes
            del array
        return_memory()
        return freed

    def forget(self, fe: Source) -> None:
        """Drop everything of a front end."""
        with self.lock:
            shelf = self.shelves.pop(fe.key, None)
            if shelf is None:
                return
            shelf.forgotten = True
            for future in shelf.pending.values():
                future.cancel()
            self.budget.release(shelf.ram_bytes)
            shelf.ram.clear()
            self.hand.forget(fe.key)
        self.disk.forget(fe.key)
        return_memory()

    # -- figures

    def stats(self) -> Stats:
        with self.lock:
            shelves = list(self.shelves.values())
            return Stats(
                hits=dict(self.hits),
                **self.counts,
                rows_ram=sum(len(shelf.ram) for shelf in shelves),
                rows_disk=sum(len(shelf.disk) for shelf in shelves),
                ram_bytes=self.budget.kept,
                ram_peak_bytes=self.budget.peak_kept,
                reserved_bytes=self.budget.reserved,
                hand_bytes=self.hand.bytes,
                mark_bytes=self.budget.mark_bytes,
                used_peak_bytes=self.budget.peak_used,
                disk_bytes=self.disk.bytes,
                disk_peak_bytes=self.disk.peak_bytes,
                disk_rejected=self.disk.rejected,
                disk_errors=dict(self.disk.errors),
                first_spill_s=self._first_spill,
                notes=(*self._notes, *self.disk.notes),
            )
