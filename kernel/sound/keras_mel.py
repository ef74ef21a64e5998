"""The mel spectrum that nets published in Keras compute inside themselves (the kapre 0.1 layer).

Owns its edge rule, its rounding and its decibels. `kernel.inference.finish` applies it to a cut of the wave;
front ends do not use it.
"""
from functools import lru_cache

import numpy as np
import torch

from .filter_banks import MelBank
from .scales import decibels
from .spectra import hann, one_thread, spectrogram


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
