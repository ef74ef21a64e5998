"""The sandbox of a rehearsal: what a line says is enforced is enforced, and what is not is said."""
from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.rehearsal.sandbox import Sandbox, build_sandbox

MEMORY = 300_000_000


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
    assert [line.split(":")[0] for line in sandbox.lines] == ["network", "input", "memory", "cores", "disk"]


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
