"""Finishes: operations one after the other on the cuts of a view (deltas, /255, channel repeat, in-net mel).

Owns `Finish` and how it is built from an ensemble. What each operation does is `operations`. Does not cut or
pad along time (views) and keeps nothing.
"""
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..errors import SpecError, did_you_mean
from ..sound.source import Source
from ..spec import load
from .deltas import Lengths, delta
from .operations import (
    Delta,
    FrequencyMap,
    Imagenet,
    InNetMel,
    Log,
    Normalise,
    Operation,
    Scale,
    Shape,
    Standardise,
)
from .rearrange import Flatten, Fold, Repeat, Squeeze, TimeFirst

__all__ = ["OPERATIONS", "Finish", "Lengths", "build", "delta"]

OPERATIONS: dict[str, type[Operation]] = {
    "delta": Delta,
    "scale": Scale,
    "normalise": Normalise,
    "imagenet": Imagenet,
    "standardise": Standardise,
    "repeat": Repeat,
    "frequency_map": FrequencyMap,
    "log": Log,
    "mel_in_net": InNetMel,
    "squeeze": Squeeze,
    "flatten": Flatten,
    "time_first": TimeFirst,
    "fold": Fold,
}


class Finish:
    """`finish(x[P, C, M, t] of any stored dtype) -> f32[P, C', M', t']`: one operation after the other."""

    def __init__(self, operations: Sequence[Operation], fe: Source) -> None:
        self.operations = tuple(operations)
        self._rows = fe.channels, fe.bins

    def with_constants(self, constants: Mapping[int, Mapping[str, float]]) -> "Finish":
        """The same with keys of some operations set: index of the operation -> key -> value."""
        filled = copy(self)
        made: list[Any] = list(self.operations)
        filled.operations = tuple(replace(entry, **constants.get(i, {})) for i, entry in enumerate(made))
        return filled

    @torch.inference_mode()
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        for operation in self.operations:
            x = operation(x)
        return x

    @property
    def ragged(self) -> bool:
        """True where cuts of different lengths may share a batch."""
        return all(operation.ragged for operation in self.operations)

    @torch.inference_mode()
    def batch(self, x: torch.Tensor, lengths: Lengths | None = None) -> torch.Tensor:
        """The same for cuts of many clips, where they lie; with `lengths` each ends at its own.

        f32[B, C', M', t'], within 1e-5 of the largest value from what each cut gives alone; what stands
        beyond a cut's own length does not count.
        """
        x = x.float()
        for operation in self.operations:
            shape = x.shape
            x = operation.batch(x, lengths)
            if lengths is not None:
                lengths = lengths.changed(self._lengths(operation, shape, lengths.host))
        return x

    @staticmethod
    def _lengths(operation: Operation, shape: torch.Size, host: np.ndarray) -> np.ndarray:
        """i64[B], own lengths after an operation on a batch of this shape."""
        c, m = shape[1:3]
        after = {int(t): operation.shape(c, m, int(t))[2] for t in np.unique(host)}
        return np.array([after[int(t)] for t in host], np.int64)

    def shape(self, frames: int) -> Shape:
        """(C', M', t') for a cut of `frames` frames; a flattened input counts as (values, 1, 1).

        Raises  SpecError when an operation does not fit the one before
        """
        shape = (*self._rows, frames)
        for operation in self.operations:
            shape = operation.shape(*shape)
        return shape

    def frames(self, t: int) -> int:
        """Frames of the net's input for a cut of t frames."""
        return self.shape(t)[1 if self.time_first else 2]

    @property
    def time_first(self) -> bool:
        """True where the net's input has time before frequency."""
        return sum(isinstance(operation, TimeFirst) for operation in self.operations) % 2 == 1


def build(wanted: Sequence[str | Mapping[str, object]], fe: Source) -> Finish:
    """Finish of ["delta", {kind = "scale", divide = 100}]: a name, or a table with `kind` and its keys.

    Raises  SpecError naming the unknown operation or key, or the operation that does not fit
    """
    operations: list[Operation] = []
    for i, entry in enumerate(wanted):
        if not isinstance(entry, (str, Mapping)):
            raise SpecError(f"finish[{i}]: {entry!r}; give a name, or a table with `kind` and its keys")
        own = {"kind": entry} if isinstance(entry, str) else dict(entry)
        kind = own.pop("kind", None)
        if not isinstance(kind, str) or kind not in OPERATIONS:
            raise SpecError(f"finish[{i}].kind: {kind!r} is unknown; {did_you_mean(str(kind), OPERATIONS)}")
        operations.append(load(OPERATIONS[str(kind)], own, f"finish[{i}]"))
    finish = Finish(operations, fe)
    finish.shape(fe.fixed or 1024)
    return finish
