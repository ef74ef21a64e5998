"""One step: when a forward fits into memory, and what gives way to it."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kernel import spec, steps
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
    scene: Any = SimpleNamespace(store=pantry, frames={"net": np.array([1000.0])}, meter=SimpleNamespace(read=lambda: reading))
    net: Any = SimpleNamespace(recipe=recipe, cost=spec.Cost(bytes_a=100 * MB, bytes_b=0.4 * MB))
    assert (steps.fits(scene, net, 0), pantry.asked) == (fits, asked)
