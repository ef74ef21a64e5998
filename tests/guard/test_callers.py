"""What the caller hands on: its process, its streams, its signals, its descriptors, its environment."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernel.cache import disk
from tests.helpers.guard_runs import KERNEL, run_guard, wait_for
from tests.helpers.stub_bundle import STUB_CELLS, check, has_published, make_bundle
from tests.helpers.whole_runs import wait_for_guard

NOTEBOOK = """
import io, sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
class OutStream(io.TextIOBase):  # as ipykernel's: without reconfigure
    def __init__(self, stream): self.stream = stream
    def write(self, text): return self.stream.write(text)
    def flush(self): self.stream.flush()
sys.stdout = OutStream(sys.stdout)
sys.stderr = OutStream(sys.stderr)
sys.argv = ["a notebook's own words", "-f", "x.json"]
source = open({kernel!r}).read()
{run}
print("still here")
"""
EXEC = 'exec(source, {"__name__": "__main__"})'
CELL = """
import linecache
linecache.cache["<cell 1>"] = (len(source), None, source.splitlines(True), "<cell 1>")
exec(compile(source, "<cell 1>", "exec"), {"__name__": "__main__"})
"""
LOST = 'space = {"__name__": "lost"}\nexec(source, space)\ndel source\nspace["main"]([])'


def run_notebook(where: Path, run: str) -> subprocess.CompletedProcess[str]:
    """A process with threads that runs the file's text; ../input is its input."""
    (where / "in").rename(where / "input")
    (where / "here").mkdir()
    code = NOTEBOOK.replace("{kernel!r}", repr(str(KERNEL))).replace("{run}", run)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=where / "here")


@pytest.mark.parametrize("run", [EXEC, CELL], ids=["exec", "cell"])
def test_a_notebook_that_holds_the_text_gets_its_submission(where: Path, run: str) -> None:
    done = run_notebook(where, run)
    assert done.returncode == 0 and done.stdout.endswith("still here\n"), done.stdout + done.stderr
    assert (where / "here" / "submission.csv").is_file() and "BundleMissing" in done.stdout


def test_a_notebook_whose_text_is_nowhere_is_told_so_and_lives(where: Path) -> None:
    run = LOST.replace('space["main"]([])', 'try:\n    space["main"]([])\nexcept SystemExit as end:\n'
                       '    print("code", end.code)')
    done = run_notebook(where, run)
    assert done.stdout == "code 2\nstill here\n" and "WatcherMissing notebook" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("engine", "code"),
    [(None, None), ("def run():\n    os.kill(os.getpid(), signal.SIGKILL)\n", "EngineDied")],
)
def test_a_caller_that_ignores_the_ends_of_its_children(
    where: Path, engine: str | None, code: str | None
) -> None:
    bundle = make_bundle(where / "bundle", engine) if engine else make_bundle(where / "bundle")
    deaf = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], " \
        "sys.argv[1:])"
    run = run_guard(where, bundle.folder, prefix=(sys.executable, "-c", deaf))
    check(run, *([code] if code else []))
    assert (run.report["prior_rows"] == 0) == (code is None)


@pytest.mark.parametrize("name", [".", "tmp"])
def test_a_relative_folder_for_private_files(where: Path, name: str) -> None:
    (where / "tmp").mkdir()
    run = run_guard(where, make_bundle(where / "bundle").folder, "--strict", TMPDIR=name)
    assert run.code == 0 and STUB_CELLS in run.submission, run.out
    assert not list(where.glob("hourglass-*")) and not list((where / "tmp").iterdir())


@pytest.mark.parametrize("count", [6, 8])
def test_few_descriptors_leave_the_prior(where: Path, count: int) -> None:
    short = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({count}, {count})); " \
        "os.execv(sys.argv[1], sys.argv[1:])"
    run = run_guard(where, None, prefix=(sys.executable, "-c", short))
    assert run.code == 0 and "Traceback" not in run.out, run.out
    assert (run.working / "submission.csv").is_file()


def test_a_mount_whose_name_is_no_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    line = f"9 1 {os.major(device)}:{os.minor(device)} / /x rw - ext9 none rw\n".encode()
    (tmp_path / "mounts").write_bytes(b"8 1 0:999 / /caf\xe9 rw - zoo none rw\n" + line)
    monkeypatch.setattr(disk, "Path", lambda _: tmp_path / "mounts")
    assert disk._filesystem(tmp_path) == "ext9"


@pytest.mark.parametrize("first", [signal.SIGQUIT, signal.SIGHUP])
def test_a_run_under_nohup_ends_by_quit_only(where: Path, first: signal.Signals) -> None:
    engine = "def run():\n    publish()\n    for beats in range(40):\n        beat(beats, scored=1)\n" \
        "        time.sleep(0.05)\n    report()\n"
    bundle = make_bundle(where / "bundle", engine)

    def send(process: subprocess.Popen[str], working: Path) -> None:
        wait_for(lambda: has_published(working))
        process.send_signal(first)

    run = run_guard(where, bundle.folder, during=send, prefix=("nohup",))
    check(run, *(["Interrupted"] if first == signal.SIGQUIT else []))
    assert run.report["guard"]["finished"] == (first == signal.SIGHUP)


def test_a_submission_that_is_a_pipe_is_replaced(where: Path) -> None:
    engine = "def run():\n    beat(1, scored=1)\n    publish()\n    report()\n" \
        "    path = Path(RUN['working']) / 'submission.csv'\n    path.unlink()\n    os.mkfifo(path)\n"
    run = run_guard(where, make_bundle(where / "bundle", engine).folder)
    check(run, "CandidateRejected")
    assert run.report["prior_rows"] == 2 and not list((where / "scratch").iterdir())


def test_a_signal_before_the_prior_is_answered_with_a_sentence(where: Path) -> None:
    (where / "in" / "sample_submission.csv").unlink()
    (where / "in" / "sample_submission.csv").write_text("fname,Bark\n" + "a.wav,0\n" * 3_000_000)

    def send(process: subprocess.Popen[str], working: Path) -> None:
        wait_for(working.exists)
        time.sleep(0.3)
        os.kill(wait_for_guard(process), signal.SIGTERM)

    run = run_guard(where, None, during=send, seconds=60.0)
    assert "Traceback" not in run.out, run.out
    if run.code == 2:  # it was in time to hit the reading
        assert "OutOfTime guard: SIGTERM while" in run.out, run.out
