"""Signals to the guard, its own death, and what the next run sweeps up."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import infer_kernel
from tests.helpers.guard_runs import KERNEL, run_guard, start_guard, wait_for
from tests.helpers.invariants import find_processes
from tests.helpers.stub_bundle import check, has_published, make_bundle

ENDLESS = """
def run():
    publish()
    while True:
        beat(time.monotonic_ns(), scored=1)
        time.sleep(0.05)
"""


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGHUP], [signal.SIGTERM] * 2]
)
def test_a_signal_ends_the_run_in_order(where: Path, numbers: list[signal.Signals]) -> None:
    def send(process: subprocess.Popen[str], working: Path) -> None:
        wait_for(lambda: has_published(working))
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.05)

    run = run_guard(where, make_bundle(where / "bundle", ENDLESS).folder, during=send)
    check(run, "Interrupted")
    assert has_published(run.working)


def test_a_signal_to_a_guard_with_a_stopped_engine_still_ends_it(where: Path) -> None:
    engine = "def run():\n    publish()\n    os.kill(os.getpid(), signal.SIGSTOP)\n"

    def send(process: subprocess.Popen[str], working: Path) -> None:
        wait_for(lambda: has_published(working))
        process.send_signal(signal.SIGTERM)

    check(run_guard(where, make_bundle(where / "bundle", engine).folder, during=send), "Interrupted")


def test_a_guard_that_is_stuck_ends_at_the_exit_mark(where: Path) -> None:
    (where / "in" / "sample_submission.csv").unlink()
    os.mkfifo(where / "in" / "sample_submission.csv")  # opening it waits for ever
    run = run_guard(where, None, "--seconds=3.2")
    assert run.code == 2 and run.wall_s < 3.2


def test_the_engine_dies_with_a_killed_guard_and_the_next_run_sweeps_up(where: Path) -> None:
    deaf = """
import re
def run():
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    publish()
    # holds the interpreter's lock for ever: no thread of the engine can see the end
    re.match("(a+)+$", "a" * 40 + "b")
"""
    bundle = make_bundle(where / "bundle", deaf)
    process, mark = start_guard(
        KERNEL,
        where,
        "--bundle",
        str(bundle.folder),
        "--input",
        str(where / "in"),
        "--working",
        str(where / "out"),
        "--seconds",
        "60",
    )
    wait_for(lambda: has_published(where / "out"))
    assert len(find_processes(mark)) == 3  # guard, engine, its child
    process.kill()
    process.communicate()
    wait_for(lambda: not find_processes(mark), 3)
    assert has_published(where / "out") and len(list((where / "scratch").iterdir())) == 1
    check(run_guard(where, make_bundle(where / "good").folder))


def test_private_folders_of_living_runs_stay(where: Path) -> None:
    alive = where / "scratch" / "hourglass-alive"
    alive.mkdir(parents=True)
    owner = {"pid": os.getpid(), "process": infer_kernel.describe_process(os.getpid())}
    (alive / "owner.json").write_text(json.dumps(owner))
    reused = where / "scratch" / "hourglass-reused"
    reused.mkdir()
    (reused / "owner.json").write_text(json.dumps({"pid": os.getpid(), "process": [owner["process"][0], 1]}))
    run_guard(where, make_bundle(where / "bundle").folder)
    assert [p.name for p in (where / "scratch").iterdir()] == ["hourglass-alive"]
