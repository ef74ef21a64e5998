"""Checkpoints of any origin -> a state dict that fits one of our nets.

Owns which files are accepted (.safetensors, .pt, .pth, .bin, Keras .h5), the prefixes of wrapped nets and the
key-by-key check. PyTorch files are opened by `pickle_reader` in another process with weights_only=True;
pickled code never runs. Does not build bundles (builder), and does not ship.
"""
import difflib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kernel import models
from kernel.errors import ModelLoadFailed, SpecError
from kernel.models.keras_layers import torch_state

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
KERAS = (".h5", ".hdf5")
READER = Path(__file__).with_name("pickle_reader.py")
READER_SECONDS = 600
PREFIXES = ("", "module.", "model.", "model.module.", "module.model.")  # Of DataParallel, Lightning, both.
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
        except SafetensorError as error:
            raise ModelLoadFailed(f"{path}: not a safetensors file ({error}); export it again") from error
    if path.suffix in KERAS:
        return torch_state(read_keras(path))
    if path.suffix in PICKLES:
        refuse_torchscript(path)
        return _read_pickle(path)
    accepted = ", ".join((".safetensors", *PICKLES, *KERAS))
    raise ModelLoadFailed(f"{path}: {path.suffix or 'no suffix'} is not accepted; give {accepted} "
                          "(a .pkl holds code: save net.state_dict() instead)")


def refuse_torchscript(path: Path) -> None:
    """Nothing, if the file is no TorchScript archive.

    Raises  ModelLoadFailed with the command that exports it to ONNX
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        scripted = any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
    if scripted:
        raise ModelLoadFailed(
            f'{path}: TorchScript, which carries code. Export it once: python -c "import torch; '
            f"net = torch.jit.load({path.name!r}); "
            "torch.onnx.export(net, torch.zeros(1, CHANNELS, BINS, FRAMES), "
            f"{path.stem + '.onnx'!r}, dynamo=False, "
            "input_names=['x'], dynamic_axes={'x': {0: 'batch', 3: 'frames'}})\" and use family = \"onnx\"; "
            "or save its state_dict() and name the family"
        )


def _read_pickle(path: Path) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        target = Path(folder) / "state.safetensors"
        command = [sys.executable, "-I", str(READER), str(path.resolve()), str(target)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=READER_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ModelLoadFailed(
                f"{path}: not read in {READER_SECONDS} s; save net.state_dict() alone"
            ) from error
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
            raise ModelLoadFailed(
                f"{path}: the reading process failed ({reason}); save net.state_dict() again"
            )
        answer = json.loads(done.stdout.splitlines()[-1])
        if "refused" in answer:
            raise ModelLoadFailed(f"{path}: refused: {answer['refused']}")
        return load_file(target)


def read_keras(path: Path) -> dict[str, list[Any]]:
    """Keras layer name -> its arrays, of a weights file or a whole saved net (HDF5; nothing in it is run).

    Raises  ModelLoadFailed when h5py is missing or the file has no Keras layers
    """
    try:
        import h5py
    except ImportError as error:
        raise ModelLoadFailed(f"{path}: reading Keras files needs h5py; pip install h5py") from error
    try:
        with h5py.File(path, "r") as file:
            root = file["model_weights"] if "model_weights" in file else file
            return {name: [root[name][weight][()] for weight in _texts(root[name].attrs["weight_names"])]
                    for name in _texts(root.attrs["layer_names"]) if len(root[name].attrs["weight_names"])}
    except (OSError, KeyError) as error:
        raise ModelLoadFailed(
            f"{path}: no Keras weights in it ({error}); save it with model.save_weights('x.h5')"
        ) from error


def _texts(values: Sequence[Any]) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]


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

    Batch counters (`num_batches_tracked`), which nothing reads in evaluation, may be missing.

    Raises  ModelLoadFailed listing missing, extra and misshapen keys, each with the nearest name
    """
    own = module.state_dict()
    state = dict(state)
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(value))
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
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelLoadFailed(f"{where}: {key} holds NaN or infinity; export the checkpoint again")
    return {key: state[key] for key in own}


def _nearest(key: str, keys: list[str], owner: str) -> str:
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
    return f" ({owner} {near[0]})" if near else ""
