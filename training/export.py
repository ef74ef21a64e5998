"""A finished run becomes files: fp16 weights, an ensemble TOML for build_dataset.py, out-of-fold scores.

Owns the names of these files and what stands in the TOML. Does not measure (evaluation) and does not
describe (model_card).
"""
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from kernel.spec import Embedding, Ensemble, load_ensemble

from . import text_formats
from .cross_validation import Trained
from .recipe import MemberRecipe, Recipe, StackerRecipe


def weights_name(recipe: str, member: str) -> str:
    """Pattern of the weights files of one member; {fold} stands for the number."""
    return f"{recipe}_{member}_{{fold}}.safetensors"


def _weights(recipe: Recipe, member: MemberRecipe) -> str:
    """Pattern of the files of a member: its own, or those that were taken."""
    return member.taken or weights_name(recipe.name, member.name)


def _member(recipe: Recipe, member: MemberRecipe, numbers: Sequence[int], value: float) -> dict[str, Any]:
    """The table of a member, or of a head where it reads an embedding."""
    keys: dict[str, Any] = {"name": member.name, "family": member.family, "params": dict(member.params)}
    if member.inputs:
        keys["inputs"] = {
            k: {"frontend": v.frontend, "finish": list(v.finish)} for k, v in member.inputs.items()
        }
    elif member.frontend in recipe.embeddings:
        keys.update(embedding=member.frontend, finish=list(member.finish))
    else:
        keys.update(frontend=member.frontend, finish=list(member.finish))
    keys.update(
        view=dict(member.view),
        weights=_weights(recipe, member),
        folds=[0] if member.is_foreign else list(numbers),
        activation=member.activation,
        weight=member.weight,
        fold_mean=member.fold_mean,
        value=round(value, 4),
    )
    # What is empty or the loader's own default is left out.
    idle: dict[str, Any] = {
        "params": {}, "finish": [], "activation": None, "weight": 1.0, "fold_mean": "geometric"
    }
    return {k: v for k, v in keys.items() if k not in idle or v != idle[k]}


def _embedding(embedding: Embedding) -> dict[str, Any]:
    """The table of an embedding, without what is left out of it."""
    keys = {own.name: getattr(embedding, own.name) for own in fields(embedding)}
    keys["output"] = embedding.output[0] if len(embedding.output) == 1 else list(embedding.output)
    idle = {"output": [], "finish": (), "stored": "float32", "view": {"kind": "full"}}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in keys.items()
            if value is not None and (key not in idle or value != idle[key])}


def _stacker(recipe: Recipe, stacker: StackerRecipe, numbers: Sequence[int]) -> dict[str, Any]:
    keys = {
        "name": stacker.name,
        "family": stacker.family,
        "inputs": list(stacker.inputs),
        "params": dict(stacker.params),
        "features": stacker.features,
        "weights": weights_name(recipe.name, stacker.name),
        "folds": list(numbers),
        "weight": stacker.weight,
        "fold_mean": stacker.fold_mean,
    }
    if stacker.average_weights:
        keys["average_weights"] = list(stacker.average_weights)
    return keys


def ensemble_text(
    recipe: Recipe, classes: str | Sequence[str], numbers: Sequence[int], values: Mapping[str, float],
    prior: str | Sequence[float] | None = None,
) -> str:
    """The ensemble TOML of a recipe.

    classes, prior  a file beside the TOML, or the values themselves
    values          member name -> out-of-fold score
    """
    data: dict[str, Any] = {"name": recipe.name, "about": recipe.about, "classes": classes}
    if prior is not None:
        data["prior"] = prior
    data.update(recipe.ensemble)
    data["frontends"] = recipe.frontends
    if recipe.embeddings:
        data["embeddings"] = {name: _embedding(entry) for name, entry in recipe.embeddings.items()}
    tables = [_member(recipe, member, numbers, values.get(member.name, 0.0)) for member in recipe.members]
    for kind, chosen in (("members", False), ("heads", True)):
        data[kind] = [table for table in tables if ("embedding" in table) == chosen]
        if not data[kind]:
            del data[kind]
    if recipe.stackers:
        data["stackers"] = [_stacker(recipe, stacker, numbers) for stacker in recipe.stackers]
    return (
        f"# Written by train.py from the recipe {recipe.name}; member values are out-of-fold scores.\n"
        + text_formats.dumps_toml(data)
    )


def write_ensemble(path: Path, text: str) -> Ensemble:
    """Writes the TOML and returns it as the kernel reads it.

    Raises  SpecError when the kernel would refuse it
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return load_ensemble(path)


def copy_weights(recipe: Recipe, nets: Sequence[Trained], folder: Path) -> dict[str, int]:
    """Copies every net's weights under its shipped name; returns name -> bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for net in nets:
        member = next((one for one in recipe.members if one.name == net.member), None)
        pattern = _weights(recipe, member) if member else weights_name(recipe.name, net.member)
        name = pattern.replace("{fold}", str(net.fold))
        shutil.copyfile(net.weights, folder / name)
        sizes[name] = (folder / name).stat().st_size
    return sizes


def copy_graphs(recipe: Recipe, graphs: Mapping[str, bytes], folder: Path) -> dict[str, int]:
    """Writes the embeddings' graphs under the names that the recipe has; returns name -> bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for name, graph in graphs.items():
        file = recipe.embeddings[name].graph
        if not (folder / file).exists() or (folder / file).read_bytes() != graph:
            (folder / file).write_bytes(graph)
        sizes[file] = len(graph)
    return sizes


def write_scores(
    path: Path,
    ids: Sequence[str],
    classes: Sequence[str],
    folds: np.ndarray,
    members: Mapping[str, np.ndarray],
    targets: np.ndarray,
) -> None:
    """Out-of-fold arrays as one .npz: ids, classes, folds, targets, and f32[N, K] per "member/NAME"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {f"member/{name}": scores.astype(np.float32) for name, scores in members.items()}
    np.savez_compressed(
        path,
        ids=np.array(ids),
        classes=np.array(classes),
        folds=folds,
        targets=targets.astype(np.float32),
        **arrays,
    )
