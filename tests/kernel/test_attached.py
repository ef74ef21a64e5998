"""Finding files that other datasets and models hold: every layout, bounds, links, changes."""
from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kernel import bundle as mounted
from kernel.bundle import Bundle, open_bundle, wide_files
from kernel.errors import BundleHashMismatch, BundleMissing
from kernel.spec import Attached, Manifest, Net, load_manifest, mounts_of
from tests.helpers.bundles import built_once

DATA = b"weights" * 99


def attached(**source: str) -> Attached:
    digest = hashlib.sha256(DATA).hexdigest()
    return Attached(bytes=len(DATA), sha256=digest, file="nets/perch.onnx", **source)


def make(tmp_path: Path, held: Attached) -> Bundle:
    """A bundle at the usual place below tmp_path/input with one net that lies elsewhere."""
    plain = load_manifest((built_once() / "bundle" / "manifest.json").read_bytes())
    net = Net(member="plain", fold=0, file="p.onnx", offset=0, length=held.bytes, sha256=held.sha256,
              kind="onnx")
    manifest: Manifest = replace(plain, files={}, nets=(net,), attached={"p.onnx": held})
    folder = tmp_path / "input/datasets/someone/bundle"
    folder.mkdir(parents=True, exist_ok=True)
    return open_bundle(folder, manifest, tmp_path / "input")


def put(path: Path, data: bytes = DATA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read(bundle: Bundle) -> bytes:
    bundle.find_attached("p.onnx")
    return bundle.read_net(bundle.manifest.nets[0])


SOURCES = ({"dataset": "Owner/slug"}, {"dataset": "Owner/slug/7"}, {"model": "Owner/m/PyTorch/v/3"}, {})


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("inside", ["nets/perch.onnx", "perch.onnx", "x/x/nets/renamed.bin"])
def test_a_file_is_found_on_every_mount(source: dict[str, str], inside: str, tmp_path: Path) -> None:
    held = attached(**source)
    for number, mount in enumerate([*mounts_of(held), "somewhere/else/5", "datasets/someone/weights"]):
        place = tmp_path / str(number)
        path = put(place / "input" / mount / inside)
        bundle = make(place, held)
        assert read(bundle) == DATA and bundle.moved["p.onnx"] == path


def test_the_layouts_are_kaggles() -> None:
    assert mounts_of(attached(dataset="o/s/3")) == ["datasets/o/s", "s", "notebooks/o/s"]
    assert mounts_of(attached(model="o/m/PyTorch/v/3")) == [
        "models/o/m/PyTorch/v/3", "models/o/m/pytorch/v/3", "m/PyTorch/v/3", "m/pytorch/v/3"]
    assert mounts_of(attached(model="o/m/onnx/v/3")) == ["models/o/m/onnx/v/3", "m/onnx/v/3"]
    assert mounts_of(attached()) == []


def test_the_right_bytes_win_over_a_file_of_the_same_name_or_size(tmp_path: Path) -> None:
    held = attached(dataset="o/s")
    put(tmp_path / "input/datasets/o/s/nets/perch.onnx", b"another version")
    put(tmp_path / "input/datasets/o/s/nets/alike.onnx", b"?" * len(DATA))
    right = put(tmp_path / "input/models/z/deep/er/x.bin")
    bundle = make(tmp_path, held)
    assert bundle.read_net(bundle.manifest.nets[0]) == DATA and bundle.moved["p.onnx"] == right


def test_a_changed_file_and_a_missing_one_are_told_apart(tmp_path: Path) -> None:
    bundle = make(tmp_path, attached(dataset="o/s"))
    with pytest.raises(BundleMissing, match=r"p.onnx: expected nets/perch.onnx of 693 bytes .* out of the "
                                            r"dataset o/s; found nothing of that size .*Attach it"):
        read(bundle)
    path = put(tmp_path / "input/datasets/o/s/nets/perch.onnx", DATA + b"x")
    with pytest.raises(BundleHashMismatch, match=r"perch.onnx: 694 bytes. It was changed since the build"):
        read(bundle)
    path.write_bytes(DATA[:-1] + b"?")
    bundle.find_attached("p.onnx")  # The size alone is right
    with pytest.raises(BundleHashMismatch, match=r"sha256 [0-9a-f]{16}. It was changed since the build"):
        bundle.read_net(bundle.manifest.nets[0])


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to nowhere", "loop"])
def test_what_is_no_file_is_passed_over(kind: str, tmp_path: Path) -> None:
    bundle = make(tmp_path, attached(dataset="o/s"))
    place = tmp_path / "input/datasets/o/s/nets"
    place.mkdir(parents=True)
    if kind == "fifo":
        os.mkfifo(place / "perch.onnx")
    elif kind == "folder":
        (place / "perch.onnx").mkdir()
    else:
        (place / "perch.onnx").symlink_to(place if kind == "loop" else "nowhere")
    put(tmp_path / "input/datasets/z/last.bin")
    assert read(bundle) == DATA


def test_a_build_on_this_machine_is_read_with_what_lies_beside_it(tmp_path: Path) -> None:
    """As a notebook does it: no input at all, links to local copies."""
    held = attached(model="o/m/onnx/v/3")
    (tmp_path / "out/bundle").mkdir(parents=True)
    bundle = open_bundle(tmp_path / "out/bundle", make(tmp_path, held).manifest)
    link = tmp_path / "out" / mounted.ATTACHED_FOLDER / "models/o/m/onnx/v/3/nets/perch.onnx"
    link.parent.mkdir(parents=True)
    link.symlink_to(put(tmp_path / "copies/perch.onnx"))
    assert read(bundle) == DATA


def test_a_search_is_bounded_and_passes_over_competitions_and_audio(tmp_path: Path) -> None:
    for number in range(mounted.WIDE_FILES):
        put(tmp_path / f"{number % 5}/{number}.csv", b"x")
        put(tmp_path / f"{number % 5}/{number}.ogg", b"x")
    for number in range(mounted.WIDE_FOLDERS + 50):
        (tmp_path / "many" / str(number)).mkdir(parents=True)
    put(tmp_path / "competitions/c/x.csv")
    (tmp_path / "0/again").symlink_to(tmp_path)
    found = list(wide_files([tmp_path, tmp_path]))
    assert 0 < len(found) <= mounted.WIDE_FILES and all(path.suffix == ".csv" for _, path in found)
    assert len({path for _, path in found}) == len(found)
    assert not any("competitions" in path.parts for _, path in found)
