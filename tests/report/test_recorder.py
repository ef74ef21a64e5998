"""What is recorded of a run: every fault counted, spans closed whatever happens, memory over time thinned."""
from __future__ import annotations

import time

import pytest

from kernel.errors import ClipEmpty
from kernel.limits import Clock
from kernel.report import recorder
from kernel.report.recorder import Recorder


@pytest.fixture
def record() -> Recorder:
    return Recorder(clock=Clock(time.monotonic() - 10, time.clock_gettime(time.CLOCK_BOOTTIME) - 10))


def test_every_fault_is_counted_and_the_first_are_listed(record: Recorder) -> None:
    for number in range(recorder.MAX_LISTED + 5):
        record.error(f"{number}.wav", ClipEmpty("no samples"))
    record.error("cnn.0", ValueError("odd"))
    seen = record.snapshot()
    assert seen["fault_counts"] == {"ClipEmpty": recorder.MAX_LISTED + 5, "ValueError": 1}
    assert len(seen["faults"]) == recorder.MAX_LISTED + 1
    assert seen["faults"][0].where == "0.wav" and seen["faults"][0].t == pytest.approx(10, abs=1)


def test_a_span_ends_with_an_error_too(record: Recorder) -> None:
    with pytest.raises(ValueError, match="odd"), record.span("cnn.0", device="cpu", rows=3, forecast_s=2.0):
        raise ValueError("odd")
    record.end_span("start", 0.0, device="main")
    net, start = record.snapshot()["stages"]
    assert (net.name, net.device, net.rows, net.forecast_s) == ("cnn.0", "cpu", 3, 2.0)
    assert start.start_s == 0.0 and start.end_s == pytest.approx(10, abs=1) and start.rows is None


def test_a_remark_is_kept_once(record: Recorder) -> None:
    for text in ("salvaged", "shortened", "salvaged"):
        record.note("a.wav", text)
    assert record.snapshot()["clip_notes"] == {"a.wav": ("salvaged", "shortened")}


def test_memory_over_time_is_thinned(record: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(record, "now", lambda: now)
    for number in range(8 * recorder.MAX_TIMELINE):
        now = 0.25 * number
        record.sample(used=number, store=1, limit=2, disk=3)
        record.sample(used=-1, store=1, limit=2, disk=3)  # too soon after the last one
    points = record.snapshot()["timeline"]
    assert recorder.MAX_TIMELINE / 2 <= len(points) <= recorder.MAX_TIMELINE
    assert points[0].t == 0.0 and points[-1].t > 0.99 * now and min(p.used for p in points) >= 0
