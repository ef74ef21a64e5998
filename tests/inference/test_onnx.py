"""Exported graphs: the same numbers as torch, wheels of the right Python only, unpacked after their hash was
checked.
"""
from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from builder import assembly
from builder import onnx_export as exporter
from kernel import models
from kernel.bundle import Bundle, open_bundle
from kernel.errors import BundleError, BundleHashMismatch, DeviceError, ModelLoadFailed, SpecError
from kernel.inference import graph_net, onnx
from kernel.spec import Ensemble, FileEntry, Manifest, Member, Wheel
from tests.helpers import REPOSITORY
from tests.helpers.bundles import TINY, order


def bundle_with(folder: Path, wheels: dict[str, dict[str, bytes]]) -> Bundle:
    """A bundle that holds nothing but back-end wheels."""
    files = {}
    for name, content in wheels.items():
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w") as archive:
            for inner, data in content.items():
                archive.writestr(inner, data)
        (folder / name).write_bytes(held.getvalue())
        files[name] = FileEntry(
            bytes=len(held.getvalue()), sha256=hashlib.sha256(held.getvalue()).hexdigest()
        )
    ensemble = Ensemble(
        name="e",
        classes=("a", "b"),
        members=(Member(name="m", family="f", frontend="x"),),
        frontends={"x": {}},
    )
    wheel = Wheel(file="w.whl", entry=FileEntry(bytes=0, sha256=""), files={})
    return open_bundle(
        folder,
        Manifest(format=1, bundle="", version="", ensemble=ensemble, wheel=wheel, files=files, nets=()),
    )


@pytest.mark.parametrize(
    ("wheel", "fits"),
    [
        ("openvino-1-2-cp312-cp312-manylinux_2_28_x86_64.whl", True),
        ("openvino-1-2-cp313-cp313-manylinux_2_28_x86_64.whl", False),
        ("a-1-py3-none-any.whl", True),
        ("a-1-py2.py3-none-any.whl", True),
        ("a-1-cp310-abi3-manylinux2014_x86_64.whl", True),
        ("a-1-cp313-abi3-manylinux2014_x86_64.whl", False),
    ],
)
def test_wheels_are_chosen_by_their_tags(wheel: str, fits: bool) -> None:
    assert onnx.fits_python(wheel, (3, 12)) is fits


def test_verified_wheels_are_unpacked_and_imported(tmp_path: Path) -> None:
    """In a process of its own: the stand-in runtime must not shadow the installed one here."""
    code = f"""
import sys, importlib.abc
sys.path[:0] = [{str(REPOSITORY)!r}]
from pathlib import Path
from tests.inference.test_onnx import bundle_with
from kernel.inference import graph_net, onnx
here = Path({str(tmp_path)!r})
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "onnxruntime" and str(here / "lib") not in sys.path:
            raise ImportError("absent")
sys.meta_path.insert(0, Hidden())
bundle = bundle_with(here, {{"onnxruntime-1-py3-none-any.whl": {{"onnxruntime.py": b"KIND = 'bundled'"}}}})
module = onnx.find_runtime("onnxruntime", bundle, here / "lib")
print((here / "lib" / "onnxruntime.py").is_file(), sys.path[-1] == str(here / "lib"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_damaged_or_hostile_wheels_are_refused(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, {"a-1-py3-none-any.whl": {"../evil.py": b"x"}})
    with pytest.raises(BundleError, match="outside"):
        onnx.unpack(bundle, tmp_path / "lib")
    assert not (tmp_path / "evil.py").exists()
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(
        b"x" * bundle.manifest.files["a-1-py3-none-any.whl"].bytes
    )
    with pytest.raises(BundleHashMismatch):
        onnx.unpack(bundle, tmp_path / "lib")


def test_an_absent_runtime_is_named_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceError, match="--wheels openvino"):
        onnx.find_runtime("openvino", bundle_with(tmp_path, {}), tmp_path / "lib")
    with pytest.raises(SpecError, match="openvino"):
        onnx.find_runtime("openvin", bundle_with(tmp_path, {}), tmp_path / "lib")


@pytest.mark.parametrize("runtime", onnx.RUNTIMES)
@pytest.mark.parametrize("family", ["simple_cnn", "aux_skip_attention"])
def test_graphs_give_the_numbers_of_torch(tmp_path: Path, runtime: str, family: str) -> None:
    pytest.importorskip(runtime)
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    module = models.build(family, {"base": 4}, 3).eval()
    shape = (1, module.channels or 1, 128)
    data = exporter.export_net(module, {"x": torch.randn(*shape, 80)}, "x", fixed=False)
    net = graph_net.open_graph(data, runtime, bundle_with(tmp_path, {}), tmp_path, True)
    for frames in (64, 131):
        x = torch.randn(*shape, frames)
        with torch.no_grad():
            assert torch.allclose(net(x), module(x), atol=1e-4)


def test_exported_graphs_ride_in_the_bundle(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    built = assembly.build(order(tmp_path, export_onnx=True), say=lambda _: None)
    assert TINY.is_file() and set(built.manifest.graphs) == {"plain.0", "plain.1", "tiled.0"}
    bundle = open_bundle(tmp_path / "bundle", built.manifest)
    assert all(bundle.read_file(graph["onnx"]) for graph in built.manifest.graphs.values())


def test_garbage_is_no_graph(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ModelLoadFailed, match="no ONNX graph"):
        graph_net.open_graph(b"garbage", "onnxruntime", bundle_with(tmp_path, {}), tmp_path, False)


def test_openvino_is_opened_without_a_word_to_its_makers() -> None:
    """A rehearsal has no network and fails where something asks for it; a user's machine has one."""
    pytest.importorskip("openvino")
    code = (
        "import sys; from unittest import mock; from kernel.inference import onnx\n"
        "onnx.find_runtime('openvino', mock.Mock(), None)\n"
        "from openvino.tools.ovc import telemetry_utils as told\n"
        "print(told.tm.__name__, 'openvino_telemetry.main' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True,
                          check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"]
