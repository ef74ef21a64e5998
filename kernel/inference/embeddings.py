"""The graphs behind a run's embeddings: opened once each, run once per row for all heads and folds.

Owns the open graphs and the count of what they did. What a source of vectors is, is `embedded`; where vectors
are kept is the store's affair, and when they are made is the loaders'.
"""
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from .. import spec
from ..sound.decode import Clip
from ..sound.rows import Row
from ..sound.source import Source
from .embedded import Embedded
from .graph_net import GraphNet, GraphUse
from .member import LoadedNet, graph_outputs, load_graph
from .recipe import Recipe, build_recipe, graph_member

# Opens the graph of an embedding: (its name in the bundle, how it is used) -> the net. Raises what is wrong.
OpenGraph = Callable[[str, GraphUse], GraphNet]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the graph of one embedding has done.

    rows      rows that have vectors: one run of decoding, front end and graph each
    passes    cuts that the graph read for them;  vectors: what it made of them
    failed    rows for which it gave none
    seconds   of graph and front end, all loader threads together
    path      how it ran
    """

    rows: int = 0
    passes: int = 0
    vectors: int = 0
    failed: int = 0
    seconds: float = 0.0
    path: str = ""


@dataclass(frozen=True)
class OneWave:
    """Stands for the store: the arrays of one wave f32[S]."""

    wave: np.ndarray

    def get(self, fe: Source, row: Row) -> np.ndarray:
        """array[C, M, T] of the wave."""
        return fe.of_row(self.wave, row.id)


class Embeddings:
    """The graphs of an ensemble's embeddings. Thread-safe: all loaders run them at once, a core each."""

    def __init__(self, ensemble: spec.Ensemble, open_graph: OpenGraph) -> None:
        self._ensemble = ensemble
        self._open_graph = open_graph
        self._nets: dict[str, LoadedNet] = {}
        self._opening = threading.Lock()
        self._counting = threading.Lock()
        self.work: dict[str, Work] = {}

    def connect(self, recipe: Recipe) -> None:
        """Let the recipe's sources of vectors run their graphs."""
        for source in sources_of(recipe):
            source.run = partial(self._run, source.name)

    def open(self, recipe: Recipe) -> None:
        """Open the graphs that the recipe's sources need, where they are not.

        Raises  BundleError, DeviceError, SpecError: whatever is wrong with one of them
        """
        for source in sources_of(recipe):
            self._net(source.name)

    def _net(self, name: str) -> LoadedNet:
        with self._opening:
            if name not in self._nets:
                embedding = self._ensemble.embeddings[name]
                recipe = build_recipe(self._ensemble, graph_member(name, embedding))
                use = GraphUse(where=f"embedding {name}", inputs=("x",),
                               output=embedding.output[0] if embedding.output else None)
                graph = self._open_graph(embedding.graph, use)
                for output in embedding.output:
                    graph.facts.output(output, use.where)
                self._nets[name] = load_graph(recipe, graph, spec.Cost())
                self._count(name, Work(path=graph.path))
            return self._nets[name]

    def _run(self, name: str, wave: np.ndarray, row_id: str) -> list[np.ndarray]:
        """The outputs of one row, f32[P, n, D] each."""
        net = self._net(name)
        assert isinstance(net.module, GraphNet)
        wanted = self._ensemble.embeddings[name].output or (net.module.answer.name,)
        began = time.monotonic()
        try:
            outputs = graph_outputs(net, OneWave(wave), Row(id=row_id, clip=Clip(id=row_id)), wanted)
        except BaseException:
            self._count(name, Work(failed=1))
            raise
        passes, patches = outputs[0].shape[:2]
        self._count(name, Work(rows=1, passes=passes, vectors=passes * patches,
                               seconds=time.monotonic() - began))
        return outputs

    def _count(self, name: str, more: Work) -> None:
        with self._counting:
            have = self.work.get(name, Work())
            self.work[name] = Work(
                rows=have.rows + more.rows, passes=have.passes + more.passes,
                vectors=have.vectors + more.vectors, failed=have.failed + more.failed,
                seconds=have.seconds + more.seconds, path=more.path or have.path)


def sources_of(recipe: Recipe) -> list[Embedded]:
    """The recipe's sources that are embeddings."""
    found = [stage.source for stage in recipe.stages.values()]
    return [source for source in found if isinstance(source, Embedded)]
