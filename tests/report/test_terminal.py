"""The tables of text at the end of a run and of a rehearsal."""
from __future__ import annotations

from dataclasses import replace

from kernel.report.contents import RehearsalReport, VerdictLine
from kernel.report.terminal import run_table, verdict_table
from tests.helpers.sample_report import make_report

LINE = VerdictLine(
    what="time of everything",
    raw=376.0,
    scaled=564.0,
    allowed=3420.0,
    unit="s",
    passed=True,
    margin=1 - 564 / 3420,
)
SPILL = VerdictLine(
    what="spill to disk",
    raw=6e9,
    scaled=6e9,
    allowed=5e9,
    unit="B",
    passed=False,
    margin=-0.2,
)
UNKNOWN = replace(SPILL, what="members not measured", raw=1, scaled=1, allowed=0, unit="", margin=-1)
REHEARSAL = RehearsalReport(
    walls=("network: off",),
    clips=1000,
    hours=1.4,
    slowdown=1.5,
    passed=False,
    problems=("spill to disk: too much",),
    notes=("longest clip here: 9 s",),
    verdict=(LINE, SPILL, UNKNOWN),
)


def test_a_verdict_has_a_line_per_limit() -> None:
    lines = verdict_table(REHEARSAL).splitlines()
    assert lines[0] == "forecast for 1000 rows, 1.40 h of audio (allowed time: the kernel's own stop mark)"
    assert lines[1].split("   ")[-1] == "margin" and "x 1.5 slower" in lines[1]
    assert lines[2].split() == "PASS time of everything 6:16 9:24 57:00 +84 %".split()
    assert lines[3].split() == "FAIL spill to disk 6.00 GB 6.00 GB 5.00 GB -20 %".split()
    assert lines[4].split() == "FAIL members not measured 1 1 0 -100 %".split()
    assert lines[5].strip() == "longest clip here: 9 s" and len(lines) == 6


def test_the_table_of_a_run_has_its_figures() -> None:
    lines = run_table(make_report()).splitlines()
    assert lines[0] == "rows 100: 100 predicted, 0 of them by a part of the ensemble, 0 prior"
    assert "time 0:43 of 1:00:00" in lines[1] and "peak RAM 0.50 GB of 14.00 GB" in lines[1]
    assert lines[2] == "device 2 CPU threads | torch cpu"
    assert lines[4].split() == ["cnn", "2/2", "100", "37.0", "1.00"]
    assert lines[5].startswith("store ram 150 hits, disk 40 hits, recompute 10 hits") and len(lines) == 6


def test_what_went_wrong_is_said_loudly() -> None:
    fault = {"t": 1.0, "code": "ClipEmpty", "where": "a.wav", "message": "0 samples"}
    text = run_table(make_report(random_weights=True, fault_counts={"ClipEmpty": 12}, faults=[fault] * 12))
    assert "RANDOM WEIGHTS" in text and "\nDEGRADED: ClipEmpty x12\n" in text
    assert text.count("  ClipEmpty 'a.wav': 0 samples") == 10
