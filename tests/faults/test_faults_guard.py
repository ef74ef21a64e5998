"""Faults that the guard meets: it is killed or signalled, everything is paused, the engine will not end."""
from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.guard_runs import KERNEL, GuardRun, start_guard, wait_for
from tests.helpers.invariants import find_processes
from tests.helpers.whole_runs import (
    check,
    faulty_build,
    has_scores,
    make_place,
    prior_rows,
    run_whole,
    strikes,
    wait_for_engine,
)

POISON = "c05.wav"


@pytest.mark.fault(
    row=41,
    injection="kill -9 of the guard",
    outcome="engine gone within 3 s; the last valid submission stays",
)
def test_the_engine_dies_with_the_guard(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    bundle = faulty_build() / "bundle"
    arguments = [f"--bundle={bundle}", f"--input={tmp_path / 'in'}", f"--working={tmp_path / 'out'}"]
    plan = strikes({"at": "decode", "id": POISON, "do": "hang"})
    process, mark = start_guard(KERNEL, tmp_path, *arguments, env=plan)
    wait_for_engine(process)
    wait_for((tmp_path / "out" / "submission.csv").exists)
    time.sleep(1.5)
    process.kill()
    process.communicate()
    wait_for(lambda: not find_processes(mark), 3.0)
    lines = (tmp_path / "out" / "submission.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines[1:]] == place.ids


@pytest.mark.fault(row=42, injection="SIGTERM to the guard, twice, in mid-run",
                   outcome="what is scored is published, exit 0 within 2 s")
def test_terminated_twice(tmp_path: Path) -> None:
    run, left_s = signal_guard(tmp_path, [signal.SIGTERM, signal.SIGTERM])
    check(run, "Interrupted")
    # 2 s are promised; the rest is the start of this test's own process.
    assert left_s < 2.5 and len(prior_rows(run)) < 12


@pytest.mark.faults
@pytest.mark.fault(
    row=42, injection="SIGINT, SIGHUP to the guard", outcome="what is scored is published, exit 0 within 2 s"
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    run, left_s = signal_guard(tmp_path, [number])
    check(run, "Interrupted")
    assert left_s < 2.5


def signal_guard(folder: Path, numbers: list[signal.Signals]) -> tuple[GuardRun, float]:
    """A run whose guard gets signals once the first net is published, and how long it then took to leave."""
    sent: list[float] = []

    def send(process: subprocess.Popen[str], working: Path) -> None:
        wait_for(lambda: has_scores(working), 30.0)
        sent.append(time.monotonic())
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.05)
        process.wait(10)
        sent.append(time.monotonic())

    slow = [{"at": "row", "id": f"c{i:02d}.wav", "do": "sleep", "seconds": 0.15} for i in range(12)]
    run = run_whole(make_place(folder), faulty_build() / "bundle", during=send, plan=slow)
    return run, sent[1] - sent[0]


@pytest.mark.faults
@pytest.mark.fault(
    row=45,
    injection="a decoder double-forks a process that ignores SIGTERM, in a session of its own; "
    "an engine that blocks SIGTERM",
    outcome="no process is left",
)
def test_grandchildren_do_not_survive(tmp_path: Path, unharmed: GuardRun) -> None:
    plan = [{"at": "decode", "id": POISON, "do": deed, "times": 1} for deed in ("grandchild", "deaf")]
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", plan=plan)
    check(run, reference=unharmed)


@pytest.mark.faults
@pytest.mark.fault(row=51, injection="SIGSTOP of guard and engine for 6 s, then SIGCONT",
                   outcome="counted as a pause, not as a hang; the same bytes as without the fault")
def test_a_pause_of_everything_is_no_hang(tmp_path: Path, unharmed: GuardRun) -> None:
    def pause(process: subprocess.Popen[str], working: Path) -> None:
        wait_for_engine(process)
        time.sleep(1.0)
        everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in everyone:
            one.suspend()
        time.sleep(6.0)
        for one in reversed(everyone):
            one.resume()

    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", seconds=60, during=pause)
    check(run, "Paused", reference=unharmed)
    assert run.report["guard"]["attempts"] == 1


@pytest.mark.faults
@pytest.mark.fault(
    row=43,
    injection="a regular expression without end in a net's forward: it holds the interpreter's lock",
    outcome="stacks dumped into the report, engine ended and restarted; the same bytes as without the fault",
)
def test_an_engine_that_holds_its_interpreter_is_ended(tmp_path: Path, unharmed: GuardRun) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", seconds=30,
                    plan=[{"at": "forward", "id": POISON, "do": "hold_the_interpreter", "times": 1}])
    check(run, "EngineHung", reference=unharmed)
    assert "hold_the_interpreter" in run.report["guard"]["stacks"]


@pytest.mark.faults
@pytest.mark.fault(row=44, injection="a net starts a thread that interpreter exit waits for",
                   outcome="the run ends in time with everything scored")
def test_a_thread_that_never_ends_does_not_keep_the_run(tmp_path: Path, unharmed: GuardRun) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", seconds=30,
                    plan=[{"at": "row", "id": POISON, "do": "thread", "times": 1}])
    check(run, reference=unharmed)
    assert run.wall_s < 15.0  # without the fault: 3 s; waiting for the thread: to the deadline
