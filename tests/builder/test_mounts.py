"""The pushed kernel finds and verifies its bundle on every mount, and says what was lost with lost bytes."""
from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from builder import mounts
from kernel.errors import UploadError
from kernel.pin import read_constant
from tests.helpers.bundles import built_once, copy_of_build

CLIPS = 3000  # more than the finder looks at in one folder; the command line takes 50,000


def test_every_layout_and_change_is_survived() -> None:
    cases = mounts.simulate(built_once(), clips=CLIPS)
    assert {(c.layout, c.change) for c in cases} == {(a, b) for a in mounts.LAYOUTS for b in mounts.CHANGES}
    mounts.check(cases)
    assert f"{len(cases)} of {len(cases)} mounts verified" in mounts.table(cases)


def test_the_build_is_left_as_it_was(tmp_path: Path) -> None:
    out = copy_of_build(tmp_path / "out")
    before = {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    mounts.simulate(out, clips=10, layouts=["datasets"])
    assert {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()} == before


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("pattern", "names"), [("tiled.0.*", "tiled.0"), ("*.whl", "BundleHashMismatch"),
                                                ("manifest.json", "BundleHashMismatch")])
def test_damage_is_named_on_every_mount(tmp_path: Path, pattern: str, names: str) -> None:
    out = copy_of_build(tmp_path / "out")
    _flip(next((out / "bundle").glob(pattern)))
    cases = mounts.simulate(out, clips=10, layouts=["legacy"], changes=["as uploaded", "wrapper folder"])
    assert all(names in case.lost for case in cases), cases
    with pytest.raises(UploadError, match="as uploaded"):
        mounts.check(cases)


def test_a_kernel_of_another_bundle_finds_nothing(tmp_path: Path) -> None:
    out = copy_of_build(tmp_path / "out")
    path = out / "push" / "infer_kernel.py"
    value = read_constant(path.read_text(encoding="utf-8"))
    assert value is not None
    path.write_text(
        path.read_text(encoding="utf-8").replace(value["manifest_sha256"], "0" * 64), encoding="utf-8"
    )
    case = mounts.simulate(out, clips=10, layouts=["models"], changes=["as uploaded"])[0]
    assert "BundleHashMismatch" in case.lost


def test_changes_do_what_kaggle_does(tmp_path: Path) -> None:
    folder = tmp_path / "slug"
    folder.mkdir()
    (folder / "a.csv.gz").write_bytes(gzip.compress(b"x"))
    mounts.gunzip(folder)
    mounts.wrap(folder)
    assert (folder / "slug" / "a.csv").read_bytes() == b"x" and len(list(folder.rglob("*"))) == 2


def test_without_a_build_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UploadError, match="build first"):
        mounts.simulate(tmp_path)
