"""The dry run: every member and stacker of an ensemble is run once before anything is written.

Owns the trial of front ends, views, finishes and nets: the kernel's own code takes three seconds of synthetic
sound from waveform to probabilities. Does not judge scores: a member that passes can still be badly trained.
"""
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from kernel import models
from kernel.bundle import parse_state
from kernel.errors import SpecError, text_of
from kernel.inference import backends, graph_net
from kernel.inference.graph_file import describe, list_ports
from kernel.inference.member import ACTIVATIONS, LoadedNet, row_inputs
from kernel.inference.recipe import Recipe, build_recipe, fill_constants
from kernel.scores.class_weights import unknown_classes
from kernel.sound import own
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from kernel.sound.scopes import OfRecording
from kernel.sound.source import Source
from kernel.spec import Cost, Ensemble, Member, Stacker

from .graph_trial import GraphFailed, Memory, run_graph

SECONDS = 3.0
ROW = Row(id="trial", clip=Clip(id="trial"))
ONNX = "onnx"
SPARE = 1.25  # over the memory that one pass of a graph took: runtimes differ a little


class SyntheticClip:
    """Stands for the store: one clip of a chirp in noise, silent at both ends, the same on every machine."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def get(self, fe: Source, row: Row) -> np.ndarray:
        """The front end's array of the clip, whose peak is 0.5."""
        t = np.arange(int(self.seconds * fe.rate)) / fe.rate
        noise = np.random.RandomState(0).standard_normal(len(t))
        x = np.sin(2 * np.pi * (200 * t + 300 * t * t)) + 0.1 * noise
        x *= np.clip(np.minimum(t - 0.1, self.seconds - 0.2 - t) / 0.05, 0, 1)
        wave = (0.5 * x / np.abs(x).max()).astype(np.float32)
        array = fe.of_row(wave, row.id)
        return fe.read(array, row) if isinstance(fe, OfRecording) else array


def make_inputs(recipe: Recipe, module: nn.Module, seconds: float = SECONDS) -> dict[str, torch.Tensor]:
    """The net's inputs for the first pass of the synthetic clip, f32[1, C, M, T] each."""
    run = partial(backends.call_net, module)
    runner = backends.Runner(device=backends.Device(name="cpu", about=""), path="dry run", run=run, exact=run)
    net = LoadedNet(module=module, runner=runner, recipe=recipe, activate=ACTIVATIONS["none"], cost=Cost())
    made = row_inputs(net, SyntheticClip(seconds), ROW)
    return {name: value[:1].contiguous() for name, value in made.items()}


def _check_answer(where: str, out: object, classes: int, framed: bool = False) -> None:
    """Raises SpecError when a net does not give one finite real value per class; `framed`: per frame."""
    shape = f"[1, frames, {classes}], as its key `frames` says," if framed else f"[1, {classes}]"
    wanted = f"one tensor or array {shape} of finite numbers"
    if isinstance(out, torch.Tensor):
        real = out.is_floating_point()
        out = out.detach().float().numpy() if real else out
    else:
        real = isinstance(out, np.ndarray) and out.dtype.kind == "f"
    if not (real and isinstance(out, np.ndarray)):
        what = str(getattr(out, "dtype", None) or f"a {type(out).__name__}")
        raise SpecError(f"{where}: its forward gives {what}; let it return {wanted}")
    fits = out.shape == ((1, *out.shape[1:2], classes) if framed else (1, classes))
    if not fits or out.ndim != 2 + framed or not np.isfinite(out).all():
        found = "values that are not finite" if fits and out.ndim == 2 + framed else str(list(out.shape))
        raise SpecError(f"{where}: gave {found}, expected {wanted}")


def run_once(recipe: Recipe, module: nn.Module, classes: int) -> dict[str, torch.Tensor]:
    """The inputs of a member that gives finite values for the synthetic clip: per class, or frame and class.

    Raises  SpecError naming the member
    """
    name = recipe.member.name
    try:
        inputs = make_inputs(recipe, module)
        with torch.no_grad():
            out = backends.call_net(module, inputs, None)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # A user's net may raise anything.
        raise SpecError(
            f"member {name}: fails on {SECONDS:g} s of sound ({type(error).__name__}: {text_of(error)}); "
            "check that channels and bins of its front end, view and finish are those of the family"
        ) from error
    _check_answer(f"member {name}", out, classes, recipe.member.frames is not None)
    return inputs


def try_member(ensemble: Ensemble, member: Member, blob: bytes, module: nn.Module) -> Cost:
    """Cost of a member whose stages fit together and give one finite value per class.

    Raises  SpecError or ModelLoadFailed naming the member
    """
    recipe = build_recipe(ensemble, member)
    state = parse_state(blob, member.name)
    try:
        recipe, state = fill_constants(recipe, state)
        module.load_state_dict(models.rename(member.family, dict(member.params), state))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {text_of(error)}"
        raise SpecError(f"member {member.name}: {reason}; correct its net") from error
    timed = run_once(recipe, module, member.outputs(len(ensemble.classes)))[recipe.timed]
    cost = measure(module, channels=int(timed.shape[1]), bins=int(timed.shape[-2]))
    return cost if recipe.view.fixed is None else spread(cost, int(timed.shape[-1]))


def spread(cost: Cost, frames: int) -> Cost:
    """Cost of a net whose cuts all have `frames` frames: all of it per frame, as every cut costs the same."""
    return replace(cost, gmac_a=0.0, gmac_b=cost.gmac_a / frames + cost.gmac_b,
                   bytes_a=0.0, bytes_b=cost.bytes_a / frames + cost.bytes_b)


def try_stacker(stacker: Stacker, classes: int, blob: bytes, module: nn.Module) -> Cost:
    """Cost of a stacker that takes its inputs' probabilities and gives one finite value per class.

    Raises  SpecError naming the stacker
    """
    inputs = len(stacker.inputs)
    shape: tuple[int, ...] = (1, inputs * classes)
    if stacker.features != "concat":
        shape = (1, classes, inputs + (1 if stacker.average_weights else 0))
    try:
        state = parse_state(blob, stacker.name)
        module.load_state_dict(models.rename(stacker.family, dict(stacker.params), state))
        with torch.no_grad():
            out = module(torch.full(shape, 0.1))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {text_of(error)}"
        raise SpecError(
            f"stacker {stacker.name}: fails on features {list(shape)} ({reason}); "
            "check its params"
        ) from error
    _check_answer(f"stacker {stacker.name}", out, classes)
    return Cost(parameters=sum(p.numel() for p in module.parameters()))


def measure(module: nn.Module, *, channels: int, bins: int) -> Cost:
    """Multiply-adds, bytes and parameters; parameters alone for a user's net that cannot be measured."""
    try:
        return models.measure(module, bins, channels)
    except Exception:  # The net ran on real sound before; on other sizes a user's own may refuse.
        return Cost(parameters=sum(p.numel() for p in module.parameters()))


def check_back_end(ensemble: Ensemble, back_end: str | None) -> None:
    """Nothing, when the bundle will hold what its members need.

    Raises  SpecError for an ONNX member without the wheels of a runtime
    """
    for member in ensemble.members:
        if member.family == ONNX and back_end is None:
            raise SpecError(
                f'member {member.name}: family "onnx" needs ONNX Runtime or OpenVINO, which the Kaggle image '
                "lacks; build with --wheels onnxruntime"
            )


def try_onnx(ensemble: Ensemble, member: Member, graph: bytes) -> Cost:
    """Memory of an ONNX member that runs here and gives finite values, one per class; its work is unknown.

    Raises  SpecError or ModelLoadFailed naming the member
    """
    try:
        import onnxruntime  # noqa: F401  It runs in a process of its own.
    except ImportError as error:
        raise SpecError(f"member {member.name}: install onnxruntime here, so that the graph can be tried: "
                        "pip install onnxruntime") from error
    use = graph_net.use_of(member)
    facts = describe(graph, use.where)
    memory = Memory()
    net = graph_net.GraphNet(facts, use, partial(run_graph, graph, memory=memory), "trial")
    recipe = build_recipe(ensemble, member)
    inputs = make_inputs(recipe, net)
    try:
        out = net(inputs).numpy()
    except GraphFailed as error:
        raise SpecError(
            f"{use.where}: the graph fails on {SECONDS:g} s of sound ({error}); export it with dynamic batch "
            f"and time axes, or give the view its length. Its inputs: {list_ports(facts.inputs)}"
        ) from error
    classes = member.outputs(len(ensemble.classes))
    framed = member.frames is not None
    if out.ndim == 3 and not framed:
        out = out.mean(axis=1)  # Answers of several patches, which the view's merge makes one.
    try:
        _check_answer(use.where, out, classes, framed)
    except SpecError as error:
        outputs = list_ports(facts.outputs)
        raise SpecError(
            f"{error}. Its output {net.answer.name!r} was taken; `output` may name another: {outputs}"
        ) from error
    frames = recipe.view.fixed or int(inputs[recipe.timed].shape[-1])
    return Cost(bytes_b=SPARE * memory.run_bytes / frames, open_bytes=memory.open_bytes)


def tell_classes(ensemble: Ensemble, say: Callable[[str], None]) -> None:
    """Says how many classes each member with classes of its own knows, and which no member knows."""
    classes = len(ensemble.classes)
    for member in ensemble.members:
        if member.classes_map is not None:
            known = sum(member.classes_map.knows(classes))
            rest = "the others decide the rest" if member.missing_score is None else (
                f"{member.missing_score:.3g} stands in the rest")
            labels = f"{len(set(member.classes_map.takes))} of its {member.classes_map.outputs} labels"
            say(f"member {member.name}: {labels} speak for {known} of {classes} classes; {rest}")
    unknown = unknown_classes(ensemble)
    if unknown:
        shown = ", ".join(unknown[:10]) + (", ..." if len(unknown) > 10 else "")
        say(f"NO MEMBER KNOWS {len(unknown)} of {classes} classes: {shown}; the prior will stand there in "
            "every row, and the report will call the run degraded. Map labels onto them, or give a member "
            "`missing` as a number")


def warn_empty_filters(ensemble: Ensemble, say: Callable[[str], None]) -> None:
    """Names the front ends with mel filters that give nothing."""
    for name, keys in ensemble.frontends.items():
        fe = own.open_front_end(keys, name)
        if isinstance(fe, own.OwnFrontEnd):
            continue
        if fe.empty_filters:
            say(
                f"front end {name}: {fe.empty_filters} of {fe.mels} mel filters lie between two FFT bins and "
                "give nothing; right only if the checkpoints were trained so, else raise n_fft or fmin, or "
                "lower mels"
            )
