"""Stackers: second-level nets trained on out-of-fold predictions of the first level.

Owns their training. Their features come from kernel.scores on a board that holds out-of-fold scores only, so
that a stacker never sees a prediction of a net that learnt the clip. Unlike the stackers of
lRomul/argus-freesound, which average random subsets of tiles while training, ours see whole clips.
"""
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kernel import models
from kernel.errors import SpecError
from kernel.scores import blend
from kernel.spec import Ensemble, Stacker

from . import losses, optim
from .cross_validation import Trained, read_net, write_net
from .recipe import Train
from .trainer import Result, State, activation_of, halve, widen


@dataclass(frozen=True, kw_only=True)
class Table:
    """Stacker input of the n clips that all members scored.

    rows  int[n] positions of the clips; features f32[n, ...], targets f32[n, K], folds int[n]
    """

    rows: np.ndarray
    features: np.ndarray
    targets: np.ndarray
    folds: np.ndarray


def make_table(stacker: Stacker, ensemble: Ensemble, scores: dict[str, np.ndarray], targets: np.ndarray,
               folds: np.ndarray) -> Table:
    """The table of a stacker from merged out-of-fold scores (member name -> f64[N, K]).

    Raises  SpecError when no clip has all of its inputs
    """
    flat = Ensemble(name="oof", classes=ensemble.classes, frontends=ensemble.frontends,
                    members=tuple(replace(m, folds=(0,), fold_weights=()) for m in ensemble.members))
    board = blend.Board(len(targets), len(ensemble.classes))
    for member in flat.members:
        found = np.flatnonzero(np.isfinite(scores[member.name]).all(axis=1))
        board.add(f"{member.name}.0", found, scores[member.name][found])
    rows, features = blend.stacker_features(stacker, flat, board)
    if not len(rows):
        raise SpecError(
            f"stacker {stacker.name}: no clip has out-of-fold scores of all its inputs; "
            "train those members first"
        )
    return Table(rows=rows, features=features, targets=targets[rows], folds=folds[rows])


def train_stacker(stacker: Stacker, table: Table, train: Train, seed: int, folder: Path) -> list[Trained]:
    """One net per fold of the stacker, written to `folder` like a member's; finished ones are read."""
    nets = []
    for fold in stacker.folds:
        place = folder / f"{stacker.name}_{fold}"
        if not (place / "done.json").exists():
            hold = np.flatnonzero(table.folds == fold)
            seeds = [seed, zlib.crc32(f"{stacker.name}.{fold}".encode())]
            result = _train_one(stacker, table, train, seeds, fold)
            write_net(place, stacker.name, fold, table.rows[hold], result)
        nets.append(read_net(place))
    return nets


def _train_one(stacker: Stacker, table: Table, train: Train, seeds: list[int], fold: int) -> Result:
    """The stacker trained on all folds but one, and its probabilities on that one."""
    torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
    learn = np.flatnonzero(table.folds != fold)
    net = models.build(stacker.family, dict(stacker.params), table.targets.shape[1])
    optimiser = optim.build_optimiser(train.optimiser, net.parameters())
    rates = [group["lr"] for group in optimiser.param_groups]
    schedule = optim.build_schedule(train.schedule)
    loss_of = losses.build(train.loss)
    features = torch.from_numpy(table.features)
    targets = torch.from_numpy(table.targets)
    state = State(epoch=train.epochs)
    for epoch in range(train.epochs):
        order = np.random.default_rng([*seeds, epoch]).permutation(learn)
        batches = np.array_split(order, max(1, len(order) // train.batch))
        net.train()
        total = 0.0
        for number, part in enumerate(batches):
            share = (epoch + number / len(batches)) / train.epochs
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(share, epoch, [])
            loss = loss_of(net(features[part]), targets[part]).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) / len(batches)
        state.losses.append(total)
    shipped = halve(net.state_dict())
    net.load_state_dict(widen(shipped))
    net.eval()
    with torch.inference_mode():
        answers = net(features[torch.from_numpy(table.folds == fold)]).numpy().astype(np.float64)
    return Result(weights=shipped, held=activation_of(stacker.activation, net)(answers), state=state)
