"""`scse_cnn`: 2 x 2 convolutions with spatial and channel squeeze-excitation (FAT2019's 7th place)."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Tagger

POOLS = ((1, 1), (4, 1), (1, 3), (4, 1), (1, 3))  # (frequency, time) after each block


def pool_both(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Sum of the max pool and the average pool of `size`."""
    return F.max_pool2d(x, size) + F.avg_pool2d(x, size)


class SpatialGate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.squeeze(x))


class ChannelGate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 4, 1)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv2(F.relu(self.conv1(x.mean((2, 3), keepdim=True)))))


class SCSE(nn.Module):
    """x times its spatial gate plus x times its channel gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.satt = SpatialGate(channels)
        self.catt = ChannelGate(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.satt(x) + x * self.catt(x)


class GrowingBlock(nn.Module):
    """Two 2 x 2 convolutions with padding 1 (each adds a row and a column), scSE, and the pool of `size`."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.conv1 = nn.Conv2d(inputs, outputs, 2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.scse = SCSE(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return pool_both(F.relu(self.scse(self.bn2(self.conv2(x)))), self.size)


class SCSECNN(Tagger):
    """Logits f32[B, K] of x f32[B, C, 128, T], T in 126..161 (published 128): the flattened maps fix the
    width.

    Five growing blocks (base to 16 x base), then [mean over time and maximum over frequency, pool (5, 8),
    pool (2, 4)] in one vector, batch norm, dropout, linear, PReLU, batch norm, half the dropout, linear. Full
    clips run through tiles. `frames` is ignored: all rows of a batch have the width of x.
    Source: hidehisaarai1213's Kaggle kernel "freesound-7th-place-solution";
    suicao/Pytorch-Audio-Emotion-Recognition model_dcase.py. Other widths give maps of another size.
    """

    bins = 128
    min_frames = 126
    max_frames = 161
    maskable = False

    def __init__(self, classes: int, channels: int = 1, base: int = 32, dropout: float = 0.4) -> None:
        super().__init__()
        self.channels = channels
        widths = [channels, *(base << k for k in range(5))]
        for k, size in enumerate(POOLS):
            self.add_module(f"conv{k + 1}", GrowingBlock(widths[k], widths[k + 1], size))
        joined = widths[-1] * (1 + 2 * 2 + 5 * 4)
        self.bn1 = nn.BatchNorm1d(joined)
        self.drop1 = nn.Dropout(dropout)
        self.fc1 = nn.Linear(joined, widths[-1])
        self.prelu = nn.PReLU()
        self.bn2 = nn.BatchNorm1d(widths[-1])
        self.drop2 = nn.Dropout(dropout / 2)
        self.fc2 = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        for k in range(len(POOLS)):
            x = self.get_submodule(f"conv{k + 1}")(x)
        parts = [x.mean(3).amax(2), pool_both(x, (5, 8)).flatten(1), pool_both(x, (2, 4)).flatten(1)]
        x = self.drop1(self.bn1(torch.cat(parts, 1)))
        return self.fc2(self.drop2(self.bn2(self.prelu(self.fc1(x)))))
