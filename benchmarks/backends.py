"""Back ends of a CPU at mixed lengths, no clip padded: plain torch against every way the engine can take.

    python -m benchmarks.backends [--clips 24] [--rounds 5] [--threads N] [--nets simple_cnn ...] [--quick]

Two processes take turns on the same clips and nets (seeded random weights): "eager" in the environment torch
comes with (but for OMP_WAIT_POLICY=PASSIVE, without which it collapses on a shared machine), everything else
in the environment the guard gives the engine. Every way is checked against eager first: "error" is the
largest difference of a logit, relative to the largest logit. The last row is the machine's own bound,
measured in the same rounds: one wide 3 x 3 convolution, a copy for each thread.
"""
from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from benchmarks.rounds import Seconds, describe_machine, draw_seconds, median, ratio, time_call

import numpy as np  # isort: skip
import torch  # isort: skip
from torch import nn  # isort: skip
from torch.utils.flop_counter import FlopCounterMode  # isort: skip

from kernel import models

from kernel.inference import backends, graph_net, onnx  # isort: skip

NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "simple_cnn": ("simple_cnn", {}),
    "resnet34": ("resnet_max", {}),
    "efficientnet_b0": ("timm", {"model": "efficientnet_b0"}),
}
FRAMES_PER_SECOND = 64  # Of the argus front end, and so the bins.
BINS = 128
CLASSES = 80
ENGINE = {"THP_MEM_ALLOC_ENABLE": "1"}  # What the guard sets beside OMP_WAIT_POLICY and thread counts.
EAGER = "torch eager"
ROOF_CHANNELS = 256  # The convolution of the bound, and the side of its picture.
ROOF_SIDE = 32
Way = Callable[[torch.Tensor], torch.Tensor]
SIDE = "engine: "  # Recorded nets and graphs run rows side by side, a thread each, as kernel.engine.cpu does.
ROOF = f"bound: one 3 x 3 convolution, {ROOF_CHANNELS} channels"


def build_net(name: str) -> nn.Module:
    """The net with Kaiming-normal convolutions and batch norms that do something."""
    torch.manual_seed(0)
    family, params = NETS[name]
    net = models.build(family, params, CLASSES).eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2.0)
    return net


def draw_clips(net: nn.Module, clips: int) -> list[torch.Tensor]:
    """Longest first, as kernel.engine.cpu takes them."""
    generator = torch.Generator().manual_seed(1)
    channels = int(getattr(net, "channels", None) or 1)
    frames = [max(40, int(FRAMES_PER_SECOND * s)) for s in sorted(draw_seconds(clips), reverse=True)]
    return [torch.randn(1, channels, BINS, count, generator=generator) for count in frames]


def build_roof() -> Way:
    """One convolution on a picture of its own: what it is called with does not matter."""
    net = nn.Conv2d(ROOF_CHANNELS, ROOF_CHANNELS, 3, padding=1).requires_grad_(False)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(1, ROOF_CHANNELS, ROOF_SIDE, ROOF_SIDE).contiguous(memory_format=torch.channels_last)
    return lambda _: net(x)


def count_operations(way: Way, inputs: list[torch.Tensor]) -> int:
    """Floating-point operations of all calls, a multiply-add as two."""
    with FlopCounterMode(display=False) as counter:
        for x in inputs:
            way(x)
    return counter.get_total_flops()


def find_runtimes() -> list[ModuleType]:
    found = []
    for name in onnx.RUNTIMES:
        try:
            found.append(__import__(name))
        except ImportError:
            print(f"  {name} is not installed: its row is left out")
    return found


def list_ways(net: nn.Module, clips: list[torch.Tensor], threads: int) -> dict[str, Way]:
    """Name -> way, each made by the engine's own code."""
    from builder.onnx_export import export_net

    samples = [{"x": clip} for clip in (clips[0], clips[1], torch.cat([clips[2], clips[2]]))]
    folded = backends.fold_batch_norm(net)
    folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    runner = backends.prepare(net, backends.probe("cpu"), samples)
    engine = f"{SIDE if runner.recorded else 'engine, row by row: '}{runner.path}"
    ways: dict[str, Way] = {
        "torch eager, engine's environment": net,
        "torch folded, channels-last": lambda x: folded(x.contiguous(memory_format=torch.channels_last)),
        engine: lambda x: torch.from_numpy(runner({"x": x})),
    }
    exported = export_net(net, {"x": clips[0]}, "x", fixed=False)
    for runtime in find_runtimes():
        graph = graph_net.load_net(exported, runtime, threads)
        ways[f"{SIDE}{graph.path}"] = graph
    return ways


def serve(pipe: Connection, name: str, clips: int, threads: int, eager: bool) -> None:
    """A process: answers the number of a way with its (wall, CPU) seconds over all clips."""
    torch.set_num_threads(threads)
    net = build_net(name)
    inputs = draw_clips(net, clips)
    ways: dict[str, Way] = {EAGER: net} if eager else list_ways(net, inputs, threads)
    with torch.inference_mode():
        wanted = [net(x) for x in inputs]
        top = max(float(y.abs().max()) for y in wanted)
        errors = {key: max(float((way(x) - y).abs().max()) for x, y in zip(inputs, wanted, strict=True)) / top
                  for key, way in ways.items()}  # and the unmeasured first call
        work = dict.fromkeys(ways, count_operations(net, inputs))
        if not eager:
            ways[ROOF] = build_roof()
            errors[ROOF] = 0.0
            work[ROOF] = count_operations(ways[ROOF], inputs)
        pipe.send((errors, work, sum(x.shape[-1] for x in inputs)))
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as side:
            while (key := pipe.recv()) is not None:
                spread: Callable[..., Iterable[torch.Tensor]] = (
                    side.map if key.startswith(SIDE) or key == ROOF else map
                )
                pipe.send(time_call(lambda way=ways[key], spread=spread: list(spread(way, inputs))))


def measure(name: str, clips: int, rounds: int, threads: int) -> None:
    context = multiprocessing.get_context("spawn")
    workers = []
    keys = list[tuple[Connection, str]]()
    for eager in (True, False):
        os.environ.update({} if eager else ENGINE)
        own, other = context.Pipe()
        worker = context.Process(target=serve, args=(other, name, clips, threads, eager), daemon=True)
        worker.start()
        for key in ENGINE:
            os.environ.pop(key, None)
        workers.append((worker, own))
    errors = dict[str, float]()
    work = dict[str, int]()
    for _, pipe in workers:
        found, operations, frames = pipe.recv()
        errors |= found
        work |= operations
        keys += [(pipe, key) for key in found]
    times: dict[str, list[Seconds]] = {key: [] for _, key in keys}
    for _ in range(rounds):
        for pipe, key in keys:
            pipe.send(key)
            times[key].append(pipe.recv())
    for worker, pipe in workers:
        pipe.send(None)
        worker.join()
    print(
        f"\n{name}: {clips} clips, {frames} frames, {threads} threads, medians of {rounds} interleaved rounds"
    )
    speeds = {key: work[key] / median(values) / 1e9 for key, values in times.items()}
    print(f"{'':58}{'frames/s':>10}{'wall x':>8}{'CPU x':>8}{'GFLOP/s':>9}{'of bound':>10}{'error':>10}")
    for key, values in times.items():
        if key == ROOF:
            print(f"{key:<58}{'':26}{speeds[key]:>9.0f}", flush=True)
            continue
        wall, cpu = (ratio(times[EAGER], values, kind) for kind in (0, 1))
        print(f"{key:<58}{frames / median(values):>10.0f}{wall:>8.2f}{cpu:>8.2f}{speeds[key]:>9.0f}"
              f"{speeds[key] / speeds[ROOF]:>10.0%}{errors[key]:>10.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--quick", action="store_true", help="6 clips, 3 rounds")
    given = parser.parse_args()
    print(describe_machine("torch", "onnxruntime", "openvino", "timm"), f"numpy {np.__version__}")
    for name in given.nets:
        measure(name, 6 if given.quick else given.clips, 3 if given.quick else given.rounds, given.threads)


if __name__ == "__main__":
    main()
