"""Keras layers in torch: what the nets published in Keras (statistics_cnn, mel_densenet) are made of.

Owns TensorFlow's "same" pools, Keras batch norm and Keras layer names. The way from Keras arrays to torch
tensors is `keras_weights`.
"""
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Tagger


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Keras batch norm: epsilon 1e-3, and no batch counter in the state dict.

    Source: Keras BatchNormalization defaults; momentum 0.85 of qrfaction code/models.py (0.15 in torch's
    terms).
    """
    norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.15)
    norm.register_buffer("num_batches_tracked", None)
    return norm


class NumberedLayers(Tagger):
    """A net whose layers carry Keras names, numbered per kind as they are made: conv2d_1, conv2d_2, ..."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[str, int] = {}

    def add(self, kind: str, layer: nn.Module) -> str:
        """The name under which `layer` is now registered."""
        self._numbers[kind] = self._numbers.get(kind, 0) + 1
        name = f"{kind}_{self._numbers[kind]}"
        self.add_module(name, layer)
        return name

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in torch; the batch norms here have no batch counter, and torch is told not to ask for it."""
        state = OrderedDict(state_dict)
        versions = {name: {"version": 2} for name, _ in self.named_modules()}
        state._metadata = versions  # type: ignore[attr-defined]
        return super().load_state_dict(state, strict, assign)

    def run(self, name: str, x: Tensor) -> Tensor:
        """Output of the layer called `name`."""
        return self.get_submodule(name)(x)


def pad_same(x: Tensor, size: tuple[int, int], stride: tuple[int, int], value: float) -> Tensor:
    """x[B, C, H, W] padded as TensorFlow pads for "same", size >= stride.

    That makes ceil(n / stride) outputs; the odd one of the padding is at the end.
    """
    high, wide = ((-x.shape[axis] % s) + k - s for axis, k, s in zip((2, 3), size, stride, strict=True))
    return F.pad(x, [wide // 2, wide - wide // 2, high // 2, high - high // 2], value=value)


def max_pool_same(x: Tensor, size: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Keras MaxPooling2D(padding="same") of x[B, C, H, W]."""
    return F.max_pool2d(pad_same(x, size, stride, float("-inf")), size, stride)


def average_pool_same(x: Tensor, size: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Keras AveragePooling2D(padding="same") of x[B, C, H, W]: padding is left out of the divisor."""
    share = F.avg_pool2d(pad_same(torch.ones_like(x[:1, :1]), size, stride, 0.0), size, stride)
    return F.avg_pool2d(pad_same(x, size, stride, 0.0), size, stride) / share
