"""Which bundle the guard finds, and that only verified code runs."""
from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

import infer_kernel
from tests.helpers.guard_runs import run_guard
from tests.helpers.stub_bundle import (
    STUB_CELLS,
    Bundle,
    check,
    describe_bundle,
    is_prior,
    make_bundle,
    pin,
)


def unpack_wheel(bundle: Bundle, name: str) -> None:
    wheel = next(bundle.folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(bundle.folder / "unpacked")
    wheel.unlink()
    (bundle.folder / "unpacked").rename(bundle.folder / name)


def wrap(bundle: Bundle) -> None:
    inner = bundle.folder / "stub-data"
    inner.mkdir()
    for path in list(bundle.folder.iterdir()):
        if path != inner:
            path.rename(inner / path.name)


CHANGES = {
    "unpacked": lambda b: unpack_wheel(b, "hourglass-0-py3-none-any"),
    "unpacked_named": lambda b: unpack_wheel(b, "hourglass-0-py3-none-any.whl"),
    "unpacked_deeper": lambda b: (
        unpack_wheel(b, "x"),
        (b.folder / "y").mkdir(),
        (b.folder / "x").rename(b.folder / "y" / "x"),
    ),
    "renamed": lambda b: next(b.folder.glob("*.whl")).rename(b.folder / "hourglass.zip"),
    "wrapped": wrap,
    "wrapped_unpacked": lambda b: (unpack_wheel(b, "code"), wrap(b)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_bundle_that_kaggle_changed_is_found_and_verified(where: Path, change: str) -> None:
    place = "stub-data" if change in ("unpacked", "wrapped") else "datasets/me/stub-data"
    bundle = make_bundle(where / "in" / place)
    kernel = pin(bundle, where / "kernel.py")
    CHANGES[change](bundle)
    run = run_guard(where, None, kernel=kernel)
    check(run)
    assert STUB_CELLS in run.submission


def test_every_mount_layout_is_searched_beside_a_large_competition(where: Path) -> None:
    crowd = where / "in" / "competitions" / "big" / "test"
    crowd.mkdir(parents=True)
    for i in range(infer_kernel.MAX_ENTRIES + 10):
        os.close(os.open(crowd / f"{i}.wav", os.O_CREAT | os.O_WRONLY))
    bundle = make_bundle(where / "bundle")
    kernel = pin(bundle, where / "kernel.py")
    for place in ("models/me/stub-data/other/default/1", "notebooks/me/stub-data", "a/b/c/d/renamed"):
        (where / "in" / place).parent.mkdir(parents=True)
        shutil.copytree(bundle.folder, where / "in" / place)
        check(run_guard(where, None, kernel=kernel))
        shutil.rmtree(where / "in" / place)


def test_the_right_one_of_two_bundles_is_chosen_by_its_hash(where: Path) -> None:
    make_bundle(
        where / "in" / "datasets" / "me" / "stub-data", "def run():\n    raise SystemExit('the wrong one')\n"
    )
    right = make_bundle(where / "in" / "old-version")
    check(run_guard(where, None, kernel=pin(right, where / "kernel.py")))


def flip(path: Path, at: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def swap_code(bundle: Bundle) -> None:
    unpack_wheel(bundle, "code")
    (bundle.folder / "code" / "kernel" / "run.py").write_text("raise SystemExit('poisoned')\n")


@pytest.mark.parametrize(("harm", "fault"), [
    (lambda b: flip(b.folder / "manifest.json"), "BundleHashMismatch"),
    (lambda b: flip(next(b.folder.glob("*.whl"))), "BundleHashMismatch"),
    (lambda b: next(b.folder.glob("*.whl")).unlink(), "BundleMissing"),
    (lambda b: (b.folder / "manifest.json").unlink(), "BundleMissing"),
    (swap_code, "BundleHashMismatch"),
])
def test_a_damaged_bundle_is_never_run(where: Path, harm: object, fault: str) -> None:
    bundle = make_bundle(where / "bundle")
    kernel = pin(bundle, where / "kernel.py")
    harm(bundle)  # type: ignore[operator]
    run = run_guard(where, bundle.folder, kernel=kernel)
    check(run, fault)
    assert is_prior(run) and run.report["guard"]["attempts"] == 0


MISTYPED = b"""{"wheel": {"file": "x", "entry": {"bytes": "1", "sha256": 1}, "files": {}},
                "ensemble": {"classes": []}, "prior": []}"""


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b"{}", b'{"wheel": {"entry": 3}}', b"[" * 100_000, MISTYPED]
)
def test_a_manifest_that_is_none_is_named(where: Path, manifest: bytes) -> None:
    (where / "bundle").mkdir()
    (where / "bundle" / "manifest.json").write_bytes(manifest)
    check(run_guard(where, where / "bundle"), "BundleInvalid")


@pytest.mark.parametrize(
    "name",
    ["", "../evil.py", "/tmp/evil.py", "kernel/../../evil.py", "kernel\\evil.py", "a\nb.py", "./a", "a//b"],
)
def test_a_name_that_leads_elsewhere_is_not_safe(name: str) -> None:
    assert not infer_kernel.is_safe(name) and infer_kernel.is_safe("kernel/models/__init__.py")


def test_a_wheel_with_files_elsewhere_is_refused(where: Path) -> None:
    check(run_guard(where, make_bundle(where / "bundle", extra={"../evil.py": "1"}).folder), "BundleInvalid")
    assert not list(where.rglob("evil.py"))


@pytest.mark.parametrize(
    "change",
    [
        {"output": "label"},
        {"output": {"format": "label", "label_column": "x", "labels": [1, 2]}},
        {"output": {"format": "label", "label_column": None, "labels": {"Bark": 3}}},
        {"output": {"format": "label", "label_column": ["x"], "labels": {}}},
        {"classes": ["\ud800", "b", "c"]},
        {"classes": "abc"},
    ],
)
def test_texts_of_a_manifest_are_texts(change: dict[str, object]) -> None:
    facts = describe_bundle(b"", {})
    infer_kernel.parse_manifest(json.dumps(facts).encode(), "x")
    facts["ensemble"].update(change)
    with pytest.raises(infer_kernel.Fault, match="no manifest of ours"):
        infer_kernel.parse_manifest(json.dumps(facts).encode(), "x")


def test_odd_texts_and_no_sample_end_with_a_sentence(where: Path) -> None:
    (where / "in" / "sample_submission.csv").unlink()
    facts = describe_bundle(b"", {})
    bundle = make_bundle(where / "bundle", ensemble={**facts["ensemble"], "output": "label"})
    run = run_guard(where, bundle.folder)
    assert run.code == 2 and "BundleInvalid" in run.out and "Traceback" not in run.out, run.out
    assert list(run.working.iterdir()) == []
