"""What people write about an ensemble: rules between its keys."""
from __future__ import annotations

import math
from dataclasses import replace

import pytest

from kernel.errors import SpecError
from kernel.spec import Ensemble, Member, Output, Windows, check

PLAIN = Ensemble(
    name="e",
    classes=("a", "b"),
    members=(Member(name="m", family="f", frontend="mel"),),
    frontends={"mel": {}},
)


def test_a_clip_is_read_up_to_its_own_limit_else_a_minute_and_a_recording_to_its_end() -> None:
    assert PLAIN.longest_s == 60.0
    assert replace(PLAIN, windows=Windows()).longest_s == math.inf
    assert replace(PLAIN, windows=Windows(), max_seconds=120.0).longest_s == 120.0


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0, 1.0), (-1.0, 3.0, 1.0)])
def test_weights_that_cannot_smooth_are_refused_before_a_run(weights: tuple[float, ...]) -> None:
    check(replace(PLAIN, output=Output(smoothing=(0.1, 0.8, 0.1))))
    with pytest.raises(SpecError, match="output.smoothing: .* odd number"):
        check(replace(PLAIN, output=Output(smoothing=weights)))


def test_a_power_without_a_root_is_refused_before_a_run() -> None:
    check(replace(PLAIN, mean="power", mean_power=-1.0))
    with pytest.raises(SpecError, match="mean_power: 0 has no root"):
        check(replace(PLAIN, mean="power", mean_power=0.0))
