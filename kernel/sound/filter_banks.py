"""Filter banks over FFT bins: mel (Slaney) and chroma, number for number those of librosa 0.11, without
importing it.

Importing librosa.filters brings numba, LLVM and scipy.signal: 0.13 GB and 0.7 s of every run for one small
matrix.
"""
from __future__ import annotations

import numpy as np

HZ_PER_MEL = 200 / 3  # Slaney's scale: linear up to BREAK_HZ, 27 logarithmic steps for each factor 6.4 beyond
BREAK_HZ = 1000.0
LOG_STEP = np.log(6.4) / 27
A0_HZ = 440.0 / 16  # octave 0 of the chroma bank
LOUDEST_OCTAVE, OCTAVE_WIDTH = 5.0, 2.0  # of the chroma bank's Gaussian over octaves


def hz_to_mel(hz: float) -> float:
    """A frequency on Slaney's mel scale."""
    return (
        float(BREAK_HZ / HZ_PER_MEL + np.log(hz / BREAK_HZ) / LOG_STEP) if hz >= BREAK_HZ else hz / HZ_PER_MEL
    )


def mel_frequencies(count: int, fmin: float, fmax: float) -> np.ndarray:
    """f64[count] Hz, evenly spaced on Slaney's mel scale from fmin to fmax."""
    mels = np.linspace(hz_to_mel(fmin), hz_to_mel(fmax), count)
    at_break = BREAK_HZ / HZ_PER_MEL
    return np.where(mels >= at_break, BREAK_HZ * np.exp(LOG_STEP * (mels - at_break)), HZ_PER_MEL * mels)


def mel_weights(rate: int, n_fft: int, mels: int, fmin: float, fmax: float) -> np.ndarray:
    """f32[mels, n_fft//2+1]: triangles between neighbouring mel frequencies, each of area 1 (per Hz).

    A filter narrower than a bin may be all zero, as in librosa. Source: librosa 0.11 filters.mel(htk=False,
    norm="slaney").
    """
    edges = mel_frequencies(mels + 2, fmin, fmax)
    widths, ramps = np.diff(edges), edges[:, None] - np.fft.rfftfreq(n_fft, 1 / rate)
    rising, falling = -ramps[:-2] / widths[:-1, None], ramps[2:] / widths[1:, None]
    weights = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    weights *= (2 / (edges[2:] - edges[:-2]))[:, None]
    return weights


def chroma_weights(rate: int, n_fft: int, classes: int = 12) -> np.ndarray:
    """f32[classes, n_fft//2+1], C first, tuning 0: Gaussian bumps around each pitch class, columns of unit
    length, loudest around octave 5. Source: librosa 0.11 filters.chroma(tuning=0).
    """
    pitch = classes * np.log2(np.linspace(0, rate, n_fft, endpoint=False)[1:] / A0_HZ)
    pitch = np.concatenate(([pitch[0] - 1.5 * classes], pitch))  # bin 0: an octave and a half below bin 1
    widths = np.append(np.maximum(np.diff(pitch), 1), 1)
    half = np.round(classes / 2)
    away = np.remainder(pitch - np.arange(classes)[:, None] + half + 10 * classes, classes) - half
    bumps = np.exp(-0.5 * (2 * away / widths) ** 2)
    length = np.sqrt(np.sum(bumps**2, axis=0))
    bumps /= np.where(length < np.finfo(bumps.dtype).tiny, 1, length)
    bumps *= np.exp(-0.5 * ((pitch / classes - LOUDEST_OCTAVE) / OCTAVE_WIDTH) ** 2)
    return np.roll(bumps, -3 * (classes // 12), axis=0)[:, : n_fft // 2 + 1].astype(np.float32)
