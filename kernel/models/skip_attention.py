"""`aux_skip_attention`: skip connections under CBAM attention (FAT2019's 1st place)."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import (
    ConvBlock,
    Tagger,
    dense_head,
    global_average,
    global_max,
    mean_time,
    pooled,
    run_recurrent,
    zero_tail,
)


class SkipBlock(nn.Module):
    """Average pool by `scale`, 3 x 3 convolution, batch norm, ReLU. Lengths: `pooled(frames, scale)`."""

    def __init__(self, inputs: int, outputs: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        if self.scale > 1:
            x, frames = F.avg_pool2d(x, self.scale), pooled(frames, self.scale)
        return F.relu(self.bn(self.conv(zero_tail(x, frames))))


class ChannelAttention(nn.Module):
    """Gate [B, C, 1, 1] = sigmoid(MLP(average) + MLP(maximum)), one MLP without biases."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // ratio, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // ratio, channels, 1, bias=False)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        both = [
            self.fc2(F.relu(self.fc1(pool(x, frames)[:, :, None, None])))
            for pool in (global_average, global_max)
        ]
        return torch.sigmoid(both[0] + both[1])


class SpatialAttention(nn.Module):
    """Gate [B, 1, M, T] = sigmoid(convolution of [channel mean, channel maximum])."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return torch.sigmoid(self.conv1(zero_tail(both, frames)))


class CBAM(nn.Module):
    """Convolutional block attention: x times the channel gate, then times the spatial gate."""

    def __init__(self, channels: int, ratio: int, kernel: int) -> None:
        super().__init__()
        self.ca = ChannelAttention(channels, ratio)
        self.sa = SpatialAttention(kernel)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        x = self.ca(x, frames) * x
        return self.sa(x, frames) * x


class AuxHead(nn.Module):
    """Logits [B, K] of one skip connection [B, C, M, T]: global average, dense head."""

    def __init__(self, inputs: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.fc = dense_head(inputs, hidden, classes, dropout)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        return self.fc(global_average(x, frames))


class Recurrence(nn.Module):
    """[B, T, C] -> [B, T, C]: bidirectional LSTM of C units a side, then a linear layer at every place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(channels, channels, bidirectional=True, batch_first=True)
        self.embedding = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        return self.embedding(run_recurrent(self.rnn, x, frames)[0])


class AuxSkipAttention(Tagger):
    """Logits f32[B, K] of x f32[B, C, M >= 16, T >= 16]; with `aux`, in training, (main, aux3, aux2, aux1).

    Trunk of four convolution blocks; blocks 1-3 reach block 4's map by skip blocks; the four maps are joined,
    gated by CBAM, merged and averaged. `aux`: a head on each skip. `rnn`: mean over frequency, LSTM and mean
    over time in place of the global average. Published loss weights: 1.0, 0.4, 0.2, 0.1.

    base     channels of the first block (64)
    ratio    CBAM's channel reduction; kernel: of its spatial gate (7 or 3)
    width    channels of every skip, in units of base (8)
    hidden   units of a head, in units of base (4; 2 in the nets without aux heads)
    Source: lRomul/argus-freesound src/models.
    """

    min_frames = 16

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        base: int = 64,
        dropout: float = 0.4,
        ratio: int = 16,
        kernel: int = 7,
        width: int = 8,
        hidden: int = 4,
        aux: bool = True,
        rnn: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.aux = aux
        out = width * base
        self.conv1 = ConvBlock(channels, base, bias=False)
        self.skip1 = SkipBlock(base, out, 8)
        self.conv2 = ConvBlock(base, 2 * base, bias=False)
        self.skip2 = SkipBlock(2 * base, out, 4)
        self.conv3 = ConvBlock(2 * base, 4 * base, bias=False)
        self.skip3 = SkipBlock(4 * base, out, 2)
        self.conv4 = ConvBlock(4 * base, 8 * base, bias=False)
        self.attention = CBAM(8 * base + 3 * out, ratio, kernel)
        self.merge = SkipBlock(8 * base + 3 * out, out, 1)
        self.fc = dense_head(out, hidden * base, classes, dropout)
        if aux:
            self.aux1, self.aux2, self.aux3 = (
                AuxHead(out, hidden * base, classes, dropout) for _ in range(3)
            )
        self.rnn = Recurrence(out) if rnn else None

    def maps(self, x: Tensor, frames: Tensor | None = None) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """(merged map, skip maps 1-3, own lengths on all of them)."""
        skips = []
        for conv, skip in ((self.conv1, self.skip1), (self.conv2, self.skip2), (self.conv3, self.skip3)):
            x, frames = conv(x, frames), pooled(frames, 2)
            skips.append(skip(x, frames))
        x, frames = self.conv4(x, frames), pooled(frames, 2)
        x = self.attention(torch.cat([x, *skips], 1), frames)
        return self.merge(x, frames), skips, frames

    def heads(self, x: Tensor, frames: Tensor | None = None) -> tuple[Tensor, ...]:
        """(main, aux3, aux2, aux1) logits in either mode; (main,) without aux heads."""
        x, skips, frames = self.maps(x, frames)
        main = self._main(x, frames)
        if not self.aux:
            return (main,)
        return main, self.aux3(skips[2], frames), self.aux2(skips[1], frames), self.aux1(skips[0], frames)

    def _main(self, x: Tensor, frames: Tensor | None) -> Tensor:
        if self.rnn is None:
            return self.fc(global_average(x, frames))
        along_time = self.rnn(x.mean(2).transpose(1, 2), frames)
        return self.fc(mean_time(along_time.transpose(1, 2), frames))

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        if self.training and self.aux:
            return self.heads(x, frames)
        x, _, frames = self.maps(x, frames)
        return self._main(x, frames)
