"""Admission to RAM, and what leaves it when others need the memory."""
from __future__ import annotations

import time
import tracemalloc

import pytest

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
