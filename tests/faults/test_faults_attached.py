"""Faults of weights that lie in other datasets: not attached, changed since the build, lost in a crowd."""
from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import pytest

from builder import assembly
from builder.staging import WEIGHTS
from tests.helpers.bundles import built_once, order
from tests.helpers.guard_runs import GuardRun
from tests.helpers.whole_runs import check, make_place, prior_rows, run_whole

CLIPS = 4


@cache
def split_once(folder: Path) -> Path:
    """OUT of the tiny ensemble in two datasets, below a folder of the whole session; read only."""
    out = folder / "split"
    assembly.build(order(out, split=True), say=lambda _: None)
    return out


@pytest.fixture
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split_once(tmp_path_factory.getbasetemp())


def mount(split: Path, tmp_path: Path, target: str) -> Path:
    """The weights at a place below the input, and a copy of the bundle with nothing beside it."""
    shutil.copytree(split / WEIGHTS, tmp_path / "in" / target)
    return Path(shutil.copytree(split / "bundle", tmp_path / "alone" / "bundle"))


def run(tmp_path: Path, bundle: Path, *arguments: str) -> GuardRun:
    return run_whole(make_place(tmp_path, CLIPS), bundle, *arguments)


@pytest.mark.faults
def test_weights_beside_the_bundle_give_the_same_bytes(tmp_path: Path, split: Path) -> None:
    plain = run(tmp_path / "plain", built_once() / "bundle")
    bundle = mount(split, tmp_path / "split", "datasets/someone/renamed-by-somebody")
    (tmp_path / "split/in/datasets/someone/renamed-by-somebody/tiled.0.safetensors").rename(
        tmp_path / "split/in/datasets/someone/renamed-by-somebody/x.bin")
    apart = run(tmp_path / "split", bundle)
    check(apart)
    assert apart.submission == plain.submission


@pytest.mark.faults
@pytest.mark.fault(row=95, injection="the dataset that holds one member's weights is not attached",
                   outcome="that member is dropped and named with its source; the others predict every row")
def test_a_member_whose_dataset_is_missing_is_dropped(tmp_path: Path, split: Path) -> None:
    bundle = mount(split, tmp_path, "datasets/someone/hourglass-tiny-weights")
    (tmp_path / "in/datasets/someone/hourglass-tiny-weights/tiled.0.safetensors").unlink()
    found = run(tmp_path, bundle, "--strict")
    check(found, "BundleMissing", codes=(1,))
    assert not prior_rows(found) and found.report["partial_rows"] == CLIPS
    (fault,) = [each for each in found.report["faults"] if each["code"] == "BundleMissing"]
    assert fault["where"] == "tiled.0" and "the dataset of weights beside the bundle" in fault["message"]
    assert "Attach it to the kernel" in fault["message"]


@pytest.mark.faults
@pytest.mark.fault(row=95, injection="one byte of an attached file differs from the build's copy",
                   outcome="that member is dropped and named (BundleHashMismatch); the others predict all")
def test_a_member_whose_file_was_changed_is_dropped(tmp_path: Path, split: Path) -> None:
    bundle = mount(split, tmp_path, "hourglass-tiny-weights")
    path = tmp_path / "in/hourglass-tiny-weights/tiled.0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = run(tmp_path, bundle)
    check(found, "BundleHashMismatch")
    assert not prior_rows(found) and found.report["partial_rows"] == CLIPS


@pytest.mark.faults
@pytest.mark.fault(row=95, injection="no dataset of weights at all, and 3,000 other files attached",
                   outcome="every row keeps the prior, each net is named")
def test_no_weights_at_all_leave_the_prior(tmp_path: Path, split: Path) -> None:
    bundle = mount(split, tmp_path, "elsewhere")
    shutil.rmtree(tmp_path / "in/elsewhere")
    for number in range(3000):
        path = tmp_path / f"in/datasets/other/crowd/{number % 30}/{number}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    found = run(tmp_path, bundle)
    check(found, "BundleMissing")
    assert len(prior_rows(found)) == CLIPS
    named = {each["where"] for each in found.report["faults"] if each["code"] == "BundleMissing"}
    assert named == {"plain.0", "plain.1", "tiled.0"}
