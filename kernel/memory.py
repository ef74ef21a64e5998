"""How much memory is in use, against every bound that can stop this process: cgroup v2 and v1, the host, a
configured cap.

Owns the reading of the container's memory files and the formulas over them. Does not decide what happens when
a bound is near (the store's and the plan's work) and holds no competition's figures (`kernel.limits`, which
also prints this).
"""
import dataclasses
import math
import os
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NO_LIMIT = 2**60  # a cgroup v1 without a limit shows a number near 2^63
RAM_MARK = 0.95  # share of a limit up to which the store fills memory; above it entries leave
DEGRADED_SHARE = 0.9  # a limit read from a second source is lowered by 10 %
CHILDREN_SECONDS = 1.0  # how long a list of child processes is believed


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One look at memory: the bound that will be reached first.

    limit_bytes  its limit, already lowered by 10 % if a source is degraded
    used_bytes   what counts against it: reclaimable page cache excluded, shared memory included
    source       which bound, e.g. "cgroup v2 /sys/fs/cgroup"
    degraded     sources that should have answered and did not, by name and reason
    """

    limit_bytes: int
    used_bytes: int
    source: str
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bound:
    """One limit with what counts against it, in bytes."""

    source: str
    limit: int
    used: int


@dataclass(frozen=True)
class Level:
    """One cgroup folder on the way from our own up to the mount's root."""

    version: int
    folder: str

    @property
    def name(self) -> str:
        return f"cgroup v{self.version} {self.folder}"


# Per cgroup version: the files of its limits, the file of its usage, and the keys of memory.stat that change
# the usage: pages that the system can drop count less, pages that it must first write count more.
LIMIT_FILES = {2: ("memory.max", "memory.high"), 1: ("memory.limit_in_bytes",)}
USAGE_FILE = {2: "memory.current", 1: "memory.usage_in_bytes"}
STAT_SIGN = {
    2: {b"inactive_file": -1, b"active_file": -1, b"file_dirty": 1, b"file_writeback": 1},
    1: {b"total_inactive_file": -1, b"total_active_file": -1, b"total_dirty": 1, b"total_writeback": 1},
}
Fault = Callable[[str, Exception], None]


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _stat_sum(text: bytes, signs: dict[bytes, int]) -> int:
    """Signed sum of some keys of a memory.stat; ValueError when none of them is there."""
    pairs = (line.partition(b" ") for line in text.split(b"\n"))
    found = [signs[key] * int(value) for key, _, value in pairs if key in signs]
    if not found:
        raise ValueError("no known key")
    return sum(found)


def find_levels(root: Path) -> tuple[Level, ...]:
    """The memory cgroups of this process, own group first, for cgroup v2 and v1; () where there are none."""

    def text(name: str) -> str:
        try:
            return _read(str(root / name)).decode("utf-8", "surrogateescape")
        except OSError:
            return ""  # no such file system here: the other sources answer

    own = {}
    for line in text("proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            own[2] = path
        elif "memory" in names.split(","):
            own[1] = path
    mounts = [(2, "/", "/sys/fs/cgroup"), (1, "/", "/sys/fs/cgroup/memory")]
    for line in text("proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        kind = right.split()
        if len(fields) <= 4 or not kind:
            continue
        if kind[0] == "cgroup2":
            mounts.append((2, fields[3], fields[4]))
        elif kind[0] == "cgroup" and "memory" in kind[-1].split(","):
            mounts.append((1, fields[3], fields[4]))
    levels: dict[str, Level] = {}
    for version, inside, point in mounts:
        path = own.get(version, "/")
        base = str(root / point.lstrip("/"))
        # A mount may show only a branch of the tree: the path starts there
        if inside != "/" and (path + "/").startswith(inside + "/"):
            path = path.removeprefix(inside)
        at = os.path.normpath(base + "/" + path)
        while at.startswith(base):
            if any(os.path.exists(f"{at}/{name}") for name in (*LIMIT_FILES[version], USAGE_FILE[version])):
                levels.setdefault(at, Level(version, at))
            at = os.path.dirname(at)
    return tuple(levels.values())


def _psutil_memory() -> tuple[int, int]:
    """(total, used) bytes of the host by psutil."""
    import psutil

    try:
        found = psutil.virtual_memory()
    except psutil.Error as error:
        raise OSError(f"psutil: {error}") from error
    return int(found.total), int(found.total - found.available)


class Meter:
    """Memory in use against every bound; safe to call from any thread, about 0.2 ms a read.

    root       where /proc and /sys lie (tests give a made-up tree)
    cap_bytes  configured limit; counted against our own process tree unless a cgroup is at least as tight
    host       second source of (total, used) bytes of the host, after /proc/meminfo
    beside_bytes  what counts against `cap_bytes` beside our own process tree: the guard that started us

    Source: formulas of Ray (#42508, #43071: page cache is no pressure), the walk of DuckDB and ComfyUI (every
    parent counts), JDK-8292083 (a limit above MemTotal is none).
    """

    def __init__(
        self,
        root: Path = Path("/"),
        cap_bytes: int | None = None,
        host: Callable[[], tuple[int, int]] = _psutil_memory,
        beside_bytes: int = 0,
    ) -> None:
        self.cap_bytes = cap_bytes
        self.beside_bytes = beside_bytes
        self.levels = find_levels(root)
        self._host = host
        self._proc = str(root / "proc")
        self._lock = threading.Lock()
        self._limits: dict[str, int] = {}  # last good limit of each level: a limit once seen is kept
        self._children: tuple[float, tuple[str, ...]] = (-math.inf, ())
        self._last = Reading(
            limit_bytes=cap_bytes or NO_LIMIT,
            used_bytes=0,
            source="nothing",
            degraded=("no source answered",),
        )
        self.peak_bytes = 0  # most memory of our own process tree seen by any read of it

    def limit(self) -> Reading:
        """The smallest limit (not the bound that is nearest to being reached) and what counts against it."""
        bounds, degraded = self.bounds()
        return _reading(min(bounds, key=lambda b: b.limit), degraded) if bounds else self._last

    def read(self) -> Reading:
        """The bound with the least room below the mark.

        Never raises: if every source fails, the last good reading is given again, named as degraded.
        """
        bounds, degraded = self.bounds()
        if not bounds:
            return dataclasses.replace(self._last, degraded=tuple(degraded) or self._last.degraded)
        self._last = _reading(min(bounds, key=lambda b: RAM_MARK * b.limit - b.used), degraded)
        return self._last

    def bounds(self) -> tuple[list[Bound], list[str]]:
        """Every bound in force, and the sources that failed."""
        degraded: list[str] = []

        def fault(source: str, error: Exception) -> None:
            degraded.append(f"{source}: {getattr(error, 'strerror', None) or error}")

        host = self._read_host(fault)
        found = [bound for level in self.levels if (bound := self._read_level(level, fault)) is not None]
        if host is not None:  # a limit above the host's memory is none
            found = [bound for bound in found if bound.limit <= host.limit] + [host]
        if self.cap_bytes is not None and all(bound.limit > self.cap_bytes for bound in found):
            used = self.own_bytes() + self.beside_bytes
            found.append(Bound("configured cap, own processes", self.cap_bytes, used))
        return found, degraded

    def own_bytes(self) -> int:
        """Resident bytes of this process and its children (pages mapped from files counted once, for this
        process).
        """
        page = os.sysconf("SC_PAGE_SIZE")
        total = 0
        for pid in ("self", *self._child_pids()):
            try:
                fields = _read(f"{self._proc}/{pid}/statm").split()
                total += page * (int(fields[1]) - (int(fields[2]) if pid != "self" else 0))
            except (OSError, ValueError, IndexError):
                if pid == "self":  # no /proc: at least our own peak, in units of 1,024 bytes
                    total += 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.peak_bytes = max(self.peak_bytes, total)
        return total

    def _child_pids(self) -> tuple[str, ...]:
        with self._lock:
            if time.monotonic() - self._children[0] > CHILDREN_SECONDS:
                self._children = (time.monotonic(), tuple(_descendants(self._proc, "self")))
            return self._children[1]

    def _read_level(self, level: Level, fault: Fault) -> Bound | None:
        """The bound of one cgroup, or None where it has no limit."""
        found: list[int] = []
        for file in LIMIT_FILES[level.version]:
            try:
                text = _read(f"{level.folder}/{file}").strip()
                found.append(NO_LIMIT if text == b"max" else int(text))
            except FileNotFoundError as error:
                if level.folder in self._limits and file != "memory.high":
                    fault(f"{level.name}/{file}", error)
            except (OSError, ValueError) as error:
                fault(f"{level.name}/{file}", error)
        limit = min((n for n in found if n > 0), default=self._limits.get(level.folder, NO_LIMIT))
        if found:
            self._limits[level.folder] = limit
        if limit >= NO_LIMIT:
            return None
        return Bound(level.name, limit, self._read_usage(level, fault))

    def _read_usage(self, level: Level, fault: Fault) -> int:
        """Bytes that count against one cgroup: usage less clean page cache, dirty pages added back."""
        file = USAGE_FILE[level.version]
        try:
            used = int(_read(f"{level.folder}/{file}"))
        except (OSError, ValueError) as error:
            fault(f"{level.name}/{file}", error)
            return self.own_bytes()  # the limit stays in force; our own memory is the best remaining estimate
        try:
            change = _stat_sum(_read(f"{level.folder}/memory.stat"), STAT_SIGN[level.version])
            return max(0, min(used, used + change))
        except (OSError, ValueError) as error:
            fault(f"{level.name}/memory.stat", error)
            return used

    def _read_host(self, fault: Fault) -> Bound | None:
        """The host's bound, by /proc/meminfo, else by psutil; shared memory counts as used."""
        try:
            lines = _read(f"{self._proc}/meminfo").split(b"\n")
            found = {
                key: int(rest.split()[0]) * 1024
                for key, _, rest in (line.partition(b":") for line in lines[:8])
                if rest
            }
            return Bound("/proc/meminfo", found[b"MemTotal"], found[b"MemTotal"] - found[b"MemAvailable"])
        except (OSError, ValueError, KeyError, IndexError) as error:
            fault("/proc/meminfo", error)
        try:
            return Bound("psutil", *self._host())
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            fault("psutil", error)
            return None


def _reading(bound: Bound, degraded: list[str]) -> Reading:
    share = DEGRADED_SHARE if degraded else 1.0
    return Reading(
        limit_bytes=int(share * bound.limit),
        used_bytes=bound.used,
        source=bound.source,
        degraded=tuple(degraded),
    )


def peak_resident(pid: int, proc: str = "/proc") -> int:
    """Most bytes that one process ever had resident; 0 where the system does not say."""
    try:
        lines = _read(f"{proc}/{pid}/status").split(b"\n")
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"VmHWM:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0


def _descendants(proc: str, pid: str) -> list[str]:
    """Process ids below `pid`, by the kernel's list of children; [] where the kernel keeps none."""
    found: list[str] = []
    try:
        for task in os.listdir(f"{proc}/{pid}/task"):
            for child in _read(f"{proc}/{pid}/task/{task}/children").decode().split():
                found += [child, *_descendants(proc, child)]
    except OSError:
        return found  # a process or thread that has just ended
    return found
