"""`mel_densenet`: full-length dense net of squeeze-and-excitation modules (DCASE 2018 task 2, 1st place)."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import bury_tail, global_average, mean_time, pooled, zero_tail
from .keras_layers import NumberedLayers, batch_norm

STEM = 16  # maps after the stem: the mel picture and 15 convolutions
MODULES = 8
HEADS = 8


@dataclass(frozen=True, kw_only=True)
class DenseModule:
    """Layer names: batch norm, 1 x 1, batch norm, 3 x 3 convolution, and the two dense layers of the gate."""

    norm_in: str
    narrow: str
    norm: str
    convolution: str
    squeeze: str
    excite: str


class MelDenseNet(NumberedLayers):
    """Probabilities f32[B, K] of x f32[B, 1, M, T] in dB: the mean of eight softmax heads.

    bins    mel bins, each with its own batch norm
    growth  most maps a module adds (a module doubles its input up to there)
    The published net starts with a batch norm over the waveform and an in-net mel spectrum; both belong to
    the front end.
    Source: finejuly/dcase2018_task2_cochlearai utils/model.py (commented mel variant; layer list).
    """

    output = "probabilities"

    def __init__(self, classes: int, bins: int = 64, growth: int = 512) -> None:
        super().__init__()
        self.bins = bins
        self.norm_mel = self.add("batch_normalization", batch_norm(bins))
        self.stem = self.add("conv2d", nn.Conv2d(1, STEM - 1, 3, padding=1))
        self.modules_in_order = []
        width = STEM
        for _ in range(MODULES):
            self.modules_in_order.append(self._module(width, min(width, growth)))
            width += min(width, growth)
        self.norm_out = self.add("batch_normalization", batch_norm(width))
        self.heads = [self.add("dense", nn.Linear(width, classes)) for _ in range(HEADS)]

    def _module(self, inputs: int, outputs: int) -> DenseModule:
        return DenseModule(
            norm_in=self.add("batch_normalization", batch_norm(inputs)),
            narrow=self.add("conv2d", nn.Conv2d(inputs, outputs, 1)),
            norm=self.add("batch_normalization", batch_norm(outputs)),
            convolution=self.add("conv2d", nn.Conv2d(outputs, outputs, 3, padding=1)),
            squeeze=self.add("dense", nn.Linear(outputs, outputs // 2)),
            excite=self.add("dense", nn.Linear(outputs // 2, outputs)),
        )

    def _apply_module(self, names: DenseModule, x: Tensor, frames: Tensor | None) -> Tensor:
        new = self.run(names.narrow, F.relu(self.run(names.norm_in, x)))
        new = self.run(names.convolution, zero_tail(F.relu(self.run(names.norm, new)), frames))
        gate = F.relu(self.run(names.squeeze, global_average(new, frames)))
        gate = torch.sigmoid(self.run(names.excite, gate))[:, :, None, None]
        return torch.cat([new * gate, x], dim=1)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        x = zero_tail(self.run(self.norm_mel, x.transpose(1, 2)).transpose(1, 2), frames)
        x = torch.cat([x, self.run(self.stem, x)], dim=1)
        for names in self.modules_in_order:
            x = bury_tail(self._apply_module(names, x, frames), frames)
            frames = None if frames is None else pooled(frames + frames % 2, 2)  # "same": sizes round up
            x = zero_tail(F.max_pool2d(x, 2, ceil_mode=True), frames)
        x = F.relu(self.run(self.norm_out, x))
        # A head is linear, so averaging before it is averaging its positions
        x = mean_time(x.mean(2), frames)
        # In half precision small scores would become zeros
        return torch.stack([self.run(head, x).float().softmax(1) for head in self.heads]).mean(0)
