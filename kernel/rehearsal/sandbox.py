"""The sandbox of a rehearsal: how close this machine can come to Kaggle's limits around the kernel.

Owns what is really enforced: network off and a read-only input by namespaces, a memory limit by a control
group, cores by affinity. Each is tried by doing it once; what the system does not allow is said, never
pretended. Owns the folder it all happens in, too. What a killed rehearsal leaves, the next one removes. Does
not start the kernel (command). Linux only.
"""
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

GROUP = "hourglass-rehearsal"
TREE = "rehearsal-"  # leads the name of the folder
OWNER = ".hourglass-rehearsal"  # in the folder: locked by the rehearsal while it lives
LEAVE_TRIES = 40  # of 50 ms
NO_GROUP = (
    "memory: NOT enforced by the system (no writable control group); the kernel's own meter has the cap"
)
NO_QUOTA = "disk: the kernel's own cap on its spill files (no quota is set on this file system)"


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """What is enforced for the kernel under rehearsal.

    prefix  command words put before the kernel's
    cores   CPU cores the kernel may use; empty = all
    group   control group folder, or None
    lines   one line per limit for people: enforced by what, or why not
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
        if self.group is None:
            return
        for _ in range(LEAVE_TRIES):
            try:
                self.group.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:  # its last process is still ending
                time.sleep(0.05)


@contextmanager
def private_tree(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` for one rehearsal; those of dead ones are removed first."""
    for owner in parent.glob(f"{TREE}*/{OWNER}"):
        with suppress(OSError), open(owner, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its rehearsal lives
            shutil.rmtree(owner.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=TREE, dir=parent) as name:
        with open(Path(name, OWNER), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Path(name)


def _works(command: Sequence[str]) -> bool:
    """True when the command can be started and ends well."""
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _namespaces(read_only: Path) -> tuple[tuple[str, ...], list[str]]:
    """Command prefix for no network and a read-only input, and what it achieved."""
    unshare = shutil.which("unshare")
    shell = shutil.which("sh")
    if unshare is None or shell is None:
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
    membership = Path("/proc/self/cgroup")
    lines = membership.read_text().splitlines() if membership.exists() else []
    own = {names: path.lstrip("/") for _, names, path in (line.split(":", 2) for line in lines)}
    places = [
        (Path("/sys/fs/cgroup") / own.get("", ""), "memory.max"),
        (Path("/sys/fs/cgroup/memory") / own.get("memory", ""), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    ]
    for parent, name in places:
        group = parent / f"{GROUP}-{os.getpid()}"
        if not (parent / "cgroup.procs").exists():  # not a control group: a plain folder would limit nothing
            continue
        for other in parent.glob(f"{GROUP}-*"):
            if not os.path.exists(f"/proc/{other.name.rpartition('-')[2]}"):
                with suppress(OSError):  # somebody runs in it all the same
                    other.rmdir()
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(ram_bytes))
            return group, f"memory: limited by the system (control group, {ram_bytes / 1e9:.1f} GB)"
        except OSError:
            group.rmdir()
    return None, NO_GROUP


def _choose_cores(cores: int) -> tuple[tuple[int, ...], str]:
    """As many of our cores as the profile has."""
    own = sorted(os.sched_getaffinity(0))
    if len(own) < cores:
        return (), f"cores: {len(own)} here, {cores} at Kaggle"
    return tuple(own[:cores]), f"cores: {cores} of {len(own)}"


def build_sandbox(read_only: Path, ram_bytes: int, cores: int) -> Sandbox:
    """The strongest sandbox this machine allows."""
    prefix, lines = _namespaces(read_only)
    group, memory = _memory_group(ram_bytes)
    chosen, words = _choose_cores(cores)
    return Sandbox(prefix=prefix, group=group, cores=chosen, lines=(*lines, memory, words, NO_QUOTA))
