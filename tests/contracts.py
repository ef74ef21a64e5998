"""Every contract and every golden front end under this project's names: four tables, nothing else.

MODELS     contract -> (family, parameters); the goldens' classes are passed to `kernel.models.build`
RENAME     contract -> {original key: our key}, where they differ
DROP       contract -> original keys that the authors' nets hold but never use
FRONTENDS  golden front end -> function of wave f32[S] that gives exactly the golden's shape and dtype
Models are called `model(x)`, x as in the golden plus a batch axis; the result is what the golden calls output.
"""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GOLDENS = Path(__file__).parent / "goldens"


def original_keys(contract: str) -> list[str]:
    """Keys of the authors' state dict, in their order."""
    return list(json.loads((GOLDENS / "state_dicts" / f"{contract}.json").read_text())["state_dict"])


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    # plain, attentive and dense 2-D CNNs
    "mhiro2_simple": ("simple_cnn", {"channels": 3}),
    "erc_m0": ("simple_cnn", {"channels": 1}),
    "argus_skip_k3": ("aux_skip_attention", {"aux": False, "kernel": 3, "hidden": 2, "dropout": 0.2}),
    "argus_skip_k7": ("aux_skip_attention", {"aux": False, "kernel": 7, "hidden": 2, "dropout": 0.2}),
    "argus_auxskip": ("aux_skip_attention", {}),
    "argus_rnnauxskip": ("aux_skip_attention", {"rnn": True}),
    "erc_m2": ("dense_pyramid", {"blocks": 4, "levels": 3}),
    "erc_m3": ("dense_pyramid", {"blocks": 5, "levels": 4}),
    "viel_m1": ("dense_pyramid", {"blocks": 4, "levels": 1, "pool_last": True, "hidden": 128}),
    "erc_dcase": ("scse_cnn", {}),
    # hierarchical CNNs, ResNets and raw waveform
    **{f"ex4_{dims}d_{aggregation}_b{base}x5": ("hierarchical_cnn", {"dims": dims, "aggregation": aggregation, "base": base})
       for dims in (1, 2) for aggregation in ("max", "rnn") for base in (50, 100)},
    "ex4_backbone_resnet18": ("resnet_backbone", {"depth": 18}),
    "ex4_backbone_resnet34": ("resnet_backbone", {"depth": 34}),
    "osciiart_resnet34": ("resnet_max", {"depth": 34}),
    "osciiart_envnetv2": ("envnet_v2", {}),
}

RENAME: dict[str, dict[str, str]] = {
    "viel_m1": {key: f"conv{int(key[5]) + 1}{key[6:]}" for key in original_keys("viel_m1") if key.startswith("conv.")},
}

DROP: dict[str, set[str]] = {
    "ex4_backbone_resnet18": {"backbone.last_linear.weight", "backbone.last_linear.bias"},
    "ex4_backbone_resnet34": {"backbone.last_linear.weight", "backbone.last_linear.bias"},
    "osciiart_resnet34": {key for key in original_keys("osciiart_resnet34") if key.startswith(("base_model.", "last_linear2."))},
    "osciiart_envnetv2": {key for key in original_keys("osciiart_envnetv2") if key.startswith("last_linear2.")},
}

FRONTENDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
