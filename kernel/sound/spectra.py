"""Signal arithmetic behind the front ends and in-net spectra: trim, STFT, mel, dB, PCEN, chroma, statistics.

Owns every formula and its edge rules (filter weights: banks), all tested against librosa. "librosa 0.6.3
behaviour" means: STFT and RMS frames reflect at the clip's edges, PCEN starts from a zero state.
Does not know front ends, presets or stored dtypes.

A waveform is a 1-D float32 numpy array or torch tensor of at least one sample. Spectra are [T, bins] (time
first) in here, because a block of frames is then one contiguous matrix.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from . import filter_banks

# frames x n_fft per FFT block, so that buffers stay in cache (measured: 64 to 256 frames are alike)
BLOCK_SAMPLES = 1 << 18
FILTERS_PER_PART = 16  # mel bands start at multiples of this: full vector registers in the product
PART_COST = 1500  # what one more banded product costs, in multiply-adds per frame (measured)
# mean power of a frame / power summed in a mel cell, beyond which a float32 FFT may move it by 1e-3 dB
# (measured)
BLUR = 1e5
AMIN = 1e-10  # smallest power that counts, dB. Source: librosa power_to_db


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the block with one intra-op thread: MKL's products round differently on two. No-op where one is
    already set.

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


def reflect(wave: np.ndarray, before: int, after: int) -> np.ndarray:
    """f32[before + S + after]: the wave mirrored at both ends, again and again where it is shorter than the
    margin.

    One sample is repeated. librosa and torch refuse such clips; ours get this finite picture.
    """
    return np.pad(wave, (before, after), mode="reflect")


def trim_bounds(wave: np.ndarray, top_db: float = 60.0, frame: int = 2048, hop: int = 512) -> tuple[int, int]:
    """(start, stop) samples of the part whose RMS frames lie less than `top_db` dB below the loudest one.

    librosa 0.6.3 behaviour. An all-silent clip is kept whole: every frame then equals the loudest.
    Source: librosa 0.6.3 effects.trim (frame 2048, hop 512, reflect padding).
    """
    if frame % hop:
        raise ValueError(f"frame {frame} is no multiple of hop {hop}")
    padded = reflect(wave, frame // 2, frame // 2)
    blocks = len(padded) // hop
    energy = np.square(padded[: blocks * hop].reshape(blocks, hop)).sum(axis=1, dtype=np.float64)
    per_frame = frame // hop
    frames = blocks - per_frame + 1
    power = sum(energy[k : k + frames] for k in range(per_frame)) / frame
    level = np.log10(np.maximum(power, AMIN))
    loud = np.flatnonzero(10 * (level - level.max()) > -top_db)
    return int(loud[0]) * hop, min(len(wave), (int(loud[-1]) + 1) * hop)


def same_padding(samples: int, n_fft: int, hop: int) -> tuple[int, int]:
    """(before, after) zeros of TensorFlow's "same" rule: ceil(S / hop) frames, the odd sample at the end."""
    missing = max(0, (-(-samples // hop) - 1) * hop + n_fft - samples)
    return missing // 2, missing - missing // 2


def pad_wave(wave: np.ndarray, edges: str, n_fft: int, hop: int) -> np.ndarray:
    """f32[S'] whose full frames are the spectrogram's frames; edges "reflect", "zeros" (both centred) or
    "same".
    """
    if edges == "reflect":
        return reflect(wave, n_fft // 2, n_fft // 2)
    before, after = same_padding(len(wave), n_fft, hop) if edges == "same" else (n_fft // 2, n_fft // 2)
    return np.pad(wave, (before, after))


def count_frames(samples: int, edges: str, n_fft: int, hop: int) -> int:
    """Frames of a wave of `samples` samples under the edge rule."""
    return -(-samples // hop) if edges == "same" else 1 + (samples + 2 * (n_fft // 2) - n_fft) // hop


@lru_cache(maxsize=64)
def hann(n_fft: int, rounding: str = "exact", device: str = "cpu") -> torch.Tensor:
    """f64[n_fft], periodic Hann window.

    rounding "exact" = librosa's; "single" = torch.hann_window evaluated in float32, whose last-bit errors
    show in the quiet bins of loud frames (1e-3 of a natural log for ex4sperans' STFT).
    """
    kind = torch.float32 if rounding == "single" else torch.float64
    return torch.hann_window(n_fft, periodic=True, dtype=kind).double().to(device)


@dataclass(frozen=True)
class MelBank:
    """A mel filter bank as bands: a part is (first filter, last, low bin, high, weights [high - low, last -
    first]).

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
             device: str = "cpu") -> MelBank:
    """Slaney mel bank, area-normalised, cut into bands; every non-zero weight lies inside its band
    (checked).
    """
    dense = filter_banks.mel_weights(rate, n_fft, mels, fmin, fmax)
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
    """[(first filter, last, low bin, high)] that covers every non-zero weight at the least cost (shortest
    path over cuts).
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
    """f32[n_fft//2+1, 12] chroma weights at tuning 0. The tuning estimate costs more than a whole log-mel and
    is left out.
    """
    return torch.from_numpy(np.ascontiguousarray(filter_banks.chroma_weights(rate, n_fft, classes).T))


def power_blocks(padded: torch.Tensor, window: torch.Tensor, hop: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first frame, power [n, n_fft//2+1]) block by block; the buffer is reused, so use it before the
    next step.

    Computed in the dtype of `padded` (float32, or float64 for twice the time).
    """
    n_fft = len(window)
    frames = 1 + (len(padded) - n_fft) // hop
    block = min(frames, max(16, BLOCK_SAMPLES // n_fft)) if padded.device.type == "cpu" else frames
    cut = padded.as_strided((frames, n_fft), (hop, 1))
    window = window.to(padded.dtype)
    windowed = padded.new_empty((block, n_fft))
    power = padded.new_empty((block, n_fft // 2 + 1))
    for first in range(0, frames, block):
        n = min(block, frames - first)
        torch.mul(cut[first : first + n], window, out=windowed[:n])
        # rfft(out=) would copy: 10 % slower
        squares = torch.view_as_real(torch.fft.rfft(windowed[:n])).square_()
        torch.add(squares[..., 0], squares[..., 1], out=power[:n])
        yield first, power[:n]


def spectrogram(
    padded: torch.Tensor, window: torch.Tensor, hop: int, power: float, bank: MelBank | None = None
) -> torch.Tensor:
    """[T, bins] of a padded wave: power 2 = re^2 + im^2, power 1 = magnitude; through the mel bank when one
    is given.
    """
    frames = 1 + (len(padded) - len(window)) // hop
    out = padded.new_empty((frames, bank.mels if bank else len(window) // 2 + 1))
    for first, block in power_blocks(padded, window, hop):
        if power == 1.0:
            block.sqrt_()
        rows = out[first : first + len(block)]
        if bank is None:
            rows.copy_(block)
        else:
            bank(block, rows)
    return out


def sharpen(
    mel: torch.Tensor,
    padded: torch.Tensor,
    window: torch.Tensor,
    hop: int,
    bank: MelBank,
    top_db: float | None,
) -> None:
    """Recompute in float64 the frames of a float32 power mel [T, mels] where a quiet cell lies far below the
    frame's power.

    Rounding in a float32 FFT spreads over all bins: in a mel cell of few bins, some 75 dB below a loud tone,
    it shows as 1e-3 dB. Under 1 % of the frames of recordings are touched. Cells that dB clipping hides do
    not count. `bank` is the float64 bank.
    """
    floor = max(AMIN, 0.0 if top_db is None else float(mel.max()) * 10 ** (-top_db / 10))
    total = mel @ torch.where(bank.peaks > 0, 1 / bank.peaks, 0.0)  # about the sum of the power over all bins
    limit = BLUR * len(window)
    # loud enough for a cell at the floor: few
    rows = torch.nonzero(total > limit * floor / float(bank.peaks.max()))[:, 0]
    quietest = (mel[rows].clamp(min=floor) / bank.peaks).amin(dim=1)
    rows = rows[total[rows] > limit * quietest]
    cut = padded.as_strided((len(mel), len(window)), (hop, 1))
    for part in rows.split(max(16, BLOCK_SAMPLES // len(window))) if len(rows) else ():
        power = torch.view_as_real(torch.fft.rfft(cut[part].double() * window)).square_().sum(dim=-1)
        exact = power.new_empty((len(part), bank.mels))
        bank(power, exact)
        mel[part] = exact.to(mel.dtype)


def decibels(x: torch.Tensor, top_db: float | None = 80.0) -> torch.Tensor:
    """10 log10(max(x, 1e-10)) in place, dB re 1, not below the array's own maximum - `top_db`.

    Source: librosa 0.6.3 power_to_db, ref 1.
    """
    x.clamp_(min=AMIN).log10_().mul_(10.0)
    return x if top_db is None else x.clamp_(min=float(x.max()) - top_db)


def decibels_below_peak(x: torch.Tensor, floor_db: float = 80.0) -> torch.Tensor:
    """dB minus the array's own maximum, in [-floor_db, 0], in place. Source: kapre 0.1
    amplitude_to_decibel.
    """
    decibels(x, None)
    return x.sub_(x.max()).clamp_(min=-floor_db)


def pcen(
    power: np.ndarray,
    *,
    frames_per_second: float,
    gain: float = 0.6,
    bias: float = 0.1,
    exponent: float = 0.2,
    seconds: float = 0.4,
    eps: float = 1e-9,
) -> np.ndarray:
    """f32[M, T] per-channel energy normalisation of power f32[M, T], smoother started from zero (librosa
    0.6.3).

    (S (eps + M)^-gain + bias)^exponent - bias^exponent, written with log1p and expm1 so that float32 keeps
    its relative accuracy where S is near 0. Source: defaults from simongrest's submission notebook.
    """
    from scipy.signal import lfilter

    frames = seconds * frames_per_second
    b = (np.sqrt(1 + 4 * frames**2) - 1) / (2 * frames**2)
    smooth = torch.from_numpy(
        lfilter([np.float32(b)], [np.float32(1), np.float32(b - 1)], power, axis=-1).astype(np.float32)
    )
    agc = smooth.add_(eps).log_().mul_(-gain).exp_()
    out = (
        agc.mul_(torch.from_numpy(power)).mul_(1 / bias).log1p_().mul_(exponent).expm1_().mul_(bias**exponent)
    )
    return out.numpy()


def chroma(power: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """f32[T, 12] chroma of power f32[T, bins], every frame divided by its largest class; a silent frame stays
    0.
    """
    raw = power @ bank
    peak = raw.amax(dim=1, keepdim=True)
    return raw / torch.where(peak < torch.finfo(torch.float32).tiny, torch.ones_like(peak), peak)


def wave_statistics(wave: np.ndarray, steps: int = 128) -> np.ndarray:
    """f64[steps, 12] of overlapping steps: mean, std, range, percentiles 0 1 25 30 50 60 75 99 100.

    Step s covers [max(0, int(s w - w/2)), int(s w + 1.5 w)) with w = S / steps; a step without a sample
    (clips under about `steps` samples) takes its nearest one. Source: qrfaction code/utils.py.
    """
    width = len(wave) / steps
    shares = np.array([0, 1, 25, 30, 50, 60, 75, 99, 100]) / 100
    out = np.empty((steps, 12))
    for s in range(steps):
        start = min(max(0, int(s * width - width / 2)), len(wave) - 1)
        part = np.sort(wave[start : max(start + 1, int(s * width + 1.5 * width))]).astype(np.float64)
        place = shares * (len(part) - 1)
        below = place.astype(np.int64)
        above = np.minimum(below + 1, len(part) - 1)
        out[s, :3] = part.mean(), part.std(), part[-1] - part[0]
        out[s, 3:] = part[below] + (part[above] - part[below]) * (place - below)
    return out


@lru_cache(maxsize=8)
def dft_kernels(n_fft: int, device: str = "cpu") -> torch.Tensor:
    """f32[2 (n_fft//2+1), 1, n_fft]: windowed cosines, then sines, rounded where kapre rounds (window, then
    product).
    """
    angles = 2 * np.pi / n_fft * np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft))
    kernels = np.concatenate([np.cos(angles), -np.sin(angles)]) * hann(n_fft).float().double().numpy()
    return torch.from_numpy(kernels.astype(np.float32))[:, None].to(device)


def kapre_mel(
    wave: torch.Tensor, *, n_fft: int, hop: int, bank: MelBank, mel_power: float, convolution: bool
) -> torch.Tensor:
    """f32[mels, ceil(S / hop)] dB below the wave's own peak, in [-80, 0]: the mel layer inside the Keras
    nets.

    mel_power    2 = mel of power; 1 = its square ROOT (not a mel of magnitudes). Source: kapre 0.1
                 `power_melgram`
    convolution  True = the original's float32 DFT by convolution, rounding included (within 2e-5 dB of it);
                 False = FFT, nearer the true spectrum and about ten times faster, up to 4e-3 dB away in quiet
                 bins beside loud ones
    """
    padded = torch.nn.functional.pad(wave, same_padding(len(wave), n_fft, hop))
    with one_thread():
        if convolution:
            parts = torch.nn.functional.conv1d(
                padded[None, None], dft_kernels(n_fft, str(wave.device)), stride=hop
            )[0].square_()
            power = (parts[: n_fft // 2 + 1] + parts[n_fft // 2 + 1 :]).T.contiguous()
            mel = power.new_empty((len(power), bank.mels))
            bank(power, mel)
        else:
            mel = spectrogram(padded, hann(n_fft, device=str(wave.device)), hop, 2.0, bank)
    if mel_power == 1.0:
        mel.sqrt_()
    return decibels_below_peak(mel).T.contiguous()
