"""The table of families, and what is done with an entry: build its net, rename a checkpoint's keys.

Owns FAMILIES, the only place to register a family: an entry appears in `python -m kernel.models` and in the
tests by itself. Layers are in the families' own files. Does not read weights (bundle), measure (cost) or pad
rows shorter than min_frames (inference).
"""
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

from ..errors import SpecError, did_you_mean
from .custom import build_custom
from .dense_pyramid import DensePyramid
from .envnet import EnvNetV2
from .heads import AttentionHead, LinearHead, MLPHead
from .hierarchical_cnn import HierarchicalCNN
from .mel_densenet import MelDenseNet
from .resnet import ResNetBackbone, ResNetMax
from .resnet_concat import ORIGINAL_KEYS as FASTAI_KEYS
from .resnet_concat import ResNetConcat
from .scse_cnn import SCSECNN
from .se_densenet import SEDenseNet
from .sed import SEDTagger
from .simple_cnn import SimpleCNN
from .skip_attention import AuxSkipAttention
from .stackers import GatedMLP, PerClassStacker
from .statistics_cnn import StatisticsCNN
from .timm_backbone import TimmTagger

V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One entry of the table.

    build              class or function of (classes, **params); its signature names the parameters
    about              one line for the table
    tiny               parameters of a small net for the tests (they read its channels and bins from it)
    variants           further small nets for the same tests: other branches of the family
    table              parameters of the net shown in the table, where some have no default
    bins               input bins of the published front end, where the module takes any
    frames_per_second  of the published front end (rate / hop; samples for raw waves), for GMAC per second
    stacker            True: input is other nets' probabilities
    keys               (pattern, replacement or None = drop): the original authors' keys to ours, first full
                       match wins; our own keys must pass unchanged
    """

    build: Callable[..., nn.Module]
    about: str
    tiny: Mapping[str, Any] = field(default_factory=dict)
    variants: tuple[Mapping[str, Any], ...] = ()
    table: Mapping[str, Any] = field(default_factory=dict)
    bins: int = 128
    frames_per_second: float = 64.0
    stacker: bool = False
    keys: tuple[tuple[str, str | None], ...] = ()


FAMILIES: dict[str, Family] = {
    "simple_cnn": Family(
        build=SimpleCNN, about="plain 2-D CNN (mhiro2 baseline, M0)", tiny={"base": 4, "channels": 1}
    ),
    "aux_skip_attention": Family(
        build=AuxSkipAttention,
        about="skip connections, CBAM, auxiliary heads, optional LSTM (argus, FAT2019 1st)",
        tiny={"base": 4},
        variants=({"base": 4, "aux": False, "kernel": 3, "hidden": 2}, {"base": 4, "rnn": True}),
    ),
    "dense_pyramid": Family(
        build=DensePyramid,
        about="dense blocks, pyramid pooling (M1-M3, FAT2019 9th, ERC2019)",
        tiny={"base": 4, "hidden": 8},
        variants=(
            {"base": 4, "hidden": 8, "levels": 1, "pool_last": True},
            {"base": 2, "hidden": 8, "blocks": 5, "levels": 4},
        ),
        keys=tuple((rf"conv\.{k}\.(.+)", rf"conv{k + 1}.\1") for k in range(8)),
    ),
    "scse_cnn": Family(
        build=SCSECNN, about="2 x 2 convolutions, scSE, fixed map (FAT2019 7th)", tiny={"base": 4}
    ),
    "hierarchical_cnn": Family(
        build=HierarchicalCNN,
        about="residual CNN, every depth classified, 1-D or 2-D, max or GRU (FAT2019 3rd)",
        tiny={"base": 4, "blocks": 3},
        frames_per_second=43.1,
        variants=(
            {"base": 4, "aggregation": "rnn", "units": 4},
            {"base": 4, "dims": 1, "bins": 17},
            {"base": 4, "dims": 1, "bins": 17, "aggregation": "rnn", "units": 4},
        ),
    ),
    "resnet_backbone": Family(
        build=ResNetBackbone,
        about="ResNet-18/34, input batch norm, global maximum (FAT2019 3rd)",
        tiny={"base": 4},
        frames_per_second=43.1,
        keys=((r"backbone\.last_linear\..+", None),),
    ),
    "resnet_max": Family(
        build=ResNetMax,
        about="ResNet-34, global maximum, three linear layers (FAT2019 4th)",
        tiny={"base": 4, "depth": 18, "hidden": 8},
        frames_per_second=127.1,
        keys=((r"base_model\..+", None), (r"last_linear2\..+", None)),
    ),
    "envnet_v2": Family(
        build=EnvNetV2,
        about="raw waveform CNN (FAT2019 4th)",
        tiny={"width": 0.1, "hidden": 8},
        bins=1,
        frames_per_second=44100.0,
        keys=((r"last_linear2\..+", None),),
    ),
    "statistics_cnn": Family(
        build=StatisticsCNN,
        about="mel CNN with a GRU over waveform statistics (FAT2019 2nd, Keras)",
        tiny={"width": 0.08},
        variants=(
            {"width": 0.08, "excitation": True, "concat": True, "pool": "max_first"},
            {"width": 0.08, "stem": "multi_scale", "excitation": True},
        ),
        frames_per_second=127.1,
    ),
    "se_densenet": Family(
        build=SEDenseNet,
        about="dense net with squeeze-and-excitation, PCEN picture (FAT2019 44th)",
        tiny={"layers": 5, "growth": 4},
        variants=({"layers": 5, "growth": 4, "full_length": True},),
        frames_per_second=64.0,
    ),
    "mel_densenet": Family(
        build=MelDenseNet,
        about="the same with 'same' pools, full length (DCASE 2018 1st, Keras)",
        tiny={"growth": 4, "bins": 20},
        frames_per_second=250.0,
    ),
    "resnet_concat": Family(
        build=ResNetConcat,
        about="ResNet-18/34, fastai's concat-pool head (filipmu); bias = false for fastai 2",
        tiny={"base": 4, "depth": 18, "hidden": 8},
        bins=224,
        frames_per_second=59.1,
        keys=FASTAI_KEYS,
    ),
    "timm": Family(
        build=TimmTagger,
        about="any timm model, linear or concat-pool head (HackerEarth 3rd); needs timm",
        tiny={"model": "test_efficientnet"},
        variants=({"model": "resnet10t", "in_chans": 1, "head": "concat", "hidden": 8},),
        table={"model": "efficientnet_b0"},
        frames_per_second=127.1,
        keys=(
            (r"0\.model\.(.+)", r"backbone.\1"),
            (r"1\.(\d+\..+)", r"concat_head.\1"),
            (r"(?!backbone\.|concat_head\.)(.+)", r"backbone.\1"),
        ),
    ),
    "sed": Family(
        build=SEDTagger,
        about="any timm backbone, frame-wise attention head (BirdCLEF winners); needs timm",
        tiny={"model": "test_efficientnet", "bins": 32},
        variants=({"model": "test_efficientnet", "bins": 32, "score": "mean"},),
        table={"model": "efficientnet_b0"},
        frames_per_second=100.0,
        keys=((r"encoder\.(.+)", r"backbone.\1"),),
    ),
    "linear_head": Family(
        build=LinearHead,
        about="head on an embedding: one linear layer on pooled patches, or on each patch",
        tiny={"values": 12},
        variants=({"values": 12, "pool": "mean_max"}, {"values": 12, "pool": "mean_scores"}),
        bins=1024,
        frames_per_second=2.1,
    ),
    "mlp_head": Family(
        build=MLPHead,
        about="head on an embedding: two linear layers on pooled patches",
        tiny={"values": 12, "hidden": 8},
        variants=({"values": 12, "hidden": 8, "pool": "max"},),
        bins=1024,
        frames_per_second=2.1,
    ),
    "attention_head": Family(
        build=AttentionHead,
        about="head on an embedding: every class weighs the patches of a row by itself",
        tiny={"values": 12, "hidden": 8},
        variants=({"values": 12, "hidden": 0},),
        bins=1024,
        frames_per_second=2.1,
    ),
    "gated_mlp": Family(
        build=GatedMLP,
        about="stacker: gated MLP over all members' probabilities (FAT2019 1st)",
        stacker=True,
        tiny={"features": 12, "hidden": 3, "width": 4},
    ),
    "per_class_stacker": Family(
        build=PerClassStacker,
        about="stacker: each class's own weights, then one linear layer (FAT2019 2nd)",
        stacker=True,
        tiny={"inputs": 3},
        keys=((r"locally_connected1d_1\.weight", "local.weight"), (r"dense_1\.weight", "dense.weight")),
    ),
}


def _find_family(name: str) -> Family:
    if name not in FAMILIES:
        raise SpecError(f"family {name!r} is unknown; {did_you_mean(name, FAMILIES)}")
    return FAMILIES[name]


def build(name: str, params: Mapping[str, Any], classes: int) -> nn.Module:
    """The net of family `name` (or "my_model.py:MyNet", see `load_custom`), random weights, training mode.

    Raises  SpecError naming an unknown family, a wrong or missing parameter, or the constructor's complaint
    """
    if ".py:" in name:
        return build_custom(name, params, classes)
    family = _find_family(name)
    known = {p.name: p for p in inspect.signature(family.build).parameters.values() if p.name != "classes"}
    for key in params:
        if key not in known:
            raise SpecError(f"family {name}: params.{key} is unknown; {did_you_mean(key, known)}")
    for key, parameter in known.items():
        if key not in params and parameter.default is inspect.Parameter.empty:
            raise SpecError(f"family {name}: params.{key} is missing; add it")
    try:
        return family.build(classes=classes, **params)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise SpecError(
            f"family {name}: params {dict(params)} cannot be built ({error}); correct them"
        ) from error


def rename(name: str, params: Mapping[str, Any], state_dict: Mapping[str, V]) -> dict[str, V]:
    """`state_dict` under our keys: the original authors' keys are accepted, keys they never use are dropped.

    Raises  SpecError for an unknown family or when two keys become one
    """
    if ".py:" in name:
        return dict(state_dict)
    keys = _find_family(name).keys
    out: dict[str, V] = {}
    for key, value in state_dict.items():
        new = _our_key(key, keys)
        if new is None:
            continue
        if new in out:
            raise SpecError(
                f"family {name}: two entries of the checkpoint become {new!r} (one is {key!r}); remove one"
            )
        out[new] = value
    return out


def _our_key(key: str, patterns: tuple[tuple[str, str | None], ...]) -> str | None:
    for pattern, replacement in patterns:
        match = re.fullmatch(pattern, key)
        if match:
            return None if replacement is None else match.expand(replacement)
    return key
