"""Filter banks over FFT bins: mel (Slaney, HTK, Kaldi) and chroma; mostly number for number librosa 0.11's.

Owns their weights and the mel bank cut into bands, which is how it is applied. librosa.filters itself is not
imported: it brings numba, LLVM and scipy.signal, 0.13 GB and 0.7 s of every run for one small matrix.
"""
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

FILTERS_PER_PART = 16  # mel bands start at multiples of this: full vector registers in the product
PART_COST = 1500  # what one more banded product costs, in multiply-adds per frame (measured)
HZ_PER_MEL = 200 / 3  # Slaney's scale: linear up to BREAK_HZ, 27 logarithmic steps for each factor 6.4 beyond
BREAK_HZ = 1000.0
LOG_STEP = np.log(6.4) / 27
A0_HZ = 440.0 / 16  # octave 0 of the chroma bank
LOUDEST_OCTAVE = 5.0  # centre of the chroma bank's Gaussian over octaves
OCTAVE_WIDTH = 2.0


def hz_to_mel(hz: float) -> float:
    """A frequency on Slaney's mel scale."""
    if hz < BREAK_HZ:
        return hz / HZ_PER_MEL
    return float(BREAK_HZ / HZ_PER_MEL + np.log(hz / BREAK_HZ) / LOG_STEP)


def mel_frequencies(count: int, fmin: float, fmax: float) -> np.ndarray:
    """f64[count] Hz, evenly spaced on Slaney's mel scale from fmin to fmax."""
    mels = np.linspace(hz_to_mel(fmin), hz_to_mel(fmax), count)
    at_break = BREAK_HZ / HZ_PER_MEL
    return np.where(mels >= at_break, BREAK_HZ * np.exp(LOG_STEP * (mels - at_break)), HZ_PER_MEL * mels)


def _htk_frequencies(count: int, fmin: float, fmax: float) -> np.ndarray:
    """f64[count] Hz, evenly spaced on the scale 2595 log10(1 + f / 700). Source: HTK book 5.4, torchaudio."""
    low, high = 2595 * np.log10(1 + np.array([fmin, fmax]) / 700)
    return 700 * (10 ** (np.linspace(low, high, count) / 2595) - 1)


def kaldi_weights(rate: int, n_fft: int, mels: int, fmin: float, fmax: float) -> np.ndarray:
    """f32[mels, n_fft//2+1]: triangles of height 1, straight on the scale 1127 ln(1 + f / 700); Nyquist is 0.

    Source: Kaldi mel-computations.cc (torchaudio 2.11 compliance.kaldi.get_mel_banks); TensorFlow's
    linear_to_mel_weight_matrix has the same slopes.
    """
    low, high = 1127 * np.log(1 + np.array([fmin, fmax]) / 700)
    edges = np.linspace(low, high, mels + 2)[:, None]
    places = 1127 * np.log(1 + np.fft.rfftfreq(n_fft, 1 / rate) / 700)
    rising = (places - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - places) / (edges[2:] - edges[1:-1])
    weights = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    if n_fft % 2 == 0:
        weights[:, -1] = 0
    return weights


def mel_weights(rate: int, n_fft: int, mels: int, fmin: float, fmax: float, scale: str = "slaney",
                norm: str = "slaney") -> np.ndarray:
    """f32[mels, n_fft//2+1]: triangles between neighbouring mel frequencies, straight in Hz.

    scale  "slaney", "htk" or "kaldi" (kaldi_weights: straight on its own scale)
    norm   "slaney" = each filter has area 1 (per Hz), "none" = height 1

    A filter narrower than a bin may be all zero, as in librosa. Source: librosa 0.11 filters.mel(htk=...,
    norm=...); torchaudio's melscale_fbanks are the same in float32.
    """
    if scale == "kaldi":
        return kaldi_weights(rate, n_fft, mels, fmin, fmax)
    edges = (mel_frequencies if scale == "slaney" else _htk_frequencies)(mels + 2, fmin, fmax)
    widths = np.diff(edges)
    ramps = edges[:, None] - np.fft.rfftfreq(n_fft, 1 / rate)
    rising, falling = -ramps[:-2] / widths[:-1, None], ramps[2:] / widths[1:, None]
    weights = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    if norm == "slaney":
        weights *= (2 / (edges[2:] - edges[:-2]))[:, None]
    return weights


def chroma_weights(rate: int, n_fft: int, classes: int = 12) -> np.ndarray:
    """f32[classes, n_fft//2+1], C first, tuning 0: Gaussian bumps around each pitch class.

    Columns have unit length before octaves are weighed, loudest around octave 5.
    Source: librosa 0.11 filters.chroma(tuning=0).
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


@dataclass(frozen=True)
class MelBank:
    """A mel filter bank cut into bands.

    parts  (first filter, last, low bin, high, weights [high - low, last - first]) of each band
    peaks  f32[mels], largest weight of each filter
    """

    mels: int
    parts: tuple[tuple[int, int, int, int, torch.Tensor], ...]
    peaks: torch.Tensor

    def __call__(self, power: torch.Tensor, out: torch.Tensor) -> None:
        """Fill out f32[n, mels] from power f32[n, n_fft//2+1]."""
        for first, last, low, high, weights in self.parts:
            torch.mm(power[:, low:high], weights, out=out[:, first:last])


@lru_cache(maxsize=64)
def mel_bank(rate: int, n_fft: int, mels: int, fmin: float, fmax: float, kind: torch.dtype = torch.float32,
             device: str = "cpu", scale: str = "slaney", norm: str = "slaney") -> MelBank:
    """Mel bank of mel_weights, cut into bands; every non-zero weight lies in its band (checked)."""
    dense = mel_weights(rate, n_fft, mels, fmin, fmax, scale, norm)
    parts: list[tuple[int, int, int, int, torch.Tensor]] = []
    covered = 0
    for first, last, low, high in _split_bands(dense):
        weights = np.ascontiguousarray(dense[first:last, low:high].T)
        covered += int(np.count_nonzero(weights))
        parts.append((first, last, low, high, torch.from_numpy(weights).to(device, kind)))
    if covered != np.count_nonzero(dense):
        raise AssertionError(f"mel bands cover {covered} of {np.count_nonzero(dense)} weights")
    return MelBank(mels, tuple(parts), torch.from_numpy(dense.max(axis=1)).to(device))


def _split_bands(dense: np.ndarray) -> list[tuple[int, int, int, int]]:
    """[(first filter, last, low bin, high)] that covers every non-zero weight at the least cost.

    The bands are the shortest path over all places where one may be cut.
    """
    mels = len(dense)
    used = [np.flatnonzero(row) for row in dense]
    edges = [*range(0, mels, FILTERS_PER_PART), mels]
    best: dict[int, tuple[float, list[tuple[int, int, int, int]]]] = {0: (0.0, [])}
    for j, last in enumerate(edges[1:], 1):
        options = []
        for first in edges[:j]:
            bins = np.concatenate(used[first:last])
            low, high = (int(bins.min()), int(bins.max()) + 1) if len(bins) else (0, 1)
            cost, parts = best[first]
            options.append(
                (cost + PART_COST + (high - low) * (last - first), [*parts, (first, last, low, high)])
            )
        best[last] = min(options, key=lambda option: option[0])
    return best[mels][1]


@lru_cache(maxsize=16)
def chroma_bank(rate: int, n_fft: int, classes: int = 12) -> torch.Tensor:
    """f32[n_fft//2+1, 12] chroma weights at tuning 0: estimating it costs more than a whole log-mel."""
    return torch.from_numpy(np.ascontiguousarray(chroma_weights(rate, n_fft, classes).T))
