"""A shelf: everything the store knows about one front end and its rows.

Owns no rule: which array stands where is decided by `kernel.cache.tiers`.
"""
import bisect
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from ..errors import ClipError
from ..sound.rows import Row
from ..sound.source import Source
from .disk import Extent, Rate

SIBLINGS = 64  # most windows that come out of the decoding for one that is wanted now
USES = 5  # passes over a front end that are still to come, unless `expect` says: the folds of one member


@dataclass(eq=False)
class Shelf:
    """Everything known about one front end. Guarded by the lock of its `Tiers`.

    frames    row id -> exact frames of its array, once it was produced
    broken    row id -> why it has no array
    banned    rows whose bytes came back wrong from disk: not put there again
    pending   rows being computed ahead; coming: rows that come out of another row's recomputing
    siblings  clip id -> windows of one recording that were asked for, in time order
    last      clip id -> the task that was queued last for the recording
    speed     bytes per second of producing; uses: passes still to come
    """

    fe: Source
    ram: dict[str, np.ndarray] = field(default_factory=dict)
    disk: dict[str, Extent] = field(default_factory=dict)
    frames: dict[str, int] = field(default_factory=dict)
    broken: dict[str, ClipError] = field(default_factory=dict)
    banned: set[str] = field(default_factory=set)
    pending: dict[str, Future[None]] = field(default_factory=dict)
    coming: dict[str, Future[np.ndarray | None]] = field(default_factory=dict)
    siblings: dict[str, list[Row]] = field(default_factory=dict)
    last: dict[str, Future[None]] = field(default_factory=dict)
    speed: Rate = field(default_factory=Rate)
    uses: int = USES
    ram_bytes: int = 0
    forgotten: bool = False

    def know_siblings(self, clip_id: str, group: list[Row]) -> None:
        """Note windows of one recording, in time order: they come out of one decoding."""
        if group[0].start is None:
            return
        known = self.siblings.setdefault(clip_id, [])
        if not known or _start(known[-1]) < _start(group[0]):
            known += group
        else:
            merged = {row.id: row for row in [*known, *group]}
            self.siblings[clip_id] = sorted(merged.values(), key=_start)

    def siblings_after(self, row: Row) -> list[Row]:
        """The next windows of a row's recording that were asked for, in time order."""
        known = self.siblings.get(row.clip.id, [])
        first = bisect.bisect_right(known, _start(row), key=_start)
        return known[first : first + SIBLINGS]


def _start(row: Row) -> int:
    return row.start or 0
