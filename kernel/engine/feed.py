"""Brings the arrays of rows into the store before a net wants them, and knows what that costs.

Owns `Feed`: the store, what a loader thread does for one clip, and the measured seconds of loading. Does not
decode (sound), place arrays (cache) or choose rows (cpu, gpu).
"""
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ..cache.ram import StoreLimits
from ..cache.store import Store
from ..errors import ClipError
from ..inference.recipe import Recipe, Stage
from ..memory import Meter
from ..sound.loading import produce
from ..sound.rows import Row
from ..sound.source import Source
from .heartbeat import Heartbeat
from .journal import Journal
from .run_rows import RunRows

# Seconds per second of audio before anything is measured: decoding and front end with two loaders
# (docs/performance.md).
LOADING_S = 0.004


class Feed:
    """Arrays for the nets, loaded ahead.

    sizes   front end key -> i64[N], bytes of each row's array, 0 = not produced yet
    waited  front end key -> [wall seconds waited, seconds of audio] of loading what was new
    """

    def __init__(
        self,
        *,
        rows: RunRows,
        longest_s: float,
        journal: Journal,
        heartbeat: Heartbeat,
        meter: Meter,
        limits: StoreLimits,
        scratch: Path,
        loaders: int,
    ) -> None:
        self.rows = rows
        self._longest_s = longest_s
        self._journal = journal
        self._heartbeat = heartbeat
        self.sizes: dict[str, np.ndarray] = {}
        self.waited: dict[str, list[float]] = {}
        self._produced = itertools.count(1)
        self._changes = 0  # grows with every array that is produced
        self._fresh: dict[tuple[str, ...], tuple[int, np.ndarray, float]] = {}
        self.store = Store(
            produce=self._produce,
            meter=meter,
            limits=limits,
            scratch=scratch,
            loaders=loaders,
            enter_loader=lambda: torch.set_num_threads(1),
        )

    def _produce(self, fe: Source, rows: Sequence[Row]) -> Iterator[tuple[Row, np.ndarray | ClipError]]:
        """What a loader thread does for the rows of one clip; a crash leaves the clip's mark behind."""
        with self._journal.flight("clip", [rows[0].clip.id]):
            for row, array in produce(fe, rows, self._longest_s, self.rows.recorder.note):
                if isinstance(array, np.ndarray):
                    self._sizes_of(fe)[self.rows.number(row)] = array.nbytes
                    self._changes = next(self._produced)
                self._heartbeat.beat()  # not behind the loop: whoever has the last array may not come back
                yield row, array

    def _sizes_of(self, fe: Source) -> np.ndarray:
        """The front end's entry of `sizes`, made when first asked for."""
        known = self.sizes.get(fe.key)
        if known is None:
            known = self.sizes.setdefault(fe.key, np.zeros(len(self.rows.all), np.int64))
        return known

    def prefetch(self, recipe: Recipe, block: Sequence[int]) -> None:
        """Let the loaders begin with the arrays of these rows."""
        for stage in recipe.stages.values():
            self.store.prefetch(stage.fe, [self.rows.all[i] for i in block])

    def load(self, recipe: Recipe, block: Sequence[int], stop: Callable[[], bool]) -> float:
        """Seconds waited until the arrays of these rows are in the store; noted where they are new."""
        started = time.monotonic()
        for stage in recipe.stages.values():
            self._load_stage(stage, block, stop)
        return time.monotonic() - started

    def _load_stage(self, stage: Stage, block: Sequence[int], stop: Callable[[], bool]) -> None:
        fresh = [i for i in block if self.store.frames(stage.fe, self.rows.all[i]) is None]
        # Filter banks and caches are made once: no part of the rate
        if fresh and stage.fe.key not in self.waited:
            warm_up = fresh.pop(len(fresh) // 2)  # of middle length: the rate then holds for the others
            self.store.warm(stage.fe, [self.rows.all[warm_up]], stop)
            self.waited.setdefault(stage.fe.key, [0.0, 0.0])
        began = time.monotonic()
        self.store.warm(stage.fe, [self.rows.all[i] for i in block], stop)
        if fresh and not stop():
            total = self.waited[stage.fe.key]
            total[0] += time.monotonic() - began
            total[1] += float(self.rows.seconds[fresh].sum())

    def load_first(self, recipes: Iterable[Recipe], rows: Sequence[Row], stop: Callable[[], bool]) -> None:
        """Load these rows one after the other on one thread: a second crash then names the culprit."""
        for recipe in recipes:
            for stage in recipe.stages.values():
                for row in rows:
                    if stop():
                        return
                    try:
                        self.store.get(stage.fe, row)
                    except ClipError as error:
                        self.rows.lose(row, error)

    def forecast_s(self, recipe: Recipe, todo: np.ndarray) -> float:
        """Wall seconds of loading for those of the rows bool[N] that lack an array nobody has produced yet.

        What was found for the same rows is found anew only when more arrays are there.
        """
        keys = tuple(stage.fe.key for stage in recipe.stages.values())
        changes = self._changes
        known = self._fresh.get(keys)
        if known is None or known[0] != changes or known[1] is not todo:
            new = [self._sizes_of(stage.fe) == 0 for stage in recipe.stages.values()]
            fresh = todo & np.logical_or.reduce(new)
            known = self._fresh[keys] = changes, todo, float(self.rows.seconds[fresh].sum())
        return known[2] * self.rate() if known[2] else 0.0

    def rate(self) -> float:
        """Wall seconds per second of audio for one front end, as measured so far."""
        seconds, audio = np.sum(list(self.waited.values()) or [[0.0, 0.0]], axis=0)
        return float(seconds / audio) if audio > 0 else LOADING_S
