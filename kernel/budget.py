"""How many more bytes the store may keep in RAM: admission before allocation.

Owns the mark (95 % of the limit, less what the next batch and the loaders need), the bytes reserved and kept, and the
verdict that others' memory has pushed the meter over the mark. Holds no arrays and moves none: that is the store's.
"""
from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

READ_EVERY_S = 0.1  # a meter reading is believed this long (reliability.md 3)
REREAD_EVERY_S = 0.01  # and only this long when it is about to say no
SLACK_BYTES, SLACK_SHARE = 256_000_000, 0.10  # part of the reserve: min(256 MB, 10 % of the limit) (DESIGN 6)


class Reads(Protocol):
    """What the store wants of a meter."""

    def read(self) -> Any:
        """Something with `limit_bytes` and `used_bytes`."""


@dataclass(frozen=True, kw_only=True)
class StoreLimits:
    """What the store may use.

    ram_bytes        most bytes that the store itself keeps in RAM (the meter's limit holds besides)
    disk_bytes       most bytes in the spill files; 0 = no disk tier
    batch_bytes      memory of the largest next batch, kept free
    clip_bytes       most stored bytes of one row: kept free per loader, and a cap on what a lying header can reserve; 0 = unknown
    spill_at         share of the meter's limit up to which RAM is filled
    back_to          share down to which entries leave RAM when others' memory pushed the meter over the mark
    keep_free_bytes  disk space left to the rest of the run
    any_filesystem   True: the scratch folder may lie in memory (tests)
    """

    ram_bytes: int
    disk_bytes: int
    batch_bytes: int = 0
    clip_bytes: int = 0
    spill_at: float = 0.95
    back_to: float = 0.90
    keep_free_bytes: int = 128_000_000
    any_filesystem: bool = False


class Budget:
    """Bytes reserved and kept, against the meter. Thread-safe.

    reserved  bytes promised to arrays that do not exist yet
    kept      bytes of arrays in the store; peak_kept the most of them
    """

    def __init__(self, meter: Reads, limits: StoreLimits, loaders: int, clock: Callable[[], float]):
        self._meter, self.limits, self._loaders, self._clock = meter, limits, loaders, clock
        self._lock = threading.Lock()
        self.reserved = self.kept = self.peak_kept = self.peak_used = 0
        self._unseen = 0  # kept since the last reading: the meter does not know these bytes yet
        self._closed = False  # after a back-off nothing enters RAM until the meter is down
        self._read()

    def _read(self) -> None:
        reading = self._meter.read()
        self.limit_bytes, self.used_bytes = int(reading.limit_bytes), int(reading.used_bytes)
        self._read_at, self._unseen = self._clock(), 0
        self.peak_used = max(self.peak_used, self.used_bytes)

    def _refresh(self, every_s: float) -> None:
        if self._clock() - self._read_at >= every_s:
            self._read()

    @property
    def mark_bytes(self) -> int:
        """min(0.95 x limit, limit - reserve); reserve = next batch + one clip per loader + min(256 MB, 10 % of the limit)."""
        reserve = self.limits.batch_bytes + self._loaders * self.limits.clip_bytes
        reserve += int(min(SLACK_BYTES, SLACK_SHARE * self.limit_bytes))
        return max(0, min(int(self.limits.spill_at * self.limit_bytes), self.limit_bytes - reserve))

    @property
    def floor_bytes(self) -> int:
        """Where a back-off stops: 90 % of the limit, or as far below the mark as 90 lies below 95."""
        return max(0, self.mark_bytes - int((self.limits.spill_at - self.limits.back_to) * self.limit_bytes))

    def reserve(self, size: int) -> bool:
        """True, and `size` bytes are reserved, if they may enter RAM. Every True wants one `settle`."""
        with self._lock:
            if self.kept + self.reserved + size > self.limits.ram_bytes:
                return False
            self._refresh(READ_EVERY_S)
            if not self._fits(size):
                self._refresh(REREAD_EVERY_S)
                if not self._fits(size):
                    return False
            self.reserved += size
            return True

    def _fits(self, size: int) -> bool:
        used = self.used_bytes + self._unseen + self.reserved
        if self._closed and used <= self.floor_bytes:
            self._closed = False
        return not self._closed and used + size <= self.mark_bytes

    def settle(self, reserved: int, kept: int) -> None:
        """End a reservation: `kept` bytes of it are in the store now, 0 if none."""
        with self._lock:
            self.reserved -= reserved
            self.kept += kept
            self._unseen += kept
            self.peak_kept = max(self.peak_kept, self.kept)

    def release(self, size: int) -> None:
        """`size` kept bytes have left RAM."""
        with self._lock:
            self.kept -= size
            self._unseen -= size

    def excess(self, every_s: float = READ_EVERY_S) -> int:
        """Bytes that should leave RAM because the meter is over the mark, 0 while it is not.

        Our own bytes cannot do that: they were admitted below the mark. RAM stays closed until the meter is down.
        """
        with self._lock:
            self._refresh(every_s)
            if self.used_bytes <= self.mark_bytes:
                return 0
            self._closed = True
            return self.used_bytes - self.floor_bytes


def return_memory() -> bool:
    """Give freed heap pages back to the system; False where the C library cannot.

    Dropping arrays alone leaves them in glibc's heap, and the meter would not fall (reliability.md 4.2).
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError):  # not glibc: its allocator decides for itself
        return False
