"""Checkpoints -> safetensors blobs that fit their nets, and the bundle files that hold them.

Owns finding a checkpoint, turning it into the blob that ships, and laying nets out in files. Does not read
foreign formats and does not check keys (training.checkpoints), and builds no nets (kernel.models).
"""
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from kernel.bundle import MAX_HEADER_BYTES, parse_state
from kernel.errors import ModelLoadFailed
from kernel.spec import FileEntry, Net
from training.checkpoints import FLOAT8, KERAS, PICKLES, match_state, read_state

SUFFIXES = (".safetensors", *PICKLES, *KERAS, ".onnx")
MAX_SINGLE_FILES = 40  # Up to so many nets have files of their own; beyond, each member has one file.


def find_weights(name: str, folders: Sequence[Path]) -> Path | None:
    """The checkpoint `name` (also under another known suffix) in the first folder that has it, else None."""
    stem = name.removesuffix(Path(name).suffix) if Path(name).suffix in SUFFIXES else name
    for folder in folders:
        for candidate in (name, *(stem + suffix for suffix in SUFFIXES)):
            if (folder / candidate).is_file():
                return folder / candidate
    return None


def to_blob(state: Mapping[str, torch.Tensor], where: str) -> bytes:
    """One safetensors blob, the same bytes for the same state; f64 and f8 become f32, all else stays."""
    single = {k: v.float() if v.dtype in (torch.float64, *FLOAT8) else v for k, v in state.items()}
    tensors = {k: v.detach().clone().contiguous() for k, v in single.items()}
    blob = save(tensors)
    if int.from_bytes(blob[:8], "little") > MAX_HEADER_BYTES:
        raise ModelLoadFailed(
            f"{where}: {len(tensors)} tensors make a header above {MAX_HEADER_BYTES} bytes; too many keys"
        )
    return blob


def load_blob(path: Path, family: str, params: Mapping[str, Any], module: nn.Module | None) -> bytes:
    """Blob of a checkpoint under our keys, checked against `module`; a fitting file stays as it is.

    module  None for a graph, which ships as it is
    Raises  ModelLoadFailed (unreadable, holding code, or not fitting), BundleInvalid
    """
    if module is None:
        return path.read_bytes()
    stored = read_state(path)
    fitted = match_state(stored, family, params, module, str(path))
    kept = all(v.dtype not in (torch.float64, *FLOAT8) for v in stored.values())
    same = set(fitted) == set(stored) and all(fitted[k].dtype == v.dtype for k, v in stored.items())
    if not (kept and same) or path.suffix != ".safetensors":
        return to_blob(fitted, str(path))
    blob = path.read_bytes()
    parse_state(blob, str(path))  # What the kernel would refuse is refused here.
    return blob


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


def write_nets(
    folder: Path, sources: Sequence[Source], packed: bool
) -> tuple[list[Net], dict[str, FileEntry]]:
    """Nets and files written to `folder`: one file per net, or the folds of a member one after the other.

    Nets of a member must follow each other in `sources`; one net is in memory at a time.
    """
    nets: list[Net] = []
    sizes: dict[str, int] = {}
    digests: dict[str, hashlib._Hash] = {}
    for source in sources:
        name = file_of(source, packed)
        blob = source.read()
        with open(folder / name, "ab") as file:
            file.write(blob)
        offset = sizes.get(name, 0)
        sizes[name] = offset + len(blob)
        digests.setdefault(name, hashlib.sha256()).update(blob)
        nets.append(Net(member=source.member, fold=source.fold, file=name, offset=offset, length=len(blob),
                        sha256=hashlib.sha256(blob).hexdigest(), kind=source.kind))
    return nets, {
        name: FileEntry(bytes=size, sha256=digests[name].hexdigest()) for name, size in sizes.items()
    }
