"""The model card: what the weights were trained on, what they are worth, and what they are not good for.

Owns the text. Every number comes from measure and from the run's own records.
"""
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from kernel.scores.metrics import METRICS, lwlrap, lwlrap_per_class
from kernel.spec import Ensemble

from . import evaluation
from .cross_validation import Trained
from .data import Clips
from .evaluation import Score
from .recipe import Recipe
from .text_formats import markdown_table

LAST_EPOCH = ("the last epoch (averaged over steps where the recipe says so): no early stopping, "
              "no choice on the held-out folds")
TRUE_LABELS = ("fsdkaggle2019_ground_truth",)
SPEECH = ("emodb", "fsdd", "librosa_data")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything the card tells.

    scores    member name -> f64[N, K] out-of-fold probabilities, NaN where a clip was not predicted;
              "" stands for the ensemble
    external  further lines of the score table: (what, Score) of clips that never train
    """

    recipe: Recipe
    ensemble: Ensemble
    clips: Clips
    folds: np.ndarray
    nets: Sequence[Trained]
    scores: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]
    command: str
    external: Sequence[tuple[str, Score]] = ()
    against: Sequence[tuple[str, Score]] = ()

    @property
    def is_label(self) -> bool:
        return self.ensemble.output.format == "label"


def parts_of(clips: Clips) -> list[tuple[str, np.ndarray]]:
    """Name and bool[N] of the parts of the clips that get a line of their own."""
    source = np.array(clips.source)
    quality = np.array(clips.quality)
    found = [("all labelled clips", np.ones(len(clips), bool)),
             (f"without the speech sources ({', '.join(SPEECH)})", ~np.isin(source, SPEECH)),
             ("true-label subset (FSDKaggle2019 ground truth)", np.isin(quality, TRUE_LABELS)),
             ("labels checked by people (ground truth, speaker data, class of the source)",
              ~np.isin(quality, ("from_file_name", "out_of_vocabulary", ""))),
             ("labels read from file names", quality == "from_file_name")]
    labelled = clips.targets.any(axis=1)
    # A part without any label, or with all of them, says nothing that the first line does not say.
    telling = [0 < (rows & labelled).sum() < labelled.sum() for _, rows in found[1:]]
    return found[:1] + list(compress(found[1:], telling))


def wanted_metrics(facts: Facts) -> list[str]:
    """The metrics beside lwlrap by which a member was trained."""
    settings = [{**facts.recipe.train, **member.train} for member in facts.recipe.members]
    return sorted({str(found.get("metric", "lwlrap")) for found in settings} - {"lwlrap"})


def score_table(facts: Facts) -> str:
    """One line per part of the clips, one column per member, the ensemble last."""
    metrics: dict[str, evaluation.Metric] = {"accuracy": evaluation.accuracy} if facts.is_label else {}
    metrics["lwlrap"] = lwlrap
    metrics |= {name: METRICS[name] for name in wanted_metrics(facts)}
    names = [m.name for m in facts.recipe.members] + [""]
    rows = []
    for part, chosen in parts_of(facts.clips):
        for metric, function in metrics.items():
            cells = []
            for name in names:
                inside = np.flatnonzero(chosen & np.isfinite(facts.scores[name]).all(axis=1))
                kept = facts.clips.take(inside)
                cells.append(
                    evaluation.measure(kept.targets, facts.scores[name][inside], kept.groups, function)
                )
            rows.append([f"{metric}, {part}", cells[-1].clips, *cells])
    for what, score in facts.external:
        rows.append([what, score.clips, *[""] * (len(names) - 1), score])
    return markdown_table(["measured on", "clips", *names[:-1], "ensemble"], rows)


def measurable_line(facts: Facts) -> str:
    """lwlrap over the classes that held-out clips can measure."""
    scored = np.isfinite(facts.scores[""]).all(axis=1)
    known = evaluation.measurable(facts.clips, facts.folds)
    truth = facts.clips.targets * known
    rows = np.flatnonzero(scored & truth.any(axis=1))
    # Other true classes of a clip stay in its ranking: only the pairs of unmeasurable classes leave the mean.
    values, weights = lwlrap_per_class(facts.clips.targets[rows], facts.scores[""][rows])
    value = float((values * weights)[known].sum() / weights[known].sum())
    return (
        f"Over the {int(known.sum())} classes with clips in at least two folds, "
        f"the ensemble's lwlrap is {value:.4f} ({len(rows)} clips)."
    )


def against_text(facts: Facts) -> str:
    """What the ensemble adds to the members that the recipe sets beside it."""
    names = ", ".join(facts.recipe.against)
    table = markdown_table(["measured on", f"{names} alone", "the ensemble above it"],
                           [[what, alone, gain] for (what, alone), (_, gain)
                            in zip(facts.against[::2], facts.against[1::2], strict=True)])
    return f"Against the blend of {names} alone, on the same folds and clips:\n\n{table}"


def class_table(facts: Facts) -> str:
    """Every class: clips, groups, and its lwlrap, or the share found where the output is one label a clip."""
    scored = np.flatnonzero(np.isfinite(facts.scores[""]).all(axis=1))
    kept = facts.clips.take(scored)
    scores = facts.scores[""][scored]
    found = kept.targets[np.arange(len(kept)), scores.argmax(axis=1)] > 0
    values, _ = lwlrap_per_class(kept.targets, scores)
    known = evaluation.measurable(kept, facts.folds[scored])
    rows = []
    for k, name in enumerate(kept.classes):
        clips = np.flatnonzero(kept.targets[:, k] > 0)
        groups = {kept.groups[i] for i in clips}
        value = found[clips].mean() if facts.is_label and len(clips) else values[k]
        text = f"{value:.3f}" + ("" if known[k] else " (one fold only)") if len(clips) else "no clip"
        rows.append([name, len(clips), len(groups), text])
    measured = "found (recall)" if facts.is_label else "lwlrap"
    return markdown_table(["class", "clips", "groups", measured], rows)


def data_table(clips: Clips) -> str:
    """Sources with clips, labelled clips and licences."""
    licences = clips.extra.get("licence", ("",) * len(clips))
    rows = []
    for source, count in Counter(clips.source).most_common():
        inside = [i for i, s in enumerate(clips.source) if s == source]
        named = Counter(licences[i] for i in inside)
        rows.append([source, count, int(clips.targets[inside].any(axis=1).sum()),
                     "; ".join(f"{name} {n}" for name, n in named.most_common())])
    return markdown_table(["source", "clips", "with a label", "licences"], rows)


def training_table(facts: Facts) -> str:
    """Members with family, parameters, size, epochs and time."""
    rows = []
    for member in facts.recipe.members:
        nets = [net for net in facts.nets if net.member == member.name]
        pattern = member.taken or f"{facts.recipe.name}_{member.name}_{{fold}}"
        prefix = pattern.partition("{fold}")[0]
        size = sum(count for name, count in facts.sizes.items() if name.startswith(prefix))
        if member.taken is not None:
            rows.append([member.name, f"`{member.family}` {dict(member.params)}", len(nets),
                         f"{size / 1e6:.2f} MB", "", f"taken as it is: `{member.taken}`"])
            continue
        seconds = [net.record["seconds"] for net in nets]
        each = ", ".join(f"{s:.0f}" for s in seconds)
        rows.append([member.name, f"`{member.family}` {dict(member.params)}", len(nets),
                     f"{size / 1e6:.2f} MB", nets[0].record["epochs"],
                     f"{sum(seconds) / 60:.0f} min ({each} s)"])
    header = ["member", "family", "folds", "size", "epochs", "training time on 2 shared CPU cores"]
    return markdown_table(header, rows)


def write(facts: Facts, notes: str) -> str:
    """The card as markdown; `notes` is the recipe's own text on use and limits."""
    clips = facts.clips
    labelled = int(clips.targets.any(axis=1).sum())
    known = evaluation.measurable(clips, facts.folds)
    none = [name for k, name in enumerate(clips.classes) if not clips.targets[:, k].any()]
    single = [name for k, name in enumerate(clips.classes) if clips.targets[:, k].any() and not known[k]]
    sizes = sum(facts.sizes.values()) / 1e6
    stopped = any(facts.recipe.settings(member).patience for member in facts.recipe.members)
    epoch = "the best epoch on the held-out fold, so the scores flatter a little" if stopped else LAST_EPOCH
    text = [
        f"# Model card: {facts.recipe.name}",
        facts.recipe.about + ".",
        notes.strip(),
        "## How to make them again",
        f"```\n{facts.command}\n```",
        "## Scores",
        "Out of fold: each clip is scored by the nets that never saw its group (recording, speaker or take), "
        "at full length, by the code that runs in the kernel and with the fp16 weights as shipped. "
        "In brackets: 95 % interval from 1,000 bootstrap rounds over groups.",
        score_table(facts),
    ]
    if facts.against:
        text += [against_text(facts)]
    if not facts.is_label:
        text += [measurable_line(facts)]
    text += [
        "## Training",
        training_table(facts),
        f"{sizes:.2f} MB in all, fp16. Weights of {epoch}.",
        "## Data",
        f"{len(clips)} clips, {labelled} with a label, the others negatives; "
        f"{len(set(clips.groups))} groups, "
        f"{len(set(facts.folds.tolist()))} folds; ESC-10 keeps its own folds."
        if not facts.is_label
        else f"{len(clips)} clips, {len(set(clips.groups))} speakers.",
        data_table(clips),
        "## Classes",
    ]
    if none:
        text.append(f"Without any clip ({len(none)}): {', '.join(none)}. Their scores mean nothing.")
    if single:
        text.append(
            f"In one fold only ({len(single)}), so never both trained and held out: {', '.join(single)}. "
            "Their figure says nothing about the shipped nets, four of five of which did see such clips."
        )
    text.append(class_table(facts))
    return "\n\n".join(text) + "\n"
