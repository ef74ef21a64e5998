"""Which runtime runs a member that is a graph: all that are there are tried on the first rows, one is taken.

Owns that choice: what `--backend` pins and what an earlier engine of the run has chosen go before what is
measured. Keeps no choice over a crash (journal) and does not know what a runtime is called with (graph_net).
"""
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import spec
from ..bundle import Bundle
from ..errors import ClipError, DeviceError
from ..inference import graph_net
from ..inference.backends import Inputs
from ..inference.member import LoadedNet, load_graph, row_inputs
from ..inference.onnx import RUNTIMES, find_runtime
from ..inference.recipe import PASSES_PER_BATCH, Recipe
from ..inference.runner import AGREEMENT_FP32, AGREEMENT_HALF
from ..sound.rows import Row
from .cpu import Cores
from .feed import Feed
from .net_run import NetRun

TRIAL_ROWS = 4  # first rows on which the runtimes are compared and timed
TRIAL_ROUNDS = 3  # timed at most so often, in turns
TRIAL_S = 2.0  # no further round once the timed ones have taken so long; our choice
FASTER = 0.95  # a further runtime must take less than this share of the first one's time
OPEN_SHARE = 3  # memory of an opened graph over the bytes of its file, where the bundle does not say

Passes = list[Inputs]


@dataclass(kw_only=True)
class _Way:
    """A graph under one runtime: its answers to the trial rows, and the best seconds for all of them."""

    name: str
    net: LoadedNet
    answers: list[np.ndarray]
    seconds: float = np.inf


@dataclass(frozen=True, kw_only=True)
class GraphWays:
    """Opens graphs.

    runtimes  folder for runtimes that the bundle brings as wheels
    backend   what `--backend` asks for: "auto", or a runtime's name; the others mean nets in torch
    """

    bundle: Bundle
    feed: Feed
    cores: Cores
    runtimes: Path
    backend: str = "auto"

    def open(self, run: NetRun, recipe: Recipe, todo: Sequence[int], stop: Callable[[], bool]) -> LoadedNet:
        """The member's graph, ready to run, under the fastest of the runtimes that agree.

        The first of RUNTIMES that is there says what is right. A runtime that was asked for, or chosen by an
        earlier engine of this run, is not compared with others.

        Raises  ModelLoadFailed, BundleError, SpecError, DeviceError where no runtime takes the graph
        """
        nets = self._open_all(run, recipe)
        if len(nets) == 1:
            return next(iter(nets.values()))
        passes = self._draw_passes(run, recipe, next(iter(nets.values())), todo, stop)
        if not passes:
            return next(iter(nets.values()))
        with run.flight([row for row, _ in passes]):
            best = self._fastest(run, nets, [part for _, parts in passes for part in parts])
        return best.net

    def _open_all(self, run: NetRun, recipe: Recipe) -> dict[str, LoadedNet]:
        """The graph under each runtime that is wanted, there, and takes it; why not the others, is noted."""
        manifest = self.bundle.manifest
        entry = next(net for net in manifest.nets if net.id == run.net_id)
        cost = manifest.costs.get(entry.member, spec.Cost())
        use = graph_net.use_of(recipe.member)
        known = cost.bytes_a + cost.bytes_b > 0  # else rows run one by one, with all cores
        need = entry.length + (cost.open_bytes or OPEN_SHARE * entry.length)
        reasons = list[str]()
        nets = dict[str, LoadedNet]()
        with run.opening():
            self.cores.make_room(need, self.feed.store)
            graph = self.bundle.read_net(entry)
            run.heartbeat.beat()
            for name in self._wanted(run):
                if nets and not self.cores.make_room(need, self.feed.store):
                    reasons.append(f"{name}: not tried, no memory for the graph a second time")
                    break
                try:
                    net = graph_net.open_graph(graph, name, self.bundle, self.runtimes, known, use)
                    nets[name] = load_graph(recipe, net, cost)
                except DeviceError as error:
                    reasons.append(str(error))
                run.heartbeat.beat()
        if not nets:
            raise DeviceError("; ".join(reasons))
        run.notes += reasons
        return nets

    def _wanted(self, run: NetRun) -> tuple[str, ...]:
        """The runtimes to open: the one that is pinned, or was chosen before and is still there, else all."""
        if self.backend in RUNTIMES:
            return (self.backend,)
        before = run.journal.choice(run.net_id) or ""
        chosen = tuple(name for name in RUNTIMES if before.startswith(name))
        try:
            for name in chosen:
                find_runtime(name, self.bundle, self.runtimes)
        except DeviceError as error:
            run.notes.append(f"{before}, which an earlier engine chose, is gone ({error})")
            chosen = ()
        return chosen or RUNTIMES

    def _draw_passes(
        self, run: NetRun, recipe: Recipe, net: LoadedNet, todo: Sequence[int], stop: Callable[[], bool]
    ) -> list[tuple[Row, Passes]]:
        """The first rows that no engine has died of, each with its inputs as they are run together."""
        suspects = run.suspects()
        numbers = [i for i in todo if i not in suspects][:TRIAL_ROWS]
        run.loading_s += self.feed.load(recipe, numbers, stop)
        drawn = list[tuple[Row, Passes]]()
        for row in (run.rows.all[i] for i in numbers):
            try:
                inputs = row_inputs(net, self.feed.store, row)
            except ClipError:
                continue  # the run itself names it
            count = len(next(iter(inputs.values())))
            starts = range(0, count, PASSES_PER_BATCH)
            drawn.append((row, [{k: v[s : s + PASSES_PER_BATCH] for k, v in inputs.items()} for s in starts]))
        return drawn

    def _fastest(self, run: NetRun, nets: dict[str, LoadedNet], passes: Passes) -> _Way:
        """The way that takes the least time of those that agree with the first one."""
        ways = list[_Way]()
        for name, net in nets.items():
            try:
                way = _Way(name=name, net=net, answers=[net.runner(part) for part in passes])
            except Exception as error:  # runtimes raise types of their own
                reason = f"{type(error).__name__}: {str(error)[:200]}"
                run.notes.append(f"{name}: fails on the first rows ({reason}); not used")
            else:
                if not ways or self._agrees(run, ways[0], way):
                    ways.append(way)
            run.heartbeat.beat()
        if not ways:  # each row will tell
            return _Way(name="", net=next(iter(nets.values())), answers=[])
        if len(ways) > 1:
            self._time(run, ways, passes)
        best = ways[0]
        for way in ways[1:]:
            if way.seconds < FASTER * best.seconds:
                best = way
        if len(ways) > 1:
            times = ", ".join(f"{way.name} {1000 * way.seconds / len(passes):.1f} ms" for way in ways)
            run.notes.append(f"{best.name} is used: {times} a forward on the first rows")
        return best

    def _agrees(self, run: NetRun, first: _Way, way: _Way) -> bool:
        """Whether both give the same answers, as closely as the graph's precision lets them."""
        facts = getattr(way.net.module, "facts", None)
        precision = facts.precision if facts is not None else "fp32"
        allowed = AGREEMENT_FP32 if precision == "fp32" else AGREEMENT_HALF
        apart = max(_apart(a, b) for a, b in zip(first.answers, way.answers, strict=True))
        if not apart <= allowed:
            told = f"{way.name} differs from {first.name} by {apart:.2g}"
            run.notes.append(f"{told}, above {allowed}; not used")
            return False
        if precision != "fp32":
            run.notes.append(f"{precision} graph: {way.name} differs from {first.name} by {apart:.2g}")
        return True

    def _time(self, run: NetRun, ways: Sequence[_Way], passes: Passes) -> None:
        """The best of some rounds in turns, each as the run itself calls the net: on all cores."""
        began = time.monotonic()
        for _ in range(TRIAL_ROUNDS):
            for way in ways:
                started = time.monotonic()
                self._run_all(way.net, passes)
                way.seconds = min(way.seconds, time.monotonic() - started)
                run.heartbeat.beat()
            if time.monotonic() - began > TRIAL_S:
                return

    def _run_all(self, net: LoadedNet, passes: Passes) -> None:
        if not net.runner.recorded:
            for part in passes:
                net.runner(part)
            return
        for future in [self.cores.threads.submit(net.runner, part) for part in passes]:
            future.result()


def _apart(first: np.ndarray, second: np.ndarray) -> float:
    """Largest difference over the largest value or 1; infinite where shapes differ, NaN beside a number."""
    if first.shape != second.shape:
        return np.inf
    return float(np.abs(first - second).max() / max(1.0, np.abs(first).max()))
