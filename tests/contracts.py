"""Every contract and every golden front end under this project's names: four tables, nothing else.

MODELS     contract -> (family, parameters); the goldens' classes are passed to `kernel.models.build`
RENAME     contract -> {original key: our key}, where they differ
DROP       contract -> original keys that the authors' nets hold but never use
FRONTENDS  golden front end -> function of wave f32[S] that gives exactly the golden's shape and dtype
Models are called `model(x)`, x as in the golden plus a batch axis; the result is what the golden calls
output.
"""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kernel.inference import finish, views
from kernel.sound import frontends
from tests import modern_fronts

GOLDENS = Path(__file__).parent / "goldens"


def original_keys(contract: str) -> list[str]:
    """Keys of the authors' state dict, in their order."""
    return list(json.loads((GOLDENS / "state_dicts" / f"{contract}.json").read_text())["state_dict"])


HACKEREARTH = (
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "resnest50d",
)
FASTAI = {
    "0.0.": "conv1.",
    "0.1.": "bn1.",
    "0.4.": "layer1.",
    "0.5.": "layer2.",
    "0.6.": "layer3.",
    "0.7.": "layer4.",
}

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
    # Hierarchical CNNs, ResNets and raw waveform
    **{
        f"ex4_{dims}d_{aggregation}_b{base}x5": (
            "hierarchical_cnn",
            {"dims": dims, "aggregation": aggregation, "base": base},
        )
        for dims in (1, 2)
        for aggregation in ("max", "rnn")
        for base in (50, 100)
    },
    "ex4_backbone_resnet18": ("resnet_backbone", {"depth": 18}),
    "ex4_backbone_resnet34": ("resnet_backbone", {"depth": 34}),
    "osciiart_resnet34": ("resnet_max", {"depth": 34}),
    "osciiart_envnetv2": ("envnet_v2", {}),
    # Nets published in Keras, fastai and timm
    "qrfaction_conv_avemax1": ("statistics_cnn", {}),
    "qrfaction_conv_avemax3": ("statistics_cnn", {"pool": "max_first"}),
    "qrfaction_concat": ("statistics_cnn", {"concat": True}),
    "qrfaction_se_avemax1": ("statistics_cnn", {"excitation": True}),
    "qrfaction_se_avemax3": ("statistics_cnn", {"excitation": True, "pool": "max_first"}),
    "qrfaction_se_concat": ("statistics_cnn", {"excitation": True, "concat": True}),
    **{
        f"qrfaction_msc_w{width:g}": (
            "statistics_cnn",
            {"stem": "multi_scale", "excitation": True, "width": width},
        )
        for width in (1.0, 1.5, 2.0)
    },
    "jeong_mel": ("mel_densenet", {}),
    "simongrest_sedensenet": ("se_densenet", {}),
    **{f"filipmu_resnet{depth}": ("resnet_concat", {"depth": depth}) for depth in (18, 34)},
    **{f"hackerearth_{model}": ("timm", {"model": model}) for model in HACKEREARTH},
    # Stackers
    **{
        f"argus_stack_{run}": ("gated_mlp", {"hidden": hidden})
        for run, hidden in ((43040, 35), (45041, 280), (50013, 560))
    },
    "qrfaction_stacker": ("per_class_stacker", {}),
}

RENAME: dict[str, dict[str, str]] = {
    "viel_m1": {
        key: f"conv{int(key[5]) + 1}{key[6:]}" for key in original_keys("viel_m1") if key.startswith("conv.")
    },
    **{
        contract: {
            key: FASTAI.get(key[:4], "head.") + key[4 if key[0] == "0" else 2 :]
            for key in original_keys(contract)
        }
        for contract in ("filipmu_resnet18", "filipmu_resnet34")
    },
    **{
        contract: {key: f"backbone.{key}" for key in original_keys(contract)}
        for contract in (f"hackerearth_{model}" for model in HACKEREARTH)
    },
}

DROP: dict[str, set[str]] = {
    "ex4_backbone_resnet18": {"backbone.last_linear.weight", "backbone.last_linear.bias"},
    "ex4_backbone_resnet34": {"backbone.last_linear.weight", "backbone.last_linear.bias"},
    "osciiart_resnet34": {
        key for key in original_keys("osciiart_resnet34") if key.startswith(("base_model.", "last_linear2."))
    },
    "osciiart_envnetv2": {
        key for key in original_keys("osciiart_envnetv2") if key.startswith("last_linear2.")
    },
}


def front_end(preset: str, steps: tuple[Any, ...] = (), *, view: dict[str, Any] | None = None, part: int = 0,
              dtype: str | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Function wave -> array of one preset: front end, one part of the view, finish; a single channel is
    dropped.
    """

    def run(wave: np.ndarray) -> np.ndarray:
        fe = frontends.build({"preset": preset})
        cut = views.build(view or {"kind": "full"}, fe).cut(fe(wave), "golden")[part : part + 1]
        x = finish.build(steps, fe)(torch.from_numpy(cut)).numpy()[0] if steps else cut[0]
        return (x[0] if x.ndim == 3 and len(x) == 1 else x).astype(dtype or x.dtype)

    return run


def _qrfaction(hop: int, part: int) -> Callable[[np.ndarray], np.ndarray]:
    mel = {"kind": "mel_in_net", "rate": 44100, "hop": hop, "transform": "convolution"}
    return front_end("qrfaction_wave", (mel,), view={"kind": "positions"}, part=part)


def _jeong(rate: int) -> Callable[[np.ndarray], np.ndarray]:
    mel = {"kind": "mel_in_net", "rate": rate, "hop": 128, "mel_power": 1.0, "transform": "convolution"}
    return front_end(f"jeong_{rate}", (mel,))


FRONTENDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "argus": front_end("argus", ("delta", {"kind": "scale", "divide": 100.0})),
    "daisukelab_16k": front_end("daisukelab_16k"),
    "daisukelab_44k": front_end("daisukelab"),
    "viel": front_end("viel"),
    "filipmu_224": front_end("filipmu"),
    "colour_3band": front_end("filipmu_colour"),
    "hackerearth": front_end("hackerearth"),
    "simongrest_pcen": front_end("simongrest", dtype="float64"),
    "ex4_mel": front_end("ex4_mel", ("frequency_map",)),
    "ex4_stft": front_end("ex4_stft"),
    **{f"qrfaction_mel_hop{hop}_{place}": _qrfaction(hop, part)
       for hop in (512, 500) for part, place in enumerate(("first", "middle", "last"))},
    "qrfaction_stats": front_end("qrfaction_statistics", dtype="float64"),
    "qrfaction_length": front_end("qrfaction_length", ("flatten",), dtype="float64"),
    **{f"jeong_{rate}": _jeong(rate) for rate in (16000, 32000, 44100)},
    "osciiart_pad8": front_end("osciiart_pad8"),
    "osciiart_pad64": front_end("osciiart_pad64"),
    **modern_fronts.FRONTENDS,
}
