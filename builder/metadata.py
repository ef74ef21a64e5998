"""The two metadata files of an upload, and Kaggle's rules for them.

Owns the writers and the validators of dataset-metadata.json and kernel-metadata.json. A broken rule is an
UploadError that names the field and the rule, before anything is written. Does not look at the other files
(bundle_check) and uploads nothing.
Source of the rules: the documentation and client code of the `kaggle` package 2.2.5 (Oct 2026).
"""
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernel.errors import UploadError, did_you_mean

from . import machines

SLUG = re.compile(r"[a-z0-9](?:-?[a-z0-9])*\Z")
OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,49}\Z")
# The client takes kernel titles from 5 characters on and the server fails above 50; one title serves both.
TITLE_CHARACTERS = (6, 50)
SLUG_CHARACTERS = (6, 50)  # The code says 6 to 50, the documentation 3 to 50: the stricter one.
SUBTITLE_CHARACTERS = (20, 80)
MAX_SOURCE_BYTES = 900_000  # Kaggle refuses 1 MB; the margin is for its own JSON wrapping.
LICENCES = (
    "CC0-1.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "CC-BY-NC-SA-4.0",
    "CC-BY-4.0",
    "CC-BY-NC-4.0",
    "CC-BY-3.0",
    "CC-BY-ND-4.0",
    "CC-BY-NC-ND-4.0",
    "GPL-2.0",
    "GPL-3.0",
    "LGPL-3.0",
    "AGPL-3.0",
    "FDL-1.3",
    "apache-2.0",
    "ODbL-1.0",
    "DbCL-1.0",
    "ODC-BY-1.0",
    "PDDL",
    "CDLA-Permissive-1.0",
    "CDLA-Sharing-1.0",
    "copyright-authors",
    "other",
    "unknown",
)
PLACEHOLDER_OWNER = "your-kaggle-name"
DATASET_KEYS = ("title", "id", "id_no", "subtitle", "description", "licenses", "resources", "keywords",
                "expectedUpdateFrequency", "userSpecifiedSources", "image", "isPrivate", "collaborators",
                "data")
# What `kaggle datasets metadata` writes beside them; it says what Kaggle knows and changes nothing.
TOLD_KEYS = ("datasetId", "datasetSlug", "ownerUser", "usabilityRating", "totalViews", "totalVotes",
             "totalDownloads")
KERNEL_KEYS = (
    "id",
    "id_no",
    "title",
    "code_file",
    "language",
    "kernel_type",
    "is_private",
    "enable_gpu",
    "enable_tpu",
    "enable_internet",
    "machine_shape",
    "dataset_sources",
    "competition_sources",
    "kernel_sources",
    "model_sources",
    "keywords",
    "docker_image",
    "docker_image_pinning_type",
)
# Field -> (pattern, form). The server only prints a wrong source, and the kernel then runs without it.
SOURCES = {
    "dataset_sources": (r"[^/\s]+/[a-z0-9-]+(/\d+)?", "owner/slug or owner/slug/version"),
    "competition_sources": (r"[a-z0-9][a-z0-9-]*", "the competition's slug"),
    "kernel_sources": (r"[^/\s]+/[a-z0-9-]+(/\d+)?", "owner/slug"),
    "model_sources": (r"[^/\s]+/[^/\s]+/[^/\s]+/[^/\s]+/\d+", "user/model/framework/variation/version"),
}
FALSE = (False, "false")
FLAG = ((None, *FALSE, True, "true"), "true or false")
CHOICES = {  # Field of a kernel -> (values, rule); None where it may be left out.
    "language": (("python",), "'python'"),
    "is_private": FLAG,
    "enable_gpu": FLAG,
    "enable_tpu": ((None, *FALSE), "leave it out or write false: the kernel has no path for a TPU"),
    "enable_internet": (
        FALSE, "write false: the client's default is true, and code competitions refuse such a kernel"
    ),
    "docker_image_pinning_type": ((None, "", "original", "latest"), "'original' or 'latest'"),
}


def fail(field: str, value: Any, rule: str) -> UploadError:
    """The error for a broken rule: field, value, rule."""
    return UploadError(f"{field}: {value!r}; {rule}")


def slugify(title: str) -> str:
    """Slug that Kaggle makes of an ASCII title: lower case, runs of other characters become one hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def name_dataset(ensemble: str, slug: str | None, title: str | None) -> tuple[str, str]:
    """(slug, title); what the user did not give is made from the other, or from the ensemble's name."""
    if slug is None:
        title = title if title is not None else f"Hourglass {ensemble}"
        return slugify(title), title
    return slug, title if title is not None else slug.replace("-", " ").capitalize()


def dataset_metadata(*, owner: str, slug: str, title: str, licence: str, about: str) -> dict[str, Any]:
    """Content of dataset-metadata.json.

    `isPrivate` is for `kaggle datasets metadata --update` alone, which publishes the dataset without it.
    """
    return {
        "title": title,
        "id": f"{owner}/{slug}",
        "licenses": [{"name": licence}],
        "description": about,
        "isPrivate": True,
    }


def complete_dataset(data: Mapping[str, Any]) -> dict[str, Any]:
    """The file that `kaggle datasets metadata` wrote in the form that create and version need.

    That command puts all of it under "info" and leaves out the id, which is its owner and slug.
    """
    inner = data.get("info")
    flat = dict(data)
    if isinstance(inner, Mapping):
        flat.pop("info")
        flat |= inner
    if "id" not in flat and flat.get("ownerUser") and flat.get("datasetSlug"):
        flat["id"] = f"{flat['ownerUser']}/{flat['datasetSlug']}"
    return flat


def kernel_metadata(*, owner: str, slug: str, title: str, code_file: str, machine: str | None,
                    competition: str | None) -> dict[str, Any]:
    """Content of kernel-metadata.json: private, internet off, the bundle attached.

    machine  accelerator, or None for the CPU
    """
    data: dict[str, Any] = {
        "id": f"{owner}/{slug}",
        "title": title,
        "code_file": code_file,
        "language": "python",
        "kernel_type": "notebook" if code_file.endswith(".ipynb") else "script",
        "is_private": True,
        "enable_gpu": bool(machine and machine.startswith("Nvidia")),
        "enable_tpu": False,
        "enable_internet": False,
        "dataset_sources": [f"{owner}/{slug}"],
        "kernel_sources": [],
        "model_sources": [],
        "competition_sources": [competition] if competition else [],
        "keywords": [],
    }
    if machine:
        data["machine_shape"] = machine
    return data


def _check_text(field: str, value: Any, characters: tuple[int, int]) -> None:
    low, high = characters
    if not isinstance(value, str) or not low <= len(value) <= high:
        length = f" ({len(value)} characters)" if isinstance(value, str) else ""
        raise UploadError(f"{field}: {value!r}{length}; {low} to {high} characters")


def _check_title(value: Any) -> None:
    _check_text("title", value, TITLE_CHARACTERS)
    if "INSERT_TITLE_HERE" in value:
        raise fail("title", value, "the template was not filled in")
    if not value.isascii() or not value.isprintable():
        raise fail(
            "title", value, "printable ASCII only: Kaggle transliterates the rest, and the slug would differ"
        )


def check_id(value: Any) -> tuple[str, str]:
    """(owner, slug) of an id.

    Raises  UploadError
    """
    parts = value.split("/") if isinstance(value, str) else []
    if len(parts) != 2:
        raise fail("id", value, "the form is owner/slug, without a version")
    owner, slug = parts
    if "INSERT_" in value:
        raise fail("id", value, "the template was not filled in")
    if not OWNER.match(owner):
        raise fail("id", value, "the owner is a Kaggle user or organisation name")
    if not SLUG.match(slug):
        raise fail("id", value, "a slug has lower-case letters, digits and single hyphens inside")
    _check_text("id", slug, SLUG_CHARACTERS)
    return owner, slug


def _check_common(data: Mapping[str, Any], known: tuple[str, ...]) -> str:
    """The slug, once every rule holds that both files share."""
    for key in data:
        if key not in known:
            raise UploadError(f"{key}: unknown field; {did_you_mean(key, known)}")
    _check_title(data.get("title"))
    _, slug = check_id(data.get("id"))
    number = data.get("id_no")
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number <= 0):
        raise fail("id_no", number, "a positive integer; it wins over `id`, leave it out unless you mean it")
    words = data.get("keywords", [])
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise fail("keywords", words, "a list of existing Kaggle tags")
    return slug


def check_dataset(data: Mapping[str, Any], folder: Path | None = None) -> None:
    """Nothing, when every rule for dataset-metadata.json holds.

    folder  where the paths of `resources` must exist
    Raises  UploadError naming the field and the rule
    """
    _check_common(data, (*DATASET_KEYS, *TOLD_KEYS))
    if not isinstance(data.get("isPrivate", True), bool):
        raise fail("isPrivate", data["isPrivate"], "true or false, not in quotes: text counts as true")
    if data.get("subtitle"):
        _check_text("subtitle", data["subtitle"], SUBTITLE_CHARACTERS)
    licences = data.get("licenses")
    only = licences[0] if isinstance(licences, list) and len(licences) == 1 else None
    if not isinstance(only, Mapping) or set(only) != {"name"}:
        raise fail("licenses", licences, 'a list of exactly one {"name": ...}')
    if only["name"] not in LICENCES:
        raise fail("licenses", only["name"], did_you_mean(str(only["name"]), LICENCES))
    for resource in data.get("resources", []):
        path = resource.get("path") if isinstance(resource, Mapping) else None
        if not isinstance(path, str) or (folder is not None and not (folder / path).is_file()):
            raise fail("resources", path, "every listed path must exist, or the client stops")


def explain_competition(attached: str | None, given: str | None, profile: str) -> str | None:
    """What the user must know of the competition of a kernel; None when the user named it."""
    if attached is None:
        return (
            f"NO COMPETITION is attached: the limits {profile} belong to no single one. Without it a kernel "
            "finds no test set; build again with --competition SLUG, as in kaggle.com/competitions/SLUG"
        )
    if given is None:
        return (
            f"competition {attached} is attached, because the ensemble's profile is {profile}; if "
            "yours is another one, build again with --competition SLUG, as in kaggle.com/competitions/SLUG"
        )
    return None


def _check_sources(data: Mapping[str, Any]) -> None:
    for field, (pattern, form) in SOURCES.items():
        values = data.get(field, [])
        if not isinstance(values, list):
            raise fail(field, values, "a list")
        for value in values:
            if not isinstance(value, str) or not re.fullmatch(pattern, value) or "INSERT_" in value:
                raise fail(
                    field,
                    value,
                    f"the form is {form}; Kaggle would only print it as invalid and run without it",
                )


def _check_image(data: Mapping[str, Any]) -> None:
    image = data.get("docker_image")
    if image and not re.fullmatch(r"gcr\.io/kaggle-[a-z-]*images/python@sha256:[0-9a-f]{64}", str(image)):
        raise fail("docker_image", image, "the form is gcr.io/kaggle-images/python@sha256:<64 hex digits>")


def check_kernel(data: Mapping[str, Any], folder: Path | None = None) -> None:
    """Nothing, when every rule for kernel-metadata.json holds.

    folder  where `code_file` must lie, below 900 kB
    Raises  UploadError naming the field and the rule
    """
    slug = _check_common(data, KERNEL_KEYS)
    if slugify(data["title"]) != slug:
        raise fail(
            "title",
            data["title"],
            f"its slug {slugify(data['title'])!r} must equal the slug of id, {slug!r}; "
            "else the second push fails with 409 Conflict",
        )
    code = data.get("code_file")
    if not isinstance(code, str) or not code or "/" in code or "\\" in code:
        raise fail("code_file", code, "one file beside kernel-metadata.json")
    kind = data.get("kernel_type")
    if kind not in ("script", "notebook") or (kind == "notebook") != code.endswith(".ipynb"):
        raise fail("kernel_type", kind, "'script' for a .py file, 'notebook' for an .ipynb file")
    for field, (choices, rule) in CHOICES.items():
        if data.get(field) not in choices:
            raise fail(field, data.get(field), rule)
    machines.check_machine(data.get("machine_shape"))
    _check_sources(data)
    _check_image(data)
    if folder is not None:
        check_source(folder / code)


def check_source(path: Path) -> None:
    """Nothing, when the file can be pushed: present and below 900 kB.

    Raises  UploadError
    """
    if not path.is_file():
        raise fail("code_file", path.name, f"no such file in {path.parent}")
    if path.stat().st_size >= MAX_SOURCE_BYTES:
        raise fail(
            "code_file",
            path.name,
            f"{path.stat().st_size} bytes; Kaggle refuses sources of 1 MB, keep it under "
            f"{MAX_SOURCE_BYTES}: code and weights belong in the bundle",
        )
