"""Which file each net is made of: a checkpoint on this machine, random values, a file out of another dataset.

Owns the search below the weights folders and for local copies of attached files, what is said of those that
are missing, and the links to those copies which a rehearsal lays into its fake Kaggle. How a checkpoint
becomes a blob is weights', what an attached source needs besides is attached's.
"""
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

from torch import nn

from kernel.errors import ModelLoadFailed, SpecError, UploadError
from kernel.spec import Attached, Origin, Part, mounts_of, net_ids

from . import bundle_check, random_weights, weights
from .staging import ATTACHED

ROOT = Path(__file__).resolve().parent.parent
Modules = Mapping[str, nn.Module]  # By member or stacker; a member that is a graph already has none.


def weights_folders(ensemble: Path, given: Path | None) -> list[Path]:
    """Folders searched for checkpoints, in order; `given` is --weights.

    Raises  SpecError
    """
    if given is not None:
        if not given.is_dir():
            raise SpecError(f"--weights {given}: no such folder")
        return [given]
    beside = ensemble.resolve().parent
    return list(dict.fromkeys([beside / "weights", beside, beside.parent / "weights", ROOT / "weights"]))


def find_sources(
    parts: Sequence[Part], modules: Modules, ensemble: Path, given: Path | None, fill_missing: bool
) -> tuple[list[weights.Source], list[str]]:
    """Sources of all nets in order, and the ids of those to be filled with random values.

    ensemble      the TOML;  given: --weights
    fill_missing  nets without a checkpoint get random values

    Raises  SpecError, ModelLoadFailed listing every checkpoint that is missing
    """
    folders = weights_folders(ensemble, given)
    sources: list[weights.Source] = []
    missing: list[str] = []
    filled: list[str] = []
    by_name = {part.name: part for part in parts}

    @lru_cache(maxsize=1)  # The folds of a member are alike and follow each other.
    def fill(name: str) -> weights.Blob:
        state = random_weights.draw_state(modules[name], by_name[name].family, by_name[name].params)
        return weights.Blob(weights.to_blob(state, name))

    for part in parts:
        module = modules.get(part.name)
        for fold, net_id in zip(part.folds, net_ids(part), strict=True):
            path, attached = _find_file(part, fold, ensemble.resolve().parent, folders)
            if path is not None:
                read = partial(weights.load_blob, path, part.family, part.params, module, part)
            elif fill_missing and module is not None:
                filled.append(net_id)
                read = partial(fill, part.name)
            else:
                missing.append(f"{net_id}: {explain_missing(part, fold)}")
                continue
            kind = "onnx" if module is None else "safetensors"
            sources.append(weights.Source(member=part.name, fold=fold, kind=kind, read=read,
                                          attached=attached, copy=path if attached else None))
    if missing:
        raise ModelLoadFailed(
            "no checkpoint for\n  " + "\n  ".join(missing) + "\nin " + ", ".join(map(str, folders))
            + "\ngive --weights DIR, or --random-weights to time the ensemble without them"
        )
    return sources, filled


def _weights_name(part: Part, fold: int) -> str:
    """Name of a fold's checkpoint below the weights folders. Raises SpecError."""
    name: str = part.weights_file(fold)  # type: ignore[misc]  # One function that both classes share.
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise SpecError(f"{part.name}.weights: {name!r}; a name below the weights folder")
    return name


def _find_file(
    part: Part, fold: int, beside: Path, folders: Sequence[Path]
) -> tuple[Path | None, Attached | None]:
    """The file that a net is made of, None where it is missing; and its entry if it lies elsewhere on Kaggle.

    beside  the TOML's folder
    """
    name = _weights_name(part, fold)
    if part.source is None:
        return weights.find_weights(name, folders), None
    path = find_copy(part, part.source, fold, [beside, *folders])
    return path, describe_copy(part, part.source, fold, path) if path is not None else None


def _copy_name(part: Part, origin: Origin, fold: int) -> str:
    """Name of the local copy of an attached file, as the TOML gives it."""
    name = origin.local or part.weights or origin.file or _weights_name(part, fold)
    return name.replace("{fold}", str(fold))


def find_copy(part: Part, origin: Origin, fold: int, folders: Sequence[Path]) -> Path | None:
    """The local copy of an attached file: an absolute path, or the first of that very name in the folders."""
    name = Path(_copy_name(part, origin, fold)).expanduser()
    bare = [folder / name.name for folder in folders]  # A name inside a dataset may have folders of its own.
    places = [name] if name.is_absolute() else [*(folder / name for folder in folders), *bare]
    return next((place for place in places if place.is_file()), None)


def describe_copy(part: Part, origin: Origin, fold: int, path: Path) -> Attached:
    """The manifest's entry for an attached file, from its local copy.

    Raises  SpecError when the copy is not the file whose hash the TOML gives
    """
    digest = bundle_check.file_sha256(path)
    if origin.sha256 not in (None, digest):
        raise SpecError(
            f"{part.name}.source.sha256: {origin.sha256}, but {path} has {digest}; fetch the file again "
            f"({fetch_command(origin, fold, path.name)}), or correct the hash"
        )
    name = (origin.file or path.name).replace("{fold}", str(fold))
    return Attached(bytes=path.stat().st_size, sha256=digest, file=name, dataset=origin.dataset or "",
                    model=origin.model or "")


def fetch_command(origin: Origin, fold: int, name: str) -> str:
    """The `kaggle` client's command that brings the local copy."""
    file = PurePosixPath((origin.file or name).replace("{fold}", str(fold))).as_posix()
    if origin.model:
        return f"kaggle models instances versions download {origin.model} --untar"
    slug = "/".join((origin.dataset or "").split("/")[:2])
    return f"kaggle datasets download {slug} -f {file}"


def explain_missing(part: Part, fold: int) -> str:
    """What is missing for a net; where its weights lie elsewhere, how the local copy is fetched."""
    if part.source is None:
        return _weights_name(part, fold)
    name = _copy_name(part, part.source, fold)
    return (f"a local copy of {name}, to be tried and hashed ({fetch_command(part.source, fold, name)}; "
            "`local` in `source` says where it lies)")


def list_attached(sources: Sequence[weights.Source]) -> dict[str, Attached]:
    """Name as the nets know it -> the file out of another dataset or model."""
    return {weights.file_of(source, False): source.attached for source in sources if source.attached}


def lay_links(folder: Path, sources: Sequence[weights.Source]) -> None:
    """Links to the local copies below `folder`, laid out as Kaggle mounts them.

    Raises  UploadError when two different copies would be one file there
    """
    for source in sources:
        if source.attached is None or source.copy is None:
            continue
        link = folder / ATTACHED / mounts_of(source.attached)[0] / source.attached.file
        target = source.copy.resolve()
        if link.is_symlink():
            if Path(os.readlink(link)) != target:
                raise UploadError(
                    f"{source.member}.source: {source.attached.file} of {source.attached.place} has two "
                    f"different local copies, {os.readlink(link)} and {target}; keep one"
                )
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
