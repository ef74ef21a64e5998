"""An embedding as a front end: the vectors that a graph makes of a row, as the array[1, D, P] that is stored.

Owns `Embedded`, a `Source`: so the store, its spill, views, finishes and the loaders treat vectors as they
treat spectrograms. What runs the graph is given to it (embeddings); what heads are is `models.heads`.
"""
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from .. import spec
from ..errors import ClipError, EmbeddingFailed, SpecError, text_of
from ..sound.source import Source
from .views import View

# One run of the graph over a row: (wave f32[S], the row's id) -> its outputs f32[P, n, D] of P passes and n
# patches in each.
Run = Callable[[np.ndarray, str], Sequence[np.ndarray]]
SPARE = 2  # vectors beside per_second x seconds: what patches overlap at the ends


class Embedded:
    """The vectors of [embeddings.NAME]: array[1, D, P], one column per patch, in the order of time.

    fe     what the graph reads;  view: how it is cut for the graph
    run    what runs the graph, once it was given
    """

    channels = 1
    pad: float | Literal["clip_min"] = 0.0
    time = True
    fixed = None
    uneven = False

    def __init__(self, name: str, embedding: spec.Embedding, fe: Source, view: View) -> None:
        self.name = name
        self.embedding = embedding
        self.fe = fe
        self.view = view
        self.rate = fe.rate
        self.dtype = np.dtype(embedding.stored)
        told = repr((embedding.graph, embedding.output, embedding.finish, embedding.stored,
                     embedding.sha256, fe.key, view.key))
        self.key = f"embedding-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
        self.run: Run | None = None

    @property
    def bins(self) -> int:
        """D. Raises SpecError before it is known."""
        if self.embedding.values is None:
            raise SpecError(
                f"embeddings.{self.name}.values: not known yet; write the number of values of a vector"
            )
        return self.embedding.values

    def graph_bytes(self, seconds: float) -> int:
        """Memory that the graph takes for a row of so many seconds, beside its answer."""
        return int((self.embedding.bytes_a or 0.0) + (self.embedding.bytes_b or 0.0) * seconds)

    def max_frames(self, samples: int) -> int:
        """About P of a wave of `samples` samples; where there are more, the store reserves the rest."""
        return math.ceil((self.embedding.per_second or 0.0) * max(1, samples) / self.rate) + SPARE

    def max_bytes(self, samples: int) -> int:
        """Bytes to expect of the stored array of such a wave."""
        return self.bins * self.max_frames(samples) * self.dtype.itemsize

    def of_row(self, wave: np.ndarray, row_id: str) -> np.ndarray:
        """array[1, D, P] of a wave f32[S] at `rate`, C-contiguous, in the stored dtype.

        Raises  EmbeddingFailed where the graph has no finite answer for this row, MemoryError
        """
        if self.run is None:
            raise EmbeddingFailed(f"embedding {self.name}: nothing runs its graph; report this as a bug")
        try:
            outputs = self.run(wave, row_id)
        except (MemoryError, ClipError):
            raise
        except Exception as error:  # runtimes raise types of their own
            raise EmbeddingFailed(
                f"embedding {self.name}: the graph fails on {len(wave)} samples at {self.rate} Hz "
                f"({type(error).__name__}: {text_of(error)[:200]})"
            ) from error
        return self._join(outputs)

    def _join(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """The outputs' values one after the other, a column per patch. Raises EmbeddingFailed."""
        flat = [output.reshape(-1, output.shape[-1]) for output in outputs]
        if len({len(output) for output in flat}) != 1:
            raise EmbeddingFailed(
                f"embedding {self.name}: its outputs {list(self.embedding.output)} give "
                f"{[len(output) for output in flat]} vectors for one row; outputs that stand beside each "
                "other have as many: choose others"
            )
        vectors = np.concatenate(flat, axis=1)
        known = self.embedding.values
        if known is not None and vectors.shape[1] != known:
            raise EmbeddingFailed(
                f"embedding {self.name}: the graph gave vectors of {vectors.shape[1]} values, not {known}; "
                "correct `values` or `output`"
            )
        with np.errstate(over="ignore"):
            stored = np.array(vectors.T[None], dtype=self.dtype, order="C")
        if not np.isfinite(stored).all():
            raise EmbeddingFailed(
                f"embedding {self.name}: the graph gave NaN or infinity (as {self.dtype}) for this row"
            )
        return stored
