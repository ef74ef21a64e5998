"""Short of time: exit before the limit, and a report that says how far the run came."""
from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.guard_runs import GuardRun
from tests.helpers.whole_runs import check, faulty_build, make_crowd, make_place, prior_rows, run_whole


@pytest.mark.faults
@pytest.mark.fault(
    row=47,
    injection="--seconds 20 for a thousand clips whose decoder needs 50 ms each: not enough time",
    outcome="exit 0 before the limit; rows reached are predicted, the others counted and named",
)
def test_a_thousand_clips_in_twenty_seconds(tmp_path: Path) -> None:
    run = run_whole(make_crowd(tmp_path, 1000), faulty_build() / "bundle", seconds=20,
                    plan=[{"at": "decode", "do": "sleep", "seconds": 0.05}])
    check(run, run.faults[0] if prior_rows(run) else None)
    assert run.report["rows"] == 1000 and run.report["prior_rows"] == len(prior_rows(run))
    assert run.wall_s < 20.0
    assert f"{1000 - len(prior_rows(run))} predicted" in run.out


@pytest.mark.faults
@pytest.mark.fault(
    row=86,
    injection="publications of 2.5 s in a run of 20 s: the guard ends the engine 1.9 s after the stop mark",
    outcome="one early to learn what they take, the last one in time: what is scored is published",
)
def test_slow_publications(tmp_path: Path) -> None:
    run = run_whole(make_crowd(tmp_path, 1000), faulty_build() / "bundle", seconds=20,
                    plan=[{"at": "decode", "do": "sleep", "seconds": 0.05},
                          {"at": "publish", "do": "sleep", "seconds": 2.5}])
    check(run, "BudgetTooSmall")
    assert len(run.report["publications"]) == 2
    assert len(prior_rows(run)) == run.report["prior_rows"] < 900


@pytest.mark.faults
@pytest.mark.fault(row=48, injection="--seconds 5 and 3: hardly more than the engine's own start",
                   outcome="valid, exit 0 in time; what was not reached is named")
@pytest.mark.parametrize("seconds", [3.0, 5.0])
def test_hardly_any_time(tmp_path: Path, seconds: float) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", seconds=seconds)
    check(run, run.report["faults"][0]["code"] if run.report["faults"] else None)
    assert run.wall_s < seconds and (not prior_rows(run) or run.report["faults"])


@pytest.mark.faults
@pytest.mark.fault(row=52, injection="the run starts 30 s late (--offset) with a budget of 60 s",
                   outcome="stopped as if they had passed: exit 0 within the 30 s that are left")
def test_a_late_start(tmp_path: Path) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", "--offset", "30", seconds=60,
                    plan=[{"at": "forward", "do": "sleep", "seconds": 5}])
    check(run, run.report["faults"][0]["code"] if run.report["faults"] else None)
    assert run.wall_s < 30.0


@pytest.mark.faults
@pytest.mark.fault(row=71, injection="any degradation at all under --strict (a broken clip)",
                   outcome="the same submission, but exit 1")
def test_strict_turns_any_degradation_into_exit_1(tmp_path: Path, unharmed: GuardRun) -> None:
    place = make_place(tmp_path)
    (place.clips / "c05.wav").write_bytes(b"junk")
    run = run_whole(place, faulty_build() / "bundle", "--strict")
    check(run, "ClipUnreadable", codes=(1,), reference=unharmed, affected={"c05.wav"})
