"""`simple_cnn`: the plain 2-D CNN that most FAT2019 teams started from (mhiro2; M0 of the 9th place)."""
from torch import Tensor, nn

from .blocks import ConvBlock, Tagger, dense_head, mean_time, pooled


class SimpleCNN(Tagger):
    """Logits f32[B, K] of x f32[B, C, M >= 16, T >= 16].

    Four blocks of two 3 x 3 convolutions and average pool 2 (base, 2, 4, 8 x base), mean over time, then max
    over frequency, dense head.
    Source: mhiro2's Kaggle kernel "simple 2D CNN" (3 equal channels, dropout 0.2);
    suicao/Pytorch-Audio-Emotion-Recognition model_m0.py (one channel).
    """

    min_frames = 16

    def __init__(self, classes: int, channels: int = 3, base: int = 64, dropout: float = 0.2) -> None:
        super().__init__()
        self.channels = channels
        widths = [channels, base, 2 * base, 4 * base, 8 * base]
        self.conv = nn.ModuleList(ConvBlock(i, o) for i, o in zip(widths, widths[1:], strict=False))
        self.fc = dense_head(8 * base, 2 * base, classes, dropout)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        for block in self.conv:
            x, frames = block(x, frames), pooled(frames, 2)
        return self.fc(mean_time(x, frames).amax(-1))
