"""Random weights that behave like trained ones, so that an untrained ensemble can be timed.

Owns how a value is drawn from the name of its key, and the gain per family. The values are the same on every
machine, because numpy keeps the streams of RandomState frozen; folds of one member are alike. A bundle with
such weights says so: its manifest carries `random_weights`.
"""
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

GAIN = 1.4  # Of a family that is not named below.
# Logits spread about 1 and nothing saturates; gated and dense nets explode within 0.1 of these gains.
GAINS = {
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
EFFICIENTNET_GAIN = 1.35  # Of a timm model of that name.


def _values(key: str, shape: tuple[int, ...], siblings: set[str], gain: float) -> np.ndarray:
    """f64 values of one entry; its kind is told by its name, its shape and the entries beside it."""
    stem, _, leaf = key.rpartition(".")
    stream = np.random.RandomState(zlib.crc32(key.encode()))
    if leaf == "running_var":
        return stream.uniform(0.5, 1.5, shape)
    if len(shape) >= 2:  # Scaled by the fan-in; recurrent input matrices get no gain.
        return stream.standard_normal(shape) * (1.0 if "_l0" in leaf else gain) / np.sqrt(np.prod(shape[1:]))
    if leaf == "weight":
        is_norm = stem + ".bias" in siblings  # A norm has a bias beside it, a PReLU has none.
        return stream.uniform(0.8, 1.2, shape) if is_norm else stream.uniform(0.1, 0.4, shape)
    return stream.uniform(-0.1, 0.1, shape)


def draw_state(module: nn.Module, family: str, params: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A full state dict for `module`, f16, integers and empty entries as they are."""
    gain = EFFICIENTNET_GAIN if "efficientnet" in str(params.get("model", "")) else GAINS.get(family, GAIN)
    own = module.state_dict()
    drawn = {key: value.clone() for key, value in own.items()}
    for key, value in own.items():
        if value.is_floating_point() and value.numel():
            made = _values(key, tuple(value.shape), set(own), gain)
            drawn[key] = torch.as_tensor(made).reshape(value.shape).half()
    return drawn
