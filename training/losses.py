"""Losses: what a net is told about one batch.

Owns the table LOSSES; every entry maps (logits f32[B, K], targets f32[B, K]) to one value per clip, f32[B],
so that clips can be weighted and noisy clips can have a loss of their own. Does not choose clips.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import lookup

Loss = Callable[[Tensor, Tensor], Tensor]


def bce(logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy, mean over classes; smoothing s moves targets to s..1 - s."""
    targets = targets * (1 - 2 * smoothing) + smoothing
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def soft_bootstrap(logits: Tensor, targets: Tensor, *, beta: float = 0.7) -> Tensor:
    """BCE against beta x target + (1 - beta) x own prediction, no gradient through the latter.

    Source: Reed et al. 2014; beta 0.7: lRomul/argus-freesound src/losses.py (lsoft).
    """
    own = torch.sigmoid(logits.detach())
    return F.binary_cross_entropy_with_logits(
        logits, beta * targets + (1 - beta) * own, reduction="none"
    ).mean(1)


def lsep(logits: Tensor, targets: Tensor) -> Tensor:
    """log(1 + sum over (negative, positive) pairs of exp(negative - positive)); 0 where there is no pair.

    The sum over pairs factors into a product, so the cost is K, not K x K.
    Source: Li et al. 2017; ex4sperans/freesound-classification.
    """
    positive = targets > 0.5
    low = torch.finfo(logits.dtype).min
    pull = torch.logsumexp((-logits).masked_fill(~positive, low), 1)
    push = torch.logsumexp(logits.masked_fill(positive, low), 1)
    both = positive.any(1) & ~positive.all(1)
    nothing = torch.zeros_like(push)
    return torch.where(both, F.softplus(torch.where(both, pull + push, nothing)), nothing)


def focal(logits: Tensor, targets: Tensor, *, gamma: float = 2.0) -> Tensor:
    """BCE x (1 - chance given to the truth)^gamma, mean over classes. Source: Lin et al. 2017."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    chance = torch.sigmoid(logits)
    miss = targets * (1 - chance) + (1 - targets) * chance
    return (entropy * miss.clamp(min=1e-8) ** gamma).mean(1)


def cross_entropy(logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy of targets that sum to 1 (one class, or a mix), with label smoothing."""
    targets = targets / targets.sum(1, keepdim=True).clamp(min=1e-8)
    targets = targets * (1 - smoothing) + smoothing / targets.shape[1]
    return -(targets * F.log_softmax(logits, 1)).sum(1)


def probability_bce(logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """BCE for nets that give probabilities themselves (stackers, qrfaction's head)."""
    targets = targets * (1 - 2 * smoothing) + smoothing
    return F.binary_cross_entropy(logits.clamp(1e-7, 1 - 1e-7), targets, reduction="none").mean(1)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": bce,
    "soft_bootstrap": soft_bootstrap,
    "lsep": lsep,
    "focal": focal,
    "cross_entropy": cross_entropy,
    "probability_bce": probability_bce,
}


def build(spec: Mapping[str, Any], where: str = "loss") -> Loss:
    """Loss of {kind = "bce", smoothing = 0.1}.

    Raises  SpecError naming the unknown kind or key
    """
    return lookup.find(LOSSES, spec, where, default="bce")


def batch_loss(outputs: Tensor | Sequence[Tensor], targets: Tensor, noisy: Tensor, losses: tuple[Loss, Loss],
               aux_weights: Sequence[float] = ()) -> Tensor:
    """Mean loss of a batch.

    losses       of the other clips, and of those where noisy bool[B] is true
    aux_weights  weight of each head of a net that has several
    """
    heads = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    total = targets.new_zeros(())
    for head, weight in zip(heads, aux_weights if len(heads) > 1 else (1.0,), strict=False):
        head = head.float()
        value = losses[0](head, targets)
        if bool(noisy.any()) and losses[1] is not losses[0]:
            value = torch.where(noisy, losses[1](head, targets), value)
        total = total + weight * value.mean()
    return total
