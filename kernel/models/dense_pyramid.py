"""`dense_pyramid`: dense blocks under pyramid pooling (M1 to M3 of FAT2019's 9th place and ERC2019)."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Tagger, conv_bn_relu, global_average, global_max, pooled, zero_tail


class DenseBlock(nn.Module):
    """y1 = conv(x), y2 = conv(x joined with y1): [B, i, M, T] -> [B, o, M, T]; lengths stay."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv_bn_relu(inputs, outputs)
        self.conv2 = conv_bn_relu(inputs + outputs, outputs)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        x = zero_tail(x, frames)
        return self.conv2(torch.cat([x, zero_tail(self.conv1(x), frames)], 1))


class DensePyramid(Tagger):
    """Logits f32[B, K] of x f32[B, C, M, T], M and T >= 2 to the power of the number of pools.

    Dense blocks of base, 2, 4, ... x base maps, each followed by average pool 2 (the last one only if
    `pool_last`); global average and maximum of the last `levels` blocks, earlier block first; batch norm,
    linear, PReLU, batch norm, linear.

    M1: blocks 4, levels 1, pool_last, hidden 128. M2: blocks 4, levels 3, hidden 256. M3: blocks 5, levels 4,
    hidden 256.
    Source: TheoViel/kaggle_freesound modeling-kernel.ipynb; suicao/Pytorch-Audio-Emotion-Recognition
    model_m1.py.
    """

    def __init__(self, classes: int, channels: int = 1, base: int = 64, blocks: int = 4, levels: int = 3,
                 pool_last: bool = False, hidden: int = 256) -> None:
        super().__init__()
        if not 1 <= levels <= blocks:
            raise ValueError(f"levels = {levels} must be in 1..blocks = {blocks}")
        self.channels = channels
        self.blocks = blocks
        self.levels = levels
        self.pools = blocks if pool_last else blocks - 1
        self.min_frames = 2 ** self.pools
        widths = [channels, *(base << k for k in range(blocks))]
        for k in range(blocks):
            self.add_module(f"conv{k + 1}", DenseBlock(widths[k], widths[k + 1]))
        joined = 2 * sum(widths[-levels:])
        self.fc = nn.Sequential(
            nn.BatchNorm1d(joined),
            nn.Linear(joined, hidden),
            nn.PReLU(),
            nn.BatchNorm1d(hidden),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        pyramid = []
        for k in range(self.blocks):
            x = self.get_submodule(f"conv{k + 1}")(x, frames)
            if k < self.pools:
                x, frames = F.avg_pool2d(x, 2), pooled(frames, 2)
            if k >= self.blocks - self.levels:
                pyramid += [global_average(x, frames), global_max(x, frames)]
        return self.fc(torch.cat(pyramid, 1))
