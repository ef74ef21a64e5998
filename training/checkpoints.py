"""Checkpoints of any origin -> the tensors they hold, under the names they have there.

Owns which files are accepted (.safetensors, .pt, .pth, .bin, Keras .h5). PyTorch files are opened by
`pickle_reader` in another process with weights_only=True; pickled code never runs. Which tensor goes where
in a net is `state_matching`. Does not build bundles (builder), and does not ship.
"""
import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kernel.errors import ModelLoadFailed
from kernel.models.keras_weights import torch_weights

from .keras_files import Layers, layers_of

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".tar")  # .pth.tar is timm's; it is no archive.
KERAS = (".h5", ".hdf5")
READER = Path(__file__).with_name("pickle_reader.py")
READER_SECONDS = 600
KERAS_ZIP = ".keras"


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
        except SafetensorError as error:
            raise ModelLoadFailed(f"{path}: not a safetensors file ({error}); export it again") from error
    if path.suffix in KERAS:
        converted = torch_weights(read_keras(path))
        return Stored(tensors=converted.state, said=converted.said)
    if path.suffix in PICKLES:
        refuse_torchscript(path)
        return _read_pickle(path, which)
    if path.suffix == KERAS_ZIP:
        raise ModelLoadFailed(
            f"{path}: a Keras 3 archive; load it in Keras and save it once more with model.save('x.h5')"
        )
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


def _read_pickle(path: Path, which: str) -> Stored:
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        target = Path(folder) / "state.safetensors"
        command = [sys.executable, "-I", str(READER), str(path.resolve()), str(target), which]
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
        return Stored(tensors=load_file(target), said=tuple(answer["said"]), named=answer["named"])


def read_keras(path: Path) -> Layers:
    """Keras layer name -> its arrays, of a weights file or a whole saved net (HDF5; nothing in it is run).

    Raises  ModelLoadFailed when h5py is missing or the file has no Keras layers
    """
    try:
        import h5py
    except ImportError as error:
        raise ModelLoadFailed(f"{path}: reading Keras files needs h5py; pip install h5py") from error
    try:
        with h5py.File(path, "r") as file:
            return layers_of(file)
    except (OSError, KeyError) as error:
        raise ModelLoadFailed(
            f"{path}: no Keras weights in it ({error}); save it with model.save_weights('x.h5')"
        ) from error
