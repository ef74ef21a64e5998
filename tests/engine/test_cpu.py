"""Rows on a CPU: when a forward fits into memory, what gives way to it, and which rows run side by side."""
from __future__ import annotations

import json
import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from kernel import spec
from kernel.cache.ram import StoreLimits
from kernel.cache.tiers import Stats
from kernel.engine.cpu import WARM_UP, Cores, CpuSchedule
from kernel.engine.feed import Feed
from kernel.engine.heartbeat import Heartbeat
from kernel.engine.journal import Journal
from kernel.engine.net_run import NetRun
from kernel.engine.run_rows import open_rows
from kernel.inference.backends import Inputs, Runner
from kernel.inference.devices import Device
from kernel.inference.member import LoadedNet
from kernel.inference.recipe import build_recipe
from kernel.limits import Clock
from kernel.memory import Reading
from kernel.report.recorder import Recorder
from kernel.scores.blend import Board
from kernel.sound.decode import probe
from kernel.sound.rows import Row

MB = 10**6
ROWS = 8
MEMBER = spec.Member(name="net", family="none", frontend="wave")
WAVE = {"spectrum": "wave", "scale": "linear", "rate": 8000}
ENSEMBLE = spec.Ensemble(name="e", classes=("a", "b"), members=(MEMBER,), frontends={"wave": WAVE})


class Meter:
    """A machine with this much memory."""

    def __init__(self, limit: int, used: int = 0) -> None:
        self._reading = Reading(limit_bytes=limit, used_bytes=used, source="test")

    def read(self) -> Reading:
        return self._reading

    limit = read


class Pantry:
    """A store that holds some bytes and remembers what it was asked to give away."""

    def __init__(self, held: int) -> None:
        self.held = held
        self.asked = 0

    def stats(self) -> Stats:
        counts = dict.fromkeys((field.name for field in fields(Stats)), 0)
        return Stats(**counts | {"ram_bytes": self.held})

    def make_room(self, size: int) -> None:
        self.asked = size


@pytest.mark.parametrize(("used", "held", "fits", "asked"), [
    (300 * MB, 0, True, 0),
    (800 * MB, 400 * MB, True, 330 * MB),  # 800 + 500 against 97 % of 1,000
    (800 * MB, 329 * MB, False, 0),
])
def test_the_store_gives_way_to_a_large_forward(used: int, held: int, fits: bool, asked: int) -> None:
    pantry: Any = Pantry(held)
    meter: Any = Meter(1000 * MB, used)
    assert (Cores(1, meter).make_room(500 * MB, pantry), pantry.asked) == (fits, asked)


class Bench:
    """Half-second clips and a net that needs 20 MB and 50 ms for each, and notes how many it computed at
    once.

    recorded  whether the net may be called by several threads
    heavy     the row that runs out of memory beside another one
    suspect   the row in flight when an engine before this one died
    """

    def __init__(self, place: Path, recorded: bool, limit: int, heavy: int = -1, suspect: int = -1) -> None:
        clips = []
        for i in range(ROWS + WARM_UP):
            path = place / f"r{i}.wav"
            soundfile.write(path, np.full(4000, i / 100, np.float32), 8000, subtype="FLOAT")
            clips.append(probe(path.name, path, place))
        (place / "inflight").mkdir()
        mark = {"kind": "batch", "ids": [f"r{suspect}.wav"], "net": "net.0"}
        (place / "inflight" / "1.json").write_text(json.dumps(mark))
        clock = Clock(
            started=time.monotonic(), started_boot=time.clock_gettime(time.CLOCK_BOOTTIME), offset_s=0.0
        )
        rows = open_rows(
            [Row(id=clip.id, clip=clip) for clip in clips], None, 60.0, False, Recorder(clock=clock)
        )
        journal = Journal(place, 2)
        heartbeat = Heartbeat(place / "heartbeat.json")
        meter: Any = Meter(limit)
        recipe = build_recipe(ENSEMBLE, MEMBER)
        self.feed = Feed(
            rows=rows,
            longest_s=60.0,
            journal=journal,
            heartbeat=heartbeat,
            meter=meter,
            scratch=place,
            limits=StoreLimits(ram_bytes=10 * MB, disk_bytes=0),
            loaders=1,
        )
        self.run = NetRun(net_id="net.0", part=MEMBER, rows=rows, board=Board(len(clips), 2), journal=journal,
                          heartbeat=heartbeat, recipe=recipe, cells=np.full(len(clips), 4000.0))
        runner = Runner(
            device=Device(name="cpu", about=""),
            path="test",
            run=self.forward,
            exact=self.forward,
            recorded=recorded,
        )
        net = LoadedNet(module=nn.Identity(), runner=runner, recipe=recipe, activate=lambda x: x,
                        cost=spec.Cost(bytes_a=0, bytes_b=5_000))
        self.schedule = CpuSchedule(self.run, net, Cores(2, meter), self.feed, lambda: False)
        self.heavy = heavy
        self.active = 0
        self.beside: list[tuple[int, int]] = []  # (row, most rows computed at once while it was)
        self.changed = threading.Condition()

    def forward(self, inputs: Inputs, frames: torch.Tensor | None) -> torch.Tensor:
        row = round(100 * float(inputs["x"][0, 0, 0, 0]))
        with self.changed:
            self.active += 1
            self.changed.notify_all()
            if row == self.heavy and all(done != row for done, _ in self.beside):
                self.changed.wait_for(lambda: self.active > 1, timeout=10)  # it is to meet another row
            most = self.active
        time.sleep(0.05)
        with self.changed:
            most = max(most, self.active)
            self.active -= 1
            self.beside.append((row, most))
        if row == self.heavy and most > 1:
            raise MemoryError
        return torch.full((1, 2), 0.5)

    def go(self) -> None:
        """Warm the net up, then predict the first eight rows."""
        self.schedule.predict_block(range(ROWS, ROWS + WARM_UP))
        self.beside.clear()
        self.schedule.predict_block(range(ROWS))
        self.feed.store.close()


def test_small_rows_of_a_recorded_net_run_side_by_side(tmp_path: Path) -> None:
    bench = Bench(tmp_path, recorded=True, limit=1000 * MB, heavy=4, suspect=6)
    began = time.monotonic()
    bench.go()
    assert bench.beside[0] == (6, 1)  # a suspect runs alone: a second crash names the culprit
    assert bench.beside[-1] == (4, 1)  # so does a row without memory beside another one
    assert max(most for _, most in bench.beside) == 2
    assert bench.run.scored == ROWS + WARM_UP and not bench.run.skipped
    # The books hold wall seconds, not the threads' sum.
    assert ROWS * 0.05 / 2 <= bench.run.timing.seconds <= time.monotonic() - began


@pytest.mark.parametrize(("recorded", "limit"), [(False, 1000 * MB), (True, 390 * MB)])
def test_large_rows_and_python_nets_run_alone(tmp_path: Path, recorded: bool, limit: int) -> None:
    bench = Bench(tmp_path, recorded=recorded, limit=limit)
    bench.go()
    assert bench.beside == [(i, 1) for i in range(ROWS)]


def test_infinite_answers_are_no_vote(tmp_path: Path) -> None:
    bench = Bench(tmp_path, recorded=False, limit=1000 * MB)
    bench.run.put(0, np.array([np.inf, 0.5]))
    assert list(bench.run.skipped) == ["r0.wav"] and 0 not in bench.run.missing() and not bench.run.scored


@pytest.mark.fault(
    row=85,
    injection="a net that says it gives probabilities gives -3 to 5",
    outcome="named once, with what to do; a softmax that half precision rounds to 1.0005 is not",
)
def test_scores_that_are_no_probabilities_are_named_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, recorded=False, limit=1000 * MB)
    recorder = bench.run.rows.recorder
    bench.run.put(0, np.array([1.0005, -0.0005]))
    assert not recorder.faults
    bench.run.put(1, np.array([-3.0, 0.5]))
    bench.run.put(2, np.array([0.5, 5.0]))
    assert [(fault.code, fault.where) for fault in recorder.faults] == [("ScoresOutOfRange", "net.0")]
    assert bench.run.scored == 3 and "activation" in recorder.faults[0].message
