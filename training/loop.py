"""The training loop: one net on one fold, from random weights (or a checkpoint) to weights and out-of-fold
scores.

Owns epochs, mixed precision, averaged weights, early stopping, exact resume, the CSV log. Does not draw clips
(batching) and does not score by its own rules: held-out clips go through kernel.inference.net at full length.
"""
from __future__ import annotations

import csv
import hashlib
import math
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kernel import models
from kernel.errors import SpecError
from kernel.inference import backends
from kernel.inference.net import ACTIVATIONS, LoadedNet, Recipe, predict_alone
from kernel.scores import metrics
from kernel.spec import Cost

from . import losses, optim
from .batching import Batches
from .progress import Progress
from .recipe import Train

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One net to train: member `recipe` on `fold`.

    rows, targets, noisy  of all clips; learn, hold: positions of the training and the held-out clips
    folder                where checkpoint, log and result of this net go
    start                 weights to start from, or None
    """

    recipe: Recipe
    train: Train
    fold: int
    seed: int
    classes: int
    rows: Sequence[Any]
    targets: np.ndarray
    noisy: np.ndarray
    learn: np.ndarray
    hold: np.ndarray
    folder: Path
    start: dict[str, Tensor] | None = None

    @property
    def name(self) -> str:
        return f"{self.recipe.member.name}.{self.fold}"

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the weights, save the code and the audio: what is resumed must have the
        same.
        """
        member = self.recipe.member
        fronts = {name: stage.fe.key for name, stage in self.recipe.stages.items()}
        learnt = [(self.rows[i].id, self.targets[i].tolist(), bool(self.noisy[i])) for i in self.learn]
        text = repr(
            (
                member.family,
                sorted(member.params.items()),
                member.named_inputs(),
                fronts,
                self.train,
                self.seeds,
                learnt,
                self.classes,
            )
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def seeds(self) -> tuple[int, ...]:
        return (self.seed, zlib.crc32(self.name.encode()))


@dataclass(kw_only=True)
class State:
    """What a run needs to go on after a kill; saved whole after every epoch."""

    epoch: int = 0
    scores: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    best: float = -math.inf
    best_epoch: int = -1
    best_weights: dict[str, Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """weights: state dict f32 rounded through fp16; held: f64[len(hold), K] probabilities of the held-out
    clips.
    """

    weights: dict[str, Tensor]
    held: np.ndarray
    state: State


def halve(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict as it is shipped: floating point in fp16, clamped to its range; the rest as it is."""
    top = torch.finfo(torch.float16).max
    return {
        k: v.detach().cpu().clamp(-top, top).half().contiguous()
        if v.is_floating_point()
        else v.detach().cpu().contiguous()
        for k, v in weights.items()
    }


def score(recipe: Recipe, module: nn.Module, features: Any, rows: Sequence[Any]) -> np.ndarray:
    """f64[N, K] probabilities of rows by kernel.inference.net: front end -> view -> finish -> net, one clip
    at a time.
    """
    device = next(module.parameters()).device
    module.eval()

    def run(inputs: Any, frames: Tensor | None) -> Tensor:
        return backends.call_net(
            module,
            {
                k: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v
                for k, v in inputs.items()
            },
            frames,
        )

    runner = backends.Runner(
        device=backends.Device(name=str(device), about="training"), path="training", run=run, exact=run
    )
    output = getattr(module, "output", "logits")
    activation = recipe.member.activation or ("none" if output == "probabilities" else "sigmoid")
    net = LoadedNet(
        module=module, runner=runner, recipe=recipe, activate=ACTIVATIONS[activation], cost=Cost()
    )
    return np.stack([predict_alone(net, features, row) for row in rows])


class Loop:
    """Trains one job; `run` returns its Result, `resume` is automatic when the folder holds a checkpoint of
    the same job.
    """

    def __init__(
        self, job: Job, features: Any, device: str = "cpu", progress: Progress | None = None
    ) -> None:
        self.job, self.features, self.device = job, features, torch.device(device)
        self.progress = progress or Progress(quiet=True)
        train = job.train
        torch.manual_seed(int(np.random.SeedSequence(job.seeds).generate_state(1)[0]))
        member = job.recipe.member
        self.net = models.build(member.family, dict(member.params), job.classes)
        self.batches = Batches(job.recipe, features, [job.rows[i] for i in job.learn], job.targets[job.learn],
                               job.noisy[job.learn], train, job.seeds)
        if train.bias_prior:
            _set_biases(self.net, self.batches.class_shares())
        if job.start is not None:
            _load_start(self.net, job.start)
        self.net.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = None
        if train.ema:
            self.ema = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(train.ema), use_buffers=True)
        self.optimiser = optim.build_optimiser(train.optimiser, self.net.parameters())
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.schedule = optim.build_schedule(train.schedule)
        loss = losses.build(train.loss)
        self.losses = (loss, losses.build(train.noisy_loss, "noisy_loss") if train.noisy_loss else loss)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=train.precision == "float16")
        self.state = State()
        job.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = job.folder / "checkpoint.pt"

    @property
    def averaged(self) -> nn.Module:
        """The net that is measured and shipped."""
        return self.net if self.ema is None else self.ema.module

    def run(self) -> Result:
        """Trains to the end (or to early stopping) and scores the held-out clips with the weights as
        shipped.
        """
        train, state = self.job.train, self.state
        if self.checkpoint.exists():
            self._load()
        while state.epoch < train.epochs and not self._is_stale():
            started = time.monotonic()
            loss = self._epoch(state.epoch)
            state.losses.append(loss)
            state.epoch += 1
            self._validate()
            state.seconds += time.monotonic() - started
            self._save()
            self._log(loss)
        weights = state.best_weights if train.patience and state.best_weights else self.averaged.state_dict()
        shipped = halve(weights)
        self.averaged.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in shipped.items()}
        )
        held = score(self.job.recipe, self.averaged, self.features, [self.job.rows[i] for i in self.job.hold])
        return Result(weights=shipped, held=held, state=state)

    def _is_stale(self) -> bool:
        patience = self.job.train.patience
        return (
            bool(patience)
            and self.state.epoch - 1 - self.state.best_epoch >= patience
            and self.state.best_epoch >= 0
        )

    def _epoch(self, epoch: int) -> float:
        train = self.job.train
        # Dropout draws from torch's global stream: seeding it per epoch makes a resumed epoch equal to an
        # uninterrupted one.
        torch.manual_seed(int(np.random.SeedSequence([*self.job.seeds, epoch]).generate_state(1)[0]))
        self.net.train()
        total, steps = 0.0, self.batches.steps
        for step, batch in enumerate(self.batches.epoch(epoch)):
            share = (epoch * steps + step) / (train.epochs * steps)
            factor = self.schedule(share, epoch, self.state.scores)
            for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            inputs = {k: v.to(self.device) for k, v in batch.inputs.items()}
            inputs = {
                k: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v
                for k, v in inputs.items()
            }
            with torch.autocast(
                self.device.type, DTYPES.get(train.precision, torch.bfloat16), train.precision != "float32"
            ):
                outputs = self.net(inputs["x"] if set(inputs) == {"x"} else inputs)
            loss = losses.batch_loss(
                outputs,
                batch.targets.to(self.device),
                batch.noisy.to(self.device),
                self.losses,
                train.aux_weights,
            )
            self._step(loss)
            total += float(loss.detach())
            if not math.isfinite(total):
                raise SpecError(
                    f"{self.job.name}: the loss became {total} in epoch {epoch}; lower optimiser.lr"
                )
        return total / steps

    def _step(self, loss: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.job.train.clip_norm:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.job.train.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.net)

    def _validate(self) -> None:
        every, state, hold = self.job.train.validate, self.state, self.job.hold
        if not every or state.epoch % every:
            return
        held = score(self.job.recipe, self.averaged, self.features, [self.job.rows[i] for i in hold])
        truth = self.job.targets[hold]
        value = metrics.lwlrap(truth, held) if truth.any() else 0.0
        state.scores.append(value)
        if value > state.best:
            state.best, state.best_epoch = value, state.epoch - 1
            if self.job.train.patience:
                state.best_weights = {k: v.detach().clone() for k, v in self.averaged.state_dict().items()}

    def _save(self) -> None:
        """Atomic: a kill at any moment leaves the last whole checkpoint."""
        parts = {"job": self.job.fingerprint, "net": self.net.state_dict(),
                 "optimiser": self.optimiser.state_dict(), "scaler": self.scaler.state_dict(),
                 "ema": None if self.ema is None else self.ema.state_dict(), "state": dict(vars(self.state))}
        fresh = self.checkpoint.with_suffix(".new")
        torch.save(parts, fresh)
        fresh.replace(self.checkpoint)

    def _load(self) -> None:
        parts = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if parts.get("job") != self.job.fingerprint:
            raise SpecError(
                f"{self.checkpoint}: was made with other settings or clips; give another --out or remove it"
            )
        self.net.load_state_dict(parts["net"])
        self.optimiser.load_state_dict(parts["optimiser"])
        if self.ema is not None:
            self.ema.load_state_dict(parts["ema"])
        self.scaler.load_state_dict(parts["scaler"])
        for key, value in parts["state"].items():
            setattr(self.state, key, value)
        self.progress.say(f"{self.job.name}: goes on after epoch {self.state.epoch}")

    def _log(self, loss: float) -> None:
        path = self.job.folder / "log.csv"
        fresh = not path.exists()
        value = self.state.scores[-1] if self.state.scores else float("nan")
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["epoch", "loss", "lwlrap", "lr", "seconds"])
            writer.writerow(
                [
                    self.state.epoch,
                    f"{loss:.6f}",
                    f"{value:.6f}",
                    f"{self.optimiser.param_groups[0]['lr']:.3g}",
                    f"{self.state.seconds:.1f}",
                ]
            )
        score = f", lwlrap {value:.4f}" if self.state.scores else ""
        self.progress.advance(self.job.name, self.state.epoch, f"loss {loss:.4f}{score}")


def _set_biases(net: nn.Module, shares: np.ndarray) -> None:
    """Puts the bias of every linear layer with one output per class at the logit of the class's share, at
    least 1e-3.
    """
    shares = np.clip(shares, 1e-3, 0.5)
    for module in net.modules():
        if isinstance(module, nn.Linear) and module.out_features == len(shares) and module.bias is not None:
            with torch.no_grad():
                module.bias.copy_(torch.from_numpy(np.log(shares / (1 - shares))))


def _load_start(net: nn.Module, start: dict[str, Tensor]) -> None:
    """Fills the net with weights of another training; a head for other classes keeps its random start."""
    own = net.state_dict()
    fitting = {k: v.to(own[k].dtype) for k, v in start.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise SpecError("init: no weight of the starting member fits this net; check family and params")
    net.load_state_dict({**own, **fitting})
