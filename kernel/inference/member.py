"""A net with its weights over one row: stored arrays -> view -> finish -> net -> probabilities.

Owns loading weights into a net, the inputs of a row and the CPU's exact way through it, a few passes at a
time. Does not batch rows for a GPU or choose what runs next (engine), keep arrays (cache) or merge nets
(scores).
"""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import nn

from .. import models, spec
from ..errors import ModelLoadFailed
from ..sound.rows import Row
from ..sound.source import Source
from . import backends, graph_net, views
from .answers import ACTIVATIONS, Activate, check_frames, sigmoid, softmax
from .devices import Device
from .recipe import PASSES_PER_BATCH, Recipe, fill_constants
from .staging import Intake
from .ways import Precision

__all__ = [
    "ACTIVATIONS",
    "LoadedNet",
    "graph_outputs",
    "load_graph",
    "load_net",
    "load_plain",
    "load_stacker",
    "sigmoid",
    "softmax",
]

# No answer: the row does not fit on the device even alone, or the net gave NaN or infinity.
UNFIT = np.array([np.nan])
TRIAL_S = 3.0  # of sound on which a graph is tried


class Arrays(Protocol):
    """Where a row's stored arrays come from: the cache, or whatever stands in for it."""

    def get(self, fe: Source, row: Row) -> np.ndarray:
        """array[C, M, T] of a row. Raises ClipError."""


Activation = Activate


@dataclass(kw_only=True)
class LoadedNet:
    """A net with its weights on a device.

    fitting_cells  most cells of a batch that fit on the device, once one did not; None = never out of memory
    """

    module: nn.Module
    runner: backends.Runner
    recipe: Recipe
    activate: Activation
    cost: spec.Cost
    fitting_cells: int | None = None

    def lengths(self, own: np.ndarray | None, inputs: backends.Inputs) -> torch.Tensor | None:
        """i64[B] own lengths as the net takes them, None where nothing is padded.

        On the host for our families, so that no layer waits for a device; where the inputs are for others.
        """
        if own is None:
            return None
        lengths = torch.from_numpy(own)
        where = next(iter(inputs.values())).device
        return lengths if self.runner.own_lengths else lengths.to(where, non_blocking=True)

    @property
    def intake(self) -> Intake:
        """How the net wants its inputs."""
        return Intake(
            recipe=self.recipe,
            least=_least_frames(self.recipe, self.module),
            min_frames=int(getattr(self.module, "min_frames", 1)),
            # Frames that are padded would be frames, too
            maskable=bool(getattr(self.module, "maskable", False)) and self.recipe.member.frames is None,
        )


def load_net(
    recipe: Recipe,
    state: dict[str, torch.Tensor],
    classes: int,
    device: Device,
    cost: spec.Cost,
    candidates: Iterable[Callable[[], graph_net.GraphNet]] = (),
    precision: Precision | None = None,
) -> LoadedNet:
    """The member's net, filled and prepared; `candidates` are the same net as exported graphs.

    precision  on a GPU: what the member's nets have agreed on, None = nothing yet

    Raises  ModelLoadFailed when keys or shapes differ or a weight is not finite
    """
    recipe, own = fill_constants(recipe, state)
    module = _build(recipe.member, own, classes)
    samples = _draw_samples(recipe, module)
    runner = backends.prepare(module, device, samples, precision=precision, candidates=candidates)
    return _loaded(recipe, module, runner, cost)


def load_graph(recipe: Recipe, net: graph_net.GraphNet, cost: spec.Cost) -> LoadedNet:
    """A member that exists only as a graph, ready to run."""
    told = None
    if recipe.view.count(1 << 30) > 1:  # several passes of a row would run together
        told = net.try_together(draw_inputs(recipe, _trial_frames(recipe, net), 2, np.random.default_rng(0)))
    return _loaded(recipe, net, backends.run_graph(net, [told] if told else ()), cost)


def _trial_frames(recipe: Recipe, module: nn.Module) -> int:
    """Frames of a cut of a few seconds."""
    fe = recipe.stages[recipe.timed].fe
    return recipe.view.fixed or max(_least_frames(recipe, module), fe.max_frames(int(TRIAL_S * fe.rate)))


def graph_outputs(net: LoadedNet, store: Arrays, row: Row, names: Sequence[str]) -> list[np.ndarray]:
    """Outputs of a graph over one row by name, in that order, all of one run: f32[P, n, D] each.

    P passes of the member's view, n answers (patches) in each, D values: class scores, or an embedding.

    Raises  ClipError, ModelLoadFailed for an output that the graph lacks
    """
    assert isinstance(net.module, graph_net.GraphNet)
    inputs = row_inputs(net, store, row)
    parts: list[list[np.ndarray]] = []
    for start in range(0, len(next(iter(inputs.values()))), PASSES_PER_BATCH):
        part = {k: v[start : start + PASSES_PER_BATCH] for k, v in inputs.items()}
        parts.append(net.module.run(part, names))
    whole = [np.concatenate(answers) for answers in zip(*parts, strict=True)]
    return [answer if answer.ndim == 3 else answer[:, None] for answer in whole]


def load_plain(recipe: Recipe, state: dict[str, torch.Tensor], classes: int) -> LoadedNet:
    """The member's net in plain torch on the CPU, neither recorded nor checked: for a few rows.

    Raises  ModelLoadFailed
    """
    recipe, own = fill_constants(recipe, state)
    module = _build(recipe.member, own, classes).eval().requires_grad_(False)

    def run(inputs: backends.Inputs, frames: torch.Tensor | None) -> torch.Tensor:
        return backends.call_net(module, inputs, frames)

    runner = backends.Runner(device=backends.probe("cpu"), path="torch cpu, eager", run=run, exact=run)
    return _loaded(recipe, module, runner, spec.Cost())


def load_stacker(
    stacker: spec.Stacker, state: dict[str, torch.Tensor], classes: int
) -> tuple[nn.Module, Activation]:
    """A second-level net on the CPU and its activation.

    Raises  ModelLoadFailed
    """
    module = _build(stacker, state, classes).eval()
    return module, _choose_activation(stacker, module)


def _loaded(recipe: Recipe, module: nn.Module, runner: backends.Runner, cost: spec.Cost) -> LoadedNet:
    activate = _choose_activation(recipe.member, module)
    if activate is ACTIVATIONS["none"] and recipe.own_classes is not None and recipe.own_classes.logits:
        raise ModelLoadFailed(
            f'{recipe.member.name}: proxy_scores = "logits", but the net gives probabilities; write '
            '"probabilities"'
        )
    return LoadedNet(module=module, runner=runner, recipe=recipe, activate=activate, cost=cost)


def _choose_activation(part: spec.Part, module: nn.Module) -> Activation:
    """The chosen activation, or the usual one for what the net says it gives."""
    usual = "none" if getattr(module, "output", "logits") == "probabilities" else "sigmoid"
    return ACTIVATIONS[part.activation or usual]


def _build(part: spec.Part, state: dict[str, torch.Tensor], classes: int) -> nn.Module:
    """The net with its weights. Raises ModelLoadFailed."""
    module = models.build(part.family, part.params, part.outputs(classes))
    try:
        module.load_state_dict(models.rename(part.family, part.params, state))
    except RuntimeError as error:
        raise ModelLoadFailed(
            f"{part.name}: {error}; build the bundle again from the right checkpoint"
        ) from error
    for key, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelLoadFailed(
                f"{part.name}: weight {key} holds NaN or infinity; export the checkpoint again"
            )
    return module


def tiled(net: LoadedNet, frames: int = 1024) -> LoadedNet:
    """The same net reading a clip in tiles: for a forward that would not fit into memory at full length.

    Raises  MemoryError when the view has fixed cuts already, so nothing smaller is possible
    """
    recipe = net.recipe
    if recipe.view.fixed is not None or recipe.member.frames is not None:
        raise MemoryError("the forward of this row does not fit and its view cannot be cut smaller")
    stages = dict(recipe.stages)
    stage = stages[recipe.timed]
    view = views.Tiles(fe=stage.view.fe, frames=frames, step=frames)
    stages[recipe.timed] = replace(stage, view=view)
    return replace(net, recipe=replace(recipe, stages=stages, view=view))


def _least_frames(recipe: Recipe, module: nn.Module) -> int:
    """Fewest stored frames that the net can take."""
    return recipe.smallest(int(getattr(module, "min_frames", 1)))


def _draw_samples(recipe: Recipe, module: nn.Module) -> list[backends.Inputs]:
    """Seeded random inputs for the agreement check of a back end: three lengths, one and two passes."""
    least = _least_frames(recipe, module)
    most = getattr(module, "max_frames", None) or np.iinfo(np.int64).max
    generator = np.random.default_rng(0)
    return [
        draw_inputs(recipe, recipe.view.fixed or min(wanted, most), passes, generator)
        for passes, wanted in ((1, least + 64), (1, 2 * least + 157), (2, 3 * least + 90))
    ]


def draw_inputs(
    recipe: Recipe, frames: int, passes: int, generator: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Random inputs of a net, finished, for cuts of `frames` frames."""
    inputs = {}
    for name, stage in recipe.stages.items():
        fe = stage.fe
        shape = (passes, fe.channels, fe.bins, frames if fe.time else fe.fixed or 1)
        is_image = fe.dtype == np.uint8
        values = generator.uniform(0, 255, shape) if is_image else generator.normal(0, 1, shape)
        inputs[name] = stage.finish(torch.from_numpy(values.astype(np.float32)))
    return inputs


def row_inputs(net: LoadedNet, store: Arrays, row: Row) -> dict[str, torch.Tensor]:
    """Input tensors of one row, f32[P, C, M, T] each: padded to the net's smallest length, cut, finished.

    Raises  ClipError
    """
    inputs: dict[str, torch.Tensor] = {}
    for name, stage in net.recipe.stages.items():
        stored = store.get(stage.fe, row)
        if stage.fe.time and stage.view.fixed is None:
            missing = _least_frames(net.recipe, net.module) - stored.shape[-1]
            if missing > 0:
                stored = views.pad_time(stored, 0, missing, views.pad_value(stored, stage.fe))
        # A copy where it is the store's own array.
        cuts = np.require(stage.cut(stored, row.id), np.float32, ["C", "W"])
        inputs[name] = stage.finish(torch.from_numpy(cuts))
    passes = max(value.shape[0] for value in inputs.values())
    return {k: v.expand(passes, *v.shape[1:]) if v.shape[0] != passes else v for k, v in inputs.items()}


def predict_alone(
    net: LoadedNet, store: Arrays, row: Row, forwards: list[tuple[int, int]] | None = None
) -> np.ndarray:
    """f64[K] probabilities of one row, in forwards of at most PASSES_PER_BATCH passes: exact by construction.

    forwards  gets (frames of a pass, frames in all) of each forward, to be counted
    """
    inputs = row_inputs(net, store, row)
    passes = next(iter(inputs.values())).shape[0]
    outs = []
    for start in range(0, passes, PASSES_PER_BATCH):
        part = {k: v[start:start + PASSES_PER_BATCH] for k, v in inputs.items()}
        outs.append(net.runner(part))
        timed = part[net.recipe.timed]
        if forwards is not None:
            frames = timed.shape[net.recipe.time_axis]
            forwards.append((frames, timed.shape[0] * frames))
    return merge(net, np.concatenate(outs))


def merge(net: LoadedNet, answers: np.ndarray) -> np.ndarray:
    """f64[K] of a row from the net's answers f32[P, K]; UNFIT where one is not finite (no vote).

    A net of frames gives f64[F, K] of its one pass f32[1, F, K]: rows are made of several windows.
    """
    if not np.isfinite(answers).all():
        return UNFIT
    answers = net.recipe.before_activation(answers)
    if net.recipe.member.frames is not None:
        check_frames(answers.shape, len(answers))
        return net.recipe.in_order(np.asarray(net.activate(answers[0]), np.float64))
    return net.recipe.in_order(net.recipe.view.merge(answers, net.activate))
