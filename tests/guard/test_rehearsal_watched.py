"""The rehearsal below its watcher, with a stub for what is rehearsed: signals, streams, mounts."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kernel.errors import SpecError
from kernel.rehearsal import command
from tests.helpers.guard_runs import KERNEL, run_guard, wait_for
from tests.helpers.hung_mount import hung_mount, needs_fuse
from tests.helpers.stub_bundle import check, make_bundle

TALKS = "def main(*_):\n    print('x' * 200_000)\n    print('PASS', flush=True)\n    return 0\n"
WAITS = "import time\ndef main(arguments, kernel):\n    print('here', flush=True)\n    time.sleep(60)\n"


def start_rehearsal(where: Path, source: str, **streams: int) -> subprocess.Popen[bytes]:
    extra = {"kernel/rehearsal/__init__.py": "", "kernel/rehearsal/command.py": source}
    make_bundle(where / "bundle", extra=extra)
    (where / "scratch").mkdir()
    words = [sys.executable, "-I", str(KERNEL), "--rehearse", "--bundle=bundle", "--clips=in", "--seconds=5"]
    environment = {**os.environ, "TMPDIR": str(where / "scratch")}
    return subprocess.Popen(words, cwd=where, env=environment, **streams)  # type: ignore[call-overload]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_a_rehearsal_with_a_sentence(where: Path, number: signal.Signals) -> None:
    process = start_rehearsal(where, WAITS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None and process.stdout.readline() == b"here\n"
    process.send_signal(number)
    out = process.communicate()[0].decode()
    assert process.returncode == 1 and f"Interrupted rehearsal: {number.name}" in out, out
    assert list((where / "scratch").iterdir()) == []


@pytest.mark.parametrize("reader", ["full", "gone"])
def test_a_stream_that_takes_nothing_does_not_end_a_rehearsal(where: Path, reader: str) -> None:
    if reader == "full":
        stream = os.open("/dev/full", os.O_WRONLY)
    else:
        end, stream = os.pipe()
        os.close(end)
    process = start_rehearsal(where, TALKS, stdout=stream, stderr=subprocess.PIPE)
    os.close(stream)
    assert process.communicate()[1] == b"" and process.returncode == 0


@needs_fuse
@pytest.mark.faults
@pytest.mark.fault(
    row=92,
    injection="a rehearsal whose clips, or whose bundle, lie on such a mount",
    outcome="exit 2 with a sentence, in time",
)
@pytest.mark.parametrize("place", ["in", "bundle"])
def test_a_rehearsal_over_a_mount_that_never_answers_ends(where: Path, place: str) -> None:
    (where / "source").mkdir()
    (where / "source" / "manifest.json").write_text("{}")
    operation, name = ("list", "source") if place == "in" else ("read", "manifest.json")
    mounted = where / ("in" if place == "in" else "bundle")
    words = [sys.executable, "-I", str(KERNEL), "--rehearse", "--bundle=bundle", "--clips=in", "--seconds=5"]
    if place == "in":
        make_bundle(where / "bundle")
    with hung_mount(where / "source", mounted, operation, name):
        done = subprocess.run(words, cwd=where, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "InputHung" in done.stdout + done.stderr, done


@pytest.mark.parametrize("deaf", [False, True])
def test_a_kernel_under_rehearsal_is_asked_to_end_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    monkeypatch.setattr(command, "KERNEL_FAREWELL_S", 0.2 if deaf else 20.0)
    code = f"""
import signal, sys, time
signal.signal(signal.SIGTERM, {"signal.SIG_IGN" if deaf else "lambda *_: sys.exit(7)"})
open({str(tmp_path / "ready")!r}, "w").close()
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_for((tmp_path / "ready").exists)
    command.end_kernel(process)
    assert process.returncode == (-signal.SIGKILL if deaf else 7)


@pytest.mark.parametrize("folder", ["bundle", "bundle/results"])
def test_results_are_not_written_into_the_bundle(tiny_bundle: Path, tmp_path: Path, folder: str) -> None:
    words = ["--bundle", str(tiny_bundle / "bundle"), "--clips", str(tmp_path),
             "--working", str(tiny_bundle / folder)]
    before = sorted(tiny_bundle.rglob("*"))
    with pytest.raises(SpecError, match="lies in the bundle"):
        command.rehearse(command.read_arguments(words), KERNEL)
    assert sorted(tiny_bundle.rglob("*")) == before


@pytest.mark.parametrize("words", [[], ["x"], ["0,1,"], ["998,999,"]])
def test_the_guards_own_word_is_refused_to_others(where: Path, words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-I", str(KERNEL), "--as-guard", *words], cwd=where,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2 and "BadArgument --as-guard" in done.stderr, done.stderr


def test_a_signal_before_the_first_line_ends_the_run_in_order(where: Path) -> None:
    early = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); " \
        "os.kill(os.getpid(), signal.SIGTERM); os.execv(sys.argv[1], sys.argv[1:])"
    bundle = make_bundle(where / "bundle", "def run():\n    time.sleep(60)\n")
    check(run_guard(where, bundle.folder, prefix=(sys.executable, "-c", early)), "Interrupted")
