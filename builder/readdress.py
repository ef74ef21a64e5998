"""A finished build under another owner, slug, title or competition, without building it again.

Owns the places that hold them: the metadata files, the kernel's constant, and its notebook. The other
files of the bundle, and so its id, stay as they are.
"""
import shutil
from pathlib import Path
from typing import Any

from kernel.errors import UploadError
from kernel.files import write_atomically
from kernel.pin import EMPTY, SCRIPT, fill_constant, read_constant
from kernel.spec import dumps_json, loads_json

from . import bundle_check, metadata, notebook
from .attached import describe_weights, weights_id
from .staging import WEIGHTS

KERNEL_METADATA = "kernel-metadata.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        data = loads_json(path.read_bytes(), path.name)
    except OSError as error:
        raise UploadError(f"{path}: {error.strerror}; build first") from error
    if not isinstance(data, dict):
        raise UploadError(f"{path}: not a JSON object; build again")
    return data


def _refill(source: str, slug: str) -> str:
    """The pushed kernel with this slug in its constant.

    Raises  UploadError when it is no kernel that was built
    """
    try:
        value = read_constant(source)
    except SyntaxError as error:
        raise UploadError(f"{SCRIPT}: is no Python ({error}); build again") from error
    lines = source.split("\n")
    places = [number for number, line in enumerate(lines) if line.startswith("CONSTANT = ")]
    if value is None or len(places) != 1:
        raise UploadError(f"{SCRIPT}: has no filled CONSTANT; build again")
    lines[places[0]] = EMPTY
    return fill_constant("\n".join(lines), {**value, "slug": slug})


def readdress(
    out: Path, owner: str | None, slug: str | None, title: str | None, competition: str | None
) -> list[str]:
    """What was changed, in words; None leaves a value as it is.

    Raises  UploadError naming field and rule, before anything is written
    """
    dataset = metadata.complete_dataset(_read(out / "bundle" / bundle_check.METADATA))
    kernel = _read(out / "push" / KERNEL_METADATA)
    metadata.check_dataset(dataset)
    metadata.check_kernel(kernel)
    old_owner, old_slug = metadata.check_id(dataset["id"])
    new = f"{owner or old_owner}/{slug or old_slug}"
    kept = slug in (None, old_slug)
    name = title or (dataset["title"] if kept else metadata.name_dataset("", slug, None)[1])
    own = {dataset["id"]: new, weights_id(dataset["id"]): weights_id(new)}
    sources = [own.get(each, each) for each in kernel.get("dataset_sources", [])]
    wanted = {"id": new, "title": name, "dataset_sources": sources}
    if competition is not None:
        wanted["competition_sources"] = [competition]
    new_dataset = {**dataset, "id": new, "title": name}
    new_kernel = {**kernel, **wanted}
    split = (out / WEIGHTS / bundle_check.METADATA).is_file()
    new_weights = describe_weights(new_dataset) if split else None
    metadata.check_dataset(new_dataset)
    metadata.check_kernel(new_kernel)
    if new_dataset == dataset and new_kernel == kernel:
        return []
    try:
        pushed = (out / "push" / SCRIPT).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UploadError(f"{out / 'push' / SCRIPT}: cannot be read ({error}); build again") from error
    source = _refill(pushed, slug or old_slug)
    files = {SCRIPT: source.encode(), KERNEL_METADATA: dumps_json(new_kernel)}
    if kernel["code_file"] == notebook.FILE:
        files[notebook.FILE] = notebook.make_notebook(source)
    _put(out, dumps_json(new_dataset), dumps_json(new_weights) if new_weights else None, files)
    return [f"{key}: {new_kernel[key]!r}" for key in wanted if new_kernel[key] != kernel.get(key)]


def _put(out: Path, dataset: bytes, weights: bytes | None, files: dict[str, bytes]) -> None:
    """Both metadata files and the kernel; what a kill leaves half done, the next check refuses."""
    fresh, old = out / "push.new", out / "push.old"
    try:
        for left in (fresh, old):
            shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(out / "push", fresh)
        for name, data in files.items():
            (fresh / name).write_bytes(data)
        write_atomically(out / "bundle" / bundle_check.METADATA, dataset)
        if weights is not None:
            write_atomically(out / WEIGHTS / bundle_check.METADATA, weights)
        (out / "push").rename(old)
        fresh.rename(out / "push")
        shutil.rmtree(old)
    except OSError as error:
        raise UploadError(f"{out}: {error.strerror} ({error.filename}); nothing was uploaded") from error
