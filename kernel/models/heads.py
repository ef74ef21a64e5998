"""Heads: small nets on embeddings, f32[B, 1, D, P] of P vectors of D values each; P is one row's patches.

Owns the linear head, the MLP and attention over the patches. Does not make embeddings (inference.embeddings).
"""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Tagger, beyond, has_tail, max_time, mean_time

# Added to the variance of every value before it divides: rectified embeddings hold values that are nearly
# always zero, and a rare one must not weigh a thousandfold. Ours.
VARIANCE_FLOOR = 2.5e-3
MOST_SPREAD = 6.0  # standardised values are cut there, for the same reason; ours

Pool = Callable[[Tensor, Tensor | None], Tensor]


def mean_max_time(x: Tensor, frames: Tensor | None) -> Tensor:
    """Mean and maximum over the last axis: [B, D, P] -> [B, 2 D]."""
    return torch.cat([mean_time(x, frames), max_time(x, frames)], 1)


POOLS: dict[str, tuple[Pool, int]] = {  # name -> what it does, and how many values it makes of one
    "mean": (mean_time, 1), "max": (max_time, 1), "mean_max": (mean_max_time, 2)}
SCORE_POOLS: dict[str, Pool] = {"mean_scores": mean_time, "max_scores": max_time}


def _find_pool(name: str) -> tuple[Pool, int]:
    if name not in POOLS:
        raise ValueError(f"pool = {name!r}; choose one of {', '.join(POOLS)}")
    return POOLS[name]


class Spread(nn.BatchNorm1d):
    """Each value less its mean, over its deviation, cut to +-6: f32[B, D] or [B, D, P]; nothing is learnt."""

    def __init__(self, values: int) -> None:
        super().__init__(values, eps=VARIANCE_FLOOR, affine=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).clamp(-MOST_SPREAD, MOST_SPREAD)


class Head(Tagger):
    """Base of the heads: values D is what the embedding has."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.bins = values


class LinearHead(Head):
    """One linear layer on the pooled patches.

    values       of an embedding, D
    pool         "mean", "max" or "mean_max" of the patches, standardised, before the layer; "mean_scores" or
                 "max_scores" = the layer on each patch as it is, and the mean or maximum of the patches'
                 probabilities: a graph's own classifier
    dropout      training only
    """

    def __init__(self, classes: int, values: int = 1024, pool: str = "mean", dropout: float = 0.5) -> None:
        super().__init__(values)
        self.scores = SCORE_POOLS.get(pool)
        self.pool, times = _find_pool(pool) if self.scores is None else (mean_time, 1)
        if self.scores is None:
            self.spread = Spread(times * values)
        else:
            self.output = "probabilities"
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(times * values, classes)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        x = x[:, 0]
        if self.scores is not None:
            each = self.fc(self.dropout(x.transpose(1, 2)))  # [B, P, K]
            return self.scores(torch.sigmoid(each).transpose(1, 2), frames)
        return self.fc(self.dropout(self.spread(self.pool(x, frames))))


class MLPHead(Head):
    """Two linear layers on the pooled patches.

    values   of an embedding, D;  hidden: units between
    pool     "mean", "max" or "mean_max" of the patches, standardised
    dropout  before each layer, training only
    """

    def __init__(self, classes: int, values: int = 1024, hidden: int = 256, pool: str = "mean_max",
                 dropout: float = 0.5) -> None:
        super().__init__(values)
        self.pool, times = _find_pool(pool)
        self.spread = Spread(times * values)
        self.hidden = nn.Linear(times * values, hidden)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        pooled = self.dropout(self.spread(self.pool(x[:, 0], frames)))
        return self.fc(self.dropout(F.relu(self.hidden(pooled))))


class AttentionHead(Head):
    """Every class looks at the patches that it chooses: the row's logit is the patches' logits, weighed.

    values   of an embedding, D;  hidden: units of a layer shared by all patches, 0 = none
    dropout  training only
    Source of the idea: Kong et al. 2019, "Weakly labelled AudioSet tagging with attention neural networks"
    (decision-level attention, one weight per class and patch); here logits are weighed, not probabilities.
    """

    def __init__(self, classes: int, values: int = 1024, hidden: int = 256, dropout: float = 0.5) -> None:
        super().__init__(values)
        self.spread = Spread(values)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(values, hidden) if hidden else None
        self.weigh = nn.Linear(hidden or values, classes)
        self.fc = nn.Linear(hidden or values, classes)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        x = x[:, 0]
        # Every patch is standardised by itself; rows that are padded are no part of the statistics' rule in
        # training, where all crops are equally long.
        flat = self.dropout(self.spread(x).transpose(1, 2))
        if self.hidden is not None:
            flat = self.dropout(F.relu(self.hidden(flat)))
        weights = self.weigh(flat).transpose(1, 2)  # [B, K, P]
        if frames is not None and has_tail(weights, frames):
            weights = weights.masked_fill(beyond(weights, frames), -torch.inf)
        return (torch.softmax(weights, -1) * self.fc(flat).transpose(1, 2)).sum(-1)
