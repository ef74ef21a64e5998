"""Windows of long recordings: a file read forward once, its windows cut as they come.

Owns `Recording`, one file in the middle of being read, and `Recordings`, those that wait for their next
windows. Memory does not grow with a recording's length: what lies some windows behind the last one is
forgotten. Opening, reading and repairing are `decode`'s; what is made of a window is `loading`'s.
"""
import errno
import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack

import numpy as np

from ..errors import ClipEmpty, ClipError, ClipUnreadable
from .decode import (
    READ_SAMPLES,
    SALVAGE_SECONDS,
    Clip,
    Stream,
    Wave,
    as_clip_error,
    check_beginning,
    is_short,
    note_salvaged,
    note_short,
    note_too_long,
    open_clip,
    read_mono,
    repair,
)
from .rows import Row

# Windows behind the last one that are kept: rows run side by side, and one may ask a little late.
WINDOWS_KEPT = 8
# Recordings kept open between two uses. A block of rows ends in the middle of one; a GPU's loaders are six
# blocks ahead.
MOST_OPEN = 8


def count_open_bytes(row: Row) -> int:
    """Most bytes that an open recording keeps while such windows are cut out of it."""
    read = READ_SAMPLES // max(1, row.clip.channels)
    return np.dtype(np.float32).itemsize * (WINDOWS_KEPT * row.window + 2 * row.heard + 2 * read)


def count_idle_bytes(rows: Iterable[Row]) -> int:
    """Most bytes that recordings keep between two uses, for one row of each."""
    return sum(sorted(count_open_bytes(row) for row in rows if row.window)[-MOST_OPEN:])


class Recording:
    """One file, read forward. Not thread-safe; one thread at a time.

    first, done  samples first..done are at hand, `done` have been read
    broken       nothing more is to be cut from it
    """

    def __init__(self, clip: Clip, max_seconds: float, beat: Callable[[], None]) -> None:
        self.clip = clip
        self.first = self.done = 0
        self._max_seconds = max_seconds
        self._beat = beat
        self._files = ExitStack()
        self._stream: Stream | None = None
        self._reads: deque[np.ndarray] = deque()
        self._wanted = 0  # samples that the header claims, within max_seconds
        self._claimed = 0
        self._exact = True  # no sample of this format can be NaN or too loud
        self._short = False
        self._error: str | None = None
        self._ended = False
        self.broken = False

    def cut(self, row: Row) -> Wave:
        """What a net hears for a window's row; nothing of it may lie before `first`.

        Raises  ClipUnreadable, ClipEmpty; the latter also for a window that begins after the last sample
        """
        start, stop = row.start or 0, row.stop or 0
        if self._stream is None and not self._ended:
            self._open()
        kept = start - row.before - WINDOWS_KEPT * row.window
        while self.done < stop + row.after and not self._ended:
            self._forget(kept)
            self._read()
        self._forget(kept)
        if start >= self.done and not (row.edges == "silence" and self._is_whole()):
            begins = f"the window begins at {start / self.clip.rate:g} s"
            raise ClipEmpty(f"{row.id!r}: {begins}, {self._end()}; its row keeps the prior")
        samples = self._samples(start - row.before, stop + row.after)
        if row.edges == "repeat":
            self._repeat(samples, start - row.before, row.window)
        elif row.edges == "front" and stop > self.done:
            samples = np.roll(samples, stop - self.done)
        notes = self._notes(stop)
        if not self._exact:
            notes += repair(samples)
        return Wave(samples=samples, rate=self.clip.rate, notes=tuple(notes))

    def _is_whole(self) -> bool:
        """True once the last sample of a sound file has been read: behind it there is silence."""
        whole = self._error is None and not self._short
        return self._ended and whole and self.done > 0 and self.done == self._claimed

    def _samples(self, start: int, stop: int) -> np.ndarray:
        """f32[stop - start], zeros where there is no audio."""
        samples = np.zeros(stop - start, np.float32)
        at = self.first
        for read in self._reads:
            low, high = max(start, at), min(stop, at + len(read))
            if low < high:
                samples[low - start : high - start] = read[low - at : high - at]
            at += len(read)
        return samples

    def _repeat(self, samples: np.ndarray, start: int, window: int) -> None:
        """Beyond the ends of the recording its first or last window again, in place.

        Source: arpoyda/BirdCLEF_2024 src/inference.py 84, which joins spectra where this joins waves.
        """
        places = np.arange(start, start + len(samples))
        end = -(-self.done // window) * window
        if places[0] < 0:
            front = places[places < 0] % window
            samples[: len(front)] = self._samples(0, window)[front]
        if places[-1] >= end and self._ended:
            behind = (places[places >= end] - end) % window
            samples[len(samples) - len(behind) :] = self._samples(end - window, end)[behind]

    def close(self) -> None:
        """Close the file; the samples at hand stay."""
        self._files.close()

    def _open(self) -> None:
        self._stream = stream = self._files.enter_context(open_clip(self.clip))
        self._claimed = self._wanted = stream.frames
        if math.isfinite(self._max_seconds):
            self._wanted = min(stream.frames, max(1, int(self._max_seconds * self.clip.rate)))
        self._exact = stream.subtype.startswith("PCM")
        while self.done < SALVAGE_SECONDS * self.clip.rate and not self._ended:
            self._read()
        check_beginning(self.clip, self.done, self._error)

    def _read(self) -> None:
        """The next samples of the file; closes it behind the last ones."""
        assert self._stream is not None
        count = min(READ_SAMPLES // self.clip.channels, self._wanted - self.done)
        samples, self._error = read_mono(self._stream, count, self.done)
        self._beat()
        self._reads.append(samples)
        self.done += len(samples)
        if self._error is not None or len(samples) < count or self.done == self._wanted:
            self._ended = True
            self._short = self._error is None and is_short(self._stream, self.done, self._wanted)
            self.close()

    def _forget(self, until: int) -> None:
        """Let go of the samples before `until`, as far as whole reads are concerned."""
        while self._reads and self.first + len(self._reads[0]) <= until:
            self.first += len(self._reads.popleft())

    def _notes(self, stop: int) -> list[str]:
        """What is to be said of a window that ends at `stop`."""
        if stop <= self.done:
            return []
        if self._error is not None:
            return [note_salvaged(self.clip, self.done, self._error)]
        if self._short:
            return [note_short(self.clip, self.done, self._claimed)]
        return [note_too_long(self._max_seconds)] if self.done == self._wanted < self._claimed else []

    def _end(self) -> str:
        """Why there is nothing behind the last sample."""
        seconds = f"{self.done / self.clip.rate:.2f} s"
        if self._error is not None:
            return f"the decoder failed after {seconds} ({self._error})"
        if self._short:
            return f"the audio ends at {seconds} of {self._claimed / self.clip.rate:.2f} s claimed"
        if self.done == self._wanted < self._claimed:
            return f"only the first {self._max_seconds:g} s of a recording are read (max_seconds)"
        return f"the audio ends at {seconds}"


class Recordings:
    """Recordings in the middle of being read. Thread-safe.

    max_seconds  nothing behind is read; infinite = to the end
    beat         called after every read: a long way to a window is no hang

    A window is cut out of the recording that is nearest before it, so that rows in time order are read once;
    for one that lies too far back the file is opened again. A decoder that failed is not asked a second time
    for what lies behind the failure.
    """

    def __init__(self, max_seconds: float = math.inf, beat: Callable[[], None] = lambda: None) -> None:
        self.max_seconds = max_seconds
        self._beat = beat
        self._free = threading.Condition()
        self._open: list[Recording] = []  # the least recently used first
        self._busy: set[Recording] = set()
        # Clip id -> samples before the failure, the error
        self._failed: dict[str, tuple[int, ClipError]] = {}

    def cut(self, row: Row) -> Wave:
        """The samples of a window's row at the recording's own rate.

        Raises  ClipUnreadable, ClipEmpty
        """
        assert row.start is not None and row.stop is not None
        last = row.stop + row.after
        sound, error = self._failed.get(row.clip.id, (last, None))
        if error is not None and last > sound:
            raise type(error)(*error.args)  # a copy: raising one error twice would chain its tracebacks
        recording = self._take(row.clip, max(0, row.start - row.before))
        try:
            return self._cut(recording, row)
        finally:
            self._give_back(recording)

    def close(self) -> None:
        """Close all files that nobody reads just now."""
        with self._free:
            for recording in [one for one in self._open if one not in self._busy]:
                self._open.remove(recording)
                recording.close()

    def _cut(self, recording: Recording, row: Row) -> Wave:
        try:
            try:
                return recording.cut(row)
            except ClipUnreadable as error:
                if getattr(error.__cause__, "errno", None) not in (errno.EMFILE, errno.ENFILE):
                    raise
                self.close()  # files that wait hold the descriptors that are wanted now
                return recording.cut(row)
        except ClipEmpty as error:
            if not recording.done:
                self._fail(recording, error)
            raise
        except MemoryError:
            recording.broken = True
            raise
        except BaseException as error:  # whatever a decoder does short of dying costs its own clip
            fault = as_clip_error(row.clip.id, "decoder", error)
            self._fail(recording, fault)
            raise fault from error

    def _fail(self, recording: Recording, error: ClipError) -> None:
        recording.broken = True
        self._failed[recording.clip.id] = (recording.done, error)

    def _take(self, clip: Clip, start: int) -> Recording:
        """The recording to cut from, for the caller alone; a new one where none lies before `start`."""
        with self._free:
            while True:
                fitting = [one for one in self._open if one.clip.id == clip.id and one.first <= start]
                if not fitting:
                    break
                nearest = max(fitting, key=lambda one: min(one.done, start))
                if nearest not in self._busy:
                    self._busy.add(nearest)
                    return nearest
                self._free.wait()
            new = Recording(clip, self.max_seconds, self._beat)
            self._open.append(new)
            self._busy.add(new)
            return new

    def _give_back(self, recording: Recording) -> None:
        """Let others have it; those that were used longest ago are closed."""
        with self._free:
            self._busy.discard(recording)
            self._open.remove(recording)
            if recording.broken:
                recording.close()
            else:
                self._open.append(recording)
            idle = [one for one in self._open if one not in self._busy]
            for oldest in itertools.islice(idle, max(0, len(idle) - MOST_OPEN)):
                self._open.remove(oldest)
                oldest.close()
            self._free.notify_all()
