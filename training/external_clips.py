"""Clips that never train, scored by the finished nets: what an ensemble is worth on another source.

Owns the rule that keeps this honest: a clip whose group (recording) did train is scored only by the nets that
held it out. Does not write the card (model_card).
"""
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from kernel import models
from kernel.scores import blend
from kernel.spec import Ensemble

from . import data, evaluation, trainer
from .cross_validation import CrossValidation, Trained
from .data import Clips
from .features import Features


def score(work: CrossValidation, nets: Sequence[Trained], ensemble: Ensemble, clips: Clips) -> np.ndarray:
    """f64[N, K] ensemble probabilities of clips that never train; NaN rows for broken ones."""
    with closing(Features(clips.folder, clips.ids, work.recipe.max_seconds, work.jobs)) as features:
        board = blend.open_board(ensemble, len(clips))
        held_out = dict(zip(work.clips.groups, work.folds.tolist(), strict=True))
        # The only fold whose nets may score a clip; -1 where none of its group trained.
        only = np.array([held_out.get(group, -1) for group in clips.groups])
        foreign = {member.name for member in work.recipe.members if member.is_foreign}
        by_name = {member.name: member for member in ensemble.members}
        for net in nets:
            if net.member not in by_name:
                continue  # A stacker: it runs on the scores of the members.
            member = by_name[net.member]
            recipe = work.stages_of(ensemble, member)
            for stage in recipe.stages.values():
                features.warm(stage.fe)
            rows = np.flatnonzero(((only == -1) | (only == net.fold) | (net.member in foreign))
                                  & features.usable)
            module = models.build(member.family, dict(member.params), len(clips.classes))
            module.load_state_dict(trainer.widen(load_file(net.weights)))
            answers = trainer.score(recipe, module, features, [features.rows[i] for i in rows])
            board.add(f"{net.member}.{net.fold}", rows, answers)
    return evaluation.blend_board(ensemble, board)


def describe(work: CrossValidation, nets: Sequence[Trained], ensemble: Ensemble, own: np.ndarray,
             spec: Mapping[str, Any], folder: Path) -> list[tuple[str, evaluation.Score]]:
    """Lines for the card: the clips of `spec` alone, and together with the training clips.

    own  f64[N, K] out-of-fold scores of the training clips
    """
    clips = data.read_clips(spec, folder, work.clips.classes)
    clips = clips.take(np.flatnonzero(clips.targets.any(axis=1)))
    names = ", ".join(sorted(set(clips.source)))
    found = score(work, nets, ensemble, clips)
    scored = np.isfinite(found).all(axis=1)
    clips = clips.take(scored)
    found = found[scored]
    held = np.isfinite(own).all(axis=1)
    trained = work.clips.take(held)
    alone = evaluation.measure(clips.targets, found, clips.groups)
    both = evaluation.measure(np.concatenate([trained.targets, clips.targets]),
                              np.concatenate([own[held], found]), trained.groups + clips.groups)
    return [(f"lwlrap, clips that never train ({names}, licence unrecorded)", alone),
            ("lwlrap, all labelled clips, these included", both)]
