"""Blocks shared by the families, and the rules that keep a padded tail out of every result.

Owns masking: `frames` is an int64[B] of own lengths in the columns of the tensor at hand, on the host, so
that layers where nothing is padded are left alone and none waits for a device; or None for "no padding", the
fast path that adds no operation (traced and exported graphs use it). A spatial convolution
reads `zero_tail(x, frames)`; a pool over time ignores the tail; recurrent nets are packed; `pooled` turns
lengths by the layer's own formula. Strided TF-"same" layers of odd size cannot be masked and have no block
here. Knows no family.

Batch statistics of a training step include a padded tail: train on equal lengths.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Tagger(nn.Module):
    """Base of all families: what a net declares about itself.

    output        "logits" or "probabilities"
    channels      input channels C of x f32[B, C, M, T]
    bins          input bins M, None = any
    min_frames    fewest frames that run; max_frames the most, None = no limit (samples for raw-wave nets)
    fixed_frames  the only width of the published system where others make no sense, None = any
    maskable      True: forward takes `frames` and rows do not depend on their batch
    """

    output: str = "logits"
    channels: int = 1
    bins: int | None = None
    min_frames: int = 1
    max_frames: int | None = None
    fixed_frames: int | None = None
    maskable: bool = True


def beyond(x: Tensor, frames: Tensor) -> Tensor:
    """bool[B, 1, ..., T], True at and beyond each row's own length.

    Layers of one width share it: it is kept with `frames`.
    """
    kept: dict[tuple[int, torch.device], Tensor] = frames.__dict__.setdefault("tails", {})
    key = (x.shape[-1], x.device)
    if key not in kept:
        own = frames.to(x.device, non_blocking=True)[:, None]
        kept[key] = torch.arange(x.shape[-1], device=x.device) >= own
    return kept[key].reshape(x.shape[0], *[1] * (x.dim() - 2), x.shape[-1])


def has_tail(x: Tensor, frames: Tensor | None) -> bool:
    """False where no row ends before the last column, as far as the host knows the lengths."""
    if frames is None:
        return False
    return frames.device.type != "cpu" or int(frames.min()) < x.shape[-1]


def zero_tail(x: Tensor, frames: Tensor | None) -> Tensor:
    """x with zeros beyond each row's own length: what a convolution's padding would be were the row alone."""
    return x.masked_fill(beyond(x, frames), 0.0) if frames is not None and has_tail(x, frames) else x


def bury_tail(x: Tensor, frames: Tensor | None) -> Tensor:
    """x with -inf beyond each row's own length, for max pools."""
    return x.masked_fill(beyond(x, frames), -torch.inf) if frames is not None and has_tail(x, frames) else x


def pooled(frames: Tensor | None, kernel: int, stride: int | None = None, padding: int = 0) -> Tensor | None:
    """Own lengths after a convolution or pool with floor rounding; stride None = kernel."""
    return None if frames is None else (frames + 2 * padding - kernel) // (stride or kernel) + 1


def mean_time(x: Tensor, frames: Tensor | None) -> Tensor:
    """Mean over the last axis, of a row's own columns only: [B, ..., T] -> [B, ...]."""
    if frames is None:
        return x.mean(-1)
    wide = torch.promote_types(x.dtype, torch.float32)  # a sum in half precision can pass 65504
    count = frames.to(x.device, wide, non_blocking=True).reshape(-1, *[1] * (x.dim() - 2))
    return (zero_tail(x, frames).sum(-1, dtype=wide) / count).to(x.dtype)


def max_time(x: Tensor, frames: Tensor | None) -> Tensor:
    """Maximum over the last axis, of a row's own columns only: [B, ..., T] -> [B, ...]."""
    return bury_tail(x, frames).amax(-1)


def global_average(x: Tensor, frames: Tensor | None) -> Tensor:
    """Mean over frequency and time: [B, C, M, T] -> [B, C]."""
    return x.mean((-2, -1)) if frames is None else mean_time(x.mean(-2), frames)


def global_max(x: Tensor, frames: Tensor | None) -> Tensor:
    """Maximum over frequency and time: [B, C, M, T] -> [B, C]."""
    return bury_tail(x, frames).amax((-2, -1))


def run_recurrent(rnn: nn.Module, x: Tensor, frames: Tensor | None) -> tuple[Tensor, Any]:
    """(outputs [B, T, H], final state) of a batch-first recurrent net; a row ends at its own length."""
    if frames is None:
        return rnn(x)
    packed = nn.utils.rnn.pack_padded_sequence(x, frames.cpu(), batch_first=True, enforce_sorted=False)
    outputs, state = rnn(packed)
    return nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])[0], state


def conv_bn_relu(inputs: int, outputs: int, bias: bool = True) -> nn.Sequential:
    """3 x 3 convolution, batch norm, ReLU; keys 0 and 1."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions, then average pool 2: [B, i, M, T] -> [B, o, M // 2, T // 2]."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.conv1 = conv_bn_relu(inputs, outputs, bias)
        self.conv2 = conv_bn_relu(outputs, outputs, bias)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        x = self.conv1(zero_tail(x, frames))
        x = self.conv2(zero_tail(x, frames))
        return F.avg_pool2d(x, 2)


def dense_head(inputs: int, hidden: int, classes: int, dropout: float) -> nn.Sequential:
    """Dropout, linear, PReLU, batch norm, half the dropout, linear: keys 1, 2, 3 and 5."""
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(inputs, hidden), nn.PReLU(), nn.BatchNorm1d(hidden),
                         nn.Dropout(dropout / 2), nn.Linear(hidden, classes))
