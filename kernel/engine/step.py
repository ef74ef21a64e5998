"""One step of the plan: one net, opened on a device, over the rows it lacks.

Owns what a step is: opening the net, the choice of its schedule (cpu, gpu, or a stacker's own), saving as it
goes, and the outcome. Does not choose steps (plan) or publish (publication).
"""
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .. import spec
from ..bundle import Bundle
from ..inference import onnx
from ..inference.backends import forget_nets
from ..inference.devices import Device, is_lost
from ..inference.member import LoadedNet, load_graph, load_net, load_stacker
from ..inference.recipe import Recipe
from ..scores.blend import count_lacking, stacker_features
from . import gpu, plan
from .cpu import Cores, CpuSchedule, Stop
from .feed import Feed
from .net_run import NetRun

SAVE_EVERY_S = 10.0  # scores to disk inside a step: the most a crash can cost


@dataclass(frozen=True, kw_only=True)
class StepRunner:
    """Runs steps; one thread per device may call it at once.

    runtimes  folder for back ends that the bundle brings as wheels
    """

    bundle: Bundle
    feed: Feed
    cores: Cores
    runtimes: Path

    def run(self, step: plan.Step, run: NetRun, device: Device, stop: Stop) -> plan.Outcome:
        """Scores of one net on the board and in the journal.

        Raises  the error of a lost device: only a new process helps
        """
        todo = run.missing()
        began = time.monotonic()
        loading_before = run.loading_s
        before = run.timed()
        run.heartbeat.begin(run.net_id, step.forecast_s)
        forecast_s = round(step.forecast_s, 2)
        with run.rows.recorder.span(run.net_id, device=device.name, rows=len(todo), forecast_s=forecast_s):
            try:
                self._predict(run, todo, device, stop)
            except BaseException as error:  # whatever a net's own code raises costs this net
                if is_lost(error):
                    raise
                run.fail(error)
            leaving = time.monotonic()
            forget_nets()
            run.setup_s += time.monotonic() - leaving
        seconds = time.monotonic() - began
        run.seconds += seconds
        done = sorted(set(todo) - set(run.missing()))
        timed = run.timed().since(before)
        setup_s = run.setup_s
        if run.recipe is not None and not timed.rows:
            # First forwards alone: a rough lesson is better than the same choice again.
            timed = plan.Todo(rows=len(done), cells=float(run.cells[done].sum()))
            setup_s = 0.0
        return plan.Outcome(
            net_id=run.net_id, kind=step.kind, forecast_s=step.forecast_s, seconds=seconds,
            loading_s=run.loading_s - loading_before, setup_s=setup_s, rows=len(todo), done=len(done),
            timed=timed)

    def _predict(self, run: NetRun, todo: list[int], device: Device, stop: Stop) -> None:
        entry = next(net for net in self.bundle.manifest.nets if net.id == run.net_id)
        if isinstance(run.part, spec.Stacker):
            self._predict_stacker(run, run.part, entry, stop)
        elif run.recipe is not None:  # where its stages cannot be built, it has failed before the first step
            self._predict_member(run, run.recipe, entry, todo, device, stop)

    def _predict_member(self, run: NetRun, recipe: Recipe, entry: spec.Net, todo: list[int], device: Device,
                        stop: Stop) -> None:
        """A first-level net block by block, its scores saved now and then."""
        began = time.monotonic()
        on_gpu = device.cuda and entry.kind != "onnx"  # graphs run on the CPU
        if on_gpu:
            todo = gpu.longest_first(run, recipe, self.feed.store, todo)
            self.feed.prefetch(recipe, todo[:gpu.FIRST_ROWS])  # on a CPU the net wants the loaders' cores
        with run.opening():
            net = self._open_net(entry, recipe, device, run.heartbeat.beat)
        run.path = net.runner.path
        run.setup_s = time.monotonic() - began
        # First and alone: a second crash then names the culprit and costs no other row
        suspects = run.suspects()
        todo = sorted(todo, key=lambda i: i not in suspects)
        saved = time.monotonic()
        try:
            for _ in self._schedule(run, net, on_gpu, stop).predict(todo):
                if time.monotonic() - saved > SAVE_EVERY_S:
                    run.save()
                    saved = time.monotonic()
        finally:  # a lost device ends the process: what it has done is kept
            run.save()
        run.path = net.runner.path
        run.notes += net.runner.notes

    def _schedule(
        self, run: NetRun, net: LoadedNet, on_gpu: bool, stop: Stop
    ) -> CpuSchedule | gpu.GpuSchedule:
        if on_gpu:
            return gpu.GpuSchedule(run, net, self.feed, stop)
        return CpuSchedule(run, net, self.cores, self.feed, stop)

    def _open_net(
        self, entry: spec.Net, recipe: Recipe, device: Device, beat: Callable[[], None]
    ) -> LoadedNet:
        """The net, ready to run: an ONNX member as its graph, others in torch or as a graph that agrees.

        beat  called between reading, building and recording: on a slow machine each can take its time

        Raises  ModelLoadFailed, BundleError, DeviceError
        """
        manifest = self.bundle.manifest
        cost = manifest.costs.get(entry.member, spec.Cost())
        if entry.kind == "onnx":
            data = self.bundle.read_net(entry)
            return load_graph(
                recipe, onnx.open_graph(data, onnx.ONNX, self.bundle, self.runtimes, False), cost
            )
        state = self.bundle.load_state(entry)
        beat()
        name = manifest.graphs.get(entry.id, {}).get("onnx")

        def open_exported(runtime: str) -> onnx.GraphNet:
            beat()
            return onnx.open_graph(
                self.bundle.read_file(str(name)), runtime, self.bundle, self.runtimes, True
            )

        candidates = [partial(open_exported, runtime) for runtime in onnx.RUNTIMES if name is not None]
        net = load_net(recipe, state, len(manifest.ensemble.classes), device, cost, candidates)
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
                with torch.inference_mode():
                    out = module(torch.from_numpy(np.ascontiguousarray(features[None], dtype=np.float32)))
                run.put(int(i), activate(out.numpy().astype(np.float64))[0])
                read.append(int(i))
        for net_id, count in count_lacking(stacker, ensemble, run.board, read).items():
            run.notes.append(f"read without {net_id} in {count} rows, where it has no say")
        run.save()
