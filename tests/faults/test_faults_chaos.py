"""Three seeds of ten random faults each; `make chaos` runs thirty."""
from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import chaos


@pytest.mark.faults
@pytest.mark.fault(
    row=80,
    injection="ten faults of other rows drawn by seed, at random times (3 seeds here, 30 by `make chaos`)",
    outcome="every invariant holds",
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ten_random_faults(tmp_path: Path, seed: int) -> None:
    drawn, run, broken = chaos.run_seed(seed, tmp_path)
    assert broken == [], f"{drawn.about()}\n{run.out[-3000:]}"


def test_a_seed_draws_the_same_faults_everywhere() -> None:
    assert chaos.draw(7).about() == chaos.draw(7).about() != chaos.draw(8).about()
    for seed in range(30):
        drawn = chaos.draw(seed)
        assert len(drawn.plan) + len(drawn.outside) + len(drawn.before) == chaos.FAULTS
