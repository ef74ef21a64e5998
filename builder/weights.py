"""Checkpoints -> safetensors blobs that fit their nets, and the bundle files that hold them.

Owns finding a checkpoint, turning it into the blob that ships, and laying nets out in files. Does not read
foreign formats (training.checkpoints), checks no keys (training.state_matching), and builds no nets
(kernel.models).
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
from kernel.spec import Attached, FileEntry, Net, Part
from training.checkpoints import KERAS, PICKLES, read_checkpoint
from training.state_matching import FLOAT8, fit_state, match_state

from . import graph_files, in_net_mel

SUFFIXES = (".safetensors", *PICKLES, ".pth.tar", *KERAS, ".weights.h5", ".keras", ".onnx")
MAX_SINGLE_FILES = 40  # Up to so many nets have files of their own; beyond, each member has one file.


def find_weights(name: str, folders: Sequence[Path]) -> Path | None:
    """The checkpoint `name` (also under another known suffix) in the first folder that has it, else None."""
    ends = sorted((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len)
    stem = name.removesuffix(ends[-1]) if ends else name
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


class Blob(bytes):
    """Bytes of one net as they ship.

    said  what was converted or left out of its checkpoint, a sentence each
    """

    said: tuple[str, ...] = ()

    @classmethod
    def of(cls, data: bytes, said: Sequence[str]) -> "Blob":
        blob = cls(data)
        blob.said = tuple(said)
        return blob


def load_blob(path: Path, family: str, params: Mapping[str, Any], module: nn.Module | None,
              part: Part | None = None) -> Blob:
    """Blob of a checkpoint under our keys, every tensor of it taken; a fitting file stays as it is.

    module  None for a graph, which ships as it is
    part    whose checkpoint it is: what it drops, which weights it takes, the finish that may take tensors
    Raises  ModelLoadFailed (unreadable, holding code, or not fitting), BundleInvalid
    """
    if module is None:
        return Blob.of(*graph_files.read_graph(path))
    which = (part.weights_key or "").rstrip(".") if part else ""
    stored = read_checkpoint(path, which)
    matched = match_state(
        stored.tensors, family, params, module, str(path), drop=part.drop if part else (),
        which="" if stored.named else which
    )
    rest, said = matched.rest, (*stored.said, *matched.said)
    constants: dict[str, torch.Tensor] = {}
    if part:
        constants, rest, of_finish = in_net_mel.take(rest, part, str(path))
        said = (*said, *of_finish)
    fitted = fit_state(module, matched.state, rest, str(path)) | constants
    kept = all(v.dtype not in (torch.float64, *FLOAT8) for v in stored.tensors.values())
    same = set(fitted) == set(stored.tensors)
    same = same and all(fitted[k].dtype == v.dtype for k, v in stored.tensors.items())
    if not (kept and same) or path.suffix != ".safetensors":
        return Blob.of(to_blob(fitted, str(path)), said)
    blob = path.read_bytes()
    parse_state(blob, str(path))  # What the kernel would refuse is refused here.
    return Blob.of(blob, said)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One net to be stored: who it is and how to get its bytes (called once, when it is written).

    attached  the file out of another dataset or model that holds it, instead of the bundle;  copy: here
    """

    member: str
    fold: int
    read: Callable[[], bytes]
    kind: str = "safetensors"
    attached: Attached | None = None
    copy: Path | None = None


def file_of(source: Source, packed: bool) -> str:
    """Name of the bundle file that holds a net."""
    suffix = ".onnx" if source.kind == "onnx" else ".safetensors"
    single = f"{source.member}.{source.fold}{suffix}"
    return f"{source.member}{suffix}" if packed and source.kind != "onnx" else single


def write_nets(
    folder: Path, sources: Sequence[Source], packed: bool
) -> tuple[list[Net], dict[str, FileEntry]]:
    """Nets and files written to `folder`: one file per net, or the folds of a member one after the other.

    Nets of a member must follow each other in `sources`; one net is in memory at a time. Attached ones are
    checked, and not written.

    Raises  ModelLoadFailed when an attached file would have to be converted
    """
    nets: list[Net] = []
    sizes: dict[str, int] = {}
    digests: dict[str, hashlib._Hash] = {}
    for source in sources:
        name = file_of(source, packed and source.attached is None)
        blob = source.read()
        offset = sizes.get(name, 0)
        if source.attached is not None:
            check_unconverted(source, blob)
        else:
            with open(folder / name, "ab") as file:
                file.write(blob)
            sizes[name] = offset + len(blob)
            digests.setdefault(name, hashlib.sha256()).update(blob)
        nets.append(Net(member=source.member, fold=source.fold, file=name, offset=offset, length=len(blob),
                        sha256=hashlib.sha256(blob).hexdigest(), kind=source.kind,
                        said=blob.said if isinstance(blob, Blob) else ()))
    return nets, {
        name: FileEntry(bytes=size, sha256=digests[name].hexdigest()) for name, size in sizes.items()
    }


def check_unconverted(source: Source, blob: bytes) -> None:
    """Nothing, when the kernel can read an attached file as it is.

    Raises  ModelLoadFailed saying what would be converted, and what to upload instead
    """
    if source.attached is None or hashlib.sha256(blob).hexdigest() == source.attached.sha256:
        return
    said = "; ".join(blob.said) if isinstance(blob, Blob) and blob.said else "format or names of its tensors"
    raise ModelLoadFailed(
        f"{source.member}.source: {source.copy} would have to be converted ({said}), and the kernel reads an "
        f"attached file as it is. Build once without `source`: bundle/{file_of(source, False)} is the file "
        "to put into that dataset"
    )


def say_conversions(nets: Sequence[Net], say: Callable[[str], None]) -> None:
    """What was converted or left out of checkpoints, once per member with the folds it is true of."""
    found: dict[tuple[str, str], list[int]] = {}
    for net in nets:
        for sentence in net.said:
            found.setdefault((net.member, sentence), []).append(net.fold)
    for (member, sentence), folds in found.items():
        say(f"{member} (folds {', '.join(map(str, folds))}): {sentence}")
