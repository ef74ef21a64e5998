"""Checkpoints of any origin -> the tensors they hold, under the names they have there.

Owns which files are accepted (.safetensors, .pt, .pth, .bin, Keras .h5). Foreign formats are hostile: PyTorch
files are opened by `pickle_reader` and Keras files by `hdf5_reader`, each in another process; pickled code
never runs, and no other file is read. Which tensor goes where in a net is `state_matching`. Does not build
bundles (builder), and does not ship.
"""
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from torch import Tensor

from kernel.errors import ModelLoadFailed
from kernel.models.keras_weights import torch_weights

from .keras_files import Layers, layers_of

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".tar")  # .pth.tar is timm's; it is no archive.
KERAS = (".h5", ".hdf5")
KERAS_ZIP = ".keras"
PICKLE_READER = Path(__file__).with_name("pickle_reader.py")
HDF5_READER = Path(__file__).with_name("hdf5_reader.py")
READER_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a checkpoint holds.

    tensors  stored key -> tensor, in the stored dtype
    said     what was converted or left aside on the way, a sentence each
    named    True if the weights were asked for by a name in the file
    """

    tensors: dict[str, Tensor]
    said: tuple[str, ...] = ()
    named: bool = False


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of `read_checkpoint`."""
    return read_checkpoint(path).tensors


def read_checkpoint(path: Path, which: str = "") -> Stored:
    """Every tensor under its stored key; wrappers are opened, prefixes kept.

    which   name of the state dict in a file that holds several; one that names none is left to `match_state`
    Raises  ModelLoadFailed: missing, unreadable, holding code, TorchScript, or of an unknown kind
    """
    if not path.is_file():
        raise ModelLoadFailed(f"{path}: no such checkpoint; check the name and the weights folder")
    if path.suffix == ".safetensors":
        try:
            return Stored(tensors=load_file(path))
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelLoadFailed(f"{path}: not a safetensors file ({error}); export it again") from error
    if path.suffix in KERAS:
        return _read_keras_layers(path)
    if path.suffix in PICKLES:
        return _read_pickle(path, which)
    if path.suffix == KERAS_ZIP:
        raise ModelLoadFailed(
            f"{path}: a Keras 3 archive; load it in Keras and save it once more with model.save('x.h5')"
        )
    accepted = ", ".join((".safetensors", *PICKLES, *KERAS))
    raise ModelLoadFailed(f"{path}: {path.suffix or 'no suffix'} is not accepted; give {accepted} "
                          "(a .pkl holds code: save net.state_dict() instead)")


def _read_apart(reader: Path, path: Path, target: Path, *more: str) -> dict[str, Any]:
    """What a reader in a process of its own said of a foreign file, whose tensors it left in `target`.

    Raises  ModelLoadFailed: refused, or the reader died or took too long
    """
    command = [sys.executable, "-I", str(reader), str(path.resolve()), str(target), *more]
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


def _read_pickle(path: Path, which: str) -> Stored:
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        target = Path(folder) / "state.safetensors"
        answer = _read_apart(PICKLE_READER, path, target, which)
        return Stored(tensors=load_file(target), said=tuple(answer["said"]), named=answer["named"])


def read_keras(path: Path) -> Layers:
    """Keras layer name -> its arrays, of a weights file or a whole saved net (HDF5; nothing in it is run).

    Raises  ModelLoadFailed when the file has no Keras layers, or would have other files read
    """
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        target = Path(folder) / "arrays.safetensors"
        listed = _read_apart(HDF5_READER, path, target)
        arrays = load_arrays(target)
    try:
        return layers_of(listed, arrays)
    except ModelLoadFailed as error:
        raise ModelLoadFailed(f"{path}: {error}") from error


def _read_keras_layers(path: Path) -> Stored:
    """Tensors of a Keras file.

    Raises  ModelLoadFailed when a layer's arrays are not those of its kind
    """
    layers = read_keras(path)
    try:
        converted = torch_weights(layers)
    except ModelLoadFailed as error:
        raise ModelLoadFailed(f"{path}: {error}") from error
    except (ValueError, IndexError, TypeError, ArithmeticError) as error:
        raise ModelLoadFailed(
            f"{path}: a layer's arrays are not those that Keras 2 saves for its kind ({error}); "
            "save it with model.save_weights('x.h5')"
        ) from error
    return Stored(tensors=converted.state, said=converted.said)
