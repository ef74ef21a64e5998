"""Mixers: two clips become one training example.

Owns the table MIXERS. A mixer maps (x f32[B, C, M, T], targets f32[B, K]) and the partners' to a mixed pair
of the same shapes; B = the clips that are mixed. Everything random comes from the generator.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernel.errors import SpecError

from . import lookup

Pair = tuple[np.ndarray, np.ndarray]


def _column(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)[:, None, None, None]


def mixup(a: Pair, b: Pair, rng: np.random.Generator, *, alpha: float = 0.4, share: float = 0.0) -> Pair:
    """x and targets weighted by a draw of Beta(alpha, alpha), or by a fixed share; the larger part is a's.

    Source: Zhang et al. 2018; alpha 0.4: Viel, filipmu, ERC2019; share 0.7: qrfaction's first epochs.
    """
    weight = rng.beta(alpha, alpha, len(a[0])) if share == 0 else np.full(len(a[0]), share)
    weight = np.maximum(weight, 1 - weight).astype(np.float32)
    return (
        _column(weight) * a[0] + _column(1 - weight) * b[0],
        weight[:, None] * a[1] + (1 - weight)[:, None] * b[1],
    )


def or_mixup(a: Pair, b: Pair, rng: np.random.Generator, *, low: float = 0.4, high: float = 0.6) -> Pair:
    """x weighted by U(low, high), labels united.

    Source: ex4sperans/freesound-classification on waveforms; lRomul/argus-freesound mixes 0..0.5 of a.
    """
    weight = rng.uniform(low, high, len(a[0]))
    return _column(1 - weight) * a[0] + _column(weight) * b[0], np.maximum(a[1], b[1])


def sigmoid_concat(
    a: Pair, b: Pair, rng: np.random.Generator, *, steepness: tuple[float, float] = (2.0, 60.0)
) -> Pair:
    """One clip fades into the other on a sigmoid of random place, slope and direction; labels united.

    Source: lRomul/argus-freesound src/mixers.py (the idea and the labels; the slopes are our reading).
    """
    n = len(a[0])
    place = rng.uniform(0.2, 0.8, (n, 1))
    slope = rng.uniform(*steepness, (n, 1)) * rng.choice([-1, 1], (n, 1))
    fade = 1 / (1 + np.exp(-slope * (np.linspace(0, 1, a[0].shape[-1])[None] - place)))
    fade = fade.astype(np.float32)[:, None, None, :]
    return (1 - fade) * a[0] + fade * b[0], np.maximum(a[1], b[1])


def power_sum(
    a: Pair, b: Pair, rng: np.random.Generator, *, unit: float = 1.0, low: float = -10.0, high: float = 3.0
) -> Pair:
    """Both clips sounding together, the second at a random level in low..high dB; labels united.

    unit  decibels per 1.0 of x (21.6 where dB were divided by 21.6): powers add, phases are random
    """
    level = _column(rng.uniform(low, high, len(a[0])) / unit)
    scale = np.float32(unit * np.log(10) / 10)
    return np.logaddexp(a[0] * scale, (b[0] + level) * scale) / scale, np.maximum(a[1], b[1])


def cutmix(a: Pair, b: Pair, rng: np.random.Generator, *, alpha: float = 1.0) -> Pair:
    """Some frames of the partner pasted in, targets weighted by their number. Source: Yun et al. 2019."""
    x = a[0].copy()
    targets = a[1].copy()
    frames = x.shape[-1]
    for i, weight in enumerate(rng.beta(alpha, alpha, len(x))):
        wide = round(frames * (1 - weight))
        start = int(rng.integers(frames - wide + 1))
        x[i, ..., start : start + wide] = b[0][i, ..., start : start + wide]
        targets[i] = (1 - wide / frames) * a[1][i] + wide / frames * b[1][i]
    return x, targets


MIXERS: dict[str, Callable[..., Pair]] = {
    "mixup": mixup,
    "or_mixup": or_mixup,
    "sigmoid_concat": sigmoid_concat,
    "power_sum": power_sum,
    "cutmix": cutmix,
}


def build(
    entries: Sequence[Mapping[str, Any]],
) -> Callable[[np.ndarray, np.ndarray, np.random.Generator], Pair]:
    """One function of [{kind = "mixup", chance = 0.5, ...}, ...]; a clip draws one mixer at most.

    Raises  SpecError naming the unknown kind or key, or chances above 1 together
    """
    chosen = lookup.find_all(MIXERS, entries, "mixers")
    if sum(chance for chance, _ in chosen) > 1 + 1e-9:
        raise SpecError("mixers: the chances add up to more than 1; a clip takes part in one mix only")

    def apply(x: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> Pair:
        partner = rng.permutation(len(x))
        draw = rng.random(len(x))
        mixed = (x.copy(), targets.copy())
        low = 0.0
        for chance, mix in chosen:
            rows = np.flatnonzero((draw >= low) & (draw < low + chance))
            low += chance
            if len(rows):
                other = partner[rows]
                pair = mix((x[rows], targets[rows]), (x[other], targets[other]), rng)
                mixed[0][rows], mixed[1][rows] = pair
        return mixed

    return apply
