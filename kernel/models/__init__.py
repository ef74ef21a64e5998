"""The model families: one table, and what is done with an entry (build, rename, measure, bring your own).

Owns FAMILIES, the only place to register a family: an entry appears in `python -m kernel.models` and in the tests by itself.
Model contract: `forward(x, frames=None) -> f32[B, K]`, x f32[B, C, M, T] or a dict of tensors, frames int64[B] own lengths;
what a net declares about itself is `blocks.Tagger`. Does not read weights (bundle), choose devices (backends) or pad rows
shorter than min_frames (predict).
"""
from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

from ..errors import SpecError, did_you_mean
from .cost import measure
from .custom import build_custom, load_custom
from .simple_cnn import SimpleCNN
from .skip_attention import AuxSkipAttention

__all__ = ["FAMILIES", "Family", "build", "load_custom", "measure", "rename"]
V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One entry of the table.

    build              class or function of (classes, **params); its signature names the parameters
    about              one line for the table
    tiny               parameters of a small net for the property tests (its channels and bins are read from the module)
    table              parameters of the net shown in the table, where some have no default
    bins               input bins of the published front end, where the module takes any
    frames_per_second  of the published front end, for GMAC per second (samples for raw waves)
    stacker            True: input is other nets' probabilities
    keys               (pattern, replacement or None = drop): the original authors' keys to ours, first full match wins;
                       our own keys must pass unchanged
    """

    build: Callable[..., nn.Module]
    about: str
    tiny: Mapping[str, Any] = field(default_factory=dict)
    table: Mapping[str, Any] = field(default_factory=dict)
    bins: int = 128
    frames_per_second: float = 64.0
    stacker: bool = False
    keys: tuple[tuple[str, str | None], ...] = ()


FAMILIES: dict[str, Family] = {
    "simple_cnn": Family(
        build=SimpleCNN, about="plain 2-D CNN (mhiro2 baseline, M0)", tiny={"base": 4, "channels": 1}),
    "aux_skip_attention": Family(
        build=AuxSkipAttention, about="skip connections, CBAM, auxiliary heads, optional LSTM (argus, FAT2019 1st)",
        tiny={"base": 4}),
}


def build(name: str, params: Mapping[str, Any], classes: int) -> nn.Module:
    """The net of family `name` (or "my_model.py:MyNet", see `load_custom`), random weights, training mode.

    Raises  SpecError naming an unknown family, an unknown or missing parameter, or the constructor's complaint
    """
    if ".py:" in name:
        return build_custom(name, params, classes)
    if name not in FAMILIES:
        raise SpecError(f"family {name!r} is unknown; {did_you_mean(name, FAMILIES)}")
    family = FAMILIES[name]
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
        raise SpecError(f"family {name}: params {dict(params)} cannot be built ({error}); correct them") from error


def rename(name: str, params: Mapping[str, Any], state_dict: Mapping[str, V]) -> dict[str, V]:
    """`state_dict` under our keys: the original authors' keys are accepted, keys they never use are dropped.

    Raises  SpecError for an unknown family or when two keys become one
    """
    if ".py:" in name:
        return dict(state_dict)
    if name not in FAMILIES:
        raise SpecError(f"family {name!r} is unknown; {did_you_mean(name, FAMILIES)}")
    out: dict[str, V] = {}
    for key, value in state_dict.items():
        new = _our_key(key, FAMILIES[name].keys)
        if new is None:
            continue
        if new in out:
            raise SpecError(f"family {name}: two entries of the checkpoint become {new!r} (one is {key!r}); remove one")
        out[new] = value
    return out


def _our_key(key: str, patterns: tuple[tuple[str, str | None], ...]) -> str | None:
    for pattern, replacement in patterns:
        match = re.fullmatch(pattern, key)
        if match:
            return None if replacement is None else match.expand(replacement)
    return key
