"""Rows on a CPU: when a forward fits into memory, what gives way to it, and which rows run side by side."""
from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kernel import spec
from kernel.engine import cpu
from kernel.engine.state import Timing
from kernel.memory import Reading

MB = 10**6


class Pantry:
    """A store that holds some bytes and remembers what it was asked to give away."""

    def __init__(self, held: int):
        self.held, self.asked = held, 0

    def stats(self) -> dict[str, Any]:
        return {"ram_bytes": self.held}

    def make_room(self, size: int) -> None:
        self.asked = size


@pytest.mark.parametrize(("used", "held", "fits", "asked"), [
    (300 * MB, 0, True, 0),
    (800 * MB, 400 * MB, True, 330 * MB),  # 800 + 500 against 97 % of 1,000
    (800 * MB, 329 * MB, False, 0),
])
def test_the_store_gives_way_to_a_large_forward(used: int, held: int, fits: bool, asked: int) -> None:
    pantry = Pantry(held)
    recipe = SimpleNamespace(member=SimpleNamespace(name="net"), cells_at_once=lambda frames: frames)
    reading = Reading(limit_bytes=1000 * MB, used_bytes=used, source="test")
    scene: Any = SimpleNamespace(
        store=pantry, frames={"net": np.array([1000.0])}, meter=SimpleNamespace(read=lambda: reading)
    )
    net: Any = SimpleNamespace(recipe=recipe, cost=spec.Cost(bytes_a=100 * MB, bytes_b=0.4 * MB))
    assert (cpu.fits(scene, net, 0), pantry.asked) == (fits, asked)


class Bench:
    """A scene of 8 rows for one net; `_attempt` is replaced by `run`, which notes who ran beside whom."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, recorded: bool, side_bytes: int, suspect: str = ""):
        self.active, self.most, self.alone, self.settled = 0, dict[int, int](), list[int](), list[int]()
        self.lock = threading.Lock()
        self.scene: Any = SimpleNamespace(
            rows=[SimpleNamespace(id=f"r{i}") for i in range(8)],
            frames={"net": np.full(8, 100.0)},
            workers=2,
            side_bytes=side_bytes,
            side=ThreadPoolExecutor(2),
            meter=None,
            nets={"net.0": SimpleNamespace(setup_s=0.0)},
            journal=SimpleNamespace(suspects_with=lambda net_id: {suspect}),
        )
        recipe = SimpleNamespace(member=SimpleNamespace(name="net"), cells_at_once=lambda frames: frames)
        self.net: Any = SimpleNamespace(
            recipe=recipe,
            cost=spec.Cost(bytes_a=0, bytes_b=10_000),
            batches=cpu.WARM_UP,
            runner=SimpleNamespace(recorded=recorded),
        )
        self.timing = Timing()
        monkeypatch.setattr(cpu, "_attempt", self.run)
        monkeypatch.setattr(cpu, "_settle", self.settle)

    def run(self, scene: Any, net_id: str, net: Any, i: int, check: bool) -> cpu.Answer:
        with self.lock:
            self.active += 1
        time.sleep(0.05)
        with self.lock:
            self.most[i] = self.active
            self.active -= 1
        if i == 4 and not check:
            return cpu.Answer(error=MemoryError())
        if check:
            self.alone.append(i)
        return cpu.Answer(probs=np.ones(2), seconds=0.05)

    def settle(self, scene: Any, net_id: str, net: Any, i: int, answer: cpu.Answer) -> Timing:
        assert answer.error is None
        self.settled.append(i)
        return self.timing

    def go(self) -> None:
        cpu.run_window(self.scene, "net.0", self.net, list(range(8)), lambda: False)


def test_small_rows_of_a_recorded_net_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, recorded=True, side_bytes=2 * MB, suspect="r6")
    began = time.monotonic()
    bench.go()
    # a suspect runs alone: a second crash names the culprit
    assert max(bench.most.values()) == 2 and bench.most[6] == 1
    # so does a row without memory beside another
    assert sorted(bench.settled) == list(range(8)) and bench.alone == [6, 4]
    # the books hold wall time, not the threads' sum
    assert 8 * 0.05 / 2 <= bench.timing.seconds <= time.monotonic() - began


@pytest.mark.parametrize(("recorded", "side_bytes"), [(False, 2 * MB), (True, MB)])
def test_large_rows_and_python_nets_run_alone(
    monkeypatch: pytest.MonkeyPatch, recorded: bool, side_bytes: int
) -> None:
    bench = Bench(monkeypatch, recorded=recorded, side_bytes=side_bytes)
    bench.go()
    assert set(bench.most.values()) == {1} and bench.settled == bench.alone == list(range(8))
