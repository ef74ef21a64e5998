"""What lies beside the bundle: files of other datasets and models, and its own weights after --split.

Owns the move of weights into a dataset of their own, its metadata, and what the kernel's metadata must
attach. Finding local copies and linking them is sources'.
"""
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kernel.errors import UploadError
from kernel.spec import Attached, Ensemble, FileEntry, Manifest, Origin

from . import bundle_check, metadata
from .staging import WEIGHTS

SUFFIX = "-weights"  # Of the slug, for the dataset of a split bundle's weights.


def weights_id(dataset: str) -> str:
    """owner/slug of the dataset of weights that belongs to a bundle's."""
    return dataset + SUFFIX


def without_copies(ensemble: Ensemble) -> Ensemble:
    """The ensemble as it ships: where local copies lie is nobody else's business."""

    def strip(origin: Origin | None) -> Origin | None:
        return replace(origin, local=None) if origin else None

    return replace(ensemble,
                   members=tuple(replace(part, source=strip(part.source)) for part in ensemble.members),
                   stackers=tuple(replace(part, source=strip(part.source)) for part in ensemble.stackers))


def split(folder: Path, files: Mapping[str, FileEntry]) -> dict[str, Attached]:
    """Every file of `folder`/bundle moved to a folder of weights beside it, and what the manifest says of it.
    """
    target = folder / WEIGHTS
    target.mkdir()
    for name in files:
        (folder / "bundle" / name).rename(target / name)
    return {name: Attached(bytes=entry.bytes, sha256=entry.sha256, file=name)
            for name, entry in files.items()}


def describe_weights(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """dataset-metadata.json of the weights that belong to the dataset of a bundle.

    Raises  UploadError when its slug is too long for the one of its weights
    """
    _, slug = metadata.check_id(dataset["id"])
    most = metadata.SLUG_CHARACTERS[1] - len(SUFFIX)
    if len(slug) > most:
        raise UploadError(f"--split: the slug {slug!r} has {len(slug)} characters; its weights are called "
                          f"{slug}{SUFFIX}, so give --slug with at most {most}")
    held = {**dataset, "id": weights_id(dataset["id"]),
            "title": slug.replace("-", " ").capitalize() + SUFFIX.replace("-", " ")}
    metadata.check_dataset(held)
    return held


def is_split(manifest: Manifest) -> bool:
    """True when the bundle's weights are a dataset of their own."""
    return any(not (held.dataset or held.model) for held in manifest.attached.values())


def attach(kernel: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    """kernel-metadata.json that attaches all that the manifest needs beside the bundle.

    Raises  UploadError
    """
    held = manifest.attached.values()
    bundle = str(kernel["dataset_sources"][0])
    own = [weights_id(bundle)] if is_split(manifest) else []
    datasets = sorted({each.dataset for each in held if each.dataset})
    attached = {
        **kernel,
        "dataset_sources": list(dict.fromkeys([bundle, *own, *datasets])),
        "model_sources": sorted({each.model for each in held if each.model}),
    }
    metadata.check_kernel(attached)
    return attached


def check_attached(kernel: Mapping[str, Any], manifest: Manifest, dataset: str) -> None:
    """Nothing, when the kernel's metadata attaches all that the manifest needs beside the bundle `dataset`.

    Raises  UploadError naming what is not attached
    """
    wanted = attach({**kernel, "dataset_sources": [dataset]}, manifest)
    for field in ("dataset_sources", "model_sources"):
        given = kernel.get(field)
        known = {_without_version(str(each), field) for each in given} if isinstance(given, list) else set()
        for each in wanted[field]:
            if _without_version(each, field) not in known:
                raise UploadError(f"{field}: {given!r}; the kernel would run without {each}")


def _without_version(source: str, field: str) -> str:
    """A dataset's owner/slug: any version of it may be attached. A model has its version in its name."""
    return "/".join(source.split("/")[:2]) if field == "dataset_sources" else source


def check_weights(out: Path, manifest: Manifest) -> None:
    """Nothing, when the weights of a split bundle in `out` can be uploaded as they are.

    Raises  UploadError naming the file and the rule
    """
    folder = out / WEIGHTS
    if not folder.is_dir():
        raise UploadError(f"{folder}: no such folder, but the bundle was split; build again")
    bundle_check.check_folder(folder)
    listed = {name: held for name, held in manifest.attached.items() if not (held.dataset or held.model)}
    bundle_check.check_listed(folder, listed, {bundle_check.METADATA})


def tell(out: Path, manifest: Manifest) -> list[str]:
    """What lies beside the bundle of a build, a line each."""
    lines = []
    if is_split(manifest):
        own = [held.bytes for held in manifest.attached.values() if not (held.dataset or held.model)]
        lines.append(f"{out / WEIGHTS}: the weights, {len(own)} files, {sum(own) / 1e6:.1f} MB")
    lines += [
        f"attached: {held.file} out of {held.place}, {held.bytes / 1e6:.1f} MB, sha256 {held.sha256[:16]}"
        for held in manifest.attached.values() if held.dataset or held.model
    ]
    return lines
