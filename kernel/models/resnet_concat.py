"""`resnet_concat`: ResNet-18/34 under fastai's concat-pool head (filipmu, FAT2019 top 20 %)."""
from torch import Tensor

from .resnet import ResNetBody
from .timm_backbone import FlattenedPools, concat_head

ORIGINAL_KEYS = (  # fastai: 0 = the body's children by number, 1 = the head
    (r"0\.0\.(.+)", r"conv1.\1"),
    (r"0\.1\.(.+)", r"bn1.\1"),
    (r"0\.4\.(.+)", r"layer1.\1"),
    (r"0\.5\.(.+)", r"layer2.\1"),
    (r"0\.6\.(.+)", r"layer3.\1"),
    (r"0\.7\.(.+)", r"layer4.\1"),
    (r"1\.(.+)", r"head.\1"),
)


class ResNetConcat(ResNetBody):
    """Logits f32[B, K] of x f32[B, C, M, T], full length: ResNet, global [maximum, average], `concat_head`.

    bias  of the head's linear layers: True in fastai v1, False in v2
    Source: filipmu/Kaggle-freesound-audio-tagging-2019, training notebook (fastai v1 cnn_learner; dropout
    0.25 and 0.5).
    """

    def __init__(self, classes: int, channels: int = 3, depth: int = 34, base: int = 64, hidden: int = 512,
                 dropout: float = 0.5, bias: bool = True) -> None:
        super().__init__(channels, depth, base)
        self.pools = FlattenedPools()
        self.head = concat_head(8 * base, classes, hidden, dropout, bias)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        return self.head(self.pools(*self.body(x, frames)))
