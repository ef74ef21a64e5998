"""What this machine lets a test do to a run: namespaces, control groups, strace. Each is tried once.

Owns the command words that are put before a run, the marks that skip a test with its reason, and `describe`.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.guard_runs import wait_for


@cache
def allowed(*command: str) -> bool:
    """True if the command words work here."""
    try:
        return subprocess.run([*command, "true"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


NAMESPACES = ("unshare", "-Urm")
TIME_NAMESPACE = ("unshare", "-UrT", "--monotonic", "9000", "--boottime", "9000")
STRACE = ("strace", "-qq", "-o", os.devnull)
needs_namespaces = pytest.mark.skipif(not allowed(*NAMESPACES), reason="user namespaces are not allowed here")
needs_time = pytest.mark.skipif(not allowed(*TIME_NAMESPACE), reason="time namespaces are not allowed here")
needs_strace = pytest.mark.skipif(not allowed(*STRACE), reason="strace is missing or not allowed here")


def describe() -> str:
    """One line for the end of a test run: which injectors this machine has."""
    found = {
        "namespaces": allowed(*NAMESPACES),
        "time namespaces": allowed(*TIME_NAMESPACE),
        "strace": allowed(*STRACE),
        "prlimit": shutil.which("prlimit") is not None,
    }
    for controller, file, value in (("memory", "memory.limit_in_bytes", 10**9), ("pids", "pids.max", 100)):
        try:
            with control_group(controller, file, value):
                found[f"{controller} control group"] = True
        except pytest.skip.Exception:
            found[f"{controller} control group"] = False
    return ", ".join(f"{name} {'yes' if there else 'NO'}" for name, there in found.items())


def in_mounts(script: str) -> tuple[str, ...]:
    """Command words that run what follows in a mount namespace where `script` was done first."""
    return ("unshare", "-Urm", "sh", "-ec", script + ' && exec "$@"', "sh")


def inject(what: str) -> tuple[str, ...]:
    """Command words that run what follows under strace, e.g. with "pwrite64:error=EIO:when=3" injected."""
    traced = what.partition(":")[0]
    return ("strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={traced}", "-e", f"inject={what}")


@contextmanager
def control_group(controller: str, name: str, value: int) -> Iterator[Path]:
    """A control group of our own whose file `name` holds `value`; skips the test where none can be made.

    name  of the v1 file; the v2 twins are tried first
    """
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = {line.split(":")[1]: line.split(":", 2)[2] for line in lines}  # controller -> our group
    twin = {"memory.limit_in_bytes": "memory.max"}.get(name, name)
    places = [(Path("/sys/fs/cgroup") / own.get("", "/").lstrip("/"), twin),
              (Path("/sys/fs/cgroup") / controller / own.get(controller, "/").lstrip("/"), name),
              (Path("/sys/fs/cgroup") / controller, name)]
    for parent, file in places:
        group = parent / f"hourglass-test-{uuid.uuid4().hex[:8]}"
        try:
            if (parent / "cgroup.procs").exists():
                group.mkdir()
                (group / file).write_text(str(value))
                break
        except OSError:
            if group.exists():
                group.rmdir()
    else:
        pytest.skip(f"no writable {controller} control group on this machine")
    try:
        yield group
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text().strip())
        group.rmdir()


def inside(group: Path, before: str = "true") -> tuple[str, ...]:
    """Command words that run what follows in a control group, after the shell command `before` in it."""
    return ("sh", "-ec", f'echo $$ > {group}/cgroup.procs; {before}; exec "$@"', "sh")
