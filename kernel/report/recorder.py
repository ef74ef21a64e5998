"""What happened, as data and as text: what report.json is made of, and the table at the end.

Owns the `Recorder` (faults, stages, memory timeline of one run) and the text table.
Does not draw (report_page), tell how far a run is (progress) or decide: no fault passes without a line here.
"""
from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import HourglassError
from ..units import gigabytes, seconds_text

MAX_LISTED = 200  # faults of one code listed one by one; the rest is counted
MAX_TIMELINE = 2000  # samples kept; the interval doubles when they are reached


@dataclass(kw_only=True)
class Recorder:
    """Collects what the report tells. Thread-safe.

    started  monotonic seconds of the guard's start: all times are seconds since then
    """

    started: float
    faults: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    stages: list[dict[str, Any]] = field(default_factory=list)
    timeline: list[dict[str, float]] = field(default_factory=list)
    publications: list[float] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    _interval_s: float = 0.25
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def now(self) -> float:
        return time.monotonic() - self.started

    def fault(self, code: str, where: str, message: str) -> None:
        """Record a fault: `where` is a row id, a net id, a path or a device."""
        with self._lock:
            self.counts[code] += 1
            if self.counts[code] <= MAX_LISTED:
                self.faults.append(
                    {"t": round(self.now(), 2), "code": code, "where": where, "message": message}
                )

    def error(self, where: str, error: BaseException) -> None:
        """Record an exception as a fault under its class name."""
        code = error.code if isinstance(error, HourglassError) else type(error).__name__
        self.fault(code, where, str(error))

    def note(self, row_id: str, text: str) -> None:
        """Record a remark on one row (salvaged, shortened): once, however often the clip is decoded."""
        with self._lock:
            known = self.notes.setdefault(row_id, [])
            if text not in known:
                known.append(text)

    @contextmanager
    def stage(self, name: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Record how long a stage took; the yielded dict takes further facts."""
        entry: dict[str, Any] = {"name": name, "start_s": round(self.now(), 3), **facts}
        try:
            yield entry
        finally:
            entry["end_s"] = round(self.now(), 3)
            with self._lock:
                self.stages.append(entry)

    def snapshot(self) -> dict[str, Any]:
        """Copies of everything recorded, so that threads may go on recording while a report is written."""
        with self._lock:
            return {
                "stages": list(self.stages),
                "timeline": list(self.timeline),
                "publications": list(self.publications),
                "clip_notes": {row: list(texts) for row, texts in self.notes.items()},
                "faults": list(self.faults),
                "fault_counts": dict(self.counts),
            }

    def sample(self, **values: float) -> None:
        """Add a point to the memory timeline, thinning it when it grows long."""
        with self._lock:
            t = self.now()
            if self.timeline and t - self.timeline[-1]["t"] < self._interval_s:
                return
            self.timeline.append({"t": round(t, 3), **values})
            if len(self.timeline) > MAX_TIMELINE:
                self.timeline, self._interval_s = self.timeline[::2], 2 * self._interval_s


def say(text: str) -> None:
    """Print for whoever still reads: a closed pipe or terminal is no reason to end a run."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open for the life of the process)


def table(report: dict[str, Any]) -> str:
    """The report for people: what ran, what it cost, what went wrong."""
    limits, store = report["limits"], report["store"]
    lines = [
        f"rows {report['rows']}: {report['rows'] - report['prior_rows']} predicted, {report['partial_rows']} of them by a part "
        f"of the ensemble, {report['prior_rows']} prior",
        f"time {seconds_text(report['wall_s'])} of {seconds_text(limits['seconds'])} | "
        f"peak RAM {gigabytes(report['peak_ram_bytes'])} of {gigabytes(limits['ram_bytes'])} | "
        f"peak spill {gigabytes(store.get('disk_peak_bytes', 0))} of {gigabytes(limits['disk_bytes'])}",
        f"device {report['device']['about']} | {report['device'].get('path', '')}",
        f"{'member':<28}{'nets':>5}{'rows':>8}{'seconds':>10}{'weight':>8}",
    ]
    lines += [
        f"{m['name']:<28}{m['nets_done']:>2}/{len(m['nets']):<2}{m['rows']:>8}{m['seconds']:>10.1f}{m['weight']:>8.2f}"
        for m in report["members"]
    ]
    hits = store.get("hits", {})
    lines.append(
        "store "
        + ", ".join(f"{tier} {count} hits" for tier, count in hits.items())
        + f" | RAM {gigabytes(store.get('ram_bytes', 0))}, disk {gigabytes(store.get('disk_bytes', 0))}"
    )
    if report["random_weights"]:
        lines.append("RANDOM WEIGHTS: this bundle was built to be timed; its scores mean nothing")
    if report["fault_counts"]:
        lines.append(
            "DEGRADED: " + ", ".join(f"{code} x{n}" for code, n in sorted(report["fault_counts"].items()))
        )
        lines += [f"  {f['code']} {f['where']!r}: {f['message'][:160]}" for f in report["faults"][:10]]
    return "\n".join(lines)
