"""The ways to run a net on a device: torch on a CPU, torch on CUDA, an exported graph.

Owns the choice among them: every fast way is checked against plain eager fp32 torch before it is believed,
and the report says which one ran. Which devices there are is `devices`, the graph runtimes are `onnx`. Does
not group rows, cut views or turn logits into probabilities.
"""
import copy
import gc
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import nn

from .devices import Device, probe
from .onnx import GraphNet

Inputs = Mapping[str, torch.Tensor]
Run = Callable[[Inputs, torch.Tensor | None], torch.Tensor]
AGREEMENT_FP32 = 1e-5  # between back ends, relative to the largest output or 1
AGREEMENT_HALF = 2e-2  # half precision against fp32, relative to the largest output or 1


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Inputs on their device; `ready` marks the end of their copy, None where nothing was copied."""

    inputs: Inputs
    frames: torch.Tensor | None
    ready: torch.cuda.Event | None = None


@dataclass
class Runner:
    """A net ready to run: inputs -> logits or probabilities, f32[B, K] on the host.

    path      what ran, for the report ("torch cpu, folded, channels-last")
    run       the fast way; exact: the way that it must agree with
    half      True while half precision is in use (CUDA only)
    reruns    rows computed again in fp32 after a non-finite half-precision result
    copies    the CUDA stream that inputs travel on
    recorded  True when no Python of the net runs in a forward: several threads may call it at once
    """

    device: Device
    path: str
    run: Run
    exact: Run
    half: bool = False
    reruns: int = 0
    agreement: float | None = None
    notes: list[str] = field(default_factory=list)
    copies: torch.cuda.Stream | None = None
    recorded: bool = False

    def zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        """f32 zeros on the host, pinned where a GPU will read them, so that `send` copies them once."""
        return torch.zeros(shape, pin_memory=self.device.cuda)

    def send(self, inputs: Inputs, frames: torch.Tensor | None = None) -> Sent:
        """Inputs on the device; may be called in another thread than the runner.

        To a GPU they travel from pinned memory on a stream of their own, while another batch is computed.
        """
        if not self.device.cuda:
            return Sent(inputs=inputs, frames=frames)
        if self.copies is None:
            self.copies = torch.cuda.Stream(self.device.name)
        with torch.cuda.stream(self.copies):
            moved = {k: v.pin_memory().to(self.device.name, non_blocking=True) for k, v in inputs.items()}
            lengths = None if frames is None else frames.to(self.device.name)
            ready = torch.cuda.Event()
            ready.record(self.copies)
        return Sent(inputs=moved, frames=lengths, ready=ready)

    def __call__(self, inputs: Inputs | Sent, frames: torch.Tensor | None = None) -> np.ndarray:
        """f32[B, K]; frames i64[B] own lengths where the batch is padded (`Sent` has its own)."""
        sent = inputs if isinstance(inputs, Sent) else self.send(inputs, frames)
        if sent.ready is not None:
            stream = torch.cuda.current_stream(self.device.name)
            stream.wait_event(sent.ready)
            for value in (*sent.inputs.values(), *([] if sent.frames is None else [sent.frames])):
                value.record_stream(stream)  # its memory is not reused before this stream is done with it
        with torch.inference_mode():
            if self.half and self.agreement is None:
                self._check_half(sent.inputs, sent.frames)
            out = self.run(sent.inputs, sent.frames).float()
            if self.half:
                out = self._rerun_overflows(out, sent.inputs, sent.frames)
            return out.cpu().numpy()

    def _check_half(self, inputs: Inputs, frames: torch.Tensor | None) -> None:
        """Compare half precision with fp32 on the first batch; fall back for good when they disagree."""
        fast = self.run(inputs, frames).float()
        slow = self.exact(inputs, frames)
        self.agreement = float((fast - slow).abs().max() / slow.abs().max().clamp(min=1.0))
        if not self.agreement <= AGREEMENT_HALF:
            self.half = False
            self.run = self.exact
            self.path = "torch cuda, fp32"
            self.notes.append(f"half precision differed from fp32 by {self.agreement:.2g}, "
                              f"above {AGREEMENT_HALF}; fp32 is used")

    def _rerun_overflows(
        self, out: torch.Tensor, inputs: Inputs, frames: torch.Tensor | None
    ) -> torch.Tensor:
        """`out` with the rows that half precision could not hold computed in fp32."""
        bad = torch.nonzero(~torch.isfinite(out).all(dim=1))[:, 0]
        if len(bad):
            self.reruns += len(bad)
            part = {k: v[bad] for k, v in inputs.items()}
            out = out.index_copy(0, bad, self.exact(part, None if frames is None else frames[bad]).float())
        return out


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


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """A copy of an eval-mode net with batch norms folded into the convolutions before them.

    Raises  RuntimeError, TypeError or ValueError when the net cannot be traced
    """
    import torch.fx
    from torch.fx.experimental.optimization import fuse

    class WithoutFrames(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return isinstance(m, nn.RNNBase) or super().is_leaf_module(m, name)

    graph = WithoutFrames().trace(copy.deepcopy(module).eval(), concrete_args={"frames": None})
    return fuse(torch.fx.GraphModule(module, graph), no_trace=True)


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


def _prepare_cuda(module: nn.Module, device: Device, half: bool) -> Runner:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    full = module.to(device.name)
    plain = partial(call_net, full)
    if not half:
        return Runner(device=device, path="torch cuda, fp32", run=plain, exact=plain)
    quick = _as_channels_last(full)

    def fast(inputs: Inputs, frames: torch.Tensor | None) -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.float16):
            return call_net(quick, _channels_last(inputs), frames)

    return Runner(device=device, path="torch cuda, fp16, channels-last", run=fast, exact=plain, half=True)


def prepare(module: nn.Module, device: Device, samples: list[Inputs], half: bool = True,
            candidates: Iterable[Callable[[], GraphNet]] = ()) -> Runner:
    """The fastest way to run `module` on `device` that agrees with plain torch.

    samples     inputs of several lengths and batch sizes for the agreement check (CPU); a net is recorded on
                the first
    half        allow half precision on CUDA, under its own check on the first batch
    candidates  the same net as exported graphs (CPU): the first that agrees runs instead of torch
    """
    module = module.eval().requires_grad_(False)
    if device.cuda:
        return _prepare_cuda(module, device, half)
    return _prepare_cpu(module, device, samples, candidates)


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
