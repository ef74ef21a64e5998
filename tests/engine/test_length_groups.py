"""Length groups: every row once, budgets held, nothing shared that may not be."""
from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.engine.length_groups import group, ladder
from kernel.errors import SpecError

LENGTHS = st.lists(st.integers(1, 3000), max_size=120)


@settings(max_examples=150, deadline=None)
@given(
    LENGTHS, st.integers(1, 20_000), st.integers(1, 64), st.floats(0, 0.5), st.booleans(), st.integers(1, 200)
)
def test_group_keeps_every_promise(frames, max_cells, max_rows, padding, exact, min_frames):
    batches = group(
        frames, max_cells=max_cells, max_rows=max_rows, padding=padding, exact=exact, min_frames=min_frames
    )
    assert Counter(i for b in batches for i in b.rows) == Counter(range(len(frames)))
    for b in batches:
        assert b.frames == tuple(frames[i] for i in b.rows)
        own = [max(f, min_frames) for f in b.frames]
        assert len(b.rows) <= max_rows and b.width >= max(own)
        assert b.cells <= max_cells or len(b.rows) == 1
        assert b.cells - sum(own) <= padding * b.cells + 1e-9
        if exact:
            assert set(own) == {b.width}
    assert [b.width for b in batches] == sorted((b.width for b in batches), reverse=True)


@settings(max_examples=50, deadline=None)
@given(LENGTHS.filter(bool), st.randoms(use_true_random=False))
def test_group_does_not_depend_on_the_order_of_the_rows(frames, random):
    shuffled = list(range(len(frames)))
    random.shuffle(shuffled)
    limits = {"max_cells": 8192, "max_rows": 16, "padding": 0.05, "exact": False}
    plain = group(frames, **limits)
    mixed = group([frames[i] for i in shuffled], **limits)
    assert [(b.width, b.frames) for b in plain] == [(b.width, b.frames) for b in mixed]


def test_a_long_run_meets_few_widths():
    frames = list(range(100, 1919))  # every length of 1.5 to 30 s at 64 frames a second, once
    widths = {b.width for b in group(frames, max_cells=4096, max_rows=64, padding=0.02, exact=False)}
    assert len(widths) <= len([w for w in ladder(1918, 0.02) if w >= 100]) < len(frames) / 10


def test_a_row_above_the_cell_budget_runs_alone_at_its_own_width():
    batches = group([5000, 10, 10], max_cells=1000, max_rows=8, padding=0.1, exact=False)
    assert [(b.rows, b.width) for b in batches] == [((0,), 5000), ((1, 2), 10)]


def test_exact_groups_hold_equal_lengths_only():
    batches = group([7, 9, 7, 8], max_cells=100, max_rows=8, padding=0.5, exact=True)
    assert [(b.rows, b.width, b.padding) for b in batches] == [((1,), 9, 0), ((3,), 8, 0), ((0, 2), 7, 0)]


def test_rows_below_the_net_s_minimum_share_it_even_in_exact_groups():
    (batch,) = group([3, 5], max_cells=100, max_rows=8, padding=0.0, exact=True, min_frames=16)
    assert batch.width == 16 and batch.frames == (5, 3)[::-1]


@pytest.mark.parametrize("change", [{"max_cells": 0}, {"max_rows": 0}, {"padding": 1.0}, {"min_frames": 0}])
def test_senseless_limits_are_named(change):
    with pytest.raises(SpecError, match="batches"):
        group([1], **{"max_cells": 1, "max_rows": 1, "padding": 0.0, "exact": False, **change})


def test_an_empty_row_is_named():
    with pytest.raises(SpecError, match="0 frames"):
        group([4, 0], max_cells=10, max_rows=2, padding=0.0, exact=False)
