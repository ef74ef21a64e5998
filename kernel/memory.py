"""How much memory is in use against every wall that can stop this process: cgroup v2 and v1, the host, a
configured cap.

Owns the reading of the container's memory files and the formulas over them. Does not decide what happens when
a wall is near (the store's and the plan's work) and holds no competition's figures (`kernel.limits`, which
also prints this).
"""
from __future__ import annotations

import dataclasses
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NO_LIMIT = 2**60  # a cgroup v1 without a limit shows a number near 2^63
SPILL_MARK = 0.95  # share of the limit up to which the store uses memory
DEGRADED_SHARE = 0.9  # a limit read from a second source is lowered by 10 %
CHILDREN_SECONDS = 1.0  # how long a list of child processes is believed


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One look at memory: the wall that will be reached first.

    limit_bytes    size of that wall, already lowered by 10 % if a source is degraded
    used_bytes     what counts against it: reclaimable page cache excluded, shared memory included
    source         which wall, e.g. "cgroup v2 /sys/fs/cgroup/memory.max"
    degraded       sources that should have answered and did not, by name and reason
    pressure       the largest share of any wall in use, 0..1 and above
    """

    limit_bytes: int
    used_bytes: int
    source: str
    degraded: tuple[str, ...] = ()
    pressure: float = 0.0


@dataclass(frozen=True)
class Wall:
    """One limit with what counts against it, in bytes."""

    source: str
    limit: int
    used: int


@dataclass(frozen=True)
class Level:
    """One cgroup folder on the way from our own up to the mount's root."""

    version: int
    folder: str


# Per cgroup version: limit files, usage file, and the keys of memory.stat that the kernel can drop or must
# first write.
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
    total, seen = 0, 0
    for line in text.split(b"\n"):
        key, _, value = line.partition(b" ")
        if key in signs:
            total, seen = total + signs[key] * int(value), seen + 1
    if not seen:
        raise ValueError("no known key")
    return total


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
        fields, kind = left.split(), right.split()
        if (
            len(fields) > 4
            and kind
            and (kind[0] == "cgroup2" or (kind[0] == "cgroup" and "memory" in kind[-1].split(",")))
        ):
            mounts.append((2 if kind[0] == "cgroup2" else 1, fields[3], fields[4]))
    levels: dict[str, Level] = {}
    for version, inside, point in mounts:
        path = own.get(version, "/")
        base = str(root / point.lstrip("/"))
        # the mount shows only a branch of the tree
        if inside != "/" and (path + "/").startswith(inside + "/"):
            path = path[len(inside):]
        at = os.path.normpath(base + "/" + path)
        while at.startswith(base):
            if any(os.path.exists(f"{at}/{name}") for name in (*LIMIT_FILES[version], USAGE_FILE[version])):
                levels.setdefault(at, Level(version, at))
            at = os.path.dirname(at)
    return tuple(levels.values())


def _psutil_memory() -> tuple[int, int]:
    """(total, used) bytes of the host by psutil."""
    import psutil

    found = psutil.virtual_memory()
    return int(found.total), int(found.total - found.available)


class Meter:
    """Memory in use against every wall that can stop this process; safe to call from any thread, about 0.2 ms
    a read.

    root       where /proc and /sys lie (tests give a made-up tree)
    cap_bytes  configured limit; counted against our own process tree unless a cgroup is at least as tight
    host       second source of (total, used) bytes of the host, after /proc/meminfo

    Source: formulas of Ray (#42508, #43071: page cache is no pressure), the walk of DuckDB and ComfyUI (every
    parent counts), JDK-8292083 (a limit above MemTotal is none).
    """

    def __init__(self, root: Path = Path("/"), cap_bytes: int | None = None,
                 host: Callable[[], tuple[int, int]] = _psutil_memory):
        self.root, self.cap_bytes, self._host = Path(root), cap_bytes, host
        self.levels = find_levels(self.root)
        self._proc = str(self.root / "proc")
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
        """The smallest limit (not the wall nearest to being reached) and what counts against it."""
        walls, degraded = self.walls()
        return self._reading(min(walls, key=lambda w: w.limit), walls, degraded) if walls else self._last

    def read(self) -> Reading:
        """The wall with the least room below the spill mark.

        Never raises: if every source fails, the last good reading is given again, named as degraded.
        """
        walls, degraded = self.walls()
        if not walls:
            return dataclasses.replace(self._last, degraded=tuple(degraded) or self._last.degraded)
        tightest = min(walls, key=lambda w: SPILL_MARK * w.limit - w.used)
        self._last = self._reading(tightest, walls, degraded)
        return self._last

    def fraction(self) -> float:
        """Pressure: the largest used / limit over cgroups, host and own cap."""
        return self.read().pressure

    def walls(self) -> tuple[list[Wall], list[str]]:
        """Every wall in force, and the sources that failed."""
        degraded: list[str] = []

        def fault(source: str, error: Exception) -> None:
            degraded.append(f"{source}: {getattr(error, 'strerror', None) or error}")

        host = self._read_host(fault)
        walls = [w for w in (self._read_level(level, fault) for level in self.levels) if w is not None]
        walls = [w for w in walls if host is None or w.limit <= host.limit] + ([host] if host else [])
        if self.cap_bytes is not None and all(w.limit > self.cap_bytes for w in walls):
            walls.append(Wall("configured cap, own processes", self.cap_bytes, self.own_bytes()))
        return walls, degraded

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
                if pid == "self":
                    import psutil

                    total += psutil.Process().memory_info().rss
        self.peak_bytes = max(self.peak_bytes, total)
        return total

    def _child_pids(self) -> tuple[str, ...]:
        with self._lock:
            if time.monotonic() - self._children[0] > CHILDREN_SECONDS:
                self._children = (time.monotonic(), tuple(_descendants(self._proc, "self")))
            return self._children[1]

    def _reading(self, wall: Wall, walls: list[Wall], degraded: list[str]) -> Reading:
        share = DEGRADED_SHARE if degraded else 1.0
        pressure = max(w.used / max(1.0, share * w.limit) for w in walls)
        return Reading(limit_bytes=int(share * wall.limit), used_bytes=wall.used, source=wall.source,
                       degraded=tuple(degraded), pressure=pressure)

    def _read_level(self, level: Level, fault: Fault) -> Wall | None:
        """The wall of one cgroup, or None where it has no limit."""
        name = f"cgroup v{level.version} {level.folder}"
        found: list[int] = []
        for file in LIMIT_FILES[level.version]:
            try:
                text = _read(f"{level.folder}/{file}").strip()
                found.append(NO_LIMIT if text == b"max" else int(text))
            except FileNotFoundError as error:
                if level.folder in self._limits and file != "memory.high":
                    fault(f"{name}/{file}", error)
            except (OSError, ValueError) as error:
                fault(f"{name}/{file}", error)
        limit = min((n for n in found if n > 0), default=self._limits.get(level.folder, NO_LIMIT))
        if found:
            self._limits[level.folder] = limit
        if limit >= NO_LIMIT:
            return None
        return Wall(name, limit, self._read_usage(level, name, fault))

    def _read_usage(self, level: Level, name: str, fault: Fault) -> int:
        """Bytes that count against one cgroup: usage less clean page cache, dirty pages added back."""
        file = USAGE_FILE[level.version]
        try:
            used = int(_read(f"{level.folder}/{file}"))
        except (OSError, ValueError) as error:
            fault(f"{name}/{file}", error)
            return self.own_bytes()  # the limit stays in force; our own memory is the best remaining estimate
        try:
            return max(
                0, min(used, used + _stat_sum(_read(f"{level.folder}/memory.stat"), STAT_SIGN[level.version]))
            )
        except (OSError, ValueError) as error:
            fault(f"{name}/memory.stat", error)
            return used

    def _read_host(self, fault: Fault) -> Wall | None:
        """The host's wall: MemTotal less MemAvailable (shared memory counts as used), else psutil's
        figures.
        """
        try:
            lines = _read(f"{self._proc}/meminfo").split(b"\n")
            found = {
                key: int(rest.split()[0]) * 1024
                for key, _, rest in (line.partition(b":") for line in lines[:8])
                if rest
            }
            return Wall("/proc/meminfo", found[b"MemTotal"], found[b"MemTotal"] - found[b"MemAvailable"])
        except (OSError, ValueError, KeyError, IndexError) as error:
            fault("/proc/meminfo", error)
        try:
            return Wall("psutil", *self._host())
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            fault("psutil", error)
            return None


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
