"""The code of the bundle as one wheel with fixed bytes.

Owns which files ship (kernel/ and the users' own files) and how they are packed: sorted, stored, with
one fixed date, so that the same sources give the same bytes on every machine. Does not ship training/,
builder/, tests or anything compiled.
"""
import base64
import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from kernel.errors import BundleInvalid, SpecError
from kernel.spec import Ensemble, FileEntry, Member, Stacker, Wheel
from kernel.spec.own_files import with_siblings

from . import own_fronts

DATE = (2019, 5, 31, 0, 0, 0)  # Any fixed date does; zip knows none before 1980.
CUSTOM = "kernel/custom/"  # Where kernel.own_files looks.
Part = TypeVar("Part", Member, Stacker)


@dataclass(frozen=True, kw_only=True)
class OwnFiles:
    """An ensemble whose families, front ends and steps may be the user's own files.

    here     own files as absolute paths, to build on this machine
    shipped  own files by their bare names, for the manifest
    code     archive name -> source of each own file
    """

    here: Ensemble
    shipped: Ensemble
    code: dict[str, bytes]


def find_own_files(ensemble: Ensemble, folder: Path) -> OwnFiles:
    """The own files, which the TOML names relative to its folder, with all that they import from beside them.

    Raises  SpecError when a file is missing, imports what Kaggle lacks, the kernel would refuse its name, or
            two files share a name
    """
    paths: dict[str, Path] = {}

    def find(text: str, where: str, ship: bool) -> str:
        file, colon, inside = text.rpartition(":")
        if not colon or not file.endswith(".py"):
            return text
        path = (folder / file).resolve()
        if not path.is_file():
            raise SpecError(f"{where}: no file {file!r} in {folder}; give its path relative to the TOML")
        own_fronts.check_imports(path, where)
        for name, held in with_siblings(path).items():
            if not all(map(is_shippable, name.split("/"))):
                raise SpecError(
                    f"{where}: the file name {name!r} holds characters that the kernel refuses; rename it, "
                    "best to letters, digits and '_'"
                )
            if paths.setdefault(name, held) != held:
                raise SpecError(f"{where}: two different files are called {name}; rename one")
        return f"{path.name if ship else path}:{inside}"

    def steps(entries: tuple[Any, ...], where: str, ship: bool) -> tuple[Any, ...]:
        return tuple(
            {**step, "file": find(str(step["file"]), f"{where}.steps[{i}].file", ship)}
            if isinstance(step, dict) and "file" in step else step for i, step in enumerate(entries))

    def locate(part: Part, ship: bool) -> Part:
        return replace(part, family=find(part.family, f"{part.name}.family", ship),
                       steps=steps(part.steps, part.name, ship))

    def resolve(ship: bool) -> Ensemble:
        fronts = {
            name: {**table, "file": find(str(table["file"]), f"frontends.{name}.file", ship)}
            if "file" in table else table for name, table in ensemble.frontends.items()
        }
        output = replace(ensemble.output, steps=steps(ensemble.output.steps, "output", ship))
        groups = tuple(replace(g, steps=steps(g.steps, g.name, ship)) for g in ensemble.groups)
        return replace(ensemble, members=tuple(locate(m, ship) for m in ensemble.members), frontends=fronts,
                       stackers=tuple(locate(s, ship) for s in ensemble.stackers), output=output,
                       groups=groups)

    return OwnFiles(here=resolve(False), shipped=resolve(True),
                    code={CUSTOM + name: path.read_bytes() for name, path in sorted(paths.items())})


def is_shippable(name: str) -> bool:
    """True for a file name that the guard takes out of a wheel: a copy of its rule (infer_kernel.is_safe)."""
    return name.isprintable() and "\\" not in name and name not in ("", ".", "..") and "/" not in name


def kernel_files(root: Path) -> dict[str, bytes]:
    """Archive name -> source of every module of kernel/ below `root`."""
    paths = sorted((root / "kernel").rglob("*.py"))
    if not paths:
        raise BundleInvalid(f"{root}: no kernel/ folder; run build_dataset.py from its repository")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths
            if not path.relative_to(root).as_posix().startswith(CUSTOM)}


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
            entry.create_system = 3  # Unix.
            entry.external_attr = 0o644 << 16
            wheel.writestr(entry, data)
    whole = (folder / name).read_bytes()
    return Wheel(file=name, entry=FileEntry(bytes=len(whole), sha256=hashlib.sha256(whole).hexdigest()),
                 files={inner: FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
                        for inner, data in sorted(held.items())})
