"""A shelf: everything the store knows about one front end and its rows.

Owns no rule: which array stands where is decided by `kernel.cache.tiers`.
"""
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from ..errors import ClipError
from ..sound.rows import Row
from ..sound.source import Source
from .disk import Extent, Rate

USES = 5  # passes over a front end that are still to come, unless `expect` says: the folds of one member


@dataclass(eq=False)
class Shelf:
    """Everything known about one front end. Guarded by the lock of its `Tiers`.

    frames    row id -> exact frames of its array, once it was produced
    broken    row id -> why it has no array
    banned    rows whose bytes came back wrong from disk: not put there again
    pending   rows being computed ahead; coming: rows that come out of another row's recomputing
    siblings  clip id -> rows of one recording asked for together: they come out of one decoding
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
    speed: Rate = field(default_factory=Rate)
    uses: int = USES
    ram_bytes: int = 0
    forgotten: bool = False
