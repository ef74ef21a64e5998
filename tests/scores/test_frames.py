"""Frames of overlapping windows become rows: each rule against its definition on the recording's timeline."""
from __future__ import annotations

import numpy as np
import pytest

from kernel.errors import SpecError
from kernel.scores import frames
from kernel.spec import Windows
from kernel.spec.ensemble import FRAMES

CENTRED = Windows(context_seconds=20.0)
AHEAD = Windows(context_seconds=10.0, context_before=0.0, edges="inside")


def answers_of(count: int, frames_each: int, seed: int = 0) -> np.ndarray:
    """f64[count, F, 3] in 0..1."""
    return np.random.default_rng(seed).random((count, frames_each, 3))


def rows_of(rule: str, windows: Windows, answers: np.ndarray, rows: int | None = None) -> np.ndarray:
    """All rows of a recording whose windows have these answers, one window per row from the first on."""
    layout = frames.lay(windows, answers.shape[1])
    made = []
    for row in range(len(answers) if rows is None else rows):
        there = {o: answers[row + o] for o in frames.reach(windows) if 0 <= row + o < len(answers)}
        made.append(frames.row_of(rule, layout, there))
    return np.stack(made)


def test_the_names_of_the_spec_are_the_rules() -> None:
    assert tuple(frames.RULES) == FRAMES


@pytest.mark.parametrize(("windows", "expected"), [
    (CENTRED, [-2, -1, 0, 1, 2]),
    (AHEAD, [-1, 0]),
    (Windows(context_seconds=10.0, context_before=5.0), [0, 1]),
    (Windows(), [0]),
    (Windows(context_seconds=15.0), [-1, 0, 1]),
])
def test_only_windows_that_hear_a_part_of_a_row_reach_it(windows: Windows, expected: list[int]) -> None:
    assert list(frames.reach(windows)) == expected


@pytest.mark.parametrize(("count", "frames_each"), [(1, 16), (4, 16), (3, 62), (12, 31), (7, 8)])
def test_average_max_is_the_maximum_over_a_row_of_the_averaged_timeline(
    count: int, frames_each: int
) -> None:
    answers = answers_of(count, frames_each)
    step = frames_each * 5 // 20
    total = np.zeros(((count - 1) * step + frames_each, 3))
    heard = np.zeros((len(total), 1))
    for i, answer in enumerate(answers):
        total[i * step:i * step + frames_each] += answer
        heard[i * step:i * step + frames_each] += 1
    first = (frames_each - step) // 2
    line = (total / heard)[first:first + count * step]
    expected = line.reshape(count, step, 3).max(axis=1)
    np.testing.assert_allclose(rows_of("average_max", CENTRED, answers), expected, rtol=1e-12)


@pytest.mark.parametrize("frames_each", [12, 13])
def test_max_average_is_the_mean_of_the_windows_maxima(frames_each: int) -> None:
    answers = answers_of(11, frames_each)  # of 12 rows: the last window begins at the one before the last
    step = frames_each // 2
    halves = np.stack([answers[:, :step].max(axis=1), answers[:, step:2 * step].max(axis=1)])
    expected = np.empty((12, 3))
    expected[0], expected[11] = halves[0, 0], halves[1, 10]
    expected[1:11] = (halves[0, 1:] + halves[1, :10]) / 2
    np.testing.assert_allclose(rows_of("max_average", AHEAD, answers, 12), expected, rtol=1e-12)


def test_average_is_the_mean_of_all_frames_of_a_row() -> None:
    answers = answers_of(3, 10)
    expected = [answers[0, :5].mean(axis=0), np.concatenate([answers[0, 5:], answers[1, :5]]).mean(axis=0)]
    np.testing.assert_allclose(rows_of("average", AHEAD, answers)[:2], expected, rtol=1e-12)


def test_a_window_without_context_is_its_own_row() -> None:
    answers = answers_of(4, 7)
    for rule in ("average_max", "max_average"):
        np.testing.assert_array_equal(rows_of(rule, Windows(), answers), answers.max(axis=1))
    np.testing.assert_allclose(rows_of("average", Windows(), answers), answers.mean(axis=1))


def test_fewer_frames_than_rows_are_refused() -> None:
    with pytest.raises(SpecError, match="3 frames for 20 s"):
        frames.lay(CENTRED, 3)
