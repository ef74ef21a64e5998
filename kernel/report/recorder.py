"""What happens during a run, recorded as it happens: the raw parts of report.json.

Owns the `Recorder`: faults, spans, memory over time, publications, notes on rows. Does not print (terminal),
draw (page), tell how far a run is (progress) or decide: no fault passes without a line here.
"""
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypedDict

from ..errors import HourglassError, text_of
from ..limits import Clock
from .contents import Fault, MemoryPoint, Span

MAX_LISTED = 200  # faults of one code listed one by one; the rest is counted
MAX_TIMELINE = 2000  # memory points kept; the interval doubles when they are reached


class Recorded(TypedDict):
    """Everything recorded, under the names that it has in a Report."""

    stages: tuple[Span, ...]
    timeline: tuple[MemoryPoint, ...]
    publications: tuple[float, ...]
    clip_notes: dict[str, tuple[str, ...]]
    faults: tuple[Fault, ...]
    fault_counts: dict[str, int]


@dataclass(kw_only=True)
class Recorder:
    """Collects what the report tells. Thread-safe.

    clock  seconds since the guard's start: all times are by it
    """

    clock: Clock
    faults: list[Fault] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    spans: list[Span] = field(default_factory=list)
    timeline: list[MemoryPoint] = field(default_factory=list)
    publications: list[float] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    _interval_s: float = 0.25
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def now(self) -> float:
        """Seconds since the guard's start."""
        return self.clock.elapsed()

    def fault(self, code: str, where: str, message: str) -> None:
        """Record a fault: `where` is a row id, a net id, a path or a device."""
        with self._lock:
            self.counts[code] += 1
            if self.counts[code] <= MAX_LISTED:
                self.faults.append(Fault(t=round(self.now(), 2), code=code, where=where, message=message))

    def error(self, where: str, error: BaseException) -> None:
        """Record an exception as a fault under its class name."""
        code = error.code if isinstance(error, HourglassError) else type(error).__name__
        self.fault(code, where, text_of(error))

    def note(self, row_id: str, text: str) -> None:
        """Record a remark on one row (salvaged, shortened): once, however often the clip is decoded."""
        with self._lock:
            known = self.notes.setdefault(row_id, [])
            if text not in known:
                known.append(text)

    @contextmanager
    def span(self, name: str, **facts: Any) -> Iterator[None]:
        """Record how long what happens inside took; facts are further fields of a Span, `device` always."""
        start_s = self.now()
        try:
            yield
        finally:
            self.end_span(name, start_s, **facts)

    def end_span(self, name: str, start_s: float, **facts: Any) -> None:
        """Record a span that began at `start_s` and ends now; facts as for `span`."""
        span = Span(name=name, start_s=round(start_s, 3), end_s=round(self.now(), 3), **facts)
        with self._lock:
            self.spans.append(span)

    def sample(self, *, used: int, store: int, limit: int, disk: int) -> None:
        """Add a point to the memory over time, thinning it when it grows long; bytes."""
        with self._lock:
            t = self.now()
            if self.timeline and t - self.timeline[-1].t < self._interval_s:
                return
            self.timeline.append(MemoryPoint(t=round(t, 3), used=used, store=store, limit=limit, disk=disk))
            if len(self.timeline) > MAX_TIMELINE:
                self.timeline = self.timeline[::2]
                self._interval_s *= 2

    def snapshot(self) -> Recorded:
        """A copy of everything recorded: threads may go on recording while a report is written."""
        with self._lock:
            return Recorded(
                stages=tuple(self.spans),
                timeline=tuple(self.timeline),
                publications=tuple(self.publications),
                clip_notes={row_id: tuple(texts) for row_id, texts in self.notes.items()},
                faults=tuple(self.faults),
                fault_counts=dict(self.counts),
            )
