"""Random weights that behave: every value drawn from the name of its key, so that an ensemble can be timed
untrained.

Owns the recipe and the gain per family. The values are the same on every machine, numpy keeps the streams of
RandomState frozen; folds of one member are alike. Does not pretend: the manifest carries `random_weights`.
"""
from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

GAIN = 1.4  # of a family not named below
GAINS = {  # logits spread about 1 and nothing saturates; gated and dense nets explode within 0.1 of these
    "simple_cnn": 1.35,
    "aux_skip_attention": 1.65,
    "dense_pyramid": 1.25,
    "scse_cnn": 0.9,
    "hierarchical_cnn": 1.0,
    "resnet_backbone": 0.9,
    "resnet_max": 0.9,
    "envnet_v2": 1.4,
    "statistics_cnn": 1.3,
    "se_densenet": 1.45,
    "mel_densenet": 1.5,
    "resnet_concat": 0.9,
    "timm": 1.0,
    "sed": 1.0,
    "gated_mlp": 2.4,
    "per_class_stacker": 1.0,
}
EFFICIENTNET_GAIN = 1.35


def gain_of(family: str, params: Mapping[str, Any]) -> float:
    """Gain of a net: the family's, or the EfficientNets' for a timm model of that name."""
    return EFFICIENTNET_GAIN if "efficientnet" in str(params.get("model", "")) else GAINS.get(family, GAIN)


def _values(key: str, shape: tuple[int, ...], siblings: set[str], gain: float) -> np.ndarray:
    """f64 values of one entry; its kind is told by its name, its shape and the entries beside it."""
    stem, _, leaf = key.rpartition(".")
    stream = np.random.RandomState(zlib.crc32(key.encode()))
    if leaf == "running_var":
        return stream.uniform(0.5, 1.5, shape)
    if len(shape) >= 2:  # fan-in scaling; recurrent input matrices without gain
        return stream.standard_normal(shape) * (1.0 if "_l0" in leaf else gain) / np.sqrt(np.prod(shape[1:]))
    if leaf == "weight":  # a norm has a bias beside it, a PReLU has none
        return (
            stream.uniform(0.8, 1.2, shape) if stem + ".bias" in siblings else stream.uniform(0.1, 0.4, shape)
        )
    return stream.uniform(-0.1, 0.1, shape)


def random_state(module: nn.Module, gain: float) -> dict[str, torch.Tensor]:
    """A full state dict for `module`, f16, integers and empty entries as they are."""
    own = module.state_dict()
    return {key: torch.as_tensor(_values(key, tuple(value.shape), set(own), gain)).reshape(value.shape).half()
            if value.is_floating_point() and value.numel() else value.clone() for key, value in own.items()}
