"""`envnet_v2`: 1-D/2-D CNN on the raw waveform (Tokozume et al. 2018, as used by FAT2019's 4th place)."""
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Tagger, max_time, pooled
from .resnet import mlp_head

# name, maps, kernel (height, time), stride along time, pool after it (height, time) or None
LAYERS = (
    ("conv1", 32, (1, 64), 2, None), ("conv2", 64, (1, 16), 2, (1, 64)),
    ("conv3", 32, (8, 8), 1, None), ("conv4", 32, (8, 8), 1, (5, 3)),
    ("conv5", 64, (1, 4), 1, None), ("conv6", 64, (1, 4), 1, (1, 2)),
    ("conv7", 128, (1, 2), 1, None), ("conv8", 128, (1, 2), 1, (1, 2)),
    ("conv9", 256, (1, 2), 1, None), ("conv10", 256, (1, 2), 1, None),
)
HEIGHT = 10  # of the last map: 64 learned filters, 57 and 50 after conv3 and conv4, pooled by 5


class ConvLayer(nn.Module):
    """Convolution without padding, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int) -> None:
        super().__init__()
        self.conv_bn_relu = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, (1, stride), bias=False),
                                          nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_bn_relu(x)


class EnvNetV2(Tagger):
    """Logits f32[B, K] of a waveform x f32[B, 1, 1, S], S >= 20 570 samples; `frames` counts samples.

    Two convolutions along time make a 64-row map, which then is read as an image; maximum over time, three
    linear layers. Nothing is zero-padded, so a tail can only enter at the last maximum.
    Source: OsciiArt/Freesound-Audio-Tagging-2019 src/models.py; the dropout is our choice. The second head
    (noisy labels) only served training and is left out.
    """

    bins = 1
    min_frames = 20570

    def __init__(self, classes: int, width: float = 1.0, hidden: int = 1024, dropout: float = 0.2) -> None:
        super().__init__()
        before = 1
        for name, maps, kernel, stride, _ in LAYERS:
            # The map made by conv2 is the image of conv3, so its 64 rows are fixed
            after = maps if name == "conv2" else max(1, int(maps * width))
            self.add_module(name, ConvLayer(before, after, kernel, stride))
            before = 1 if name == "conv2" else after
        self.last_linear1 = mlp_head(before * HEIGHT, hidden, classes, dropout)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        for name, _, kernel, stride, pool in LAYERS:
            x, frames = self.get_submodule(name)(x), pooled(frames, kernel[1], stride)
            if pool is not None:
                x, frames = F.max_pool2d(x, pool), pooled(frames, pool[1])
            if name == "conv2":
                x = x.transpose(1, 2)  # [B, 64, 1, t] -> [B, 1, 64, t]
        return self.last_linear1(max_time(x, frames).flatten(1))
