"""The published ensembles with small nets, so that whole runs take seconds; weights that differ by fold.

Owns `shrink`, `write_weights` and `build`. Front ends, views, finishes, means, stackers and outputs stay
exactly as published.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock
from zlib import crc32

import torch
from safetensors.torch import save_file

from builder import assembly, random_weights
from kernel import models, spec
from tests.helpers import REPOSITORY
from tests.helpers.bundles import order

FOLDER = REPOSITORY / "ensembles"
SMALL: dict[str, dict[str, Any]] = {  # family -> parameters of a small net
    "aux_skip_attention": {"base": 4},
    "dense_pyramid": {"base": 4, "hidden": 8},
    "gated_mlp": {"width": 8, "hidden": 5},
    "hierarchical_cnn": {"base": 4, "units": 4},
    "mel_densenet": {"growth": 4},
    "per_class_stacker": {},
    "resnet_concat": {"base": 4, "hidden": 8, "depth": 18},
    "scse_cnn": {"base": 4},
    "se_densenet": {"growth": 4},
    "simple_cnn": {"base": 4},
    "statistics_cnn": {"width": 0.08},
    "timm": {"model": "test_efficientnet"},
}
Part = spec.Member | spec.Stacker


def published(name: str) -> spec.Ensemble:
    """The ensemble of ensembles/NAME.toml."""
    return spec.load_ensemble(FOLDER / f"{name}.toml")


def shrink(ensemble: spec.Ensemble, folds: int = 2) -> spec.Ensemble:
    """The ensemble with small nets, and at most so many folds of each."""

    def small(part: Any) -> Any:
        return replace(part, params={**part.params, **SMALL[part.family]}, folds=part.folds[:folds])

    members = tuple(map(small, ensemble.members))
    return replace(ensemble, members=members, stackers=tuple(map(small, ensemble.stackers)))


def parts(ensemble: spec.Ensemble) -> Iterator[Part]:
    """Members, then stackers."""
    yield from ensemble.members
    yield from ensemble.stackers


def random_net(part: Part, fold: int, classes: int) -> torch.nn.Module:
    """The net of one fold in evaluation mode, its weights drawn from member, fold and key."""
    module = models.build(part.family, dict(part.params), part.outputs(classes)).eval()
    generator = torch.Generator().manual_seed(crc32(f"{part.name}.{fold}".encode()))
    state = random_weights.draw_state(module, part.family, part.params)
    for key, value in state.items():
        if value.is_floating_point():
            state[key] = value.float() * (0.6 + 0.8 * torch.rand(value.shape, generator=generator))
    module.load_state_dict(state)
    return module


def write_weights(ensemble: spec.Ensemble, folder: Path) -> dict[str, torch.nn.Module]:
    """Net id -> net; the checkpoint of each lies below `folder` where the TOML expects it."""
    nets = {}
    for part in parts(ensemble):
        for fold in part.folds:
            net = random_net(part, fold, len(ensemble.classes))
            nets[f"{part.name}.{fold}"] = net
            path = folder / Path(part.weights_file(fold)).with_suffix(".safetensors")
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(net.state_dict(), path)
    return nets


def build(ensemble: spec.Ensemble, out: Path, weights: Path | None = None) -> Path:
    """The bundle folder of an ensemble that lies in no file; random weights where `weights` is None."""
    wanted = order(out, ensemble=FOLDER / "none.toml", weights=weights, random_weights=weights is None)
    with mock.patch.object(assembly, "load_ensemble", lambda path: ensemble):
        assembly.build(wanted, say=lambda _: None)
    return out / "bundle"
