"""The sandbox of a rehearsal: how close this machine can come to Kaggle's limits around the kernel.

Owns what is really enforced: network off, a read-only input and an empty home by namespaces, a memory limit
by a control group, cores by affinity. Each is tried by doing it once; what the system does not allow is said,
never pretended. Owns the folder it all happens in, too. What a killed rehearsal leaves, the next one removes.
Does not start the kernel (command). Linux only.
"""
import fcntl
import os
import pwd
import shutil
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..engine import outside

GROUP = "hourglass-rehearsal"
TREE = "rehearsal-"  # leads the name of the folder
ASKED = "outside.txt"  # in it: what the kernel asked for that Kaggle would not have
# Variables that lead libraries to files of this machine
CACHES = ("HF_HOME", "TORCH_HOME", "KERAS_HOME", "SENTENCE_TRANSFORMERS_HOME", "NLTK_DATA")
CACHE_ENDS = ("_CACHE", "_CACHE_DIR")
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


# Arguments: the input, the home, a folder beside it that holds it meanwhile, folders of the home that stay,
# --, folders that stay writable, --, the command. An empty home replaces the user's, with only what stays.
BESIDE = ("/mnt", "/media", "/srv", "/var/tmp", "/tmp")  # nobody else sees what is mounted there
HIDE = """
set -e
input=$0 home=$1 old=$2
shift 2
mount --bind "$input" "$input"
mount -o remount,bind,ro "$input"
mount --rbind "$home" "$old"
mount -t tmpfs -o size=1m,mode=755 none "$home"
while [ "$1" != -- ]; do
  mkdir -p "$1"
  mount --rbind "$old${1#"$home"}" "$1"
  shift
done
shift
umount -l "$old"
while [ "$1" != -- ]; do
  mount --rbind "$1" "$1"
  shift
done
shift
mount -o remount,bind,ro /
exec "$@"
"""


def hide_home(read_only: Path, writable: Sequence[Path], script: Path) -> tuple[str, ...]:
    """Command prefix with a read-only input, a home that is empty but for the environment and the folders of
    this rehearsal, and nothing else to be written to; () where this machine does not allow it.

    writable  the rehearsal's folders;  script: folder of the kernel
    """
    unshare, shell, home = shutil.which("unshare"), shutil.which("sh"), find_home()
    if unshare is None or shell is None or home is None:
        return ()
    old = next((path for path in map(Path, BESIDE) if path.is_dir() and not path.is_relative_to(home)), None)
    packages = [Path(place) for place in (sys.prefix, sys.base_prefix, *site.getsitepackages(),
                                          *outside.find_packages())]
    kept = [path for path in dict.fromkeys(path.resolve() for path in (*packages, script, *writable))
            if path.is_relative_to(home) and path.is_dir()]
    if home in kept or old is None:
        return ()
    scratch = map(Path, (tempfile.gettempdir(), "/tmp", "/var/tmp", "/kaggle/temp"))
    free = [str(path) for path in dict.fromkeys((*scratch, *writable)) if path.is_dir()]
    prefix = (unshare, "-Urmn", shell, "-c", HIDE, str(read_only), str(home), str(old), *map(str, kept), "--",
              *free, "--")
    return prefix if _works((*prefix, sys.executable, "-I", "-c", "import numpy, soundfile")) else ()


def make_environment(place: Path) -> dict[str, str]:
    """The kernel's environment: no cache and no home of this machine, and a log in `place` of what is asked
    for there.
    """
    (place / "home").mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items()
            if name not in CACHES and not name.startswith("XDG_") and not name.endswith(CACHE_ENDS)}
    return kept | {"HOME": str(place / "home"), outside.HOME: str(find_home() or ""),
                   outside.LOG: str(place / ASKED)}


def read_outside(place: Path) -> list[str]:
    """What the kernel asked for that Kaggle would not have, in the order in which it did."""
    try:
        lines = (place / ASKED).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return list(dict.fromkeys(lines))


def find_home() -> Path | None:
    """The user's home, if it is a folder that can be hidden."""
    try:
        home = Path(pwd.getpwuid(os.getuid()).pw_dir).resolve()
    except KeyError:  # a container's user without a name
        home = Path(os.environ.get("HOME", "/")).resolve()
    return home if home.is_dir() and len(home.parts) > 1 else None


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


def build_sandbox(
    read_only: Path, ram_bytes: int, cores: int, writable: Sequence[Path] = (), script: Path | None = None
) -> Sandbox:
    """The strongest sandbox this machine allows.

    writable  folders that the kernel writes to, beside those for temporary files
    script    folder of the kernel; None: the home is not hidden
    """
    prefix = hide_home(read_only, writable, script) if script is not None else ()
    if prefix:
        lines = ["network: off (own namespace)", "input: read-only (bind mount)",
                 f"home: {find_home()} is empty", "elsewhere: read-only"]
    else:
        prefix, lines = _namespaces(read_only)
        lines += ["home: not hidden here, but HOME is empty; what Python opens there is refused and named"]
    group, memory = _memory_group(ram_bytes)
    chosen, words = _choose_cores(cores)
    return Sandbox(prefix=prefix, group=group, cores=chosen, lines=(*lines, memory, words, NO_QUOTA))
