"""STFT windows by name: Hann and its kin, periodic or symmetric, laid into the length of the transform.

Owns the table WINDOWS. How frames are cut is `spectra`.
"""

from collections.abc import Callable
from functools import lru_cache

import torch

Make = Callable[[int, bool], torch.Tensor]
POVEY = 0.85  # Source: Kaldi feature-window.cc, "povey".


def _hann(samples: int, periodic: bool) -> torch.Tensor:
    return torch.hann_window(samples, periodic=periodic, dtype=torch.float64)


# (samples, periodic) -> f64[samples]
WINDOWS: dict[str, Make] = {
    "hann": _hann,
    # torch.hann_window evaluated in float32, whose last-bit errors show in quiet bins of loud frames
    "hann_float32": lambda samples, periodic: torch.hann_window(samples, periodic=periodic).double(),
    "hamming": lambda samples, periodic: torch.hamming_window(samples, periodic, dtype=torch.float64),
    "blackman": lambda samples, periodic: torch.blackman_window(samples, periodic, dtype=torch.float64),
    "povey": lambda samples, periodic: _hann(samples, periodic) ** POVEY,
    "ones": lambda samples, periodic: torch.ones(samples, dtype=torch.float64),
}
OLD_NAMES = {"exact": "hann", "single": "hann_float32"}  # of the key `window` before it named kinds


@lru_cache(maxsize=64)
def stft_window(
    kind: str, samples: int, n_fft: int, periodic: bool = True, place: str = "centre"
) -> torch.Tensor:
    """f64[n_fft]: the window of `samples` samples, zeros around it ("centre") or behind it ("start").

    The odd zero stands behind, as in torch.stft.
    """
    window = WINDOWS[kind](samples, periodic)
    if samples == n_fft:
        return window
    left = (n_fft - samples) // 2 if place == "centre" else 0
    return torch.nn.functional.pad(window, (left, n_fft - samples - left))
