"""The derivative along time: of one cut at full width, or of many cuts that end at lengths of their own.

Owns the Savitzky-Golay taps, the rule at the ends, and `Lengths`. Does not know operations or nets.
"""
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Own lengths of the cuts in a padded batch.

    host    i64[B], what is decided by; never read back from a device
    device  the same where the batch lies, what is masked by
    """

    host: np.ndarray
    device: torch.Tensor

    def changed(self, host: np.ndarray) -> "Lengths":
        """Other lengths of the same cuts; these, where they are the same."""
        if np.array_equal(host, self.host):
            return self
        return Lengths(host=host, device=torch.from_numpy(host).to(self.device.device, non_blocking=True))


@lru_cache(maxsize=16)
def _derivative_taps(width: int, order: int) -> tuple[float, ...]:
    """Savitzky-Golay taps: the order-th derivative of a polynomial of that order fitted to `width` values."""
    places = np.arange(width, dtype=np.float64) - width // 2
    fit = np.linalg.pinv(places[:, None] ** np.arange(order + 1))
    return tuple(float(tap) * math.factorial(order) for tap in fit[order])


def delta(x: torch.Tensor, width: int = 9, order: int = 1) -> torch.Tensor:
    """f32[..., t], the Savitzky-Golay derivative along time, polynomial degree = order.

    The first and last width // 2 frames repeat the outermost full fit: its derivative is constant, which is
    what mode "interp" evaluates. With fewer than `width` frames the end frames are repeated up to `width`
    first (librosa refuses such clips).
    Source: librosa 0.6.3 feature.delta.
    """
    t = x.shape[-1]
    half = width // 2
    if t < width:
        left = (width - t) // 2
        index = torch.arange(width, device=x.device).sub_(left).clamp_(0, t - 1)
        return delta(x[..., index], width, order)[..., left : left + t]
    inner = t - width + 1
    out = torch.empty_like(x)
    middle = _slopes(x, width, order, out[..., half : half + inner])
    out[..., :half] = middle[..., :1]
    out[..., half + inner :] = middle[..., -1:]
    return out


def _slopes(x: torch.Tensor, width: int, order: int, out: torch.Tensor) -> torch.Tensor:
    """`out` f32[..., t - width + 1], filled with the derivative in the middle of each full window."""
    taps = _derivative_taps(width, order)
    half = width // 2
    inner = out.shape[-1]
    torch.mul(x[..., half : half + inner], taps[half], out=out)
    for k in range(half):  # taps are odd or even about the middle: one product serves two of them
        late = x[..., width - 1 - k : width - 1 - k + inner]
        pair = x[..., k : k + inner] - late if order % 2 else x[..., k : k + inner] + late
        out.add_(pair, alpha=taps[k])
    return out


def delta_of_many(x: torch.Tensor, lengths: Lengths, width: int = 9, order: int = 1) -> torch.Tensor:
    """f32[B, C, M, t]: `delta` of each cut of a padded batch, as if it ended at its own length."""
    half = width // 2
    own = lengths.device[:, None]
    left = torch.zeros_like(own)
    if int(lengths.host.min()) < width:  # their end frames are repeated first
        left = (width - own).clamp_(min=0) // 2
        source = torch.arange(max(x.shape[-1], width), device=x.device) - left
        x = take_frames(x, torch.minimum(source.clamp_(min=0), own - 1))
    middle = _slopes(x, width, order, x.new_empty((*x.shape[:-1], x.shape[-1] - width + 1)))
    place = torch.arange(x.shape[-1], device=x.device) + left - half
    last = own.clamp(min=width) - width
    return take_frames(middle, torch.minimum(place.clamp_(min=0), last))


def take_frames(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[B, C, M, n]: the frames index i64[B, n] of each cut."""
    return x.gather(3, index[:, None, None].expand(-1, *x.shape[1:3], -1))
