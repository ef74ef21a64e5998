"""Graphs as members: the named output answers, the view follows from the graph, patches are merged,
embeddings are within reach; what cannot run is refused with a sentence.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from builder import graph_members
from kernel import spec
from kernel.errors import ModelLoadFailed, SpecError
from kernel.inference import graph_net
from kernel.inference.graph_file import describe
from kernel.inference.member import LoadedNet, graph_outputs, load_graph, predict_alone
from kernel.inference.recipe import build_recipe
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from kernel.sound.source import Source
from tests.helpers import graphs

RATE = 8000
ROW = Row(id="a", clip=Clip(id="a"))
MEMBER = spec.Member(name="m", family="onnx", frontend="wave")
RUNTIMES = ("onnxruntime", "openvino")


class Waves:
    """Stands for the store: one clip's wave."""

    def __init__(self, wave: np.ndarray) -> None:
        self.wave = wave

    def get(self, fe: Source, row: Row) -> np.ndarray:
        return fe.of_row(self.wave, row.id)


def ensemble_of(member: spec.Member, classes: int = 3) -> spec.Ensemble:
    fronts = {"wave": {"preset": "wave", "rate": RATE}, "length": {"preset": "qrfaction_length"},
              "mel": {"preset": "argus"}}
    names = tuple(f"c{i}" for i in range(classes))
    return spec.check(spec.Ensemble(name="e", classes=names, members=(member,), frontends=fronts))


def load(graph: bytes, runtime: str = "onnxruntime", classes: int = 3, **keys: Any) -> LoadedNet:
    """The member as the builder settles it and the kernel opens it."""
    ensemble = ensemble_of(replace(MEMBER, **keys), classes)
    use = graph_net.use_of(ensemble.members[0])
    member = graph_members.settle_member(ensemble, ensemble.members[0], describe(graph, use.where))
    ensemble = ensemble_of(member, classes)
    net = graph_net.load_net(graph, pytest.importorskip(runtime), 2, 1, use)
    return load_graph(build_recipe(ensemble, member), net, spec.Cost())


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def draw_wave(samples: int) -> np.ndarray:
    return graphs.draw(samples, seed=9)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("batch", ["batch", 1, 2])
def test_a_graph_of_fixed_length_hears_a_clip_in_chunks_of_it(runtime: str, batch: int | str) -> None:
    """Whatever its batch is: free, one, or two, which a clip of three chunks does not fill."""
    net = load(graphs.wave_graph(batch=batch), runtime, output="label")
    assert net.recipe.member.view == {"kind": "chunks", "frames": 8000, "stride": 8000}
    wave = draw_wave(20_000)
    chunks = [wave[start : start + 8000] for start in (0, 6000, 12_000)]
    want = np.mean([sigmoid(graphs.run_wave_graph(chunk)[1]) for chunk in chunks], axis=0)
    assert np.allclose(predict_alone(net, Waves(wave), ROW), want, atol=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("rule", "join"), [("mean", np.mean), ("max", np.max)])
def test_answers_per_patch_are_merged_by_the_view(runtime: str, rule: str, join: Any) -> None:
    net = load(graphs.patches_graph(), runtime, output="scores", activation="none",
               view={"kind": "full", "merge": rule})
    for samples in (1, 400, 401, 7777):
        wave = draw_wave(samples)
        want = join(graphs.run_patches_graph(wave)[0], axis=0)
        assert np.allclose(predict_alone(net, Waves(wave), ROW), want, atol=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_embeddings_come_with_the_scores_of_one_run(runtime: str) -> None:
    wave = draw_wave(1000)
    scores, embeddings = graphs.run_patches_graph(wave)
    got = graph_outputs(load(graphs.patches_graph(), runtime, output="scores"), Waves(wave), ROW,
                        ["embeddings", "scores"])
    assert [array.shape for array in got] == [(1, 3, graphs.PATCH), (1, 3, 3)]
    assert np.allclose(got[0][0], embeddings, atol=1e-6) and np.allclose(got[1][0], scores, atol=1e-6)


def test_each_chunk_has_its_embedding() -> None:
    wave = draw_wave(80_000)  # ten chunks: three forwards of up to four passes
    net = load(graphs.wave_graph(), output="label")
    embeddings, labels = graph_outputs(net, Waves(wave), ROW, ["embedding", "label"])
    want = [graphs.run_wave_graph(chunk)[0] for chunk in wave.reshape(10, -1)]
    assert embeddings.shape == (10, 1, 4) and labels.shape == (10, 1, 3)
    assert np.allclose(embeddings[:, 0], want, atol=1e-6)


def test_a_wrong_output_lists_all() -> None:
    with pytest.raises(ModelLoadFailed, match=r"'labels'; it has 'embedding' float32\[\?, 4\]; 'label'"):
        load(graphs.wave_graph(), output="labels")
    with pytest.raises(SpecError, match="output: 'y'; only a graph"):
        ensemble_of(spec.Member(name="m", family="simple_cnn", frontend="wave", output="y"))


def test_a_view_of_another_length_is_refused() -> None:
    with pytest.raises(SpecError, match="cuts 4000 frames, but the graph's input 'wave'.* takes 8000"):
        load(graphs.wave_graph(), view={"kind": "tiles", "frames": 4000, "step": 4000})
    own = {"kind": "tiles", "frames": 8000, "step": 4000}
    assert load(graphs.wave_graph(), output="label", view=own).recipe.member.view == own


FLAT = ("flatten",)
SEVERAL: dict[str, Any] = {
    "frontend": None,
    "inputs": {"wave": spec.Input(frontend="wave"), "share": spec.Input(frontend="length", finish=FLAT)},
    "activation": "none",
}


def test_several_inputs_and_constants() -> None:
    """Two from front ends, one that stays the same, one that is the length of the pass."""
    wave = draw_wave(4000)
    net = load(graphs.two_inputs_graph(), params={"gain": 2.0, "lengths": "frames"}, **SEVERAL)
    want = [2 * np.abs(wave).mean(), 2 * len(wave) / 441_000, 2 * len(wave)]
    assert np.allclose(predict_alone(net, Waves(wave), ROW), want, rtol=1e-6)


@pytest.mark.parametrize(("keys", "message"), [
    ({"params": {"gain": 2.0}}, "front ends fill share, wave, the graph wants .*'lengths' int64"),
    ({"params": {"gain": 2.0, "lengths": "frames", "sr": 1}}, "params.sr: no input of the graph"),
    ({"params": {"gain": "loud", "lengths": "frames"}}, "params.gain: 'loud' is no 'gain' float32"),
    ({"params": {"min_frames": 0}}, "min_frames = 0; give a whole number"),
    ({"inputs": {}, "frontend": "wave", "params": {"gain": 2.0}}, "name each in"),
    ({"inputs": {"wave": spec.Input(frontend="wave"), "part": spec.Input(frontend="length")},
      "params": {"gain": 2.0, "lengths": "frames"}}, "front ends fill part, wave, the graph wants"),
])
def test_inputs_that_nothing_fills_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        predict_alone(load(graphs.two_inputs_graph(), **{**SEVERAL, **keys}), Waves(draw_wave(4000)), ROW)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("graph", "precision"), [
    (graphs.half_graph(), "fp16"), (graphs.quantised_graph(), "int8"), (graphs.wave_graph(), "fp32"),
])
def test_graphs_in_less_than_full_precision_run(graph: bytes, precision: str, runtime: str) -> None:
    wave = draw_wave(8000)
    net = load(graph, runtime, output="label")
    assert describe(graph, "m").precision == precision
    want = sigmoid(graphs.run_wave_graph(wave)[1])
    assert np.allclose(predict_alone(net, Waves(wave), ROW), want, atol=1e-6 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_graph_that_mixes_its_batch_hears_one_pass_at_a_time(runtime: str) -> None:
    wave = draw_wave(40_000)
    net = load(graphs.mixing_graph(), runtime, classes=4, activation="none")
    alone = [2 * chunk.reshape(4, -1).max(axis=1) for chunk in wave.reshape(5, -1)]
    assert np.allclose(predict_alone(net, Waves(wave), ROW), np.mean(alone, axis=0), atol=1e-6)
    assert any("passes run one by one (together they differ by" in note for note in net.runner.notes)


def test_what_a_graph_says_of_itself_is_read_without_a_runtime() -> None:
    facts = describe(graphs.patches_graph(), "m")
    assert [str(port) for port in facts.inputs] == ["'wave' float32[?]"]
    assert [str(port) for port in facts.outputs] == ["'scores' float32[?, 3]", "'embeddings' float32[?, 400]"]
    assert facts.made_by == {"scores": "Sigmoid", "embeddings": "Abs"} and facts.precision == "fp32"
    weight = graphs.port("w", [4, 3])  # older exporters list weights among the inputs
    listed = graphs.onnx.load_from_string(graphs.wave_graph())
    listed.graph.input.append(weight)
    assert [port.name for port in describe(listed.SerializeToString(), "m").inputs] == ["wave"]


def test_bytes_that_are_no_graph_are_a_sentence() -> None:
    graph = graphs.wave_graph()
    for cut in range(0, len(graph) - 40, 7):  # behind the graph itself only versions follow
        with pytest.raises(ModelLoadFailed, match="m: no ONNX graph"):
            describe(graph[:cut], "m")
    rng = np.random.default_rng(0)
    for _ in range(300):
        spoilt = bytearray(graph)
        for place in rng.integers(0, len(graph), 3):
            spoilt[place] = rng.integers(0, 256)
        try:
            describe(bytes(spoilt), "m")
        except ModelLoadFailed:
            pass
