"""Noisy labels: which clips to trust, and what label to give them.

    python -m training.relabel scores.npz --rule class_balanced --out selected.csv

Owns the published selection rules. Scores of noisy clips come from training.score (or any oof.npz); the
written CSV (fname,labels) is read by the "csv" adapter, or by "fat2019" as its noisy table.
"""
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kernel.scores import metrics


def agreement(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """f64[N], lwlrap of each clip alone: how high the model ranks the given labels; NaN without a label."""
    out = np.full(len(labels), np.nan)
    for i in np.flatnonzero(labels.any(axis=1)):
        out[i] = metrics.lwlrap(labels[i : i + 1], scores[i : i + 1])
    return out


def select_class_balanced(
    labels: np.ndarray, scores: np.ndarray, *, per_class: int = 50, least: float = 0.33
) -> np.ndarray:
    """int[n], rows among the `per_class` that agree best with a class they carry, and at least by `least`.

    Source: simongrest, top 50 per class and lwlrap >= 0.33 (2,898 clips of FSDKaggle2019); Viel: at most 50
    per class.
    """
    values = agreement(labels, scores)
    chosen: set[int] = set()
    for k in range(labels.shape[1]):
        rows = np.flatnonzero((labels[:, k] > 0) & (values >= least))
        chosen.update(rows[np.lexsort((-scores[rows, k], -values[rows]))][:per_class].tolist())
    return np.array(sorted(chosen), int)


def select_top(labels: np.ndarray, scores: np.ndarray, *, count: int) -> np.ndarray:
    """int[n], the `count` clips whose labels the model agrees with most; ties by the probability of the
    labels.

    Source of a round: ex4sperans/freesound-classification: 1,000, after training on them 2,000, up to 5,000.
    """
    values = agreement(labels, scores)
    chance = np.where(labels > 0, scores, np.nan)
    with np.errstate(all="ignore"):
        ties = np.nan_to_num(np.nanmean(np.where(labels.any(axis=1, keepdims=True), chance, 0.0), axis=1))
    order = np.lexsort((-ties, -np.nan_to_num(values, nan=-1.0)))
    return np.sort(order[: min(count, int(labels.any(axis=1).sum()))])


def relabel(labels: np.ndarray, scores: np.ndarray, *, add: float = 0.8, remove: float = 0.02) -> np.ndarray:
    """f32[N, K], labels after the model's word: classes above `add` are added, given ones below `remove`
    taken away.

    A clip that would lose all labels keeps the likeliest of those it had. The thresholds are ours.
    """
    out = ((labels > 0) & (scores >= remove)) | (scores >= add)
    lost = labels.any(axis=1) & ~out.any(axis=1)
    best = np.where(labels > 0, scores, -np.inf).argmax(axis=1)
    out[lost, best[lost]] = True
    return out.astype(np.float32)


def write_labels(path: Path, ids: Sequence[str], labels: np.ndarray, classes: Sequence[str]) -> None:
    """CSV with fname and labels, without clips that have none: a trainer would take them for negatives."""
    kept = [(id, np.flatnonzero(row)) for id, row in zip(ids, labels, strict=True) if row.any()]
    texts = [(id, ",".join(classes[int(k)] for k in found)) for id, found in kept]
    pd.DataFrame(texts, columns=["fname", "labels"]).to_csv(path, index=False, lineterminator="\n")


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 done, 2 wrong files."""
    parser = argparse.ArgumentParser(
        prog="python -m training.relabel", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("scores", type=Path, help=".npz with ids, classes, targets and scores")
    parser.add_argument("--rule", choices=("class_balanced", "top", "all"), default="class_balanced")
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--least", type=float, default=0.33)
    parser.add_argument("--count", type=int, default=1000, help="clips of rule top")
    parser.add_argument(
        "--relabel", action="store_true", help="write the model's labels in place of the given ones"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        with np.load(options.scores) as arrays:
            ids = arrays["ids"].astype(str).tolist()
            classes = arrays["classes"].astype(str).tolist()
            labels = arrays["targets"]
            scores = arrays["scores" if "scores" in arrays.files else "member/"].astype(np.float64)
    except (OSError, KeyError, ValueError) as error:
        reason = f"{options.scores}: {error}; training.score writes such files"
        print(f"training.relabel: {reason}", file=sys.stderr)
        return 2
    rows = {
        "class_balanced": lambda: select_class_balanced(
            labels, scores, per_class=options.per_class, least=options.least
        ),
        "top": lambda: select_top(labels, scores, count=options.count),
        "all": lambda: np.arange(len(ids)),
    }[options.rule]()
    chosen = relabel(labels[rows], scores[rows]) if options.relabel else labels[rows]
    write_labels(options.out, [ids[int(i)] for i in rows], chosen, classes)
    print(f"{int(chosen.any(axis=1).sum())} of {len(ids)} clips written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
