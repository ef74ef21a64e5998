"""Kaggle's rules for metadata and the constant of the pushed kernel: each rule that can be broken is refused
by name.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from builder import machines, metadata
from kernel.errors import UploadError
from kernel.pin import fill_constant, read_constant

DATASET = metadata.dataset_metadata(
    owner="someone", slug="my-bundle", title="My bundle", licence="CC0-1.0", about=""
)
KERNEL = metadata.kernel_metadata(
    owner="someone",
    slug="my-bundle",
    title="My bundle",
    code_file="infer_kernel.py",
    machine="NvidiaTeslaT4",
    competition="some-competition",
)


def test_what_we_write_keeps_the_rules() -> None:
    metadata.check_dataset(DATASET)
    metadata.check_kernel(KERNEL)
    metadata.check_kernel(
        {
            **KERNEL,
            "enable_internet": "false",
            "id_no": 5,
            "docker_image_pinning_type": "latest",
            "docker_image": "gcr.io/kaggle-images/python@sha256:" + "0" * 64,
            "model_sources": ["a/b/c/d/1"],
        }
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("title", "short"),
        ("title", "x" * 51),
        ("title", None),
        ("title", "INSERT_TITLE_HERE"),
        ("title", "Zwölf Töne"),
        ("id", "someone/INSERT_SLUG_HERE"),
        ("id", "my-bundle"),
        ("id", "someone/my-bundle/2"),
        ("id", "someone/My-Bundle"),
        ("id", "someone/short"),
        ("id", "someone/" + "x" * 51),
        ("id", "someone/my--bundle"),
        ("id", "so me/my-bundle"),
        ("id_no", "7"),
        ("subtitle", "too short"),
        ("subtitle", "x" * 81),
        ("licenses", []),
        ("licenses", [{"name": "CC0-1.0"}, {"name": "other"}]),
        ("licenses", [{"name": "CC0"}]),
        ("licenses", "CC0-1.0"),
        ("licenses", [{"nme": "CC0-1.0"}]),
        ("keywords", "audio"),
        ("resources", [{"path": "absent.csv"}]),
        ("titel", "My bundle"),
        ("isPrivate", "false"),
        ("isPrivate", None),
    ],
)
def test_broken_dataset_metadata_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(UploadError, match=f"^{field}"):
        metadata.check_dataset({**DATASET, field: value}, tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("title", "Another name"),
        ("title", "x" * 51),
        ("id", "someone/my-bundle/3"),
        ("id_no", -1),
        ("code_file", "src/a.py"),
        ("code_file", ""),
        ("language", "julia"),
        ("kernel_type", "notebook"),
        ("kernel_type", "app"),
        ("is_private", "yes"),
        ("enable_gpu", 2),
        ("enable_internet", True),
        ("enable_internet", "true"),
        ("enable_internet", None),
        ("machine_shape", "NvidiaTeslaP100"),
        ("machine_shape", "TpuV38"),
        ("machine_shape", "TpuV5E8"),
        ("machine_shape", "NvidiaTeslaT4Highmem"),
        ("enable_tpu", True),
        ("machine_shape", "NvidiaT4"),
        ("dataset_sources", ["my-bundle"]),
        ("dataset_sources", "a/my-bundle"),
        ("competition_sources", ["a/b"]),
        ("kernel_sources", ["b"]),
        ("model_sources", ["a/b/c"]),
        ("docker_image", "python:3.12"),
        ("docker_image_pinning_type", "newest"),
        ("machine", "cpu"),
    ],
)
def test_broken_kernel_metadata_is_refused(field: str, value: Any) -> None:
    with pytest.raises(UploadError, match=f"^{field}"):
        metadata.check_kernel({**KERNEL, field: value})


def test_what_the_clients_own_files_hold_is_taken() -> None:
    """`kaggle datasets init` with its template filled in, and what `kaggle datasets metadata` writes."""
    filled = {"title": "My bundle", "id": "someone/my-bundle", "licenses": [{"name": "CC0-1.0"}]}
    metadata.check_dataset(metadata.complete_dataset(filled))
    info = {"datasetId": 7, "datasetSlug": "my-bundle", "ownerUser": "someone", "usabilityRating": 0.25,
            "totalViews": 1, "totalVotes": 1, "totalDownloads": 1, "title": "My bundle", "isPrivate": True,
            "keywords": [], "licenses": [{"name": "other"}], "collaborators": [], "data": []}
    completed = metadata.complete_dataset({"info": info})
    assert completed == {**info, "id": "someone/my-bundle"}
    metadata.check_dataset(completed)
    assert metadata.complete_dataset(DATASET) == DATASET


def test_nobody_is_published_by_an_update() -> None:
    assert DATASET["isPrivate"] is True


@pytest.mark.parametrize("machine", ["NvidiaL4", "NvidiaL4X1", "NvidiaTeslaA100", "NvidiaH100"])
def test_a_gated_machine_is_taken_and_said(machine: str) -> None:
    metadata.check_kernel({**KERNEL, "machine_shape": machine})
    assert f"{machine} is gated" in str(machines.explain_machine(machine))
    assert machines.explain_machine("NvidiaTeslaT4") is machines.explain_machine(None) is None


def test_the_competition_is_the_users_word_or_it_is_said() -> None:
    assert metadata.explain_competition("theirs", "theirs", "fat2019") is None
    assert "theirs is attached" in str(metadata.explain_competition("theirs", None, "fat2019"))
    assert "NO COMPETITION" in str(metadata.explain_competition(None, None, "birdclef-cpu90"))


def test_internet_must_be_off_in_words() -> None:
    with pytest.raises(UploadError, match="^enable_internet"):
        metadata.check_kernel({k: v for k, v in KERNEL.items() if k != "enable_internet"})


def test_a_source_of_a_megabyte_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UploadError, match="^code_file"):
        metadata.check_kernel(KERNEL, tmp_path)
    (tmp_path / "infer_kernel.py").write_bytes(b"#" * 900_000)
    with pytest.raises(UploadError, match="^code_file.*900000"):
        metadata.check_kernel(KERNEL, tmp_path)


@pytest.mark.parametrize(
    ("slug", "title", "want"),
    [
        (None, None, ("hourglass-tiny", "Hourglass tiny")),
        ("my-bundle", None, ("my-bundle", "My bundle")),
        (None, "My  big, Bundle!", ("my-big-bundle", "My  big, Bundle!")),
        ("a-slug-x", "A slug x", ("a-slug-x", "A slug x")),
    ],
)
def test_slug_and_title_follow_each_other(slug: str | None, title: str | None, want: tuple[str, str]) -> None:
    assert metadata.name_dataset("tiny", slug, title) == want
    assert metadata.slugify(want[1]) == want[0]


HOSTILE = ["x'''); import os; ('''", 'a"b\\', "line\nbreak", "{0.__class__}", "\u2028\x00", "%s%(a)s"]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_breaks_out_of_the_constant(text: str) -> None:
    source = (
        "import json\n\nCONSTANT = None  # filled by build_dataset.py\n\n\ndef main():\n    return CONSTANT\n"
    )
    filled = fill_constant(source, {"slug": text, "classes": [text]})
    scope: dict[str, Any] = {}
    exec(compile(filled, "k", "exec"), scope)
    assert scope["main"]() == {"slug": text, "classes": [text]} == read_constant(filled)
    assert filled.split("\n")[3:] == source.split("\n")[3:]


@pytest.mark.parametrize("source", ["import json\n", "CONSTANT = None  # filled by build_dataset.py\n" * 2,
                                    "CONSTANT = None  # filled by build_dataset.py\nCONSTANT = 3\n"])
def test_a_kernel_without_its_one_line_is_refused(source: str) -> None:
    with pytest.raises(UploadError, match="CONSTANT"):
        fill_constant(source, {})
