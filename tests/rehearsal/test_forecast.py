"""The forecast for a hidden test set, against figures worked out by hand."""
from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.limits import limits
from kernel.rehearsal.forecast import count_shapes, forecast, total_seconds, union
from kernel.report.contents import MemberCost
from tests.helpers.sample_report import make_json, make_report

LIMITS = limits("fat2019")


def test_the_same_set_again_takes_the_same_time() -> None:
    # Start 4 + clips 1 + two nets (1 + 100 x 0.05 + 100 x 200 x 0.0005 = 16) + loading 5 + last publication 1
    assert total_seconds(make_report(), 100, 1.0) == pytest.approx(4 + 1 + 2 * 16 + 5 + 1)


def test_rows_and_audio_scale_what_they_cost() -> None:
    # Ten times the rows and audio: all but the start and the set-up of nets is ten times as long.
    assert total_seconds(make_report(), 1000, 10.0) == pytest.approx(4 + 10 + 2 * (1 + 150) + 50 + 10)
    # The same rows with twice the audio: only frames and loading grow
    assert total_seconds(make_report(), 100, 2.0) == pytest.approx(4 + 1 + 2 * (1 + 5 + 20) + 10 + 1)


def test_devices_share_nets_and_loading() -> None:
    two = make_report(device={"names": ["cuda:0", "cuda:1"], "about": "", "path": ""})
    assert total_seconds(two, 100, 1.0) == pytest.approx(6 + (2 * 16 + 5) / 2)


def test_what_is_made_once_is_not_scaled() -> None:
    data = make_json()
    data["members"][0]["nets"][0]["loading_s"] = 12.0  # 7 s more than the rate explains: filter banks
    more = total_seconds(make_report(**data), 1000, 10.0) - total_seconds(make_report(), 1000, 10.0)
    assert more == pytest.approx(7.0)


def test_new_widths_are_paid_once_each() -> None:
    data = make_json()
    data["costs"]["members"]["cnn"]["shape_s"] = 0.5
    more = total_seconds(make_report(**data), 100, 1.0) - total_seconds(make_report(), 100, 1.0)
    assert more == pytest.approx(2 * 10 * 0.5)


def cost(shapes: int, once: int, twice: int) -> MemberCost:
    """A cost of which only the widths matter."""
    known = make_report().costs.members["cnn"]
    return replace(known, shapes=shapes, shapes_once=once, shapes_twice=twice)


def test_more_rows_show_more_widths() -> None:
    counts = [count_shapes(cost(10, 4, 2), 100, clips) for clips in (5, 100, 200, 1000, 10**6)]
    assert counts[0] == 5 and counts[1] == 10 and counts == sorted(counts)
    assert counts[-1] == pytest.approx(14), "Chao: 4 x 4 / (2 x 2) not seen yet"
    assert count_shapes(cost(3, 0, 0), 100, 10**6) == 3
    assert count_shapes(cost(1, 1, 0), 1, 50) == 1
    assert 900 < count_shapes(cost(100, 100, 0), 100, 1000) <= 1000


def test_lines_of_the_verdict() -> None:
    time, beside, cache, spill = forecast(make_report(), 1000, 5000 / 3600, LIMITS, slowdown=1.5)
    assert time.raw == pytest.approx(376) and time.scaled == pytest.approx(564) and time.allowed == 3420
    assert beside.raw == 400_000_000  # 500 MB own peak - 100 MB of store
    assert cache.raw == 400_000_000 + 1_200_000_000 and spill.raw == 0
    assert all(line.passed for line in (time, beside, cache, spill))
    assert time.margin == pytest.approx(1 - 564 / 3420)


def test_too_much_fails_with_its_margin() -> None:
    lines = forecast(make_report(), 100_000, 140.0, LIMITS)
    failed = {line.what: line for line in lines if not line.passed}
    assert set(failed) == {"time of everything", "spill to disk"}
    assert failed["time of everything"].margin < -9
    assert lines[2].raw == pytest.approx(0.95 * 14e9)  # the cache stops at its mark; the rest is spilled
    assert failed["spill to disk"].raw == pytest.approx(120e6 * 140 * 3600 / 500 - (0.95 * 14e9 - 400e6))


def test_a_member_that_never_ran_fails() -> None:
    data = make_json()
    for net in data["members"][0]["nets"]:
        net["rows"] = 0
    lines = forecast(make_report(**data), 100, 1.0, LIMITS)
    assert [line.what for line in lines if not line.passed] == ["members not measured"]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12))
def test_union_counts_every_second_once(spans: list[tuple[int, int]]) -> None:
    pairs = [(start, start + length) for start, length in spans]
    assert union(pairs) == len({second for start, end in pairs for second in range(start, end)})


def test_a_member_that_never_ran_is_allowed_nowhere() -> None:
    data = make_json()
    for net in data["members"][0]["nets"]:
        net["rows"] = 0
    line = forecast(make_report(**data), 100, 1.0, LIMITS)[-1]
    assert (line.raw, line.scaled, line.allowed, line.margin, line.unit) == (1, 1, 0, -1, "")


def test_a_process_that_fills_its_memory_beside_the_cache_keeps_nothing_in_it() -> None:
    """All of the cache is spilled, and the memory with it is what there was without it."""
    full = make_report(peak_own_bytes=20_000_000_000)
    _, beside, cache, spill = forecast(full, 1000, 5000 / 3600, LIMITS)
    assert not beside.passed and cache.raw == beside.raw == 20_000_000_000 - 100_000_000
    assert spill.raw == 1_200_000_000
    less = make_report(peak_own_bytes=50_000_000)  # the store's peak was another moment's
    assert forecast(less, 100, 500 / 3600, LIMITS)[1].raw == 0


def test_what_is_spilled_is_written_and_read_by_every_net() -> None:
    full = make_report(peak_own_bytes=20_000_000_000)
    plain = forecast(make_report(), 1000, 5000 / 3600, LIMITS)[0].raw
    assert forecast(full, 1000, 5000 / 3600, LIMITS)[0].raw - plain == pytest.approx(2 * 1.2e9 / 100e6)


def test_a_machine_may_be_three_tenths_slower_and_just_enough_is_enough() -> None:
    time = forecast(make_report(), 1000, 5000 / 3600, LIMITS)[0]
    assert time.scaled == pytest.approx(1.3 * time.raw)
    disk = replace(LIMITS, disk_bytes=0)
    assert forecast(make_report(), 100, 500 / 3600, disk)[3].passed  # nothing is spilled, nothing allowed


def test_widths_by_chao_and_colwell() -> None:
    """Chao: f1 f1 / (2 f2) not seen, f1 (f1 - 1) / 2 without any seen twice; Colwell: their share."""
    unseen = 6 * 6 / (2 * 3)
    share = 1 - (1 - 6 / (50 * unseen + 6)) ** 150
    assert count_shapes(cost(20, 6, 3), 50, 200) == pytest.approx(20 + unseen * share)
    unseen = 6 * 5 / 2
    share = 1 - (1 - 6 / (50 * unseen + 6)) ** 150
    assert count_shapes(cost(20, 6, 0), 50, 200) == pytest.approx(20 + unseen * share)
    assert count_shapes(cost(20, 6, 3), 50, 50) == 20 and count_shapes(cost(20, 0, 3), 50, 500) == 20
    assert count_shapes(cost(20, 1, 0), 50, 500) == 20
