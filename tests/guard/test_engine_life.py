"""The life of the engine as the guard sees it: crashes, restarts, hangs, the deadline."""
from __future__ import annotations

from pathlib import Path

import pytest

import infer_kernel
from tests.helpers.guard_runs import GuardRun, run_guard
from tests.helpers.stub_bundle import STUB_CELLS, check, is_prior, make_bundle


def test_a_crash_without_progress_is_given_up_after_two_barren_restarts(where: Path) -> None:
    run = run_guard(
        where, make_bundle(where / "bundle", "def run():\n    beat(1)\n    os.kill(os.getpid(), 11)\n").folder
    )
    check(run, "EngineGivenUp")
    assert run.faults.count("EngineDied") == 3 and "SIGSEGV" in run.out and is_prior(run)


def test_an_engine_that_cannot_even_be_imported_leaves_the_prior(where: Path) -> None:
    run = run_guard(where, make_bundle(where / "bundle", "raise ImportError('no such module')\n").folder)
    check(run, "EngineDied")
    assert is_prior(run) and "no such module" in run.out


def test_restarts_go_on_while_each_scores_a_new_row(where: Path) -> None:
    engine = """
def run():
    lives = count("lives")
    beat(1, scored=lives)
    publish(f"{lives / 100:.6e}")
    report()
    os._exit(0 if lives == 6 else 9)
"""
    run = run_guard(where, make_bundle(where / "bundle", engine).folder)
    check(run, "EngineDied")
    assert run.report["guard"]["attempts"] == 6 and "6.000000e-02" in run.submission
    assert [death["scored_rows"] for death in run.report["guard"]["deaths"]] == [1, 2, 3, 4, 5]


def up_to_eight_lives(where: Path, deed: str) -> GuardRun:
    """An engine that does `deed` in each of its `lives` and is killed in all but the eighth."""
    engine = f"""
def run():
    lives, state = count("lives"), Path(RUN["state"])
    {deed}
    beat(1)
    if lives < 8:
        os.kill(os.getpid(), 9)
    publish()
    report()
"""
    return run_guard(where, make_bundle(where / "bundle", engine).folder)


def crashes(clip: str) -> str:
    """The deed of naming a suspect of every life before this one, as the engine does at its start."""
    return f"""(state / "crashes.json").write_text(json.dumps(
        [{{"kind": "clip", "net": "", "ids": [{clip}]}} for life in range(1, lives)]))"""


@pytest.mark.parametrize(
    ("clip", "attempts", "fault"), [("f'c{life}.wav'", 8, "EngineDied"), ("'c1.wav'", 4, "EngineGivenUp")]
)
def test_a_new_suspect_counts_as_progress_the_same_one_does_not(
    where: Path, clip: str, attempts: int, fault: str
) -> None:
    run = up_to_eight_lives(where, crashes(clip))
    check(run, fault)
    assert run.report["guard"]["attempts"] == attempts and run.report["guard"]["finished"] == (attempts == 8)


def test_a_new_quarantine_counts_as_progress(where: Path) -> None:
    run = up_to_eight_lives(
        where,
        '(state / "quarantine.json").write_text(json.dumps({"clips": ["a"] * (lives // 2), "batches": []}))',
    )
    check(run, "EngineDied")
    assert run.report["guard"]["attempts"] == 8 and run.report["guard"]["finished"]


def test_a_verdict_of_the_engine_is_final(where: Path) -> None:
    engine = """
def run():
    verdict = {"code": "MemoryTooSmall", "message": "give --ram 600MB"}
    (Path(RUN["state"]) / "verdict.json").write_text(json.dumps(verdict))
    sys.exit(3)
"""
    run = run_guard(where, make_bundle(where / "bundle", engine).folder, "--ram", "150MB")
    check(run, "MemoryTooSmall")
    assert run.report["guard"]["attempts"] == 1 and "give --ram 600MB" in run.out and is_prior(run)


def test_a_hung_engine_is_asked_where_it_is_and_ended(where: Path) -> None:
    engine = """
import faulthandler
def run():
    faulthandler.register(signal.SIGUSR1, file=open(Path(RUN["state"]) / "stacks.txt", "a"))
    publish()
    report()
    if count("lives") == 2:
        return
    stuck_in_here()
def stuck_in_here():
    while True:
        beat(1, "net", 0.1)
        time.sleep(0.2)
"""
    run = run_guard(where, make_bundle(where / "bundle", engine).folder, seconds=8)
    check(run, "EngineHung")
    assert "stuck_in_here" in run.report["guard"]["stacks"] and run.report["guard"]["finished"]


def test_a_stopped_engine_and_one_deaf_to_sigterm_are_ended_in_time(where: Path) -> None:
    deaf = """
def run():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    publish()
    while True:
        beat(time.monotonic_ns(), scored=1)
        time.sleep(0.1)
"""
    run = run_guard(where, make_bundle(where / "deaf", deaf).folder, seconds=3.2)
    check(run, "DeadlineKilled")
    assert "DeadlineTerminated" in run.faults and STUB_CELLS in run.submission
    stopped = """
def run():
    publish()
    beat(1)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGSTOP)
"""
    check(run_guard(where, make_bundle(where / "stopped", stopped).folder, seconds=3.2), "EngineHung")


def test_an_engine_that_obeys_sigterm_publishes_once_more(where: Path) -> None:
    engine = """
def run():
    signal.signal(signal.SIGTERM, leave)
    while True:
        beat(time.monotonic_ns())
        time.sleep(0.05)
def leave(*_):
    publish("2.000000e-01")
    report()
    os._exit(0)
"""
    run = run_guard(where, make_bundle(where / "bundle", engine).folder, seconds=3.2)
    check(run, "DeadlineTerminated")
    assert "2.000000e-01" in run.submission and "DeadlineKilled" not in run.faults


def test_nothing_of_a_double_forked_grandchild_is_left(where: Path) -> None:
    engine = """
def run():
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork():
            os._exit(0)
        time.sleep(60)
    time.sleep(0.2)
    publish()
    report()
"""
    check(run_guard(where, make_bundle(where / "bundle", engine).folder))


def test_half_written_files_and_an_old_report_do_not_survive(where: Path) -> None:
    (where / "out").mkdir()
    (where / "out" / "report.json").write_text('{"rows": 99, "prior_rows": 0}')
    (where / "out" / ".submission.csv.12.tmp").touch()
    engine = "def run():\n    (Path(RUN['working']) / '.report.json.9.9.tmp').touch()\n    os._exit(1)\n"
    run = run_guard(where, make_bundle(where / "bundle", engine).folder)
    check(run, "EngineDied")
    assert run.report["rows"] == 2 and run.report["prior_rows"] == 2


def test_a_pause_of_the_whole_machine_is_no_hang() -> None:
    patience = infer_kernel.Patience(infer_kernel.Marks(3600), 100.0)
    beat = {"progress": 1, "unit": "net", "forecast_s": 1.0}
    assert not patience.ends(beat, 101.0)
    assert not patience.ends(beat, 141.0)
    assert patience.paused_s == 40.0
    assert any(patience.ends(beat, 141.0 + i) for i in range(1, 32))


@pytest.mark.fault(
    row=88,
    injection="no sign of life while the processor is used: not at all, by half, by two threads that spin",
    outcome="processor time extends the patience, at most threefold and never beyond half of the time left",
)
@pytest.mark.parametrize(
    ("share", "left_s", "patience_s"),
    [(0.0, 1e4, 30), (0.5, 1e4, 60), (2.0, 1e4, 90), (2.0, 100, 50), (2.0, 20, 30)],
)
def test_who_computes_is_given_more_time_than_who_sleeps(
    share: float, left_s: float, patience_s: float
) -> None:
    patience = infer_kernel.Patience(infer_kernel.Marks(3600), 0.0)
    beat = {"progress": 1, "unit": "net", "forecast_s": 0.0}
    hung = next(t for t in range(2000) if patience.ends(beat, float(t), lambda t=t: share * t, left_s - t))
    assert hung == patience_s + 1


@pytest.mark.fault(
    row=88,
    injection="an engine that computes for 6.8 s without a sign of life, where 6 s may pass",
    outcome="left to finish; one that sleeps as long is ended",
)
@pytest.mark.faults
@pytest.mark.parametrize(("deed", "fault"), [("pass", None), ("time.sleep(60)", "EngineHung")])
def test_an_engine_that_computes_in_silence_is_no_hang(where: Path, deed: str, fault: str | None) -> None:
    engine = f"""
def run():
    beat(1)
    until = time.monotonic() + (6.8 if count("attempt") == 1 else 0.0)
    while time.monotonic() < until:
        {deed}
    publish()
    report()
    beat(2)
"""
    check(run_guard(where, make_bundle(where / "bundle", engine).folder, seconds=24.0), fault)


@pytest.mark.parametrize(
    ("unit", "forecast_s", "patience_s"),
    [("start", 0.0, 120), ("net", 0.0, 30), ("net", 20.0, 80), ("net", 1e9, 900)],
)
def test_patience_follows_the_forecast(unit: str, forecast_s: float, patience_s: float) -> None:
    patience = infer_kernel.Patience(infer_kernel.Marks(3600), 0.0)
    beat = {"progress": 1, "unit": unit, "forecast_s": forecast_s}
    hung = next(t for t in range(2000) if patience.ends(beat, float(t)))
    assert hung == patience_s + 1
