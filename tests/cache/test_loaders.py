"""The loader threads: who is served first, and what happens when producing fails."""
from __future__ import annotations

import threading
import time
from concurrent.futures import wait

import numpy as np
import pytest

from kernel.errors import ClipUnreadable
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from tests.helpers.stores import FE, ROWS, Producer, array_of


def test_production_happens_in_loader_threads_that_were_entered(make):
    entered = set()
    used = set()

    class Watching(Producer):
        def __call__(self, fe, rows):
            used.add(threading.current_thread().name)
            yield from super().__call__(fe, rows)

    store = make(
        0, 0, producer=Watching(), enter_loader=lambda: entered.add(threading.current_thread().name)
    )
    store.warm(FE, ROWS)
    store.check_arrays()
    assert used <= entered and all(n.startswith(("loader", "recompute")) for n in used) and len(entered) <= 4


def test_a_consumer_that_waits_is_served_before_the_look_ahead(make):
    gate = threading.Event()

    class Gated(Producer):
        def __call__(self, fe, rows):
            if threading.current_thread().name.startswith("loader"):
                assert gate.wait(20)
            yield from super().__call__(fe, rows)

    store = make(producer=Gated(), loaders=1)
    store.prefetch(FE, ROWS)  # its first row is in work, the others queue
    np.testing.assert_array_equal(store.get(FE, ROWS[-1]), array_of(FE, ROWS[-1]))
    gate.set()
    store.check_arrays()


def test_warm_ends_when_it_is_told_to(make):
    gate = threading.Event()

    class Gated(Producer):
        def __call__(self, fe, rows):
            assert gate.wait(20)
            yield from super().__call__(fe, rows)

    store = make(producer=Gated())
    store.warm(FE, ROWS, stop=lambda: True)
    assert store.stats().produced == 0
    gate.set()


def test_close_does_not_wait_for_a_loader_that_hangs(make):
    gate = threading.Event()

    class Hanging(Producer):
        def __call__(self, fe, rows):
            gate.wait(20)
            return iter(())

    store = make(producer=Hanging())
    store.prefetch(FE, ROWS)
    begun = time.monotonic()
    store.close()
    assert time.monotonic() - begun < 10  # the hang lasts 20 s
    gate.set()


def test_errors_that_are_no_clip_s_fault_are_raised_and_cost_no_bytes(make):
    class Failing(Producer):
        def __call__(self, fe, rows):
            raise RuntimeError("bug in the front end")

    store = make(producer=Failing())
    with pytest.raises(RuntimeError, match="bug"):
        store.warm(FE, ROWS)
    with pytest.raises(RuntimeError, match="bug"):
        store.get(FE, ROWS[0])
    assert store.stats().reserved_bytes == 0 and store.errors == {}


@pytest.mark.parametrize("failures", [1, 2])
def test_running_out_of_memory_makes_room_and_tries_once_more(make, failures):
    class Hungry(Producer):
        def __call__(self, fe, rows):
            if rows[0].id == "r20" and self.made.count("r20") < failures:
                self.made.append("r20")
                raise MemoryError
            yield from super().__call__(fe, rows)

    store = make(producer=Hungry())
    store.warm(FE, ROWS[:20])
    if failures == 1:
        store.check_arrays([ROWS[20]])
    else:
        with pytest.raises(ClipUnreadable, match="more RAM"):
            store.get(FE, ROWS[20])
    assert 0 < store.stats().moved < 20
    store.check_books()


def test_a_loader_without_memory_leaves_the_row_to_the_consumer(make):
    class Hungry(Producer):
        def __call__(self, fe, rows):
            if threading.current_thread().name.startswith("loader"):
                raise MemoryError
            yield from super().__call__(fe, rows)

    store = make(producer=Hungry())
    store.warm(FE, ROWS)
    store.check_arrays()


# -- windows of one recording, asked for piece by piece


def windows(count: int = 30) -> list[Row]:
    clip = Clip(id="long", rate=100, samples_claimed=50 * count, channels=50)
    return [Row(id=f"w{i:02d}", clip=clip, start=50 * i, stop=50 * (i + 1)) for i in range(count)]


class GatedWindows(Producer):
    """Waits at the gate where the look-ahead produces; notes in which order rows are made."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def __call__(self, fe, rows):
        if threading.current_thread().name.startswith("loader"):
            assert self.gate.wait(20)
        yield from super().__call__(fe, rows)


def test_windows_asked_for_later_wait_for_those_before(make):
    producer = GatedWindows()
    store = make(producer=producer, loaders=4)
    rows = windows()
    for start in (0, 10, 20):
        store.prefetch(FE, rows[start:start + 10])
    producer.gate.set()
    store.warm(FE, rows)
    assert producer.made == [row.id for row in rows] and producer.calls == 3
    store.check_arrays(rows)


def test_a_window_that_is_wanted_now_does_not_wait_for_the_look_ahead_of_its_recording(make):
    producer = GatedWindows()
    store = make(producer=producer, loaders=1)
    rows = windows()
    store.prefetch(FE, rows[:10])  # in work, at the gate
    store.prefetch(FE, rows[10:20])  # waits for it
    np.testing.assert_array_equal(store.get(FE, rows[12]), array_of(FE, rows[12]))
    producer.gate.set()
    store.warm(FE, rows)
    store.check_arrays(rows)
    store.check_books()


def test_windows_that_wait_when_the_store_is_closed_are_given_up_without_a_word(make, caplog):
    producer = GatedWindows()
    store = make(producer=producer)
    rows = windows()
    store.prefetch(FE, rows[:10])
    waiting = [store._queue(store._tiers.shelf(FE), "long", rows[start:start + 10]) for start in (10, 20)]
    store.close()
    producer.gate.set()
    wait(waiting, timeout=20)
    assert all(task.cancelled() for task in waiting) and not caplog.records
