"""A finished run becomes files: weights in fp16, an ensemble TOML that build_dataset.py takes, out-of-fold scores.

Owns the names of the written files and the TOML text. Does not measure (measure) and does not describe (card).
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kernel.spec import Ensemble, load_ensemble

from .recipe import MemberRecipe, Recipe
from .run import Trained


def toml_value(value: Any) -> str:
    """`value` as TOML: strings, numbers, booleans, lists and inline tables."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {toml_value(v)}" for k, v in value.items()) + " }"
    return "[" + ", ".join(toml_value(v) for v in value) + "]"


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def weights_name(recipe: str, member: str) -> str:
    """Pattern of the weights files of one member; {fold} stands for the number."""
    return f"{recipe}_{member}_{{fold}}.safetensors"


def _member_text(recipe: Recipe, member: MemberRecipe, numbers: Sequence[int], value: float) -> str:
    lines = ["[[members]]", f"name = {toml_value(member.name)}", f"family = {toml_value(member.family)}"]
    if member.params:
        lines.append(f"params = {toml_value(member.params)}")
    if member.inputs:
        inputs = {k: {"frontend": v.frontend, "finish": list(v.finish)} for k, v in member.inputs.items()}
        lines.append(f"inputs = {toml_value(inputs)}")
    else:
        lines += [f"frontend = {toml_value(member.frontend)}", f"finish = {toml_value(list(member.finish))}"]
    lines += [f"view = {toml_value(member.view)}", f"weights = {toml_value(weights_name(recipe.name, member.name))}",
              f"folds = {toml_value(list(numbers))}"]
    if member.activation:
        lines.append(f"activation = {toml_value(member.activation)}")
    if member.weight != 1.0:
        lines.append(f"weight = {toml_value(member.weight)}")
    lines.append(f"value = {value:.4f}")
    return "\n".join(lines) + "\n"


def ensemble_text(recipe: Recipe, classes: Any, numbers: Sequence[int], values: Mapping[str, float], prior: Any = None) -> str:
    """The ensemble TOML of a recipe.

    classes, prior  a file beside the TOML, or the values themselves; values: member name -> out-of-fold score
    """
    keys: dict[str, Any] = {"name": recipe.name, "about": recipe.about, "classes": classes}
    if prior is not None:
        keys["prior"] = prior
    tables = {k: v for k, v in recipe.ensemble.items() if isinstance(v, Mapping)}
    keys.update({k: v for k, v in recipe.ensemble.items() if k not in tables})
    parts = [f"# Written by train.py from the recipe {recipe.name}; member values are out-of-fold scores.\n"
             + "".join(f"{k} = {toml_value(v)}\n" for k, v in keys.items())]
    tables.update({f"frontends.{name}": spec for name, spec in recipe.frontends.items()})
    parts += [f"[{name}]\n" + "".join(f"{_key(k)} = {toml_value(v)}\n" for k, v in table.items())
              for name, table in tables.items()]
    parts += [_member_text(recipe, member, numbers, values.get(member.name, 0.0)) for member in recipe.members]
    return "\n".join(parts)


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
        name = weights_name(recipe.name, net.member).replace("{fold}", str(net.fold))
        shutil.copyfile(net.weights, folder / name)
        sizes[name] = (folder / name).stat().st_size
    return sizes


def write_scores(path: Path, ids: Sequence[str], classes: Sequence[str], folds: np.ndarray, members: Mapping[str, np.ndarray],
                 targets: np.ndarray) -> None:
    """Out-of-fold arrays as one .npz: ids, classes, folds, targets, and f32[N, K] per member ("member/NAME")."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {f"member/{name}": scores.astype(np.float32) for name, scores in members.items()}
    np.savez_compressed(path, ids=np.array(ids), classes=np.array(classes), folds=folds, targets=targets.astype(np.float32),
                        **arrays)
