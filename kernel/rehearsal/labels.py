"""How good a rehearsed submission is, where labels are known: the score, and the rows that are worst.

Owns the reading of a labels CSV and the ranking of rows. The score itself is metrics'. Does not draw.
"""
import csv
import re
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
    """What the labelled rows say, and the worst of them, with notes; None where nothing was scored.

    lwlrap                  over the rows with a true class
    macro_auc, padded_cmap  over these and the rows that the labels name without a class
    """

    notes: tuple[str, ...] = ()
    lwlrap: float | None = None
    macro_auc: float | None = None
    padded_cmap: float | None = None
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
    named = np.array([_find(id, known) is not None for id in ids])
    auc, cmap = (metrics.METRICS[name](true[named], scores[named]) for name in metrics.COUNTING_NEGATIVES)
    held = int(true[named].any(axis=0).sum())
    shown = [_show(ids[i], scores[i], true[i], classes) for i in rows if ids[i] not in broken]
    shown.sort(key=lambda ranked: ranked[0])
    return Score(
        notes=(
            f"lwlrap {lwlrap:.4f} over {len(rows)} labelled rows of {len(ids)}",
            _tell_auc(auc, held, len(classes), int(named.sum())) + f", padded cMAP {cmap:.4f}",
        ),
        lwlrap=lwlrap,
        macro_auc=None if np.isnan(auc) else auc,
        padded_cmap=cmap,
        worst=tuple(row for _, row in shown[:WORST]),
    )


def _tell_auc(auc: float, held: int, classes: int, rows: int) -> str:
    """The macro ROC-AUC in words, or why there is none."""
    if np.isnan(auc):
        return f"no macro ROC-AUC: a class is true in each of the {rows} rows that the labels name"
    return f"macro ROC-AUC {auc:.4f} over the {held} of {classes} classes with a positive in {rows} rows"


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
    """Clip or row name -> labels, from the columns `fname` (or `row_id`) and `labels`; several labels are
    separated by commas, semicolons or blanks.

    Raises  SpecError when the file has no such columns
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        columns = set(rows.fieldnames or ())
        name = "row_id" if "fname" not in columns and "row_id" in columns else "fname"
        if not {name, "labels"} <= columns:
            raise SpecError(f"--labels {path}: columns {rows.fieldnames}; it needs fname and labels")
        return {row[name]: tuple(filter(None, re.split(r"[\s,;]+", row["labels"] or ""))) for row in rows}


def read_scores(path: Path, classes: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """(ids, f64[N, K]) of a submission of probabilities; a class without a column gets 0."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = csv.reader(file)
    places = [header.index(name) if name in header else None for name in classes]
    values = [[0.0 if place is None else float(row[place]) for place in places] for row in rows]
    return [row[0] for row in rows], np.array(values).reshape(len(rows), len(classes))


def _labels_of(id: str, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Labels of a row; none where they do not name it."""
    return _find(id, known) or ()


def _find(id: str, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """Labels of a row by its name, as it is or as the clip it repeats; by base name else."""
    for name in (id, original_name(id), Path(original_name(id)).name):
        if name in known:
            return known[name]
    return None
