"""Pseudo-labels: what a teacher said of the windows of unlabelled recordings, as soft labels for a pupil.

Owns how scores become labels (the table SOFTEN), which windows are drawn how often (the table SAMPLINGS),
and `Pseudo`, the rows that train beside the labelled clips. Scores come from `training.score`; rows of
pseudo-labels train in every fold and measure in none.
"""
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernel.errors import SpecError, did_you_mean
from kernel.sound.clips import find_clips
from kernel.sound.rows import Row, list_rows
from kernel.spec import Windows, load

from . import lookup
from .recipe import PseudoRound

LEAST = 1e-7  # nearest to 0 and 1 that a logit is taken of
Spans = Sequence[slice]  # the rows of each recording, in order of time


def power(scores: np.ndarray, spans: Spans, *, exponent: float = 1.5) -> np.ndarray:
    """Every score to the power of `exponent`: above 1 faint ones fade.

    Source: FlorentinGe/Birdclef2026-2ndplace and tom99763/BirdClef-2026-Codebase (rounds of 1, 1.54, 1.82).
    """
    return np.asarray(scores**exponent)


def threshold(scores: np.ndarray, spans: Spans, *, least: float = 0.1) -> np.ndarray:
    """Scores below `least` become 0. Source: VSydorskyy/BirdCLEF_2025_2nd_place."""
    return np.where(scores < least, 0.0, scores)


def percentile(
    scores: np.ndarray, spans: Spans, *, of: float = 95.0, floor: float = 0.05, ceiling: float = 0.5
) -> np.ndarray:
    """Scores below their class's percentile `of`, cut to floor .. ceiling, become 0.

    Source: tom99763/BirdClef-2026-Codebase scripts/gen_pseudo_ns 111.
    """
    return np.where(scores < percentiles(scores, of, floor, ceiling), 0.0, scores)


def percentiles(scores: np.ndarray, of: float, floor: float, ceiling: float) -> np.ndarray:
    """f64[K], the threshold of each class."""
    return np.clip(np.percentile(scores, of, axis=0), floor, ceiling)


def confident(scores: np.ndarray, spans: Spans, *, least: float = 0.5) -> np.ndarray:
    """Rows whose largest score is below `least` lose all labels.

    Source: VSydorskyy/BirdCLEF_2025_2nd_place.
    """
    return np.where(scores.max(axis=1, keepdims=True) < least, 0.0, scores)


def boost(scores: np.ndarray, spans: Spans, *, least: float = 0.3, exponent: float = 2.0) -> np.ndarray:
    """The score itself where it is above `least`, plus its power, at most 1.

    Source: FlorentinGe/Birdclef2026-2ndplace birdclef/datasets 297.
    """
    return np.minimum(1.0, np.where(scores > least, scores, 0.0) + scores**exponent)


def file_max(scores: np.ndarray, spans: Spans) -> np.ndarray:
    """Sigmoid of the mean of a score's logit and its recording's highest, the latter lowered by the mean
    distance of its classes from their highest.

    Source: TheoViel/kaggle_birdclef2024 src/data/dataset 300.
    """
    bounded = np.clip(scores, LEAST, 1 - LEAST)
    logits = np.log(bounded) - np.log1p(-bounded)
    out = np.empty_like(logits)
    for span in spans:
        top = logits[span].max(axis=0)
        lowered = top + np.mean(logits[span].mean(axis=0) - top)
        out[span] = 1 / (1 + np.exp(-(logits[span] + lowered) / 2))
    return out


SOFTEN: dict[str, Callable[..., np.ndarray]] = {
    "power": power,
    "threshold": threshold,
    "percentile": percentile,
    "confident": confident,
    "boost": boost,
    "file_max": file_max,
}


def uniform(labels: np.ndarray, spans: Spans) -> np.ndarray:
    """All rows alike."""
    return np.ones(len(labels))


def row_max(labels: np.ndarray, spans: Spans) -> np.ndarray:
    """A row by its largest label. Source: FlorentinGe/Birdclef2026-2ndplace, by confidence."""
    return np.asarray(labels.max(axis=1))


def file_sum(labels: np.ndarray, spans: Spans) -> np.ndarray:
    """A row by the sum of its recording's largest labels.

    Source: yannan90/birdclef-2026-private-9th-public-2nd-solution train_folds 286.
    """
    out = np.empty(len(labels))
    for span in spans:
        out[span] = labels[span].max(axis=1).sum()
    return out


SAMPLINGS: dict[str, Callable[[np.ndarray, Spans], np.ndarray]] = {
    "uniform": uniform,
    "row_max": row_max,
    "file_sum": file_sum,
}


@dataclass(frozen=True, kw_only=True)
class Pseudo:
    """P rows with soft labels.

    labels  f32[P, K];  worth: f64[P], how often each is drawn, in shares of all of them
    share   of the draws that go to them
    """

    rows: tuple[Row, ...]
    labels: np.ndarray
    worth: np.ndarray
    share: float

    @property
    def recordings(self) -> list[str]:
        """The recording of each row, as a group of labelled clips would be named."""
        return [row.clip.id for row in self.rows]


def soften(scores: np.ndarray, spans: Spans, turn: PseudoRound) -> np.ndarray:
    """f64[R, K] soft labels of scores f64[R, K] in 0..1, by the round's entries in order.

    Raises  SpecError
    """
    for i, entry in enumerate(turn.soften):
        scores = lookup.find(SOFTEN, entry, f"pseudo.soften[{i}]")(scores, spans)
    return scores


def merge(labels: np.ndarray, spans: Spans, count: int) -> np.ndarray:
    """f64[R, K], the labels of chunks of `count` rows from each row on: the largest of those there are.

    Source: tom99763/BirdClef-2026-Codebase scripts/gen_pseudo_ns 133.
    """
    out = labels.copy()
    for span in spans:
        part = labels[span]
        for later in range(1, min(count, len(part))):
            out[span][:-later] = np.maximum(out[span][:-later], part[later:])
    return out


def read(path: Path, folder: Path, classes: Sequence[str], turn: PseudoRound) -> Pseudo:
    """The rows of training.score's file `path`, over the recordings below `folder`, as a round wants them.

    Rows without any label are left out.

    Raises  SpecError for a file of another kind or other classes, and where no row keeps a label
    """
    try:
        with np.load(path) as arrays:
            ids = arrays["ids"].astype(str).tolist()
            known = arrays["classes"].astype(str).tolist()
            scores = arrays["scores"].astype(np.float64)
            told = json.loads(str(arrays["windows"]))
    except (OSError, KeyError, ValueError) as error:
        raise SpecError(f"{path}: {error}; `python -m training.score` writes such files") from error
    if told is None:
        raise SpecError(f"{path}: scores of whole clips; score recordings with a bundle that has [windows]")
    if sorted(known) != sorted(classes):
        missing = sorted(set(classes) - set(known))[:3]
        raise SpecError(
            f"{path}: other classes than the recipe's (e.g. {missing} missing); score again with a bundle of "
            "these classes"
        )
    windows = load(Windows, told, f"{path}: windows")
    cut = Windows(seconds=windows.seconds, pattern=windows.pattern)  # the label's own seconds train
    rows, scores = _in_time(list_rows(ids, find_clips(folder, ids), cut),
                            scores[:, [known.index(name) for name in classes]])
    spans = _spans(rows)
    count = round(turn.seconds / cut.seconds) if turn.seconds else 1
    labels = merge(soften(scores, spans, turn), spans, count)
    worth = np.asarray(SAMPLINGS[turn.sampling](labels, spans), np.float64)
    kept = np.flatnonzero(labels.any(axis=1) & (worth > 0))
    kept = kept[[rows[i].clip.error is None for i in kept]]
    if not len(kept):
        gone = next((f"; {row.clip.error}" for row in rows if row.clip.error is not None), "")
        raise SpecError(f"{path}: no window keeps a label, of {len(rows)} (pseudo.soften){gone}")
    chosen = tuple(_longer(rows[i], count) for i in kept)
    shares = worth[kept] / worth[kept].sum()
    return Pseudo(rows=chosen, labels=labels[kept].astype(np.float32), worth=shares, share=turn.share)


def _in_time(rows: list[Row], scores: np.ndarray) -> tuple[list[Row], np.ndarray]:
    """Rows and their scores, those of a recording together and in time order."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i].clip.id, rows[i].start or 0))
    return [rows[i] for i in order], scores[order]


def _spans(rows: Sequence[Row]) -> list[slice]:
    """The rows of each recording; they stand together."""
    starts = [i for i, row in enumerate(rows) if not i or row.clip.id != rows[i - 1].clip.id]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]


def _longer(row: Row, count: int) -> Row:
    """The row with the windows behind it, as one chunk; it ends where the recording does."""
    if row.start is None or row.stop is None or count == 1:
        return row
    stop = min(row.start + count * row.window, max(row.stop, row.clip.samples_claimed))
    return Row(id=row.id, clip=row.clip, start=row.start, stop=stop)


def choose_round(rounds: Sequence[PseudoRound], number: int) -> PseudoRound:
    """The round `number`, counted from 1; a recipe without [[pseudo]] has one of defaults.

    Raises  SpecError
    """
    told = rounds or (PseudoRound(),)
    if not 1 <= number <= len(told):
        raise SpecError(f"--round: {number}; the recipe has {len(told)} rounds ([[pseudo]])")
    return told[number - 1]


def check_round(turn: PseudoRound, where: str) -> None:
    """Raises SpecError for unknown entries, and values that cannot be."""
    if turn.sampling not in SAMPLINGS:
        raise SpecError(f"{where}.sampling: {turn.sampling!r}; {did_you_mean(turn.sampling, SAMPLINGS)}")
    if not 0 < turn.share < 1:
        raise SpecError(f"{where}.share: {turn.share}; give a share above 0 and below 1")
    if turn.seconds < 0:
        raise SpecError(f"{where}.seconds: {turn.seconds}; give seconds, or 0 for single windows")
    for i, entry in enumerate(turn.soften):
        lookup.find(SOFTEN, entry, f"{where}.soften[{i}]")
