"""Nets -> ONNX files for other back ends, each compared with torch before it may ship.

Owns the export and its check. A net that cannot be exported, or whose graph differs, is left out and named:
it runs in torch. Does not run graphs in the kernel: kernel.inference does.
"""
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kernel import models
from kernel.bundle import parse_state
from kernel.inference import backends
from kernel.inference.recipe import Recipe, build_recipe, fill_constants
from kernel.spec import Ensemble

from .dry_run import make_inputs
from .weights import Source

OPSET = 17
TOLERANCE = backends.AGREEMENT_FP32  # Relative to max(1, |logit|); the kernel checks the same again.
SECONDS = (1.0, 2.3)  # Two lengths, so that a graph with a fixed time axis is noticed.


def export_net(module: nn.Module, inputs: dict[str, torch.Tensor], timed: str, fixed: bool) -> bytes:
    """ONNX bytes of a net: inputs by name, output "y", batch free, time free unless `fixed`.

    Raises  whatever the exporter raises
    """
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in [*inputs, "y"]}
    if not fixed:
        axes[timed][inputs[timed].dim() - 1] = "frames"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        # The tracer warns about every shape it fixes; whether that matters is checked by `difference`.
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


def _export_checked(module: nn.Module, recipe: Recipe) -> bytes | str:
    """The graph of a filled net, or why there is none."""
    samples = [make_inputs(recipe, module, seconds) for seconds in SECONDS]
    fixed = recipe.view.fixed is not None or getattr(module, "fixed_frames", None) is not None
    try:
        graph = export_net(module, samples[0], recipe.timed, fixed)
        worst = max(difference(graph, module, inputs) for inputs in samples)
    except Exception as error:  # The exporter and the runtime raise dozens of types; each means: no graph.
        return f"not exported ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    # Written so that a NaN counts as a difference.
    return graph if worst <= TOLERANCE else f"graph differs from torch by {worst:.2g}, above {TOLERANCE}"


def export(folder: Path, ensemble: Ensemble, modules: Mapping[str, nn.Module],
           sources: Sequence[Source], say: Callable[[str], None] = print) -> dict[str, dict[str, str]]:
    """Net id -> {"onnx": file} of every graph written to `folder`; nets left out are named through `say`."""
    graphs: dict[str, dict[str, str]] = {}
    members = {member.name: member for member in ensemble.members}
    for source in sources:
        member = members.get(source.member)
        module = modules.get(source.member)
        if member is None or module is None:
            continue  # A stacker, or a member that is a graph already.
        if any(entry.frontend in ensemble.embeddings for entry in member.named_inputs().values()):
            continue  # A head: a few microseconds in torch.
        net_id = f"{source.member}.{source.fold}"
        recipe, own = fill_constants(build_recipe(ensemble, member), parse_state(source.read(), net_id))
        module.load_state_dict(models.rename(member.family, dict(member.params), own))
        made = _export_checked(module, recipe)
        if isinstance(made, str):
            say(f"{net_id}: {made}; it will run in torch")
            continue
        (folder / f"{net_id}.onnx").write_bytes(made)
        graphs[net_id] = {"onnx": f"{net_id}.onnx"}
    return graphs
