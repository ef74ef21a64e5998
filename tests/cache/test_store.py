"""One contract over every mix of tiers, for one consumer and for several; windows of one recording."""
from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.errors import ClipEmpty, ClipError
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from tests.helpers.stores import (
    BINS,
    FE,
    GB,
    ROWS,
    TIERS,
    TOTAL,
    FakeFrontEnd,
    FakeMeter,
    Producer,
    RiggedStore,
    array_of,
)

# -- one contract over all tiers


@pytest.mark.parametrize("loaders", [1, 3])
@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_gives_the_same_arrays_pass_after_pass(make, tier, loaders):
    ram, disk = TIERS[tier]
    store = make(ram, disk, loaders=loaders)
    for _ in range(3):
        store.warm(FE, ROWS)
        store.check_arrays()
    stats = store.stats()
    assert sum(stats.hits.values()) == 3 * len(ROWS)
    used = {name for name, count in stats.hits.items() if count}
    assert used == {"mixed": {"ram", "disk", "recompute"}}.get(tier, {tier})
    assert stats.ram_bytes <= ram and stats.disk_bytes <= disk
    if tier in ("ram", "disk"):
        assert sorted(store.producer.made) == sorted(r.id for r in ROWS)  # once each, ever
    store.check_books()


@pytest.mark.parametrize("tier", TIERS)
def test_broken_clips_raise_their_own_error_every_time(make, tier):
    store = make(*TIERS[tier], producer=Producer(broken={"r3"}))
    store.warm(FE, ROWS)
    for _ in range(2):
        with pytest.raises(ClipEmpty, match="r3: no samples"):
            store.get(FE, ROWS[3])
    assert list(store.errors) == ["r3"] and store.producer.made.count("r3") == 1
    store.check_arrays([r for r in ROWS if r.id != "r3"])


@pytest.mark.parametrize("tier", TIERS)
def test_arrays_cannot_be_written_and_lengths_are_known(make, tier):
    store = make(*TIERS[tier])
    assert store.frames(FE, ROWS[0]) is None
    array = store.get(FE, ROWS[0])
    assert store.frames(FE, ROWS[0]) == array.shape[-1]
    with pytest.raises(ValueError):
        array[0, 0, 0] = 1.0


@pytest.mark.parametrize("tier", TIERS)
def test_forget_drops_one_front_end_and_leaves_the_other(make, tier):
    store = make(*TIERS[tier])
    other = FakeFrontEnd(key="pcen")
    for fe in (FE, other):
        store.warm(fe, ROWS)
    before = store.stats()
    store.forget(FE)
    after = store.stats()
    assert after.ram_bytes + after.disk_bytes <= before.ram_bytes + before.disk_bytes
    store.check_books()
    store.check_arrays(fe=other)
    store.check_arrays()  # forgotten is not lost
    store.forget(FE)
    store.forget(other)
    assert store.stats().ram_bytes == 0 == store.stats().disk_bytes and store.files() == []


@pytest.mark.parametrize("tier", TIERS)
def test_several_consumers_and_a_look_ahead_at_once(make, tier):
    store = make(*TIERS[tier], loaders=3)
    failures = []

    def consume(rows):
        try:
            for start in range(0, len(rows), 6):
                store.prefetch(FE, rows[start:start + 12])
                store.check_arrays(rows[start:start + 6])
        except Exception as error:
            failures.append(error)

    threads = [
        threading.Thread(target=consume, args=(rows,)) for rows in (ROWS, ROWS[::-1], ROWS[6:] + ROWS[:6])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == [] and not any(t.is_alive() for t in threads)
    store.warm(FE, ROWS)
    store.check_books()
    if tier == "ram":
        assert store.stats().rows_ram == len(ROWS) and store.stats().ram_bytes == TOTAL


EVENTS = ("get", "warm", "prefetch", "forget", "meter", "time", "damage", "expect")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_sequence_of_events_keeps_arrays_and_books_right(tmp_path_factory, data):
    scratch = tmp_path_factory.mktemp("scratch")
    sizes = st.sampled_from([0, TOTAL // 4, GB])
    store = RiggedStore(scratch, data.draw(sizes), data.draw(sizes), meter=FakeMeter(limit=2 * TOTAL))
    fes = [FE, FakeFrontEnd(key="b")]
    try:
        for event in data.draw(st.lists(st.sampled_from(EVENTS), max_size=25)):
            fe = data.draw(st.sampled_from(fes))
            row = data.draw(st.sampled_from(ROWS))
            if event == "get":
                np.testing.assert_array_equal(store.get(fe, row), array_of(fe, row))
            elif event in ("warm", "prefetch"):
                getattr(store, event)(fe, ROWS[:data.draw(st.integers(0, len(ROWS)))])
            elif event == "forget":
                store.forget(fe)
            elif event == "meter":
                store.meter.others = int(data.draw(st.floats(0, 1.1)) * store.meter.limit_bytes)
            elif event == "time":
                store.clock.now += data.draw(st.floats(0, 70))
            elif event == "damage" and store.files():
                store.files()[0].write_bytes(b"rubbish")
            elif event == "expect":
                store.expect(fe, data.draw(st.integers(0, 50)))
        for fe in fes:
            store.warm(fe, ROWS)
            store.check_arrays(fe=fe)
        assert store.stats().reserved_bytes == 0 and store.stats().hand_bytes <= 64_000_000
    finally:
        store.close()
    assert list(scratch.iterdir()) == []


def test_a_view_into_a_larger_array_does_not_keep_the_larger_one(make):
    class Wasteful(Producer):
        def __call__(self, fe, rows):
            for row in rows:
                waste = np.zeros((9, BINS, row.clip.channels), np.float32)
                yield row, np.concatenate([array_of(fe, row), waste])[:1]

    store = make(producer=Wasteful())
    store.warm(FE, ROWS)
    store.check_arrays()
    assert all(a.base is None or a.base.nbytes == a.nbytes for a in store._tiers.shelf(FE).ram.values())


def test_the_report_tells_peaks_and_when_spilling_began(make):
    store = make(ram=TOTAL // 2)
    store.warm(FE, ROWS)
    stats = store.stats()
    assert stats.first_spill_s > 0 and stats.ram_peak_bytes == stats.ram_bytes > 0
    store.forget(FE)
    after = store.stats()
    assert after.disk_peak_bytes == stats.disk_bytes > 0 == after.disk_bytes
    assert after.first_spill_s == stats.first_spill_s


def test_errors_are_clip_errors(make):
    store = make(producer=Producer(broken={"r1"}))
    with pytest.raises(ClipError):
        store.get(FE, ROWS[1])


# -- windows of one recording


def windows(count=12):
    clip = Clip(id="long", rate=100, samples_claimed=50 * count, channels=50)
    return [Row(id=f"long_{i}", clip=clip, start=50 * i, stop=50 * (i + 1)) for i in range(count)]


@pytest.mark.parametrize(("tier", "decodings"), [("ram", 1), ("disk", 1), ("recompute", 2)])
def test_windows_of_one_recording_come_out_of_few_decodings(make, tier, decodings):
    store = make(*TIERS[tier])
    rows = windows()
    for _ in range(2):
        for start in (0, 6):
            store.warm(FE, rows[start:start + 6])
            store.check_arrays(rows[start:start + 6])
    assert store.producer.calls <= 2 * decodings
    store = make(*TIERS[tier])
    store.check_arrays(rows)
    assert store.producer.calls == len(rows)  # never asked for together: one by one


def test_windows_without_any_place_are_still_not_decoded_one_by_one(make):
    rows = windows(40)
    size = BINS * 50 * 4
    store = make(0, 0, meter=FakeMeter(limit=int(10 * size / 0.025)))  # ten windows fit in hand
    store.warm(FE, rows)
    store.check_arrays(rows)
    assert store.producer.calls <= 1 + 4


def test_windows_asked_for_by_several_at_once_are_decoded_and_booked_once(make):
    rows = windows(40)
    size = BINS * 50 * 4
    store = make(0, 0, meter=FakeMeter(limit=int(10 * size / 0.025)))
    for consumers in (1, 2, 4, 1):
        before = store.producer.calls
        for _ in range(4):
            store.warm(FE, rows)
            with ThreadPoolExecutor(consumers) as pool:
                for row, array in zip(rows, pool.map(lambda row: store.get(FE, row), rows), strict=True):
                    np.testing.assert_array_equal(array, array_of(FE, row))
        assert store.producer.calls - before <= 4 * (1 + 4) * consumers
        store.check_books()
