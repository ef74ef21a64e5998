"""`resnet_backbone` and `resnet_max`: ResNet-18/34 under a global max pool (ex4sperans; OsciiArt)."""
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Tagger, bury_tail, global_max, pooled, zero_tail
from .hierarchical_cnn import linear_head

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # basic blocks per layer. Source: He et al. 2015, table 1


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions plus the input, and its lengths; a 1 x 1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor, frames: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        y, frames = F.relu(self.bn1(self.conv1(zero_tail(x, frames)))), pooled(frames, 3, self.stride, 1)
        y = self.bn2(self.conv2(zero_tail(y, frames)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x))), frames


class ResNetBody(Tagger):
    """Feature map f32[B, 8 x base, ~M/32, ~T/32] of x f32[B, C, M, T], without pool and head."""

    def __init__(self, channels: int = 3, depth: int = 34, base: int = 64) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth = {depth} must be one of {sorted(DEPTHS)}")
        self.channels = channels
        self.conv1 = nn.Conv2d(channels, base, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        before = base
        for layer, count in enumerate(DEPTHS[depth]):
            width = base << layer
            blocks = nn.ModuleList()
            for k in range(count):
                blocks.append(BasicBlock(before, width, 2 if layer and not k else 1))
                before = width
            self.add_module(f"layer{layer + 1}", blocks)

    def body(self, x: Tensor, frames: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(feature map, own lengths on it)."""
        x, frames = F.relu(self.bn1(self.conv1(zero_tail(x, frames)))), pooled(frames, 7, 2, 3)
        x, frames = F.max_pool2d(bury_tail(x, frames), 3, 2, padding=1), pooled(frames, 3, 2, 1)
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            for block in self.get_submodule(layer).children():
                x, frames = block(x, frames)
        return x, frames

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        return self.body(x, frames)[0]


class ResNetBackbone(Tagger):
    """Logits f32[B, K] of log-mel x f32[B, 1, M, T]: three channels, batch norm, ResNet, maximum, head.

    Head: batch norm, linear, batch norm, PReLU, dropout, linear.
    Source: ex4sperans/freesound-classification networks/classifiers.py (backbone variant).
    """

    def __init__(self, classes: int, depth: int = 18, base: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(3)
        self.backbone = ResNetBody(3, depth, base)
        self.output_transform = linear_head(8 * base, classes, dropout)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        return self.output_transform(
            global_max(*self.backbone.body(self.input_norm(x.expand(-1, 3, -1, -1)), frames))
        )


class ResNetMax(ResNetBody):
    """Logits f32[B, K] of x f32[B, C, M, T]: ResNet, global maximum, three linear layers.

    The original's second head (noisy labels) only served training and is left out.
    Source: OsciiArt/Freesound-Audio-Tagging-2019 src/models.py (FAT2019, 4th); the dropout is our choice.
    """

    def __init__(self, classes: int, channels: int = 1, depth: int = 34, base: int = 64, hidden: int = 1024,
                 dropout: float = 0.2) -> None:
        super().__init__(channels, depth, base)
        self.last_linear = mlp_head(8 * base, hidden, classes, dropout)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        return self.last_linear(global_max(*self.body(x, frames)))


def mlp_head(inputs: int, hidden: int, classes: int, dropout: float) -> nn.Sequential:
    """(Linear, ReLU, dropout) twice and linear: keys 0, 3 and 6."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, classes),
    )
