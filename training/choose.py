"""Choose the members of an ensemble by out-of-fold score.

    python -m training.choose OOF.npz --ensemble ensembles/default.toml --out ensembles/best.toml

Owns the search: every subset of up to 12 members, beyond that greedy forward selection with replacement
(counts become weights). The score of the best subset flatters, so the same search is repeated with each fold
held out, and that honest figure is printed.
"""
import argparse
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernel.errors import HourglassError, SpecError
from kernel.scores import means, metrics
from kernel.scores.steps import build
from kernel.spec import Ensemble, load_ensemble, parse_ensemble, read_toml

from . import evaluation, export, text_formats

ENUMERATE_UP_TO = 12  # Members; 2^12 subsets are tried, beyond that the search is greedy.
ROUNDS = 40  # Of the greedy search.
Metric = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A blend and what it is worth.

    weights  member -> weight > 0
    score    on the rows it was chosen on; honest: on folds left out of the choice
    """

    weights: dict[str, float]
    score: float
    honest: float = float("nan")


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """Member scores of one or several oof.npz on the rows that all of them have: f64[N, K] each."""

    members: dict[str, np.ndarray]
    targets: np.ndarray
    folds: np.ndarray


def read_scores(paths: Sequence[Path], negatives: bool = False) -> OutOfFold:
    """The members of all files, rows matched by clip id; only labelled clips that every member scored.

    negatives  clips without a label, too

    Raises  SpecError when files share no clip or name a member twice
    """
    members: dict[str, dict[str, np.ndarray]] = {}
    about: dict[str, tuple[np.ndarray, int]] = {}
    for path in paths:
        try:
            with np.load(path) as arrays:
                ids = [str(id) for id in arrays["ids"]]
                labels = zip(arrays["targets"], arrays["folds"].tolist(), strict=True)
                about.update(zip(ids, labels, strict=True))
                for key in arrays.files:
                    name = key.removeprefix("member/")
                    if key.startswith("member/") and name:
                        if name in members:
                            raise SpecError(
                                f"{path}: the member {name!r} is in two files; give each a name of its own"
                            )
                        members[name] = dict(zip(ids, arrays[key].astype(np.float64), strict=True))
        except (OSError, KeyError, ValueError) as error:
            raise SpecError(f"{path}: no out-of-fold file ({error}); train.py writes oof.npz") from error
    shared = [id for id, (target, _) in about.items() if (negatives or target.any())
              and all(id in rows and np.isfinite(rows[id]).all() for rows in members.values())]
    if not members or not shared:
        raise SpecError("oof: no labelled clip was scored by all members; give files of one data set")
    return OutOfFold(
        members={name: np.stack([rows[id] for id in shared]) for name, rows in members.items()},
        targets=np.stack([about[id][0] for id in shared]),
        folds=np.array([about[id][1] for id in shared]),
    )


def score_of(
    scores: OutOfFold, weights: Mapping[str, float], mean: str, metric: Metric, rows: np.ndarray
) -> float:
    """The metric of a weighted blend on some rows."""
    stack = np.stack([scores.members[name][rows] for name in weights])
    return metric(scores.targets[rows], means.mean(mean, stack, list(weights.values())))


def enumerate_subsets(scores: OutOfFold, mean: str, metric: Metric, rows: np.ndarray) -> Choice:
    """The best of all subsets with equal weights; the smaller one among equals."""
    best = Choice(weights={}, score=-np.inf)
    sizes = range(1, len(scores.members) + 1)
    for subset in itertools.chain.from_iterable(itertools.combinations(scores.members, n) for n in sizes):
        weights = dict.fromkeys(subset, 1.0)
        value = score_of(scores, weights, mean, metric, rows)
        if value > best.score + 1e-12:
            best = Choice(weights=weights, score=value)
    return best


def select_greedily(scores: OutOfFold, mean: str, metric: Metric, rows: np.ndarray) -> Choice:
    """Starts with the best member and adds, again and again, the one that helps most; members may come twice.

    Source: Caruana et al. 2004. Stops when nothing helps, after 40 rounds at most.
    """
    best = Choice(weights={}, score=-np.inf)
    for _ in range(ROUNDS):
        found = best
        for name in scores.members:
            weights = {**best.weights, name: best.weights.get(name, 0.0) + 1.0}
            value = score_of(scores, weights, mean, metric, rows)
            if value > found.score + 1e-12:
                found = Choice(weights=weights, score=value)
        if found is best:
            break
        best = found
    return best


def choose(scores: OutOfFold, mean: str = "geometric", metric: Metric = metrics.lwlrap) -> Choice:
    """The best blend, with the honest score from choosing on all folds but one and measuring there."""
    search = enumerate_subsets if len(scores.members) <= ENUMERATE_UP_TO else select_greedily
    everything = np.arange(len(scores.targets))
    best = search(scores, mean, metric, everything)
    if not best.weights:
        raise SpecError("oof: the metric is undefined for these clips (a class is true in all of them); give "
                        "clips without that class, or another --metric")
    values = []
    counts = []
    for fold in np.unique(scores.folds):
        inside = np.flatnonzero(scores.folds == fold)
        outside = np.flatnonzero(scores.folds != fold)
        if len(outside) and scores.targets[inside].any():
            picked = search(scores, mean, metric, outside)
            value = score_of(scores, picked.weights, mean, metric, inside) if picked.weights else np.nan
            if np.isfinite(value):
                values.append(value)
                counts.append(scores.targets[inside].sum())
    honest = float(np.average(values, weights=counts)) if len(values) > 1 else float("nan")
    return Choice(weights=best.weights, score=best.score, honest=honest)


def _found_from(member: dict[str, Any], before: Path, now: Path) -> dict[str, Any]:
    """A member's table whose files of labels and maps are found from another folder."""
    files = {
        key: os.path.relpath(before / member[key], now)
        for key in ("classes_from", "classes_map") if isinstance(member.get(key), str)
    }
    return {**member, **files}


def write_choice(ensemble: Path, choice: Choice, out: Path) -> None:
    """Writes the ensemble with the chosen members and their weights, without stackers whose inputs are gone.

    Raises  SpecError when a chosen member is not in the ensemble, or weights by class would undo the choice
    """
    data = read_toml(ensemble, "an ensemble TOML")
    loaded = parse_ensemble(data, ensemble)
    if loaded.weights_by:
        raise SpecError(f"{ensemble}: weights_by: what is chosen is one weight per member; take this key out")
    known = {member["name"]: member for member in data["members"]}
    for name in choice.weights:
        if name not in known:
            raise SpecError(
                f"{ensemble}: has no member {name!r}; give the ensemble that the out-of-fold file belongs to"
            )
    # Files beside the old TOML are not beside the new one.
    if out.parent.resolve() != ensemble.parent.resolve():
        data["classes"] = list(loaded.classes)
        if loaded.prior:
            data["prior"] = list(loaded.prior)
        _take_in_files(data, loaded)
        known = {name: _found_from(member, ensemble.parent, out.parent) for name, member in known.items()}
    data["members"] = [{**known[name], "weight": weight} for name, weight in choice.weights.items()]
    kept = [s for s in data.pop("stackers", []) if set(s["inputs"]) <= set(choice.weights)]
    if kept:
        data["stackers"] = kept
    _keep_groups(data, {*choice.weights, *(stacker["name"] for stacker in kept)})
    export.write_ensemble(out, text_formats.dumps_toml(data))


def _take_in_files(data: dict[str, Any], loaded: Ensemble) -> None:
    """Puts what steps and class groups read from files beside the TOML into it."""
    if loaded.class_groups:
        data["class_groups"] = loaded.class_groups
    for key in ("members", "stackers", "groups"):
        for table, part in zip(data.get(key, ()), getattr(loaded, key), strict=False):
            if part.steps:
                table["steps"] = list(part.steps)
    if loaded.output.steps:
        data["output"]["steps"] = list(loaded.output.steps)


def _keep_groups(data: dict[str, Any], there: set[str]) -> None:
    """Leaves out what is gone from the groups, and groups of which nothing is left.

    Raises  SpecError for a step that reads a member that is gone
    """
    groups = []
    for group in data.pop("groups", []):
        held = [name for name in group["members"] if name in there]
        if held:
            groups.append({**group, "members": held})
            there.add(group["name"])
    if groups:
        data["groups"] = groups
    output = {"name": "output", **data.get("output", {})}
    holders = [*data["members"], *data.get("stackers", []), *groups, output]
    for holder in holders:
        for i, step in enumerate(build(holder.get("steps", []), f"{holder['name']}.steps")):
            gone = [name for name in step.reads() if name not in there]
            if gone:
                raise SpecError(
                    f"{holder['name']}.steps[{i}]: reads {gone[0]!r}, which was not chosen; leave the step "
                    "out of the ensemble that you choose from, or keep the member by hand"
                )


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 done, 2 wrong files."""
    parser = argparse.ArgumentParser(
        prog="python -m training.choose", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("oof", type=Path, nargs="+", help="oof.npz files of train.py")
    parser.add_argument("--ensemble", type=Path, required=True, help="TOML with all the members")
    parser.add_argument("--out", type=Path, required=True, help="TOML to write")
    parser.add_argument("--metric", choices=[*metrics.METRICS, "accuracy"], default=None,
                        help="to choose by (default: accuracy where the output is one label, else lwlrap)")
    options = parser.parse_args(arguments)
    try:
        ensemble = load_ensemble(options.ensemble)
        usual = "accuracy" if ensemble.output.format == "label" else "lwlrap"
        name = options.metric or usual
        metric = {**metrics.METRICS, "accuracy": evaluation.accuracy}[name]
        choice = choose(read_scores(options.oof, name in metrics.COUNTING_NEGATIVES), ensemble.mean, metric)
        write_choice(options.ensemble, choice, options.out)
    except HourglassError as error:
        print(f"training.choose: {error}", file=sys.stderr)
        return 2
    chosen = ", ".join(f"{name} x {weight:g}" for name, weight in choice.weights.items())
    print(
        f"{chosen}: {name} {choice.score:.4f} on the clips it was chosen on, "
        f"{choice.honest:.4f} on folds left out of the choice; written to {options.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
