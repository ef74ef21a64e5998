"""Admission to RAM, and what leaves it when others need the memory."""
from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from kernel.cache.ram import Budget, Hand, StoreLimits
from kernel.memory import Reading
from kernel.sound.loading import count_wave_bytes
from tests.helpers.stores import BINS, FE, GB, LARGEST, ROWS, TOTAL, FakeMeter, Producer, array_of, row_of

# -- admission


def test_bytes_are_reserved_before_they_exist(make):
    seen = []

    class Watching(Producer):
        def __call__(self, fe, rows):
            for row in rows:
                seen.append(store.stats().reserved_bytes >= array_of(fe, row).nbytes)
                yield row, array_of(fe, row)

    store = make(producer=Watching())
    store.warm(FE, ROWS)
    assert len(seen) == len(ROWS) and all(seen)


@pytest.mark.parametrize(
    ("batch", "clip", "share"), [(0, 0, 0.90), (TOTAL // 8, TOTAL // 32, 0.9 - 1 / 8 - 2 / 32)]
)
def test_ram_is_filled_to_the_mark_and_not_beyond(make, batch, clip, share):
    store = make(meter=FakeMeter(limit=TOTAL), batch_bytes=batch, clip_bytes=clip)
    store.warm(FE, ROWS)
    stats = store.stats()
    # reserve: batch + clip per loader + 10 % of the limit
    assert stats.mark_bytes == pytest.approx(share * TOTAL, abs=2)
    assert stats.mark_bytes - LARGEST <= stats.ram_bytes <= stats.mark_bytes
    assert stats.ram_peak_bytes <= stats.mark_bytes
    assert stats.rows_disk + stats.rows_ram == len(ROWS)


def test_a_large_limit_is_used_to_95_percent(make):
    assert make(meter=FakeMeter(limit=14 * GB)).stats().mark_bytes == pytest.approx(0.95 * 14 * GB, abs=2)


def test_nothing_is_spilled_below_the_mark(make):
    store = make(meter=FakeMeter(limit=int(TOTAL / 0.89)))
    store.warm(FE, ROWS)
    assert store.stats().spilled == 0 and store.stats().first_spill_s is None and store.files() == []


@pytest.mark.parametrize("factor", [0.1, 10])
def test_headers_that_lie_are_trued_up(make, factor):
    rows = [row_of(i, 50, claimed=int(50 * factor)) for i in range(20)]
    total = 20 * BINS * 50 * 4
    store = make(meter=FakeMeter(limit=2 * total))
    store.warm(FE, rows)
    store.check_arrays(rows)
    assert store.stats().ram_bytes == total
    store.check_books()
    tight = make(meter=FakeMeter(limit=total))
    tight.warm(FE, rows)
    assert tight.stats().ram_bytes <= tight.stats().mark_bytes


def test_a_header_that_claims_years_reserves_one_clip_at_most(make):
    rows = [row_of(0, 50, claimed=2**40)]
    store = make(clip_bytes=10**6)
    store.warm(FE, rows)
    assert store.stats().rows_ram == 1


@pytest.mark.fault(
    row=87,
    injection="recordings whose waves take much of the limit, four loaders",
    outcome="as many are loaded at once as fit into a quarter of the limit, one that is larger alone",
)
@pytest.mark.parametrize(("samples", "at_once"), [(2000, 1), (500, 1), (400, 2), (100, 4)])
def test_loaders_wait_for_room_for_their_waves(make, samples, at_once):
    rows = [row_of(i, 5, claimed=samples) for i in range(12)]
    busy, most = [], []

    class Watching(Producer):
        def __call__(self, fe, rows):
            busy.append(rows[0].id)
            time.sleep(0.01)
            most.append(len(busy))
            busy.remove(rows[0].id)
            yield from super().__call__(fe, rows)

    work = count_wave_bytes(samples / FE.rate, FE.rate)
    store = make(producer=Watching(), loaders=4, meter=FakeMeter(limit=40_000), work_bytes=work)
    reserve = 4000 + min(4 * work, max(work, 10_000))  # slack and work
    assert store.stats().mark_bytes == min(36_000, 40_000 - reserve)
    store.warm(FE, rows)
    store.check_arrays(rows)
    assert max(most) == at_once


def test_an_entry_larger_than_everything_is_streamed(make):
    store = make(ram=1000, disk=1000, meter=FakeMeter(limit=40_000))
    for _ in range(2):
        store.warm(FE, ROWS[:3])
        store.check_arrays(ROWS[:3])
    assert store.stats().ram_bytes == 0 == store.stats().disk_bytes


def test_bookkeeping_is_below_one_percent(make):
    rows = [row_of(i, 200) for i in range(400)]
    store = make()
    tracemalloc.start()
    try:
        store.warm(FE, rows)
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    data = store.stats().ram_bytes
    assert data == 400 * BINS * 200 * 4
    # The test's own list of made rows is about 150 bytes each
    assert (size - data) / data < 0.01 + 400 * 150 / data


# -- others' memory


def test_entries_leave_ram_when_others_need_it_and_stay_out_until_it_is_calm(make):
    meter = FakeMeter(limit=2 * TOTAL)
    store = make(meter=meter)
    store.warm(FE, ROWS[:20])
    kept = store.stats().ram_bytes
    meter.others = int(0.80 * meter.limit_bytes) - kept
    store.clock.now += 3
    store.get(FE, ROWS[0])
    assert store.stats().ram_bytes == kept
    meter.others = int(0.97 * meter.limit_bytes) - kept
    store.clock.now += 3
    store.get(FE, ROWS[0])
    stats = store.stats()
    floor = 0.90 * meter.limit_bytes
    assert floor - LARGEST <= meter.others + stats.ram_bytes <= floor
    assert stats.moved == stats.rows_disk > 0 and stats.dropped == 0
    meter.others = int(0.90 * meter.limit_bytes) - stats.ram_bytes  # at the floor: still closed
    store.clock.now += 3
    store.get(FE, ROWS[20])
    assert store.stats().ram_bytes == stats.ram_bytes
    meter.others = int(0.85 * meter.limit_bytes) - stats.ram_bytes
    store.clock.now += 3
    store.get(FE, ROWS[21])
    assert store.stats().ram_bytes > stats.ram_bytes
    store.check_arrays()
    store.check_books()


def test_a_saw_tooth_round_the_mark_moves_every_entry_at_most_once(make):
    meter = FakeMeter(limit=2 * TOTAL)
    store = make(meter=meter)
    for step in range(40):
        kept = store.stats().ram_bytes
        meter.others = int((0.95 + (0.03 if step % 2 else -0.03)) * meter.limit_bytes) - kept
        store.clock.now += 3
        store.check_arrays(ROWS[step % 20:step % 20 + 4])
    stats = store.stats()
    assert stats.moved + stats.spilled <= 2 * len(ROWS) and stats.dropped == 0
    assert stats.recomputes <= len(ROWS)


def test_memory_that_is_not_ours_is_reported_and_does_not_empty_the_store(make):
    class Stuck(FakeMeter):
        def used(self):
            return self.others

    store = make(meter=Stuck(limit=2 * TOTAL))
    store.warm(FE, ROWS)
    store.meter.others = int(1.92 * TOTAL)
    for _ in range(20):
        store.clock.now += 3
        store.check_arrays()
    stats = store.stats()
    assert stats.ram_bytes > TOTAL // 2  # one back-off, then it was clear that it does not help
    assert [n for n in stats.notes if n.startswith("UnmanagedMemory")] != []


# -- the budget alone


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Counted:
    """A meter of `limit` bytes that counts its readings."""

    def __init__(self, limit, used=0):
        self.limit, self.used, self.readings = limit, used, 0

    def read(self):
        self.readings += 1
        return Reading(limit_bytes=self.limit, used_bytes=self.used, source="made up")


def budget(limit=1000, used=0, loaders=1, **limits):
    meter, clock = Counted(limit, used), Clock()
    given = StoreLimits(**{"ram_bytes": 10**12, "disk_bytes": 0} | limits)
    return Budget(meter, given, loaders, clock), meter


def test_the_mark_leaves_room_for_every_part_of_the_reserve():
    assert budget(1000)[0].mark_bytes == 900  # a tenth of slack
    assert budget(10**10)[0].mark_bytes == 9_500_000_000  # 256 MB of slack are less than 5 %
    one = budget(4 * 10**9, batch_bytes=3 * 10**8, table_bytes=5 * 10**7, open_bytes=10**7, clip_bytes=10**6,
                 loaders=3, work_bytes=10**8)[0]
    parts = 256_000_000 + 300_000_000 + 50_000_000 + 10_000_000 + 3 * 1_000_000 + 3 * 100_000_000
    assert one.mark_bytes == 4 * 10**9 - parts
    assert budget(1000, loaders=4, work_bytes=100)[0].mark_bytes == 900 - 250  # a quarter for all at work
    assert budget(1000, loaders=4, work_bytes=300)[0].mark_bytes == 900 - 300  # one at least
    assert budget(1000, batch_bytes=2000)[0].mark_bytes == 0
    assert budget(1000)[0].floor_bytes == 900 and budget(1000, spill_at=0.5)[0].mark_bytes == 500


def test_what_is_reserved_kept_and_not_yet_seen_counts_up_to_the_last_byte():
    held, meter = budget(1000, used=100)
    assert not held.reserve(801) and held.reserved == 0
    assert held.reserve(500) and held.reserve(300) and not held.reserve(1)
    held.settle(500, 400)
    assert (held.reserved, held.kept, held.peak_kept) == (300, 400, 400)
    assert held.reserve(100) and not held.reserve(1)
    held.release(150)
    assert (held.kept, held.peak_kept) == (250, 400) and held.reserve(150) and not held.reserve(1)
    assert meter.readings == 1  # the clock has stood still
    capped = budget(1000, ram_bytes=70)[0]
    assert not capped.reserve(71) and capped.reserve(40) and not capped.reserve(31) and capped.reserve(30)
    capped.settle(70, 50)
    assert not capped.reserve(21) and capped.reserve(20)


def test_a_reading_is_believed_a_tenth_of_a_second_and_less_before_a_no():
    held, meter = budget(1000)
    clock = held._clock
    clock.now = 0.099
    assert held.reserve(1) and meter.readings == 1
    clock.now = 0.1
    assert held.reserve(1) and meter.readings == 2
    clock.now = 0.109
    assert not held.reserve(950) and meter.readings == 2
    clock.now = 0.111
    assert not held.reserve(950) and meter.readings == 3
    meter.used = 600
    clock.now = 5.0
    assert held.excess() == 0 and (held.used_bytes, held.peak_used) == (600, 600)
    meter.used = 300
    clock.now = 6.0
    assert held.excess() == 0 and (held.used_bytes, held.peak_used) == (300, 600)


def test_above_the_mark_bytes_leave_to_the_floor_and_for_a_minute_none_enter_above_it():
    held, meter = budget(10**10)
    clock = held._clock
    meter.used, clock.now = 95 * 10**8, 10.0
    assert held.excess() == 0
    meter.used, clock.now = 95 * 10**8 + 1, 20.0
    assert held.excess() == 5 * 10**8 + 1
    meter.used, clock.now = 92 * 10**8, 79.9
    assert not held.reserve(1)
    clock.now = 80.0
    assert held.reserve(3 * 10**8) and not held.reserve(1)


def test_arrays_in_hand_leave_after_four_calls_and_by_front_end():
    hand = Hand()
    array = np.zeros(25, np.uint8)
    assert hand.fits(25, 1000) and not hand.fits(26, 1000)  # a fortieth
    assert hand.fits(64_000_000, 10**12) and not hand.fits(64_000_001, 10**12)
    hand.put("mel", "a", array)
    hand.calls = 3
    assert not hand.fits(1, 1000) and hand.bytes == 25
    hand.calls = 4
    assert hand.fits(1, 1000) and hand.bytes == 0 and hand.take("mel", "a") is None
    hand.put("mel", "a", array)
    hand.put("cqt", "a", array)
    hand.forget("mel")
    assert list(hand.arrays) == [("cqt", "a")] and hand.bytes == 25
    assert hand.take("cqt", "a") is array and hand.bytes == 0


def test_work_waits_for_room_and_larger_work_runs_alone():
    held = budget(1000)[0]
    with held.work(5000):
        assert held._at_work == 5000
    with held.work(100), held.work(150):
        assert held._at_work == 250
    assert held._at_work == 0
