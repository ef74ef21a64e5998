"""A store whose clock, meter and front ends are made up, so that every tier and every fault can be tried.

Owns rows whose arrays are known (`array_of`), the producer that counts what it makes, and checks of a whole
store.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernel.cache.ram import StoreLimits
from kernel.cache.store import Store
from kernel.errors import ClipEmpty, ClipError
from kernel.memory import Reading
from kernel.sound.decode import Clip
from kernel.sound.rows import Row

GB = 10**9
BINS = 64


class FakeClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeMeter:
    """A meter that shows `others` plus what the store keeps in RAM."""

    def __init__(self, limit: int = GB, others: int = 0) -> None:
        self.limit_bytes = limit
        self.others = others
        self.store: Store | None = None

    def used(self) -> int:
        return self.others + (self.store._tiers.budget.kept if self.store else 0)

    def read(self) -> Reading:
        return Reading(limit_bytes=self.limit_bytes, used_bytes=self.used(), source="made up")


@dataclass(frozen=True)
class FakeFrontEnd:
    """Arrays f32[1, 64, samples]."""

    key: str = "mel"
    rate: int = 100
    dtype: np.dtype = np.dtype(np.float32)

    def max_bytes(self, samples: int) -> int:
        return BINS * samples * self.dtype.itemsize


FE = FakeFrontEnd()


def row_of(i: int, samples: int = 50, claimed: int | None = None) -> Row:
    """A whole clip; the true length of these clips, whatever their headers claim, is in `channels`."""
    clip = Clip(id=f"c{i}", rate=100, samples_claimed=claimed or samples, channels=samples)
    return Row(id=f"r{i}", clip=clip)


ROWS = [row_of(i, 20 + 7 * i % 60) for i in range(24)]
TOTAL = sum(BINS * 4 * row.clip.channels for row in ROWS)
LARGEST = max(BINS * 4 * row.clip.channels for row in ROWS)
# RAM and disk that lead to each way of answering
TIERS = {"ram": (GB, 0), "disk": (0, GB), "recompute": (0, 0), "mixed": (TOTAL // 3, TOTAL // 3)}


def array_of(fe: FakeFrontEnd, row: Row) -> np.ndarray:
    """What the row's array holds."""
    seed = int.from_bytes(f"{fe.key}/{row.id}".encode(), "big") % 2**32
    samples = row.clip.channels if row.start is None or row.stop is None else row.stop - row.start
    return np.random.default_rng(seed).random((1, BINS, samples), dtype=np.float32)


class Producer:
    """What computes the arrays; it counts its calls and notes the rows it made.

    seconds  that each row costs on the clock
    broken   ids of rows that have no array
    """

    def __init__(self, seconds: float = 0.01, broken: Collection[str] = ()) -> None:
        self.clock = FakeClock()
        self.seconds = seconds
        self.broken = broken
        self.calls = 0
        self.made: list[str] = []

    def __call__(self, fe: Any, rows: Sequence[Row]) -> Iterator[tuple[Row, np.ndarray | ClipError]]:
        self.calls += 1
        for row in rows:
            self.clock.now += self.seconds
            self.made.append(row.id)
            yield row, ClipEmpty(f"{row.id}: no samples") if row.id in self.broken else array_of(fe, row)


class RiggedStore(Store):
    """A real store with a made-up clock, meter and producer."""

    def __init__(
        self,
        scratch: Path,
        ram: int = GB,
        disk: int = GB,
        *,
        meter: FakeMeter | None = None,
        loaders: int = 2,
        producer: Producer | None = None,
        enter_loader: Callable[[], None] = lambda: None,
        **limits: Any,
    ) -> None:
        self.meter = meter or FakeMeter()
        self.producer = producer or Producer()
        self.clock = self.producer.clock
        chosen = {"keep_free_bytes": 0, "any_filesystem": True, **limits}
        super().__init__(
            produce=self.producer,
            meter=self.meter,  # type: ignore[arg-type]
            limits=StoreLimits(ram_bytes=ram, disk_bytes=disk, **chosen),
            scratch=scratch,
            loaders=loaders,
            enter_loader=enter_loader,
            clock=self.clock,
        )
        self.meter.store = self

    @property
    def folder(self) -> Path:
        """Where its spill files lie."""
        return self._tiers.disk.folder

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.spill") if path.is_file())

    def check_arrays(self, rows: Sequence[Row] = ROWS, fe: FakeFrontEnd = FE) -> None:
        """Every row has its own array."""
        for row in rows:
            np.testing.assert_array_equal(self.get(fe, row), array_of(fe, row))

    def check_books(self) -> None:
        """Every sum agrees with what is really there."""
        shelves = self._tiers.shelves.values()
        stats = self.stats()
        assert stats.reserved_bytes == 0
        assert stats.ram_bytes == sum(a.nbytes for shelf in shelves for a in shelf.ram.values())
        assert stats.disk_bytes == sum(path.stat().st_size for path in self.files())
        assert stats.hand_bytes == sum(a.nbytes for a, _ in self._tiers.hand.arrays.values())
