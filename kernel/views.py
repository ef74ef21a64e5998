"""Views: which parts of a clip's array a net sees, and how the scores of the parts become one row.

Owns cutting, padding and mirroring along time, the seeds of everything random in it, and the merge of the passes.
Does not compute spectra (frontends) and does not know nets.

Everything random is drawn from blake2b(row id, seed, pass), never from order: any worker, batch or restart gives the same cuts.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import SpecError, did_you_mean
from .frontends import FrontEnd
from .spec import load

Activate = Callable[[np.ndarray], np.ndarray]


def generator(row_id: str, seed: int, index: int) -> np.random.Generator:
    """Random stream of one pass over one row."""
    digest = hashlib.blake2b(f"{row_id}\0{seed}\0{index}".encode(), digest_size=8).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def pad_value(x: np.ndarray, fe: FrontEnd) -> float:
    """The number a pad along time writes for this clip."""
    return float(x.min()) if fe.pad == "clip_min" else float(fe.pad)


def pad_time(x: np.ndarray, left: int, right: int, value: float) -> np.ndarray:
    """array[C, M, left + T + right]."""
    if left == right == 0:
        return x
    return np.pad(x, ((0, 0), (0, 0), (left, right)), constant_values=np.asarray(value).astype(x.dtype))


def _mean(probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (probabilities * (weights / weights.sum())[:, None]).sum(axis=0)


MERGES: dict[str, Callable[[np.ndarray, np.ndarray, Activate], np.ndarray]] = {
    "mean": lambda logits, weights, activate: _mean(np.asarray(activate(logits), np.float64), weights),
    "logit_mean": lambda logits, weights, activate: np.asarray(activate(_mean(logits, weights)[None]), np.float64)[0],
    "max": lambda logits, weights, activate: np.asarray(activate(logits), np.float64).max(axis=0),
}


@dataclass(frozen=True, kw_only=True)
class View:
    """Base of all views; a view is a value bound to one front end.

    merge  "mean" of probabilities, "logit_mean" (mean of logits, then the activation), "max" of probabilities
    """

    fe: FrontEnd
    merge_rule: str = "mean"

    domain = "frames"

    @property
    def fixed(self) -> int | None:
        """Frames of every cut; None = each clip's own length."""
        return self.fe.fixed

    def count(self, frames: int) -> int:
        """Upper bound of P for a clip of `frames` frames."""
        return 1

    def cut(self, x: np.ndarray, row_id: str, seed: int = 0) -> np.ndarray:
        """array[P, C, M, t] of a clip's array[C, M, T], same dtype."""
        return x[None]

    def weights(self, passes: int) -> np.ndarray:
        """f64[P], relative weight of each pass in a mean."""
        return np.ones(passes)

    def merge(self, logits: np.ndarray, activate: Activate) -> np.ndarray:
        """f64[K] probabilities of one row from logits f[P, K]; `activate` maps logits [n, K] to probabilities [n, K]."""
        logits = np.asarray(logits, np.float64)
        return MERGES[self.merge_rule](logits, self.weights(len(logits)), activate)


@dataclass(frozen=True, kw_only=True)
class Full(View):
    """The whole clip at its own length, one pass."""


@dataclass(frozen=True, kw_only=True)
class Tiles(View):
    """Overlapping tiles that cover the clip exactly: max(1, ceil((T - (frames - step)) / step)) of them.

    The clip is first padded to fit, left floor(extra / 2), with the front end's pad value. Source: argus src/tiles.py.
    """

    frames: int = 256
    step: int = 128

    @property
    def fixed(self) -> int | None:
        return self.frames

    def count(self, frames: int) -> int:
        return max(1, -(-(frames - (self.frames - self.step)) // self.step))

    def cut(self, x: np.ndarray, row_id: str, seed: int = 0) -> np.ndarray:
        count = self.count(x.shape[2])
        extra = (count - 1) * self.step + self.frames - x.shape[2]
        x = pad_time(x, extra // 2, extra - extra // 2, pad_value(x, self.fe))
        return np.stack([x[..., i * self.step : i * self.step + self.frames] for i in range(count)])


VIEWS: dict[str, type[View]] = {"full": Full, "tiles": Tiles}


def build(spec: Mapping[str, Any], fe: FrontEnd) -> View:
    """View of {kind = "tiles", frames = 256, step = 128, merge = "mean"} bound to the front end.

    A front end without a time axis (statistics, length) gives one pass, whatever the kind: the caller repeats it P times.
    Raises  SpecError naming the unknown kind, key or value
    """
    own = dict(spec)
    kind = own.pop("kind", "full")
    if kind not in VIEWS:
        raise SpecError(f"view.kind: {kind!r} is unknown; {did_you_mean(str(kind), VIEWS)}")
    merge = own.pop("merge", "mean")
    if merge not in MERGES:
        raise SpecError(f"view.merge: {merge!r} is unknown; {did_you_mean(str(merge), MERGES)}")
    if not fe.time:
        return Full(fe=fe, merge_rule=merge)
    if "fe" in own or "merge_rule" in own:
        raise SpecError("view: unknown key; use `merge` for the merge rule")
    return load(VIEWS[kind], {**own, "fe": fe, "merge_rule": merge}, "view")
