"""What a loader thread does for the rows of one clip: decode it once, resample, front end per row.

Owns the order of this work, and that whatever fails in it costs a clip or a row and nothing else. Keeps no
array: that is `kernel.cache`. Where a long recording stands between two calls is `recording`.
"""
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..errors import ClipError
from . import decode
from .recording import Recordings, count_open_bytes
from .rows import Row
from .source import Source

# Waves at the larger rate that exist at once while a clip is loaded: decoded and resampled, then resampled
# and padded for the spectrum, with a third for what else front ends keep (measured over the presets).
WAVES = 3
# Seconds of a recording whose front end wants all of it at once, where nobody says how much is to be read
LONGEST_WHOLE_S = 900.0


def count_wave_bytes(seconds: float, *rates: int) -> int:
    """Memory beside its array that a clip takes while it is loaded, for its own and the front end's rate."""
    return int(WAVES * np.dtype(np.float32).itemsize * seconds * max(rates))


def count_work_bytes(row: Row, rate: int, max_seconds: float = math.inf) -> int:
    """The same for a row by its header, at the front end's `rate`: the whole clip, or a window of it."""
    own = max(1, row.clip.rate)
    if row.window:
        return count_wave_bytes(row.heard / own, own, rate) + count_open_bytes(row)
    most_s = LONGEST_WHOLE_S if math.isinf(max_seconds) else max_seconds
    claimed = most_s if row.clip.unread else row.clip.samples_claimed / own
    return count_wave_bytes(min(claimed, most_s), own, rate)


def count_graph_bytes(fe: Source, seconds: float) -> int:
    """Memory that a graph behind a front end takes beside its answer; 0 for other front ends."""
    count = getattr(fe, "graph_bytes", None)
    return int(count(seconds)) if count is not None else 0


def load_wave(row: Row, rate: int, recordings: Recordings) -> decode.Wave:
    """The row's audio at `rate` Hz, decoded and resampled.

    Raises  ClipUnreadable, ClipEmpty
    """
    if row.start is not None:
        return decode.resample(recordings.cut(row), rate)
    most_s = LONGEST_WHOLE_S if math.isinf(recordings.max_seconds) else recordings.max_seconds
    return decode.resample(decode.decode(row.clip, most_s), rate)


def produce(fe: Source, rows: Sequence[Row], recordings: Recordings,
            note: Callable[[str, str], None]) -> Iterator[tuple[Row, np.ndarray | ClipError]]:
    """Each of the `rows` of one clip with its array[C, M, T], or with the error that it has none.

    rows  windows of one recording in time order, or rows that are the whole clip
    note  called with (row id, text) for audio that was salvaged or shortened

    Raises  MemoryError: the store makes room and tries again
    """
    for row in rows:
        try:
            wave = load_wave(row, fe.rate, recordings)
        except MemoryError:
            raise
        except BaseException as error:  # whatever a decoder does short of dying costs its own clip
            yield row, decode.as_clip_error(row.id, "decoder", error)
            continue
        for text in wave.notes:
            note(row.id, text)
        try:
            array = fe.of_row(wave.samples, row.id)
        except MemoryError:
            raise
        except BaseException as error:  # a front end that cannot digest this clip costs this row
            yield row, decode.as_clip_error(row.id, "front end", error)
        else:
            yield row, array
