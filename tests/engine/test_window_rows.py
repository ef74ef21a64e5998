"""Windows of a net become rows: each is heard once, and a row waits for all that reach it."""
from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from kernel import spec
from kernel.engine.run_rows import RunRows, open_rows
from kernel.engine.window_rows import WindowRows
from kernel.errors import ClipEmpty, SpecError
from kernel.inference.recipe import build_recipe
from kernel.limits import Clock
from kernel.report.recorder import Recorder
from kernel.scores import frames
from kernel.sound.decode import Clip
from kernel.sound.rows import list_rows, window_ids
from kernel.spec import Windows

RATE = 11_025  # 2.5 s are no whole number of samples
COUNT = 9
CENTRED = Windows(seconds=2.5, context_seconds=10.0)


def make_rows(
    windows: Windows, recordings: int = 2, extra: tuple[str, ...] = (), count: int = COUNT
) -> RunRows:
    seconds = count * windows.seconds
    clips = {f"r{i}": Clip(id=f"r{i}", rate=RATE, samples_claimed=round(seconds * RATE), channels=1)
             for i in range(recordings)}
    ids = [id for name in clips for id in window_ids(name, seconds, windows)]

    class Index:
        paths = ambiguous = clips
        roots = ()

        def path(self, id: str) -> str:
            return id

    index: Any = Index()
    listed = list_rows([*ids, *extra], index, windows, lambda id, path, roots: clips[id])
    clock = Clock(started=time.monotonic(), started_boot=0.0, offset_s=0.0)
    return open_rows(listed, None, 60.0, True, Recorder(clock=clock))


def merging(windows: Windows) -> frames.Merging:
    return frames.Merging(windows=windows, rule="average_max")


def answer_of(i: int) -> np.ndarray:
    """f64[16, 3] of a window."""
    return np.random.default_rng(i).random((16, 3))


def run(made: WindowRows, todo: list[int]) -> dict[int, Any]:
    """Row -> its score, after every window that is asked for has answered."""
    found: dict[int, Any] = {}
    for i in made.begin(todo):
        made.take(i, answer_of(i))
        found.update(made.ready())
    found.update(made.ready(last=True))
    return found


def expected_of(i: int, left_out: tuple[int, ...] = (), windows: Windows = CENTRED) -> np.ndarray:
    first = i // COUNT * COUNT
    there = {o: answer_of(i + o) for o in frames.reach(windows)
             if first <= i + o < first + COUNT and i + o not in left_out}
    return frames.row_of("average_max", frames.lay(windows, 16), there)


def test_every_window_is_heard_once_and_no_row_waits_longer_than_it_must() -> None:
    rows = make_rows(CENTRED)
    made = WindowRows(merging(CENTRED), rows, lambda i: False)
    todo = made.begin(rows.wanted)
    assert todo == rows.wanted
    complete: list[int] = []
    for i in todo:
        made.take(i, answer_of(i))
        for row, score in made.ready():
            np.testing.assert_array_equal(score, expected_of(row))
            complete.append(row)
        assert len(made._answers) <= 5
    assert complete == rows.wanted and not made._answers


@pytest.mark.parametrize("missing", [[4], [0, 8], [9, 10, 17]])
def test_after_a_restart_the_windows_around_a_row_are_heard_again(missing: list[int]) -> None:
    made = WindowRows(merging(CENTRED), make_rows(CENTRED), lambda i: False)
    found = run(made, missing)
    assert sorted(found) == missing
    for i in missing:
        np.testing.assert_array_equal(found[i], expected_of(i))


def test_rows_in_any_order_have_the_same_scores() -> None:
    rows = make_rows(CENTRED)
    made = WindowRows(merging(CENTRED), rows, lambda i: False)
    asked = made.begin(rows.wanted)
    found: dict[int, Any] = {}
    for i in np.random.default_rng(0).permutation(asked).tolist():
        made.take(i, answer_of(i))
        found.update(made.ready())
    assert sorted(found) == rows.wanted
    for i, score in found.items():
        np.testing.assert_array_equal(score, expected_of(i))


def test_a_window_that_is_never_heard_is_left_out_of_its_neighbours() -> None:
    rows = make_rows(CENTRED)
    made = WindowRows(merging(CENTRED), rows, lambda i: bool(rows.lost[i]))
    todo = made.begin(rows.wanted)
    found: dict[int, Any] = {}
    for i in todo:
        if i == 4:
            rows.lose(rows.all[4], ClipEmpty("lost meanwhile"))
        else:
            made.take(i, answer_of(i))
        found.update(made.ready())
    found.update(made.ready(last=True))
    assert sorted(found) == [i for i in rows.wanted if i != 4]
    for i, score in found.items():
        np.testing.assert_array_equal(score, expected_of(i, left_out=(4,)))


def test_contexts_that_reach_beyond_the_recording_may_be_left_out() -> None:
    windows = Windows(seconds=2.5, context_seconds=5.0, context_before=0.0, edges="inside")
    rows = make_rows(windows, recordings=1)
    made = WindowRows(merging(windows), rows, lambda i: False)
    assert made.begin(rows.wanted) == rows.wanted[:-1]
    found = run(made, rows.wanted)
    assert sorted(found) == rows.wanted
    np.testing.assert_array_equal(found[COUNT - 1], answer_of(COUNT - 2)[8:].max(axis=0))


def test_windows_that_lie_between_others_are_rows_of_their_own() -> None:
    rows = make_rows(CENTRED, recordings=1, extra=("r0_6", "r0_5.0"))
    made = WindowRows(merging(CENTRED), rows, lambda i: False)
    found = run(made, rows.wanted)
    np.testing.assert_array_equal(found[3], expected_of(3))
    between = rows.number(rows.all[COUNT])
    alone = frames.row_of("average_max", frames.lay(CENTRED, 16), {0: answer_of(between)})
    np.testing.assert_array_equal(found[between], alone)
    assert all(score is not None for score in found.values())


def test_a_row_that_no_window_reaches_is_told() -> None:
    windows = Windows(seconds=2.5, context_seconds=5.0, context_before=0.0, edges="inside")
    rows = make_rows(windows, recordings=1)
    made = WindowRows(merging(windows), rows, lambda i: i == COUNT - 2)
    found = run(made, [COUNT - 1])
    assert found == {COUNT - 1: None}


def test_a_front_end_that_does_not_keep_time_is_refused() -> None:
    member = spec.Member(name="m", family="none", frontend="mel", frames="average")
    ensemble = spec.Ensemble(name="e", classes=("a", "b"), members=(member,), windows=CENTRED,
                             frontends={"mel": {"preset": "argus"}})
    with pytest.raises(SpecError, match="frames want a front end that keeps time; argus has"):
        build_recipe(ensemble, member)


@pytest.mark.parametrize(("clips", "every", "starts"), [
    (2, 1, range(0, 55, 5)), (2, 2, range(0, 60, 10)), (1, 1, range(0, 60, 5)),
])
def test_which_contexts_are_heard(clips: int, every: int, starts: range) -> None:
    """Goldens `window_starts`: yannan90/birdclef-2026-private-9th infer_kernel_folds.py 759."""
    windows = Windows(context_seconds=5.0 * clips, context_before=0.0, edges="inside", context_every=every)
    rows = make_rows(windows, recordings=1, count=12)
    made = WindowRows(frames.Merging(windows=windows, rule="max_average"), rows, lambda i: False)
    assert [(rows.all[j].start or 0) / RATE for j in made.begin(rows.wanted)] == list(starts)
    found = run(made, rows.wanted)
    assert sorted(found) == rows.wanted and all(score is not None for score in found.values())


def test_a_row_off_the_grid_whose_neighbours_are_not_asked_for_hears_its_own_context() -> None:
    windows = Windows(context_seconds=10.0, context_before=0.0, context_every=2)
    rows = make_rows(windows, recordings=1)
    made = WindowRows(frames.Merging(windows=windows, rule="average"), rows, lambda i: False)
    made._places = {"r0": [place for place in made._places["r0"] if place[1] != 2]}
    assert made.begin([3]) == [3] and sorted(run(made, [3])) == [3]


def test_shifted_frames_come_from_windows_that_hear_nothing_of_the_row() -> None:
    windows = Windows()
    merging = frames.Merging(windows=windows, rule="average_max", shift_seconds=1.0)
    assert list(merging.reach) == [-1, 0, 1]
    answers = {offset: answer_of(offset + 5) for offset in (-1, 0, 1)}
    shift = round(16 / 5)
    line = np.concatenate([answers[-1], answers[0], answers[1]])
    moved = [line[16 + s:32 + s].max(axis=0) for s in (-shift, shift)]
    expected = answers[0].max(axis=0) / 2 + (moved[0] + moved[1]) / 4
    np.testing.assert_allclose(merging.row_of(answers), expected, rtol=1e-12)
    del answers[1]  # lost: the row as it is takes its place
    expected = answers[0].max(axis=0) * 0.75 + moved[0] / 4
    np.testing.assert_allclose(merging.row_of(answers), expected, rtol=1e-12)
