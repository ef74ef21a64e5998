"""Devices and the ways to run a net on them: the only module that knows their names.

Owns the device probe (a real operation, never a flag), the torch runners for CPU and CUDA, and the choice
among back ends. Every fast path is checked against plain eager fp32 torch before it is believed, and the
report says which one ran. Does not group rows, cut views or turn logits into probabilities.
"""
from __future__ import annotations

import copy
import gc
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import DeviceError
from .onnx import GraphNet

Inputs = Mapping[str, torch.Tensor]
AGREEMENT_FP32 = 1e-5  # between back ends (DESIGN promise 3)
# logits of half precision against fp32, relative to the largest: reliability.md 2.3, performance.md 2
AGREEMENT_HALF = 2e-2
# What torch's errors say where they have no type of their own.
NO_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
LOST = ("CUDA error", "CUDNN_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_EXECUTION_FAILED")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Device:
    """One usable device: `name` for torch ("cpu", "cuda:0"), `about` for people, memory in bytes (0 = the
    host's).
    """

    name: str
    about: str
    memory_bytes: int = 0

    @property
    def cuda(self) -> bool:
        return self.name.startswith("cuda")


def probe(name: str) -> Device:
    """The device after a convolution really ran on it.

    Raises  DeviceError when it is absent, broken, or the build has no kernels for it (P100 under a cu128
            build)
    """
    try:
        device = torch.device(name)
        x = torch.ones(1, 1, 8, 8, device=device)
        y = torch.nn.functional.conv2d(x, torch.ones(1, 1, 3, 3, device=device)).sum().item()
        if y != 324.0:
            raise DeviceError(f"{name}: a 3x3 convolution of ones gave {y}, not 324; the device is not used")
    except (RuntimeError, AssertionError) as error:
        # torch raises AssertionError when it was built without CUDA
        raise DeviceError(f"{name}: the probe operation failed ({error}); the device is not used") from error
    if device.type != "cuda":
        return Device(name="cpu", about=f"{torch.get_num_threads()} CPU threads")
    properties = torch.cuda.get_device_properties(device)
    return Device(name=name, about=properties.name, memory_bytes=properties.total_memory)


def find_devices(wanted: str) -> tuple[list[Device], list[str]]:
    """Usable devices and the notes on those that failed; the CPU when no GPU works.

    wanted  "auto", "cpu" or "cuda" (then a missing GPU is a note, and the CPU is used)
    """
    notes: list[str] = []
    if wanted != "cpu":
        devices = []
        for index in range(torch.cuda.device_count()):
            try:
                devices.append(probe(f"cuda:{index}"))
            except DeviceError as error:
                notes.append(str(error))
        if devices:
            return devices, notes
        if wanted == "cuda":
            notes.append("cuda: asked for, but no GPU passed the probe; running on the CPU")
    return [probe("cpu")], notes


@dataclass(frozen=True, kw_only=True)
class Staged:
    """Inputs on their device; `ready` marks the end of their copy, None where nothing was copied."""

    inputs: Inputs
    frames: torch.Tensor | None
    ready: Any = None


@dataclass
class Runner:
    """A net ready to run: inputs -> logits or probabilities, f32[B, K] on the host.

    path       what ran, for the report ("torch cpu, folded, channels-last")
    half       True while half precision is in use (CUDA only)
    reruns     rows computed again in fp32 after a non-finite half-precision result
    recorded   True when no Python of the net runs in a forward: several threads may call it at once
    """

    device: Device
    path: str
    run: Callable[[Inputs, torch.Tensor | None], torch.Tensor]
    exact: Callable[[Inputs, torch.Tensor | None], torch.Tensor]
    half: bool = False
    reruns: int = 0
    agreement: float | None = None
    notes: list[str] = field(default_factory=list)
    copies: Any = None  # the CUDA stream that inputs travel on
    recorded: bool = False

    def zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        """f32 zeros on the host, pinned where a GPU will read them, so that `stage` need not copy them once
        more.
        """
        return torch.zeros(shape, pin_memory=self.device.cuda)

    def stage(self, inputs: Inputs, frames: torch.Tensor | None = None) -> Staged:
        """Inputs on the device: to a GPU from pinned memory on a stream of their own, so that one batch
        travels while another is computed. May be called in another thread than the runner.
        """
        if not self.device.cuda:
            return Staged(inputs=inputs, frames=frames)
        if self.copies is None:
            self.copies = torch.cuda.Stream(self.device.name)
        with torch.cuda.stream(self.copies):
            moved = {k: v.pin_memory().to(self.device.name, non_blocking=True) for k, v in inputs.items()}
            lengths = None if frames is None else frames.to(self.device.name)
            ready = torch.cuda.Event()
            ready.record(self.copies)
        return Staged(inputs=moved, frames=lengths, ready=ready)

    def __call__(self, inputs: Inputs | Staged, frames: torch.Tensor | None = None) -> np.ndarray:
        """f32[B, K]; frames i64[B] own lengths when the batch is padded, else None (given to `stage` where
        that was called).
        """
        staged = inputs if isinstance(inputs, Staged) else self.stage(inputs, frames)
        if staged.ready is not None:
            stream = torch.cuda.current_stream(self.device.name)
            stream.wait_event(staged.ready)
            for value in (*staged.inputs.values(), *([] if staged.frames is None else [staged.frames])):
                value.record_stream(stream)  # its memory is not reused before this stream is done with it
        with torch.inference_mode():
            if self.half and self.agreement is None:
                self._check_half(staged.inputs, staged.frames)
            out = self.run(staged.inputs, staged.frames).float()
            if self.half:
                out = self._rerun_overflows(out, staged.inputs, staged.frames)
            return out.cpu().numpy()

    def _check_half(self, inputs: Inputs, frames: torch.Tensor | None) -> None:
        """Compare half precision with fp32 on the first batch; fall back for good when they disagree."""
        fast, slow = self.run(inputs, frames).float(), self.exact(inputs, frames)
        self.agreement = float((fast - slow).abs().max() / slow.abs().max().clamp(min=1.0))
        if not self.agreement <= AGREEMENT_HALF:
            self.half, self.run, self.path = False, self.exact, "torch cuda, fp32"
            self.notes.append(
                f"half precision differed from fp32 by {self.agreement:.2g}, above {AGREEMENT_HALF}; fp32 is used"
            )

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
    """A net called with positional tensors in the order of `names`, its first output alone: what tracers and
    exporters take.
    """

    def __init__(self, module: nn.Module, names: Iterable[str]):
        super().__init__()
        self.module, self.names = module, tuple(names)

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return call_net(self.module, dict(zip(self.names, values, strict=True)), None)


class Frozen(nn.Module):
    """A net recorded once and run without Python between its operations; called like the net itself, without
    `frames`.

    The recording is run as it is: torch's run-time optimiser would specialise it to the first shapes it
    meets, and results could then depend on the order of the clips.
    """

    def __init__(self, module: nn.Module, inputs: Inputs):
        """Record `module` on `inputs`. Raises ValueError where the recording would fix a shape, RuntimeError
        where it fails.
        """
        super().__init__()
        self.names = tuple(inputs)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", torch.jit.TracerWarning)  # a shape or value that became a constant
            try:
                traced = torch.jit.trace(
                    Positional(module, self.names).eval(), tuple(inputs.values()), check_trace=False
                )
            except torch.jit.TracerWarning as error:
                raise ValueError(f"recording would fix a shape: {error}") from error
            self._graph = torch.jit.freeze(traced)

    def forward(self, x: torch.Tensor | Inputs) -> torch.Tensor:
        values = x if isinstance(x, Mapping) else {self.names[0]: x}
        with torch.jit.optimized_execution(False):
            return self._graph(*(values[name] for name in self.names))


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """A copy of an eval-mode net with batch norms folded into the convolutions before them, where a trace
    allows it.

    Raises  RuntimeError, TypeError or ValueError when the net cannot be traced (the caller keeps the plain
            net)
    """
    import torch.fx
    from torch.fx.experimental.optimization import fuse

    class WithoutFrames(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return isinstance(m, (nn.RNNBase,)) or super().is_leaf_module(m, name)

    graph = WithoutFrames().trace(copy.deepcopy(module).eval(), concrete_args={"frames": None})
    return fuse(torch.fx.GraphModule(module, graph), no_trace=True)


def _agrees(fast: nn.Module, plain: nn.Module, inputs: Inputs) -> bool:
    with torch.inference_mode():
        a, b = call_net(plain, inputs, None), call_net(fast, _channels_last(inputs), None)
    return a.shape == b.shape and float((a - b).abs().max()) <= AGREEMENT_FP32 * max(
        1.0, float(a.abs().max())
    )


def _quicken(module: nn.Module, samples: list[Inputs], notes: list[str]) -> tuple[nn.Module, str]:
    """The net folded, channels-last and frozen as far as each step agrees with the plain net on every sample,
    and what was done.

    Nothing is timed: the same net takes the same way in every run, so its bytes are the same. The net is
    recorded on the first sample alone; the others, of other lengths and another batch size, tell whether the
    recording is really dynamic.
    """
    steps: list[tuple[str, Callable[[nn.Module], nn.Module]]] = [
        ("folded", fold_batch_norm),
        ("channels-last", lambda net: _own(net, module).to(memory_format=torch.channels_last)),  # type: ignore[call-overload]
        ("frozen", lambda net: Frozen(net, _channels_last(samples[0]))),
    ]
    net, done = module, list[str]()
    for name, step in steps:
        try:
            candidate = step(net)
            if not all(_agrees(candidate, module, sample) for sample in samples):
                raise ValueError("the result disagrees with the plain net")
        except Exception as error:  # any failure of an optimisation means only that the net runs without it
            notes.append(f"not {name}: {type(error).__name__}: {str(error)[:200]}")
            continue
        net, done = candidate, [*done, name]
    return net, ", ".join(done) or "eager"


def _own(net: nn.Module, original: nn.Module) -> nn.Module:
    """A net that may be changed in place: a copy where it is still the original."""
    return copy.deepcopy(net) if net is original else net


def _prepare_cpu(module: nn.Module, device: Device, samples: list[Inputs],
                 candidates: Iterable[Callable[[], GraphNet]]) -> Runner:
    def plain(inputs: Inputs, frames: torch.Tensor | None) -> torch.Tensor:
        return call_net(module, inputs, frames)

    notes: list[str] = []
    graph = _find_graph(candidates, module, samples, notes)
    if graph is not None:
        return from_graph(graph, notes)
    quick, done = _quicken(module, samples, notes)
    arrange = _channels_last if "channels-last" in done else dict

    def fast(inputs: Inputs, frames: torch.Tensor | None) -> torch.Tensor:
        return call_net(quick, arrange(inputs), None) if frames is None else plain(inputs, frames)

    return Runner(
        device=device,
        path=f"torch cpu, {done}",
        run=fast,
        exact=plain,
        notes=notes,
        recorded="frozen" in done,
    )


def _prepare_cuda(module: nn.Module, device: Device, half: bool) -> Runner:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    full = module.to(device.name)
    if not half:
        return Runner(device=device, path="torch cuda, fp32", run=lambda x, f: call_net(full, x, f),
                      exact=lambda x, f: call_net(full, x, f))
    fast_net = copy.deepcopy(full).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def fast(inputs: Inputs, frames: torch.Tensor | None) -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.float16):
            return call_net(fast_net, _channels_last(inputs), frames)

    return Runner(device=device, path="torch cuda, fp16, channels-last", run=fast,
                  exact=lambda x, f: call_net(full, x, f), half=True)


def prepare(module: nn.Module, device: Device, samples: list[Inputs], half: bool = True,
            candidates: Iterable[Callable[[], GraphNet]] = ()) -> Runner:
    """The fastest way to run `module` on `device` that agrees with plain torch.

    samples     inputs of several lengths and batch sizes for the agreement check (CPU); a net is recorded on
                the first
    half        allow half precision on CUDA, under its own check on the first batch
    candidates  the same net as exported graphs (CPU): the first that agrees runs instead of torch
    """
    module = module.eval().requires_grad_(False)
    return (
        _prepare_cuda(module, device, half)
        if device.cuda
        else _prepare_cpu(module, device, samples, candidates)
    )


def from_graph(net: GraphNet, notes: Iterable[str] = ()) -> Runner:
    """The way to run a graph: on the CPU, at exact lengths."""
    def run(inputs: Inputs, frames: torch.Tensor | None) -> torch.Tensor:
        return call_net(net, inputs, None)

    return Runner(
        device=probe("cpu"), path=net.path, run=run, exact=run, notes=list(notes), recorded=net.callers > 1
    )


def _find_graph(candidates: Iterable[Callable[[], GraphNet]], module: nn.Module, samples: list[Inputs],
                notes: list[str]) -> GraphNet | None:
    """The first candidate that gives the numbers of `module` on `samples`; the reasons against the others are
    noted.
    """
    for candidate in candidates:
        try:
            net = candidate()
            if all(_agrees(net, module, sample) for sample in samples):
                return net
            notes.append(f"{net.path}: differs from torch by more than {AGREEMENT_FP32}; not used")
        except Exception as error:  # runtimes raise types of their own; torch is there in any case
            notes.append(f"graph not used: {type(error).__name__}: {str(error)[:300]}")
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """True for a GPU or host allocation failure, which halving a batch can cure."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(part in text for part in NO_MEMORY)


def is_lost(error: BaseException) -> bool:
    """True for a CUDA error that poisons the context: only a new process helps."""
    return any(part in str(error) for part in LOST) and not is_out_of_memory(error)


def release(device: Device) -> None:
    """Give cached GPU memory back after an out-of-memory error."""
    if device.cuda:
        torch.cuda.empty_cache()


def forget_nets() -> None:
    """Give back nets that nobody uses: traced ones refer to themselves, and torch keeps recorded weights
    until told otherwise.
    """
    torch._C._jit_clear_class_registry()
    gc.collect()
