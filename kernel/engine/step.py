"""One step of the plan: one net over the rows it lacks.

Owns the schedules (row by row on a CPU, length groups on a GPU, a stacker over complete rows) and what a
fault inside a step costs: a row, a (net, row) pair, or the net, never the run. Does not choose steps (plan)
or publish (engine).
"""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .. import spec
from ..inference import backends, onnx
from ..inference.net import LoadedNet, Recipe, load_graph, load_net, load_stacker
from ..scores import blend
from ..sound import decode
from . import gpu, plan
from .cpu import Stop, put, run_window
from .state import Scene, drop

SAVE_EVERY_S = 10.0  # scores to disk inside a step: the most a crash can cost
# rows whose spectrograms are loaded before a CPU net runs on them: small, so that scores come early
WINDOW_ROWS = 32
WINDOW_ROWS_GPU = 512
WINDOWS_GPU = 32  # at least, per step: the device waits for the first one, the loaders for the last
# loaded beyond the one that is made ready: long clips load faster, for their length, than short ones
WINDOWS_AHEAD = 6


def run_step(scene: Scene, step: plan.Step, device: backends.Device, stop: Stop) -> plan.Outcome:
    """Scores of one net on the board and in the journal; the outcome for the report.

    Raises  the error of a lost device: only a new process helps
    """
    net, todo = scene.nets[step.net_id], scene.missing(step.net_id)
    before, loading_before = time.monotonic(), net.loading_s
    scene.heartbeat.step(step.net_id, step.forecast_s)
    with scene.recorder.stage(
        step.net_id, device=device.name, rows=len(todo), forecast_s=round(step.forecast_s, 2)
    ):
        try:
            if isinstance(net.part, spec.Stacker):
                run_stacker(scene, step.net_id, net.part, stop)
            else:
                run_member(scene, step.net_id, net.part, todo, device, stop)
        except (Exception, SystemExit) as error:  # whatever a net's own code raises costs this net
            if backends.is_lost(error):
                raise
            drop(scene, step.net_id, error)
        leaving = time.monotonic()
        backends.forget_nets()
        net.setup_s += time.monotonic() - leaving
    seconds = time.monotonic() - before
    net.seconds += seconds
    return plan.Outcome(net_id=step.net_id, kind=step.kind, forecast_s=step.forecast_s, seconds=seconds,
                        loading_s=net.loading_s - loading_before, rows=len(todo),
                        done=len(todo) - len(scene.missing(step.net_id)))


def open_net(scene: Scene, entry: spec.Net, recipe: Recipe, device: backends.Device) -> LoadedNet:
    """The net, ready on its fastest way: an ONNX member as its graph, a torch net, or on a CPU its exported
    graph if both agree.

    Raises  ModelLoadFailed, BundleError, DeviceError
    """
    cost, place = scene.manifest.costs.get(entry.member, spec.Cost()), Path(scene.run["state"]) / "runtimes"
    if entry.kind == "onnx":
        data = scene.bundle.read_net(entry)
        return load_graph(recipe, onnx.open_graph(data, onnx.ONNX, scene.bundle, place, False), cost)
    state = scene.bundle.load_state(entry)
    # on a slow machine reading, building and recording a large net can each take their time
    scene.heartbeat.progress += 1
    name = scene.manifest.graphs.get(entry.id, {}).get("onnx")

    def open_exported(runtime: str) -> onnx.GraphNet:
        scene.heartbeat.progress += 1
        return onnx.open_graph(scene.bundle.read_file(str(name)), runtime, scene.bundle, place, True)

    candidates = [partial(open_exported, runtime) for runtime in onnx.RUNTIMES if name is not None]
    net = load_net(recipe, state, len(scene.ensemble.classes), device, cost, candidates)
    scene.heartbeat.progress += 1
    return net


def run_member(
    scene: Scene, net_id: str, member: spec.Member, todo: list[int], device: backends.Device, stop: Stop
) -> None:
    """A first-level net over windows of rows."""
    state = scene.nets[net_id]
    entry = next(net for net in scene.manifest.nets if net.id == net_id)
    recipe = scene.recipes[member.name]
    began = time.monotonic()
    on_gpu = device.cuda and entry.kind != "onnx"  # graphs run on the CPU
    if on_gpu:
        todo = longest_first(scene, recipe, todo)
        # loaders start while the net is read and built; on a CPU both want the cores
        prefetch(scene, recipe, todo[:WINDOW_ROWS])
    net = open_net(scene, entry, recipe, device)
    state.path, state.setup_s = net.runner.path, time.monotonic() - began
    saved = time.monotonic()
    try:
        for _ in (_run_grouped if on_gpu else _run_alone)(
            scene, net_id, net, suspects_first(scene, net_id, todo), stop
        ):
            if time.monotonic() - saved > SAVE_EVERY_S:
                scene.journal.save_scores(net_id, scene.board.get(net_id))
                saved = time.monotonic()
    finally:  # a lost device ends the process: what it has done is kept
        scene.journal.save_scores(net_id, scene.board.get(net_id))
    state.batches += net.batches
    state.cells += net.cells
    state.padded_cells += net.padded_cells
    for width, more in net.widths.items():
        state.widths[width] = [
            sum(pair) for pair in zip(state.widths.get(width, (0, 0, 0)), more, strict=True)
        ]
    state.path = net.runner.path
    state.notes += net.runner.notes


def longest_first(scene: Scene, recipe: Recipe, todo: list[int]) -> list[int]:
    """Rows by falling length, exact where it is known: the order on a GPU.

    Rows of near equal length share batches. Short clips load slowest for their length: in the plan's order,
    shortest first, the device would wait for them with nothing loaded ahead (measured: 6 to 8 % of a run of
    one net).
    """
    fe, bounds = recipe.stages[recipe.timed].fe, scene.frames[recipe.member.name]
    return sorted(todo, key=lambda i: -(scene.store.frames(fe, scene.rows[i]) or bounds[i]))


def suspects_first(scene: Scene, net_id: str, todo: list[int]) -> list[int]:
    """Rows in flight with this net at a crash go first: a second crash then names the culprit and costs no
    other row.
    """
    suspect = scene.journal.suspects_with(net_id)
    return sorted(todo, key=lambda i: scene.rows[i].id not in suspect) if suspect else todo


def prefetch(scene: Scene, recipe: Recipe, rows: list[int]) -> None:
    """Let the loaders begin with the spectrograms of these rows."""
    for stage in recipe.stages.values():
        scene.store.prefetch(stage.fe, [scene.rows[i] for i in rows])


def load_window(scene: Scene, recipe: Recipe, window: list[int], stop: Stop) -> float:
    """Seconds waited until the spectrograms of a window are in the store; noted per front end where they are
    new.
    """
    started = time.monotonic()
    for stage in recipe.stages.values():
        fresh = [i for i in window if scene.store.frames(stage.fe, scene.rows[i]) is None]
        # filter banks and caches are made once: no part of the rate
        if fresh and stage.fe.key not in scene.loading:
            warm_up = fresh.pop(len(fresh) // 2)  # of middle length: the rate then holds for the others
            scene.store.warm(stage.fe, [scene.rows[warm_up]], stop)
            scene.loading.setdefault(stage.fe.key, [0.0, 0.0])
        began = time.monotonic()
        scene.store.warm(stage.fe, [scene.rows[i] for i in window], stop)
        if fresh and not stop():
            total = scene.loading[stage.fe.key]
            total[0] += time.monotonic() - began
            total[1] += float(scene.seconds[fresh].sum())
    return time.monotonic() - started


def _run_alone(scene: Scene, net_id: str, net: LoadedNet, todo: list[int], stop: Stop) -> Iterator[None]:
    """The CPU schedule, window by window: load, then run. Loaders and net want the same cores."""
    for start in range(0, len(todo), WINDOW_ROWS):
        if stop():
            return
        window = todo[start:start + WINDOW_ROWS]
        scene.nets[net_id].loading_s += load_window(scene, net.recipe, window, stop)
        run_window(scene, net_id, net, window, stop)
        yield


def cut_windows(scene: Scene, net_id: str, net: LoadedNet, todo: list[int]) -> list[list[int]]:
    """The rows in pieces for a GPU, by number and by frames; a suspect is a piece of its own."""
    frames = scene.frames[net.recipe.member.name]
    suspects = scene.journal.suspects_with(net_id)
    most = min(gpu.frames_per_batch(net) / 2, float(frames[todo].sum()) / WINDOWS_GPU)
    windows: list[list[int]] = []
    held = 0.0
    for i in todo:
        alone = scene.rows[i].id in suspects or (windows and scene.rows[windows[-1][-1]].id in suspects)
        if not windows or alone or held + frames[i] > most or len(windows[-1]) == WINDOW_ROWS_GPU:
            windows.append([])
            held = 0.0
        windows[-1].append(i)
        held += frames[i]
    return windows


def _run_grouped(scene: Scene, net_id: str, net: LoadedNet, todo: list[int], stop: Stop) -> Iterator[None]:
    """The GPU schedule: passes of many rows share batches of near equal length; the next windows are made
    ready meanwhile.
    """
    frames, pieces, state = (
        scene.frames[net.recipe.member.name],
        cut_windows(scene, net_id, net, todo),
        scene.nets[net_id],
    )

    def windows() -> Iterator[gpu.Window]:
        for piece in pieces[:WINDOWS_AHEAD]:
            prefetch(scene, net.recipe, piece)
        for number, piece in enumerate(pieces):
            for later in pieces[number + WINDOWS_AHEAD:][:1]:
                prefetch(scene, net.recipe, later)
            load_window(scene, net.recipe, piece, stop)
            if stop():
                return
            yield gpu.open_window(net, scene.store, [scene.rows[i] for i in piece], scene.lose)

    def flight(rows: Sequence[decode.Row]) -> AbstractContextManager[None]:
        return scene.journal.flight("batch", [row.id for row in rows], net_id)

    with closing(gpu.predict_grouped(net, windows(), flight=flight)) as answered:
        for done in answered:
            numbers = [scene.numbers[row.id] for row in done.window.rows]
            state.loading_s += done.waited
            state.timing.add(len(numbers), float(frames[numbers].sum()), done.seconds)
            for row, probs in done.answers:
                put(scene, net_id, scene.numbers[row.id], probs)
            if stop():
                return
            yield


def run_stacker(scene: Scene, net_id: str, stacker: spec.Stacker, stop: Stop) -> None:
    """A second-level net over the rows whose inputs are complete; row by row, so that no row depends on
    another.
    """
    entry = next(net for net in scene.manifest.nets if net.id == net_id)
    module, activate = load_stacker(stacker, scene.bundle.load_state(entry), len(scene.ensemble.classes))
    missing = set(scene.missing(net_id))
    scene.nets[net_id].path = "torch cpu, eager"
    for i, features in zip(*blend.stacker_features(stacker, scene.ensemble, scene.board), strict=True):
        if stop():
            break
        if int(i) in missing:
            with torch.inference_mode():
                out = module(torch.from_numpy(np.ascontiguousarray(features[None], dtype=np.float32)))
            put(scene, net_id, int(i), activate(out.numpy().astype(np.float64))[0])
    scene.journal.save_scores(net_id, scene.board.get(net_id))
