"""The sandbox of a rehearsal: what a line says is enforced is enforced, and what is not is said."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.engine import outside
from kernel.rehearsal import sandbox as sandboxes
from kernel.rehearsal.sandbox import (
    GROUP,
    Sandbox,
    build_sandbox,
    make_environment,
    private_tree,
    read_outside,
)
from tests.helpers import REPOSITORY

MEMORY = 300_000_000


KILLED = """
import os, sys
from pathlib import Path
from kernel.rehearsal.sandbox import build_sandbox, private_tree
with private_tree(Path(sys.argv[1])) as tree:
    (tree / "input").mkdir()
    build_sandbox(tree / "input", 300_000_000, 1)
    print(os.getpid(), flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "clip.wav").write_text("x")
    built = build_sandbox(tmp_path / "input", MEMORY, 1)
    yield built
    built.leave()


def inside(sandbox: Sandbox, *command: str) -> subprocess.CompletedProcess[str]:
    words = [*sandbox.prefix, *command]
    return subprocess.run(words, preexec_fn=sandbox.enter, capture_output=True, text=True)


def said(sandbox: Sandbox, what: str) -> str:
    return next(line for line in sandbox.lines if line.startswith(what + ":"))


def test_every_limit_has_its_line(sandbox: Sandbox) -> None:
    assert [line.split(":")[0] for line in sandbox.lines] == [
        "network", "input", "home", "memory", "cores", "disk"]


def test_the_input_is_read_only_where_it_says_so(sandbox: Sandbox, tmp_path: Path) -> None:
    tried = inside(sandbox, "touch", str(tmp_path / "input" / "new"))
    assert (tried.returncode != 0) == ("read-only (bind mount)" in said(sandbox, "input"))
    assert inside(sandbox, "cat", str(tmp_path / "input" / "clip.wav")).stdout == "x"
    assert inside(sandbox, "touch", str(tmp_path / "elsewhere")).returncode == 0


def test_the_network_is_off_where_it_says_so(sandbox: Sandbox) -> None:
    own = os.readlink("/proc/self/ns/net")
    assert (inside(sandbox, "readlink", "/proc/self/ns/net").stdout.strip() != own) == (
        "off" in said(sandbox, "network")
    )


def test_cores_are_those_of_the_profile(sandbox: Sandbox) -> None:
    allowed = inside(sandbox, "grep", "Cpus_allowed_list", "/proc/self/status").stdout.split()[-1]
    assert allowed.isdigit(), "one core"
    sandbox.leave()
    none = build_sandbox(Path("/"), MEMORY, 10_000)
    none.leave()
    assert none.cores == () and "10000 at Kaggle" in said(none, "cores")


def test_the_control_group_goes_when_the_run_is_over(sandbox: Sandbox) -> None:
    enforced = "limited by the system" in said(sandbox, "memory")
    assert enforced == (sandbox.group is not None)
    if sandbox.group is not None:
        assert sandbox.group.name in inside(sandbox, "cat", "/proc/self/cgroup").stdout
        sandbox.leave()
        assert not sandbox.group.exists()
        sandbox.leave()  # twice does no harm


def test_what_a_killed_rehearsal_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """A living one's folder stays, and so does a folder of the user's that only has the name."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    killed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert killed.returncode == -9 and len(list(tmp_path.iterdir())) == 1, killed.stderr
    (tmp_path / "rehearsal-mine").mkdir()
    with private_tree(tmp_path) as first, private_tree(tmp_path) as second:
        assert {p.name for p in tmp_path.iterdir()} == {first.name, second.name, "rehearsal-mine"}
        (first / "input").mkdir()
        build_sandbox(first / "input", MEMORY, 1).leave()
    assert [p.name for p in tmp_path.iterdir()] == ["rehearsal-mine"]
    left = [str(p) for p in Path("/sys/fs/cgroup").glob(f"**/{GROUP}-{killed.stdout.strip()}")]
    assert not left


@pytest.fixture
def hiding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox with a home of the test's own, which holds a stray file, the kernel and the rehearsal."""
    home = tmp_path / "home" / "me"
    for name in (".cache/hub/model.bin", "push/kernel.py", "run/input/clip.wav", "run/working/x"):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text("x")
    monkeypatch.setattr(sandboxes, "find_home", lambda: home)
    built = build_sandbox(home / "run/input", MEMORY, 1, (home / "run", home / "run/working"), home / "push")
    if f"{home} is empty" in said(built, "home"):
        yield built
    built.leave()
    if f"{home} is empty" not in said(built, "home"):
        pytest.skip("this machine allows no mounts of its own")


def test_the_home_is_empty_but_for_the_rehearsal(hiding: Sandbox, tmp_path: Path) -> None:
    home = tmp_path / "home" / "me"
    assert inside(hiding, "ls", "-A", str(home)).stdout.split() == ["push", "run"]
    seen = inside(hiding, "find", "/mnt", "/media", "/srv", "-name", "model.bin").stdout
    assert seen == "", "nor is it seen by another way"
    assert inside(hiding, "cat", str(home / "push/kernel.py")).stdout == "x"
    assert inside(hiding, "touch", str(home / "run/working/new")).returncode == 0
    assert (home / "run/working/new").exists() and (home / ".cache/hub/model.bin").exists(), "out here"
    assert inside(hiding, "touch", str(home / "run/input/new")).returncode != 0
    started = inside(hiding, sys.executable, "-I", "-c", "import numpy; print(numpy.ones(3).sum())")
    assert started.stdout.strip() == "3.0", started.stderr


def test_the_system_is_read_only(hiding: Sandbox) -> None:
    assert inside(hiding, "touch", "/etc/hourglass-was-here").returncode != 0
    assert not Path("/etc/hourglass-was-here").exists()
    assert inside(hiding, "sh", "-c", "f=$(mktemp) && rm $f").returncode == 0


def test_the_environment_leads_to_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE", "TRANSFORMERS_CACHE", "TFHUB_CACHE_DIR"):
        monkeypatch.setenv(name, "/somewhere")
    monkeypatch.setenv("CUDA_HOME", "/usr/local/cuda")
    found = make_environment(tmp_path)
    assert "/somewhere" not in found.values() and found["CUDA_HOME"] == "/usr/local/cuda"
    assert list(Path(found["HOME"]).iterdir()) == [] and read_outside(tmp_path) == []
    Path(found[outside.LOG]).write_text("/a\n/b\n/a\n")
    assert read_outside(tmp_path) == ["/a", "/b"]
