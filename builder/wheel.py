"""The code of the bundle as one wheel with fixed bytes.

Owns which files ship (kernel/ and the users' own model files) and how they are packed: sorted, stored, one
fixed date, so that the same sources give the same bytes on every machine. Does not ship training/, builder/,
tests or anything compiled.
"""
from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from kernel.errors import BundleInvalid
from kernel.spec import FileEntry, Wheel

DATE = (2019, 5, 31, 0, 0, 0)  # any fixed date; zip knows none before 1980
CUSTOM = "kernel/custom/"  # where kernel.models.custom looks


def kernel_files(root: Path) -> dict[str, bytes]:
    """Archive name -> source of every module of kernel/ below `root`."""
    paths = sorted((root / "kernel").rglob("*.py"))
    if not paths:
        raise BundleInvalid(f"{root}: no kernel/ folder; run build_dataset.py from its repository")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths
            if not path.relative_to(root).as_posix().startswith(CUSTOM)}


def custom_files(paths: Mapping[str, Path]) -> dict[str, bytes]:
    """Archive name -> source of the users' own model files (file name -> path)."""
    return {CUSTOM + name: path.read_bytes() for name, path in sorted(paths.items())}


def _record(files: Mapping[str, bytes], info: str) -> bytes:
    lines = []
    for name, data in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    return ("\n".join([*lines, f"{info}/RECORD,,"]) + "\n").encode()


def write_wheel(folder: Path, version: str, files: Mapping[str, bytes]) -> Wheel:
    """The wheel written to `folder`: a proper one, pip can install it."""
    info = f"hourglass-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: hourglass\nVersion: {version}\nLicense: Apache-2.0\n"
    tags = "Wheel-Version: 1.0\nGenerator: hourglass\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    held = {**files, f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": tags.encode()}
    held[f"{info}/RECORD"] = _record(held, info)
    name = f"hourglass-{version}-py3-none-any.whl"
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_STORED) as wheel:
        for inner, data in sorted(held.items()):
            entry = zipfile.ZipInfo(inner, DATE)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            wheel.writestr(entry, data)
    whole = (folder / name).read_bytes()
    return Wheel(file=name, entry=FileEntry(bytes=len(whole), sha256=hashlib.sha256(whole).hexdigest()),
                 files={inner: FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
                        for inner, data in sorted(held.items())})
