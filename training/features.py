"""The training clips as arrays of kernel front ends, made once and kept.

Owns `Features`, which has the `get(front end, row)` of kernel.store. Decoding, front ends and rows are the kernel's own.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from kernel import audio, predict
from kernel.errors import ClipError


class Features:
    """Arrays of every (front end, row), filled by `warm`; a broken clip keeps its error.

    rows     one per clip, in the order of the clips
    errors   row id -> why it could not be used
    """

    def __init__(self, folder: Path, ids: Sequence[str], max_seconds: float) -> None:
        self.rows = audio.list_rows(list(ids), audio.find_clips(folder, list(ids)), None)
        self.errors: dict[str, ClipError] = {}
        self._max_seconds = max_seconds
        self._kept: dict[tuple[str, str], np.ndarray] = {}

    def warm(self, fe: Any, jobs: int, progress: Callable[[Sequence[Any]], Any] = lambda rows: rows) -> None:
        """Fills the front end's arrays of all rows in `jobs` threads."""
        if any(key == fe.key for key, _ in self._kept):
            return
        Parallel(n_jobs=jobs, prefer="threads")(delayed(self._fill)(fe, row) for row in progress(self.rows))

    def _fill(self, fe: Any, row: audio.Row) -> None:
        for made, array in predict.produce(fe, [row], self._max_seconds, lambda id, text: None):
            if isinstance(array, ClipError):
                self.errors[made.id] = array
            else:
                self._kept[fe.key, made.id] = array

    def get(self, fe: Any, row: audio.Row) -> np.ndarray:
        """array[C, M, T] in the front end's dtype.

        Raises  ClipError for a clip that cannot be read
        """
        if row.id in self.errors:
            raise self.errors[row.id]
        return self._kept[fe.key, row.id]

    @property
    def usable(self) -> np.ndarray:
        """bool[N], the clips without an error so far."""
        return np.array([row.id not in self.errors for row in self.rows])
