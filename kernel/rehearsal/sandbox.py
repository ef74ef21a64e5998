"""How close a rehearsal can come to Kaggle's walls on this machine.

Owns the real walls: network off and a read-only input by namespaces, a memory limit by a control group, cores
by affinity. Each is tried by doing it once; what the system does not allow is said, never pretended. Linux
only.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GROUP = "hourglass-rehearsal"
LEAVE_TRIES = 40  # of 50 ms


@dataclass(frozen=True, kw_only=True)
class Walls:
    """What is enforced for the kernel under rehearsal.

    prefix   command words put before the kernel's
    cores    CPU cores the kernel may use; empty = all
    group    control group folder, or None
    lines    one line per wall for people: enforced by what, or why not
    """

    prefix: tuple[str, ...]
    cores: tuple[int, ...]
    group: Path | None
    lines: tuple[str, ...]

    def enter(self) -> None:
        """Put the calling process onto its cores and into the control group (used between fork and exec)."""
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        if self.group is not None:
            (self.group / "cgroup.procs").write_text(str(os.getpid()))

    def leave(self) -> None:
        """Remove the control group once it is empty; one that does not empty is left to the system."""
        for _ in range(LEAVE_TRIES if self.group is not None else 0):
            try:
                self.group.rmdir()  # type: ignore[union-attr]
                return
            except FileNotFoundError:
                return
            except OSError:  # its last process is still ending
                time.sleep(0.05)


def _works(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _namespaces(read_only: Path) -> tuple[tuple[str, ...], list[str]]:
    """Command prefix for no network and a read-only input, and what it achieved."""
    unshare, shell = shutil.which("unshare"), shutil.which("sh")
    if not sys.platform.startswith("linux") or unshare is None or shell is None:
        return (), [
            "network: NOT cut off (no unshare on this system)",
            "input: not read-only (no unshare on this system)",
        ]
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    full = (unshare, "-Urmn", shell, "-c", script, str(read_only))
    if _works((*full, "true")):
        return full, ["network: off (own namespace)", "input: read-only (bind mount)"]
    if _works((unshare, "-Urn", "true")):
        return (unshare, "-Urn"), [
            "network: off (own namespace)",
            "input: not read-only (no mount namespace here)",
        ]
    refused = "(namespaces are not allowed here)"
    return (), [f"network: NOT cut off {refused}", f"input: not read-only {refused}"]


def _memory_group(ram_bytes: int) -> tuple[Path | None, str]:
    """A control group limited to `ram_bytes`, below our own; v2 first, then v1."""
    own = (
        {
            line.split(":")[1]: line.split(":", 2)[2]
            for line in Path("/proc/self/cgroup").read_text().splitlines()
        }
        if Path("/proc/self/cgroup").exists()
        else {}
    )
    places = [(Path("/sys/fs/cgroup") / own.get("", "/").lstrip("/"), "memory.max"),
              (Path("/sys/fs/cgroup/memory") / own.get("memory", "/").lstrip("/"), "memory.limit_in_bytes"),
              (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")]
    for parent, name in places:
        group = parent / f"{GROUP}-{os.getpid()}"
        if not (parent / "cgroup.procs").exists():  # not a control group: a plain folder would limit nothing
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(ram_bytes))
            return group, f"memory: limited by the system (control group, {ram_bytes / 1e9:.1f} GB)"
        except OSError:
            group.rmdir()
    return (
        None,
        "memory: NOT enforced by the system (no writable control group); the kernel's own meter has the cap",
    )


def _choose_cores(cores: int) -> tuple[tuple[int, ...], str]:
    """As many of our cores as the profile has."""
    own = sorted(os.sched_getaffinity(0))
    if len(own) < cores:
        return (), f"cores: {len(own)} here, {cores} at Kaggle"
    return tuple(own[:cores]), f"cores: {cores} of {len(own)}"


def build_walls(read_only: Path, ram_bytes: int, cores: int) -> Walls:
    """The strongest walls this machine allows."""
    prefix, lines = _namespaces(read_only)
    group, line = _memory_group(ram_bytes)
    chosen, words = _choose_cores(cores)
    return Walls(
        prefix=prefix,
        group=group,
        cores=chosen,
        lines=(
            *lines,
            line,
            words,
            "disk: the kernel's own cap on its spill files (no quota is set on this file system)",
        ),
    )
