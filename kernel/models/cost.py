"""What a net costs: multiply-adds, peak activation bytes, parameters.

Owns `measure`. Counts on the meta device, so no memory is used and no time is measured; seconds come from a
rehearsal. Scratch memory inside an operation (convolution workspaces) is not counted.
"""
import copy
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..spec import Cost

WIDTH_FRAMES = 256  # a multiple of every family's stride, so that floor rounding does not bend the line


class _Live(TorchDispatchMode):
    """Bytes of tensors alive at once; `peak` is the most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def _count(self, value: Any) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            self._count(value)
        return out


def _forward(module: nn.Module, x: Any) -> tuple[float, float]:
    """(GMAC, peak bytes) of one forward."""
    flops = FlopCounterMode(display=False)
    live = _Live()
    for value in tree_leaves(x):
        live._count(value)
    with torch.no_grad(), flops, live:
        module(x)
    return flops.get_total_flops() / 2e9, float(live.peak)


def measure(module: nn.Module, bins: int, channels: int) -> Cost:
    """Cost of one forward of one clip (batch 1, float32), linear in frames: a + b x frames.

    Taken at two widths, at the smallest and largest where the net is bounded, at one (b = 0) where it is
    fixed. A net with several inputs or without a time axis declares `example(frames) -> input`.
    """
    net = copy.deepcopy(module).to("meta").eval()
    least = int(getattr(module, "min_frames", 1))
    most = getattr(module, "max_frames", None)
    fixed = getattr(module, "fixed_frames", None)
    width = -(-4 * least // WIDTH_FRAMES) * WIDTH_FRAMES
    widths = [width, 2 * width]
    if fixed:
        widths = [fixed]
    elif most is not None and most < 2 * width:
        widths = [least, most]
    example: Any = getattr(module, "example", None)
    points = []
    for frames in widths:
        x = example(frames) if example else torch.zeros(1, channels, bins, frames, device="meta")
        x = {k: v.to("meta") for k, v in x.items()} if isinstance(x, dict) else x.to("meta")
        points.append(_forward(net, x))
    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    gmac, size = points[0]
    gmac_2, size_2 = points[-1]
    wider = widths[-1] - widths[0] or 1
    gmac_b = (gmac_2 - gmac) / wider
    bytes_b = (size_2 - size) / wider
    return Cost(
        gmac_a=gmac - gmac_b * widths[0],
        gmac_b=gmac_b,
        bytes_a=size - bytes_b * widths[0],
        bytes_b=bytes_b,
        parameters=parameters,
    )
