"""The disk tier of the store: one append-only file per front end in a private folder.

Owns that folder, the spill files, their checksums, what is counted when a disk fails, and how fast the disk
has proved to be. Does not decide what is spilled: that is `kernel.cache.tiers`. A spill file is never mapped:
a truncated map would kill the process. Nothing here outlives the run, so nothing is synced for durability,
and no earlier run is swept up after: the caller's scratch folder is fresh.
"""
import errno
import os
import re
import shutil
import threading
import uuid
import zlib
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import LimitError, StoreError
from ..files import free_disk
from .ram import StoreLimits

# So many failures within this time turn the tier off for a while
FAILURES = 3
WITHIN_S = 30.0
OFF_S = 60.0
SYNC_BYTES = 32_000_000  # flushed after so many: dirty pages count as used memory until they are written
GUESS_BYTES_PER_S = 1e9  # before anything was measured; the first measurement replaces it
FADING = 0.9  # how much of the older measurements is kept at each new one
IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")


class Extent(NamedTuple):
    """Where an array lies: file generation, offset in bytes, crc32 (seeded with the row id), shape."""

    generation: int
    offset: int
    crc: int
    shape: tuple[int, ...]


class Rate:
    """Bytes per second of what was measured lately, weighted by size; a guess before that."""

    def __init__(self, guess_bytes_per_s: float | None = None) -> None:
        self._bytes = guess_bytes_per_s or 0.0
        self._seconds = 1.0
        self._keep = 0.0  # of what is known so far, at the next measurement

    def add(self, size: int, seconds: float) -> None:
        self._bytes = self._keep * self._bytes + size
        self._seconds = self._keep * self._seconds + seconds
        self._keep = FADING

    def seconds(self, size: int) -> float | None:
        """Seconds that `size` bytes should take, None while nothing is known."""
        return None if self._bytes <= 0 else size * self._seconds / self._bytes


class SpillFile:
    """An append-only file; `size` is the end of the last good write. One writer at a time, any number of
    readers.

    The descriptor is closed when the last user lets go of the object: closing it under a reader would hand
    the reader whatever file gets the same number next.
    """

    def __init__(self, path: Path, generation: int) -> None:
        self.path = path
        self.generation = generation
        self.size = 0
        self._unsynced = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def append(self, data: memoryview) -> int:
        """Offset of `data` in the file.

        Raises  OSError; the file then ends at the last good offset again
        """
        if os.fstat(self._fd).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "the spill file was deleted", str(self.path))
        offset = self.size
        done = 0
        try:
            while done < len(data):
                wrote = os.pwrite(self._fd, data[done:], offset + done)
                if wrote <= 0:
                    raise OSError(errno.EIO, "nothing was written", str(self.path))
                done += wrote
            self._unsynced += done
            if self._unsynced >= SYNC_BYTES:
                os.fdatasync(self._fd)
                self._unsynced = 0
        except OSError:
            os.ftruncate(self._fd, offset)
            raise
        self.size = offset + len(data)
        return offset

    def read_into(self, buffer: memoryview, offset: int) -> bool:
        """Fill `buffer` from `offset`; False when the file is too short.

        Raises  OSError
        """
        done = 0
        while done < len(buffer):
            got = os.preadv(self._fd, [buffer[done:]], offset + done)
            if got == 0:
                return False
            done += got
        return True

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


class Disk:
    """Spill files in a folder of their own below `scratch`, one per front end key.

    errors    failures by errno name; notes: remarks for the report
    rejected  why the tier is not used at all, or None
    """

    def __init__(self, scratch: Path, limits: StoreLimits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self.errors: Counter[str] = Counter()
        self.notes: list[str] = []
        self.writing = Rate(GUESS_BYTES_PER_S)
        self.reading = Rate(GUESS_BYTES_PER_S)
        self.peak_bytes = 0
        self._files: dict[str, SpillFile] = {}
        self._generation = 0
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._off_until = -float("inf")
        self._lock = threading.Lock()  # the table of files
        self._writer = threading.Lock()  # one writer: the cap is exact, and one disk gains nothing from more
        self.folder = scratch / f"spill-{uuid.uuid4().hex[:8]}"
        self.rejected: str | None = "no disk space was allowed"
        if limits.disk_bytes > 0:
            self.rejected = self._open(scratch)
            if self.rejected:
                self.notes.append(f"ScratchRejected: {self.rejected}")

    def _open(self, scratch: Path) -> str | None:
        """None, or why the folder cannot be used."""
        try:
            scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
            kind = _filesystem(scratch)
            if kind in IN_MEMORY and not self._limits.any_filesystem:
                return f"{scratch} lies in memory ({kind}): spilling there frees nothing; give one on a disk"
            self.folder.mkdir(mode=0o700)
            probe = SpillFile(self.folder / "probe", 0)
            probe.append(memoryview(bytes(4096)))
            probe.path.unlink()
        except OSError as error:
            self._count(error)
            return f"{scratch} cannot be written ({error.strerror}); give another folder"
        return None

    @property
    def bytes(self) -> int:
        """Bytes in all spill files."""
        return sum(file.size for file in list(self._files.values()))

    def open_for(self, size: int) -> bool:
        """True if `size` more bytes may be tried: the tier is in use, and the disk and its cap have room."""
        if self.rejected or self._clock() < self._off_until or self.bytes + size > self._limits.disk_bytes:
            return False
        try:
            return free_disk(self.folder) - size >= self._limits.keep_free_bytes
        except LimitError:
            self.errors["statvfs"] += 1
            return False

    def write(self, key: str, row_id: str, array: np.ndarray) -> Extent | None:
        """Extent of the array, appended to the file of `key`; None when it was not stored.

        A failure is counted, never raised.
        """
        data = _bytes_of(array)
        crc = zlib.crc32(data, _seed(row_id))
        for last in (False, True):
            file = None
            try:
                with self._writer:
                    if self.bytes + len(data) > self._limits.disk_bytes:
                        return None
                    file = self._file(key)
                    start = self._clock()
                    offset = file.append(data)
                    self.writing.add(len(data), self._clock() - start)
                    self.peak_bytes = max(self.peak_bytes, self.bytes)
                return Extent(file.generation, offset, crc, array.shape)
            except FileNotFoundError as error:  # the folder went away under us: once more in a new one
                self._lose(key, file)
                if last:
                    self._fail(error)
            except OSError as error:
                self._fail(error)
                return None
        return None

    def holds(self, key: str, extent: Extent) -> bool:
        """False once the extent's file is gone (deleted under us, or forgotten)."""
        return self._file_of(key, extent) is not None

    def read(self, key: str, row_id: str, extent: Extent, dtype: np.dtype) -> np.ndarray | None:
        """The array, read-only, or None when its bytes are not what was written: recompute it."""
        file = self._file_of(key, extent)
        if file is None:
            return None
        array = np.empty(extent.shape, dtype)
        data = _bytes_of(array)
        start = self._clock()
        try:
            if not file.read_into(data, extent.offset):
                raise OSError(errno.EIO, "the spill file is shorter than what was written")
            self.reading.add(len(data), self._clock() - start)
            if zlib.crc32(data, _seed(row_id)) != extent.crc:
                raise OSError(errno.EIO, "a checksum does not match")
        except OSError as error:
            self._fail(error)
            return None
        array.flags.writeable = False
        return array

    def forget(self, key: str) -> None:
        """Remove the file of `key`."""
        with self._lock:
            file = self._files.pop(key, None)
        if file is not None:
            try:
                file.path.unlink(missing_ok=True)  # the bytes go when the last reader is done
            except OSError as error:
                self._count(error)

    def close(self) -> None:
        """Remove every file and the folder."""
        for key in list(self._files):
            self.forget(key)
        if not self.rejected:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, key: str) -> SpillFile:
        """The file that takes new arrays of `key`."""
        with self._lock:
            if key not in self._files:
                self._generation += 1
                name = f"{self._generation}-{re.sub('[^A-Za-z0-9._-]', '_', key)[:80]}.spill"
                if not self.folder.is_dir():
                    self.folder.mkdir(parents=True, mode=0o700)
                    self.notes.append(
                        "the scratch folder was deleted and made again; its entries are recomputed"
                    )
                self._files[key] = SpillFile(self.folder / name, self._generation)
            return self._files[key]

    def _file_of(self, key: str, extent: Extent) -> SpillFile | None:
        """The very file that the extent was written to, None once it is gone."""
        file = self._files.get(key)
        return file if file is not None and file.generation == extent.generation else None

    def _lose(self, key: str, file: SpillFile | None) -> None:
        """Drop a file whose path is gone; its extents are of an old generation from now on."""
        self.errors["ENOENT"] += 1
        with self._lock:
            if file is not None and self._files.get(key) is file:
                del self._files[key]

    def _count(self, error: OSError) -> None:
        self.errors[errno.errorcode.get(error.errno or 0, type(error).__name__)] += 1

    def _fail(self, error: OSError) -> None:
        """Count a failure; the third within 30 s turns the tier off for 60 s."""
        self._count(error)
        now = self._clock()
        self._failures.append(now)
        if len(self._failures) == FAILURES and now - self._failures[0] <= WITHIN_S:
            self._off_until = now + OFF_S
            self._failures.clear()
            self.notes.append(
                f"disk tier off for {OFF_S:.0f} s after {FAILURES} failures, the last one: {error.strerror}"
            )


def _bytes_of(array: np.ndarray) -> memoryview:
    if not array.flags.c_contiguous:
        raise StoreError(f"array of shape {array.shape} is not contiguous; store a contiguous copy")
    return array.reshape(-1).view(np.uint8).data


def _seed(row_id: str) -> int:
    """Start value of a checksum: bytes of another row are as wrong as damaged ones."""
    return zlib.crc32(row_id.encode("utf-8", "surrogatepass"))


def _filesystem(folder: Path) -> str:
    """Type of the file system of `folder` ("ext4", "tmpfs"), "" when the system does not tell."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    return next((line.partition(" - ")[2].split()[0] for line in lines if line.split()[2] == number), "")
