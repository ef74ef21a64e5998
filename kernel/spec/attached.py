"""Files that lie in other datasets or models of Kaggle's: what people write of them, what the manifest says.

Owns `Origin`, the table `source` of a part, and its rules; `Attached`, its entry in the manifest; and the
folders below the input where Kaggle mounts such a thing. Reads no file (kernel.bundle) and hashes none
(builder.attached).
"""
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from .strict import require

# Source of both forms: dataset_sources and model_sources in the `kaggle` package's documentation, 2.2.5
DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*/[a-z0-9-]+(/\d+)?\Z")
MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9._-]+){3}/\d+\Z")
SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Another dataset or model of Kaggle's that holds the weights of a part, instead of the bundle.

    dataset  "owner/slug", or "owner/slug/version" to pin it
    model    "owner/model/framework/variation/version"; either this or `dataset`
    file     the file's name in there, with {fold} where folds > 1; None = the name of the local copy
    sha256   what the local copy must have, for a part with one fold; None = whatever it has
    local    the local copy, which is tried and hashed when the bundle is built: an absolute path, or one
             beside the TOML or in the weights folder; None = the part's `weights`, else `file`
    """

    dataset: str | None = None
    model: str | None = None
    file: str | None = None
    sha256: str | None = None
    local: str | None = None


@dataclass(frozen=True, kw_only=True)
class Attached:
    """A file that the kernel needs and the bundle does not hold.

    bytes, sha256   by which it is found, whatever it is called
    file            its name in the dataset or model
    dataset, model  as in Origin; both empty = the bundle's own dataset of weights (build_dataset.py --split)
    """

    bytes: int
    sha256: str
    file: str
    dataset: str = ""
    model: str = ""

    @property
    def place(self) -> str:
        """Where it comes from, in words."""
        if self.model:
            return f"the model {self.model}"
        return f"the dataset {self.dataset}" if self.dataset else "the dataset of weights beside the bundle"


def check_origin(origin: Origin, folds: Sequence[int], where: str) -> None:
    """Nothing, when the table `source` can be used.

    Raises  SpecError naming the key
    """
    require(
        bool(origin.dataset) != bool(origin.model),
        f'{where}: give either dataset = "owner/slug" or model = "owner/model/framework/variation/version"',
    )
    if origin.dataset:
        require(DATASET.match(origin.dataset) is not None,
                f"{where}.dataset: {origin.dataset!r}; the form is owner/slug or owner/slug/version")
    if origin.model:
        require(MODEL.match(origin.model) is not None,
                f"{where}.model: {origin.model!r}; the form is owner/model/framework/variation/version")
    one = len(folds) == 1
    for key in ("file", "local"):
        name = getattr(origin, key)
        require(one or name is None or "{fold}" in name,
                f"{where}.{key}: {name!r} has no {{fold}} although there are {len(folds)} folds")
    if origin.file is not None:
        require(_is_inside(origin.file), f"{where}.file: {origin.file!r}; a name inside the dataset or model")
    if origin.sha256 is not None:
        require(one, f"{where}.sha256: one hash for {len(folds)} folds; leave it out, the copies are hashed")
        require(SHA256.match(origin.sha256) is not None,
                f"{where}.sha256: {origin.sha256!r}; 64 hex digits in lower case, as sha256sum prints them")


def _is_inside(name: str) -> bool:
    """True for a relative path that stays where it is put."""
    path = PurePosixPath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts and name.isprintable()


def check_attached(attached: Attached, where: str) -> None:
    """Nothing, when the entry of a manifest can be looked for.

    Raises  SpecError
    """
    fine = (
        attached.bytes > 0
        and SHA256.match(attached.sha256) is not None
        and _is_inside(attached.file)
        and not (attached.dataset and attached.model)
        and (not attached.dataset or DATASET.match(attached.dataset) is not None)
        and (not attached.model or MODEL.match(attached.model) is not None)
    )
    require(fine, f"{where}: size, hash, name or source is none; build the bundle again")


def mounts_of(attached: Attached) -> list[str]:
    """Folders below the input where Kaggle mounts what holds the file, by today's layouts and older ones.

    Source: public kernels of 2026 (/kaggle/input/datasets/OWNER/SLUG, /kaggle/input/models/OWNER/MODEL/
    FRAMEWORK/VARIATION/VERSION) and before (/kaggle/input/SLUG, /kaggle/input/MODEL/FRAMEWORK/...)
    """
    if attached.model:
        owner, model, framework, variation, version = attached.model.split("/")
        tails = [f"{model}/{name}/{variation}/{version}" for name in (framework, framework.lower())]
        return list(dict.fromkeys(f"{lead}{tail}" for lead in (f"models/{owner}/", "") for tail in tails))
    if attached.dataset:
        owner, slug = attached.dataset.split("/")[:2]
        return [f"datasets/{owner}/{slug}", slug, f"notebooks/{owner}/{slug}"]
    return []
