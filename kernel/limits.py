"""What a run is allowed: the named limits of each competition, the clock, and the marks of the deadline.

Owns these numbers and formulas; how much memory is in use is measured by `kernel.memory`. Does not decide
what happens when a limit is near: that is the store's and the plan's work. `python -m kernel.limits` prints
what this machine shows and where each number comes from.
"""
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LimitError, did_you_mean
from .files import free_disk
from .memory import Meter
from .units import GB

__all__ = ["PROFILES", "Clock", "Limits", "Marks", "Meter", "limits", "marks"]

# Source: FAT2019 rules (GPU kernel, 1 h, 14 GB, 5 GB output, 2 cores). For others, kaggle.com/docs: 4 cores,
# 30 GB without and 29 GB beside two T4, of which the lower figure is taken; the rules of code competitions:
# mostly 9 h, while a session ends after 12 h, which is `--seconds 43200`; BirdCLEF 2025: CPU, 90 min.
PROFILES: dict[str, dict[str, Any]] = {
    "fat2019": {"seconds": 3600.0, "ram_bytes": 14 * GB, "disk_bytes": 5 * GB, "cores": 2, "gpu": True},
    "code-gpu": {"seconds": 9 * 3600.0, "ram_bytes": 29 * GB, "disk_bytes": 20 * GB, "cores": 4, "gpu": True},
    "code-cpu": {
        "seconds": 9 * 3600.0,
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
    """What one run may use: seconds, RAM and disk in bytes, CPU cores, and whether there is a GPU."""

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
        sizes = f"ram {values['ram_bytes']}, disk {values['disk_bytes']} bytes"
        raise LimitError(f"{sizes}: RAM must be above 0, disk not below 0")
    return Limits(name=profile, **values)


@dataclass(frozen=True)
class Clock:
    """Seconds since the guard's first line: the one clock of guard and engine.

    A change of the wall clock does not move it; time in which the whole machine was suspended counts, because
    the boot-time clock goes on then while the monotonic one stands still.

    started, started_boot  the guard's start by the monotonic and by the boot-time clock
    offset_s               seconds that had gone before that start (the container's own)
    """

    started: float
    started_boot: float
    offset_s: float = 0.0

    def elapsed(self) -> float:
        """Seconds since the start: the larger of the two clocks' answers, plus the offset."""
        awake = time.monotonic() - self.started
        with_sleep = time.clock_gettime(time.CLOCK_BOOTTIME) - self.started_boot
        return self.offset_s + max(awake, with_sleep)


@dataclass(frozen=True, kw_only=True)
class Marks:
    """When what happens, in seconds since the start (all 0.0 when only the prior fits).

    stop_s          no new step; the engine publishes and leaves
    term_s, kill_s  the guard sends SIGTERM, then SIGKILL
    exit_s          the guard has left by then
    hung_*          the engine counts as hung after min(max(hung_least_s, hung_factor x forecast),
                    hung_most_s) without progress
    prior_only      the budget is too small to start the engine
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


def marks(budget_s: float) -> Marks:
    """Marks of a budget in seconds; a budget below 3 s, or no number, leaves time for the prior only."""
    budget = max(0.0, budget_s) if math.isfinite(budget_s) else 0.0
    margin = max(0.05 * budget, min(180.0, 0.25 * budget))
    stop = budget - margin
    term = stop + margin / 4
    return Marks(
        budget_s=budget,
        stop_s=stop,
        term_s=term,
        kill_s=term + min(5.0, 0.03 * budget),
        exit_s=budget - min(90.0, 0.10 * budget),
        hung_least_s=30.0,
        hung_factor=4.0,
        hung_most_s=0.25 * budget,
        prior_only=budget < 3.0,
    )


def main() -> None:
    """Print every source of memory and time limits on this machine."""
    meter = Meter()
    bounds, degraded = meter.bounds()
    print(f"{'source':<64} {'limit':>9} {'used':>9}  share")
    for bound in bounds:
        share = bound.used / max(1, bound.limit)
        print(f"{bound.source:<64} {bound.limit / GB:6.2f} GB {bound.used / GB:6.2f} GB {share:6.1%}")
    limited = {bound.source for bound in bounds}
    for level in meter.levels:
        if level.name not in limited:
            print(f"{level.name:<64} no limit")
    print("\n".join(f"degraded: {text}" for text in degraded) or "no source is degraded")
    reading = meter.read()
    begun = time.perf_counter()
    for _ in range(100):
        meter.read()
    cost_ms = 10 * (time.perf_counter() - begun)
    print(
        f"first bound: {reading.source}; own processes {meter.own_bytes() / GB:.2f} GB; "
        f"one read {cost_ms:.2f} ms"
    )
    print(f"free disk here: {free_disk(Path.cwd()) / GB:.1f} GB")


if __name__ == "__main__":
    main()
