"""Checkpoints of any origin -> a state dict that fits one of our nets.

Owns which files are accepted (.safetensors, .pt, .pth, .bin, Keras .h5), the prefixes of wrapped nets and the
key-by-key check. Foreign formats are hostile: PyTorch files are opened by `pickle_reader` and Keras files by
`hdf5_reader`, each in another process; pickled code never runs, and no other file is read. Does not build
bundles (builder), and does not ship.
"""
import difflib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from torch import Tensor, nn

from kernel import models
from kernel.errors import ModelLoadFailed, SpecError
from kernel.models.keras_layers import torch_state

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
KERAS = (".h5", ".hdf5")
PICKLE_READER = Path(__file__).with_name("pickle_reader.py")
HDF5_READER = Path(__file__).with_name("hdf5_reader.py")
READER_SECONDS = 600
PREFIXES = ("", "module.", "model.", "model.module.", "module.model.")  # Of DataParallel, Lightning, both.
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, *FLOAT8)
MAX_LISTED = 8  # So many keys are named in one message.


def read_state(path: Path) -> dict[str, Tensor]:
    """Every tensor under its stored key, in its stored dtype; wrappers are opened, prefixes kept.

    Raises  ModelLoadFailed: missing, unreadable, holding code, TorchScript, or of an unknown kind
    """
    if not path.is_file():
        raise ModelLoadFailed(f"{path}: no such checkpoint; check the name and the weights folder")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelLoadFailed(f"{path}: not a safetensors file ({error}); export it again") from error
    if path.suffix in KERAS:
        return _torch_state(path)
    if path.suffix in PICKLES:
        return _read_pickle(path)
    accepted = ", ".join((".safetensors", *PICKLES, *KERAS))
    raise ModelLoadFailed(f"{path}: {path.suffix or 'no suffix'} is not accepted; give {accepted} "
                          "(a .pkl holds code: save net.state_dict() instead)")


def _read_apart(reader: Path, path: Path, target: Path) -> dict[str, Any]:
    """What a reader in a process of its own said of a foreign file, whose tensors it left in `target`.

    Raises  ModelLoadFailed: refused, or the reader died or took too long
    """
    command = [sys.executable, "-I", str(reader), str(path.resolve()), str(target)]
    apart = {**os.environ, "HDF5_PLUGIN_PRELOAD": "::"}  # no filter that a file asks for is loaded
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=READER_SECONDS, check=False,
            env=apart,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelLoadFailed(f"{path}: not read in {READER_SECONDS} s; save the weights alone") from error
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise ModelLoadFailed(
            f"{path}: the reading process failed ({reason}); save the weights again"
        ) from error
    if "refused" in answer:
        raise ModelLoadFailed(f"{path}: refused: {answer['refused']}")
    return answer


def _read_pickle(path: Path) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        target = Path(folder) / "state.safetensors"
        _read_apart(PICKLE_READER, path, target)
        return load_file(target)


def read_keras(path: Path) -> dict[str, list[np.ndarray]]:
    """Keras layer name -> its arrays, of a weights file or a whole saved net (HDF5; nothing in it is run).

    Raises  ModelLoadFailed when the file has no Keras layers, or would have other files read
    """
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        target = Path(folder) / "arrays.safetensors"
        layers = _read_apart(HDF5_READER, path, target)["layers"]
        arrays = load_arrays(target)
    return {name: [arrays[f"{i}.{j}"] for j in range(count)] for i, (name, count) in enumerate(layers)}


def _torch_state(path: Path) -> dict[str, Tensor]:
    """State dict of a Keras file.

    Raises  ModelLoadFailed when a layer's arrays are not those of its kind
    """
    try:
        return torch_state(read_keras(path))
    except (ValueError, IndexError, TypeError) as error:
        raise ModelLoadFailed(
            f"{path}: a layer's arrays are not those that Keras 2 saves for its kind ({error}); "
            "save it with model.save_weights('x.h5')"
        ) from error


def match_state(stored: Mapping[str, Tensor], family: str, params: Mapping[str, Any], module: nn.Module,
                where: str) -> dict[str, Tensor]:
    """`stored` as a checked state dict of `module`: prefixes stripped, the authors' keys renamed.

    Raises  ModelLoadFailed
    """
    own = set(module.state_dict())
    best: dict[str, Tensor] = {}
    for prefix in PREFIXES:  # The one that fits best; the first of equals, so no prefix wins ties.
        stripped = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
        try:
            state = models.rename(family, dict(params), stripped)
        except SpecError as error:
            raise ModelLoadFailed(f"{where}: {error}") from error
        if not best or len(own & set(state)) > len(own & set(best)):
            best = state
    return fit_state(module, best, where)


def fit_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """`state` in the key order of `module`, once keys and shapes are equal and every value is finite.

    Batch counters (`num_batches_tracked`), which nothing reads in evaluation, may be missing, and averaged
    ones become whole numbers again.

    Raises  ModelLoadFailed listing missing, extra and misshapen keys, each with the nearest name, or naming a
            tensor that the net could only take by losing a part of it (complex, quantised)
    """
    own = module.state_dict()
    state = dict(state)
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            counter = state.setdefault(key, torch.zeros_like(value))
            if counter.shape == value.shape and counter.is_floating_point():
                state[key] = counter.to(value.dtype)
    missing = [k for k in own if k not in state]
    extra = [k for k in state if k not in own]
    shapes = [f"{k} is {list(state[k].shape)}, the net has {list(own[k].shape)}"
              for k in own if k in state and state[k].shape != own[k].shape]
    if missing or extra or shapes:
        count = f"{where}: {len(missing)} missing, {len(extra)} extra, {len(shapes)} misshapen keys"
        lines = [f"missing {k}{_nearest(k, extra, 'the checkpoint has')}" for k in missing[:MAX_LISTED]]
        lines += [f"extra {k}{_nearest(k, missing or list(own), 'the net has')}" for k in extra[:MAX_LISTED]]
        raise ModelLoadFailed(
            "\n  ".join([count, *lines, *shapes[:MAX_LISTED], "correct family and params, or the checkpoint"])
        )
    for key, value in state.items():
        _check_value(value, own[key], f"{where}: {key}")
    return {key: state[key] for key in own}


def _check_value(value: Tensor, wanted: Tensor, what: str) -> None:
    """Raises ModelLoadFailed for numbers of a kind that the net has not, and for NaN and infinity."""
    if _kind(value) != _kind(wanted):
        raise ModelLoadFailed(
            f"{what} holds {value.dtype}, the net has {wanted.dtype}: a part of it would be lost; store "
            f"{_kind(wanted)} numbers, or correct the family"
        )
    if value.is_floating_point() and value.dtype not in FLOATS:
        raise ModelLoadFailed(f"{what} holds {value.dtype}; store it as float16 or float32")
    if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
        raise ModelLoadFailed(f"{what} holds NaN or infinity; export the checkpoint again")


def _kind(value: Tensor) -> str:
    """Which numbers a tensor holds."""
    if value.is_complex():
        return "complex"
    if value.is_floating_point():
        return "real"
    return "true-or-false" if value.dtype == torch.bool else "whole"


def _nearest(key: str, keys: list[str], owner: str) -> str:
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
    return f" ({owner} {near[0]})" if near else ""
