"""Finishes: what a net wants done to the view's output before it sees it (deltas per tile, /255, channel repeat, in-net mel).

Owns the table STEPS. Runs per clip, so nothing in here can leak from one clip into another.
Does not cut or pad along time (views) and stores nothing.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch

from . import spectra
from .errors import SpecError, did_you_mean
from .frontends import FrontEnd
from .spec import load


class Step(Protocol):
    """One step: `step(x f32[P, C, M, t]) -> f32[P, C', M', t']`; `frames(t)` gives t'."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...

    def frames(self, t: int) -> int: ...


class _SameLength:
    def frames(self, t: int) -> int:
        return t


@lru_cache(maxsize=16)
def _savgol(width: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """(taps f64[width] of the middle, edges f64[width, width]: row i = derivative at place i of the fit to `width` values)."""
    places = np.arange(width) - width // 2
    powers = places[:, None] ** np.arange(order + 1)
    fit = np.linalg.pinv(powers.astype(np.float64))
    slopes = np.zeros((width, order + 1))
    factorial = float(np.prod(np.arange(1, order + 1)))
    slopes[:, order] = factorial  # the order-th derivative of a polynomial of that order is constant
    edges = slopes @ fit
    return edges[width // 2], edges


def delta(x: torch.Tensor, width: int = 9, order: int = 1) -> torch.Tensor:
    """f32[..., t], Savitzky-Golay derivative along time, polynomial degree = order, ends from the fit to the outer `width` frames.

    Fewer than `width` frames: the end frames are repeated up to `width` first (librosa refuses such clips).
    Source: librosa 0.6.3 feature.delta, mode "interp".
    """
    t = x.shape[-1]
    if t < width:
        missing = width - t
        left = missing // 2
        grown = torch.cat([x[..., :1].expand(*x.shape[:-1], left), x, x[..., -1:].expand(*x.shape[:-1], missing - left)], -1)
        return delta(grown, width, order)[..., left : left + t]
    taps, _ = _savgol(width, order)
    half, inner = width // 2, t - width + 1
    middle = torch.zeros_like(x[..., :inner])
    for k in range(half):
        other = x[..., width - 1 - k : width - 1 - k + inner]
        pair = x[..., k : k + inner] - other if order % 2 else x[..., k : k + inner] + other
        middle.add_(pair, alpha=float(taps[k]))
    if order % 2 == 0:
        middle.add_(x[..., half : half + inner], alpha=float(taps[half]))
    # degree == order: the derivative is one constant per fit, so the ends repeat the outermost full fits
    return torch.cat([middle[..., :1].expand(*x.shape[:-1], half), middle, middle[..., -1:].expand(*x.shape[:-1], half)], -1)


@dataclass(frozen=True, kw_only=True)
class Delta(_SameLength):
    """Add the time derivatives of `orders` as further channels, each of this cut alone (argus)."""

    width: int = 9
    orders: tuple[int, ...] = (1, 2)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, *(delta(x, self.width, order) for order in self.orders)], dim=1)


@dataclass(frozen=True, kw_only=True)
class Scale(_SameLength):
    """Divide by a number: 100 (argus), 255 (images; twice for the double /255 of the PyTorch kernels)."""

    divide: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x / self.divide


STEPS: dict[str, type] = {"delta": Delta, "scale": Scale}


class Finish:
    """`finish(x f32[P, C, M, t]) -> f32[P, C', M', t']`: the steps one after the other; uint8 and f16 inputs become f32."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)

    @torch.inference_mode()
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        for step in self.steps:
            x = step(x)
        return x

    def frames(self, t: int) -> int:
        """Frames of the net's input for a cut of t frames."""
        for step in self.steps:
            t = step.frames(t)
        return t


def build(steps: Sequence[str | Mapping[str, Any]], fe: FrontEnd) -> Finish:
    """Finish of ["delta", {kind = "scale", divide = 100}]: a name, or a table with `kind` and that step's keys.

    Raises  SpecError naming the unknown step or key
    """
    made = []
    for i, step in enumerate(steps):
        own = {"kind": step} if isinstance(step, str) else dict(step)
        kind = own.pop("kind", None)
        if kind not in STEPS:
            raise SpecError(f"finish[{i}].kind: {kind!r} is unknown; {did_you_mean(str(kind), STEPS)}")
        made.append(load(STEPS[kind], own, f"finish[{i}]"))
    return Finish(made)
