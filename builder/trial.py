"""Every part of an ensemble tried once before anything is written: front ends, views, finishes, nets,
stackers.

Owns the trial: the kernel's own code takes three seconds of synthetic sound from waveform to probabilities
through each member. Does not judge scores; a member that passes here can still be badly trained.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from kernel import models
from kernel.errors import SpecError
from kernel.inference import backends
from kernel.inference.net import CutFirst, build_recipe, row_inputs
from kernel.spec import Cost, Ensemble, Member, Stacker

TRIAL_SECONDS = 3.0
ONNX = "onnx"


@dataclass(frozen=True, kw_only=True)
class Locals:
    """An ensemble as it lies on this machine and as it ships.

    near     families of own files as absolute paths, to build here
    shipped  the same with bare file names, for the manifest; custom: file name -> path of each own file
    """

    near: Ensemble
    shipped: Ensemble
    custom: dict[str, Path]


def resolve_custom(ensemble: Ensemble, folder: Path) -> Locals:
    """Own model files, named relative to the TOML's folder, found and given their shipped names.

    Raises  SpecError when a file is missing, or two files share a name
    """
    custom: dict[str, Path] = {}

    def locate(part: Any, ship: bool) -> Any:
        file, colon, cls = part.family.rpartition(":")
        if not colon or not file.endswith(".py"):
            return part
        path = (folder / file).resolve()
        if not path.is_file():
            raise SpecError(
                f"{part.name}.family: no file {file!r} in {folder}; give its path relative to the TOML"
            )
        if custom.setdefault(path.name, path) != path:
            raise SpecError(f"{part.name}.family: two different files are called {path.name}; rename one")
        return replace(part, family=f"{path.name if ship else path}:{cls}")

    def resolve(ship: bool) -> Ensemble:
        return replace(ensemble, members=tuple(locate(m, ship) for m in ensemble.members),
                       stackers=tuple(locate(s, ship) for s in ensemble.stackers))

    return Locals(near=resolve(False), shipped=resolve(True), custom=custom)


class OneClip:
    """A store that holds one synthetic clip: a chirp in noise, silent at both ends, the same on every
    machine.
    """

    row = SimpleNamespace(id="trial")
    seconds = TRIAL_SECONDS

    def wave(self, rate: int) -> np.ndarray:
        """f32[seconds x rate], peak 0.5."""
        t = np.arange(int(self.seconds * rate)) / rate
        x = np.sin(2 * np.pi * (200 * t + 300 * t * t)) + 0.1 * np.random.RandomState(0).standard_normal(
            len(t)
        )
        x *= np.clip(np.minimum(t - 0.1, self.seconds - 0.2 - t) / 0.05, 0, 1)
        return (0.5 * x / np.abs(x).max()).astype(np.float32)

    def get(self, fe: Any, row: Any) -> np.ndarray:
        wave = self.wave(fe.rate)
        return fe.of_row(wave, row.id) if isinstance(fe, CutFirst) else fe(wave)


def build_module(part: Member | Stacker, classes: int) -> nn.Module:
    """The untrained net of a member or stacker, eval mode.

    Raises  SpecError
    """
    return models.build(part.family, dict(part.params), classes).eval()


def try_member(ensemble: Ensemble, member: Member, state: dict[str, torch.Tensor], module: nn.Module) -> Cost:
    """Cost of a member whose stages fit together and give one finite value per class.

    Raises  SpecError or ModelLoadFailed naming the member
    """
    classes = len(ensemble.classes)
    recipe = build_recipe(ensemble, member)
    net = SimpleNamespace(recipe=recipe, module=module)
    try:
        inputs = row_inputs(net, OneClip(), OneClip.row)  # type: ignore[arg-type]
        module.load_state_dict(models.rename(member.family, dict(member.params), state))
        with torch.no_grad():
            out = backends.call_net(module, {k: v[:1].contiguous() for k, v in inputs.items()}, None)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        raise SpecError(
            f"member {member.name}: fails on {TRIAL_SECONDS:g} s of sound ({type(error).__name__}: {error}); check "
            "that channels and bins of its front end, view and finish are those of the family"
        ) from error
    if tuple(out.shape) != (1, classes) or not bool(torch.isfinite(out).all()):
        raise SpecError(
            f"member {member.name}: gave {list(out.shape)}, expected [1, {classes}] finite values"
        )
    timed = inputs[recipe.timed]
    cost = measure(module, channels=int(timed.shape[1]), bins=int(timed.shape[-2]))
    return cost if recipe.view.fixed is None else spread(cost, int(timed.shape[-1]))


def spread(cost: Cost, frames: int) -> Cost:
    """Cost of a net whose cuts all have `frames` frames: the whole of it per frame, since every further cut
    costs the same.
    """
    return replace(cost, gmac_a=0.0, gmac_b=cost.gmac_a / frames + cost.gmac_b,
                   bytes_a=0.0, bytes_b=cost.bytes_a / frames + cost.bytes_b)


def try_stacker(stacker: Stacker, classes: int, state: dict[str, torch.Tensor], module: nn.Module) -> Cost:
    """Cost of a stacker that takes its inputs' probabilities and gives one finite value per class.

    Raises  SpecError naming the stacker
    """
    inputs = len(stacker.inputs)
    shape = (1, inputs * classes) if stacker.features == "concat" else \
        (1, classes, inputs + bool(stacker.average_weights))
    try:
        module.load_state_dict(models.rename(stacker.family, dict(stacker.params), state))
        with torch.no_grad():
            out = module(torch.full(shape, 0.1))
    except (RuntimeError, ValueError, TypeError) as error:
        raise SpecError(
            f"stacker {stacker.name}: fails on features {list(shape)} ({error}); check its params"
        ) from error
    if tuple(out.shape) != (1, classes) or not bool(torch.isfinite(out).all()):
        raise SpecError(
            f"stacker {stacker.name}: gave {list(out.shape)}, expected [1, {classes}] finite values"
        )
    return Cost(parameters=sum(p.numel() for p in module.parameters()))


def measure(module: nn.Module, *, channels: int, bins: int) -> Cost:
    """Multiply-adds, bytes and parameters; parameters alone for a user's net that cannot be measured without
    memory.
    """
    try:
        return models.measure(module, bins, channels)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return Cost(parameters=sum(p.numel() for p in module.parameters()))


def check_back_end(ensemble: Ensemble, back_end: str | None) -> None:
    """Nothing, when the bundle will hold what its members need.

    Raises  SpecError for an ONNX member without the ONNX Runtime wheels
    """
    for member in ensemble.members:
        if member.family == ONNX and back_end != "onnxruntime":
            raise SpecError(
                f'member {member.name}: family "onnx" needs ONNX Runtime, which the Kaggle image lacks; '
                "build with --wheels onnxruntime"
            )


def try_onnx(ensemble: Ensemble, member: Member, graph: bytes) -> Cost:
    """Cost (unknown) of an ONNX member that runs here and gives one finite value per class.

    Raises  SpecError naming the member
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise SpecError(f"member {member.name}: install onnxruntime here, so that the graph can be tried: "
                        "pip install onnxruntime") from error
    recipe = build_recipe(ensemble, member)
    inputs = row_inputs(SimpleNamespace(recipe=recipe, module=None), OneClip(), OneClip.row)  # type: ignore[arg-type]
    try:
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        feed = (
            dict(zip(names, (v[:1].numpy() for v in inputs.values()), strict=True))
            if len(names) == len(inputs) == 1
            else {k: v[:1].numpy() for k, v in inputs.items()}
        )
        out = session.run(None, feed)[0]
    except Exception as error:  # onnxruntime raises its own types, none of them public
        raise SpecError(
            f"member {member.name}: the graph fails on {TRIAL_SECONDS:g} s of sound ({error}); export it with "
            "dynamic batch and time axes and one output"
        ) from error
    if tuple(out.shape) != (1, len(ensemble.classes)) or not np.isfinite(out).all():
        raise SpecError(
            f"member {member.name}: gave {list(out.shape)}, expected [1, {len(ensemble.classes)}] finite values"
        )
    return Cost()
