"""Normalisations of an array[C, M, T] before it is stored, or, for scopes beyond the row, when it is read.

Owns the table NORMS and the figures that they need (`Statistics`). Constants of single systems are presets'.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .front_end_keys import FrontEndKeys
from .layouts import grey

FLAT = 1e-6  # a range up to this is a flat picture, where no eps keeps it from being divided by nothing


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Figures of an array, in float64.

    std  over n - 1, as torch has it; 0 for a single value
    """

    mean: float
    std: float
    least: float
    most: float

    @classmethod
    def of(cls, x: np.ndarray) -> "Statistics":
        std = float(x.std(dtype=np.float64, ddof=1)) if x.size > 1 else 0.0
        return cls(mean=float(x.mean(dtype=np.float64)), std=std, least=float(x.min()), most=float(x.max()))


def _z(fe: FrontEndKeys, x: np.ndarray, s: Statistics) -> np.ndarray:
    return (x - np.float32(s.mean)) / np.float32(s.std + fe.eps)


def _minmax(fe: FrontEndKeys, x: np.ndarray, s: Statistics, unit: float = 1.0) -> np.ndarray:
    """(x - min) / (max - min + eps), x counted in multiples of `unit`."""
    width = s.most - s.least
    if fe.minmax_eps == 0 and width <= FLAT * unit:
        return np.zeros_like(x)
    return (x - np.float32(s.least)) / np.float32(width + fe.minmax_eps * unit)


def _z_minmax(fe: FrontEndKeys, x: np.ndarray, s: Statistics) -> np.ndarray:
    """z first, whose unit is the std: the mean cancels, the std stays beside the second eps alone."""
    return _minmax(fe, x, s, s.std + fe.eps)


def _image(fe: FrontEndKeys, x: np.ndarray, statistics: Statistics | None) -> np.ndarray:
    """uint8 in 0..255: colour bands are scaled together, channels of different units one by one."""
    return np.stack([grey(channel) for channel in x]) if fe.spectrum == "mel_chroma_stft" else grey(x)


# (front end, array, its figures or those of its recording; None = take the array's own) -> array
NORMS: dict[str, Callable[[FrontEndKeys, np.ndarray, Statistics | None], np.ndarray]] = {
    "none": lambda fe, x, s: x,
    "image": _image,
    "standard": lambda fe, x, s: (x - np.float32(fe.mean)) / np.float32(fe.std),
    "clip": lambda fe, x, s: (x - x.mean()) / (x.std() + fe.eps),
    "z": lambda fe, x, s: _z(fe, x, s or Statistics.of(x)),
    "minmax": lambda fe, x, s: _minmax(fe, x, s or Statistics.of(x)),
    "z_minmax": lambda fe, x, s: _z_minmax(fe, x, s or Statistics.of(x)),
}
