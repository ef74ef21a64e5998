"""`timm`: any timm model as a tagger, with its own linear head or fastai's concat-pool head.

Owns importing timm (only inside functions: it is optional) and what a timm model can be asked about itself.
timm nets cannot be masked: they run at exactly equal lengths or alone. Never downloads weights.
"""
import difflib
import functools
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpecError, did_you_mean
from ..own_files import mend_torchvision
from .blocks import Tagger, global_average, global_max

HEADS = ("linear", "concat")
PROBE_PIXELS = 320  # bins, and most frames, tried when looking for the narrowest input


@functools.cache
def import_timm() -> ModuleType:
    """The module timm, also where torchvision came without its compiled operators (own_files).

    Raises  SpecError when timm or torchvision is not installed
    """
    try:
        mend_torchvision()
        return importlib.import_module("timm")
    except ImportError as error:
        raise SpecError(
            f"families timm and sed need {error.name}, not installed here; pip install timm torchvision"
        ) from error


def create(model: str, options: Mapping[str, Any]) -> nn.Module:
    """The timm model called `model`, random weights; `options` go to `timm.create_model`.

    Raises  SpecError for an unknown name, with the nearest ones, or options the model refuses
    """
    timm = import_timm()
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=3)
        raise SpecError(f"timm has no model {model!r}; nearest: "
                        + (", ".join(near) or "run timm.list_models() for the names"))
    try:
        return timm.create_model(model, pretrained=False, **options)
    except AssertionError as error:  # timm's own checks of pool names and sizes
        raise SpecError(
            f"timm cannot build {model!r} with {dict(options)}: {error}; correct params"
        ) from error


def fewest_frames(make: Callable[[], nn.Module], channels: int) -> int:
    """Fewest frames (1 to PROBE_PIXELS) at which the net of `make` runs; tried on the meta device.

    Raises  SpecError when it runs at none
    """
    net = make().to("meta").eval()

    def runs(frames: int) -> bool:
        try:
            net(torch.zeros(1, channels, PROBE_PIXELS, frames, device="meta"))
        except RuntimeError:  # a pool or convolution that would give an empty map
            return False
        return True

    if runs(1):
        return 1
    low, high = 1, PROBE_PIXELS
    if not runs(high):
        raise SpecError(f"{type(net).__name__} does not run on {PROBE_PIXELS} x {PROBE_PIXELS}; "
                        "give params.options.img_size = [bins, frames]")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if runs(middle) else (middle, high)
    return high


def image_size(net: nn.Module) -> tuple[int, int] | None:
    """(bins, frames) of a net that takes one picture size only (transformers), or None."""
    patches = getattr(net, "patch_embed", None)
    size = getattr(patches, "img_size", None) if getattr(patches, "strict_img_size", False) else None
    return (int(size[0]), int(size[1])) if size else None


class FlattenedPools(nn.Module):
    """[maximum, average] over frequency and time, f32[B, 2 C]: fastai's order."""

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        return torch.cat([global_max(x, frames), global_average(x, frames)], dim=1)


def concat_head(
    maps: int, classes: int, hidden: int = 512, dropout: float = 0.5, bias: bool = True
) -> nn.Sequential:
    """fastai's head on pooled f32[B, 2 x maps]: keys 2 and 6 (batch norm), 4 and 8 (linear).

    bias  True in fastai v1, False in v2
    Source: create_head of fastai 1.0.61; dropouts dropout/2 and dropout.
    """
    return nn.Sequential(
        nn.Identity(),
        nn.Identity(),
        nn.BatchNorm1d(2 * maps),
        nn.Dropout(dropout / 2),
        nn.Linear(2 * maps, hidden, bias=bias),
        nn.ReLU(),
        nn.BatchNorm1d(hidden),
        nn.Dropout(dropout),
        nn.Linear(hidden, classes, bias=bias),
    )


class TimmTagger(Tagger):
    """Logits f32[B, K] of x f32[B, in_chans, M, T].

    model     a timm model name, such as "efficientnet_b0"
    in_chans  input channels
    pool      timm's global pool of the linear head: "avg", "max", "avgmax" or "catavgmax"
    head      "linear" (the model's own) or "concat" (fastai: maximum and average, `hidden` units, `bias`
              False in fastai v2)
    dropout   before the last linear layer, training only
    options   further arguments of timm.create_model, such as drop_path_rate or img_size
    """

    maskable = False
    backbone: Any  # a timm model, with its forward_features and num_features

    def __init__(
        self,
        classes: int,
        model: str,
        in_chans: int = 3,
        pool: str = "avg",
        head: str = "linear",
        hidden: int = 512,
        bias: bool = True,
        dropout: float = 0.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise SpecError(f"timm: head = {head!r}: {did_you_mean(head, HEADS)}")
        self.channels = in_chans
        own = {"in_chans": in_chans, "num_classes": classes, "global_pool": pool, "drop_rate": dropout}
        if head == "concat":
            own |= {"num_classes": 0, "global_pool": "", "drop_rate": 0.0}
        make = functools.partial(create, model, {**(options or {}), **own})
        self.backbone = make()
        self.concat_head: nn.Sequential | None = None
        if head == "concat":
            if image_size(self.backbone):
                raise SpecError(
                    f"timm: head = 'concat' needs a feature map and {model} has none; use head = 'linear'"
                )
            self.pools = FlattenedPools()
            self.concat_head = concat_head(int(self.backbone.num_features), classes, hidden, dropout, bias)
        declare_widths(self, make)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        if self.concat_head is None:
            return self.backbone(x)
        return self.concat_head(self.pools(self.backbone.forward_features(x)))


def declare_widths(tagger: Tagger, make: Callable[[], nn.Module]) -> None:
    """Sets bins and the frame limits of a net whose backbone is made by `make`."""
    size = image_size(tagger.get_submodule("backbone"))
    if size:
        tagger.bins, tagger.fixed_frames = size
        tagger.min_frames = tagger.max_frames = size[1]
    else:
        tagger.min_frames = fewest_frames(make, tagger.channels)
