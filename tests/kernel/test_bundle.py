"""The bundle reader: verified bytes, wherever they went; damage is named and never parsed."""
from __future__ import annotations

import hashlib
import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from builder import weights
from kernel.bundle import Bundle, near_files, open_bundle, parse_state
from kernel.errors import BundleHashMismatch, BundleInvalid, BundleMissing
from kernel.spec import Ensemble, FileEntry, Manifest, Member, Wheel

STATE = {"conv.weight": torch.linspace(-1, 1, 24).reshape(4, 6).half(), "count": torch.tensor(7)}
SHIFTED = {"conv.weight": torch.linspace(-2, 2, 24).reshape(4, 6).half(), "count": torch.tensor(8)}


def make_bundle(folder: Path, packed: bool) -> Bundle:
    """Member "a" with two folds and a wheel that is never opened."""
    folder.mkdir(exist_ok=True)
    sources = [
        weights.Source(member="a", fold=i, read=lambda s=s: save(s)) for i, s in enumerate((STATE, SHIFTED))
    ]
    nets, files = weights.write_nets(folder, sources, packed)
    wheel = Wheel(file="w.whl", entry=FileEntry(bytes=3, sha256=hashlib.sha256(b"abc").hexdigest()), files={})
    (folder / "w.whl").write_bytes(b"abc")
    ensemble = Ensemble(
        name="e",
        classes=("x", "y"),
        members=(Member(name="a", family="f", frontend="m", folds=(0, 1)),),
        frontends={"m": {}},
    )
    manifest = Manifest(
        format=1, bundle="0" * 16, version="0", ensemble=ensemble, wheel=wheel, files=files, nets=tuple(nets)
    )
    return open_bundle(folder, manifest)


@pytest.fixture(params=[False, True], ids=["single", "packed"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", request.param)


def test_states_come_back_as_f32(bundle: Bundle) -> None:
    for net, state in zip(bundle.manifest.nets, (STATE, SHIFTED), strict=True):
        got = bundle.load_state(net)
        assert got["conv.weight"].dtype == torch.float32 and got["count"].dtype == torch.int64
        assert (
            torch.equal(got["conv.weight"], state["conv.weight"].float()) and got["count"] == state["count"]
        )


def test_each_flipped_byte_costs_its_own_net(bundle: Bundle) -> None:
    first, second = bundle.manifest.nets
    path = bundle.folder / second.file
    clean = path.read_bytes()
    for place in (
        second.offset,
        second.offset + 9,
        second.offset + second.length // 2,
        second.offset + second.length - 1,
    ):
        broken = bytearray(clean)
        broken[place] ^= 1
        path.write_bytes(broken)
        with pytest.raises(BundleHashMismatch, match="net a.1"):
            bundle.load_state(second)
        bundle.load_state(first)


def test_swapped_files_are_named(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", packed=False)
    one, two = (bundle.folder / net.file for net in bundle.manifest.nets)
    one.rename(tmp_path / "x")
    two.rename(one)
    (tmp_path / "x").rename(two)
    # The right bytes lie under the other name
    assert bundle.load_state(bundle.manifest.nets[0])["count"] == 7
    assert bundle.moved[bundle.manifest.nets[0].file] == two


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.write_bytes(p.read_bytes()[:-1]),
        lambda p: p.write_bytes(p.read_bytes() + b"\0"),
        lambda p: p.write_bytes(b""),
    ],
    ids=["cut", "longer", "empty"],
)
def test_other_sizes_are_mismatches(bundle: Bundle, change) -> None:
    net = bundle.manifest.nets[0]
    change(bundle.folder / net.file)
    with pytest.raises(BundleHashMismatch, match="expected .* bytes"):
        bundle.read_net(net)


def test_a_lost_file_is_missing(bundle: Bundle) -> None:
    net = bundle.manifest.nets[0]
    (bundle.folder / net.file).unlink()
    with pytest.raises(BundleMissing, match="net a.0"):
        bundle.read_net(net)


@pytest.mark.parametrize("place", ["wrapper", "wrapper/wrapper", "."])
def test_moved_and_renamed_files_are_found_by_content(bundle: Bundle, place: str) -> None:
    net = bundle.manifest.nets[0]
    target = bundle.folder / place
    target.mkdir(parents=True, exist_ok=True)
    (bundle.folder / net.file).rename(target / "other-name.bin")
    assert hashlib.sha256(bundle.read_net(net)).hexdigest() == net.sha256
    assert bundle.moved[net.file] == target / "other-name.bin"


def test_a_fifo_in_place_of_weights_does_not_hang(bundle: Bundle) -> None:
    import os

    net = bundle.manifest.nets[0]
    (bundle.folder / net.file).unlink()
    os.mkfifo(bundle.folder / net.file)
    with pytest.raises(BundleHashMismatch):
        bundle.read_net(net)


def test_the_search_is_bounded(tmp_path: Path) -> None:
    crowd = tmp_path / "audio"
    crowd.mkdir()
    for i in range(2100):
        (crowd / f"{i}.wav").touch()
    assert sum(1 for _ in near_files(tmp_path)) <= 2000


def test_read_file_checks_and_knows_its_names(bundle: Bundle) -> None:
    assert bundle.read_file("w.whl") == b"abc"
    with pytest.raises(BundleInvalid, match="did you mean"):
        bundle.read_file(bundle.manifest.nets[0].file + "x")
    (bundle.folder / "w.whl").write_bytes(b"abd")
    with pytest.raises(BundleHashMismatch):
        bundle.read_file("w.whl")


def _header(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


LYING = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
HOSTILE = {
    "empty": b"",
    "short": b"abc",
    "huge header": struct.pack("<Q", 1 << 40) + b"{}",
    "header past the end": struct.pack("<Q", 999) + b"{}",
    "long header": _header(b" " * ((1 << 20) + 1)),
    "not JSON": _header(b"{oops"),
    "a pickle": pickle.dumps({"a": 1}) * 9,
    "tensor past the end": _header(LYING, b"\0" * 8),
    "trailing junk": save(STATE) + b"junk",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BundleInvalid, match="build the bundle again"):
        parse_state(data, "net a.0")


def test_no_folder_is_a_missing_bundle(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(BundleMissing, match="--bundle"):
        open_bundle(tmp_path / "nowhere", bundle.manifest)


def test_onnx_nets_are_not_parsed_as_weights(bundle: Bundle) -> None:
    from dataclasses import replace

    with pytest.raises(BundleInvalid, match="onnx"):
        bundle.load_state(replace(bundle.manifest.nets[0], kind="onnx"))
