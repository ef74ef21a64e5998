"""However a command ends, its exit code and its words are right: signals, streams that break, os._exit."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import build_dataset
from builder import assembly, staging, watched
from tests.helpers.bundles import TINY, copy_of_build

ROOT = Path(build_dataset.__file__).parent
PROGRAM = """
import atexit, os, signal, sys, time
from pathlib import Path
from builder import watched
at = Path(sys.argv[1])
watched.PATIENCE_S = PATIENCE
def work():
    (at / "pid").write_text(str(os.getpid()))
    (at / "started").touch()
    WORK
    return 0
sys.exit(watched.run(work, (at / "cleaned").touch))
"""


def start(
    at: Path, work: str, shell: str = "", patience: float = 10.0, **more: object
) -> subprocess.Popen[str]:
    """A command that does `work`, in a shell when `shell` is what comes behind it there."""
    text = PROGRAM.replace("WORK", work.replace("\n", "\n    ")).replace("= PATIENCE", f"= {patience}")
    (at / "program.py").write_text(text)
    command = [sys.executable, str(at / "program.py"), str(at)]
    words = ["bash", "-c", f'"$@" {shell}', "bash", *command] if shell else command
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
                            **more)  # type: ignore[call-overload,no-any-return]


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def await_file(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, finish(process)
        time.sleep(0.01)


@pytest.mark.parametrize(("work", "code", "words"), [
    ("print('built')", 0, ""),
    ("return 1", 1, ""),
    ("os._exit(0)", 1, "CommandDied: the process ended with exit code 0 before its work was done"),
    ("os.kill(os.getpid(), signal.SIGSEGV)", 1, "by signal SIGSEGV"),
    ("os.kill(os.getpid(), signal.SIGKILL)", 1, "out of memory"),
    ("if os.fork() == 0: time.sleep(0.3); os._exit(0)\nos._exit(0)", 1, "exit code 0 before"),
    ("raise SystemExit(0)", 1, "SystemExit: 0"),
    ("raise GeneratorExit", 1, "GeneratorExit"),
    ("1 / 0", 1, "ZeroDivisionError"),
    ("atexit.register(lambda: os._exit(7))", 0, ""),
    ("raise KeyboardInterrupt", 130, "interrupted (SIGINT)\n"),
])
def test_the_exit_code_is_that_of_the_work(work: str, code: int, words: str, tmp_path: Path) -> None:
    found, out, err = finish(start(tmp_path, work))
    assert (found, out) == (code, "built\n" if "built" in work else "")
    assert words in err if words else not err
    assert (tmp_path / "cleaned").exists() == ("_exit(0)" in work or "os.kill" in work)


def test_code_that_never_returns_ends_the_command_with_its_name(tmp_path: Path) -> None:
    loop = "    while True:\n        try: time.sleep(60)\n        except: pass"
    work = f"with watched.limited('net.py', 0.2):\n{loop}"
    code, out, err = finish(start(tmp_path, work))
    assert (code, out) == (1, "") and err.startswith("OwnCodeHung: net.py has not returned after 0.2 s")
    assert err.count("\n") == 1 and (tmp_path / "cleaned").exists()


def test_code_that_returns_in_time_is_not_ended_later(tmp_path: Path) -> None:
    work = "with watched.limited('net.py', 0.2): pass\ntime.sleep(0.5)"
    assert finish(start(tmp_path, work))[0] == 0


def test_a_net_that_never_returns_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("while True: pass\n")
    toml = TINY.read_text(encoding="utf-8").replace('"simple_cnn"', '"net.py:Net"')
    (tmp_path / "own.toml").write_text(toml, encoding="utf-8")
    (tmp_path / "program.py").write_text(
        "import sys\nfrom builder import watched\nimport build_dataset\nwatched.OWN_CODE_S = 0.5\n"
        "sys.exit(build_dataset.run(sys.argv[1:]))\n")
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "own.toml"), "--out", "o",
               "--random-weights"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1 and done.stderr.startswith("OwnCodeHung: "), done.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("number", watched.SIGNALS)
@pytest.mark.parametrize("group", [True, False])
def test_a_signal_is_one_line_and_its_exit_code(number: signal.Signals, group: bool, tmp_path: Path) -> None:
    work = "try: time.sleep(60)\nfinally: (at / 'put back').touch()"
    process = start(tmp_path, work, start_new_session=True)
    await_file(tmp_path / "started", process)
    (os.killpg if group else os.kill)(process.pid, number)  # A terminal asks the group.
    code, out, err = finish(process)
    assert (code, out, err) == (128 + number, "", f"interrupted ({number.name})\n")
    assert (tmp_path / "put back").exists()


def test_what_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    work = "while True:\n    try: time.sleep(60)\n    except BaseException: pass"
    process = start(tmp_path, work, patience=0.1)
    await_file(tmp_path / "started", process)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert (code, err) == (143, "interrupted (SIGTERM), and stopped in the middle of its work\n")
    assert (tmp_path / "cleaned").exists()


def test_a_command_ends_with_the_process_that_watches_it(tmp_path: Path) -> None:
    process = start(tmp_path, "try: time.sleep(60)\nfinally: (at / 'put back').touch()")
    await_file(tmp_path / "started", process)
    process.kill()
    finish(process)  # Its streams are the command's too: this waits for both.
    assert (tmp_path / "put back").exists()


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    process = start(tmp_path, "os.kill(os.getppid(), signal.SIGHUP)\nos.kill(os.getpid(), signal.SIGHUP)",
                    preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert finish(process) == (0, "", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("shell", "words"), [
    ("> /dev/full", "the messages could not all be written: No space left on device; exit code 0 holds\n"),
    (">&-", ""),
    (">&- 2>&-", ""),
    ("<&- >&- 2>&-", ""),
    ("| true", ""),
    ("2>&1 | true", ""),
    ("> /dev/full 2>&1", ""),
])
def test_streams_that_break_do_not_break_the_work(
    shell: str, words: str, unbuffered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    work = ("for _ in range(3): print('line' * 5000); print('error', file=sys.stderr) if 0 else None\n"
            "print('\\u00fc\\ud800')\n(at / 'done').touch()")
    if "2>" in shell:
        work = work.replace("if 0 else None", "")
    code, _, err = finish(start(tmp_path, work, f"{shell}; exit ${{PIPESTATUS[0]}}"))
    assert (code, err, (tmp_path / "done").exists()) == (0, words, True)


# The builder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return copy_of_build(tmp_path / "out")


@pytest.mark.parametrize("swapped", [False, True])
def test_an_interrupt_says_what_lies_there(
    swapped: bool, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(request: assembly.BuildRequest) -> None:
        with staging.staging(out) as folder:
            for name in staging.NAMES:
                (folder / name).mkdir()
            if swapped:
                staging.put_in_place(folder, out)
            raise watched.Ended(signal.SIGTERM)

    monkeypatch.setattr(assembly, "build", build)
    assert build_dataset.main([str(TINY), "--out", str(out)]) == 143
    state = f"the build in {out} is complete" if swapped else "nothing was built, and what was in "
    assert capsys.readouterr().err.startswith(f"interrupted (SIGTERM); {state}")
    assert sorted(p.name for p in out.iterdir()) == ["bundle", "push"]


@pytest.mark.faults
@pytest.mark.parametrize("shell", ["> /dev/full", "| true"])
def test_a_build_without_a_reader_is_built(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    words = [sys.executable, str(ROOT / "build_dataset.py"), str(TINY), "--random-weights", "--out", "o"]
    shell = f'"$@" {shell}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", shell, "bash", *words], cwd=tmp_path, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["bundle", "push"]


@pytest.mark.faults
@pytest.mark.parametrize(("text", "words"), [
    ("import os\nos._exit(0)\n", "CommandDied: the process ended with exit code 0"),
    ("import os, signal\nos.kill(os.getppid(), signal.SIGTERM)\nimport time\ntime.sleep(60)\n",
     "interrupted (SIGTERM); nothing was built"),
])
def test_an_own_file_that_leaves_the_process_is_noticed(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(text)
    toml = TINY.read_text(encoding="utf-8").replace('"simple_cnn"', '"net.py:Net"')
    (tmp_path / "own.toml").write_text(toml, encoding="utf-8")
    command = [sys.executable, str(ROOT / "build_dataset.py"), str(tmp_path / "own.toml"), "--out", "o",
               "--random-weights"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == (143 if "SIGTERM" in text else 1) and done.stderr.startswith(words)
    assert not (tmp_path / "o").exists()
