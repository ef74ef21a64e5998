"""Graphs through the whole build: what follows from them is in the manifest, what is odd about them is said,
and what cannot be is refused with all that the graph has.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernel.bundle import open_bundle
from kernel.errors import ModelLoadFailed, SpecError
from tests.helpers import graphs

FIVE = [f"bird{i}" for i in range(5)]


def test_what_follows_from_a_graph_is_in_the_manifest(tmp_path: Path) -> None:
    said: list[str] = []
    graph = graphs.wave_graph(batch=1)
    manifest = graphs.build(tmp_path, graph, 'output = "label"\nview = { merge = "max" }', said=said)
    member = manifest.ensemble.members[0]
    assert member.view == {"kind": "chunks", "merge": "max", "frames": 8000, "stride": 8000}
    cost = manifest.costs["m"]
    assert cost.open_bytes >= 0 and 8000 * cost.bytes_b > 0
    assert "member m: a pass has 8000 frames (view 'chunks')" in said
    assert open_bundle(tmp_path / "out" / "bundle", manifest).read_net(manifest.nets[0]) == graph


@pytest.mark.parametrize(("graph", "keys", "line"), [
    (graphs.patches_graph(), 'output = "scores"', "comes out of a sigmoid inside the graph: write act"),
    (graphs.patches_graph(ending="Softmax"), 'activation = "sigmoid"', "comes out of a softmax inside"),
    (graphs.patches_graph(), 'activation = "none"', "the first of several outputs is taken, 'scores'; "),
    (graphs.half_graph(), "", "an fp16 graph: two runtimes may differ by 0.02 on it"),
    (graphs.quantised_graph(), "", "an int8 graph: two runtimes may differ by 0.02 on it"),
])
def test_what_is_odd_about_a_graph_is_said(tmp_path: Path, graph: bytes, keys: str, line: str) -> None:
    said: list[str] = []
    graphs.build(tmp_path, graph, keys, said=said)
    assert any(line in text for text in said), said


@pytest.mark.parametrize(("graph", "keys", "error", "message"), [
    (graphs.wave_graph(), 'output = "embedding"', SpecError,
     r"gave \[1, 4\], expected .*\[1, 3\].*'embedding' was taken; `output` may name another: .*'label' fl"),
    (graphs.wave_graph(), "", SpecError, "`output` may name another"),
    (graphs.wave_graph(), 'output = "nope"', ModelLoadFailed, "no output 'nope'; it has 'embedding'"),
    (graphs.patches_graph(), 'view = { kind = "tiles", frames = 0 }', SpecError, "view.frames"),
    (graphs.wave_graph(samples=8002), 'output = "label"', SpecError, "the graph fails on 3 s of sound"),
    (graphs.mixing_graph()[:200], "", ModelLoadFailed, "member m: no ONNX graph"),
])
def test_what_cannot_be_is_refused(
    tmp_path: Path, graph: bytes, keys: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        graphs.build(tmp_path, graph, keys)
    assert not (tmp_path / "out").exists()


def test_a_graph_of_other_classes_gives_its_own_answers_through_the_map(tmp_path: Path) -> None:
    """Ours are bark, meow and hiss; two of five labels speak for bark, one for meow, none for hiss."""
    from tests.engine.test_graph_ways import WAVES, engine, make_input

    (tmp_path / "map.csv").write_text("label,class\nbird0,bark\nbird3,bark\nbird4,meow\n")
    (tmp_path / "labels.txt").write_text("\n".join(FIVE) + "\n")
    keys = 'output = "label"\nclasses_map = "map.csv"\nclasses_from = "labels.txt"\nmissing = 0.25'
    graphs.build(tmp_path, graphs.wave_graph(classes=5), keys)
    make_input(tmp_path)
    with engine(tmp_path, tmp_path / "state", "onnxruntime") as opened:
        opened.execute()
        scores = opened.run.board.get("m.0")
    assert len(WAVES[1]) == 8000  # a pass
    logits = graphs.run_wave_graph(WAVES[1], classes=5)[1]
    want = 1 / (1 + np.exp(-np.array([max(logits[0], logits[3]), logits[4]])))
    assert np.allclose(scores[1][:2], want, atol=1e-6)
