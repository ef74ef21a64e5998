"""Nets -> ONNX files for other back ends, each compared with torch before it may ship.

Owns the export and its check. A net that cannot be exported, or whose graph differs, is left out and named:
it runs in torch. Does not run graphs in the kernel (kernel.inference.backends) and exports nothing there.
"""
from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kernel import models
from kernel.bundle import parse_state
from kernel.inference import backends
from kernel.inference.net import Recipe, build_recipe, row_inputs
from kernel.spec import Ensemble, Member

from .trial import OneClip
from .weights import Source

OPSET = 17
# relative to max(1, |logit|), at two lengths; the kernel checks the same again
TOLERANCE = backends.AGREEMENT_FP32
SECONDS = (1.0, 2.3)


def export_net(module: nn.Module, inputs: dict[str, torch.Tensor], timed: str, fixed: bool) -> bytes:
    """ONNX bytes of a net: inputs by name, output "y", batch free, time free unless `fixed`.

    Raises  whatever the exporter raises
    """
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in [*inputs, "y"]}
    if not fixed:
        axes[timed][inputs[timed].dim() - 1] = "frames"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        # the tracer warns about every shape it fixes; the check below decides
        warnings.simplefilter("ignore")
        path = Path(folder) / "net.onnx"
        torch.onnx.export(
            backends.Positional(module, inputs).eval(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=["y"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
        return path.read_bytes()


def difference(graph: bytes, module: nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    """Largest difference between the graph under ONNX Runtime and torch, relative to max(1, |logit|)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    got = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    with torch.no_grad():
        want = backends.call_net(module, inputs, None).numpy()
    return float(np.abs(got - want).max() / max(1.0, np.abs(want).max()))


def _inputs(recipe: Recipe, module: nn.Module, seconds: float) -> dict[str, torch.Tensor]:
    clip = OneClip()
    clip.seconds = seconds
    net: Any = type("Net", (), {"recipe": recipe, "module": module})()
    return {k: v[:1].contiguous() for k, v in row_inputs(net, clip, clip.row).items()}  # type: ignore[arg-type]


def export(folder: Path, ensemble: Ensemble, modules: dict[str, Any], sources: Sequence[Source],
           say: Callable[[str], None] = print) -> dict[str, dict[str, str]]:
    """Net id -> {"onnx": file} of every graph written to `folder`; nets left out are named through `say`."""
    graphs: dict[str, dict[str, str]] = {}
    recipes = {m.name: build_recipe(ensemble, m) for m in ensemble.members if modules[m.name] is not None}
    for source in sources:
        part: Member | None = next((m for m in ensemble.members if m.name == source.member), None)
        if part is None or source.member not in recipes:
            continue
        net_id, module, recipe = (
            f"{source.member}.{source.fold}",
            modules[source.member],
            recipes[source.member],
        )
        state = models.rename(part.family, dict(part.params), parse_state(source.read(), net_id))
        module.load_state_dict(state)
        samples = [_inputs(recipe, module, seconds) for seconds in SECONDS]
        fixed = recipe.view.fixed is not None or getattr(module, "fixed_frames", None) is not None
        try:
            graph = export_net(module, samples[0], recipe.timed, fixed)
            worst = max(difference(graph, module, inputs) for inputs in samples)
        except Exception as error:
            # the exporter and the runtime raise dozens of types; each means the same: no graph
            say(
                f"{net_id}: not exported, it will run in torch ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
            )
            continue
        if not worst <= TOLERANCE:
            say(
                f"{net_id}: graph differs from torch by {worst:.2g}, above {TOLERANCE}; left out, it will run in torch"
            )
            continue
        (folder / f"{net_id}.onnx").write_bytes(graph)
        graphs[net_id] = {"onnx": f"{net_id}.onnx"}
    return graphs
