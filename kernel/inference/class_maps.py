"""A net with classes of its own: its values become one value for each class of the ensemble that it knows.

Owns the arithmetic of a class map, in its two executions: numpy on the host, torch on a device. The map is
data (spec.class_maps); what other members say of a class that this one does not know is scores'.
"""
from dataclasses import dataclass, field
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
    _sent: dict[torch.device, "_OnDevice"] = field(default_factory=dict, compare=False, repr=False)

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
        if isinstance(values, torch.Tensor):
            return self._merge_on_device(values)
        return self._merge(np.take(values, self._takes, axis=-1))

    def expand(self, known: Values) -> Values:
        """[..., K] with 0 in the classes that the net does not know, where its weight in a mean is 0, too."""
        if isinstance(known, torch.Tensor):
            whole = known.new_zeros((*known.shape[:-1], self.classes))
            return whole.index_copy_(-1, self._on(known.device).classes, known)
        table = np.zeros((*known.shape[:-1], self.classes), known.dtype)
        table[..., self.known] = known
        return table

    @cached_property
    def _takes(self) -> np.ndarray:
        """i64[lines]: output of each line."""
        return np.array(self.map.takes)

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

    @cached_property
    def _starts(self) -> np.ndarray:
        """i64[k]: the first line of each class; those of one class stand side by side."""
        return np.flatnonzero(np.diff(self._place, prepend=-1))

    def _merge(self, taken: np.ndarray) -> np.ndarray:
        """f64[..., k] from the lines' own values [..., lines]."""
        factor, shift = self._factors
        merge: np.ufunc = np.maximum if self.proxies == "max" else np.add
        return np.asarray(merge.reduceat(taken * factor + shift, self._starts, axis=-1))

    def _merge_on_device(self, values: torch.Tensor) -> torch.Tensor:
        """f64[..., k] from the net's values [..., K'], on their device."""
        there = self._on(values.device)
        weighed = values.index_select(-1, there.takes) * there.factor + there.shift
        merged = weighed.new_zeros((*weighed.shape[:-1], len(there.classes)))
        if self.proxies == "max":
            place = there.place.expand_as(weighed)
            return merged.scatter_reduce_(-1, place, weighed, "amax", include_self=False)
        return merged.index_add_(-1, there.place, weighed)

    def _on(self, device: torch.device) -> "_OnDevice":
        """The map's numbers on a device, sent once: it need not wait for them in every batch."""
        if device not in self._sent:
            numbers = (self._takes, *self._factors, self._place, np.flatnonzero(self.known))
            self._sent[device] = _OnDevice(*(torch.from_numpy(x).to(device) for x in numbers))
        return self._sent[device]


@dataclass(frozen=True)
class _OnDevice:
    """A map as tensors [lines]: outputs, factors, shifts, places among the known classes; these, i64[k]."""

    takes: torch.Tensor
    factor: torch.Tensor
    shift: torch.Tensor
    place: torch.Tensor
    classes: torch.Tensor


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
