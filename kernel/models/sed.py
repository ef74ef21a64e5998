"""`sed`: any timm backbone under the frame-wise attention head of BirdCLEF winners (sound event detection).

Owns the attention head and what of it becomes a row's score. Like every timm net it cannot be masked.
"""
import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SpecError, did_you_mean
from .blocks import Tagger
from .timm_backbone import create, declare_widths, image_size

SCORES = ("clip", "frame_max", "mean", "frames", "clip_and_frames")


class AttentionHead(nn.Module):
    """(clip-wise f32[B, K], frame-wise f32[B, K, T]) probabilities of features f32[B, F, T].

    The clip-wise score is the frames' sigmoid weighted by a softmax over time of tanh scores, per class.
    Source: PANNs (Kong et al. 2020), as used in the BirdCLEF kernels ("AttBlockV2").
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.att = nn.Conv1d(features, classes, 1)
        self.cla = nn.Conv1d(features, classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # In float32 whatever came before: half precision would turn small scores into zeros
        weights = torch.softmax(torch.tanh(self.att(x).float()), dim=-1)
        frame_wise = torch.sigmoid(self.cla(x).float())
        return (weights * frame_wise).sum(-1), frame_wise


class SEDTagger(Tagger):
    """Probabilities f32[B, K] of x f32[B, in_chans, bins, T].

    model     a timm model name; in_chans its input channels; options as in family `timm`
    bins      mel bins: the batch norm at the input works per bin
    score     what a row gets: "clip" (attention-weighted mean), "frame_max" (the highest) or "mean" of both;
              "frames" gives f32[B, T', K], one score per frame of the backbone, for a member with `frames`;
              "clip_and_frames" f32[B, 1 + T', K], the clip score first, for one with `clips = 1` beside it
    dropout   before and after the hidden layer, training only
    """

    output = "probabilities"
    maskable = False
    backbone: Any  # a timm model, with its forward_features and num_features

    def __init__(
        self,
        classes: int,
        model: str,
        in_chans: int = 1,
        bins: int = 128,
        score: str = "clip",
        dropout: float = 0.5,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if score not in SCORES:
            raise SpecError(f"sed: score = {score!r}: {did_you_mean(score, SCORES)}")
        self.channels = in_chans
        self.bins = bins
        self.score = score
        make = functools.partial(
            create, model, {**(options or {}), "in_chans": in_chans, "num_classes": 0, "global_pool": ""}
        )
        self.bn0 = nn.BatchNorm2d(bins)
        self.backbone = make()
        if image_size(self.backbone):
            raise SpecError(
                f"sed: the head needs a feature map over time, {model} has none; choose a convolutional model"
            )
        features = int(self.backbone.num_features)
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(features, features)
        self.att_block = AttentionHead(features, classes)
        declare_widths(self, make)

    def clip_and_frames(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(clip-wise f32[B, K], frame-wise f32[B, K, T]), the latter repeated to the input's T."""
        clip, coarse = self._head(x)
        return clip, F.interpolate(coarse, size=x.shape[-1], mode="nearest")

    def _head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.bn0(x.transpose(1, 2)).transpose(1, 2)
        x = self.backbone.forward_features(x).mean(2)
        x = F.max_pool1d(x, 3, 1, 1) + F.avg_pool1d(x, 3, 1, 1)
        x = F.relu(self.fc1(self.dropout(x).transpose(1, 2))).transpose(1, 2)
        return self.att_block(self.dropout(x))

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        clip, coarse = self._head(x)
        if self.score == "frames":
            return coarse.transpose(1, 2)
        if self.score == "clip_and_frames":
            return torch.cat([clip[:, None], coarse.transpose(1, 2)], 1)
        if self.score == "clip":
            return clip
        highest = coarse.amax(-1)
        return highest if self.score == "frame_max" else (clip + highest) / 2
