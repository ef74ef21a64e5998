"""Operations of a finish that move or repeat values and change none: channels, axes, folded pictures.

Owns their arithmetic and shapes; the table of all operations is `finish`.
"""
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import SpecError
from .operations import Operation, Shape


@dataclass(frozen=True, kw_only=True)
class Repeat(Operation):
    """The one channel as `channels` equal ones."""

    channels: int = 3

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.expand(-1, self.channels, -1, -1)

    def shape(self, c: int, m: int, t: int) -> Shape:
        if c != 1:
            raise SpecError(f"repeat: the input has {c} channels; only one can be repeated")
        return self.channels, m, t


@dataclass(frozen=True, kw_only=True)
class Squeeze(Operation):
    """[P, 1, M, t] -> [P, M, t]: for nets that read rows as channels (ex4sperans 1-D, qrfaction)."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0]

    def shape(self, c: int, m: int, t: int) -> Shape:
        if c != 1:
            raise SpecError(f"squeeze: the input has {c} channels; only one can be dropped")
        return c, m, t


@dataclass(frozen=True, kw_only=True)
class Flatten(Operation):
    """[P, C, M, t] -> [P, C M t]: for inputs without a picture (qrfaction's length)."""

    ragged: ClassVar[bool] = False

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)

    def shape(self, c: int, m: int, t: int) -> Shape:
        return c * m * t, 1, 1


@dataclass(frozen=True, kw_only=True)
class TimeFirst(Operation):
    """[P, C, M, t] -> [P, C, t, M]: for nets that read time before frequency (AST, BEATs, PANNs)."""

    ragged: ClassVar[bool] = False

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(2, 3).contiguous()

    def shape(self, c: int, m: int, t: int) -> Shape:
        return c, t, m


@dataclass(frozen=True, kw_only=True)
class Fold(Operation):
    """[P, C, M, t] -> [P, C, M t / frames, frames]: stretches of `frames` below each other (HTS-AT).

    Row M (t' // frames) + m, column t' % frames holds frame t' of row m.
    """

    ragged: ClassVar[bool] = False

    frames: int = 256

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        p, c, m, t = x.shape
        parts = x.reshape(p, c, m, t // self.frames, self.frames)
        return parts.transpose(2, 3).reshape(p, c, -1, self.frames)

    def shape(self, c: int, m: int, t: int) -> Shape:
        if self.frames < 1 or t % self.frames:
            raise SpecError(f"fold: {t} frames are no multiple of {self.frames}; give the front end a resize "
                            "or the view `frames` that are")
        return c, m * (t // self.frames), self.frames
