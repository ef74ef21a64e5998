"""Brings the arrays of rows into the store before a net wants them, and knows what that costs.

Owns `Feed`: the store, what a loader thread does for one clip, and the measured seconds of loading. Does not
decode (sound), place arrays (cache) or choose rows (cpu, gpu).
"""
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ..cache.ram import StoreLimits
from ..cache.store import Store
from ..errors import ClipError, EmbeddingFailed
from ..inference.recipe import Recipe, Stage
from ..memory import Meter
from ..sound.loading import produce
from ..sound.own import OwnFrontEnd
from ..sound.recording import Recordings
from ..sound.rows import Row
from ..sound.scopes import OfRecording
from ..sound.source import Source
from .heartbeat import Heartbeat
from .journal import Journal
from .run_rows import RunRows

# Seconds per second of audio before anything is measured: decoding and front end with two loaders
# (docs/performance.md).
LOADING_S = 0.004
# Seconds per second of audio that a user's own function is given in one call before it counts as hung:
# librosa.cqt takes a hundredth of that.
OWN_RATE = 2.0
FIRST_CALL_S = 300.0


class Feed:
    """Arrays for the nets, loaded ahead.

    loaders  threads that decode and transform
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
        self.loaders = loaders
        self._recordings = Recordings(longest_s, heartbeat.beat)
        self._journal = journal
        self._heartbeat = heartbeat
        self.sizes: dict[str, np.ndarray] = {}
        self.waited: dict[str, list[float]] = {}
        self._produced = itertools.count(1)
        self._changes = 0  # grows with every array that is produced
        self._fresh: dict[tuple[str, ...], tuple[int, np.ndarray, float]] = {}
        self._called: set[str] = set()
        self._calling = threading.Lock()
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
            self._first_call(fe)
            for row, array in produce(fe, rows, self._recordings, self.rows.recorder.note):
                if isinstance(array, np.ndarray):
                    self._note_size(fe, row, array.nbytes)
                    self._changes = next(self._produced)
                self._heartbeat.beat()  # not behind the loop: whoever has the last array may not come back
                yield row, array

    def _first_call(self, fe: Source) -> None:
        """A user's own function is called once before any clip: its import and its compiling take their time.

        librosa compiles for some ten seconds, several times that on a busy machine. All the while the engine
        says that it lives, for FIRST_CALL_S at most.
        """
        if not isinstance(fe, OwnFrontEnd) or fe.key in self._called:
            return
        with self._calling:
            if fe.key in self._called:
                return
            with self._heartbeat.beating(FIRST_CALL_S), contextlib.suppress(Exception):
                fe(np.sin(np.arange(fe.rate, dtype=np.float32)))  # what is wrong with it each clip will tell
            self._called.add(fe.key)

    def _note_size(self, fe: Source, row: Row, size: int) -> None:
        """A recording's array counts for each of its rows alike."""
        if isinstance(fe, OfRecording):
            numbers = self.rows.by_clip[row.clip.id]
            self._sizes_of(fe)[numbers] = max(1, size // max(1, len(numbers)))
        else:
            self._sizes_of(fe)[self.rows.number(row)] = size

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
            # Of middle length: the rate then holds for the others. Windows are alike, and read in order
            windowed = self.rows.all[fresh[0]].start is not None
            warm_up = fresh.pop(0 if windowed else len(fresh) // 2)
            self.store.warm(stage.fe, [self.rows.all[warm_up]], stop)
            self.waited.setdefault(stage.fe.key, [0.0, 0.0])
        began = time.monotonic()
        self.store.warm(stage.fe, [self.rows.all[i] for i in block], stop)
        if fresh and not stop():
            total = self.waited[stage.fe.key]
            total[0] += time.monotonic() - began
            total[1] += float(self.rows.seconds[fresh].sum())

    def load_first(self, recipes: Iterable[Recipe], rows: Sequence[Row], stop: Callable[[], bool]) -> None:
        """Load these rows clip after clip on one thread: a second crash then names the culprit."""
        clips: dict[str, list[Row]] = {}
        for row in rows:
            clips.setdefault(row.clip.id, []).append(row)
        fes = {stage.fe.key: stage.fe for recipe in recipes for stage in recipe.stages.values()}
        for fe in fes.values():
            for group in clips.values():
                self.store.warm(fe, group, stop)
                for row in group:
                    if stop():
                        return
                    try:
                        if self.store.frames(fe, row) is None:  # broken, or there was no place ahead
                            self.store.get(fe, row)
                    except EmbeddingFailed:
                        continue  # its heads pass over it
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

    def slowest_s(self, recipe: Recipe | None) -> float:
        """Seconds that a user's own front end may keep the interpreter, so that nothing else moves."""
        stages = recipe.stages.values() if recipe is not None else ()
        own = any(isinstance(stage.source, OwnFrontEnd) for stage in stages)
        return max(OWN_RATE, self.rate()) * float(self.rows.seconds.max(initial=0.0)) if own else 0.0

    def rate(self) -> float:
        """Wall seconds per second of audio for one front end, as measured so far."""
        seconds, audio = np.sum(list(self.waited.values()) or [[0.0, 0.0]], axis=0)
        return float(seconds / audio) if audio > 0 else LOADING_S
