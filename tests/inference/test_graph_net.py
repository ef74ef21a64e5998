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
