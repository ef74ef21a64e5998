"""From a net's answers to its passes to one row's probabilities: activation, then merge.

Owns the tables of both, each with its two executions: one row on the host, all rows of a block on a device,
where they are computed in float64 too, as final activations must not lose small scores. Which activation and
merge a net wants is said elsewhere (member, views).
"""
from collections.abc import Callable

import numpy as np
import torch

Activate = Callable[[np.ndarray], np.ndarray]


def softmax(logits: np.ndarray) -> np.ndarray:
    """f64 probabilities over the last axis."""
    z = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return z / z.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """f64 probabilities, no overflow at any logit."""
    return np.exp(-np.logaddexp(0.0, -logits))


def keep(probabilities: np.ndarray) -> np.ndarray:
    """What a net gives that gives probabilities."""
    return probabilities


ACTIVATIONS: dict[str, Activate] = {"sigmoid": sigmoid, "softmax": softmax, "none": keep}
ON_DEVICE: dict[Activate, Callable[[torch.Tensor], torch.Tensor]] = {
    sigmoid: torch.sigmoid,
    softmax: lambda logits: torch.softmax(logits, dim=-1),
    keep: lambda probabilities: probabilities,
}


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (values * (weights / weights.sum())[:, None]).sum(axis=0)


def _attend(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean in which each pass counts, class by class, as much as its own probability; 0 where all are 0.

    The "linear softmax" pooling of Y. Wang, J. Li, F. Metze, arXiv:1810.09050.
    """
    shares = values * (weights / weights.sum())[:, None]
    total = shares.sum(axis=0)
    return (values * shares).sum(axis=0) / np.where(total > 0, total, 1.0)


MERGES: dict[str, Callable[[np.ndarray, np.ndarray, Activate], np.ndarray]] = {
    "mean": lambda logits, weights, activate: _mean(np.asarray(activate(logits), np.float64), weights),
    "logit_mean": lambda logits, weights, activate: np.asarray(
        activate(_mean(logits, weights)[None]), np.float64
    )[0],
    "max": lambda logits, weights, activate: np.asarray(activate(logits), np.float64).max(axis=0),
    "attention": lambda logits, weights, activate: _attend(np.asarray(activate(logits), np.float64), weights),
}


def flat(answers: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([P n, K], [P n]): several answers per pass [P, n, K] as passes of their own, each with its weight."""
    if answers.ndim < 3:
        return answers, weights
    return answers.reshape(-1, answers.shape[2]), np.repeat(weights, answers.shape[1])


@torch.inference_mode()
def merge_passes(
    rule: str, activate: Activate, answers: torch.Tensor, rows: torch.Tensor, shares: torch.Tensor, count: int
) -> torch.Tensor:
    """f64[count, K] probabilities of rows from answers f32[P, K]; NaN where an answer is not finite.

    rows    i64[P], row of each pass;  shares: f64[P], its share in a mean

    The rules are those of MERGES.
    """
    sure = ON_DEVICE[activate]
    values = answers.double()
    merged = values.new_zeros((count, values.shape[1]))
    if rule == "logit_mean":
        merged = sure(merged.index_add_(0, rows, values * shares[:, None]))
    elif rule == "max":
        places = rows[:, None].expand_as(values)
        merged = merged.scatter_reduce_(0, places, sure(values), "amax", include_self=False)
    elif rule == "attention":
        probabilities = sure(values)
        weighted = probabilities * shares[:, None]
        total = torch.zeros_like(merged).index_add_(0, rows, weighted)
        merged = merged.index_add_(0, rows, probabilities * weighted) / total.masked_fill(total <= 0, 1.0)
    else:
        merged = merged.index_add_(0, rows, sure(values) * shares[:, None])
    broken = (~torch.isfinite(answers).all(dim=1)).double()
    lost = broken.new_zeros(count).index_add_(0, rows, broken) > 0
    return merged.masked_fill(lost[:, None], torch.nan)


def check_frames(shape: tuple[int, ...], passes: int) -> None:
    """Raises ValueError where answers of this shape, of so many passes a row, are no frames of windows."""
    if len(shape) != 3 or passes != 1:
        told = [passes, *shape[1:]]
        raise ValueError(f"the net gave {told}, its member's key `frames` wants [1, F, K]")


@torch.inference_mode()
def score_frames(activate: Activate, answers: torch.Tensor) -> torch.Tensor:
    """f64[B, F, K] probabilities of frames from answers f32[B, F, K]; NaN in rows that are not finite."""
    broken = ~torch.isfinite(answers).flatten(1).all(dim=1)
    scores = ON_DEVICE[activate](answers.double())
    return scores.masked_fill(broken.reshape(-1, *[1] * (scores.dim() - 1)), torch.nan)
