"""Where every array of the store lies: RAM, spill file, in hand for one use, or nowhere.

Owns the shelves (one per front end), the choice of a tier for each new array, what leaves RAM and when, and
the figures for the report. Computes no array and starts no thread: that is the store's.

Never LRU: members read all rows in the same order, where LRU hits nothing and "stop filling" hits what fits.
Entries leave RAM only when others' memory pushes the meter over the mark, newest first (the scan meets them
last), and with `forget`.
"""
from __future__ import annotations

import gc
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ClipError
from ..sound.decode import Row
from ..sound.frontends import FrontEnd
from .disk import Disk, Extent, Rate
from .ram import Budget, Reads, StoreLimits, return_memory

# arrays without a place, computed ahead: min(64 MB, 2.5 % of the limit)
HAND_BYTES, HAND_SHARE = 64_000_000, 0.025
HAND_CALLS = 4  # look-ahead calls after which an unused one may be dropped
USES = 5  # passes over a front end that are still to come, unless `expect` says: the folds of one member
BACK_OFF_EVERY_S = 2.0  # at most one back-off in this time (reliability.md 5, row 5)
UNMANAGED_RISE = 1.01  # after a back-off that did not help, the next one waits for this rise of the meter
# of the reads from a disk slower than recomputing one is made all the same, to notice a recovery
SLOW_READ_EVERY = 16
SLOW_WRITE_EVERY_S = 60.0  # and one write in this time
MAX_SAMPLES = 500  # of the timeline; the interval doubles when they are reached


class Shelf:
    """Everything known about one front end. Guarded by the lock of its `Tiers`.

    banned    rows whose bytes came back wrong from disk: not put there again
    pending   rows being computed ahead; coming: rows that come out of another row's recomputing
    siblings  clip id -> rows of one recording asked for together: they come out of one decoding
    speed     bytes per second of producing; uses: passes still to come
    """

    __slots__ = (
        "fe",
        "ram",
        "disk",
        "frames",
        "broken",
        "banned",
        "pending",
        "coming",
        "siblings",
        "speed",
        "uses",
        "ram_bytes",
        "forgotten",
    )

    def __init__(self, fe: FrontEnd):
        self.fe = fe
        self.ram: dict[str, np.ndarray] = {}
        self.disk: dict[str, Extent] = {}
        self.frames: dict[str, int] = {}
        self.broken: dict[str, ClipError] = {}
        self.banned: set[str] = set()
        self.pending: dict[str, Future[Any]] = {}
        self.coming: dict[str, Future[Any]] = {}
        self.siblings: dict[str, list[Row]] = {}
        self.speed = Rate(None)
        self.uses = USES
        self.ram_bytes = 0
        self.forgotten = False


class Tiers:
    """Arrays by (front end key, row id). Thread-safe; arguments as for `Store`."""

    def __init__(
        self, meter: Reads, limits: StoreLimits, scratch: Path, loaders: int, clock: Callable[[], float]
    ):
        self.limits, self._clock, self._opened = limits, clock, clock()
        self.lock = threading.RLock()
        self.budget = Budget(meter, limits, loaders, clock)
        self.disk = Disk(scratch, limits.disk_bytes, limits.keep_free_bytes, limits.any_filesystem, clock)
        self.shelves: dict[str, Shelf] = {}
        self.hits: Counter[str] = Counter(ram=0, disk=0, recompute=0)
        self.counts: Counter[str] = Counter(
            produced=0, recomputes=0, spilled=0, moved=0, dropped=0, corrupt=0, lost=0
        )
        self.calls = 0  # look-ahead calls so far
        self._hand: OrderedDict[tuple[str, str], tuple[np.ndarray, int]] = OrderedDict()
        self._hand_bytes = self._slow_reads = 0
        self._first_spill: float | None = None
        self._notes: list[str] = []
        self._timeline: list[dict[str, float]] = []
        self._sample_every_s, self._sampled = 0.5, -float("inf")
        self._backing_off = threading.Lock()
        self._backed_off, self._slow_write = -float("inf"), clock()
        self._unmanaged = -1  # bytes in use up to which backing off has proved useless

    # -- finding
    # ---------------------------------------------------------------------------------------------------------

    def shelf(self, fe: FrontEnd) -> Shelf:
        with self.lock:
            shelf = self.shelves.get(fe.key)
            if shelf is None:
                shelf = self.shelves[fe.key] = Shelf(fe)
            return shelf

    def has(self, shelf: Shelf, row_id: str) -> bool:
        """True if the row needs no computing, or is known broken."""
        return (
            row_id in shelf.ram
            or row_id in shelf.disk
            or row_id in shelf.broken
            or (shelf.fe.key, row_id) in self._hand
        )

    def find(self, shelf: Shelf, row_id: str) -> np.ndarray | None:
        """The array from RAM, from the hand (once) or from disk; None: compute it."""
        with self.lock:
            array = shelf.ram.get(row_id)
            if array is not None:
                self.hits["ram"] += 1
                return array
            array = self._take_from_hand(shelf.fe.key, row_id)
            if array is not None:
                self.hits["recompute"] += 1
                return array
            extent = shelf.disk.get(row_id)
        return None if extent is None else self._read_disk(shelf, row_id, extent)

    def _read_disk(self, shelf: Shelf, row_id: str, extent: Extent) -> np.ndarray | None:
        """The array from disk, or None where recomputing is quicker or the bytes are not what was written."""
        size = int(np.prod(extent.shape)) * shelf.fe.dtype.itemsize
        reading, producing = self.disk.reading.seconds(size), shelf.speed.seconds(size)
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
    # ---------------------------------------------------------------------------------------------------------

    def estimate(self, fe: FrontEnd, row: Row) -> int:
        """Upper bound of a row's stored bytes by its header, capped against headers that lie."""
        clip = row.clip
        samples = clip.samples_claimed if row.stop is None else row.stop - (row.start or 0)
        size = fe.max_bytes(int(samples * fe.rate / clip.rate) + 1 if clip.rate > 0 else 1)
        return min(size, self.limits.clip_bytes) if self.limits.clip_bytes > 0 else size

    def has_place(self, shelf: Shelf, size: int) -> bool:
        """True if an array that found no room in RAM could go to disk or into the hand."""
        return self._wants_disk(shelf, size) or self._fits_hand(size)

    def place(self, shelf: Shelf, row_id: str, array: np.ndarray, reserved: int, ahead: bool) -> None:
        """Put a new array into RAM, else on disk, else in the hand if it was computed `ahead`; ends the
        reservation.
        """
        size = array.nbytes
        with self.lock:
            self.counts["produced"] += 1
            self.counts["recomputes"] += row_id in shelf.frames
            shelf.frames[row_id] = array.shape[-1]
            self._sample()
            useless = shelf.forgotten or row_id in shelf.ram or row_id in shelf.disk
        missing = max(0, size - reserved)  # the header told less than there is, or nothing could be reserved
        if not useless and (missing == 0 or self.budget.reserve(missing)):
            self._keep(shelf, row_id, array, reserved + missing)
            return
        self.budget.settle(reserved, 0)
        if useless:
            return
        extent = (
            self.disk.write(shelf.fe.key, row_id, array) if self._wants_disk(shelf, size, row_id) else None
        )
        with self.lock:
            if extent is not None:
                self._note_spill(shelf, row_id, extent)
            elif ahead and (shelf.fe.key, row_id) not in self._hand and self._fits_hand(size):
                self._hand[shelf.fe.key, row_id] = (array, self.calls)
                self._hand_bytes += size

    def _keep(self, shelf: Shelf, row_id: str, array: np.ndarray, reserved: int) -> None:
        """Put an admitted array into RAM, unless another thread was faster or the shelf is forgotten."""
        with self.lock:
            new = not shelf.forgotten and row_id not in shelf.ram
            if new:
                shelf.ram[row_id] = array
                shelf.ram_bytes += array.nbytes
            self.budget.settle(reserved, array.nbytes if new else 0)

    def _note_spill(self, shelf: Shelf, row_id: str, extent: Extent) -> None:
        if not shelf.forgotten:
            shelf.disk[row_id] = extent
            self.counts["spilled"] += 1
            if self._first_spill is None:
                self._first_spill = round(self._clock() - self._opened, 3)

    def _wants_disk(self, shelf: Shelf, size: int, row_id: str = "") -> bool:
        """True if the disk has room and writing once and reading `uses` times is cheaper than computing
        `uses` times.
        """
        if row_id in shelf.banned or not self.disk.open_for(size):
            return False
        producing = shelf.speed.seconds(size)
        writing, reading = self.disk.writing.seconds(size), self.disk.reading.seconds(size)
        if (
            producing is None
            or writing is None
            or reading is None
            or writing + shelf.uses * reading < shelf.uses * producing
        ):
            return True
        if self._clock() - self._slow_write >= SLOW_WRITE_EVERY_S:
            self._slow_write = self._clock()
            return True
        return False

    def _fits_hand(self, size: int) -> bool:
        """True if an array computed ahead can be held until its first use; drops what earlier calls left
        unused.
        """
        room = min(HAND_BYTES, int(HAND_SHARE * self.budget.limit_bytes))
        with self.lock:
            while self._hand and self._hand_bytes + size > room:
                key, (_, call) = next(iter(self._hand.items()))
                if call > self.calls - HAND_CALLS:
                    return False
                self._take_from_hand(*key)
            return self._hand_bytes + size <= room

    def _take_from_hand(self, key: str, row_id: str) -> np.ndarray | None:
        held = self._hand.pop((key, row_id), None)
        if held is None:
            return None
        self._hand_bytes -= held[0].nbytes
        return held[0]

    # -- leaving
    # ---------------------------------------------------------------------------------------------------------

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
        need, before = self.budget.excess(0.0), self.budget.used_bytes
        if need <= 0 or before <= self._unmanaged:
            return
        freed = self._evict(need)
        return_memory()
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

    def make_room(self, size: int) -> None:
        """Free `size` bytes, or all there are, whatever the meter says."""
        self._evict(size)
        return_memory()

    def _evict(self, need: int) -> int:
        """Bytes that left RAM: for the disk if that pays, else dropped."""
        freed = 0
        while freed < need:
            with self.lock:
                shelf = max(self.shelves.values(), key=lambda s: s.ram_bytes, default=None)
                if shelf is None or not shelf.ram:
                    break
                row_id, array = next(reversed(shelf.ram.items()))
            extent = None
            if self._wants_disk(shelf, array.nbytes, row_id):
                extent = self.disk.write(shelf.fe.key, row_id, array)
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
        return freed

    def forget(self, fe: FrontEnd) -> None:
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
            for key in [k for k in self._hand if k[0] == fe.key]:
                self._take_from_hand(*key)
        self.disk.forget(fe.key)
        return_memory()

    # -- figures
    # ---------------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Figures for the report; bytes, seconds since the store was opened, counts."""
        with self.lock:
            self._sample()
            shelves = list(self.shelves.values())
            return {
                "hits": dict(self.hits), **self.counts,
                "rows_ram": sum(len(s.ram) for s in shelves), "rows_disk": sum(len(s.disk) for s in shelves),
                "ram_bytes": self.budget.kept, "ram_peak_bytes": self.budget.peak_kept,
                "reserved_bytes": self.budget.reserved, "hand_bytes": self._hand_bytes,
                "mark_bytes": self.budget.mark_bytes, "used_peak_bytes": self.budget.peak_used,
                "disk_bytes": self.disk.bytes, "disk_peak_bytes": self.disk.peak_bytes,
                "disk_rejected": self.disk.rejected, "disk_errors": dict(self.disk.errors),
                "first_spill_s": self._first_spill, "notes": self._notes + self.disk.notes,
                "timeline": list(self._timeline),
            }

    def _sample(self) -> None:
        """Add a point to the timeline when one is due; thins it when it grows long. Hold the lock."""
        now = self._clock()
        if now - self._sampled < self._sample_every_s:
            return
        self._sampled = now
        self._timeline.append(
            {
                "t": round(now - self._opened, 2),
                "ram": self.budget.kept,
                "disk": self.disk.bytes,
                "used": self.budget.used_bytes,
                "limit": self.budget.limit_bytes,
            }
        )
        if len(self._timeline) > MAX_SAMPLES:
            self._timeline, self._sample_every_s = self._timeline[::2], 2 * self._sample_every_s
