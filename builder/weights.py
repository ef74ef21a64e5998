"""Checkpoints -> safetensors blobs that fit their nets, and the files that hold them.

Owns finding a checkpoint, checking it against the net key by key, and laying nets out in files. Foreign formats go through
training.checkpoints, which opens them in a process of its own. Does not build nets (kernel.models) and trains nothing.
"""
from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from kernel import models
from kernel.bundle import MAX_HEADER_BYTES, parse_state
from kernel.errors import ModelLoadFailed, SpecError, did_you_mean
from kernel.spec import FileEntry, Net

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".onnx")
MAX_SINGLE_FILES = 40  # nets in files of their own; beyond, one file per member (DESIGN 5)
MAX_LISTED = 8  # keys named in one message


def find_weights(name: str, folders: Sequence[Path]) -> Path | None:
    """The checkpoint `name` in the first folder that has it, also under another known suffix; None where there is none."""
    stem = name.removesuffix(Path(name).suffix) if Path(name).suffix in SUFFIXES else name
    for folder in folders:
        for candidate in (name, *(stem + suffix for suffix in SUFFIXES)):
            if (folder / candidate).is_file():
                return folder / candidate
    return None


def _refuse_torchscript(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist()):
            raise ModelLoadFailed(
                f"{path}: TorchScript, which carries code. Export it once, `torch.onnx.export(torch.jit.load({path.name!r}), "
                f"example, {path.stem + '.onnx'!r}, input_names=['x'], dynamo=False)`, and use family = \"onnx\" with "
                "--wheels onnxruntime; or save its state_dict and name the family")


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in `path`, in its stored dtypes. No pickled code runs.

    Raises  ModelLoadFailed, BundleInvalid
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load

        data = path.read_bytes()
        parse_state(data, str(path))  # the kernel's own rules
        return load(data)
    _refuse_torchscript(path)
    from training.checkpoints import convert

    return dict(convert(path))


def fit_state(module: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """`state` in the key order of `module`, once keys and shapes are equal and every value is finite.

    Raises  ModelLoadFailed listing missing, extra and misshapen keys, each with the nearest name
    """
    own, state = module.state_dict(), dict(state)
    for key, value in own.items():  # a counter that nothing reads in eval mode; old checkpoints lack it
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(value))
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    shapes = [f"{key} is {list(state[key].shape)}, the net has {list(own[key].shape)}"
              for key in own if key in state and state[key].shape != own[key].shape]
    lines = [f"missing {key} ({did_you_mean(key, extra)})" if extra else f"missing {key}" for key in missing[:MAX_LISTED]]
    lines += [f"extra {key} ({did_you_mean(key, missing)})" if missing else f"extra {key}" for key in extra[:MAX_LISTED]]
    lines += shapes[:MAX_LISTED]
    if lines:
        raise ModelLoadFailed(f"{where}: {len(missing)} missing, {len(extra)} extra and {len(shapes)} misshapen keys"
                              "\n  " + "\n  ".join(lines) + "\n  correct family and params, or the checkpoint")
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
            raise ModelLoadFailed(f"{where}: {key} holds NaN or infinity; export the checkpoint again")
    return {key: state[key] for key in own}


def to_blob(state: Mapping[str, torch.Tensor], where: str) -> bytes:
    """One safetensors blob; doubles become f32, everything else keeps its dtype. The same state gives the same bytes."""
    tensors = {k: (v.float() if v.dtype == torch.float64 else v).detach().clone().contiguous() for k, v in state.items()}
    blob = save(tensors)
    if int.from_bytes(blob[:8], "little") > MAX_HEADER_BYTES:
        raise ModelLoadFailed(f"{where}: {len(tensors)} tensors make a header above {MAX_HEADER_BYTES} bytes; too many keys")
    return blob


def load_blob(path: Path, family: str, params: Mapping[str, object], module: nn.Module) -> bytes:
    """Blob of a checkpoint under our keys, checked against `module`; a fitting safetensors file is copied as it is.

    Raises  ModelLoadFailed, BundleInvalid
    """
    stored = read_checkpoint(path)
    try:
        state = models.rename(family, dict(params), stored)
    except SpecError as error:
        raise ModelLoadFailed(f"{path}: {error}") from error
    fitted = fit_state(module, state, str(path))
    same = set(fitted) == set(stored) and not any(v.dtype == torch.float64 for v in stored.values())
    return path.read_bytes() if same and path.suffix == ".safetensors" else to_blob(fitted, str(path))


@dataclass(frozen=True, kw_only=True)
class Source:
    """One net to be stored: who it is and how to get its bytes (called once, when it is written)."""

    member: str
    fold: int
    read: Callable[[], bytes]
    kind: str = "safetensors"


def file_of(source: Source, packed: bool) -> str:
    """Name of the bundle file that holds a net."""
    suffix = ".onnx" if source.kind == "onnx" else ".safetensors"
    single = f"{source.member}.{source.fold}{suffix}"
    return f"{source.member}{suffix}" if packed and source.kind != "onnx" else single


def count_files(sources: Iterable[Source], packed: bool) -> int:
    return len({file_of(source, packed) for source in sources})


def write_nets(folder: Path, sources: Sequence[Source], packed: bool) -> tuple[list[Net], dict[str, FileEntry]]:
    """Nets and files written to `folder`: one file per net, or the folds of a member one after the other.

    Nets of a member must follow each other in `sources`; one net is in memory at a time.
    """
    nets: list[Net] = []
    sizes: dict[str, int] = {}
    digests: dict[str, hashlib._Hash] = {}
    for source in sources:
        name, blob = file_of(source, packed), source.read()
        with open(folder / name, "ab") as file:
            file.write(blob)
        offset = sizes.get(name, 0)
        sizes[name] = offset + len(blob)
        digests.setdefault(name, hashlib.sha256()).update(blob)
        nets.append(Net(member=source.member, fold=source.fold, file=name, offset=offset, length=len(blob),
                        sha256=hashlib.sha256(blob).hexdigest(), kind=source.kind))
    return nets, {name: FileEntry(bytes=size, sha256=digests[name].hexdigest()) for name, size in sizes.items()}
