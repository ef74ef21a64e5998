"""What the machine allows: named limits, the clock, the deadline marks, and the memory meter.

Owns the numbers of each competition's limits and the formulas of the deadline; the meter itself is in
`kernel.memory`. Does not decide what happens when a limit is near: that is the store's and the plan's work.
`python -m kernel.limits` prints what this machine shows and where each number comes from.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LimitError, did_you_mean
from .files import free_disk
from .memory import Meter, Reading
from .units import GB

__all__ = ["PROFILES", "Clock", "Limits", "Marks", "Meter", "Reading", "limits", "marks"]

# Source: FAT2019 rules (GPU kernel, 1 h, 14 GB, 5 GB output, 2 cores); kaggle.com/docs/notebooks and the
# BirdCLEF 2025 rules
# (CPU 90 min) for the others, where memory is reported as 29-30 GB: the lower figure is taken.
PROFILES: dict[str, dict[str, Any]] = {
    "fat2019": {"seconds": 3600.0, "ram_bytes": 14 * GB, "disk_bytes": 5 * GB, "cores": 2, "gpu": True},
    "code-gpu": {"seconds": 9 * 3600.0, "ram_bytes": 29 * GB, "disk_bytes": 20 * GB, "cores": 4, "gpu": True},
    "code-cpu": {
        "seconds": 12 * 3600.0,
        "ram_bytes": 29 * GB,
        "disk_bytes": 20 * GB,
        "cores": 4,
        "gpu": False,
    },
    "birdclef-cpu90": {
        "seconds": 5400.0,
        "ram_bytes": 29 * GB,
        "disk_bytes": 20 * GB,
        "cores": 4,
        "gpu": False,
    },
}
@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one run may use: wall seconds, RAM and disk in bytes, CPU cores, and whether the profile has a
    GPU.
    """

    name: str
    seconds: float
    ram_bytes: int
    disk_bytes: int
    cores: int
    gpu: bool


def limits(
    profile: str, seconds: float | None = None, ram_bytes: int | None = None, disk_bytes: int | None = None
) -> Limits:
    """Limits of a named profile, with single values replaced.

    seconds may be 0 or negative: such a run leaves the prior submission (see `marks`).

    Raises  LimitError for an unknown profile, a time that is no number, or no memory
    """
    if profile not in PROFILES:
        raise LimitError(f"limits profile {profile!r} is unknown; {did_you_mean(profile, PROFILES)}")
    given = {"seconds": seconds, "ram_bytes": ram_bytes, "disk_bytes": disk_bytes}
    values = PROFILES[profile] | {key: value for key, value in given.items() if value is not None}
    if not math.isfinite(values["seconds"]):
        raise LimitError(f"seconds: {values['seconds']} is not a time; give the budget in seconds, e.g. 3600")
    if values["ram_bytes"] <= 0 or values["disk_bytes"] < 0:
        raise LimitError(
            f"ram {values['ram_bytes']}, disk {values['disk_bytes']} bytes: RAM must be above 0, disk not below 0"
        )
    return Limits(name=profile, **values)


class Clock:
    """Seconds since a start, blind to changes of the wall clock.

    started   time.monotonic() of the start (the guard's, in the engine); None = now
    offset_s  seconds that had gone before `started` (container start-up)
    now       clock to read, for tests; boot: a second clock that also counts suspended time (default:
              CLOCK_BOOTTIME)
    """

    def __init__(
        self,
        started: float | None = None,
        offset_s: float = 0.0,
        now: Callable[[], float] = time.monotonic,
        boot: Callable[[], float] | None = None,
    ):
        self._now, self._boot, self.offset_s = now, boot, offset_s
        if boot is None and now is time.monotonic and hasattr(time, "CLOCK_BOOTTIME"):
            self._boot = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
        at = now()
        self.started = at if started is None else started
        self._boot_started = self._boot() - (at - self.started) if self._boot else 0.0

    def elapsed(self) -> float:
        """Seconds since the start: the larger of the two clocks' answers, plus the offset."""
        passed = self._now() - self.started
        if self._boot:
            passed = max(passed, self._boot() - self._boot_started)
        return self.offset_s + passed

    def remaining(self, budget_s: float) -> float:
        """Seconds left of a budget; 0.0 and less mean expired."""
        return budget_s - self.elapsed()

    def expired(self, budget_s: float) -> bool:
        """True once nothing is left; exactly 0.0 left is expired."""
        return self.remaining(budget_s) <= 0.0


@dataclass(frozen=True, kw_only=True)
class Marks:
    """When what happens, in seconds since the start (all 0.0 when only the prior fits).

    stop_s      no new step; the engine publishes and leaves
    term_s      the guard sends SIGTERM;  kill_s: SIGKILL;  exit_s: the latest exit of the guard
    hung_*      no progress for min(max(hung_least_s, hung_factor x forecast), hung_most_s) = hung
    prior_only  the budget is too small to start the engine
    """

    budget_s: float
    stop_s: float
    term_s: float
    kill_s: float
    exit_s: float
    hung_least_s: float
    hung_factor: float
    hung_most_s: float
    prior_only: bool

    def hung_s(self, forecast_s: float) -> float:
        """Seconds without progress after which a step with this forecast counts as hung."""
        return min(max(self.hung_least_s, self.hung_factor * forecast_s), self.hung_most_s)


def marks(budget_s: float) -> Marks:
    """Marks of a budget in seconds; a budget below 3 s, or no number, leaves time for the prior only."""
    b = budget_s if math.isfinite(budget_s) else 0.0
    b = max(0.0, b)
    margin = max(0.05 * b, min(180.0, 0.25 * b))
    stop = b - margin
    term = stop + margin / 4
    kill = term + min(5.0, 0.03 * b)
    return Marks(budget_s=b, stop_s=stop, term_s=term, kill_s=kill, exit_s=b - min(90.0, 0.10 * b),
                 hung_least_s=30.0, hung_factor=4.0, hung_most_s=0.25 * b, prior_only=b < 3.0)


def main() -> None:
    """Print every source of memory and time limits on this machine."""
    meter = Meter()
    walls, degraded = meter.walls()
    print(f"{'source':<64} {'limit':>9} {'used':>9}  share")
    for wall in walls:
        print(
            f"{wall.source:<64} {wall.limit / GB:6.2f} GB {wall.used / GB:6.2f} GB {wall.used / max(1, wall.limit):6.1%}"
        )
    walled = {wall.source for wall in walls}
    for level in meter.levels:
        if f"cgroup v{level.version} {level.folder}" not in walled:
            print(f"{f'cgroup v{level.version} {level.folder}':<64} no limit")
    print("\n".join(f"degraded: {text}" for text in degraded) or "no source is degraded")
    reading = meter.read()
    begun = time.perf_counter()
    for _ in range(100):
        meter.read()
    cost_ms = 10 * (time.perf_counter() - begun)
    print(
        f"first wall: {reading.source}; own processes {meter.own_bytes() / GB:.2f} GB; one read {cost_ms:.2f} ms"
    )
    print(f"free disk here: {free_disk(Path.cwd()) / GB:.1f} GB")


if __name__ == "__main__":
    main()
