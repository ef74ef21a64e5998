"""How good a rehearsed submission is, where labels are known: the score, and the rows that are worst.

Owns the reading of a labels CSV and the ranking of rows. The score itself is metrics'. Does not draw.
"""
from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import spec
from ..errors import SpecError
from ..scores import metrics
from .fake_kaggle import original_name

WORST = 8  # rows shown


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
    values = np.array([[0.0 if p is None else float(row[p]) for p in places] for row in rows]).reshape(
        len(rows), len(classes)
    )
    return [row[0] for row in rows], values


def add_truth(report: dict[str, Any], labels: Path, submission: Path, ensemble: spec.Ensemble) -> None:
    """Put lwlrap over the labelled rows and the worst of them into the report.

    Raises  SpecError when no row has a label the ensemble knows
    """
    if ensemble.output.format != "probabilities":
        report["rehearsal"]["notes"].append(
            "--labels: only submissions of probabilities are scored; this one holds labels"
        )
        return
    known, classes = read_labels(labels), ensemble.classes
    ids, scores = read_scores(submission, classes)
    true = np.array([[name in _labels_of(id, known) for name in classes] for id in ids])
    rows = np.flatnonzero(true.any(axis=1))
    if not len(rows):
        raise SpecError(f"--labels {labels}: no clip has a label that is a class of {ensemble.name}; "
                        f"classes are {', '.join(classes[:5])} ...")
    score = metrics.lwlrap(true[rows], scores[rows])
    report["rehearsal"]["lwlrap"] = score
    report["rehearsal"]["notes"].append(f"lwlrap {score:.4f} over {len(rows)} labelled rows of {len(ids)}")
    predicted = [i for i in rows if ids[i] not in report["broken_rows"]]
    ranks = {i: 1 + int((scores[i] > scores[i][true[i]].max()).sum()) for i in predicted}
    worst = sorted(predicted, key=lambda i: (-ranks[i], float(scores[i][true[i]].max()), ids[i]))[:WORST]
    order = {i: np.argsort(-scores[i], kind="stable")[:3] for i in worst}
    report["worst"] = [
        {
            "row": ids[i],
            "truth": [classes[k] for k in np.flatnonzero(true[i])],
            "rank": ranks[i],
            "best": [classes[k] for k in order[i]],
            "scores": [round(float(scores[i, k]), 4) for k in order[i]],
        }
        for i in worst
    ]


def _labels_of(id: str, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Labels of a row by its name, as it is or as the clip it repeats; by base name else."""
    for name in (id, original_name(id), Path(original_name(id)).name):
        if name in known:
            return known[name]
    return ()
