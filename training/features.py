"""The training clips as arrays of the kernel's front ends, kept by the kernel's store.

Owns which rows there are: every clip, and altered copies of it where a recipe asks for waveform effects. Does
not decode, transform or spill: the kernel does.
"""
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kernel.cache.ram import StoreLimits
from kernel.cache.store import Store
from kernel.errors import ClipError
from kernel.files import free_disk
from kernel.memory import Meter
from kernel.sound.clips import find_clips
from kernel.sound.loading import produce
from kernel.sound.recording import Recordings
from kernel.sound.rows import Row, list_rows

from .effects import Effect

COPY = "~"  # The row id of an altered copy is the clip's id, this sign and a number.


@dataclass(frozen=True, kw_only=True)
class Altered:
    """A front end behind a waveform effect, for one copy of one clip."""

    fe: Any
    effect: Effect
    seed: int

    @property
    def rate(self) -> int:
        return int(self.fe.rate)

    def of_row(self, wave: np.ndarray, row_id: str) -> np.ndarray:
        """The front end's array of the altered wave."""
        return self.fe.of_row(self.effect(wave, self.rate, np.random.default_rng(self.seed)), row_id)


class Features:
    """Arrays of every (front end, row): a kernel Store over the clips of `folder`.

    rows         one per clip, in the order of ids, then the rows `more`
    errors       row id -> why the clip could not be used
    max_seconds  longer clips are cut there
    loaders      threads that decode and transform
    effect       what makes the altered copies, None where there are none
    """

    def __init__(self, folder: Path, ids: Sequence[str], max_seconds: float, loaders: int = 2,
                 effect: Effect | None = None, more: Sequence[Row] = ()) -> None:
        self.rows = [*list_rows(list(ids), find_clips(folder, list(ids)), None), *more]
        self._originals = {row.id for row in self.rows}
        self._recordings = Recordings(max_seconds)
        self._windows = Recordings()  # of recordings of any length
        self._effect = effect
        self._scratch = tempfile.TemporaryDirectory(prefix="hourglass-train-")
        meter = Meter()
        scratch = Path(self._scratch.name)
        limits = StoreLimits(ram_bytes=meter.read().limit_bytes, disk_bytes=free_disk(scratch) // 2)
        self.store = Store(
            produce=self._produce, meter=meter, limits=limits, scratch=scratch, loaders=loaders
        )
        self.get = self.store.get
        self.errors: dict[str, ClipError] = {}

    def copies(self, row: Row, count: int) -> list[Row]:
        """The row and `count` altered copies of it."""
        return [row, *(replace(row, id=f"{row.id}{COPY}{i}") for i in range(1, count + 1))]

    def warm(self, fe: Any, copies: int = 0) -> None:
        """Fills the front end's arrays of all rows; broken clips are then in `errors`."""
        self.store.warm(fe, [copy for row in self.rows for copy in self.copies(row, copies)])

    def _produce(
        self, fe: Any, rows: Sequence[Row]
    ) -> Iterator[tuple[Row, np.ndarray | ClipError]]:
        for row in rows:
            source = fe
            if self._effect is not None and row.id not in self._originals:
                source = Altered(fe=fe, effect=self._effect, seed=zlib.crc32(row.id.encode()))
            recordings = self._windows if row.window else self._recordings
            for made, array in produce(source, [row], recordings, lambda id, text: None):
                if isinstance(array, ClipError):
                    self.errors[made.id] = array
                yield made, array

    @property
    def usable(self) -> np.ndarray:
        """bool[N], the clips without an error so far."""
        return np.array([row.id not in self.errors for row in self.rows])

    def close(self) -> None:
        """Removes the spill files."""
        self.store.close()
        self._windows.close()
        self._scratch.cleanup()
