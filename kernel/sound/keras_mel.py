"""The mel spectrum that nets published in Keras compute inside themselves (the kapre 0.1 layer).

Owns its edge rule, its rounding and its decibels. `kernel.inference.finish` applies it to a cut of the wave;
front ends do not use it.
"""
from functools import lru_cache

import numpy as np
import torch

from .filter_banks import MelBank
from .scales import AMIN, decibels
from .spectra import hann, one_thread, spectrogram

VALUES_AT_ONCE = 1 << 24  # of the windowed frames of many waves, on a device


@lru_cache(maxsize=8)
def _dft_kernels(n_fft: int, device: str) -> torch.Tensor:
    """f32[2 (n_fft//2+1), 1, n_fft]: windowed cosines, then sines, rounded where kapre rounds them."""
    angles = 2 * np.pi / n_fft * np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft))
    kernels = np.concatenate([np.cos(angles), -np.sin(angles)]) * hann(n_fft).float().double().numpy()
    return torch.from_numpy(kernels.astype(np.float32))[:, None].to(device)


def keras_mel(
    wave: torch.Tensor, *, n_fft: int, hop: int, bank: MelBank, mel_power: float, convolution: bool
) -> torch.Tensor:
    """f32[mels, ceil(S / hop)] of a wave f32[S]: dB below its own peak, in [-80, 0].

    mel_power    2 = mel of power; 1 = its square ROOT (not a mel of magnitudes)
    convolution  True = the original's float32 DFT by convolution, rounding included (within 2e-5 dB of it);
                 False = FFT, nearer the true spectrum and about ten times faster, up to 4e-3 dB away in quiet
                 bins beside loud ones
    Source: kapre 0.1 `power_melgram` and `amplitude_to_decibel`.
    """
    device = str(wave.device)
    frames = -(-len(wave) // hop)  # TensorFlow's "same" rule, the odd zero at the end
    missing = max(0, (frames - 1) * hop + n_fft - len(wave))
    padded = torch.nn.functional.pad(wave, (missing // 2, missing - missing // 2))
    with one_thread():
        if convolution:
            kernels = _dft_kernels(n_fft, device)
            parts = torch.nn.functional.conv1d(padded[None, None], kernels, stride=hop)[0].square_()
            power = (parts[: n_fft // 2 + 1] + parts[n_fft // 2 + 1 :]).T.contiguous()
            mel = power.new_empty((len(power), bank.mels))
            bank(power, mel)
        else:
            mel = spectrogram(padded, hann(n_fft, device=device), hop, 2.0, bank)
    if mel_power == 1.0:
        mel.sqrt_()
    decibels(mel, None)
    return mel.sub_(mel.max()).clamp_(min=-80.0).T.contiguous()


def keras_mels(
    waves: torch.Tensor,
    lengths: torch.Tensor | None,
    *,
    n_fft: int,
    hop: int,
    bank: MelBank,
    mel_power: float,
    convolution: bool,
) -> torch.Tensor:
    """f32[B, mels, ceil(S / hop)]: `keras_mel` of each wave of f32[B, S], where they lie, some at a time.

    lengths  i64[B], own samples of each wave, None = S; frames beyond a wave's own are of no meaning
    """
    frames = -(-waves.shape[1] // hop)
    at_once = max(1, VALUES_AT_ONCE // (frames * n_fft))
    parts = []
    for first in range(0, len(waves), at_once):
        some = waves[first : first + at_once]
        own = None if lengths is None else lengths[first : first + at_once]
        power = _powers(_pad_same(some, own, n_fft, hop), n_fft, hop, convolution)
        mel = waves.new_empty((len(some) * frames, bank.mels))
        bank(power.reshape(-1, power.shape[-1]), mel)
        if mel_power == 1.0:
            mel.sqrt_()
        parts.append(_below_peak(mel.reshape(len(some), frames, -1), own, hop))
    return torch.cat(parts).transpose(1, 2).contiguous()


def _pad_same(waves: torch.Tensor, lengths: torch.Tensor | None, n_fft: int, hop: int) -> torch.Tensor:
    """f32[B, S'] waves under TensorFlow's "same" rule, each by its own length."""
    size = waves.shape[1]
    total = (-(-size // hop) - 1) * hop + n_fft
    if lengths is None:
        missing = max(0, total - size)
        return torch.nn.functional.pad(waves, (missing // 2, missing - missing // 2))
    own = lengths[:, None]
    lacking = (((own + hop - 1) // hop - 1) * hop + n_fft - own).clamp_(min=0)
    place = torch.arange(max(total, size), device=waves.device) - lacking // 2
    inside = (place >= 0) & (place < own)
    return torch.where(inside, waves.gather(1, place.clamp_(0, size - 1)), 0.0)


def _powers(padded: torch.Tensor, n_fft: int, hop: int, convolution: bool) -> torch.Tensor:
    """f32[B, T, n_fft//2+1] power of each frame."""
    if convolution:
        kernels = _dft_kernels(n_fft, str(padded.device))
        parts = torch.nn.functional.conv1d(padded[:, None], kernels, stride=hop).square_()
        half = n_fft // 2 + 1
        return (parts[:, :half] + parts[:, half:]).transpose(1, 2)
    window = hann(n_fft, device=str(padded.device)).to(padded.dtype)
    squares = torch.view_as_real(torch.fft.rfft(padded.unfold(1, n_fft, hop) * window)).square_()
    return squares[..., 0] + squares[..., 1]


def _below_peak(mel: torch.Tensor, lengths: torch.Tensor | None, hop: int) -> torch.Tensor:
    """f32[B, T, mels]: dB below each wave's own peak, in [-80, 0]."""
    decibel = mel.clamp_(min=AMIN).log10_().mul_(10.0)
    own = decibel
    if lengths is not None:
        frames = (lengths + hop - 1) // hop
        beyond = torch.arange(mel.shape[1], device=mel.device) >= frames[:, None]
        own = decibel.masked_fill(beyond[..., None], -torch.inf)
    return decibel.sub_(own.amax((1, 2), keepdim=True)).clamp_(min=-80.0)
