"""The loader threads: who is served first, and what happens when producing fails."""
from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from kernel.errors import ClipUnreadable
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
