"""Faults of the engine process: it dies, hangs or is stopped. Whole runs, real signals."""
from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers import REPOSITORY
from tests.helpers.guard_runs import GuardRun, wait_for
from tests.helpers.whole_runs import (
    Place,
    check,
    faulty_build,
    find_engine,
    has_scores,
    make_place,
    prior_rows,
    run_whole,
    sleep_after_start,
    wait_for_engine,
)

POISON = "c05.wav"
KILLS = 25


@pytest.mark.fault(
    row=31,
    injection="the decoder kills its process (SIGKILL, SIGSEGV, SIGABRT) or ends it (_exit) once",
    outcome="engine restarted; the clip in flight runs first and alone; the same bytes as without the fault",
)
@pytest.mark.faults
@pytest.mark.parametrize("deed", ["kill", "segv", "abort", "exit0"])
def test_a_decoder_that_kills_its_process_costs_time_alone(
    tmp_path: Path, unharmed: GuardRun, deed: str
) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle",
                    plan=[{"at": "decode", "id": POISON, "do": deed, "times": 1}])
    check(run, "EngineDied", reference=unharmed)
    assert run.report["guard"]["attempts"] == 2


@pytest.mark.faults
@pytest.mark.fault(
    row=31,
    injection="decoding one clip raises RuntimeError, an unforeseen exception, MemoryError or SystemExit",
    outcome="that clip keeps the prior and is named; no restart; every other row as without the fault",
)
@pytest.mark.parametrize("deed", ["raise", "strange", "memory_error", "sysexit"])
def test_an_exception_in_the_decoder_costs_its_clip_alone(
    tmp_path: Path, unharmed: GuardRun, deed: str
) -> None:
    run = run_whole(
        make_place(tmp_path), faulty_build() / "bundle", plan=[{"at": "decode", "id": POISON, "do": deed}]
    )
    check(run, "ClipUnreadable", reference=unharmed, affected={POISON})
    assert prior_rows(run) == {POISON} and run.report["guard"]["attempts"] == 1


@pytest.mark.fault(
    row=32,
    injection="a clip that kills the engine each time it is decoded",
    outcome="quarantined after two deaths: its row keeps the prior, every other row as without the fault",
)
def test_a_poison_clip_is_quarantined_after_two_deaths(tmp_path: Path, unharmed: GuardRun) -> None:
    run = run_whole(
        make_place(tmp_path), faulty_build() / "bundle", plan=[{"at": "decode", "id": POISON, "do": "kill"}]
    )
    check(run, "ClipQuarantined", reference=unharmed, affected={POISON})
    assert prior_rows(run) == {POISON} and run.report["quarantined"] == [POISON]
    assert run.report["guard"]["attempts"] == 3


@pytest.mark.faults
@pytest.mark.fault(row=32, injection="two poison clips; one of them kills while its header is read",
                   outcome="both quarantined, every other row as without the fault")
def test_two_poison_clips_are_both_found(tmp_path: Path, unharmed: GuardRun) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", seconds=60, plan=[
        {"at": "decode", "id": POISON, "do": "kill"}, {"at": "probe", "id": "c09.wav", "do": "segv"}])
    check(run, "ClipQuarantined", reference=unharmed, affected={POISON, "c09.wav"})
    assert prior_rows(run) == {POISON, "c09.wav"}


@pytest.mark.faults
@pytest.mark.fault(
    row=32,
    injection="one row kills the process in one net's forward, each time",
    outcome="the pair (net, row) is quarantined after two deaths; the other nets decide the row",
)
def test_a_poison_pair_of_net_and_row_costs_the_pair(tmp_path: Path, unharmed: GuardRun) -> None:
    run = run_whole(
        make_place(tmp_path), faulty_build() / "bundle", plan=[{"at": "forward", "id": POISON, "do": "kill"}]
    )
    check(run, "EngineDied", reference=unharmed, affected={POISON})
    assert not prior_rows(run) and run.report["partial_rows"] == 1


@pytest.mark.faults
@pytest.mark.fault(
    row=23,
    injection="kill -9 of the engine before a clip is read, while it is decoded, before it is predicted, "
    "during its forward",
    outcome="nothing of the dead engine is trusted or left; the same bytes as without the fault",
)
@pytest.mark.parametrize("at", ["probe", "decode", "row", "forward"])
def test_killed_at_every_moment_of_a_clip(tmp_path: Path, unharmed: GuardRun, at: str) -> None:
    run = run_whole(
        make_place(tmp_path),
        faulty_build() / "bundle",
        plan=[{"at": at, "id": POISON, "do": "kill", "times": 1}],
    )
    check(run, "EngineDied", reference=unharmed)


@pytest.mark.faults
@pytest.mark.fault(
    row=33,
    injection="every engine dies while it imports its code",
    outcome="given up after two restarts without progress; the prior submission, exit 0, the deaths named",
)
def test_an_engine_that_never_starts_leaves_the_prior(tmp_path: Path) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", plan=[{"at": "import", "do": "segv"}])
    check(run, "EngineGivenUp")
    assert len(prior_rows(run)) == run.report["prior_rows"] == 12


@pytest.mark.faults
@pytest.mark.fault(
    row=34,
    injection="SIGSTOP of the engine; a decoder that never returns",
    outcome="hung: ended and restarted, the clip in flight a suspect; the same bytes as without the fault",
)
@pytest.mark.parametrize("deed", ["stop", "hang"])
def test_a_hung_engine_is_replaced(tmp_path: Path, unharmed: GuardRun, deed: str) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", seconds=60,
                    plan=[{"at": "decode", "id": POISON, "do": deed, "times": 1}])
    check(run, "EngineHung", reference=unharmed)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.fault(row=40, injection=f"kill -9 of the engine at {KILLS} seeded random instants, one per run",
                   outcome="always valid; the same final bytes: a killed clip is a suspect, not a victim")
def test_killed_at_random_instants(tmp_path: Path, unharmed: GuardRun) -> None:
    draw = random.Random(40)
    for number in range(KILLS):
        after_s = draw.uniform(0.0, 1.1) * (unharmed.wall_s - 0.5)
        kill_once(make_place(tmp_path / str(number)), unharmed, after_s)


@pytest.mark.fault(row=40, injection="kill -9 of the engine after its first publication (the fast cut)",
                   outcome="always valid; the same final bytes")
def test_killed_after_the_first_publication(tmp_path: Path, unharmed: GuardRun) -> None:
    def strike(process: subprocess.Popen[str], working: Path) -> None:
        wait_for(lambda: has_scores(working), 30.0)
        engine = find_engine(process)
        if engine is not None:  # it may just have finished
            os.kill(engine, signal.SIGKILL)

    plan = [{"at": "row", "id": "c11.wav", "do": "sleep", "seconds": 0.3}]  # the second net has work left
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", during=strike, plan=plan)
    check_killed(run, unharmed)


def kill_once(place: Place, unharmed: GuardRun, after_s: float) -> None:
    """A run whose engine is killed at one instant ends as if nothing had happened."""

    def strike(process: subprocess.Popen[str], working: Path) -> None:
        sleep_after_start(process, after_s)
        engine = find_engine(process)
        if engine is not None:
            os.kill(engine, signal.SIGKILL)

    check_killed(run_whole(place, faulty_build() / "bundle", during=strike), unharmed)


def check_killed(run: GuardRun, unharmed: GuardRun) -> None:
    """The bytes of a run without faults, and each death named."""
    check(run, "EngineDied" if run.report["guard"]["deaths"] else None, reference=unharmed)


@pytest.mark.faults
@pytest.mark.fault(
    row=75,
    injection="a net raises `CUDA error: device-side assert` once: the context is lost",
    outcome="scores saved, engine restarted once; the same bytes as without the fault",
)
def test_a_lost_device_restarts_the_engine_once(tmp_path: Path, unharmed: GuardRun) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle",
                    plan=[{"at": "forward", "id": POISON, "do": "cuda_lost", "times": 1}])
    check(run, "EngineDied", reference=unharmed)
    assert run.report["guard"]["attempts"] == 2


@pytest.mark.faults
@pytest.mark.fault(
    row=81,
    injection="one row of 12 raises a CUDA error in one net's forward, each time",
    outcome="that pair is quarantined after two deaths; all other rows and nets as without the fault",
)
def test_a_row_that_loses_the_device_each_time_costs_its_pair(tmp_path: Path, unharmed: GuardRun) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle",
                    plan=[{"at": "forward", "id": POISON, "do": "cuda_lost"}])
    check(run, "BatchQuarantined", reference=unharmed, affected={POISON})
    assert not prior_rows(run) and run.report["partial_rows"] == 1
    assert run.report["guard"]["attempts"] == 3


@pytest.mark.faults
@pytest.mark.fault(
    row=38,
    injection="threads of the engine's process counted while it runs, profile of 2 cores",
    outcome="thread pools obey the profile: no BLAS pool per loader",
)
def test_threads_are_bounded(tmp_path: Path) -> None:
    most = 0

    def count(process: subprocess.Popen[str], working: Path) -> None:
        nonlocal most
        engine = wait_for_engine(process)
        while process.poll() is None and psutil.pid_exists(engine):
            try:
                most = max(most, psutil.Process(engine).num_threads())
            except psutil.NoSuchProcess:
                break
            time.sleep(0.02)

    check(run_whole(make_place(tmp_path), faulty_build() / "bundle", during=count))
    # Main, heartbeat, lifeline, worker, 2 + 2 loaders, and a pool of 2 threads for each thread that computes.
    assert 4 <= most <= 20, most


def test_the_strikes_need_their_bundle() -> None:
    """The product itself has no hook: what strikes rides in the test bundle's own files."""
    shipped = [*(REPOSITORY / "kernel").rglob("*.py"), REPOSITORY / "infer_kernel.py"]
    assert not [path for path in shipped if b"HOURGLASS_" in path.read_bytes()]
    assert sys.modules.get("kernel.custom.faulty") is None


@pytest.mark.faults
@pytest.mark.fault(
    row=40,
    injection="the engine dies within its first net, after it has published a part of it",
    outcome="what was published stays: no later submission is worse than an earlier one",
)
def test_a_restart_never_publishes_less(tmp_path: Path) -> None:
    slow = [f"c{i:02d}.wav" for i in range(3, 10)]
    plan = [*({"at": "forward", "id": id, "do": "sleep", "seconds": 0.5, "times": 1} for id in slow),
            {"at": "forward", "id": "c10.wav", "do": "kill", "times": 1}]
    counts: list[int] = []

    def look(process: subprocess.Popen[str], working: Path) -> None:
        while process.poll() is None:
            path = working / "submission.csv"
            if path.exists():
                rows = path.read_text().splitlines()[1:]
                counts.append(sum(not row.endswith(",3.333333e-01") for row in rows))
            time.sleep(0.05)

    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", seconds=40, during=look, plan=plan)
    check(run, "EngineDied")
    assert counts == sorted(counts) and counts[-1] == 12 and any(0 < n < 12 for n in counts)
