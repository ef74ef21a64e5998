"""Stackers: second-level nets trained on out-of-fold predictions of the first level.

Owns their training. Features come from kernel.blend.stacker_features on a board that holds out-of-fold scores
only, so a stacker never sees a prediction of a net that learnt the clip. The published argus stackers also
average random subsets of tiles while training; ours see whole clips.
"""
from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from kernel import models
from kernel.errors import SpecError
from kernel.inference.net import ACTIVATIONS
from kernel.scores import blend
from kernel.spec import Ensemble, Stacker

from . import losses, optim
from .loop import halve
from .recipe import Train
from .run import Trained, read_net


@dataclass(frozen=True, kw_only=True)
class Table:
    """Stacker input of the clips whose members all scored: rows int[n] positions, features f32[n, ...],
    targets f32[n, K].
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
            f"stacker {stacker.name}: no clip has out-of-fold scores of all its inputs; train those members first"
        )
    return Table(rows=rows, features=features, targets=targets[rows], folds=folds[rows])


def train_stacker(stacker: Stacker, table: Table, train: Train, seed: int, folder: Path) -> list[Trained]:
    """One net per fold of the stacker, written to `folder` like a member's; finished ones are read."""
    nets = []
    for fold in stacker.folds:
        place = folder / f"{stacker.name}_{fold}"
        if not (place / "done.json").exists():
            _train_one(stacker, table, train, seed, fold, place)
        nets.append(read_net(place))
    return nets


def _train_one(stacker: Stacker, table: Table, train: Train, seed: int, fold: int, place: Path) -> None:
    seeds = [seed, zlib.crc32(f"{stacker.name}.{fold}".encode())]
    torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
    learn, hold = np.flatnonzero(table.folds != fold), np.flatnonzero(table.folds == fold)
    net = models.build(stacker.family, dict(stacker.params), table.targets.shape[1])
    optimiser = optim.build_optimiser(train.optimiser, net.parameters())
    rates = [group["lr"] for group in optimiser.param_groups]
    schedule, loss_of = optim.build_schedule(train.schedule), losses.build(train.loss)
    features, targets = torch.from_numpy(table.features), torch.from_numpy(table.targets)
    values = []
    for epoch in range(train.epochs):
        order = np.random.default_rng([*seeds, epoch]).permutation(learn)
        batches = np.array_split(order, max(1, len(order) // train.batch))
        net.train()
        total = 0.0
        for step, part in enumerate(batches):
            share = (epoch + step / len(batches)) / train.epochs
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(share, epoch, [])
            loss = loss_of(net(features[part]), targets[part]).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) / len(batches)
        values.append(total)
    place.mkdir(parents=True, exist_ok=True)
    shipped = halve(net.state_dict())
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in shipped.items()})
    save_file(shipped, place / "weights.safetensors")
    np.savez_compressed(
        place / "held.npz", hold=table.rows[hold], held=_predict(stacker, net, features[hold])
    )
    record = {
        "member": stacker.name,
        "fold": fold,
        "epochs": train.epochs,
        "seconds": 0.0,
        "losses": values,
        "scores": [],
        "best_epoch": -1,
        "threads": torch.get_num_threads(),
        "job": "",
    }
    (place / "done.json").write_text(json.dumps(record))


def _predict(stacker: Stacker, net: torch.nn.Module, features: torch.Tensor) -> np.ndarray:
    """f32[n, K] probabilities by the stacker's activation."""
    output = getattr(net, "output", "logits")
    activation = stacker.activation or ("none" if output == "probabilities" else "sigmoid")
    net.eval()
    with torch.inference_mode():
        return ACTIVATIONS[activation](net(features).numpy().astype(np.float64)).astype(np.float32)
