"""The mounted bundle: verified bytes of every file the manifest names.

Owns reading: the sha256 is taken over the very bytes that are parsed, so nothing can change between check and
use, and a file that Kaggle renamed or wrapped into a folder is found again by its size and hash, also where
it lies in another dataset or model. Weights come as safetensors only. Does not find the bundle folder or
verify the manifest and the wheel (the guard), nor build nets (models).
"""
import hashlib
import os
import stat
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch

from .errors import BundleError, BundleHashMismatch, BundleInvalid, BundleMissing, did_you_mean
from .spec import Attached, FileEntry, Manifest, Net, mounts_of

# Of a safetensors blob: the format itself allows 100 MB, which a damaged or hostile file could claim
MAX_HEADER_BYTES = 1 << 20
# The search for a lost file: folders that Kaggle wraps round a dataset nest once or twice; a bundle has 50
# files, an unpacked wheel a few hundred
SEARCH_DEPTH = 3
SEARCH_ENTRIES = 2000
# Beside a bundle that was built here: links to the local copies, laid out as Kaggle mounts them,
ATTACHED_FOLDER = "bundle-attached"
# and the bundle's weights, where the build was split
WEIGHTS_FOLDER = "bundle-weights"
# The search for an attached file that lies at no known place. Its folders hold few files, a competition's
# hold thousands: those are cut short. 20 ms for each look, as on a slow mount, make 10 s, once per run.
WIDE_DEPTH = 8  # input/models/OWNER/MODEL/FRAMEWORK/VARIATION/VERSION/x
WIDE_FOLDERS = 250
WIDE_FILES = 250
FOLDER_ENTRIES = 200
AUDIO = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".opus", ".m4a")  # never a net, and most files


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Verified access to one mounted bundle. Thread-safe: every read opens its own descriptor.

    input  where datasets and models are mounted; None = only beside the bundle
    moved  file name in the manifest -> where the file was really found
    """

    folder: Path
    manifest: Manifest
    input: Path | None = None
    moved: dict[str, Path] = field(default_factory=dict)
    _wide: list[tuple[int, Path]] = field(default_factory=list)
    _searched: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read_net(self, net: Net) -> bytes:
        """The bytes of one net, whose sha256 has been checked.

        Raises  BundleMissing when no file holds them, BundleHashMismatch when the bytes differ
        """
        entry = FileEntry(bytes=self.manifest.entries[net.file].bytes, sha256=net.sha256)
        return self._read(net.file, entry, net.offset, net.length, f"net {net.id}")

    def read_file(self, name: str) -> bytes:
        """The bytes of one file of the manifest (a graph, a wheel), whose sha256 has been checked.

        Raises  BundleInvalid for a name outside the manifest, BundleMissing, BundleHashMismatch
        """
        entries = {self.manifest.wheel.file: self.manifest.wheel.entry, **self.manifest.entries}
        entry = entries.get(name)
        if entry is None:
            raise BundleInvalid(f"{name!r} is not in the manifest; {did_you_mean(name, entries)}")
        return self._read(name, entry, 0, entry.bytes, name)

    def load_state(self, net: Net) -> dict[str, torch.Tensor]:
        """Tensors of one net; half precision storage becomes f32, integers stay.

        Raises  BundleMissing, BundleHashMismatch, BundleInvalid (no safetensors, or a header above 1 MB)
        """
        if net.kind != "safetensors":
            raise BundleInvalid(f"net {net.id} is stored as {net.kind}, not as safetensors; use read_net")
        return parse_state(self.read_net(net), f"net {net.id} in {net.file}")

    def _read(self, name: str, entry: FileEntry, offset: int, length: int, what: str) -> bytes:
        """`length` bytes with the sha256 of `entry`, wherever the file went."""
        found: list[str] = []
        for path in self._places(name, entry.bytes):
            try:
                data = read_slice(path, entry.bytes, offset, length)
            except (OSError, BundleError) as error:
                found.append(f"{path}: {error}")
                continue
            digest = hashlib.sha256(data).hexdigest()
            if digest == entry.sha256:
                if path != self.folder / name:
                    self.moved[name] = path
                return data
            found.append(f"{path}: sha256 {digest[:16]}")
        held = self.manifest.attached.get(name)
        if held is not None:
            raise self._explain_attached(what, held, found)
        expected = (
            f"{what}: expected {name} of {entry.bytes} bytes with sha256 {entry.sha256[:16]} in {self.folder}"
        )
        if (self.folder / name).exists():
            raise BundleHashMismatch(f"{expected}; found {'; '.join(found[:3])}. Upload the bundle again")
        raise BundleMissing(
            f"{expected}; found no such file, and its bytes in none of the others. Upload the bundle again"
        )

    def find_attached(self, name: str) -> None:
        """Nothing, when a file of the right size is there; its bytes are checked when it is read.

        Raises  BundleMissing, BundleHashMismatch
        """
        held = self.manifest.attached[name]
        found = []
        for path in self._attached_places(name, held):
            size = _size_of(path)
            if size == held.bytes:
                return
            found.append(f"{path}: {size} bytes")
        raise self._explain_attached(name, held, found)

    def _explain_attached(self, what: str, held: Attached, found: list[str]) -> BundleError:
        """The error for an attached file that is not there, or has other bytes."""
        expected = (
            f"{what}: expected {held.file} of {held.bytes} bytes with sha256 {held.sha256[:16]} out of "
            f"{held.place}"
        )
        if found:
            return BundleHashMismatch(
                f"{expected}; found {'; '.join(found[:3])}. It was changed since the build: attach the "
                "version that was built with (owner/slug/VERSION), or build again with today's file"
            )
        return BundleMissing(
            f"{expected}; found nothing of that size below {self.input or self.folder.parent}. Attach it to "
            "the kernel: push with the kernel-metadata.json of the build, or add it in the notebook's editor"
        )

    def _places(self, name: str, size: int) -> Iterator[Path]:
        """The expected place first, then a place found before, then every near file of that very size."""
        if name in self.manifest.attached:
            yield from self._attached_places(name, self.manifest.attached[name])
            return
        expected = self.folder / name
        yield expected
        if name in self.moved:
            yield self.moved[name]
        for path in near_files(self.folder):
            if path != expected and path.lstat().st_size == size:
                yield path

    def _attached_places(self, name: str, held: Attached) -> Iterator[Path]:
        """Where it was found before, where Kaggle mounts its source, then every file of its size."""
        seen = set()
        if name in self.moved:
            seen.add(self.moved[name])
            yield self.moved[name]
        for root in self._roots():
            for mount in mounts_of(held):
                expected = root / mount / held.file
                near = [path for path in near_files(root / mount) if _size_of(path) == held.bytes]
                for path in [*([expected] if _size_of(expected) >= 0 else []), *near]:
                    if path not in seen:
                        seen.add(path)
                        yield path
        for size, path in self._search_wide():
            if size == held.bytes and path not in seen:
                yield path

    def _roots(self) -> list[Path]:
        """Folders that datasets are mounted in, and the one where a build leaves its attached files."""
        roots = [self.folder.parent / ATTACHED_FOLDER, self.folder.parent]
        return [self.input, *roots] if self.input is not None else roots

    def _search_wide(self) -> list[tuple[int, Path]]:
        """(size, path) of files in other datasets, found once, the nearest to the bundle first."""
        with self._lock:
            if not self._searched.is_set():
                self._wide.extend(wide_files([self.folder.parent, *([self.input] if self.input else [])]))
                self._searched.set()
        return self._wide


def _size_of(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def wide_files(roots: list[Path]) -> Iterator[tuple[int, Path]]:
    """(size, path) of regular files below these folders, breadth first, within the bounds of a search.

    Links are followed, each folder is looked at once. Audio is passed over, and so is what a competition has.
    """
    queue = deque((root, 0) for root in dict.fromkeys(roots))
    seen: set[str] = set()
    looked = 0
    while queue and len(seen) < WIDE_FOLDERS:
        folder, depth = queue.popleft()
        real = os.path.realpath(folder)
        if real in seen or (folder.name == "competitions" and depth):
            continue
        seen.add(real)
        for entry in _list_folder(folder, FOLDER_ENTRIES):
            try:
                if entry.is_dir():
                    if depth < WIDE_DEPTH:
                        queue.append((Path(entry.path), depth + 1))
                elif not entry.name.lower().endswith(AUDIO) and looked < WIDE_FILES and entry.is_file():
                    looked += 1
                    yield entry.stat().st_size, Path(entry.path)
            except OSError:
                continue  # it vanished, or may not be looked at


def open_bundle(folder: Path, manifest: Manifest, input: Path | None = None) -> Bundle:
    """The bundle in `folder`; nothing is read yet, so that one lost file costs one net and not the run.

    input  where datasets and models are mounted, for files that the bundle does not hold

    Raises  BundleMissing when `folder` is no folder
    """
    if not folder.is_dir():
        raise BundleMissing(
            f"{folder}: no such folder; attach the dataset, or give --bundle the folder with manifest.json"
        )
    return Bundle(folder=folder, manifest=manifest, input=input)


def near_files(folder: Path) -> Iterator[Path]:
    """Regular files below `folder`, the nearest first: at most 3 folders deep and among 2,000 entries.

    Links are not followed.
    """
    level = [folder]
    seen = 0
    for _ in range(SEARCH_DEPTH + 1):
        deeper: list[Path] = []
        for place in level:
            for entry in _list_folder(place):
                seen += 1
                if seen > SEARCH_ENTRIES:
                    return
                if entry.is_file(follow_symlinks=False):
                    yield Path(entry.path)
                elif entry.is_dir(follow_symlinks=False):
                    deeper.append(Path(entry.path))
        level = deeper


def _list_folder(folder: Path, most: int | None = None) -> list[os.DirEntry[str]]:
    """Entries in order, `most` at most; none where the folder may not be read: the file counts as missing."""
    try:
        with os.scandir(folder) as entries:
            return sorted(islice(entries, most), key=lambda e: e.name)
    except OSError:
        return []


def read_slice(path: Path, size: int, offset: int, length: int) -> bytes:
    """`length` bytes from `offset` of a regular file of exactly `size` bytes.

    Raises  OSError; BundleInvalid when it is no regular file or has another size
    """
    # O_NONBLOCK: a FIFO must not hang the run
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size != size:
            raise BundleInvalid(f"{facts.st_size} bytes, not a regular file of {size}")
        data = bytearray()
        while len(data) < length:
            part = os.pread(handle, min(length - len(data), 1 << 26), offset + len(data))
            if not part:
                raise BundleInvalid(f"ends after {len(data)} of {length} bytes")
            data += part
        return bytes(data)
    finally:
        os.close(handle)


def parse_state(data: bytes, where: str) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors blob, floating ones as f32.

    Raises  BundleInvalid when the blob is something else, is damaged, or has a header above 1 MB
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    header = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header > min(MAX_HEADER_BYTES, len(data) - 8):
        raise BundleInvalid(
            f"{where}: the safetensors header claims {header} bytes of {len(data)}; build the bundle again"
        )
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleInvalid(f"{where}: not safetensors ({error}); build the bundle again") from error
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
