"""Embeddings: one run of the graph per row for all that read its vectors, kept and spilled like any array."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder import embeddings as building
from kernel import spec
from kernel.cache.ram import StoreLimits
from kernel.cache.store import Store
from kernel.errors import ClipError, EmbeddingFailed, ModelLoadFailed, SpecError
from kernel.inference.embedded import Embedded
from kernel.inference.embeddings import Embeddings
from kernel.inference.recipe import build_recipe
from kernel.memory import Meter
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from tests.helpers import graphs

RATE = 8000
ROWS = [Row(id=f"r{i}", clip=Clip(id=f"r{i}", rate=RATE, samples_claimed=4000)) for i in range(6)]
WAVES = {row.id: np.random.default_rng(i).normal(0, 0.1, 4000 + 130 * i).astype(np.float32)
         for i, row in enumerate(ROWS)}


def make(graph: bytes, heads: int = 2, **keys: Any) -> tuple[spec.Ensemble, Embeddings, list[Embedded]]:
    """A settled ensemble of heads on one graph, its embeddings, and each head's own source."""
    keys.setdefault("output", ("embeddings",))
    embedding = spec.Embedding(graph="g.onnx", frontend="wave", **keys)
    members = tuple(spec.Member(name=f"h{i}", family="linear_head", params={"values": 400}, frontend="e")
                    for i in range(heads))
    ensemble = spec.check(spec.Ensemble(
        name="x", classes=("a", "b", "c"), members=members, embeddings={"e": embedding},
        frontends={"wave": {"preset": "wave", "rate": RATE}}))
    asked = {"e": graph}
    ensemble = building.settle(ensemble, asked, lambda _: None)
    made = building.open_here(ensemble, asked, callers=2)
    sources = []
    for member in ensemble.members:
        recipe = build_recipe(ensemble, member)
        made.connect(recipe)
        source = recipe.stages["x"].fe
        assert isinstance(source, Embedded)
        sources.append(source)
    return ensemble, made, sources


def test_vectors_are_the_graphs_own_and_their_cost_is_known() -> None:
    ensemble, made, (source, _) = make(graphs.patches_graph())
    told = ensemble.embeddings["e"]
    assert told.values == 400 and told.per_second == pytest.approx(20, rel=0.05)
    wave = WAVES["r3"]
    array = source.of_row(wave, "r3")
    wanted = graphs.run_patches_graph(wave)[1]
    assert array.shape == (1, 400, len(wanted)) and array.dtype == np.float32
    assert np.abs(array[0].T - wanted).max() <= 1e-6
    assert array.shape[2] <= source.max_frames(len(wave)) and array.nbytes <= source.max_bytes(len(wave))


def test_several_outputs_stand_beside_each_other() -> None:
    _, _, (source, _) = make(graphs.patches_graph(), output=("scores", "embeddings"), stored="float16")
    scores, vectors = graphs.run_patches_graph(WAVES["r0"])
    array = source.of_row(WAVES["r0"], "r0")
    assert array.shape[1] == 403 and array.dtype == np.float16
    assert np.abs(array[0, :3].T - scores).max() <= 1e-3 and np.abs(array[0, 3:].T - vectors).max() <= 1e-3


def test_a_graph_of_fixed_length_gives_a_vector_for_each_cut() -> None:
    _, made, (source, _) = make(graphs.wave_graph(samples=800), output=("embedding",))
    array = source.of_row(WAVES["r0"], "r0")  # 4000 samples
    assert array.shape == (1, 4, 5)
    for i in range(5):
        wanted = graphs.run_wave_graph(WAVES["r0"][800 * i : 800 * (i + 1)])[0]
        assert np.abs(array[0, :, i] - wanted).max() <= 1e-6
    assert made.work["e"].passes == 5 and made.work["e"].vectors == 5


@pytest.mark.parametrize("ram_bytes", [1 << 40, 0], ids=["in RAM", "no room at all"])
def test_heads_share_one_run_per_row_while_there_is_room(tmp_path: Path, ram_bytes: int) -> None:
    _, made, sources = make(graphs.patches_graph(), heads=3)

    def produce(fe: Any, rows: Any) -> Any:
        for row in rows:
            yield row, fe.of_row(WAVES[row.id], row.id)

    store = Store(produce=produce, meter=Meter(cap_bytes=1 << 40), scratch=tmp_path, loaders=2,
                  limits=StoreLimits(ram_bytes=ram_bytes, disk_bytes=1 << 30))
    first = [store.get(sources[0], row).copy() for row in ROWS]
    for source in sources:
        store.warm(source, ROWS)
        for row, array in zip(ROWS, first, strict=True):
            assert np.array_equal(store.get(source, row), array)
    store.close()
    assert made.work["e"].rows == len(ROWS)  # in RAM, or spilled and read


def test_a_row_without_vectors_fails_by_name_and_is_counted() -> None:
    _, made, (source, _) = make(graphs.patches_graph())
    loud = np.full(1000, np.inf, np.float32)
    with pytest.raises(EmbeddingFailed, match="NaN or infinity"):
        source.of_row(loud, "r0")
    with pytest.raises(ClipError):
        source.of_row(np.zeros(0, np.float32), "r0")
    assert made.work["e"].failed == 1


def test_what_overflows_its_stored_dtype_is_no_silent_infinity() -> None:
    _, _, (source, _) = make(graphs.patches_graph(), stored="float16")
    with pytest.raises(EmbeddingFailed, match="as float16"):
        source.of_row(np.full(1000, 1e6, np.float32), "r0")


def test_what_the_table_says_is_checked_against_the_graph() -> None:
    with pytest.raises(SpecError, match="values: 12, but the graph gives vectors of 400"):
        make(graphs.patches_graph(), values=12)
    with pytest.raises(ModelLoadFailed, match="no output 'embedding'; it has 'scores'"):
        make(graphs.patches_graph(), output=("embedding",))
    with pytest.raises(SpecError, match="sha256"):
        make(graphs.patches_graph(), sha256="0" * 64)


def test_outputs_of_different_counts_are_refused() -> None:
    _, _, (source, _) = make(graphs.patches_graph())
    source.run = lambda wave, row_id: [np.zeros((1, 3, 4)), np.zeros((1, 2, 4))]
    with pytest.raises(EmbeddingFailed, match="3, 2"):
        source.of_row(WAVES["r0"], "r0")


def test_keys_tell_graphs_apart() -> None:
    _, _, (one, same) = make(graphs.patches_graph())
    _, _, (other, _) = make(graphs.patches_graph(ending="Softmax"))
    assert one.key == same.key != other.key
