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
}

RENAME: dict[str, dict[str, str]] = {}

DROP: dict[str, set[str]] = {}

FRONTENDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
