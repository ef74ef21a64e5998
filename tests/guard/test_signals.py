"""Signals to the guard, its own death, and what the next run sweeps up."""
from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from types import ModuleType

import pytest

import infer_kernel
from kernel import files
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
    assert len(find_processes(mark)) == 4  # watcher, guard, engine, its child
    process.kill()
    process.communicate()
    wait_for(lambda: not find_processes(mark), 3)
    assert has_published(where / "out") and len(list((where / "scratch").iterdir())) == 1
    check(run_guard(where, make_bundle(where / "good").folder))


@pytest.mark.fault(
    row=22,
    injection="private folders of a living run in another process namespace, of a killed run, of strangers; "
    "an owner.json that is a FIFO or nested without end",
    outcome="locks tell the living from the dead: only what dead runs left is removed",
)
def test_private_folders_of_living_runs_stay(where: Path) -> None:
    names = {"alive": "0" * 16, "dead": "1" * 16, "fifo": "2" * 16, "deep": "3" * 16, "stranger": "mine"}
    folders = {kind: where / "scratch" / f"hourglass-{name}" for kind, name in names.items()}
    for folder in folders.values():
        folder.mkdir(parents=True)
    os.mkfifo(folders["fifo"] / "owner.json")
    (folders["deep"] / "owner.json").write_text("[" * 100_000)
    (where / "scratch" / f"hourglass-{'4' * 16}").symlink_to(folders["stranger"])
    lock = infer_kernel.lock_folder(str(folders["alive"]))
    run = run_guard(where, make_bundle(where / "bundle").folder, "--strict")
    assert run.code == 0 and run.faults == [], run.out
    kept = {folders["alive"].name, folders["stranger"].name, f"hourglass-{'4' * 16}"}
    assert {p.name for p in (where / "scratch").iterdir()} == kept
    os.close(lock)


@pytest.mark.parametrize("writer", ["guard", "engine"])
def test_a_starting_run_leaves_the_files_that_another_is_writing(
    where: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    """Two runs in one folder: only what nobody holds is swept."""
    (where / ".submission.csv.dead.tmp").write_text("half")
    module: ModuleType = infer_kernel if writer == "guard" else files
    put = module.put_in_place  # type: ignore[attr-defined]

    def sweep_first(temporary: Path, path: Path) -> None:
        infer_kernel.sweep_temporary(str(where))
        put(temporary, path)

    monkeypatch.setattr(module, "put_in_place", sweep_first)
    if writer == "engine":
        files.write_atomically(where / "report.json", b"{}")
    else:
        words = ["--input", str(where / "in"), "--working", str(where)]
        run = infer_kernel.Run(infer_kernel.make_parser().parse_args(words))
        infer_kernel.publish_prior(run, infer_kernel.Sample(None, ["fname", "Bark"], ["a"], []))
        infer_kernel.write_report(run, {})
        assert (where / "submission.csv").is_file() and run.faults == []
    assert (where / "report.json").read_bytes() == b"{}"
    assert not list(where.glob(".*.tmp"))
