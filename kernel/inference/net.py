"""One net over rows: stored spectrogram -> view -> finish -> net -> probabilities.

Owns `Recipe` (the stages of one member, built once), `produce` (what a loader thread does for one clip) and
the CPU schedule, one row at a time. Does not batch rows for a GPU (grouped), choose what runs next (plan),
keep spectrograms (store) or merge members (blend).
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import models, spec
from ..errors import ClipError, ClipUnreadable, ModelLoadFailed
from ..sound import decode, frontends
from . import backends, finish, onnx, views

# tiles of one clip per forward on a CPU: small enough for its caches and for rows side by side
PASSES_PER_BATCH = 4
# no answer: the row does not fit on the device even alone, or the net gave NaN or infinity
UNFIT = np.array([np.nan])


class CutFirst:
    """A front end behind a view that cuts the waveform: the cuts' arrays, stacked along channels."""

    def __init__(self, fe: frontends.FrontEnd, view: views.View):
        self.fe, self.view = fe, view
        self.key = f"{fe.key}-{view.key}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fe, name)

    def of_row(self, wave: np.ndarray, row_id: str) -> np.ndarray:
        """[P*C, M, T] of P waveform cuts."""
        return np.concatenate([self.fe(cut) for cut in self.view.cut_wave(wave, row_id)])


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One input of a net: front end, view, finish."""

    fe: Any
    view: Any
    finish: Any

    def cut(self, stored: np.ndarray, row_id: str) -> np.ndarray:
        """[P, C, M, t] in the stored dtype."""
        if isinstance(self.fe, CutFirst):
            return stored.reshape(-1, self.fe.channels, *stored.shape[1:])
        return self.view.cut(stored, row_id) if self.fe.time else stored[None]


def softmax(logits: np.ndarray) -> np.ndarray:
    """f64 probabilities over the last axis."""
    z = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return z / z.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """f64 probabilities, no overflow at any logit."""
    return np.exp(-np.logaddexp(0.0, -logits))


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": sigmoid, "softmax": softmax, "none": lambda p: p}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything of a member but its weights.

    stages  input name -> Stage; `timed` is the input that carries the time axis
    """

    member: spec.Member
    stages: dict[str, Stage]
    timed: str
    view: Any

    def cells(self, seconds: float) -> float:
        """Upper bound of the frames a net works through for a row of `seconds`, all its passes together."""
        stage = self.stages[self.timed]
        stored = stage.fe.max_frames(int(seconds * stage.fe.rate) + 1)
        return float(self.view.count(stored) * stage.finish.frames(self.view.fixed or stored))

    def cells_at_once(self, cells: float) -> float:
        """Frames of the largest forward of a row of `cells` frames on a CPU: long rows of cuts run in
        several.
        """
        fixed = self.view.fixed
        return (
            cells
            if fixed is None
            else min(cells, PASSES_PER_BATCH * self.stages[self.timed].finish.frames(fixed))
        )

    def smallest(self, min_frames: int) -> int:
        """Stored frames needed so that the finish gives at least `min_frames`."""
        have = self.stages[self.timed].finish.frames
        low, high = 1, max(1, min_frames)
        while have(high) < min_frames:
            high *= 2
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if have(middle) >= min_frames else (middle + 1, high)
        return low


def build_recipe(ensemble: spec.Ensemble, member: spec.Member) -> Recipe:
    """Front ends, view and finishes of a member.

    Raises  SpecError for unknown kinds or keys
    """
    stages, timed, chosen = {}, "x", None
    for name, entry in member.named_inputs().items():
        fe = frontends.build(ensemble.frontends[entry.frontend])
        view = views.build(dict(member.view), fe)
        if fe.time and chosen is None:
            timed, chosen = name, view
        source = CutFirst(fe, view) if fe.time and view.domain == "wave" else fe
        stages[name] = Stage(fe=source, view=view, finish=finish.build(entry.finish, fe))
    if chosen is None:
        raise spec.SpecError(
            f"member {member.name}: no input has a time axis; give it a spectrogram or a waveform"
        )
    return Recipe(member=member, stages=stages, timed=timed, view=chosen)


def produce(fe: Any, rows: Sequence[decode.Row], max_seconds: float,
            note: Callable[[str, str], None]) -> Iterator[tuple[decode.Row, np.ndarray | ClipError]]:
    """Stored arrays of all `rows` of one clip: decoded once, cut and resampled per row.

    note  called with (row id, text) for salvaged or shortened audio
    """
    try:
        wave = decode.decode(rows[0].clip, max_seconds)
    except MemoryError:
        raise  # the store makes room and tries again
    except (Exception, SystemExit) as error:  # whatever a decoder does short of dying costs its own clip
        for row in rows:
            yield row, _as_clip_error(row, "decoder", error)
        return
    for row in rows:
        for text in wave.notes:
            note(row.id, text)
        try:
            cut = decode.resample(decode.cut(wave, row), fe.rate).samples
            array = fe.of_row(cut, row.id) if isinstance(fe, CutFirst) else fe(cut)
        except MemoryError:
            raise
        except Exception as error:  # a front end that cannot digest this clip costs this clip
            yield row, _as_clip_error(row, "front end", error)
        else:
            yield row, array


def _as_clip_error(row: decode.Row, stage: str, error: BaseException) -> ClipError:
    """The error itself if it names a fault of the clip, else one that does."""
    if isinstance(error, ClipError):
        return error
    return ClipUnreadable(f"{row.id}: the {stage} failed: {type(error).__name__}: {error}; replace the file")


@dataclass(kw_only=True)
class LoadedNet:
    """A net with its weights on a device.

    fitting_frames  most frames of a batch that fit on the device, once one did not; None = never out of
                    memory
    """

    module: nn.Module
    runner: backends.Runner
    recipe: Recipe
    activate: Callable[[np.ndarray], np.ndarray]
    cost: spec.Cost
    batches: int = 0
    cells: int = 0
    padded_cells: int = 0
    fitting_frames: int | None = None
    # frames of a forward -> [cells, padded cells, forwards] in all
    widths: dict[int, list[int]] = field(default_factory=dict)

    def count(self, width: int, cells: int, padded: int = 0) -> None:
        """Note one forward of `cells` frames in passes `width` wide, for the report."""
        self.batches, self.cells, self.padded_cells = (
            self.batches + 1,
            self.cells + cells,
            self.padded_cells + padded,
        )
        self.widths[width] = [
            sum(pair) for pair in zip(self.widths.get(width, (0, 0, 0)), (cells, padded, 1), strict=True)
        ]


def load_net(
    recipe: Recipe,
    state: dict[str, torch.Tensor],
    classes: int,
    device: backends.Device,
    cost: spec.Cost,
    candidates: Iterable[Callable[[], onnx.GraphNet]] = (),
) -> LoadedNet:
    """The member's net, filled and prepared; `candidates` are the same net as exported graphs.

    Raises  ModelLoadFailed when keys or shapes differ or a weight is not finite
    """
    member = recipe.member
    module = models.build(member.family, dict(member.params), classes)
    _fill(module, member.name, models.rename(member.family, dict(member.params), state))
    runner = backends.prepare(module, device, _samples(recipe, module), candidates=candidates)
    return LoadedNet(
        module=module,
        runner=runner,
        recipe=recipe,
        activate=_activation(member.activation, module),
        cost=cost,
    )


def load_graph(recipe: Recipe, net: onnx.GraphNet, cost: spec.Cost) -> LoadedNet:
    """A member that exists only as a graph, ready to run."""
    return LoadedNet(module=net, runner=backends.from_graph(net), recipe=recipe, cost=cost,
                     activate=_activation(recipe.member.activation, net))


def load_stacker(stacker: spec.Stacker, state: dict[str, torch.Tensor],
                 classes: int) -> tuple[nn.Module, Callable[[np.ndarray], np.ndarray]]:
    """A second-level net on the CPU and its activation.

    Raises  ModelLoadFailed
    """
    module = models.build(stacker.family, dict(stacker.params), classes).eval()
    _fill(module, stacker.name, models.rename(stacker.family, dict(stacker.params), state))
    return module, _activation(stacker.activation, module)


def _activation(wanted: str | None, module: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """The chosen activation, or the usual one for what the net says it gives."""
    return ACTIVATIONS[
        wanted or ("none" if getattr(module, "output", "logits") == "probabilities" else "sigmoid")
    ]


def _fill(module: nn.Module, name: str, state: dict[str, torch.Tensor]) -> None:
    """Weights into the net; ModelLoadFailed when keys or shapes differ or a weight is not finite."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ModelLoadFailed(f"{name}: {error}; build the bundle again from the right checkpoint") from error
    broken = [
        k
        for k, v in module.state_dict().items()
        if v.is_floating_point() and not bool(torch.isfinite(v).all())
    ]
    if broken:
        raise ModelLoadFailed(
            f"{name}: weight {broken[0]} holds NaN or infinity; export the checkpoint again"
        )


def tiled(net: LoadedNet, frames: int = 1024) -> LoadedNet:
    """The same net reading a clip in tiles: for a forward that would not fit into memory at full length.

    Raises  MemoryError when the view has fixed cuts already, so nothing smaller is possible
    """
    recipe = net.recipe
    if recipe.view.fixed is not None:
        raise MemoryError(
            "the forward of this row does not fit into memory and its view cannot be cut smaller"
        )
    stages = dict(recipe.stages)
    stage = stages[recipe.timed]
    view = views.build({"kind": "tiles", "frames": frames, "step": frames}, stage.fe)
    stages[recipe.timed] = replace(stage, view=view)
    return replace(net, recipe=replace(recipe, stages=stages, view=view))


def _samples(recipe: Recipe, module: nn.Module) -> list[backends.Inputs]:
    """Seeded random inputs for the agreement check of a back end: three lengths where the net takes any, one
    and two passes.
    """
    least = recipe.smallest(int(getattr(module, "min_frames", 1)))
    fixed, most = recipe.view.fixed, getattr(module, "max_frames", None) or np.iinfo(np.int64).max
    generator = np.random.default_rng(0)
    out = list[backends.Inputs]()
    for passes, frames in ((1, least + 64), (1, 2 * least + 157), (2, 3 * least + 90)):
        frames = fixed or min(frames, most)
        inputs = {}
        for name, stage in recipe.stages.items():
            shape = (passes, stage.fe.channels, stage.fe.bins, frames if stage.fe.time else stage.fe.fixed)
            values = (
                generator.uniform(0, 255, shape)
                if np.dtype(stage.fe.dtype) == np.uint8
                else generator.normal(0, 1, shape)
            )
            inputs[name] = stage.finish(torch.from_numpy(values.astype(np.float32)))
        out.append(inputs)
    return out


def row_inputs(net: LoadedNet, store: Any, row: decode.Row) -> dict[str, torch.Tensor]:
    """Input tensors of one row, f32[P, C, M, T] each: padded to the net's smallest length, cut, finished.

    Raises  ClipError
    """
    inputs: dict[str, torch.Tensor] = {}
    passes = 1
    for name, stage in net.recipe.stages.items():
        stored = store.get(stage.fe, row)
        if stage.fe.time and stage.view.fixed is None:
            stored = pad_frames(
                stored, net.recipe.smallest(int(getattr(net.module, "min_frames", 1))), stage.fe.pad
            )
        cuts = stage.cut(stored, row.id)
        # a copy where it is the store's
        inputs[name] = stage.finish(torch.from_numpy(np.require(cuts, np.float32, ["C", "W"])))
        passes = max(passes, inputs[name].shape[0])
    return {k: v.expand(passes, *v.shape[1:]) if v.shape[0] != passes else v for k, v in inputs.items()}


def pad_frames(stored: np.ndarray, frames: int, pad: float | str) -> np.ndarray:
    """The array itself, or padded on the right to `frames` with the front end's pad value."""
    missing = frames - stored.shape[-1]
    if missing <= 0:
        return stored
    value = stored.min() if pad == "clip_min" else pad
    return np.pad(stored, ((0, 0), (0, 0), (0, missing)), constant_values=value)


def predict_alone(
    net: LoadedNet, store: Any, row: decode.Row, forwards: list[tuple[int, int]] | None = None
) -> np.ndarray:
    """f64[K] probabilities of one row, in forwards of at most PASSES_PER_BATCH passes: the CPU schedule,
    exact by construction.

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
            forwards.append((timed.shape[-1], timed.shape[0] * timed.shape[-1]))
    return merge(net, np.concatenate(outs))


def merge(net: LoadedNet, answers: np.ndarray) -> np.ndarray:
    """f64[K] of a row from the net's answers f32[P, K], UNFIT when one of them is not finite (an infinite
    logit is no vote).
    """
    return net.recipe.view.merge(answers, net.activate) if np.isfinite(answers).all() else UNFIT
