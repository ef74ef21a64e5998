"""Front ends that look at a whole recording: joined before it is stored, normalised when a row is read.

Owns how a recording becomes one stored array and how a row's part of it is cut, clipped and normalised.
Spectra are `frontends`' and `spectra`'s.

The array of a recording of n windows is [C, M, n x step + 2 x context]: the row of window i sees columns
i x step .. i x step + step + 2 x context.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from ..errors import ClipEmpty, ClipUnreadable, SpecError
from .front_end_keys import FrontEndKeys
from .norms import NORMS, Statistics
from .rows import Row
from .spectra import count_frames


def piece_samples(fe: FrontEndKeys) -> int:
    """Samples of a window at fe.rate."""
    return round(fe.piece_seconds * fe.rate)


def count_pieces(fe: FrontEndKeys, samples: int) -> int:
    """Windows of a recording; the last may be short."""
    return max(1, math.ceil(samples / piece_samples(fe))) if fe.piece_seconds else 1


def whole_frames(fe: FrontEndKeys) -> int:
    """Frames kept of a whole window."""
    samples = piece_samples(fe) - (fe.preemphasis > 0 and fe.preemphasis_in == "wave")
    return fe.piece_frames or count_frames(samples, fe.n_fft, fe.hop, fe.edges, fe.window_samples)


def join(
    fe: FrontEndKeys, wave: np.ndarray, spectrum: Callable[[np.ndarray], np.ndarray], windows: bool
) -> np.ndarray:
    """f32[C, M, T] of a recording, not clipped, not normalised.

    spectrum  what makes [C, M, T] of a wave
    windows   rows are its windows: a short last one is padded with zeros to its full length
    """
    if not fe.piece_seconds:
        return spectrum(wave)
    samples, step, context = piece_samples(fe), whole_frames(fe), fe.context_frames
    count = count_pieces(fe, len(wave))
    if fe.pieces == "whole":
        missing = (count * step + 2 * context - 1) * fe.hop - len(wave)
        if missing < 0:
            raise SpecError(
                f"frontend {fe.name}: piece_frames = {step} is less than a window of "
                f"{fe.piece_seconds:g} s gives; raise piece_frames or context_frames"
            )
        padded = np.pad(wave, (missing // 2, missing - missing // 2))
        return spectrum(padded)[..., : count * step + 2 * context]
    parts = [wave[i * samples : (i + 1) * samples] for i in range(count)]
    if windows or count > 1 or context:
        parts[-1] = np.pad(parts[-1], (0, samples - len(parts[-1])))
    arrays = [spectrum(part)[..., :step] for part in parts]
    if context:
        arrays = [arrays[0][..., -context:], *arrays, arrays[-1][..., :context]]
    return np.concatenate(arrays, axis=-1)


def clip_range(fe: FrontEndKeys, x: np.ndarray, most: float) -> np.ndarray:
    """x with 0 dB and the least value as the scope's largest value wants them; a new array."""
    if fe.scale != "db":
        return x
    if fe.ref == "max":
        x = x - np.float32(most)
        most = 0.0
    return x if fe.top_db is None else np.maximum(x, np.float32(most - fe.top_db))


def finish_all(fe: FrontEndKeys, raw: np.ndarray) -> np.ndarray:
    """The whole recording's array, clipped and normalised: what a clip that is no row of windows gives."""
    clipped = clip_range(fe, raw, float(raw.max()))
    if fe.scope == "recording" or not fe.piece_seconds:
        return NORMS[fe.norm](fe, clipped, None)
    step = min(whole_frames(fe), raw.shape[-1])
    parts = np.split(clipped, range(step, raw.shape[-1], step), axis=-1)
    return np.concatenate([NORMS[fe.norm](fe, part, None) for part in parts], axis=-1)


class OfRecording:
    """A front end for rows that are windows of a recording (a `Source`).

    The store keeps one array per recording, as `join` makes it; `read` gives a row's part of it, clipped and
    normalised by the recording's figures. Those are taken when a recording's first row is read.
    """

    time = True
    uneven = True

    def __init__(
        self, fe: FrontEndKeys, make: Callable[[np.ndarray], np.ndarray], key: str, bins: int
    ) -> None:
        self.fe = fe
        self.name = fe.name
        self._make = make
        self.key = f"{key}-recording"
        self.rate = fe.rate
        self.dtype = np.dtype(np.float32)
        self.channels = 1
        self.bins = bins
        self.pad: float | Literal["clip_min"] = fe.pad_value
        self.fixed: int | None = whole_frames(fe) + 2 * fe.context_frames
        self._figures: dict[str, tuple[float, Statistics | None]] = {}

    def max_frames(self, samples: int) -> int:
        """Frames of a row, whatever its length."""
        assert self.fixed is not None
        return self.fixed

    def max_bytes(self, samples: int) -> int:
        """Bytes of the array of a recording of `samples` samples at fe.rate."""
        frames = count_pieces(self.fe, samples) * whole_frames(self.fe) + 2 * self.fe.context_frames
        return self.channels * self.bins * frames * self.dtype.itemsize

    def of_row(self, wave: np.ndarray, row_id: str) -> np.ndarray:
        """The recording's array, as it is stored."""
        return self._make(wave)

    @staticmethod
    def entry(row: Row) -> Row:
        """What is stored for a row: its whole recording."""
        return replace(row, id=row.clip.id, start=None, stop=None, before=0, after=0)

    def read(self, stored: np.ndarray, row: Row) -> np.ndarray:
        """array[C, M, step + 2 x context] of a row from its recording's array.

        Raises  ClipEmpty for a row behind the recording's end, ClipUnreadable for one between its windows
        """
        step = whole_frames(self.fe)
        place = (row.start or 0) / max(1, row.clip.rate) / self.fe.piece_seconds
        number = round(place)
        if abs(place - number) > 1e-3:
            raise ClipUnreadable(
                f"{row.id}: begins {place:.3f} windows into its recording; front end {self.fe.name} (scope = "
                f"{self.fe.scope!r}) wants windows side by side, {self.fe.piece_seconds:g} s each"
            )
        part = stored[..., number * step : number * step + step + 2 * self.fe.context_frames]
        if part.shape[-1] < step + 2 * self.fe.context_frames:
            raise ClipEmpty(
                f"{row.id}: the window begins after the last one that could be read; its row keeps the prior"
            )
        most, figures = self._figures_of(stored, row)
        x = NORMS[self.fe.norm](self.fe, clip_range(self.fe, part, most), figures)
        return np.ascontiguousarray(x, dtype=np.dtype(self.fe.stored))

    def _figures_of(self, stored: np.ndarray, row: Row) -> tuple[float, Statistics | None]:
        """The largest stored value of the row's recording; its figures where `norm` looks at all of it."""
        known = self._figures.get(row.clip.id)
        if known is None:
            most = float(stored.max())
            wanted = self.fe.scope == "recording" and self.fe.norm in ("z", "minmax", "z_minmax")
            figures = Statistics.of(clip_range(self.fe, stored, most)) if wanted else None
            known = self._figures.setdefault(row.clip.id, (most, figures))
        return known
