"""Linear spectra of a waveform: STFT, its power or magnitude, mel and chroma, all tested against librosa.

Owns framing and its edge rules, the window and the precision. Filter weights are `filter_banks`, decibels and
PCEN `scales`. Does not know front ends, presets or stored dtypes.

Spectra are [T, bins] (time first) in here, because some frames together are then one contiguous matrix.
"""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch

from .filter_banks import MelBank
from .scales import AMIN

# Frames x n_fft per FFT, so that buffers stay in the CPU's cache; measured: 64 to 256 frames are alike.
SAMPLES_PER_FFT = 1 << 18
LEAST_FRAMES_PER_FFT = 16
# Fills out[n, n_fft] with what is transformed of frames [n, n_fft]: Kaldi's ways with single frames.
Prepare: TypeAlias = Callable[[torch.Tensor, torch.Tensor], None]
PAD_MODES = {"reflect": "reflect", "zeros": "constant", "edge": "edge"}
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


def pad_wave(wave: np.ndarray, edges: str, n_fft: int, window_samples: int | None = None) -> np.ndarray:
    """f32[S'] whose full frames of n_fft samples are the spectrogram's.

    edges           "reflect", "zeros" or "edge" (the last sample repeated): centred; "none": from sample 0 on
    window_samples  with "none": samples of a frame that count, where zeros fill it up to n_fft behind them

    A wave shorter than the margin is mirrored again and again, one sample repeated: librosa and torch refuse
    such clips. With "none" a wave shorter than a frame gets zeros behind.
    """
    if edges == "none":
        behind = n_fft - (window_samples or n_fft)
        return np.pad(wave, (0, max(behind, n_fft - len(wave)))) if behind or len(wave) < n_fft else wave
    mode: Any = PAD_MODES[edges]
    return np.pad(wave, n_fft // 2, mode=mode)


def count_frames(samples: int, n_fft: int, hop: int, edges: str = "reflect",
                 window_samples: int | None = None) -> int:
    """Frames of a padded wave of `samples` samples before the padding."""
    if edges == "none":
        return 1 + max(0, samples - (window_samples or n_fft)) // hop
    return 1 + (samples + 2 * (n_fft // 2) - n_fft) // hop


def prepare_frames(window: torch.Tensor, samples: int, left: int, remove_dc: bool,
                   preemphasis: float) -> Prepare:
    """What Kaldi does to a frame: its mean off, pre-emphasis within it, the window; zeros around.

    window   f64[n_fft], whose samples left..left + samples count

    The first sample is taken against itself. Source: Kaldi feature-window.cc (torchaudio 2.11
    compliance.kaldi).
    """

    def prepare(cut: torch.Tensor, out: torch.Tensor) -> None:
        inner = out[:, left : left + samples]
        inner.copy_(cut[:, left : left + samples])
        if remove_dc:
            inner.sub_(inner.mean(dim=1, keepdim=True))
        if preemphasis:
            before = torch.cat([inner[:, :1], inner[:, :-1]], dim=1)
            inner.sub_(before, alpha=preemphasis)
        inner.mul_(window[left : left + samples].to(out.dtype))
        out[:, :left] = 0
        out[:, left + samples :] = 0

    return prepare


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
    padded: torch.Tensor, window: torch.Tensor, hop: int, prepare: Prepare | None = None
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
        if prepare is None:
            torch.mul(cut[first : first + n], window, out=windowed[:n])
        else:
            prepare(cut[first : first + n], windowed[:n])
        # rfft(out=) would copy: 10 % slower.
        squares = torch.view_as_real(torch.fft.rfft(windowed[:n])).square_()
        torch.add(squares[..., 0], squares[..., 1], out=power[:n])
        yield first, power[:n]


def spectrogram(
    padded: torch.Tensor, window: torch.Tensor, hop: int, power: float, bank: MelBank | None = None,
    prepare: Prepare | None = None,
) -> torch.Tensor:
    """[T, bins] of a padded wave: power 2 = re^2 + im^2, 1 = magnitude; through the mel bank if given.

    prepare  replaces the product of a frame with the window
    """
    frames = 1 + (len(padded) - len(window)) // hop
    out = padded.new_empty((frames, bank.mels if bank else len(window) // 2 + 1))
    for first, piece in _power_piecewise(padded, window, hop, prepare):
        if power == 1.0:
            piece.sqrt_()
        elif power != 2.0:
            piece.pow_(power / 2)
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
    least: float = AMIN,
    prepare: Prepare | None = None,
) -> None:
    """Recompute in float64 the frames of a float32 power mel [T, mels] in which rounding would show.

    Rounding in a float32 FFT spreads over all bins: in a mel filter of few bins, some 75 dB below a loud
    tone, it shows as 1e-3 dB. Under 1 % of the frames of recordings are touched. Values that dB clipping
    hides do not count. `bank` is the float64 bank, `least` the smallest power that counts.
    """
    floor = max(least, 0.0 if top_db is None else float(mel.max()) * 10 ** (-top_db / 10))
    total = mel @ torch.where(bank.peaks > 0, 1 / bank.peaks, 0.0)  # about the sum of the power over all bins
    limit = BLUR * len(window)
    # Few frames are loud enough for a value at the floor; only in those the quietest value is looked for.
    rows = torch.nonzero(total > limit * floor / float(bank.peaks.max()))[:, 0]
    quietest = (mel[rows].clamp(min=floor) / bank.peaks).amin(dim=1)
    rows = rows[total[rows] > limit * quietest]
    cut = padded.as_strided((len(mel), len(window)), (hop, 1))
    for part in rows.split(_frames_per_fft(len(window))) if len(rows) else ():
        frames = cut[part].double()
        if prepare is None:
            frames = frames * window
        else:
            prepare(cut[part].double(), frames)
        power = torch.view_as_real(torch.fft.rfft(frames)).square_().sum(dim=-1)
        exact = power.new_empty((len(part), bank.mels))
        bank(power, exact)
        mel[part] = exact.to(mel.dtype)


def chroma(power: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """f32[T, 12] chroma of power f32[T, bins], every frame over its largest class; a silent frame stays 0."""
    raw = power @ bank
    peak = raw.amax(dim=1, keepdim=True)
    return raw / torch.where(peak < torch.finfo(torch.float32).tiny, torch.ones_like(peak), peak)
