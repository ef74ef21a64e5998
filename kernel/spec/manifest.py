"""The bundle's manifest as a typed value: which files the bundle holds, and where each net lies in them.

Owns `Manifest`, which the builder writes and the engine reads, and the rules of a manifest. Does not read the
files themselves (kernel.bundle).
"""
import re
from dataclasses import dataclass, field
from typing import Any

from ..errors import SpecError
from .attached import Attached, check_attached
from .ensemble import Ensemble, check
from .strict import load, loads_json, require

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")  # flat bundle names


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the bundle (or of the wheel): bytes and sha256 (hex)."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Net:
    """One net: a (member or stacker, fold) and where its bytes lie.

    offset, length   slice of `file` in bytes (a whole safetensors blob)
    kind             "safetensors" or "onnx"
    said             what was converted or left out of its checkpoint, a sentence each
    """

    member: str
    fold: int
    file: str
    offset: int
    length: int
    sha256: str
    kind: str = "safetensors"
    said: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.member}.{self.fold}"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one net per forward, linear in frames: value = a + b x frames of one clip (all its tiles).

    gmac_a, gmac_b    multiply-adds / 1e9
    bytes_a, bytes_b  peak activation bytes
    open_bytes        of a graph: memory of the runtime's own form of it, shared by all its forwards
    seconds_a/b       measured on a rehearsal (--costs), None before
    """

    gmac_a: float = 0.0
    gmac_b: float = 0.0
    bytes_a: float = 0.0
    bytes_b: float = 0.0
    parameters: int = 0
    open_bytes: float = 0.0
    seconds_a: float | None = None
    seconds_b: float | None = None


@dataclass(frozen=True, kw_only=True)
class Wheel:
    file: str
    entry: FileEntry
    files: dict[str, FileEntry]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the bundle holds; its own sha256 is compiled into the pushed kernel.

    bundle    id: first 16 hex digits of the sha256 over everything below
    files     every other file of the bundle: name -> FileEntry (the wheel and the manifest itself excluded)
    attached  files that other datasets and models hold: name as the nets know it -> Attached
    graphs    exported graphs for other back ends: net id -> {"onnx": file name} (files listed in `files`)
    costs     member name -> Cost; frontend_seconds: front end name -> seconds per second of audio (--costs)
    profiles  every named limits profile, so that --limits works on the unpinned file
    random_weights  True if any net was filled by --random-weights
    """

    format: int
    bundle: str
    version: str
    ensemble: Ensemble
    wheel: Wheel
    files: dict[str, FileEntry]
    nets: tuple[Net, ...]
    attached: dict[str, Attached] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    frontend_seconds: dict[str, float] = field(default_factory=dict)
    graphs: dict[str, dict[str, str]] = field(default_factory=dict)
    prior: tuple[float, ...] = ()
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    random_weights: bool = False

    @property
    def entries(self) -> dict[str, FileEntry]:
        """Every file but the code's wheel and the manifest, wherever it lies."""
        elsewhere = {name: FileEntry(bytes=held.bytes, sha256=held.sha256)
                     for name, held in self.attached.items()}
        return {**self.files, **elsewhere}


def load_manifest(text: bytes, where: str = "manifest.json") -> Manifest:
    """Manifest from the very bytes that were hashed.

    Raises  SpecError
    """
    data = loads_json(text, where)
    try:
        manifest = load(Manifest, data)
        check(manifest.ensemble)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from error
    again = "build the bundle again"
    entries = manifest.entries
    for name in [manifest.wheel.file, *entries, *(net.file for net in manifest.nets)]:
        require(FILE_NAME.match(name) is not None, f"{where}: file name {name!r} is not allowed; {again}")
    folded = [name.casefold() for name in [manifest.wheel.file, *manifest.files, *manifest.attached]]
    require(len(set(folded)) == len(folded), f"{where}: two file names differ only in case; {again}")
    for name, held in manifest.attached.items():
        check_attached(held, f"{where}: attached.{name}")
    for net in manifest.nets:
        entry = entries.get(net.file)
        inside = entry is not None and net.offset >= 0 and 0 < net.length <= entry.bytes - net.offset
        require(inside, f"{where}: net {net.id} lies outside {net.file}; {again}")
    return manifest
