"""How fast the host feeds a GPU: every published ensemble's first member on a device that costs nothing.

    python -m benchmarks.zero_cost [--clips 1000] [--rounds 3] [--folds 1] [ENSEMBLE ...]

The arrays are in the store. Everything that the host does before and after the device is done: reading the
store, drawing cuts, packing, sending (the copy to the device is not made: the floor is one from and to
pageable memory), batches, marks, bringing scores to the board. What the device does is left out and counted:
`launches` are the operations of one batch that are not views, net and forward apart, counted on the CPU.
`fed` is seconds of audio per processor second of both threads, all folds of the member together. `by wall`
is the same by the clock: on an idle core within a few percent of `fed`, on a loaded one less. `queue` says
why: the seconds in which threads of this process were ready and had no core, as a share of the wall. `x copy`
is the processor time as a multiple of a bare copy of the stored bytes.
"""
from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.rounds import describe_machine, draw_seconds

import numpy as np  # isort: skip
import torch  # isort: skip
from torch.utils._python_dispatch import TorchDispatchMode  # isort: skip

from kernel import models, spec
from kernel.cache.ram import StoreLimits
from kernel.cache.store import Store
from kernel.engine import gpu, seats
from kernel.engine.feed import Feed
from kernel.engine.heartbeat import Heartbeat
from kernel.engine.journal import Journal
from kernel.engine.net_run import NetRun
from kernel.engine.run_rows import open_rows
from kernel.inference.answers import sigmoid
from kernel.inference.devices import Device
from kernel.inference.member import LoadedNet
from kernel.inference.recipe import build_recipe
from kernel.inference.runner import Runner
from kernel.inference.staging import Fetched, Lane, StagedBlock
from kernel.limits import Clock
from kernel.memory import Meter
from kernel.report.recorder import Recorder
from kernel.scores.blend import Board
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from kernel.sound.source import Source

ENSEMBLES = Path(__file__).resolve().parent.parent / "ensembles"
NAMES = ("argus", "simongrest", "qrfaction", "hackerearth", "shirogane", "viel", "default")
RATE = 44_100
QUEUE_EVERY = 8  # blocks between two looks at the queue
# Families whose nets these benchmarks need not build: what they ask of their input
NEEDS = {"timm": (1, False), "statistics_cnn": (1, False)}


@dataclass(frozen=True, kw_only=True)
class Fed:
    """One member's figures, the best of the rounds: processor and wall seconds, and what was sent.

    queue_s  seconds that threads of this process were ready and had no core, in the round of `wall_s`; 0
             where the system does not tell
    """

    audio_s: float
    cpu_s: float
    wall_s: float
    copy_s: float
    sent_bytes: int
    blocks: int
    launches: float
    queue_s: float


class ZeroCost(Lane):
    """A lane to a device that is not there: nothing is copied, answers are at hand."""

    def send(self, values: Any) -> Any:
        self.sent_bytes += sum(value.nbytes for value in values.values())
        return values, None

    def fetch(self, values: torch.Tensor) -> Fetched:
        answers = np.full(tuple(values.shape), 0.5)
        return Fetched(read=lambda: answers)


class Counter(TorchDispatchMode):
    """Counts operations that are no views: what a GPU would have to launch."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not getattr(func, "is_view", False)
        return func(*args, **(kwargs or {}))


def make_produce(rows: Sequence[Row]) -> Callable[..., Iterator[tuple[Row, np.ndarray]]]:
    """Stands for decoding and front ends: arrays of the right shape and dtype, cut from one of noise."""
    noise = np.random.default_rng(0).integers(0, 255, 1 << 24).astype(np.float32)

    def produce(fe: Source, wanted: Sequence[Row]) -> Iterator[tuple[Row, np.ndarray]]:
        for row in wanted:
            frames = fe.max_frames(int(row.clip.samples_claimed / RATE * fe.rate))
            size = fe.channels * fe.bins * frames
            yield row, noise[:size].reshape(-1, fe.bins, frames).astype(fe.dtype)

    return produce


def open_nets(ensemble: spec.Ensemble, member: spec.Member, device: Device) -> list[LoadedNet]:
    """A member's folds on the device that costs nothing."""
    classes = len(ensemble.classes)
    recipe = build_recipe(ensemble, member)

    answers = torch.zeros((gpu.ROWS_PER_BATCH, classes))

    def run(inputs: Any, frames: torch.Tensor | None) -> torch.Tensor:
        return answers[: len(next(iter(inputs.values())))]

    if member.family in NEEDS:
        module = torch.nn.Module()
        module.min_frames, module.maskable = NEEDS[member.family]
    else:
        module = models.build(member.family, member.params, classes)
    return [
        LoadedNet(
            module=module,
            runner=Runner(device=device, path="zero", run=run, exact=run),
            recipe=recipe,
            activate=sigmoid,
            cost=spec.Cost(),
        )
        for _ in member.folds
    ]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The parts of a run around one member: its nets and their runs, its store."""

    nets: list[LoadedNet]
    runs: list[NetRun]
    feed: Feed
    todo: list[int]


def open_setting(
    ensemble: spec.Ensemble, member: spec.Member, seconds: Sequence[float], folder: Path
) -> Setting:
    """A member's folds over clips of these lengths, arrays in the store."""
    device = Device(name="meta", about="costs nothing", memory_bytes=16 * 10**9)
    clips = [Clip(id=f"c{i}", rate=RATE, samples_claimed=int(s * RATE)) for i, s in enumerate(seconds)]
    rows = [Row(id=clip.id, clip=clip) for clip in clips]
    clock = Clock(started=time.monotonic(), started_boot=time.clock_gettime(time.CLOCK_BOOTTIME))
    opened = open_rows(rows, None, 60.0, False, Recorder(clock=clock))
    journal = Journal(folder, 1, lambda *_: None)
    heartbeat = Heartbeat(folder / "heartbeat.json")
    nets = open_nets(ensemble, member, device)
    board = Board(len(rows), len(ensemble.classes))
    cells = np.array([nets[0].recipe.cells(s) for s in seconds])
    runs = [
        NetRun(net_id=f"{member.name}.{fold}", part=member, rows=opened, board=board, journal=journal,
               heartbeat=heartbeat, recipe=nets[0].recipe, cells=cells)
        for fold in member.folds
    ]
    limits = StoreLimits(
        ram_bytes=64 << 30, disk_bytes=0, clip_bytes=0, batch_bytes=0, work_bytes=0, table_bytes=0
    )
    meter = Meter(cap_bytes=64 << 30)
    feed = Feed(rows=opened, longest_s=60.0, journal=journal, heartbeat=heartbeat, meter=meter, limits=limits,
                scratch=folder / "spill", loaders=1)
    feed.store = Store(
        produce=make_produce(rows), meter=meter, limits=limits, scratch=folder / "spill", loaders=1
    )
    for stage in nets[0].recipe.stages.values():
        feed.store.warm(stage.fe, rows)
    todo = gpu.longest_first(runs[0], nets[0].recipe, feed.store, list(opened.wanted))
    return Setting(nets=nets, runs=runs, feed=feed, todo=todo)


def queued_s() -> float:
    """Seconds that this process's threads have waited for a core so far."""
    try:
        texts = [path.read_text() for path in Path("/proc/self/task").glob("*/schedstat")]
    except OSError:  # another system, or a thread that has ended meanwhile
        return 0.0
    return sum(int(text.split()[1]) for text in texts) / 1e9


def time_once(setting: Setting) -> tuple[float, float, int, int, float]:
    """(processor seconds, wall seconds, bytes sent, blocks, queue seconds) of one step of all folds."""
    opened: list[Future[LoadedNet]] = []
    for net in setting.nets:
        opened.append(Future())
        opened[-1].set_result(net)
    lane = ZeroCost(setting.nets[0].runner.device)
    schedule = gpu.GpuSchedule(setting.runs, opened, setting.feed, lane, lambda: False)
    void = torch.zeros(1)

    def draw(block: StagedBlock, places: Any, width: int) -> Any:
        own = block.lengths[places]
        x = void.expand(len(own), 1)
        return {name: x for name in block.inputs}, own if bool((own != width).any()) else None

    def merge(net: LoadedNet, answers: torch.Tensor, block: StagedBlock) -> torch.Tensor:
        return void.expand(len(block.rows), answers.shape[1])

    with mock.patch.object(StagedBlock, "draw", draw), mock.patch.object(seats, "_merge_rows", merge):
        before = last = queued_s()
        cpu = time.process_time()
        wall = time.perf_counter()
        blocks = 0
        for blocks, _ in enumerate(schedule.predict(setting.todo), 1):
            if not blocks % QUEUE_EVERY:  # the thread that makes blocks ready is gone at the end
                last = max(last, queued_s())
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return cpu, wall, lane.sent_bytes, blocks, last - before


def count_launches(setting: Setting) -> float:
    """Operations of cutting, finishing and merging, per batch, counted on the CPU for a few rows."""
    net = setting.nets[0]
    lane = Lane(Device(name="cpu", about=""))
    rows = [setting.runs[0].rows.all[i] for i in setting.todo[:4]]
    block = gpu.open_block(net, setting.feed.store, rows, lambda row, error: None, lane)
    assert block is not None
    with Counter() as counter:
        for places, width in block.batches:
            block.draw(places, width)
        seats._merge_rows(net, torch.zeros(len(block.lengths), 4), block)
    return counter.count / len(block.batches)


def time_copy(setting: Setting) -> float:
    """Seconds of copying what is stored once, from and to pageable memory that is there."""
    stages = setting.nets[0].recipe.stages.values()
    rows = setting.runs[0].rows.all
    arrays = [setting.feed.store.get(stage.fe, rows[i]) for stage in stages for i in setting.todo]
    into = np.empty(max(array.nbytes for array in arrays), np.uint8)
    into[:] = 0
    began = time.process_time()
    for array in arrays:
        into[: array.nbytes] = array.reshape(-1).view(np.uint8)
    return time.process_time() - began


def measure(name: str, member: str | None, clips: int, rounds: int, folds: int | None) -> Fed:
    """The figures of one member with its folds."""
    ensemble = spec.load_ensemble(ENSEMBLES / f"{name}.toml")
    chosen = next(m for m in ensemble.members if member in (None, m.name))
    chosen = replace(chosen, folds=chosen.folds[:folds])
    seconds = draw_seconds(clips)
    with tempfile.TemporaryDirectory() as place:
        setting = open_setting(ensemble, chosen, seconds, Path(place))
        timed = [time_once(setting) for _ in range(rounds + 1)][1:]
        fed = Fed(
            audio_s=sum(seconds), cpu_s=min(t[0] for t in timed), wall_s=min(t[1] for t in timed),
            copy_s=time_copy(setting), sent_bytes=timed[0][2], blocks=timed[0][3],
            launches=count_launches(setting), queue_s=min(timed, key=lambda t: t[1])[4])
        setting.feed.store.close()
        setting.runs[0].heartbeat.close()
    return fed


def cases(names: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(ensemble, member); of the shipped ensemble every member."""
    for name in names:
        if name == "default":
            shipped = spec.load_ensemble(ENSEMBLES / "default.toml")
            yield from ((name, member.name) for member in shipped.members)
        else:
            yield name, None


def report(names: Sequence[str], clips: int, rounds: int, folds: int | None) -> list[dict[str, Any]]:
    """Rows of the table, printed as they come."""
    rows = []
    heads = ("fed, s/s", 11), ("by wall", 10), ("queue", 7), ("x copy", 8), ("MB", 7), ("launches", 10)
    print(f"{'member':<18}{'folds':>6}" + "".join(f"{head:>{width}}" for head, width in heads))
    for name, member in cases(names):
        for count in (1, folds):
            fed = measure(name, member, clips, rounds, count)
            label = f"{name} {member or ''}".strip()
            told = "all" if count is None else str(count)
            print(
                f"{label:<18}{told:>6}{fed.audio_s / fed.cpu_s:>11,.0f}{fed.audio_s / fed.wall_s:>10,.0f}"
                f"{fed.queue_s / fed.wall_s:>7.1f}{fed.cpu_s / fed.copy_s:>8.1f}"
                f"{fed.sent_bytes / 1e6:>7.0f}{fed.launches:>10.0f}",
                flush=True,
            )
            rows.append({"member": label, "folds": told, **vars(fed)})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NAMES))
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    audio_s = sum(draw_seconds(given.clips))
    print(describe_machine("torch"), f"| {given.clips} clips, {audio_s:,.0f} s of audio")
    report(given.names, given.clips, given.rounds, None)


if __name__ == "__main__":
    main()
