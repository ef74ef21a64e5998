"""Spectrogram pictures of rows for report.html, as PNG without an image library.

Owns which rows are drawn and how; a picture is given as a data URI. Does not write pages (page) or draw
charts (charts). A row that cannot be drawn has no picture: a picture is never worth a run.
"""
import base64
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..errors import ClipError, ClipUnreadable
from ..sound import frontends
from ..sound.loading import load_wave
from ..sound.recording import Recordings
from ..sound.rows import Row

# One log-mel for every picture, whatever the members read: pictures of one page compare. Silent ends stay, so
# that a picture's seconds are its row's
PICTURE = {"preset": "argus", "trim_db": "none"}
WIDTH = 240
HEIGHT = 56
LEVELS = 32  # colours of a picture: enough for a spectrogram, and half the bytes of 256


def draw_rows(rows: Sequence[Row], max_seconds: float, stop: Callable[[], bool]) -> dict[str, str]:
    """Row id -> data URI of its log-mel picture; unreadable rows and those after `stop()` are left out."""

    def check_time() -> None:
        if stop():
            raise ClipUnreadable("no time is left for another picture")

    fe = frontends.build(PICTURE)
    pictures: dict[str, str] = {}
    recordings = Recordings(max_seconds, check_time)
    for row in sorted(rows, key=lambda row: (row.clip.id, row.start or 0)):  # each recording once, forward
        if stop():
            break
        try:
            wave = load_wave(replace(row, before=0, after=0), fe.rate, recordings)
        except ClipError:  # named where it was predicted
            continue
        pictures[row.id] = data_uri(draw_spectrogram(fe(wave.samples)[0]))
    recordings.close()
    return pictures


def draw_spectrogram(spectrogram: np.ndarray) -> bytes:
    """A PNG of a log-mel array [M, T], low bins below; contrast from its own 2nd to 99.8th percentile."""
    values = np.asarray(spectrogram, dtype=np.float32)
    bins = _cut(values.shape[0], HEIGHT)
    values = np.stack([values[first:end].mean(axis=0) for first, end in bins])
    columns = _cut(values.shape[1], WIDTH)
    values = np.stack([values[:, first:end].max(axis=1) for first, end in columns], axis=1)
    low, high = np.percentile(values, [2.0, 99.8])
    scaled = np.clip((values - low) / max(1e-6, float(high - low)), 0, 1)
    return encode_png((scaled[::-1] * (LEVELS - 1)).round().astype(np.uint8))


def _cut(size: int, count: int) -> list[tuple[int, int]]:
    """(first, end) of `count` nearly equal pieces of `size` places; each has at least one place."""
    places = np.linspace(0, size, count + 1).astype(int).tolist()
    return [(first, max(end, first + 1)) for first, end in zip(places[:-1], places[1:], strict=True)]


def encode_png(levels: np.ndarray) -> bytes:
    """A PNG of palette indices u8[H, W] below LEVELS, row 0 on top."""
    height, width = levels.shape
    rows = np.zeros((height, width + 1), dtype=np.uint8)  # a filter byte 0 leads each row
    rows[:, 1:] = levels
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + _chunk(b"PLTE", _palette())
        + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _palette() -> bytes:
    """LEVELS colours as RGB bytes, dark blue to light yellow: ever lighter, so readable in grey too."""
    stops = np.array(
        [[0, 0, 8], [48, 12, 92], [138, 34, 106], [214, 72, 66], [250, 160, 40], [252, 252, 180]], dtype=float
    )
    at = np.linspace(0, len(stops) - 1, LEVELS)
    colours = [np.interp(at, np.arange(len(stops)), stops[:, c]) for c in range(3)]
    return np.stack(colours, axis=1).round().astype(np.uint8).tobytes()


def data_uri(image: bytes) -> str:
    """A PNG as text that an <img> takes."""
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")
