"""One step of the plan: one net, or nets that share batches, opened on a device, over the rows they lack.

Owns what a step is: opening nets, the choice of their schedule (cpu, gpu, or a stacker's own), saving as it
goes, and the outcome. Does not choose steps (plan) or publish (publication).
"""
import math
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .. import spec
from ..bundle import Bundle
from ..errors import ModelLoadFailed
from ..inference import graph_net, onnx
from ..inference.backends import forget_nets
from ..inference.devices import Device, is_lost
from ..inference.embeddings import Embeddings, sources_of
from ..inference.member import LoadedNet, load_net, load_stacker
from ..inference.recipe import Recipe
from ..inference.staging import Lane
from ..inference.ways import Precision, way_of
from ..scores.blend import count_lacking, hopeless_rows, stacker_features
from . import crowds, gpu, plan
from .cpu import Cores, CpuSchedule, Stop
from .feed import Feed
from .graph_ways import GraphWays
from .net_run import NetRun
from .opener import Hints, LeftSeconds, Opener, Upcoming

SAVE_EVERY_S = 10.0  # scores to disk inside a step: the most a crash can cost


@dataclass(frozen=True, kw_only=True)
class StepRunner:
    """Runs steps; one thread per device may call it at once.

    runtimes    folder for back ends that the bundle brings as wheels
    embeddings  whose graphs are opened before a net of theirs
    backend     what `--backend` asks for (kernel.order)
    """

    bundle: Bundle
    feed: Feed
    cores: Cores
    runtimes: Path
    embeddings: Embeddings
    backend: str = "auto"
    _openers: dict[str, Opener] = field(default_factory=dict)
    _lanes: dict[str, Lane] = field(default_factory=dict)
    _precisions: dict[str, Precision] = field(default_factory=dict)

    def run_all(
        self, step: plan.Step, runs: Sequence[NetRun], device: Device, stop: Stop, upcoming: Upcoming,
        left_s: LeftSeconds = lambda: math.inf,
    ) -> list[plan.Outcome]:
        """Outcome of each net of a step: together on a GPU where they want the same rows, else one by one.

        upcoming  asked for the net that will run after them, which is opened while they compute
        left_s    seconds that the step has: nets that share batches get fewer where not all will end in time
        """
        found = crowds.split(runs, device, self._is_graph)
        outcomes: list[plan.Outcome] = []
        for number, crowd in enumerate(found, 1):
            if outcomes and stop():
                break
            # A crash while another net is being opened would not tell which of them it was
            ahead = number == len(found) and not crowd[0].journal.nets_in_doubt
            # What a user's file does to torch's settings while it runs would meet a net that is being built
            ahead = ahead and not any(crowds.has_own_code(run.part) for run in crowd)
            hints = Hints(upcoming=upcoming if ahead else lambda: None, left_s=left_s)
            outcomes += self._run_group(step, crowd, device, stop, hints)
        return outcomes

    def _run_group(
        self, step: plan.Step, runs: Sequence[NetRun], device: Device, stop: Stop, hints: Hints
    ) -> list[plan.Outcome]:
        """Nets over the rows that each of them lacks; several share batches."""
        todo = runs[0].missing()
        began = time.monotonic()
        before = [(run.loading_s, run.timed(), run.timing.seconds) for run in runs]
        runs[0].heartbeat.begin(
            runs[0].net_id, max(step.forecast_s, self.feed.slowest_s(runs[0].recipe))
        )
        forecast_s = round(step.forecast_s, 2)
        with ExitStack() as spans:
            for run in runs:
                span = run.rows.recorder.span
                spans.enter_context(
                    span(run.net_id, device=device.name, rows=len(todo), forecast_s=forecast_s)
                )
            try:
                self._predict(runs, todo, device, stop, hints)
            except BaseException as error:  # whatever a net's own code raises costs this net
                if is_lost(error):
                    raise
                for run in runs:
                    if run.failed is None:
                        run.fail(error)
            leaving = time.monotonic()
            forget_nets()
            runs[0].setup_s += time.monotonic() - leaving
        whole_s = time.monotonic() - began
        setup_s = runs[0].setup_s / len(runs)
        own_s = [run.timing.seconds - seconds for run, (_, _, seconds) in zip(runs, before, strict=True)]
        common_s = max(0.0, whole_s - sum(own_s)) / len(runs)
        scale = min(1.0, whole_s / max(1e-9, sum(own_s)))
        return [
            _outcome(step, run, todo, common_s + scale * seconds, loading_s, setup_s, timed)
            for run, seconds, (loading_s, timed, _) in zip(runs, own_s, before, strict=True)
        ]

    def _predict(
        self, runs: Sequence[NetRun], todo: list[int], device: Device, stop: Stop, hints: Hints
    ) -> None:
        run = runs[0]
        if run.recipe is not None and sources_of(run.recipe):
            with run.opening():
                self.embeddings.open(run.recipe)
        if isinstance(run.part, spec.Stacker):
            self._predict_stacker(run, run.part, self._entry(run), stop)
        elif run.recipe is None:
            return  # its stages cannot be built: it has failed before the first step
        elif device.cuda and not self._is_graph(run):  # graphs run on the CPU
            self._predict_on_gpu(runs, run.recipe, todo, device, stop, hints)
        else:
            self._predict_on_cpu(run, run.recipe, todo, device, stop)

    def _entry(self, run: NetRun) -> spec.Net:
        return next(net for net in self.bundle.manifest.nets if net.id == run.net_id)

    def _is_graph(self, run: NetRun) -> bool:
        return not isinstance(run.part, spec.Stacker) and self._entry(run).kind == "onnx"

    def _predict_on_cpu(
        self, run: NetRun, recipe: Recipe, todo: list[int], device: Device, stop: Stop
    ) -> None:
        """A first-level net block by block, its scores saved now and then."""
        began = time.monotonic()
        todo = run.begin(todo)
        if self._is_graph(run):
            ways = GraphWays(bundle=self.bundle, feed=self.feed, cores=self.cores, runtimes=self.runtimes,
                             backend=self.backend)
            net = ways.open(run, recipe, todo, stop)
        else:
            net = self._open_run(run, device)
        run.path = net.runner.path
        if self.backend in onnx.RUNTIMES and not run.path.startswith(self.backend):
            why = "; ".join(net.runner.notes) or "the bundle holds no graph of it: build with --export onnx"
            told = f"runs as {run.path} although {self.backend} was asked for ({why})"
            run.rows.recorder.fault("BackendNotUsed", run.net_id, told)
        run.journal.choose(run.net_id, net.runner.path)
        run.setup_s = time.monotonic() - began
        _follow([run], CpuSchedule(run, net, self.cores, self.feed, stop).predict(_suspects_first(run, todo)))
        run.path = net.runner.path
        run.notes += net.runner.notes

    def _predict_on_gpu(
        self,
        runs: Sequence[NetRun],
        recipe: Recipe,
        todo: list[int],
        device: Device,
        stop: Stop,
        hints: Hints,
    ) -> None:
        """First-level nets that share batches: the first is waited for, the others are opened meanwhile."""
        began = time.monotonic()
        wanted = [run.begin(todo) for run in runs][0]  # they share batches: they want the same
        todo = gpu.longest_first(runs[0], recipe, self.feed.store, wanted)
        self.feed.prefetch(recipe, todo[:gpu.FIRST_ROWS])  # on a CPU the net wants the loaders' cores
        opener = self._openers.get(device.name)
        if opener is None:
            opener = self._openers[device.name] = Opener(self._open_run, device)
        opened = [opener.open(run) for run in runs]
        if any(crowds.has_own_code(run.part) for run in runs):  # and what it does to them while it is built
            futures.wait(opened)
        opener.open_next(partial(crowds.only_ours, hints.upcoming))
        there: list[tuple[NetRun, Future[LoadedNet]]] = []
        for run, future in zip(runs, opened, strict=True):
            if there or _is_open(run, future):
                there.append((run, future))
        runs[0].setup_s = time.monotonic() - began
        if not there:
            return
        first = there[0][1].result()
        lane = self._lanes.get(device.name)
        if lane is None:
            lane = self._lanes[device.name] = Lane(first.runner.device)
        crowd = [run for run, _ in there]
        opened = [future for _, future in there]
        schedule = gpu.GpuSchedule(crowd, opened, self.feed, lane, stop, hints.left_s)
        try:
            _follow(crowd, schedule.predict(_suspects_first(crowd[0], todo)))
        finally:
            for run, future in there:
                if not future.cancel() and future.done() and not future.exception():
                    run.path = future.result().runner.path
                    run.notes += future.result().runner.notes

    def _open_run(self, run: NetRun, device: Device) -> LoadedNet:
        """The net of a run, ready on its device; it is named while it is opened."""
        if run.recipe is None:
            raise ModelLoadFailed(f"{run.net_id}: its stages cannot be built")
        torch.set_default_dtype(torch.float32)  # a net before may have changed it
        try:
            with run.opening():
                net = self._open_net(run, run.recipe, device)
            run.intake = net.intake.key
            return net
        finally:  # and this one, while others run
            torch.set_default_dtype(torch.float32)

    def _open_net(self, run: NetRun, recipe: Recipe, device: Device) -> LoadedNet:
        """The net, ready to run: in torch or as a graph that agrees.

        The heart beats between reading, building and recording: on a slow machine each can take its time. A
        way that an earlier engine of this run took is taken again.

        Raises  ModelLoadFailed, BundleError, DeviceError
        """
        entry = self._entry(run)
        beat = run.heartbeat.beat
        before = run.journal.choice(run.net_id)
        manifest = self.bundle.manifest
        cost = manifest.costs.get(entry.member, spec.Cost())
        state = self.bundle.load_state(entry)
        beat()
        name = manifest.graphs.get(entry.id, {}).get("onnx")

        def open_exported(runtime: str) -> graph_net.GraphNet:
            beat()
            return graph_net.open_graph(
                self.bundle.read_file(str(name)), runtime, self.bundle, self.runtimes, True
            )

        way = before or ("" if self.backend == "auto" else self.backend)
        wanted = [runtime for runtime in onnx.RUNTIMES if not way or way.startswith(runtime)]
        candidates = [partial(open_exported, runtime) for runtime in wanted if name is not None]
        found = self._precisions.setdefault(entry.member, Precision())
        own = way_of(before) or ("fp32" if "fp32" in way else None)  # of a fold that half does not suit, too
        precision = found if own is None else Precision(way=own)
        found.way = found.way or own
        net = load_net(recipe, state, len(manifest.ensemble.classes), device, cost, candidates, precision)
        beat()
        return net

    def _predict_stacker(self, run: NetRun, stacker: spec.Stacker, entry: spec.Net, stop: Stop) -> None:
        """A second-level net over the rows whose inputs wait for no fold; row by row, each for itself."""
        ensemble = self.bundle.manifest.ensemble
        with run.opening():
            module, activate = load_stacker(stacker, self.bundle.load_state(entry), len(ensemble.classes))
        missing = set(run.missing())
        run.path = "torch cpu, eager"
        read = []
        for i, features in zip(*stacker_features(stacker, ensemble, run.board), strict=True):
            if stop():
                break
            if int(i) in missing:
                began = time.monotonic()
                try:
                    with run.flight([run.rows.all[i]]), torch.inference_mode():
                        out = module(torch.from_numpy(np.array(features[None], np.float32)))
                        probs = activate(out.numpy().astype(np.float64))[0]
                except BaseException as error:  # as of any net, whatever it raises
                    run.settle(int(i), error)
                else:
                    run.put(int(i), probs)
                    read.append(int(i))
                run.timing.add(1, 0.0, time.monotonic() - began)
        for net_id, count in count_lacking(stacker, ensemble, run.board, read).items():
            run.notes.append(f"read without {net_id} in {count} rows, where it has no say")
        lonely = hopeless_rows(stacker, ensemble, run.board)
        for i in sorted(missing.intersection(lonely.tolist())):
            run.pass_over(run.rows.all[i].id, "an input has no say in this row")
        run.save()


def _outcome(
    step: plan.Step,
    run: NetRun,
    todo: list[int],
    seconds: float,
    loading_before_s: float,
    setup_s: float,
    before: plan.Todo,
) -> plan.Outcome:
    """What a step brought of one net, which is also booked on its run."""
    run.seconds += seconds
    run.setup_s = setup_s
    done = sorted(set(todo) - set(run.missing()))
    timed = run.timed().since(before)
    if run.recipe is not None and not timed.rows:
        # First forwards alone: a rough lesson is better than the same choice again.
        timed = plan.Todo(rows=len(done), cells=float(run.cells[done].sum()))
        setup_s = 0.0
    return plan.Outcome(
        net_id=run.net_id, kind=step.kind, forecast_s=step.forecast_s / len(step.net_ids), seconds=seconds,
        loading_s=run.loading_s - loading_before_s, setup_s=setup_s, rows=len(todo), done=len(done),
        timed=timed)


def _is_open(run: NetRun, future: Future[LoadedNet]) -> bool:
    """True once the net is there; where it cannot be opened, it has failed. Raises for a lost device."""
    try:
        future.result()
    except BaseException as error:  # whatever a net's own code raises costs this net
        if is_lost(error):
            raise
        run.fail(error)
        return False
    return True


def _suspects_first(run: NetRun, todo: Sequence[int]) -> list[int]:
    """Suspects first and alone: a second crash then names the culprit and costs no other row."""
    suspects = run.suspects()
    return sorted(todo, key=lambda i: i not in suspects)


def _follow(runs: Sequence[NetRun], blocks: Iterator[None]) -> None:
    """Draw blocks to the end, and save the scores now and then."""
    saved = time.monotonic()
    try:
        for _ in blocks:
            _finish_rows(runs)
            if time.monotonic() - saved > SAVE_EVERY_S:
                for run in runs:
                    run.save()
                saved = time.monotonic()
    finally:  # a lost device ends the process: what it has done is kept
        _finish_rows(runs, last=True)
        for run in runs:
            run.save()


def _finish_rows(runs: Sequence[NetRun], last: bool = False) -> None:
    """Put the rows on the board that are made of several windows, once these have answered."""
    for run in runs:
        if run.failed is None:
            run.finish_rows(last)
