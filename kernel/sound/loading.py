"""What a loader thread does for the rows of one clip: decode it once; then cut, resample, front end per row.

Owns the order of this work, and that whatever fails in it costs a clip or a row and nothing else. Keeps no
array: that is `kernel.cache`.
"""
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..errors import ClipError, ClipUnreadable, text_of
from . import decode
from .rows import Row
from .source import Source

# Waves at the larger rate that exist at once while a clip is loaded: decoded and resampled, then resampled
# and padded for the spectrum, with a third for what else front ends keep (measured over the presets).
WAVES = 3


def count_wave_bytes(seconds: float, *rates: int) -> int:
    """Memory beside its array that a clip takes while it is loaded, for its own and the front end's rate."""
    return int(WAVES * np.dtype(np.float32).itemsize * seconds * max(rates))


def load_wave(row: Row, rate: int, max_seconds: float) -> decode.Wave:
    """The row's audio at `rate` Hz: decode, cut, resample.

    Raises  ClipUnreadable, ClipEmpty
    """
    return _cut_at_rate(decode.decode(row.clip, max_seconds), row, rate)


def _cut_at_rate(wave: decode.Wave, row: Row, rate: int) -> decode.Wave:
    return decode.resample(decode.cut(wave, row.id, row.start, row.stop), rate)


def produce(fe: Source, rows: Sequence[Row], max_seconds: float,
            note: Callable[[str, str], None]) -> Iterator[tuple[Row, np.ndarray | ClipError]]:
    """Each of the `rows` of one clip with its array[C, M, T], or with the error that it has none.

    note  called with (row id, text) for audio that was salvaged or shortened

    Raises  MemoryError: the store makes room and tries again
    """
    try:
        wave = decode.decode(rows[0].clip, max_seconds)
    except MemoryError:
        raise
    except BaseException as error:  # whatever a decoder does short of dying costs its own clip
        for row in rows:
            yield row, _as_clip_error(row, "decoder", error)
        return
    for row in rows:
        for text in wave.notes:
            note(row.id, text)
        try:
            piece = _cut_at_rate(wave, row, fe.rate)
            if row is rows[-1]:
                del wave  # memory: the front end takes some of its own
            array = fe.of_row(piece.samples, row.id)
        except MemoryError:
            raise
        except BaseException as error:  # a front end that cannot digest this clip costs this row
            yield row, _as_clip_error(row, "front end", error)
        else:
            yield row, array


def _as_clip_error(row: Row, what: str, error: BaseException) -> ClipError:
    """The error itself if it names a fault of the clip, else one that does."""
    if isinstance(error, ClipError):
        return error
    reason = f"{type(error).__name__}: {text_of(error)}"
    return ClipUnreadable(f"{row.id}: the {what} failed: {reason}; replace the file")
