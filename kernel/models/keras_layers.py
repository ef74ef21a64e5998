"""Keras layers in torch: what the nets published in Keras (statistics_cnn, mel_densenet) are made of.

Owns TensorFlow's "same" pools, Keras batch norm, Keras layer names, and the way from Keras arrays to torch
tensors. Does not read .h5 files: `training.checkpoints` does.
"""
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Tagger

Leaves = Iterable[tuple[str, np.ndarray]]  # (leaf of the torch key, values)


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


def torch_state(layers: Mapping[str, Sequence[np.ndarray]]) -> dict[str, Tensor]:
    """Torch state dict of a Keras net's arrays, under the names of a fresh Keras session.

    layers: Keras layer name -> its arrays in Keras order. A later model of one session has higher numbers, so
    layers are numbered anew by rank within their kind. Left out: layers of other kinds that hold arrays (the
    frozen mel layer) and batch norms of one channel (over the waveform, before it).
    Source: Keras 2.1 layers (kernels height, width, in, out; CuDNNGRU gates z, r, h; torch wants r, z, n).
    """
    state: dict[str, Tensor] = {}
    for kind, leaves_of in _LEAVES.items():
        found = {
            int(m[1] or 0): arrays
            for name, arrays in layers.items()
            if (m := re.fullmatch(rf"{kind}(?:_(\d+))?", name))
        }
        kept = [
            arrays
            for _, arrays in sorted(found.items())
            if not (kind == "batch_normalization" and np.size(arrays[0]) == 1)
        ]
        for rank, arrays in enumerate(kept, start=1):
            leaves = leaves_of([np.asarray(a, np.float32) for a in arrays])
            state |= {
                f"{kind}_{rank}.{leaf}": torch.from_numpy(np.ascontiguousarray(a)) for leaf, a in leaves
            }
    return state


def _convolution(arrays: list[np.ndarray]) -> Leaves:
    return zip(("weight", "bias"), [arrays[0].transpose(3, 2, 0, 1), *arrays[1:]], strict=False)


def _dense(arrays: list[np.ndarray]) -> Leaves:
    return zip(("weight", "bias"), [arrays[0].T, *arrays[1:]], strict=False)


def _batch_norm(arrays: list[np.ndarray]) -> Leaves:
    return zip(("weight", "bias", "running_mean", "running_var"), arrays, strict=True)


def _bidirectional(arrays: list[np.ndarray]) -> Leaves:
    def gates(rows: np.ndarray) -> np.ndarray:
        z, r, h = np.split(rows, 3)
        return np.concatenate([r, z, h])

    for suffix, (kernel, recurrent, bias) in (("", arrays[:3]), ("_reverse", arrays[3:])):
        yield f"weight_ih_l0{suffix}", gates(kernel.T)
        yield f"weight_hh_l0{suffix}", gates(recurrent.T)
        inner, outer = np.split(bias.reshape(-1), 2)
        yield f"bias_ih_l0{suffix}", gates(inner)
        yield f"bias_hh_l0{suffix}", gates(outer)


_LEAVES: dict[str, Callable[[list[np.ndarray]], Leaves]] = {  # Keras layer kinds that hold arrays
    "conv2d": _convolution,
    "dense": _dense,
    "batch_normalization": _batch_norm,
    "bidirectional": _bidirectional,
}
