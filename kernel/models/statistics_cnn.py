"""`statistics_cnn`: CNN on a log-mel picture, GRU over waveform statistics (FAT2019, 2nd place; Keras).

Owns the backbones "conv", "concat", "msc" and "se" variants, both pool orders, and the global branch.
It is a five-second family: its strided "same" pools of odd size put the padding where the width tells, so
padded frames cannot be masked. Source: qrfaction/1st-Freesound-Audio-Tagging-2019 code/models.py,
layer lists only.
"""
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SpecError, did_you_mean
from .keras_layers import NumberedLayers, average_pool_same, batch_norm, max_pool_same

BINS = 64
STATISTICS = 12  # per step: mean, std, range, nine percentiles
UNITS = 128  # GRU units per direction
FILTERS = (96, 128, 256, 512)
POOL_SIZES = (2, 2, 3)  # pool B of blocks 1-3, stride 2; block 4 has none
STEMS = {"single": (64, (3,)), "multi_scale": (96, (3, 5, 7))}  # maps, kernel sizes
POOLS = ("average_first", "max_first")


@dataclass(frozen=True, kw_only=True)
class Half:
    """Layer names of convolutions, batch norm, ReLU and, where there is one, squeeze-and-excitation."""

    convolutions: tuple[str, ...]
    norm: str
    squeeze: str | None = None
    excite: str | None = None


@dataclass(frozen=True, kw_only=True)
class Block:
    first: Half
    second: Half
    reduce: str | None  # 1x1 convolution over [first half, second half]
    pool: int | None


class StatisticsCNN(NumberedLayers):
    """Logits f32[B, K] of {"mel": [B, 1, 64, T], "statistics": [B, 128, 12], "length": [B, 1]}, all f32.

    mel         log-mel in dB relative to the clip's maximum, T = 431 frames of 5 s
    statistics  twelve figures of 128 stretches of the waveform; length = trimmed samples / 441,000
    stem        "single" (3x3, 64 maps) or "multi_scale" (3x3, 5x5 and 7x7, 32 maps each)
    excitation  squeeze-and-excitation after every ReLU; concat: each block joins its two halves by a 1x1
                convolution
    pool        "average_first": average along time, then maximum along mel (avemax1); "max_first": the other
                order (avemax3)
    width       factor on the blocks' filters
    """

    bins = BINS
    maskable = False

    def __init__(self, classes: int, stem: str = "single", excitation: bool = False, concat: bool = False,
                 pool: str = "average_first", width: float = 1.0) -> None:
        super().__init__()
        for key, value, choices in (("stem", stem, STEMS), ("pool", pool, POOLS)):
            if value not in choices:
                raise SpecError(f"statistics_cnn: {key} = {value!r}: {did_you_mean(str(value), choices)}")
        self.pool = pool
        self.batch_norm_statistics = self.add("batch_normalization", batch_norm(STATISTICS))
        self.recurrent = [
            self.add("bidirectional", nn.GRU(features, UNITS, batch_first=True, bidirectional=True))
            for features in (STATISTICS, UNITS)
        ]
        before, sizes = STEMS[stem]
        self.stem = self._half(1, before, sizes, excitation, bias=False)
        self.blocks = []
        for index, filters in enumerate(int(f * width) for f in FILTERS):
            first = self._half(before, filters, (3,), excitation)
            second = self._half(filters, filters, (3,), excitation)
            reduce = self.add("conv2d", nn.Conv2d(2 * filters, filters, 1)) if concat else None
            size = POOL_SIZES[index] if index < len(POOL_SIZES) else None
            self.blocks.append(Block(first=first, second=second, reduce=reduce, pool=size))
            before = filters
        self.head = self.add("dense", nn.Linear(2 * before + UNITS + 1, classes))

    def _half(
        self, before: int, maps: int, sizes: tuple[int, ...], excitation: bool, bias: bool = True
    ) -> Half:
        share = maps // len(sizes)
        convolutions = tuple(
            self.add("conv2d", nn.Conv2d(before, share, k, padding=k // 2, bias=bias)) for k in sizes
        )
        norm = self.add("batch_normalization", batch_norm(maps))
        if not excitation:
            return Half(convolutions=convolutions, norm=norm)
        squeeze = self.add("dense", nn.Linear(maps, maps // 4))
        return Half(
            convolutions=convolutions,
            norm=norm,
            squeeze=squeeze,
            excite=self.add("dense", nn.Linear(maps // 4, maps)),
        )

    def _apply_half(self, half: Half, x: Tensor) -> Tensor:
        maps = [self.run(name, x) for name in half.convolutions]
        x = F.relu(self.run(half.norm, torch.cat(maps, dim=1) if len(maps) > 1 else maps[0]))
        if half.squeeze and half.excite:
            gate = torch.sigmoid(self.run(half.excite, F.relu(self.run(half.squeeze, x.mean((2, 3))))))
            x = x * gate[:, :, None, None]
        return x

    def _apply_block(self, block: Block, x: Tensor) -> Tensor:
        half = self._apply_half(block.first, x)
        if block.pool:
            half = F.max_pool2d(half, 3, stride=1, padding=1)
        x = self._apply_half(block.second, half)
        if block.reduce:
            x = self.run(block.reduce, torch.cat([half, x], dim=1))
        if not block.pool:
            return x
        if self.pool == "average_first":
            return max_pool_same(average_pool_same(x, (block.pool, 1), (2, 1)), (1, block.pool), (1, 2))
        return average_pool_same(max_pool_same(x, (1, block.pool), (1, 2)), (block.pool, 1), (2, 1))

    def _picture(self, mel: Tensor) -> Tensor:
        x = self._apply_half(self.stem, mel.transpose(2, 3))  # Keras order: time, mel
        for block in self.blocks:
            x = self._apply_block(block, x)
        b, c, t, m = x.shape  # pixel shuffle: neighbouring mel positions become channels
        x = x.reshape(b, c, t, m // 2, 2).permute(0, 4, 1, 2, 3).reshape(b, 2 * c, t, m // 2)
        return x.amax(2).mean(2)

    def _waveform(self, statistics: Tensor) -> Tensor:
        x = self.run(self.batch_norm_statistics, statistics.transpose(1, 2)[..., None])
        x = x[..., 0].transpose(1, 2)
        for name in self.recurrent:
            x = self.get_submodule(name)(x)[0].unflatten(2, (2, UNITS)).sum(2)  # the two directions are added
        return x.amax(1)

    def example(self, frames: int) -> dict[str, Tensor]:
        """An input of one clip with `frames` mel frames, all zeros."""
        return {"mel": torch.zeros(1, 1, BINS, frames), "statistics": torch.zeros(1, 128, STATISTICS),
                "length": torch.zeros(1, 1)}

    def forward(self, x: Mapping[str, Tensor], frames: Tensor | None = None) -> Tensor:
        mel = x["mel"]
        parts = [
            self._picture(mel),
            self._waveform(x["statistics"].reshape(mel.shape[0], -1, STATISTICS)),
            x["length"].reshape(-1, 1),
        ]
        return self.run(self.head, torch.cat(parts, dim=1))
