"""Clips that never train, scored by the finished nets: what an ensemble is worth on a source it was not made
from.

Owns the rule that keeps this honest: a clip whose group (recording) did train is scored only by the nets that
held it out.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from kernel import models
from kernel.inference.net import build_recipe
from kernel.scores import blend
from kernel.spec import Ensemble

from . import data, loop, measure
from .data import Clips
from .features import Features
from .run import Run, Trained


def allowed(clips: Clips, trained: Clips, folds: np.ndarray) -> np.ndarray:
    """int[N], the only fold whose nets may score the clip, -1 = all may."""
    fold_of = dict(zip(trained.groups, folds.tolist(), strict=True))
    return np.array([fold_of.get(group, -1) for group in clips.groups])


def score(work: Run, nets: Sequence[Trained], ensemble: Ensemble, clips: Clips) -> np.ndarray:
    """f64[N, K] ensemble probabilities of labelled clips that are not among the training clips; NaN rows for
    broken ones.
    """
    features = Features(clips.folder, clips.ids, work.recipe.max_seconds, work.jobs)
    board = blend.Board(len(clips), len(clips.classes))
    only = allowed(clips, work.clips, work.folds)
    by_name = {member.name: member for member in ensemble.members}
    for net in nets:
        if net.member not in by_name:
            continue  # a stacker: it runs on the members' scores
        member = by_name[net.member]
        stages = build_recipe(ensemble, member)
        for stage in stages.stages.values():
            features.warm(stage.fe)
        rows = np.flatnonzero(((only == -1) | (only == net.fold)) & features.usable)
        module = models.build(member.family, dict(member.params), len(clips.classes))
        module.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in load_file(net.weights).items()}
        )
        board.add(
            f"{net.member}.{net.fold}",
            rows,
            loop.score(stages, module, features, [features.rows[i] for i in rows]),
        )
    features.close()
    whole = blend.blend(ensemble, board, np.full(len(clips.classes), 1 / len(clips.classes)))
    return np.where(whole.prior_rows[:, None], np.nan, whole.values)


def report(work: Run, nets: Sequence[Trained], ensemble: Ensemble, own: np.ndarray, spec: Mapping[str, Any],
           folder: Path) -> list[tuple[str, measure.Score]]:
    """Lines for the card: the clips of `spec` alone, and together with the out-of-fold scores `own` of the
    training clips.
    """
    clips = data.read_clips(spec, folder, work.clips.classes)
    clips = clips.take(np.flatnonzero(clips.targets.any(axis=1)))
    found = score(work, nets, ensemble, clips)
    good, kept = np.isfinite(found).all(axis=1), np.isfinite(own).all(axis=1)
    alone = measure.measure(clips.targets[good], found[good], [clips.groups[i] for i in np.flatnonzero(good)])
    groups = [work.clips.groups[i] for i in np.flatnonzero(kept)] + [
        clips.groups[i] for i in np.flatnonzero(good)
    ]
    both = measure.measure(np.concatenate([work.clips.targets[kept], clips.targets[good]]),
                           np.concatenate([own[kept], found[good]]), groups)
    names = ", ".join(sorted(set(clips.source)))
    return [(f"lwlrap, clips that never train ({names}, licence unrecorded)", alone),
            ("lwlrap, all labelled clips, these included", both)]
