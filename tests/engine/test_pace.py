"""When the engine publishes, against a clock that only the test moves."""
from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernel import limits
from kernel.engine.publication import COST_SHARE, Pace


@pytest.mark.fault(
    row=86,
    injection="publications that take from 0.01 to 45 s, of which nobody knows before the first",
    outcome="at most a twentieth of the time beside the first and the last; the last one always fits",
)
@settings(max_examples=300, deadline=None)
@example(budget_s=200.0, seconds=15.0, guess=0.375, steps=[133.0])  # a late first one, far off the guess
@given(
    budget_s=st.floats(200.0, 36_000.0),
    seconds=st.floats(0.01, 45.0),
    guess=st.floats(0.35, 3.0),
    steps=st.lists(st.floats(0.5, 600.0), max_size=60),
)
def test_publications_keep_within_their_share(
    budget_s: float, seconds: float, guess: float, steps: list[float]
) -> None:
    marks = limits.marks(budget_s)
    pace = Pace(every_s=60.0, expected_s=guess * seconds)
    now = 0.0
    for step in steps:
        now = min(now + step, max(now, pace.stop_s(marks)))
        if pace.allows(now, pace.stop_s(marks) - now):
            now += seconds
            pace = pace.learn(seconds)
            assert pace.spent_s <= COST_SHARE * now + seconds * max(0.0, 1 - guess)
    assert now + seconds <= marks.term_s


def test_a_stop_mark_is_moved_only_where_it_must_be() -> None:
    marks = limits.marks(540.0)
    quick, slow = Pace(every_s=60.0, expected_s=1.0), Pace(every_s=60.0, expected_s=45.0, spent_s=45.0)
    assert quick.stop_s(marks) == marks.stop_s
    assert slow.stop_s(marks) == marks.term_s - 67.5
    # So slow that nothing could be scored before it: half of the time is left to the nets
    assert Pace(every_s=60.0, expected_s=9e9).stop_s(marks) == marks.stop_s / 2
