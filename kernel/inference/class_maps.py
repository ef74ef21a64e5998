"""A net with classes of its own: its values become one value for each class of the ensemble that it knows.

Owns the arithmetic of a class map, in its two executions: numpy on the host, torch on a device. The map is
data (spec.class_maps); what other members say of a class that this one does not know is scores'.
"""
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch

from ..spec import ClassMap, Member

Values = TypeVar("Values", np.ndarray, torch.Tensor)


@dataclass(frozen=True, kw_only=True)
class MappedClasses:
    """A class map over an ensemble of `classes` classes.

    proxies  how several outputs of one class become one value: "max" of weight x value, or "mean" (weighted)
    logits   the values are logits: there a weight counts for the odds, as logit + ln(weight), under "max"
    """

    map: ClassMap
    classes: int
    proxies: str
    logits: bool

    @cached_property
    def known(self) -> np.ndarray:
        """bool[K]: the ensemble's classes that the net knows."""
        return np.array(self.map.knows(self.classes))

    def apply(self, values: Values) -> Values:
        """[..., k] of the classes that the net knows, in their order, from its values [..., K'].

        The result is float64. A class with one output of weight 1 gets that very value.

        Raises  ValueError for another number of values than the map's outputs
        """
        given = values.shape[-1]
        if given != self.map.outputs:
            told = f"the net gave {given} values, its labels (classes_from) are {self.map.outputs}"
            one_more = given == self.map.outputs - 1
            raise ValueError(told + "; a header line in the file of labels counts as one" * one_more)
        taken = values[..., list(self.map.takes)]
        if isinstance(taken, torch.Tensor):
            return self._merge_on_device(taken)
        return self._merge(taken)

    def expand(self, known: Values) -> Values:
        """[..., K] with 0 in the classes that the net does not know, where its weight in a mean is 0, too."""
        if isinstance(known, torch.Tensor):
            whole = known.new_zeros((*known.shape[:-1], self.classes))
            whole[..., torch.from_numpy(self.known).to(known.device)] = known
            return whole
        table = np.zeros((*known.shape[:-1], self.classes), known.dtype)
        table[..., self.known] = known
        return table

    @cached_property
    def _factors(self) -> tuple[np.ndarray, np.ndarray]:
        """f64[lines] each: what a line's value is multiplied by, and what is added to it."""
        weights = np.array(self.map.weights)
        nothing = np.zeros(len(weights))
        if self.proxies == "mean":
            totals = np.bincount(self.map.gives, weights)
            return weights / totals[list(self.map.gives)], nothing
        return (np.ones(len(weights)), np.log(weights)) if self.logits else (weights, nothing)

    @cached_property
    def _place(self) -> np.ndarray:
        """i64[lines]: place of each line's class among those that the net knows."""
        return np.cumsum(self.known)[list(self.map.gives)] - 1

    def _merge(self, taken: np.ndarray) -> np.ndarray:
        """f64[..., k] from the lines' own values [..., lines]."""
        factor, shift = self._factors
        merge: np.ufunc = np.maximum if self.proxies == "max" else np.add
        starts = np.flatnonzero(np.diff(self._place, prepend=-1))
        return np.asarray(merge.reduceat(taken * factor + shift, starts, axis=-1))

    def _merge_on_device(self, taken: torch.Tensor) -> torch.Tensor:
        """The same on a device."""
        factor, shift = (torch.from_numpy(x).to(taken.device) for x in self._factors)
        weighed = taken * factor + shift
        place = torch.from_numpy(self._place).to(taken.device)
        merged = weighed.new_zeros((*weighed.shape[:-1], int(self.known.sum())))
        if self.proxies == "max":
            return merged.scatter_reduce_(-1, place.expand_as(weighed), weighed, "amax", include_self=False)
        return merged.index_add_(-1, place, weighed)


def open_class_map(member: Member, classes: int) -> MappedClasses | None:
    """The member's own classes over the ensemble's; None where it has the ensemble's."""
    if member.classes_map is None:
        return None
    return MappedClasses(
        map=member.classes_map,
        classes=classes,
        proxies=member.proxies,
        logits=member.proxy_scores == "logits",
    )
