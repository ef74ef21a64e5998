"""The ways to run a net on a device: torch on a CPU, torch on CUDA, an exported graph.

Owns the choice among them: every fast way is checked against plain eager fp32 torch before it is believed,
and the report says which one ran. Which devices there are is `devices`, graphs are `graph_net`, the
net as it then runs is a `runner`. Does not group rows, cut views or turn logits into probabilities.
"""
import copy
import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
import torch.fx
from torch import nn

from .. import models
from . import ways
from .devices import Device, probe
from .graph_net import GraphNet
from .runner import AGREEMENT_FP32, AGREEMENT_HALF, Inputs, Run, Runner

__all__ = [
    "AGREEMENT_FP32",
    "AGREEMENT_HALF",
    "Device",
    "Frozen",
    "Inputs",
    "Positional",
    "Run",
    "Runner",
    "call_net",
    "fold_batch_norm",
    "forget_nets",
    "prepare",
    "probe",
    "run_graph",
]


def call_net(module: nn.Module, inputs: Inputs, frames: torch.Tensor | None) -> torch.Tensor:
    """Output of a net for named inputs: the tensor itself for one input called "x", else the dict."""
    x = inputs["x"] if set(inputs) == {"x"} else dict(inputs)
    out = module(x) if frames is None else module(x, frames)
    return out[0] if isinstance(out, tuple) else out


def _channels_last(inputs: Inputs) -> Inputs:
    return {
        k: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in inputs.items()
    }


class Positional(nn.Module):
    """A net called with tensors in the order of `names`: what tracers and exporters take."""

    def __init__(self, module: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return call_net(self.module, dict(zip(self.names, values, strict=True)), None)


class Frozen(nn.Module):
    """A net recorded once and run without Python inside; called like the net itself, without `frames`.

    The recording is run as it is: torch's run-time optimiser would specialise it to the first shapes it
    meets, and results could then depend on the order of the clips.
    """

    def __init__(self, module: nn.Module, inputs: Inputs) -> None:
        """Record `module` on `inputs`. Raises ValueError where that would fix a shape, or RuntimeError."""
        super().__init__()
        self.names = tuple(inputs)
        net = Positional(module, self.names).eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", torch.jit.TracerWarning)  # a shape or value that became a constant
            try:
                traced = torch.jit.trace(net, tuple(inputs.values()), check_trace=False)
            except torch.jit.TracerWarning as error:
                raise ValueError(f"recording would fix a shape: {error}") from error
            self._graph = torch.jit.freeze(traced)

    def forward(self, x: torch.Tensor | Inputs) -> torch.Tensor:
        values = x if isinstance(x, Mapping) else {self.names[0]: x}
        with torch.jit.optimized_execution(False):
            return self._graph(*(values[name] for name in self.names))


class _WithoutFrames(torch.fx.Tracer):
    """Records a net as it runs without padding; recurrent layers stay whole."""

    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return isinstance(m, nn.RNNBase) or super().is_leaf_module(m, name)


def _trace(module: nn.Module) -> torch.fx.Graph:
    """The net's operations. Raises RuntimeError, TypeError or ValueError when it cannot be traced."""
    return _WithoutFrames().trace(copy.deepcopy(module).eval(), concrete_args={"frames": None})


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """A copy of an eval-mode net with batch norms folded into the convolutions before them.

    Raises  RuntimeError, TypeError or ValueError when the net cannot be traced
    """
    from torch.fx.experimental.optimization import fuse

    return fuse(torch.fx.GraphModule(module, _trace(module)), no_trace=True)


def fold_in_place(module: nn.Module) -> nn.Module:
    """As `fold_batch_norm`, in a copy that is still the net itself and takes `frames`.

    Raises  RuntimeError, TypeError or ValueError when the net cannot be traced
    """
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    net = copy.deepcopy(module).eval()
    layers = dict(net.named_modules())
    calls = [node for node in _trace(module).nodes if node.op == "call_module"]
    uses = Counter(str(node.target) for node in calls)
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution, norm = layers[str(before.target)], layers[str(node.target)]
        once = uses[str(node.target)] == uses[str(before.target)] == 1
        fits = isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) and norm.running_var is not None
        if once and fits and isinstance(convolution, (nn.Conv1d, nn.Conv2d)):
            net.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            net.set_submodule(str(node.target), nn.Identity())
    return net


def _as_channels_last(module: nn.Module) -> nn.Module:
    """A copy of the net with its weights in that layout."""
    return copy.deepcopy(module).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _agrees(fast: nn.Module, plain: nn.Module, inputs: Inputs) -> bool:
    with torch.inference_mode():
        want = call_net(plain, inputs, None)
        got = call_net(fast, _channels_last(inputs), None)
    if want.shape != got.shape:
        return False
    return float((want - got).abs().max()) <= AGREEMENT_FP32 * max(1.0, float(want.abs().max()))


def _quicken(module: nn.Module, samples: list[Inputs], notes: list[str]) -> tuple[nn.Module, list[str]]:
    """The net folded, channels-last and frozen as far as that keeps its numbers, and what was done.

    Nothing is timed: the same net takes the same way in every run, so its bytes are the same. The net is
    recorded on the first sample alone; the others, of other lengths and another batch size, tell whether the
    recording is really dynamic.
    """
    changes: list[tuple[str, Callable[[nn.Module], nn.Module]]] = [
        ("folded", fold_batch_norm),
        ("channels-last", _as_channels_last),
        ("frozen", lambda net: Frozen(net, _channels_last(samples[0]))),
    ]
    net = module
    done: list[str] = []
    for name, change in changes:
        try:
            candidate = change(net)
            if not all(_agrees(candidate, module, sample) for sample in samples):
                raise ValueError("the result disagrees with the plain net")
        except Exception as error:  # any failure of an optimisation means only that the net runs without it
            notes.append(f"not {name}: {type(error).__name__}: {str(error)[:200]}")
        else:
            net = candidate
            done.append(name)
    return net, done


def _prepare_cpu(module: nn.Module, device: Device, samples: list[Inputs],
                 candidates: Iterable[Callable[[], GraphNet]]) -> Runner:
    notes: list[str] = []
    graph = _find_graph(candidates, module, samples, notes)
    if graph is not None:
        return run_graph(graph, notes)
    plain = partial(call_net, module)
    quick, done = _quicken(module, samples, notes)
    arrange = _channels_last if "channels-last" in done else dict

    def fast(inputs: Inputs, frames: torch.Tensor | None) -> torch.Tensor:
        return call_net(quick, arrange(inputs), None) if frames is None else plain(inputs, frames)

    path = "torch cpu, " + (", ".join(done) or "eager")
    return Runner(device=device, path=path, run=fast, exact=plain, notes=notes, recorded="frozen" in done)


def _prepare_cuda(
    module: nn.Module, device: Device, samples: list[Inputs], precision: ways.Precision
) -> Runner:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    notes: list[str] = []
    full = module.to(device.name)
    try:
        folded = fold_in_place(full)
        if not all(_agrees_padded(folded, full, sample, device) for sample in samples):
            raise ValueError("the result disagrees with the plain net")
    except Exception as error:  # any failure of an optimisation means only that the net runs without it
        notes.append(f"not folded: {type(error).__name__}: {str(error)[:200]}")
        folded = full
    path = "torch cuda" + ("" if folded is full else ", folded") + f", {ways.EXACT}"
    plain = partial(call_net, folded)
    tried = find_ways(folded, device) if precision.way != ways.EXACT else ()
    return Runner(
        device=device, path=path, run=plain, exact=plain, ways=tried, precision=precision, notes=notes
    )


def find_ways(net: nn.Module, device: Device) -> tuple[ways.Way, ...]:
    """The ways to run a net on its device beside fp32 as it is; each is made ready when it is tried."""
    kind = torch.device(device.name).type

    def half(module: nn.Module, arrange: Callable[[Inputs], Inputs]) -> Run:
        def run(inputs: Inputs, frames: torch.Tensor | None) -> torch.Tensor:
            with torch.autocast(kind, dtype=torch.float16):
                return call_net(module, arrange(inputs), frames)

        return run

    def channels_last() -> Run:
        module = _as_channels_last(net)
        return lambda inputs, frames: call_net(module, _channels_last(inputs), frames)

    builds: dict[str, Callable[[], Run]] = {
        f"{ways.HALF}, {ways.LAST}": lambda: half(_halve_weights(_as_channels_last(net)), _channels_last),
        ways.HALF: lambda: half(net, dict),
        f"{ways.EXACT}, {ways.LAST}": channels_last,
    }
    return tuple(ways.Way(name=name, build=build) for name, build in builds.items())


def _halve_weights(module: nn.Module) -> nn.Module:
    """The net with the weights in half precision that autocast would otherwise convert at each batch."""
    for part in module.modules():
        if type(part) in (nn.Conv1d, nn.Conv2d, nn.Linear):
            part.half()
    return module


@torch.inference_mode()
def _agrees_padded(fast: nn.Module, plain: nn.Module, inputs: Inputs, device: Device) -> bool:
    """True where both nets give the same numbers, with and without a padded tail."""
    there = {k: v.to(device.name) for k, v in inputs.items()}
    first = next(iter(there.values()))
    lengths: list[torch.Tensor | None] = [None]
    if set(there) == {"x"} and getattr(plain, "maskable", False) and len(first) > 1:
        least = int(getattr(plain, "min_frames", 1))
        shorter = max(least, first.shape[-1] // 2)
        lengths.append(torch.tensor([first.shape[-1], *[shorter] * (len(first) - 1)]))
    for frames in lengths:
        want = call_net(plain, there, frames)
        apart = (call_net(fast, there, frames) - want).abs().max()
        if not float(apart) <= AGREEMENT_FP32 * max(1.0, float(want.abs().max())):
            return False
    return True


def prepare(module: nn.Module, device: Device, samples: list[Inputs],
            precision: ways.Precision | None = None,
            candidates: Iterable[Callable[[], GraphNet]] = ()) -> Runner:
    """The fastest way to run `module` on `device` that agrees with plain torch.

    samples     inputs of several lengths and batch sizes for the agreement check; on a CPU a net is recorded
                on the first
    precision   on CUDA: what the member's nets have agreed on, None = nothing yet
    candidates  the same net as exported graphs (CPU): the first that agrees runs instead of torch
    """
    module = module.eval().requires_grad_(False)
    if device.cuda:
        runner = _prepare_cuda(module, device, samples, precision or ways.Precision())
    else:
        runner = _prepare_cpu(module, device, samples, candidates)
    runner.probabilities = getattr(module, "output", "logits") == "probabilities"
    runner.own_lengths = type(module).__module__.startswith(models.__name__)
    return runner


def run_graph(net: GraphNet, notes: Iterable[str] = ()) -> Runner:
    """The way to run a graph: on the CPU, at exact lengths."""
    def run(inputs: Inputs, frames: torch.Tensor | None) -> torch.Tensor:
        return call_net(net, inputs, None)

    return Runner(
        device=probe("cpu"), path=net.path, run=run, exact=run, notes=list(notes), recorded=net.callers > 1
    )


def _find_graph(candidates: Iterable[Callable[[], GraphNet]], module: nn.Module, samples: list[Inputs],
                notes: list[str]) -> GraphNet | None:
    """The first candidate that gives the numbers of `module` on `samples`; why not the others, is noted."""
    for candidate in candidates:
        try:
            net = candidate()
            if all(_agrees(net, module, sample) for sample in samples):
                return net
            notes.append(f"{net.path}: differs from torch by more than {AGREEMENT_FP32}; not used")
        except Exception as error:  # runtimes raise types of their own; torch is there in any case
            notes.append(f"graph not used: {type(error).__name__}: {str(error)[:300]}")
    return None


def forget_nets() -> None:
    """Give back nets that nobody uses.

    Traced ones refer to themselves, and torch keeps recorded weights until it is told otherwise.
    """
    torch._C._jit_clear_class_registry()
    gc.collect()
