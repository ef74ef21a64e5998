"""Optimisers and learning-rate schedules by name.

Owns the tables OPTIMISERS and SCHEDULES. A schedule is a pure function of progress, so a resumed run needs no
state; only "plateau" looks back, at the scores the run has logged.
"""
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from kernel.errors import SpecError, did_you_mean

from . import lookup

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "amsgrad": lambda params, **keys: torch.optim.Adam(params, amsgrad=True, **keys),
    "sgd": torch.optim.SGD,
}
OPTIMISER_KEYS = {"lr", "weight_decay", "betas", "eps", "momentum", "nesterov"}


def build_optimiser(spec: Mapping[str, Any], params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Optimiser of {kind = "adamw", lr = 1e-3, weight_decay = 0.01}.

    Raises  SpecError naming the unknown kind or key
    """
    own = dict(spec)
    kind = own.pop("kind", "adam")
    if kind not in OPTIMISERS:
        raise SpecError(f"optimiser.kind: {kind!r} is unknown; {did_you_mean(str(kind), OPTIMISERS)}")
    for key in own:
        if key not in OPTIMISER_KEYS:
            raise SpecError(f"optimiser.{key}: unknown key; {did_you_mean(key, OPTIMISER_KEYS)}")
    try:
        return OPTIMISERS[kind](params, **own)
    except (TypeError, ValueError) as error:
        raise SpecError(f"optimiser {kind!r}: {error}; correct its keys") from error


# Schedules: (share of the training done 0..1, epoch, scores of the finished epochs) -> factor of lr


def constant(share: float, epoch: int, scores: Sequence[float]) -> float:
    """1."""
    return 1.0


def cosine(
    share: float, epoch: int, scores: Sequence[float], *, warmup: float = 0.0, end: float = 0.0
) -> float:
    """Rises in a line over the first `warmup` share, then falls on half a cosine to `end`."""
    if share < warmup:
        return share / warmup
    return end + (1 - end) * (1 + math.cos(math.pi * min(1.0, (share - warmup) / max(1e-9, 1 - warmup)))) / 2


def one_cycle(share: float, epoch: int, scores: Sequence[float], *, warmup: float = 0.3, start: float = 0.04,
              end: float = 1e-4) -> float:
    """Half a cosine up from `start` over `warmup`, then one down to `end`. Source: Smith 2018, in fastai."""
    if share < warmup:
        return start + (1 - start) * (1 - math.cos(math.pi * share / warmup)) / 2
    return end + (1 - end) * (1 + math.cos(math.pi * (share - warmup) / max(1e-9, 1 - warmup))) / 2


def milestones(
    share: float, epoch: int, scores: Sequence[float], *, epochs: Sequence[int] = (), factor: float = 0.5
) -> float:
    """Multiplied by `factor` at each of `epochs`."""
    return factor ** sum(epoch >= at for at in epochs)


def plateau(
    share: float, epoch: int, scores: Sequence[float], *, patience: int = 6, factor: float = 0.6
) -> float:
    """Multiplied by `factor` whenever the score has not risen for more than `patience` measurements."""
    best = -math.inf
    waited = 0
    power = 0
    for score in scores:
        waited = 0 if score > best else waited + 1
        best = max(best, score)
        if waited > patience:
            power += 1
            waited = 0
    return factor ** power


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "milestones": milestones,
    "plateau": plateau,
}


def build_schedule(spec: Mapping[str, Any]) -> Callable[[float, int, Sequence[float]], float]:
    """Function (share of the training done, epoch, scores so far) -> factor of the learning rate.

    Raises  SpecError naming the unknown kind or key
    """
    return lookup.find(SCHEDULES, spec, "schedule", default="constant")
