"""What a view does to one row's array, as values: where each pass begins, what is mirrored, masked or warped.

Owns `Cuts`, the one specification of a view's passes, and carrying it out on the host. The same values are
carried out on a device, for many rows at once, by `staging`. Knows no net.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..sound.source import Source
from . import distort


def pad_value(x: np.ndarray, fe: Source) -> float:
    """The number that a pad along time writes for this clip."""
    return float(x.min()) if fe.pad == "clip_min" else float(fe.pad)


def pad_time(x: np.ndarray, left: int, right: int, value: float) -> np.ndarray:
    """array[C, M, left + T + right], same dtype."""
    if left == right == 0:
        return x
    return np.pad(x, ((0, 0), (0, 0), (left, right)), constant_values=np.asarray(value).astype(x.dtype))


@dataclass(frozen=True, kw_only=True)
class Warps:
    """Zoom and perspective of passes (distort).

    zoom     how much every warped pass is enlarged
    corners  i64[P], the corner that stays, 0..3; -1 = this pass is left as it is
    moved    f64[P, 4], how far the corners' targets move outwards
    """

    zoom: float
    corners: np.ndarray
    moved: np.ndarray


def draw_warps(rngs: Sequence[np.random.Generator], zoom: float, most: float, chance: float) -> Warps:
    """Warps of one plain pass and passes at the four corners in turn, whose corners move at that chance."""
    moved = np.zeros((len(rngs), 4))
    for p, rng in enumerate(rngs[1:], 1):
        if rng.random() < chance:
            moved[p] = rng.uniform(-most, most, 4)
    corners = np.arange(-1, len(rngs) - 1) % 4
    corners[0] = -1
    return Warps(zoom=zoom, corners=corners, moved=moved)


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """The passes of a view over one row's array[C, M, T], in order.

    starts  i64[P], first frame of each pass; below 0 or beyond T - length: padded there
    length  frames of each pass
    flips   bool[P], passes that are mirrored in time; None = none
    masks   i64[P, 4], zeros in bins [0]..[1] and in frames [2]..[3] of the pass; None = none
    warps   None = none
    """

    starts: np.ndarray
    length: int
    flips: np.ndarray | None = None
    masks: np.ndarray | None = None
    warps: Warps | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def padded(self, frames: int) -> bool:
        """True where a pass reaches beyond an array of `frames` frames."""
        return bool(self.starts.min() < 0 or self.starts.max() + self.length > frames)

    def apply(self, x: np.ndarray, pad: float) -> list[np.ndarray]:
        """Each pass as array[C, M, length] of array[C, M, T], same dtype; `pad` fills what is not there."""
        parts = [self._cut(x, int(start), pad) for start in self.starts]
        if self.masks is not None:
            parts = [_mask(part, mask) for part, mask in zip(parts, self.masks, strict=True)]
        if self.warps is not None:
            parts = [self._warp(part, p, self.warps) for p, part in enumerate(parts)]
        if self.flips is not None:
            parts = [part[..., ::-1] if turn else part for part, turn in zip(parts, self.flips, strict=True)]
        return parts

    def _cut(self, x: np.ndarray, start: int, pad: float) -> np.ndarray:
        stop = start + self.length
        inside = x[..., max(0, start) : max(0, stop)]
        return pad_time(inside, min(self.length, max(0, -start)), min(self.length, max(0, stop - x.shape[2])),
                        pad)

    @staticmethod
    def _warp(part: np.ndarray, p: int, warps: Warps) -> np.ndarray:
        if warps.corners[p] < 0:
            return part
        return distort.distort(part, int(warps.corners[p]), warps.zoom, warps.moved[p])


def _mask(part: np.ndarray, mask: np.ndarray) -> np.ndarray:
    part = part.copy()
    part[:, mask[0] : mask[1]] = 0
    part[..., mask[2] : mask[3]] = 0
    return part
