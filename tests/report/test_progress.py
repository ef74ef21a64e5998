"""Progress: when a line is printed, what it says, and the bar on a terminal."""
from __future__ import annotations

import io
from dataclasses import replace

import pytest

from kernel.report.progress import Pace, Progress, State, line

STATE = State(
    t=0.0,
    step="cnn.0",
    nets="0/2",
    done=0,
    total=100,
    scored=0,
    to_score=200,
    ram=1.5e9,
    ram_limit=14e9,
    disk=0.2e9,
    left_s=75.0,
    deadline_s=3000.0,
)


def test_the_line_has_every_figure() -> None:
    text = line(replace(STATE, done=40), 12.34)
    assert text == (
        "[hourglass] cnn.0 (0/2 nets done) | 40/100 clips, 0/200 by all nets | 12.3 clips/s"
        " | RAM 1.50/14.0 GB | disk 0.20 GB | ETA 1:15, deadline in 50:00"
    )


def test_the_line_says_when_time_is_short() -> None:
    assert line(replace(STATE, left_s=3001.0), 1.0).endswith("not everything will fit")


def test_the_rate_is_the_current_one() -> None:
    pace = Pace()
    for t in range(100):
        pace.add(float(t), 50 * t)  # fast
    for t in range(100, 161):
        pace.add(float(t), 50 * 99 + 2 * (t - 99))  # slow since a minute
    assert pace.per_s() == pytest.approx(2.0)


def test_the_rate_of_nothing_is_zero() -> None:
    pace = Pace()
    assert pace.per_s() == 0.0
    pace.add(1.0, 5)
    assert pace.per_s() == 0.0


def test_one_line_per_step_or_15_seconds() -> None:
    lines: list[str] = []
    progress = Progress(io.StringIO(), lines.append)
    for t in range(40):
        progress.update(replace(STATE, t=float(t), done=t, scored=t))
    assert [text.split(" | ")[1] for text in lines] == [
        f"{n}/100 clips, {n}/200 by all nets" for n in (0, 15, 30)
    ]
    assert "1.0 clips/s" in lines[-1]
    progress.update(replace(STATE, t=39.5, nets="1/2"))
    assert len(lines) == 3, "a count alone is no new step"
    progress.update(replace(STATE, t=40.0, step="cnn.1", nets="1/2"))
    assert len(lines) == 4 and "cnn.1" in lines[-1]


def test_a_log_counts_even_when_every_step_is_short() -> None:
    lines: list[str] = []
    progress = Progress(io.StringIO(), lines.append)
    for number, step in enumerate(("cnn.0", "cnn.1")):
        progress.update(replace(STATE, t=float(number), step=step, scored=100 * number))
    progress.close(replace(STATE, t=2.0, step="end", nets="2/2", done=100, scored=200))
    counts = [text.split(" | ")[1] for text in lines]
    assert counts == [
        "0/100 clips, 0/200 by all nets",
        "0/100 clips, 100/200 by all nets",
        "100/100 clips, 200/200 by all nets",
    ]
    assert "end (2/2 nets done)" in lines[-1] and "100.0 clips/s" in lines[-1]


def test_a_terminal_gets_a_bar() -> None:
    pytest.importorskip("tqdm", reason="tqdm is not installed")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    progress = Progress(screen)
    progress.update(replace(STATE, scored=50))
    progress._bar.refresh()
    progress.close(replace(STATE, scored=200))
    assert "cnn.0" in screen.getvalue() and "25%" in screen.getvalue() and "50/200" in screen.getvalue()
    assert "[hourglass]" not in screen.getvalue()
