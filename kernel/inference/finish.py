"""Finishes: what a net wants done to its cuts before it sees them (deltas, /255, channel repeat, in-net mel).

Owns the table OPERATIONS. Every operation works on the cuts of one clip, so nothing leaks from one clip into
another. Does not cut or pad along time (views) and keeps nothing.
"""
import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import SpecError, did_you_mean
from ..sound.filter_banks import mel_bank
from ..sound.keras_mel import keras_mel
from ..sound.source import Source
from ..spec import load
from .rearrange import Flatten, Fold, Repeat, Shape, Squeeze, TimeFirst


class Operation(Protocol):
    """`operation(x f32[P, C, M, t])`; `shape` says what it makes of (C, M, t), SpecError where it cannot."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...

    def shape(self, c: int, m: int, t: int) -> Shape: ...


class _SameShape:
    def shape(self, c: int, m: int, t: int) -> Shape:
        return c, m, t


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
    taps = _derivative_taps(width, order)
    inner = t - width + 1
    out = torch.empty_like(x)
    middle = out[..., half : half + inner]
    torch.mul(x[..., half : half + inner], taps[half], out=middle)
    for k in range(half):  # taps are odd or even about the middle: one product serves two of them
        late = x[..., width - 1 - k : width - 1 - k + inner]
        pair = x[..., k : k + inner] - late if order % 2 else x[..., k : k + inner] + late
        middle.add_(pair, alpha=taps[k])
    out[..., :half] = middle[..., :1]
    out[..., half + inner :] = middle[..., -1:]
    return out


@dataclass(frozen=True, kw_only=True)
class Delta:
    """Append the time derivatives of `orders` as channels, of this cut alone (argus: per tile)."""

    width: int = 9
    orders: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if self.width < 3 or self.width % 2 == 0 or not all(1 <= order < self.width for order in self.orders):
            raise SpecError(f"delta: width {self.width} must be odd, from 3, and orders {list(self.orders)} "
                            "from 1 to below it")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, *(delta(x, self.width, order) for order in self.orders)], dim=1)

    def shape(self, c: int, m: int, t: int) -> Shape:
        return c * (1 + len(self.orders)), m, t


@dataclass(frozen=True, kw_only=True)
class Scale(_SameShape):
    """Divide by a number: 100 (argus), 255 (images; twice for the double /255 of the PyTorch kernels)."""

    divide: float

    def __post_init__(self) -> None:
        if self.divide == 0:
            raise SpecError("scale: divide = 0; give another number")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x / self.divide


@dataclass(frozen=True, kw_only=True)
class Normalise(_SameShape):
    """(x - mean) / std with numbers of the training set, one per channel or one for all (simongrest)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.std or min(self.std) <= 0:
            raise SpecError("normalise: give as many means as stds, every std above 0")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.new_tensor(self.mean)[:, None, None]) / x.new_tensor(self.std)[:, None, None]

    def shape(self, c: int, m: int, t: int) -> Shape:
        if len(self.mean) not in (1, c):
            raise SpecError(f"normalise: {len(self.mean)} means for {c} channels; give one, or one each")
        return c, m, t


@dataclass(frozen=True, kw_only=True)
class Imagenet(Normalise):
    """Normalise three channels in 0..1 with the ImageNet statistics (fastai, timm)."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Standardise(_SameShape):
    """(x - mean) / (std + eps) of each cut by its own numbers."""

    eps: float = 1e-6

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        std, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True, correction=0)
        return (x - mean) / (std + self.eps)


@dataclass(frozen=True, kw_only=True)
class FrequencyMap:
    """Append a channel that rises from `low` at the lowest row to `high` at the highest (ex4sperans)."""

    low: float = -1.0
    high: float = 1.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.linspace(self.low, self.high, x.shape[2], device=x.device)[:, None]
        return torch.cat([x, rows.expand(len(x), 1, x.shape[2], x.shape[3])], dim=1)

    def shape(self, c: int, m: int, t: int) -> Shape:
        return c + 1, m, t


@dataclass(frozen=True, kw_only=True)
class Log(_SameShape):
    """ln(x + offset) of a linear spectrum."""

    offset: float = 1e-4

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.offset).log_()


@dataclass(frozen=True, kw_only=True)
class InNetMel:
    """The mel layer inside the Keras nets: cuts of a waveform [P, 1, 1, S] become dB below their own peak.

    Gives [P, 1, mels, t'] with t' = ceil(S / hop) (TF "same" padding). mel_power 2 (qrfaction) or 1 = square
    root of the mel of power (Jeong). transform "fft", or "convolution" for the original's rounding at some
    ten times the cost. wave_scale and wave_offset are a batch norm over the waveform, before the mel layer; a
    checkpoint that holds one sets them for its net (Jeong).
    Source: qrfaction code/time_frequency.py (hop 512 at HEAD, 500 by its README); finejuly utils/model.py.
    """

    rate: int
    n_fft: int = 1024
    hop: int = 512
    mels: int = 64
    fmin: float = 0.0
    fmax: float | None = None
    mel_power: float = 2.0
    transform: str = "fft"
    wave_scale: float = 1.0
    wave_offset: float = 0.0

    def __post_init__(self) -> None:
        if min(self.rate, self.n_fft, self.hop, self.mels) < 1 or self.mel_power not in (1.0, 2.0):
            raise SpecError("mel_in_net: rate, n_fft, hop and mels must be positive, mel_power 1 or 2")
        if self.transform not in ("fft", "convolution"):
            choices = did_you_mean(self.transform, ("convolution", "fft"))
            raise SpecError(f"mel_in_net.transform: {self.transform!r} is unknown; {choices}")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        fmax = self.fmax or self.rate / 2
        bank = mel_bank(self.rate, self.n_fft, self.mels, self.fmin, fmax, device=str(x.device))
        if (self.wave_scale, self.wave_offset) != (1.0, 0.0):
            x = x * self.wave_scale + self.wave_offset  # Before the layer's own zero padding, as in the net.
        mels = [
            keras_mel(
                wave,
                n_fft=self.n_fft,
                hop=self.hop,
                bank=bank,
                mel_power=self.mel_power,
                convolution=self.transform == "convolution",
            )
            for wave in x[:, 0, 0]
        ]
        return torch.stack(mels)[:, None]

    def shape(self, c: int, m: int, t: int) -> Shape:
        if (c, m) != (1, 1):
            raise SpecError(f"mel_in_net: wants a waveform [1, 1, S]; this has {c} channels, {m} rows")
        return 1, self.mels, -(-t // self.hop)


OPERATIONS: dict[str, type[Operation]] = {
    "delta": Delta,
    "scale": Scale,
    "normalise": Normalise,
    "imagenet": Imagenet,
    "standardise": Standardise,
    "repeat": Repeat,
    "frequency_map": FrequencyMap,
    "log": Log,
    "mel_in_net": InNetMel,
    "squeeze": Squeeze,
    "flatten": Flatten,
    "time_first": TimeFirst,
    "fold": Fold,
}


class Finish:
    """`finish(x[P, C, M, t] of any stored dtype) -> f32[P, C', M', t']`: one operation after the other."""

    def __init__(self, operations: Sequence[Operation], fe: Source) -> None:
        self.operations = tuple(operations)
        self._rows = fe.channels, fe.bins

    def with_constants(self, constants: Mapping[int, Mapping[str, float]]) -> "Finish":
        """The same with keys of some operations set: index of the operation -> key -> value."""
        filled = copy(self)
        made: list[Any] = list(self.operations)
        filled.operations = tuple(replace(entry, **constants.get(i, {})) for i, entry in enumerate(made))
        return filled

    @torch.inference_mode()
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        for operation in self.operations:
            x = operation(x)
        return x

    def shape(self, frames: int) -> Shape:
        """(C', M', t') for a cut of `frames` frames; a flattened input counts as (values, 1, 1).

        Raises  SpecError when an operation does not fit the one before
        """
        shape = (*self._rows, frames)
        for operation in self.operations:
            shape = operation.shape(*shape)
        return shape

    def frames(self, t: int) -> int:
        """Frames of the net's input for a cut of t frames."""
        return self.shape(t)[1 if self.time_first else 2]

    @property
    def time_first(self) -> bool:
        """True where the net's input has time before frequency."""
        return sum(isinstance(operation, TimeFirst) for operation in self.operations) % 2 == 1


def build(wanted: Sequence[str | Mapping[str, object]], fe: Source) -> Finish:
    """Finish of ["delta", {kind = "scale", divide = 100}]: a name, or a table with `kind` and its keys.

    Raises  SpecError naming the unknown operation or key, or the operation that does not fit
    """
    operations: list[Operation] = []
    for i, entry in enumerate(wanted):
        if not isinstance(entry, (str, Mapping)):
            raise SpecError(f"finish[{i}]: {entry!r}; give a name, or a table with `kind` and its keys")
        own = {"kind": entry} if isinstance(entry, str) else dict(entry)
        kind = own.pop("kind", None)
        if not isinstance(kind, str) or kind not in OPERATIONS:
            raise SpecError(f"finish[{i}].kind: {kind!r} is unknown; {did_you_mean(str(kind), OPERATIONS)}")
        operations.append(load(OPERATIONS[str(kind)], own, f"finish[{i}]"))
    finish = Finish(operations, fe)
    finish.shape(fe.fixed or 1024)
    return finish
