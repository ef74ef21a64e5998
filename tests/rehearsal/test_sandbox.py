"""The walls of a rehearsal: what a line says is enforced is enforced, and what is not is said."""
from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.rehearsal import sandbox

MEMORY = 300_000_000


@pytest.fixture
def walls(tmp_path: Path) -> Iterator[sandbox.Walls]:
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "clip.wav").write_text("x")
    built = sandbox.build_walls(tmp_path / "input", MEMORY, 1)
    yield built
    built.leave()


def inside(walls: sandbox.Walls, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*walls.prefix, *command], preexec_fn=walls.enter, capture_output=True, text=True)


def said(walls: sandbox.Walls, what: str) -> str:
    return next(line for line in walls.lines if line.startswith(what + ":"))


def test_every_wall_has_its_line(walls: sandbox.Walls) -> None:
    assert [line.split(":")[0] for line in walls.lines] == ["network", "input", "memory", "cores", "disk"]


def test_the_input_is_read_only_where_it_says_so(walls: sandbox.Walls, tmp_path: Path) -> None:
    tried = inside(walls, "touch", str(tmp_path / "input" / "new"))
    assert (tried.returncode != 0) == ("read-only (bind mount)" in said(walls, "input"))
    assert inside(walls, "cat", str(tmp_path / "input" / "clip.wav")).stdout == "x"
    assert inside(walls, "touch", str(tmp_path / "elsewhere")).returncode == 0


def test_the_network_is_off_where_it_says_so(walls: sandbox.Walls) -> None:
    own = os.readlink("/proc/self/ns/net")
    assert (inside(walls, "readlink", "/proc/self/ns/net").stdout.strip() != own) == (
        "off" in said(walls, "network")
    )


def test_cores_are_those_of_the_profile(walls: sandbox.Walls) -> None:
    allowed = inside(walls, "grep", "Cpus_allowed_list", "/proc/self/status").stdout.split()[-1]
    assert allowed.isdigit(), "one core"
    walls.leave()
    none = sandbox.build_walls(Path("/"), MEMORY, 10_000)
    none.leave()
    assert none.cores == () and "10000 at Kaggle" in said(none, "cores")


def test_the_control_group_goes_when_the_run_is_over(walls: sandbox.Walls) -> None:
    enforced = "limited by the system" in said(walls, "memory")
    assert enforced == (walls.group is not None)
    if walls.group is not None:
        assert walls.group.name in inside(walls, "cat", "/proc/self/cgroup").stdout
        walls.leave()
        assert not walls.group.exists()
        walls.leave()  # twice does no harm
