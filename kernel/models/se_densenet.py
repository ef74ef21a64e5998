"""`se_densenet`: dense net of squeeze-and-excitation layers with eight heads (FAT2019, 44th place)."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Tagger, global_average, mean_time, pooled, zero_tail

STEM = 16  # maps after the stem: the input and 15 convolutions


class SEDenseLayer(nn.Module):
    """[B, i, M, T] -> [B, i + o, M, T]: the input, then `outputs` new maps, each scaled by its gate."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense_layers = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, inputs, 1, bias=False),
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
        self.se_layers = nn.Sequential(
            nn.Linear(outputs, outputs // 2, bias=False),
            nn.ReLU(),
            nn.Linear(outputs // 2, outputs, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        *before, convolution = self.dense_layers
        new = x
        for layer in before:
            new = layer(new)
        new = convolution(zero_tail(new, frames))
        return torch.cat([x, new * self.se_layers(global_average(new, frames))[:, :, None, None]], dim=1)


class SEDenseNet(Tagger):
    """Logits f32[B, K] of x f32[B, 1, M, T >= M]: the mean of eight linear heads.

    layers       each halves both axes, so M = 2 ** layers bins become one (256 in the original)
    growth       most maps a layer adds (a layer doubles its input up to there)
    full_length  our extension: the maps left along time are averaged before the heads, so any T >= M runs.
                 The published net takes 256 to 511 frames, where one is left and nothing changes.
    Source: simongrest/kaggle-freesound-audio-tagging-2019 network_structure.ipynb (layer list).
    """

    def __init__(self, classes: int, layers: int = 8, growth: int = 512, full_length: bool = False) -> None:
        super().__init__()
        self.bins = self.min_frames = 2 ** layers
        self.maskable = full_length
        if not full_length:
            self.fixed_frames = self.bins
            self.max_frames = 2 * self.bins - 1
        self.first_conv = nn.Conv2d(1, STEM - 1, 3, padding=1, bias=False)
        stack: list[nn.Module] = []
        width = STEM
        for _ in range(layers):
            stack += [SEDenseLayer(width, min(width, growth)), nn.MaxPool2d(2)]
            width += min(width, growth)
        self.se_dense_layers = nn.Sequential(*stack)
        self.linears = nn.ModuleList(nn.Linear(width, classes) for _ in range(8))

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        x = zero_tail(x, frames)
        x = torch.cat([x, self.first_conv(x)], dim=1)
        for layer in list(self.se_dense_layers)[::2]:
            x, frames = F.max_pool2d(layer(x, frames), 2), pooled(frames, 2)
        x = mean_time(x.squeeze(2), frames)
        return torch.stack([head(x) for head in self.linears]).mean(0)
