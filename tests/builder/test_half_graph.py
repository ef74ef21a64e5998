"""Graphs with weights in half precision, a graph's last layer as a head, and the shipped YAMNet."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from builder import half_graph
from kernel import models, spec
from kernel.errors import ModelLoadFailed, SpecError
from tests.helpers import REPOSITORY, graphs
from training import graph_classes

onnxruntime = pytest.importorskip("onnxruntime")
YAMNET = REPOSITORY / "weights" / "yamnet.onnx"


def run(graph: bytes, name: str, wave: np.ndarray, output: str) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([output], {name: wave})[0])


def test_weights_are_halved_and_what_is_kept_is_not() -> None:
    graph = graphs.patches_graph()
    wave = graphs.draw(1500)
    half = half_graph.halve(graph)
    assert len(half) < 0.6 * len(graph)
    exact = run(graph, "wave", wave, "scores")
    rounded = run(half, "wave", wave, "scores")
    assert 0 < np.abs(exact - rounded).max() < 2e-3
    with pytest.raises(ModelLoadFailed, match="no fp32 weights"):
        half_graph.halve(graph, keep=["w"])
    assert half_graph.differ(graph, half, {"wave": wave})["scores"][0] == np.abs(exact - rounded).max()


def test_what_lies_beyond_half_precision_is_cut_to_its_range() -> None:
    weight = np.full((4, 8), 1e6, np.float32)
    node = graphs.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = graphs.model([node], [graphs.port("x", [1, 4])], [graphs.port("y", [1, 8])], w=weight)
    made = run(half_graph.halve(graph), "x", np.ones((1, 4), np.float32), "y")
    assert np.isfinite(made).all() and made[0, 0] == 4 * half_graph.HALF_MAX


def test_what_is_no_graph_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no graph")
    assert half_graph.main([str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx")]) == 2
    assert "half_graph:" in capsys.readouterr().err and not (tmp_path / "b.onnx").exists()


def test_a_classifier_of_a_class_that_the_graph_lacks_is_refused() -> None:
    with pytest.raises(SpecError, match="no line for the class 'c'"):
        graph_classes.make_head(YAMNET.read_bytes(), ["x"] * 521, {}, ["c"])
    with pytest.raises(SpecError, match="label 'y' is none of the graph's"):
        graph_classes.make_head(YAMNET.read_bytes(), ["x"] * 521, {"c": "y"}, ["c"])
    with pytest.raises(ModelLoadFailed, match="7 outputs"):
        graph_classes.last_layer(YAMNET.read_bytes(), 7, "yamnet")


def test_the_shipped_classifier_gives_what_the_shipped_graph_gives() -> None:
    """Golden: patches of 0.96 s every 0.48 s; scores = sigmoid of the last layer on the embeddings."""
    t = np.arange(3 * 16_000) / 16_000
    wave = (0.3 * np.sin(2 * np.pi * (200 * t + 300 * t * t))).astype(np.float32)
    vectors = run(YAMNET.read_bytes(), "waveform", wave, "embeddings")
    scores = run(YAMNET.read_bytes(), "waveform", wave, "scores")
    assert vectors.shape == (1 + int(np.ceil((len(wave) - 15_600) / 7_680)), 1024)
    told = spec.load_ensemble(REPOSITORY / "ensembles" / "yamnet.toml")
    member = next(one for one in told.members if one.name == "audioset")
    net = models.build(member.family, dict(member.params), len(told.classes)).eval()
    state = load_file(REPOSITORY / "weights" / str(member.weights))
    net.load_state_dict({key: value.float() for key, value in state.items()})
    with torch.no_grad():
        got = net(torch.from_numpy(np.ascontiguousarray(vectors.T[None, None])))[0].numpy()
    # Numbers of classes in AudioSet's list of 521: Bark 70, Speech 0, Sneeze 44, Whispering 12.
    theirs = {"Bark": 70, "Male_speech_and_man_speaking": 0, "Sneeze": 44, "Whispering": 12}
    for name, number in theirs.items():
        assert got[told.classes.index(name)] == pytest.approx(scores[:, number].mean(), abs=1e-3)
