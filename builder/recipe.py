"""Random weights that behave: every value drawn from the name of its key, so that an ensemble can be timed untrained.

Owns the recipe and the gain per family. The values are the same on every machine, numpy keeps the streams of RandomState
frozen; folds of one member are alike. Does not pretend: the manifest carries `random_weights`.
"""
from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import nn

GAIN = 1.4  # of a family not named below
GAINS = {  # logits spread about 1 and nothing saturates; gated and dense nets explode within 0.1 of these
    "simple_cnn": 1.35, "aux_skip_attention": 1.65, "skip_attention": 1.65, "concat_mlp": 2.4, "fc_stacker": 2.4,
    "per_class_stacker": 1.0, "dense_se": 1.45, "timm": 0.95, "sed": 0.95, "resnet": 0.9,
}


def _values(key: str, shape: tuple[int, ...], siblings: set[str], gain: float) -> np.ndarray:
    """f64 values of one entry; its kind is told by its name, its shape and the entries beside it."""
    stem, _, leaf = key.rpartition(".")
    stream = np.random.RandomState(zlib.crc32(key.encode()))
    if leaf == "running_var":
        return stream.uniform(0.5, 1.5, shape)
    if len(shape) >= 2:  # fan-in scaling; recurrent input matrices without gain
        return stream.standard_normal(shape) * (1.0 if "_l0" in leaf else gain) / np.sqrt(np.prod(shape[1:]))
    if leaf == "weight":  # a norm has a bias beside it, a PReLU has none
        return stream.uniform(0.8, 1.2, shape) if stem + ".bias" in siblings else stream.uniform(0.1, 0.4, shape)
    return stream.uniform(-0.1, 0.1, shape)


def random_state(module: nn.Module, family: str) -> dict[str, torch.Tensor]:
    """A full state dict for `module`, f16, integers and empty entries as they are."""
    own = module.state_dict()
    gain = GAINS.get(family, GAIN)
    return {key: torch.as_tensor(_values(key, tuple(value.shape), set(own), gain)).reshape(value.shape).half()
            if value.is_floating_point() and value.numel() else value.clone() for key, value in own.items()}
