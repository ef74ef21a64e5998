"""Three seeds of ten random faults each; `make chaos` runs thirty."""
from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import chaos
from tests.helpers.guard_runs import GuardRun
from tests.helpers.whole_runs import check, faulty_build, run_whole


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


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory: pytest.TempPathFactory) -> GuardRun:
    """The run on recordings that nothing harms."""
    ground = chaos.ON_WINDOWS
    run = run_whole(ground.lay(tmp_path_factory.mktemp("unharmed")), faulty_build(ground.bundle) / "bundle")
    check(run)
    return run


@pytest.mark.faults
@pytest.mark.fault(
    row=102,
    injection="ten faults by seed on recordings, whose windows an ensemble with steps scores (2 seeds here)",
    outcome="every invariant holds; recordings that nothing struck for good have the same bytes",
)
@pytest.mark.parametrize("seed", [3, 4])
def test_ten_random_faults_on_recordings_under_steps(tmp_path: Path, unharmed: GuardRun, seed: int) -> None:
    drawn, run, broken = chaos.run_seed(seed, tmp_path, unharmed, chaos.ON_WINDOWS)
    assert broken == [], f"{drawn.about()}\n{run.out[-3000:]}"


@pytest.mark.faults
@pytest.mark.fault(
    row=102,
    injection="two deaths of the engine, in the middle of two recordings, under steps over recordings",
    outcome="the same bytes",
)
@pytest.mark.parametrize("deed", ["kill", "segv"])
def test_recordings_under_steps_have_the_same_bytes_after_deaths(
    tmp_path: Path, unharmed: GuardRun, deed: str
) -> None:
    ground = chaos.ON_WINDOWS
    plan = [{"at": "forward", "id": f"r{i}_15", "do": deed, "times": 1} for i in (1, 3)]
    run = run_whole(ground.lay(tmp_path), faulty_build(ground.bundle) / "bundle", plan=plan)
    check(run, "EngineDied", reference=unharmed)
    assert run.report["prior_rows"] == run.report["partial_rows"] == 0
    assert run.report["guard"]["attempts"] == 3


@pytest.mark.faults
@pytest.mark.fault(
    row=102,
    injection="a net that gives NaN for one window of a recording, under steps over recordings",
    outcome="every row is predicted; the recording's rows are partial, the others' bytes the same",
)
def test_a_window_that_a_net_lacks_marks_its_recording(tmp_path: Path, unharmed: GuardRun) -> None:
    ground = chaos.ON_WINDOWS
    run = run_whole(ground.lay(tmp_path), faulty_build(ground.bundle) / "bundle",
                    plan=[{"at": "forward", "id": "r2_10", "do": "nan"}])
    check(run, "ValueError", reference=unharmed, affected=chaos.rows_of_file("r2.wav"))
    assert run.report["partial_rows"] == chaos.WINDOWS and run.report["prior_rows"] == 0


def test_a_seed_draws_the_same_faults_everywhere() -> None:
    assert chaos.draw(7).about() == chaos.draw(7).about() != chaos.draw(8).about()
    for seed in range(60):
        drawn = chaos.draw(seed // 2, (chaos.ON_CLIPS, chaos.ON_WINDOWS)[seed % 2])
        assert len(drawn.plan) + len(drawn.outside) + len(drawn.before) == chaos.FAULTS
