"""Linear spectra of a waveform: STFT, its power or magnitude, mel and chroma, all tested against librosa.

Owns framing and its edge rules, the window and the precision. Filter weights are `filter_banks`, decibels and
PCEN `scales`. Does not know front ends, presets or stored dtypes.

Spectra are [T, bins] (time first) in here, because some frames together are then one contiguous matrix.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch

from .filter_banks import MelBank
from .scales import AMIN

# Frames x n_fft per FFT, so that buffers stay in the CPU's cache; measured: 64 to 256 frames are alike.
SAMPLES_PER_FFT = 1 << 18
LEAST_FRAMES_PER_FFT = 16
# Mean power of a frame over the power in a mel filter beyond which a float32 FFT may move the latter by 1e-3
# dB (measured).
BLUR = 1e5


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the body with one intra-op thread: MKL's products round differently on two.

    The setting belongs to the calling thread; torch also hands it to threads that use it for the first time
    meanwhile, so an engine with several threads sets its own counts before it starts.
    """
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pad_wave(wave: np.ndarray, edges: str, n_fft: int) -> np.ndarray:
    """f32[S'] whose full frames are the spectrogram's, centred; edges "reflect" or "zeros".

    A wave shorter than the margin is mirrored again and again, one sample repeated: librosa and torch refuse
    such clips.
    """
    return np.pad(wave, n_fft // 2, mode="reflect" if edges == "reflect" else "constant")


def count_frames(samples: int, n_fft: int, hop: int) -> int:
    """Frames of a padded wave of `samples` samples before the padding."""
    return 1 + (samples + 2 * (n_fft // 2) - n_fft) // hop


@lru_cache(maxsize=64)
def hann(n_fft: int, rounding: str = "exact", device: str = "cpu") -> torch.Tensor:
    """f64[n_fft], periodic Hann window.

    rounding  "exact" = librosa's; "single" = torch.hann_window evaluated in float32, whose last-bit errors
              show in the quiet bins of loud frames (1e-3 of a natural log for ex4sperans' STFT)
    """
    kind = torch.float32 if rounding == "single" else torch.float64
    return torch.hann_window(n_fft, periodic=True, dtype=kind).double().to(device)


def _frames_per_fft(n_fft: int) -> int:
    return max(LEAST_FRAMES_PER_FFT, SAMPLES_PER_FFT // n_fft)


def _power_piecewise(
    padded: torch.Tensor, window: torch.Tensor, hop: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first frame, power [n, n_fft//2+1]) of some frames after the other, in the dtype of `padded`.

    The buffer is used again: read it before the next is asked for. float64 takes twice the time of float32.
    """
    n_fft = len(window)
    frames = 1 + (len(padded) - n_fft) // hop
    at_once = min(frames, _frames_per_fft(n_fft)) if padded.device.type == "cpu" else frames
    cut = padded.as_strided((frames, n_fft), (hop, 1))
    window = window.to(padded.dtype)
    windowed = padded.new_empty((at_once, n_fft))
    power = padded.new_empty((at_once, n_fft // 2 + 1))
    for first in range(0, frames, at_once):
        n = min(at_once, frames - first)
        torch.mul(cut[first : first + n], window, out=windowed[:n])
        # rfft(out=) would copy: 10 % slower.
        squares = torch.view_as_real(torch.fft.rfft(windowed[:n])).square_()
        torch.add(squares[..., 0], squares[..., 1], out=power[:n])
        yield first, power[:n]


def spectrogram(
    padded: torch.Tensor, window: torch.Tensor, hop: int, power: float, bank: MelBank | None = None
) -> torch.Tensor:
    """[T, bins] of a padded wave: power 2 = re^2 + im^2, 1 = magnitude; through the mel bank if given."""
    frames = 1 + (len(padded) - len(window)) // hop
    out = padded.new_empty((frames, bank.mels if bank else len(window) // 2 + 1))
    for first, piece in _power_piecewise(padded, window, hop):
        if power == 1.0:
            piece.sqrt_()
        rows = out[first : first + len(piece)]
        if bank is None:
            rows.copy_(piece)
        else:
            bank(piece, rows)
    return out


def sharpen(
    mel: torch.Tensor,
    padded: torch.Tensor,
    window: torch.Tensor,
    hop: int,
    bank: MelBank,
    top_db: float | None,
) -> None:
    """Recompute in float64 the frames of a float32 power mel [T, mels] in which rounding would show.

    Rounding in a float32 FFT spreads over all bins: in a mel filter of few bins, some 75 dB below a loud
    tone, it shows as 1e-3 dB. Under 1 % of the frames of recordings are touched. Values that dB clipping
    hides do not count. `bank` is the float64 bank.
    """
    floor = max(AMIN, 0.0 if top_db is None else float(mel.max()) * 10 ** (-top_db / 10))
    total = mel @ torch.where(bank.peaks > 0, 1 / bank.peaks, 0.0)  # about the sum of the power over all bins
    limit = BLUR * len(window)
    # Few frames are loud enough for a value at the floor; only in those the quietest value is looked for.
    rows = torch.nonzero(total > limit * floor / float(bank.peaks.max()))[:, 0]
    quietest = (mel[rows].clamp(min=floor) / bank.peaks).amin(dim=1)
    rows = rows[total[rows] > limit * quietest]
    cut = padded.as_strided((len(mel), len(window)), (hop, 1))
    for part in rows.split(_frames_per_fft(len(window))) if len(rows) else ():
        power = torch.view_as_real(torch.fft.rfft(cut[part].double() * window)).square_().sum(dim=-1)
        exact = power.new_empty((len(part), bank.mels))
        bank(power, exact)
        mel[part] = exact.to(mel.dtype)


def chroma(power: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """f32[T, 12] chroma of power f32[T, bins], every frame over its largest class; a silent frame stays 0."""
    raw = power @ bank
    peak = raw.amax(dim=1, keepdim=True)
    return raw / torch.where(peak < torch.finfo(torch.float32).tiny, torch.ones_like(peak), peak)
