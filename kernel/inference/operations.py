"""Operations: what a net may want done to its cuts, each as a value with its keys.

Owns `Operation` and those that compute. Every operation works on each cut for itself, so nothing leaks from
one clip into another. On the host it gets the cuts of one clip, on a device a batch of many clips' cuts,
where each may end at a length of its own. Operations that only move values are `rearrange`; the table and
their order are `finish`. Does not cut along time (views).
"""
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import SpecError, did_you_mean
from ..sound.filter_banks import mel_bank
from ..sound.keras_mel import keras_mel, keras_mels
from .deltas import Lengths, delta, delta_of_many

Shape = tuple[int, int, int]


class Operation:
    """`operation(x f32[P, C, M, t])`: what is done to the cuts of one clip.

    ragged  False: the cuts of a batch must have one length
    """

    ragged: ClassVar[bool] = True

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def batch(self, x: torch.Tensor, lengths: Lengths | None) -> torch.Tensor:
        """The same for f32[B, C, M, t] cuts of many clips that end at lengths of their own (None = all at t).

        What stands beyond them, before and after, does not count. As it stands here: for operations in which
        no frame looks at another one.
        """
        return self(x)

    def shape(self, c: int, m: int, t: int) -> Shape:
        """What it makes of (C, M, t). Raises SpecError where it cannot."""
        return c, m, t


@dataclass(frozen=True, kw_only=True)
class Delta(Operation):
    """Append the time derivatives of `orders` as channels, of this cut alone (argus: per tile)."""

    width: int = 9
    orders: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if self.width < 3 or self.width % 2 == 0 or not all(1 <= order < self.width for order in self.orders):
            raise SpecError(f"delta: width {self.width} must be odd, from 3, and orders {list(self.orders)} "
                            "from 1 to below it")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, *(delta(x, self.width, order) for order in self.orders)], dim=1)

    def batch(self, x: torch.Tensor, lengths: Lengths | None) -> torch.Tensor:
        if lengths is None:
            return self(x)
        width = x.shape[-1]
        slopes = (delta_of_many(x, lengths, self.width, order)[..., :width] for order in self.orders)
        return torch.cat([x, *slopes], dim=1)

    def shape(self, c: int, m: int, t: int) -> Shape:
        return c * (1 + len(self.orders)), m, t


@dataclass(frozen=True, kw_only=True)
class Scale(Operation):
    """Divide by a number: 100 (argus), 255 (images; twice for the double /255 of the PyTorch kernels)."""

    divide: float

    def __post_init__(self) -> None:
        if self.divide == 0:
            raise SpecError("scale: divide = 0; give another number")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x / self.divide


@dataclass(frozen=True, kw_only=True)
class Normalise(Operation):
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
class Standardise(Operation):
    """(x - mean) / (std + eps) of each cut by its own numbers."""

    eps: float = 1e-6

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        std, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True, correction=0)
        return (x - mean) / (std + self.eps)

    def batch(self, x: torch.Tensor, lengths: Lengths | None) -> torch.Tensor:
        if lengths is None:
            return self(x)
        own = lengths.device[:, None, None, None]
        beyond = torch.arange(x.shape[-1], device=x.device) >= own
        count = own * (x.shape[1] * x.shape[2])
        mean = x.masked_fill(beyond, 0.0).sum((1, 2, 3), keepdim=True) / count
        x = x - mean
        std = (x.masked_fill(beyond, 0.0).square().sum((1, 2, 3), keepdim=True) / count).sqrt()
        return x / (std + self.eps)


@dataclass(frozen=True, kw_only=True)
class FrequencyMap(Operation):
    """Append a channel that rises from `low` at the lowest row to `high` at the highest (ex4sperans)."""

    low: float = -1.0
    high: float = 1.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.linspace(self.low, self.high, x.shape[2], device=x.device, dtype=x.dtype)[:, None]
        return torch.cat([x, rows.expand(len(x), 1, x.shape[2], x.shape[3])], dim=1)

    def shape(self, c: int, m: int, t: int) -> Shape:
        return c + 1, m, t


@dataclass(frozen=True, kw_only=True)
class Log(Operation):
    """ln(x + offset) of a linear spectrum."""

    offset: float = 1e-4

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.offset).log_()


@dataclass(frozen=True, kw_only=True)
class InNetMel(Operation):
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

    def _scaled(self, x: torch.Tensor) -> torch.Tensor:
        """The waves as the mel layer sees them, before its own zero padding."""
        if (self.wave_scale, self.wave_offset) == (1.0, 0.0):
            return x
        return x * self.wave_scale + self.wave_offset

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = self._scaled(x)
        fmax = self.fmax or self.rate / 2
        bank = mel_bank(self.rate, self.n_fft, self.mels, self.fmin, fmax, device=str(x.device))
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

    def batch(self, x: torch.Tensor, lengths: Lengths | None) -> torch.Tensor:
        fmax = self.fmax or self.rate / 2
        waves = self._scaled(x)[:, 0, 0]
        if lengths is not None and self.wave_offset:  # padding stays silent
            own = torch.arange(waves.shape[1], device=waves.device) < lengths.device[:, None]
            waves = waves.where(own, waves.new_zeros(()))
        return keras_mels(
            waves,
            None if lengths is None else lengths.device,
            n_fft=self.n_fft,
            hop=self.hop,
            bank=mel_bank(self.rate, self.n_fft, self.mels, self.fmin, fmax, device=str(x.device)),
            mel_power=self.mel_power,
            convolution=self.transform == "convolution",
        )[:, None]

    def shape(self, c: int, m: int, t: int) -> Shape:
        if (c, m) != (1, 1):
            raise SpecError(f"mel_in_net: wants a waveform [1, 1, S]; this has {c} channels, {m} rows")
        return 1, self.mels, -(-t // self.hop)
