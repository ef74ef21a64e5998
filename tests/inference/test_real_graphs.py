"""Real pretrained graphs out of their packages, where these are installed: they run, or are refused with why.

pip install silero-vad openwakeword==0.4.0 (with --no-deps: only their files are read); nothing of them ships.
"""
from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from builder import graph_members
from kernel import spec
from kernel.errors import ModelLoadFailed, SpecError
from kernel.inference import graph_net
from kernel.inference.graph_file import describe
from kernel.inference.member import LoadedNet, graph_outputs, load_graph
from kernel.inference.recipe import build_recipe
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from kernel.sound.source import Source
from tests.helpers import graphs

RATE = 16_000
ROW = Row(id="a", clip=Clip(id="a"))
WAVE = graphs.draw(RATE * 3, seed=4)
MEL = {"rate": RATE, "spectrum": "mel", "mels": 32, "n_fft": 512, "hop": 160}


class Store:
    def get(self, fe: Source, row: Row) -> np.ndarray:
        return fe.of_row(WAVE, row.id)


def read(package: str, name: str) -> bytes:
    """Bytes of a graph in an installed package, which is not imported."""
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or []) if found is not None else []
    paths = [path for place in places for path in Path(place).rglob(name)]
    if not paths:
        pytest.skip(f"{package} is not installed, or has no {name}")
    return paths[0].read_bytes()


def load(graph: bytes, runtime: str, **keys: object) -> LoadedNet:
    fields = {"name": "m", "family": "onnx", "frontend": "wave", **keys}
    member = spec.Member(**fields)  # type: ignore[arg-type]
    fronts = {"wave": {"preset": "wave", "rate": RATE}, "mel": MEL}
    ensemble = spec.Ensemble(name="e", classes=("a", "b"), members=(member,), frontends=fronts)
    use = graph_net.use_of(member)
    member = graph_members.settle_member(ensemble, member, describe(graph, use.where))
    net = graph_net.load_net(graph, pytest.importorskip(runtime), 2, 1, use)
    return load_graph(build_recipe(ensemble, member), net, spec.Cost())


@pytest.mark.parametrize(("package", "name"), [
    ("silero_vad", "silero_vad.onnx"),
    ("silero_vad", "silero_vad_16k_sequence.onnx"),
    ("silero_vad", "silero_vad_op18_ifless.onnx"),
    ("openwakeword", "silero_vad.onnx"),
])
def test_voice_detectors_that_carry_a_state_are_refused(package: str, name: str) -> None:
    graph = read(package, name)
    has_rate = any(port.name == "sr" for port in describe(graph, "m").inputs)
    for params in ({}, {"sr": RATE} if has_rate else {}):
        with pytest.raises(ModelLoadFailed, match="carries a state from call to call.*over a whole sequence"):
            load(graph, "onnxruntime", params=params)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_spectrogram_graph_hears_a_wave(runtime: str) -> None:
    graph = read("openwakeword", "melspectrogram.onnx")
    mel, = graph_outputs(load(graph, runtime), Store(), ROW, ["output"])
    session = pytest.importorskip("onnxruntime").InferenceSession(graph, providers=["CPUExecutionProvider"])
    want = session.run(None, {"input": WAVE[None]})[0]
    assert mel.shape == (1, want.shape[2], 32) and np.allclose(mel[0], want[0, 0], atol=2e-2)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_embedding_graph_hears_pictures_of_its_own_layout(runtime: str) -> None:
    """[B, 76, 32, 1]: time first, the channel last; its length gives the view."""
    graph = read("openwakeword", "embedding_model.onnx")
    net = load(graph, runtime, frontend="mel", finish=("time_first",))
    assert net.recipe.member.view == {"kind": "chunks", "frames": 76, "stride": 76}
    embeddings, = graph_outputs(net, Store(), ROW, ["conv2d_19"])
    session = pytest.importorskip("onnxruntime").InferenceSession(graph, providers=["CPUExecutionProvider"])
    stage = net.recipe.stages["x"]
    cuts = stage.cut(stage.fe.of_row(WAVE, "a"), "a")  # [P, 1, 32, 76]
    wanted = [session.run(None, {"input_1": cut.transpose(0, 2, 1)[..., None]})[0][0, 0, 0] for cut in cuts]
    assert embeddings.shape == (len(cuts), 1, 96)
    assert np.allclose(embeddings[:, 0], wanted, atol=1e-3 * np.abs(wanted).max())


def test_a_graph_that_takes_other_pictures_is_refused() -> None:
    with pytest.raises(SpecError, match=r"takes 2432 values.*correct bins or finish"):
        load(read("openwakeword", "embedding_model.onnx"), "onnxruntime", frontend="mel", finish=("delta",))


def test_an_output_may_have_any_name() -> None:
    graph = read("openwakeword", "timer_v0.1.onnx")
    facts = describe(graph, "m")
    name = facts.outputs[0].name
    assert name.startswith("{") and facts.output(name, "m").shape == (1, 7)
    assert facts.made_by[name] == "Softmax"
    lines = graph_members.tell(spec.Member(name="m", family="onnx", frontend="mel"), facts)
    assert any('activation = "none"' in line for line in lines)
