"""How a linear spectrum is scaled: decibels and PCEN, tested against librosa.

Owns the formulas and the smallest power that counts. The spectrum itself is `spectra`.
"""
import math
from typing import Literal

import numpy as np
import torch

AMIN = 1e-10  # the smallest power that counts. Source: librosa power_to_db


def decibels(x: torch.Tensor, top_db: float | None = 80.0, *, amin: float = AMIN,
             ref: float | Literal["max"] = 1.0, factor: float = 10.0) -> torch.Tensor:
    """factor log10(max(x, amin) / ref) in place, not below the array's own maximum - `top_db`.

    ref     0 dB, itself at least amin; "max" = the array's largest value
    factor  10 for power, 20 for magnitudes

    Source: librosa 0.6.3 power_to_db; torchaudio AmplitudeToDB per item.
    """
    zero = float(x.max()) if ref == "max" else ref
    x.clamp_(min=amin).log10_().mul_(factor)
    if zero != 1.0:
        x.sub_(factor * math.log10(max(amin, zero)))
    return x if top_db is None else x.clamp_(min=float(x.max()) - top_db)


def natural_log(x: torch.Tensor, offset: float, floor: float) -> torch.Tensor:
    """ln(max(x + offset, floor)) in place; floor 0 = none."""
    x.add_(offset)
    return (x.clamp_(min=floor) if floor else x).log_()


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
