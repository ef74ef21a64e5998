"""The training of one net on one fold: from random weights (or a checkpoint) to weights and held-out scores.

Owns epochs, mixed precision, averaged weights, early stopping, exact resume and the CSV log. Does not draw
clips (batching) and has no rules of its own for scores: held-out clips go through kernel.inference at full
length.
"""
import csv
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kernel import models
from kernel.errors import SpecError
from kernel.inference import backends
from kernel.inference.member import ACTIVATIONS, LoadedNet, predict_alone
from kernel.inference.recipe import Recipe
from kernel.scores import metrics
from kernel.sound.rows import Row
from kernel.spec import Cost

from . import losses, optim
from .batching import Batches, Job
from .epoch_progress import Progress
from .features import Features

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


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
    """What a finished training gives.

    weights  state dict as it ships, floating point in fp16
    held     f64[len(hold), K] probabilities of the held-out clips
    """

    weights: dict[str, Tensor]
    held: np.ndarray
    state: State


def halve(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict as it is shipped: floating point in fp16, clamped to its range; the rest as it is."""
    top = torch.finfo(torch.float16).max
    here = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    return {key: v.clamp(-top, top).half() if v.is_floating_point() else v for key, v in here.items()}


def widen(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shipped weights as they run: floating point in f32, the rest as it is."""
    return {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}


def activation_of(wanted: str | None, module: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """The wanted activation, or the one that fits what the net says it gives."""
    gives_probabilities = getattr(module, "output", "logits") == "probabilities"
    return ACTIVATIONS[wanted or ("none" if gives_probabilities else "sigmoid")]


def _channels_last(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pictures in the memory layout that convolutions run fastest in; other inputs as they are."""
    return {
        key: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
        for key, value in inputs.items()
    }


def score(recipe: Recipe, module: nn.Module, features: Features, rows: Sequence[Row]) -> np.ndarray:
    """f64[N, K] probabilities of rows by the kernel's own schedule of a CPU, one clip at a time."""
    module.eval()

    def run(inputs: backends.Inputs, frames: Tensor | None) -> Tensor:
        return backends.call_net(module, _channels_last(inputs), frames)

    device = backends.Device(name=str(next(module.parameters()).device), about="training")
    runner = backends.Runner(device=device, path="training", run=run, exact=run)
    activate = activation_of(recipe.member.activation, module)
    net = LoadedNet(module=module, runner=runner, recipe=recipe, activate=activate, cost=Cost())
    return np.stack([predict_alone(net, features, row) for row in rows])


class Trainer:
    """Trains one job; goes on where it stopped when the folder holds a checkpoint of the same job."""

    def __init__(
        self, job: Job, features: Features, device: str = "cpu", progress: Progress | None = None
    ) -> None:
        self.job = job
        self.features = features
        self.device = torch.device(device)
        self.progress = progress or Progress(quiet=True)
        train = job.train
        torch.manual_seed(int(np.random.SeedSequence(job.seeds).generate_state(1)[0]))
        member = job.recipe.member
        self.net = models.build(member.family, dict(member.params), job.classes)
        self.batches = Batches(job, features)
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
        """Trains to the end or to early stopping; the held-out clips are scored with the shipped weights."""
        if self.checkpoint.exists():
            self._load()
        train = self.job.train
        state = self.state
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
        self.averaged.load_state_dict(widen(shipped))
        return Result(weights=shipped, held=self._score_held(), state=state)

    def _score_held(self) -> np.ndarray:
        """f64[len(hold), K] probabilities of the held-out clips by the net as it is now."""
        rows = [self.job.rows[i] for i in self.job.hold]
        return score(self.job.recipe, self.averaged, self.features, rows)

    def _is_stale(self) -> bool:
        """True when the score has not risen for as many epochs as the recipe has patience for."""
        patience = self.job.train.patience
        waited = self.state.epoch - 1 - self.state.best_epoch
        return patience > 0 and self.state.best_epoch >= 0 and waited >= patience

    def _epoch(self, epoch: int) -> float:
        train = self.job.train
        # Dropout draws from torch's global stream: seeded per epoch, a resumed epoch gives the same weights.
        torch.manual_seed(int(np.random.SeedSequence([*self.job.seeds, epoch]).generate_state(1)[0]))
        self.net.train()
        total = 0.0
        count = self.batches.count
        for number, batch in enumerate(self.batches.epoch(epoch)):
            share = (epoch * count + number) / (train.epochs * count)
            factor = self.schedule(share, epoch, self.state.scores)
            for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            inputs = _channels_last({k: v.to(self.device) for k, v in batch.inputs.items()})
            dtype = DTYPES.get(train.precision, torch.bfloat16)
            with torch.autocast(self.device.type, dtype, train.precision != "float32"):
                outputs = self.net(inputs["x"] if set(inputs) == {"x"} else inputs)
            targets = batch.targets.to(self.device)
            noisy = batch.noisy.to(self.device)
            loss = losses.batch_loss(outputs, targets, noisy, self.losses, train.aux_weights)
            self._update(loss)
            total += float(loss.detach())
            if not math.isfinite(total):
                raise SpecError(
                    f"{self.job.name}: the loss became {total} in epoch {epoch}; lower optimiser.lr"
                )
        return total / count

    def _update(self, loss: Tensor) -> None:
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
        every = self.job.train.validate
        state = self.state
        if not every or state.epoch % every:
            return
        held = self._score_held()
        truth = self.job.targets[self.job.hold]
        value = metrics.METRICS[self.job.train.metric](truth, held) if truth.any() else 0.0
        state.scores.append(value)
        if value > state.best:
            state.best = value
            state.best_epoch = state.epoch - 1
            if self.job.train.patience:
                state.best_weights = {k: v.detach().clone() for k, v in self.averaged.state_dict().items()}

    def _save(self) -> None:
        """Writes the checkpoint; a kill at any moment leaves the last whole one."""
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
        self.state = State(**parts["state"])
        self.progress.say(f"{self.job.name}: goes on after epoch {self.state.epoch}")

    def _log(self, loss: float) -> None:
        state = self.state
        path = self.job.folder / "log.csv"
        fresh = not path.exists()
        value = state.scores[-1] if state.scores else float("nan")
        rate = self.optimiser.param_groups[0]["lr"]
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["epoch", "loss", self.job.train.metric, "lr", "seconds"])
            writer.writerow(
                [state.epoch, f"{loss:.6f}", f"{value:.6f}", f"{rate:.3g}", f"{state.seconds:.1f}"]
            )
        score = f", {self.job.train.metric} {value:.4f}" if state.scores else ""
        self.progress.advance(self.job.name, state.epoch, f"loss {loss:.4f}{score}")


def _set_biases(net: nn.Module, shares: np.ndarray) -> None:
    """Puts the bias of every linear layer with one output per class at the logit of the class's share."""
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
