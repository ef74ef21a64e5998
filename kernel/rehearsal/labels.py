"""How good a rehearsed submission is, where labels are known: the score, and the rows that are worst.

Owns the reading of a labels CSV and the ranking of rows. The score itself is metrics'. Does not draw.
"""
import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import spec
from ..errors import SpecError
from ..report.contents import ShownRow
from ..scores import metrics
from .fake_kaggle import original_name

WORST = 8  # rows shown


@dataclass(frozen=True, kw_only=True)
class Score:
    """lwlrap over the labelled rows and the worst of them, with notes; None where nothing was scored."""

    notes: tuple[str, ...] = ()
    lwlrap: float | None = None
    worst: tuple[ShownRow, ...] | None = None


def score_submission(
    submission: Path, labels: Path, ensemble: spec.Ensemble, broken: Collection[str]
) -> Score:
    """The score of a submission; rows that are `broken` count, but are not shown among the worst.

    Raises  SpecError when no row has a label the ensemble knows
    """
    if ensemble.output.format != "probabilities":
        return Score(notes=("--labels: only submissions of probabilities are scored; this one holds labels",))
    classes = ensemble.classes
    known = read_labels(labels)
    ids, scores = read_scores(submission, classes)
    true = np.array([[name in _labels_of(id, known) for name in classes] for id in ids])
    rows = np.flatnonzero(true.any(axis=1))
    if not len(rows):
        raise SpecError(
            f"--labels {labels}: no clip has a label that is a class of {ensemble.name}; "
            f"classes are {', '.join(classes[:5])} ..."
        )
    lwlrap = metrics.lwlrap(true[rows], scores[rows])
    shown = [_show(ids[i], scores[i], true[i], classes) for i in rows if ids[i] not in broken]
    shown.sort(key=lambda ranked: ranked[0])
    return Score(
        notes=(f"lwlrap {lwlrap:.4f} over {len(rows)} labelled rows of {len(ids)}",),
        lwlrap=lwlrap,
        worst=tuple(row for _, row in shown[:WORST]),
    )


def _show(
    id: str, scores: np.ndarray, true: np.ndarray, classes: tuple[str, ...]
) -> tuple[tuple[int, float, str], ShownRow]:
    """A row and where it stands among the worst: by the rank, then by the score of its best true class."""
    best = float(scores[true].max())
    rank = 1 + int((scores > best).sum())
    order = np.argsort(-scores, kind="stable")[:3]
    row = ShownRow(
        row=id,
        truth=tuple(classes[k] for k in np.flatnonzero(true)),
        rank=rank,
        best=tuple(classes[k] for k in order),
        scores=tuple(round(float(scores[k]), 4) for k in order),
    )
    return (-rank, best, id), row


def read_labels(path: Path) -> dict[str, tuple[str, ...]]:
    """Clip name -> labels, from the columns `fname` and `labels` (several: separated by commas or blanks).

    Raises  SpecError when the file has no such columns
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if not {"fname", "labels"} <= set(rows.fieldnames or ()):
            raise SpecError(f"--labels {path}: columns {rows.fieldnames}; it needs fname and labels")
        return {row["fname"]: tuple((row["labels"] or "").replace(",", " ").split()) for row in rows}


def read_scores(path: Path, classes: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """(ids, f64[N, K]) of a submission of probabilities; a class without a column gets 0."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = csv.reader(file)
    places = [header.index(name) if name in header else None for name in classes]
    values = [[0.0 if place is None else float(row[place]) for place in places] for row in rows]
    return [row[0] for row in rows], np.array(values).reshape(len(rows), len(classes))


def _labels_of(id: str, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Labels of a row by its name, as it is or as the clip it repeats; by base name else."""
    for name in (id, original_name(id), Path(original_name(id)).name):
        if name in known:
            return known[name]
    return ()
