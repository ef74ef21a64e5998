"""What everybody asks of a front end, alone or behind a view that cuts the wave first.

Owns the protocol only; front ends themselves are frontends'.
"""
from typing import Literal, Protocol

import numpy as np


class Source(Protocol):
    """What turns a wave into the array that is stored: a front end, alone or behind a view that cuts first.

    name      what messages call it
    key       equal keys mean equal arrays
    rate      Hz of the wave it wants
    dtype     of the array
    channels  C of what the front end makes of one wave; bins: its M
    pad       what a later pad along time writes: a number, or "clip_min" = the least value of that clip
    time      False where the last axis is not time
    fixed     T where every clip has the same, else None
    uneven    True where waves of one length may give arrays of several, or where no wave may be cut first
    """

    @property
    def name(self) -> str: ...

    @property
    def uneven(self) -> bool: ...

    @property
    def key(self) -> str: ...

    @property
    def rate(self) -> int: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def channels(self) -> int: ...

    @property
    def bins(self) -> int: ...

    @property
    def pad(self) -> float | Literal["clip_min"]: ...

    @property
    def time(self) -> bool: ...

    @property
    def fixed(self) -> int | None: ...

    def max_frames(self, samples: int) -> int:
        """Upper bound of T for a wave of `samples` samples at `rate`."""

    def max_bytes(self, samples: int) -> int:
        """Bytes to expect of the array of such a wave."""

    def of_row(self, wave: np.ndarray, row_id: str) -> np.ndarray:
        """array[C, M, T] of a wave f32[S] at `rate`; the row's id seeds what is random."""
