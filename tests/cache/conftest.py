"""Stores for the tests of the cache, closed when a test ends."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.stores import FE, ROWS, RiggedStore


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., RiggedStore]]:
    """make(ram, disk, ...) -> RiggedStore."""
    stores: list[RiggedStore] = []

    def build(*sizes: int, scratch: Path = tmp_path / "scratch", **chosen: Any) -> RiggedStore:
        stores.append(RiggedStore(scratch, *sizes, **chosen))
        return stores[-1]

    yield build
    for store in stores:
        store.close()


@pytest.fixture
def disk_only(make: Callable[..., RiggedStore]) -> RiggedStore:
    """A store without RAM that holds eight rows on disk."""
    store = make(ram=0, loaders=1)
    store.warm(FE, ROWS[:8])
    assert store.stats().rows_disk == 8
    return store
