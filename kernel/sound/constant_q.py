"""The constant-Q transform with kernels in the time domain: magnitudes [T, bins] of a padded wave.

Owns its kernels. Framing and edges are `spectra`.
"""

from functools import lru_cache

import numpy as np
import torch

TAPER = 0.5  # share of a kernel that its cosine edges take. Source: nnAudio 0.3.4 with tukey windows


def tukey(samples: int) -> np.ndarray:
    """f64[samples], periodic Tukey window with cosine edges over half of it."""
    place = np.arange(samples) / samples  # periodic: the symmetric window of one sample more, less its last
    edge = np.minimum(place, 1 - place) * 2 / TAPER
    return np.where(edge < 1, 0.5 * (1 - np.cos(np.pi * np.minimum(edge, 1))), 1.0)


@lru_cache(maxsize=8)
def kernels(
    rate: int, n_fft: int, bins: int, fmin: float, bins_per_octave: int, kind: torch.dtype
) -> tuple[tuple[int, int, int, torch.Tensor], ...]:
    """(first bin, last, first sample, [samples, 2 x bins] cosines then sines) for each octave.

    Kernel k: l = ceil(Q rate / f), Q = 1 / (2^(1 / bins_per_octave) - 1), window times exp(2 pi i f n / rate)
    with sum of magnitudes 1, times sqrt(l), centred in n_fft (odd l: one sample further left).
    Source: nnAudio 0.3.4 CQT1992v2.
    """
    q = 1 / (2 ** (1 / bins_per_octave) - 1)
    frequencies = fmin * 2.0 ** (np.arange(bins) / bins_per_octave)
    lengths = np.ceil(q * rate / frequencies).astype(int)
    starts = np.ceil(n_fft / 2 - lengths / 2).astype(int) - lengths % 2
    parts = []
    for first in range(0, bins, bins_per_octave):
        last = min(bins, first + bins_per_octave)
        low = int(starts[first:last].min())
        high = int((starts + lengths)[first:last].max())
        waves = np.zeros((high - low, last - first), np.complex128)
        for k in range(first, last):
            length, place = int(lengths[k]), int(starts[k]) - low
            window = tukey(length)
            turns = np.exp(2j * np.pi * np.arange(length) * frequencies[k] / rate)
            waves[place : place + length, k - first] = window * turns * np.sqrt(length) / window.sum()
        both = np.concatenate([waves.real, waves.imag], axis=1)
        parts.append((first, last, low, torch.from_numpy(both).to(kind)))
    return tuple(parts)


def constant_q(
    padded: torch.Tensor, n_fft: int, hop: int, parts: tuple[tuple[int, int, int, torch.Tensor], ...]
) -> torch.Tensor:
    """Magnitudes [T, bins] of a padded wave, in its dtype."""
    frames = 1 + (len(padded) - n_fft) // hop
    out = padded.new_empty((frames, parts[-1][1]))
    for first, last, low, both in parts:
        cut = padded[low:].as_strided((frames, len(both)), (hop, 1))
        products = torch.mm(cut, both).square_()
        torch.add(products[:, : last - first], products[:, last - first :], out=out[:, first:last])
    return out.sqrt_()
