"""How a scaled spectrum is laid out before it is stored: array[C, M, T] in, array[C, M, T] out.

Owns the table LAYOUTS, whose names are values of a front end's key, and the grey picture. What a net wants
after the cut (deltas, /255, channel repeat) is `kernel.inference.finish`.
"""
from collections.abc import Callable

import numpy as np


def _canvas(x: np.ndarray, frames: int) -> np.ndarray:
    """HackerEarth: the first `frames` columns, the rest 0.0 (0 dB is the BRIGHT end of a quiet clip)."""
    out = np.zeros((*x.shape[:2], frames))
    width = min(x.shape[2], frames)
    out[..., :width] = x[..., :width]
    return out


def _margins(x: np.ndarray, frames: int) -> np.ndarray:
    """OsciiArt: `frames` columns of max(clip max - 80, -100) dB on both sides."""
    fill = max(float(x.max()) - 80.0, -100.0)
    return np.pad(x, ((0, 0), (0, 0), (frames, frames)), constant_values=fill)


LAYOUTS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "plain": lambda x, frames: x,
    "canvas": _canvas,
    "margins": _margins,
    "bands": lambda x, frames: x.reshape(3, -1, x.shape[2]),  # low rows red, middle green, high blue
}


def grey(x: np.ndarray) -> np.ndarray:
    """uint8 in 0..255: standardised and min-max scaled over all of x, truncated; a flat clip gives 0.

    Source: "mono_to_color" of daisukelab's FAT2019 kernel.
    """
    x = x - x.mean()
    x /= x.std() + 1e-6
    low, high = x.min(), x.max()
    if high - low <= 1e-6:
        return np.zeros(x.shape, np.uint8)
    x -= low
    x *= 255
    x /= high - low
    return x.astype(np.uint8)
