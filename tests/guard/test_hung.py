"""Mounts that stop answering, so that who waits for them cannot be killed; and guards that answer no more."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.guard_runs import KERNEL, run_guard, start_guard, wait_for
from tests.helpers.hung_mount import hung_mount, needs_fuse
from tests.helpers.invariants import find_processes
from tests.helpers.stub_bundle import (
    GOOD,
    STUB_CELLS,
    WHEEL,
    check,
    has_published,
    make_bundle,
    make_input,
    pin,
)
from tests.helpers.whole_runs import wait_for_guard

ENDLESS = """
def run():
    publish()
    while True:
        beat(time.monotonic_ns(), scored=1)
        time.sleep(0.05)
"""
BUDGET_S = 8.0


@needs_fuse
@pytest.mark.faults
@pytest.mark.fault(
    row=92,
    injection="a mount that never answers a read (a real FUSE server): the sample; the folder it lies in",
    outcome="exit 2 with a sentence, in time; the caller's pipe is closed",
)
@pytest.mark.parametrize("operation", ["open", "read"])
def test_a_sample_that_never_comes(where: Path, operation: str) -> None:
    bundle = make_bundle(where / "bundle")
    (where / "in").rename(where / "source")
    with hung_mount(where / "source", where / "in", operation, "sample_submission.csv"):
        run = run_guard(where, bundle.folder, seconds=BUDGET_S)
    assert run.code == 2 and "InputHung" in run.out and "--input" in run.out, run.out
    assert run.wall_s < BUDGET_S and "Traceback" not in run.out
    wait_for(lambda: not find_processes(run.mark))


@needs_fuse
@pytest.mark.faults
@pytest.mark.fault(
    row=92,
    injection="the same: a dataset that nobody needs, in every way; a second sample in it",
    outcome="passed over by name, everything scored",
)
@pytest.mark.parametrize("operation", ["look up", "list", "open", "read"])
def test_a_dataset_that_nobody_needs_is_passed_over(where: Path, operation: str) -> None:
    bundle = make_bundle(where / "in" / "datasets" / "me" / "stub-data")
    kernel = pin(bundle, where / "kernel.py")
    make_input(where / "source" / "zoo")
    name = {"look up": "zoo", "list": "zoo"}.get(operation, "sample_submission.csv")
    with hung_mount(where / "source", where / "in" / "another", operation, name):
        run = run_guard(where, None, kernel=kernel, seconds=2 * BUDGET_S)
    check(run, "InputHung")
    assert STUB_CELLS in run.submission


@needs_fuse
@pytest.mark.faults
@pytest.mark.fault(
    row=92,
    injection="the same: the bundle's manifest, its wheel, its folder",
    outcome="the prior submission with a report, exit 0 long before the limit",
)
@pytest.mark.parametrize(
    ("operation", "name"),
    [("read", "manifest.json"), ("read", WHEEL), ("list", "stub"), ("look up", "stub")],
)
def test_a_bundle_that_never_comes(where: Path, operation: str, name: str) -> None:
    make_bundle(where / "source" / "stub")
    with hung_mount(where / "source", where / "mount", operation, name):
        run = run_guard(where, where / "mount" / "stub", seconds=BUDGET_S)
    check(run, "InputHung")
    assert run.report["guard"]["attempts"] == 0 and run.wall_s < BUDGET_S / 2
    assert run.report["prior_rows"] == 2


@needs_fuse
@pytest.mark.faults
@pytest.mark.fault(
    row=92,
    injection="the same: the output folder, before and after the prior submission",
    outcome="the watcher ends the run in time; exit 2 with a sentence where nothing could be written, else 0",
)
@pytest.mark.parametrize(("late", "code"), [(False, 2), (True, 0)])
def test_an_output_folder_that_never_answers(where: Path, late: bool, code: int) -> None:
    (where / "source").mkdir()
    place = where / "out"
    place.mkdir()
    bundle = make_bundle(where / "bundle", ENDLESS)
    arguments = [f"--bundle={bundle.folder}", f"--input={where / 'in'}", f"--working={place / 'x'}"]
    began = time.monotonic()
    process, mark = start_guard(KERNEL, where, *arguments, f"--seconds={BUDGET_S}")
    if late:
        wait_for(lambda: has_published(place / "x"))
    else:
        process.kill()
        process.communicate()
    with hung_mount(where / "source", place, "look up", "x"):
        if not late:
            began = time.monotonic()
            process, mark = start_guard(KERNEL, where, *arguments, f"--seconds={BUDGET_S}")
        out, _ = process.communicate()
        assert time.monotonic() - began < BUDGET_S
    assert process.returncode == code and "GuardHung" in out and "Traceback" not in out, out
    wait_for(lambda: not find_processes(mark))


@needs_fuse
@pytest.mark.faults
@pytest.mark.fault(
    row=92,
    injection="the same: a clip, in the engine's first life",
    outcome="the engine that cannot be killed is left behind and named, the next one goes on",
)
def test_an_engine_that_cannot_be_killed_is_followed_by_another(where: Path) -> None:
    engine = f"""
def run():
    beat(1)
    if count("lives") == 1:
        open({str(where / "mount" / "a.wav")!r}, "rb").read()
    publish()
    report()
"""
    (where / "source").mkdir()
    (where / "source" / "a.wav").write_bytes(b"RIFF")
    with hung_mount(where / "source", where / "mount", "read", "a.wav"):
        run = run_guard(where, make_bundle(where / "bundle", engine).folder, seconds=2 * BUDGET_S)
    check(run, "EngineStuck")
    assert run.report["guard"]["attempts"] == 2 and run.report["guard"]["finished"]
    assert "EngineHung" in run.faults


@pytest.mark.faults
@pytest.mark.fault(
    row=92,
    injection="SIGSTOP of the guard before its prior, and after its engine has published",
    outcome="the watcher ends it and its engine in time; exit 2 with a sentence, or 0",
)
@pytest.mark.parametrize("published", [False, True])
def test_a_guard_that_answers_no_more_is_ended(where: Path, published: bool) -> None:
    if not published:  # a sample that takes a while to read
        (where / "in" / "sample_submission.csv").write_text("fname,Bark\n" + "a.wav,0\n" * 1_000_000)

    def stop(process: subprocess.Popen[str], working: Path) -> None:
        wait_for(lambda: has_published(working) if published else working.exists())
        os.kill(wait_for_guard(process), signal.SIGSTOP)

    run = run_guard(where, make_bundle(where / "bundle", ENDLESS).folder, seconds=5.0, during=stop)
    assert run.code == (0 if published else 2) and "GuardHung" in run.out, run.out
    assert run.wall_s < run.budget_s
    wait_for(lambda: not find_processes(run.mark))
    assert has_published(run.working) == published


@pytest.mark.fault(
    row=92,
    injection="kill -9 of the guard, not of the process that was started",
    outcome="exit 0 with the last published submission, said aloud; nothing is left running",
)
def test_a_killed_guard_is_named_by_its_watcher(where: Path) -> None:
    def kill(process: subprocess.Popen[str], working: Path) -> None:
        wait_for(lambda: has_published(working))
        os.kill(wait_for_guard(process), signal.SIGKILL)

    run = run_guard(where, make_bundle(where / "bundle", ENDLESS).folder, during=kill)
    assert run.code == 0 and "GuardKilled" in run.out and has_published(run.working)
    wait_for(lambda: not find_processes(run.mark))


@pytest.mark.fault(
    row=93,
    injection="an engine prints 1 MB to a pipe whose reader has stopped",
    outcome="the run goes on and ends; the reader finds all of it when it reads again",
)
def test_a_reader_who_does_not_read_holds_up_nobody(where: Path) -> None:
    engine = """
def run():
    for number in range(10_000):
        print(number, "x" * 95)
    publish()
    report()
"""
    bundle = make_bundle(where / "bundle", engine)
    arguments = ["--bundle", bundle.folder, "--input", where / "in", "--working", where / "out"]
    command = [sys.executable, "-I", KERNEL, *arguments, "--seconds=12"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: has_published(where / "out"))
    wait_for((where / "out" / "report.json").exists)
    out, _ = process.communicate()
    assert process.returncode == 0 and out.count("\n") >= 10_002 and "exit 0" in out.splitlines()[-2]


def test_a_guard_beside_threads_is_spawned_from_its_source(where: Path) -> None:
    """As in a notebook, whose process must not be forked, nor ended."""
    bundle = make_bundle(where / "bundle", GOOD + "    print('engine here')\n")
    places = [f"--bundle={bundle.folder}", f"--input={where / 'in'}", f"--working={where / 'out'}"]
    arguments = [*places, "--seconds=12"]
    code = f"""
import sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
sys.path.insert(0, {str(KERNEL.parent)!r})
import infer_kernel
infer_kernel.main({arguments!r})
infer_kernel.main({arguments!r})
print("still here")
infer_kernel.main(["--seconds=never"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=where)
    assert done.returncode == 2 and done.stdout.count("2 predicted") == 2, done.stdout + done.stderr
    assert done.stdout.endswith("still here\n") and "engine here" in done.stdout
    assert "is no time" in done.stderr and has_published(where / "out")
