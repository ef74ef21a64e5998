"""Steps on the finished table: smoothing over the windows of a recording."""
from __future__ import annotations

import numpy as np
import pytest

from kernel.scores import output
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from kernel.spec import Output

K = 4


def window(clip: str, start: int | None) -> Row:
    return Row(id=f"{clip}_{start}", clip=Clip(id=clip), start=start)


def test_smoothing_mixes_neighbours_of_one_recording_only() -> None:
    values = np.arange(5.0)[:, None] * np.ones((1, K))
    out = output.smooth(values, [[0, 1, 2], [3], [4]], [1.0, 2.0, 1.0])
    np.testing.assert_allclose(out[:, 0], [(2 * 0 + 1) / 3, (0 + 2 * 1 + 2) / 4, (1 + 2 * 2) / 3, 3, 4])


@pytest.mark.fault(
    row=85,
    injection="a window without any prediction between two predicted ones, under smoothing",
    outcome="it keeps the prior, which goes into no neighbour",
)
def test_smoothing_leaves_prior_rows_out() -> None:
    rows = [window("a", start) for start in (0, 10, 20, 30)]
    values = np.array([1e-6, 0.0056, 1e-6, 3e-6])[:, None] * np.ones((1, K))
    lost = np.array([False, True, False, False])
    out = output.apply(values, rows, Output(smoothing=(1.0, 2.0, 1.0)), lost)
    np.testing.assert_allclose(out[:, 0], [1e-6, 0.0056, 5e-6 / 3, 7e-6 / 3])


def test_rows_of_a_recording_are_found_wherever_they_stand_and_put_in_time_order() -> None:
    rows = [window(*at) for at in (("b", 10), ("a", 20), ("b", 0), ("a", 0), ("a", 10), ("c", None))]
    assert sorted(output.recordings(rows)) == [[2, 0], [3, 4, 1], [5]]


def test_the_output_of_an_ensemble_decides_which_steps_run() -> None:
    rows = [window("a", 10), window("a", 0)]
    values = np.array([[1.0] * K, [0.0] * K])
    assert output.apply(values, rows, Output()) is values
    smoothed = output.apply(values, rows, Output(smoothing=(0.0, 1.0, 1.0)))  # the later neighbour counts
    np.testing.assert_allclose(smoothed[:, 0], [1.0, 0.5])
