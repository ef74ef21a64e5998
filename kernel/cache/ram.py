"""The RAM tier of the store: how many more bytes may enter, decided before they exist.

Owns the mark (95 % of the limit, less what the next batch and the loaders need), the bytes reserved and kept,
the verdict that others' memory has pushed the meter over the mark, and the few arrays held in hand. Which
array goes where, and which leaves, is `kernel.cache.tiers`.
"""
import ctypes
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from ..memory import RAM_MARK, Meter

READ_EVERY_S = 0.1  # a reading of the meter is believed this long
REREAD_EVERY_S = 0.01  # and only this long when it is about to say no
CALM_S = 60.0  # this long after the meter was last too high, RAM is filled to the floor only
# What else the run may need, a part of the reserve: the smaller of the two
SLACK_BYTES = 256_000_000
SLACK_SHARE = 0.10
# Arrays in hand: the smaller of the two
HAND_BYTES = 64_000_000
HAND_SHARE = 0.025
WORK_SHARE = 0.25  # of the limit that loaders at work may take together; a larger piece of work runs alone
HAND_CALLS = 4  # look-ahead calls after which an array in hand that nobody took may be dropped


@dataclass(frozen=True, kw_only=True)
class StoreLimits:
    """What the store may use.

    ram_bytes        most bytes that the store itself keeps in RAM (the meter's limit holds besides)
    disk_bytes       most bytes in the spill files; 0 = no disk tier
    batch_bytes      memory of the largest next batch, kept free
    table_bytes      memory of a publication, kept free
    work_bytes       most memory that producing one row takes beside its array (waves); kept free for as many
                     loaders as together take a quarter of the limit, at least for one; 0 = unknown
    open_bytes       memory of recordings that wait for their next windows, kept free
    clip_bytes       most stored bytes of one row: kept free per loader, and a cap on what a lying header can
                     reserve; 0 = unknown
    spill_at         share of the meter's limit up to which RAM is filled, and above which entries leave it
    back_to          share down to which they leave; for CALM_S after that RAM is filled up to here only
    keep_free_bytes  disk space left to the rest of the run
    any_filesystem   True: the scratch folder may lie in memory (tests)
    """

    ram_bytes: int
    disk_bytes: int
    batch_bytes: int = 0
    table_bytes: int = 0
    work_bytes: int = 0
    open_bytes: int = 0
    clip_bytes: int = 0
    spill_at: float = RAM_MARK
    back_to: float = 0.90
    keep_free_bytes: int = 128_000_000
    any_filesystem: bool = False


class Budget:
    """Bytes reserved and kept, against the meter. Thread-safe.

    reserved  bytes promised to arrays that do not exist yet
    kept      bytes of arrays in the store; peak_kept the most of them
    """

    def __init__(
        self, meter: Meter, limits: StoreLimits, loaders: int, clock: Callable[[], float]
    ) -> None:
        self.limits = limits
        self._meter = meter
        self._loaders = loaders
        self._clock = clock
        self._lock = threading.Lock()
        self._freed = threading.Condition()  # some work has ended
        self._at_work = 0
        self.reserved = self.kept = self.peak_kept = self.peak_used = 0
        self._backed_off = -float("inf")
        self._read()

    def _read(self) -> None:
        reading = self._meter.read()
        self.limit_bytes = reading.limit_bytes
        self.used_bytes = reading.used_bytes
        self.peak_used = max(self.peak_used, self.used_bytes)
        self._read_at = self._clock()
        self._unseen = 0  # kept since this reading: the meter does not know these bytes yet

    def _refresh(self, every_s: float) -> None:
        if self._clock() - self._read_at >= every_s:
            self._read()

    @property
    def mark_bytes(self) -> int:
        """The smaller of 95 % of the limit, and the limit less the reserve: the next batch, a publication, a
        clip per loader, the loaders' work, open recordings, and some slack.
        """
        reserve = self.limits.batch_bytes + self.limits.table_bytes + self._loaders * self.limits.clip_bytes
        reserve += min(self._loaders * self.limits.work_bytes, self._work_room) + self.limits.open_bytes
        reserve += int(min(SLACK_BYTES, SLACK_SHARE * self.limit_bytes))
        return max(0, min(int(self.limits.spill_at * self.limit_bytes), self.limit_bytes - reserve))

    @property
    def _work_room(self) -> int:
        """Bytes that loaders at work may take together."""
        return max(self.limits.work_bytes, int(WORK_SHARE * self.limit_bytes))

    @contextmanager
    def work(self, size: int) -> Iterator[None]:
        """Do work that takes `size` bytes beside its result: waits for others that leave no room for it."""
        with self._freed:
            self._freed.wait_for(lambda: not self._at_work or self._at_work + size <= self._work_room)
            self._at_work += size
        try:
            yield
        finally:
            with self._freed:
                self._at_work -= size
                self._freed.notify_all()

    @property
    def floor_bytes(self) -> int:
        """90 % of the limit: where a back-off stops."""
        return int(self.limits.back_to * self.limit_bytes)

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
        """Below the mark; soon after a back-off below the floor too, or what left RAM would be replaced at
        once.
        """
        calm = self._clock() - self._backed_off >= CALM_S
        ceiling = self.mark_bytes if calm else min(self.mark_bytes, self.floor_bytes)
        return self.used_bytes + self._unseen + self.reserved + size <= ceiling

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
        """Bytes that should leave RAM because the meter is above 95 % of the limit, 0 while it is not.

        Our own bytes cannot do that: they were admitted below the mark, and the reserve lies between the two.
        """
        with self._lock:
            self._refresh(every_s)
            if self.used_bytes <= self.limits.spill_at * self.limit_bytes:
                return 0
            self._backed_off = self._clock()
            return self.used_bytes - self.floor_bytes


class Hand:
    """Arrays that were computed ahead and found no place: each is held until its first use.

    Not thread-safe by itself. `calls` counts the look-ahead calls; what earlier ones left unused makes room.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.bytes = 0
        self.arrays: OrderedDict[tuple[str, str], tuple[np.ndarray, int]] = OrderedDict()

    def fits(self, size: int, limit_bytes: int) -> bool:
        """True if `size` bytes can be held; drops what earlier calls left unused."""
        room = min(HAND_BYTES, int(HAND_SHARE * limit_bytes))
        while self.arrays and self.bytes + size > room:
            oldest, (_, call) = next(iter(self.arrays.items()))
            if call > self.calls - HAND_CALLS:
                return False
            self.take(*oldest)
        return self.bytes + size <= room

    def put(self, key: str, row_id: str, array: np.ndarray) -> None:
        self.arrays[key, row_id] = (array, self.calls)
        self.bytes += array.nbytes

    def take(self, key: str, row_id: str) -> np.ndarray | None:
        """The array, no longer held; None where there is none."""
        array, _ = self.arrays.pop((key, row_id), (None, 0))
        if array is not None:
            self.bytes -= array.nbytes
        return array

    def forget(self, key: str) -> None:
        """Drop everything of a front end."""
        for held in [held for held in self.arrays if held[0] == key]:
            self.take(*held)


def return_memory() -> None:
    """Give freed heap pages back to the system.

    Dropping arrays alone leaves them in glibc's heap, and the meter would not fall.
    """
    with suppress(AttributeError, OSError):  # not glibc: its allocator decides for itself
        ctypes.CDLL(None).malloc_trim(0)
