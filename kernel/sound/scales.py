"""How a linear spectrum is scaled: decibels and PCEN, tested against librosa.

Owns the formulas and the smallest power that counts. The spectrum itself is `spectra`.
"""
import numpy as np
import torch

AMIN = 1e-10  # the smallest power that counts. Source: librosa power_to_db


def decibels(x: torch.Tensor, top_db: float | None = 80.0) -> torch.Tensor:
    """10 log10(max(x, 1e-10)) in place, dB re 1, not below the array's own maximum - `top_db`.

    Source: librosa 0.6.3 power_to_db, ref 1.
    """
    x.clamp_(min=AMIN).log10_().mul_(10.0)
    return x if top_db is None else x.clamp_(min=float(x.max()) - top_db)


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
    """f32[M, T] per-channel energy normalisation of power f32[M, T], its smoother started from zero.

    (S (eps + M)^-gain + bias)^exponent - bias^exponent, written with log1p and expm1 so that float32 keeps
    its relative accuracy where S is near 0.
    Source: librosa 0.6.3 pcen; the defaults are those of simongrest's submission notebook.
    """
    from scipy.signal import lfilter

    frames = seconds * frames_per_second
    b = (np.sqrt(1 + 4 * frames**2) - 1) / (2 * frames**2)
    smooth = lfilter([np.float32(b)], [np.float32(1), np.float32(b - 1)], power, axis=-1).astype(np.float32)
    agc = torch.from_numpy(smooth).add_(eps).log_().mul_(-gain).exp_()
    out = agc.mul_(torch.from_numpy(power)).mul_(1 / bias).log1p_().mul_(exponent).expm1_()
    return out.mul_(bias**exponent).numpy()
