"""Tiny ONNX graphs made node by node, built as those of pretrained nets are: waves in, several outputs."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from builder import assembly, backend_wheels  # noqa: E402
from kernel.spec import Manifest  # noqa: E402

Axes = Sequence[int | str | None]
FLOAT = TensorProto.FLOAT
PATCH = 400  # samples of a patch of `patches_graph`


def port(name: str, axes: Axes | None, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, axes)


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], **weights: np.ndarray) -> bytes:
    """Bytes of a graph with these weights by name."""
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def wave_graph(classes: int = 3, samples: int | str = 8000, batch: int | str = "batch",
               dim: int = 4) -> bytes:
    """A wave [batch, samples] -> "embedding" [batch, dim], then "label" [batch, classes] (logits).

    embedding = |means of `dim` stretches of equal length|: it needs a number of samples that `dim` divides.
    """
    nodes = [
        helper.make_node("Reshape", ["wave", "shape"], ["parts"]),
        helper.make_node("Abs", ["parts"], ["sizes"]),
        helper.make_node("ReduceMean", ["sizes"], ["embedding"], axes=[2], keepdims=0),
        helper.make_node("Gemm", ["embedding", "w", "b"], ["label"]),
    ]
    return model(nodes, [port("wave", [batch, samples])],
                 [port("embedding", [batch, dim]), port("label", [batch, classes])],
                 shape=np.array([0, dim, -1], np.int64), w=10 * draw(dim, classes), b=draw(classes, seed=1))


def run_wave_graph(wave: np.ndarray, classes: int = 3, dim: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """(embedding, logits) of `wave_graph` for one pass f32[S]."""
    embedding = np.abs(wave.reshape(dim, -1)).mean(axis=1)
    return embedding, embedding @ (10 * draw(dim, classes)) + draw(classes, seed=1)


def patches_graph(classes: int = 3, ending: str = "Sigmoid") -> bytes:
    """A wave [samples] of any length -> "scores" [patches, classes] and "embeddings" [patches, PATCH].

    A patch has PATCH samples, the last one is filled with zeros; scores = sigmoid(|patch| @ w).
    """
    nodes = [
        helper.make_node("Shape", ["wave"], ["length"]),
        helper.make_node("Mod", ["length", "patch"], ["over"]),
        helper.make_node("Sub", ["patch", "over"], ["lack"]),
        helper.make_node("Mod", ["lack", "patch"], ["more"]),
        helper.make_node("Concat", ["zero", "more"], ["pads"], axis=0),
        helper.make_node("Pad", ["wave", "pads"], ["whole"]),
        helper.make_node("Reshape", ["whole", "shape"], ["parts"]),
        helper.make_node("Abs", ["parts"], ["embeddings"]),
        helper.make_node("MatMul", ["embeddings", "w"], ["logits"]),
        helper.make_node(ending, ["logits"], ["scores"]),
    ]
    return model(nodes, [port("wave", ["samples"])],
                 [port("scores", ["patches", classes]), port("embeddings", ["patches", PATCH])],
                 patch=np.array([PATCH], np.int64), zero=np.array([0], np.int64),
                 shape=np.array([-1, PATCH], np.int64), w=draw(PATCH, classes))


def run_patches_graph(wave: np.ndarray, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(scores, embeddings) of `patches_graph` for a wave f32[S]."""
    parts = np.abs(np.pad(wave, (0, -len(wave) % PATCH)).reshape(-1, PATCH))
    return 1 / (1 + np.exp(-(parts @ draw(PATCH, classes)))), parts


TOML = """
name = "graphs"
classes = [{classes}]
[frontends.wave]
preset = "wave"
rate = {rate}
[[members]]
name = "m"
family = "onnx"
frontend = "wave"
weights = "m.onnx"
{keys}
"""


def build(folder: Path, graph: bytes, keys: str, classes: Sequence[str] = ("bark", "meow", "hiss"),
          rate: int = 8000, said: list[str] | None = None) -> Manifest:
    """`folder`/bundle with one member that is this graph; `keys` are further lines of its table.

    No wheels ride along: the installed runtimes run it.
    """
    weights = folder / "weights"
    weights.mkdir(parents=True)
    (weights / "m.onnx").write_bytes(graph)
    names = ", ".join(f'"{name}"' for name in classes)
    (folder / "graphs.toml").write_text(TOML.format(classes=names, rate=rate, keys=keys))
    request = assembly.BuildRequest(
        ensemble=folder / "graphs.toml", out=folder / "out", owner="someone", weights=weights,
        back_end="onnxruntime",
    )
    with mock.patch.object(backend_wheels, "collect", lambda *_: []):
        built = assembly.build(request, say=(said if said is not None else []).append)
    return built.manifest


def half_graph(classes: int = 3, samples: int = 8000, dim: int = 4) -> bytes:
    """As `wave_graph` with a free batch, all of it in half precision; it gives "label" alone."""
    nodes = [
        helper.make_node("Reshape", ["wave", "shape"], ["parts"]),
        helper.make_node("Abs", ["parts"], ["sizes"]),
        helper.make_node("ReduceMean", ["sizes"], ["embedding"], axes=[2], keepdims=0),
        helper.make_node("Gemm", ["embedding", "w", "b"], ["label"]),
    ]
    half = TensorProto.FLOAT16
    return model(nodes, [port("wave", ["batch", samples], half)], [port("label", ["batch", classes], half)],
                 shape=np.array([0, dim, -1], np.int64), w=(10 * draw(dim, classes)).astype(np.float16),
                 b=draw(classes, seed=1).astype(np.float16))


def quantised_graph(classes: int = 3, samples: int = 8000, dim: int = 4) -> bytes:
    """As `wave_graph` with a free batch and its weights in eight bits; it gives "label" alone."""
    weights = 10 * draw(dim, classes)
    scale = np.float32(np.abs(weights).max() / 127)
    nodes = [
        helper.make_node("Reshape", ["wave", "shape"], ["parts"]),
        helper.make_node("Abs", ["parts"], ["sizes"]),
        helper.make_node("ReduceMean", ["sizes"], ["embedding"], axes=[2], keepdims=0),
        helper.make_node("DequantizeLinear", ["w8", "scale"], ["w"]),
        helper.make_node("Gemm", ["embedding", "w", "b"], ["label"]),
    ]
    return model(nodes, [port("wave", ["batch", samples])], [port("label", ["batch", classes])],
                 shape=np.array([0, dim, -1], np.int64), w8=np.round(weights / scale).astype(np.int8),
                 scale=np.array(scale), b=draw(classes, seed=1))


def two_inputs_graph() -> bytes:
    """"wave" [batch, samples], "share" [batch, 1], "gain" scalar, "lengths" int64[batch] -> "y" [batch, 3].

    y = (mean of |wave|, share, lengths) * gain.
    """
    nodes = [
        helper.make_node("Abs", ["wave"], ["sizes"]),
        helper.make_node("ReduceMean", ["sizes"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Cast", ["lengths"], ["counts"], to=FLOAT),
        helper.make_node("Unsqueeze", ["counts", "one"], ["column"]),
        helper.make_node("Concat", ["mean", "share", "column"], ["all"], axis=1),
        helper.make_node("Mul", ["all", "gain"], ["y"]),
    ]
    inputs = [port("wave", ["batch", "samples"]), port("share", ["batch", 1]), port("gain", []),
              port("lengths", ["batch"], TensorProto.INT64)]
    return model(nodes, inputs, [port("y", ["batch", 3])], one=np.array([1], np.int64))


def mixing_graph() -> bytes:
    """A wave [batch, 8000] -> "y" [batch, 3], less the mean over the batch: what no row may depend on."""
    nodes = [
        helper.make_node("Reshape", ["wave", "shape"], ["parts"]),
        helper.make_node("ReduceMax", ["parts"], ["tops"], axes=[2], keepdims=0),
        helper.make_node("ReduceMean", ["tops"], ["middle"], axes=[0], keepdims=1),
        helper.make_node("Add", ["tops", "middle"], ["y"]),
    ]
    return model(nodes, [port("wave", ["batch", 8000])], [port("y", ["batch", 4])],
                 shape=np.array([0, 4, -1], np.int64))
