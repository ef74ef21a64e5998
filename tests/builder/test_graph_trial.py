"""A user's ONNX graph is tried apart from the build: a loop, a crash or an odd answer is a sentence."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from builder import dry_run
from builder.graph_trial import GraphFailed, run_graph
from kernel.errors import SpecError
from kernel.spec import Ensemble, Member

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper  # noqa: E402

X = np.ones((1, 3), np.float32)


def value(name: str, kind: int = TensorProto.FLOAT, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def graph_of(node: onnx.NodeProto, *tensors: onnx.TensorProto, kind: int = TensorProto.FLOAT) -> bytes:
    """Bytes of a graph of one node, from `x` to `y`."""
    graph = helper.make_graph([node], "g", [value("x")], [value("y", kind)], list(tensors))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    return bytes(model.SerializeToString())


def endless() -> bytes:
    """A loop of 2^62 rounds."""
    nodes = [helper.make_node("Identity", ["c"], ["co"]), helper.make_node("Identity", ["v"], ["vo"])]
    body = helper.make_graph(
        nodes, "body", [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("v")],
        [value("co", TensorProto.BOOL, []), value("vo")],
    )
    rounds = helper.make_tensor("n", TensorProto.INT64, [], [2**62])
    go = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    return graph_of(helper.make_node("Loop", ["n", "t", "x"], ["y"], body=body), rounds, go)


def test_a_graph_gives_its_first_output_under_any_name() -> None:
    assert np.array_equal(run_graph(graph_of(helper.make_node("Neg", ["x"], ["y"])), {"mel": X})[0], -X)


def test_a_graph_that_does_not_end_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GraphFailed, match="did not end in 1.5 s"):
        run_graph(endless(), {"x": X}, seconds=1.5)
    member = Member(name="m", family="onnx", frontend="mel")
    fronts = {"mel": {"preset": "argus"}}
    ensemble = Ensemble(name="e", classes=("a", "b"), members=(member,), frontends=fronts)

    def fails(graph: bytes, *_: object, **__: object) -> list[np.ndarray]:
        raise GraphFailed("it did not end")

    monkeypatch.setattr(dry_run, "run_graph", fails)
    with pytest.raises(SpecError, match=r"member m: the graph fails on 3 s of sound \(it did not end\)"):
        dry_run.try_onnx(ensemble, member, graph_of(helper.make_node("Neg", ["x"], ["y"])))


@pytest.mark.parametrize(("graph", "words"), [
    (b"\x08\xff" * 100, "INVALID_PROTOBUF|Protobuf|protobuf"),
    (graph_of(helper.make_node("Absent", ["x"], ["y"])), "Absent"),
    (graph_of(helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING), kind=TensorProto.STRING),
     "its first output holds object, expected a tensor of numbers"),
])
def test_a_graph_that_is_refused_is_a_sentence(graph: bytes, words: str) -> None:
    with pytest.raises(GraphFailed, match=words):
        run_graph(graph, {"x": X})


def test_a_runtime_that_crashes_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(GraphFailed, match="ended with exit code -11"):
        run_graph(b"", {"x": X})
    (tmp_path / "onnxruntime.py").write_text("import os\nos._exit(0)\n")
    with pytest.raises(GraphFailed, match="left no answer"):
        run_graph(b"", {"x": X})


def test_weights_outside_of_the_graph_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"0123456789abcdef")
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1, 3], [0, 0, 0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", str(tmp_path / "secret")), ("offset", "0"), ("length", "12")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, text
    with pytest.raises(GraphFailed):
        run_graph(graph_of(helper.make_node("Add", ["x", "w"], ["y"]), tensor), {"x": X})
