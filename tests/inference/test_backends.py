"""Back ends: every fast path gives the numbers of plain eager torch, at lengths it was not recorded on, or is
not taken.
"""
from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kernel import models
from kernel.errors import DeviceError, SpecError
from kernel.inference import backends, graph_net, onnx
from kernel.inference.devices import Device, find_devices, is_lost, is_out_of_memory, lacks_engine, probe
from kernel.models import FAMILIES

CPU = Device(name="cpu", about="test")
CASES = [
    pytest.param(name, dict(params), id=f"{name}-{number}")
    for name, family in FAMILIES.items()
    if not family.stacker
    for number, params in enumerate((family.tiny, *family.variants))
]
# Tiny nets that cannot be exported with a free time axis, each with its reason; everything else must be.
NOT_EXPORTED: dict[str, str] = {}


def build_tiny(name: str, params: dict[str, Any]) -> nn.Module:
    """A tiny net with running statistics that are not the identity, so that folding has something to fold."""
    torch.manual_seed(0)
    try:
        net = models.build(name, params, 3).eval()
    except SpecError as error:
        if "not installed" in str(error):
            pytest.skip("timm is not installed")
        raise
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return net.requires_grad_(False)


def draw(net: nn.Module, name: str, passes: int, more: int) -> dict[str, torch.Tensor]:
    """Seeded inputs `more` frames longer than the shortest the net takes (or of its only width)."""
    generator = torch.Generator().manual_seed(more)
    fixed = getattr(net, "fixed_frames", None)
    frames = fixed or min(net.min_frames + more, net.max_frames or 10**9)
    example = getattr(net, "example", None)
    if example is not None:
        made = example(frames)
        made = made if isinstance(made, Mapping) else {"x": made}
        return {k: torch.randn(passes, *v.shape[1:], generator=generator) for k, v in made.items()}
    return {
        "x": torch.randn(
            passes, net.channels or 1, net.bins or FAMILIES[name].bins, frames, generator=generator
        )
    }


def run(net: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return backends.call_net(net, inputs, None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "params"), CASES)
def test_prepared_nets_give_the_numbers_of_plain_torch(name: str, params: dict[str, Any]) -> None:
    net = build_tiny(name, params)
    samples = [draw(net, name, 1, 33), draw(net, name, 1, 80), draw(net, name, 2, 57)]
    runner = backends.prepare(net, CPU, samples)
    for inputs in (draw(net, name, 1, 1), draw(net, name, 3, 101), draw(net, name, 1, 250)):
        want = run(net, inputs).numpy()
        assert np.abs(runner(inputs) - want).max() <= 1e-5 * max(1.0, np.abs(want).max())
    if "frozen" not in runner.path:
        assert any("not frozen" in note for note in runner.notes)


def test_the_usual_nets_run_frozen() -> None:
    for name in ("simple_cnn", "resnet_max"):
        net = build_tiny(name, dict(FAMILIES[name].tiny))
        runner = backends.prepare(net, CPU, [draw(net, name, 1, 33), draw(net, name, 2, 80)])
        assert runner.path == "torch cpu, folded, channels-last, frozen" and not runner.notes


class LengthInPython(nn.Module):
    """Divides by the width as a Python number: a recording would keep the first width for ever."""

    def forward(self, x: torch.Tensor, frames: torch.Tensor | None = None) -> torch.Tensor:
        return x.sum((1, 2, 3))[:, None] / int(x.shape[-1])


class BranchOnLength(nn.Module):
    """Takes another way above 200 frames."""

    def forward(self, x: torch.Tensor, frames: torch.Tensor | None = None) -> torch.Tensor:
        return x.mean((1, 2, 3))[:, None] if x.shape[-1] < 200 else x.amax((1, 2, 3))[:, None]


@pytest.mark.parametrize("net", [LengthInPython(), BranchOnLength()])
def test_a_recording_that_fixes_a_shape_is_not_used(net: nn.Module) -> None:
    """No sample reaches the other branch: the recording itself must be refused."""
    samples = [{"x": torch.randn(1, 1, 8, n)} for n in (50, 100, 150)]
    runner = backends.prepare(net, CPU, samples)
    assert "frozen" not in runner.path and any("not frozen" in note for note in runner.notes)
    long = {"x": torch.randn(1, 1, 8, 300)}
    assert np.allclose(runner(long), run(net, long).numpy(), atol=1e-6)


def test_the_same_net_takes_the_same_way_to_the_same_bytes() -> None:
    net = build_tiny("simple_cnn", {"base": 4})
    samples = [draw(net, "simple_cnn", 1, 33), draw(net, "simple_cnn", 2, 80)]
    clips = [draw(net, "simple_cnn", 1, n) for n in (7, 90, 200, 41)]
    first, second = (backends.prepare(net, CPU, samples) for _ in range(2))
    forwards = [first(clip) for clip in clips]
    backwards = [second(clip) for clip in reversed(clips)]
    assert first.path == second.path
    assert all(np.array_equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))


@pytest.mark.parametrize(("name", "params"), CASES)
def test_every_family_is_exported_with_free_time(
    name: str, params: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from builder.onnx_export import export_net

    net = build_tiny(name, params)
    fixed = getattr(net, "fixed_frames", None) is not None
    inputs = draw(net, name, 1, 64)
    timed = max(inputs, key=lambda key: inputs[key].shape[-1])
    graph = graph_net.load_net(export_net(net, inputs, timed, fixed), runtime)
    for case in (inputs, draw(net, name, 2, 131), draw(net, name, 1, 10)):
        want = run(net, case)
        assert float((graph(case) - want).abs().max()) <= 1e-5 * max(1.0, float(want.abs().max()))


def fake_graph(scale: float) -> Any:
    """What stands for an exported graph: the mean of its input times `scale`."""
    def forward(x: torch.Tensor) -> torch.Tensor:
        return scale * x.mean((1, 2, 3))[:, None]

    return type(
        "Fake",
        (nn.Module,),
        {"forward": lambda self, x: forward(x), "path": f"graph x {scale}", "callers": 1},
    )()


class Mean(nn.Module):
    def forward(self, x: torch.Tensor, frames: torch.Tensor | None = None) -> torch.Tensor:
        return x.mean((1, 2, 3))[:, None]


def test_the_first_graph_that_agrees_is_used() -> None:
    samples = [{"x": 5 + torch.randn(1, 1, 4, n)} for n in (8, 13)]

    def absent() -> Any:
        raise DeviceError("no such runtime")

    chosen = backends.prepare(
        Mean(), CPU, samples, candidates=[absent, lambda: fake_graph(1.001), lambda: fake_graph(1.0)]
    )
    assert chosen.path == "graph x 1.0" and np.allclose(chosen(samples[0]), samples[0]["x"].mean())
    assert "no such runtime" in chosen.notes[0] and "differs" in chosen.notes[1]


def test_torch_runs_where_no_graph_agrees() -> None:
    def broken() -> Any:
        return type("Fake", (nn.Module,), {"forward": lambda self, x: 1 / 0, "path": "broken"})()

    samples = [{"x": 5 + torch.randn(1, 1, 4, n)} for n in (8, 13)]
    runner = backends.prepare(Mean(), CPU, samples, candidates=[lambda: fake_graph(2.0), broken])
    assert runner.path.startswith("torch cpu") and "ZeroDivisionError" in runner.notes[1]


def half_runner(fast: Any, exact: Any = lambda x, f: torch.ones(len(x["x"]), 2)) -> backends.Runner:
    return backends.Runner(device=CPU, path="torch cuda, fp16", run=fast, exact=exact, half=True)


def test_half_precision_that_disagrees_is_given_up_for_good() -> None:
    runner = half_runner(lambda x, f: torch.full((len(x["x"]), 2), 1.1))
    assert np.array_equal(runner({"x": torch.zeros(3, 1)}), np.ones((3, 2)))
    assert not runner.half and runner.path == "torch cuda, fp32" and "differed" in runner.notes[0]


def test_half_precision_that_agrees_is_kept() -> None:
    runner = half_runner(lambda x, f: torch.full((len(x["x"]), 2), 1.001))
    assert np.allclose(runner({"x": torch.zeros(3, 1)}), 1.001) and runner.half \
        and runner.agreement == pytest.approx(1e-3, rel=1e-2)


def test_nan_in_the_first_batch_is_a_disagreement() -> None:
    runner = half_runner(lambda x, f: torch.full((len(x["x"]), 2), torch.nan))
    assert np.array_equal(runner({"x": torch.zeros(1, 1)}), np.ones((1, 2))) and not runner.half


def test_rows_that_overflow_half_precision_are_computed_again_alone() -> None:
    """Later batches: the other rows keep their half-precision results."""
    told: list[tuple[int, list[int] | None]] = []

    def fast(x: Any, frames: torch.Tensor | None) -> torch.Tensor:
        out = torch.ones(len(x["x"]), 2) * 1.001
        out[x["x"][:, 0] > 9] = torch.inf
        return out

    def exact(x: Any, frames: torch.Tensor | None) -> torch.Tensor:
        told.append((len(x["x"]), None if frames is None else frames.tolist()))
        return torch.ones(len(x["x"]), 2)

    runner = half_runner(fast, exact)
    runner({"x": torch.zeros(2, 1)})
    out = runner({"x": torch.tensor([[0.0], [10.0], [0.0]])}, torch.tensor([5, 3, 4]))
    assert np.allclose(out[[0, 2]], 1.001) and np.array_equal(out[1], [1, 1])
    assert told[1:] == [(1, [3])] and runner.reruns == 1 and runner.half


def test_any_error_of_half_precision_means_fp32_at_once() -> None:
    """At the check as well as later; only a full memory and a lost device are others' business."""
    for first_fails in (True, False):
        calls: list[int] = []

        def fast(x: Any, f: Any, early: bool = first_fails, calls: list[int] = calls) -> torch.Tensor:
            calls.append(1)
            if early or len(calls) > 2:
                raise RuntimeError("expected scalar type Half but found Float")
            return torch.ones(len(x["x"]), 2)

        runner = half_runner(fast)
        for _ in range(2):
            assert np.array_equal(runner({"x": torch.zeros(3, 1)}), np.ones((3, 2)))
        assert not runner.half and "fp32" in runner.path
        assert "half precision failed" in runner.notes[0] and "scalar type" in runner.notes[0]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("CUDA error: misaligned address")]
)
def test_full_memory_and_lost_devices_are_no_reason_for_fp32(error: Exception) -> None:
    def fast(x: Any, f: Any) -> torch.Tensor:
        raise error

    runner = half_runner(fast)
    with pytest.raises(type(error)):
        runner({"x": torch.zeros(3, 1)})
    assert runner.half and not runner.notes


def test_an_engine_that_half_precision_lacks_is_looked_for_in_fp32() -> None:
    def fast(x: Any, f: Any) -> torch.Tensor:
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    runner = half_runner(fast)
    assert np.array_equal(runner({"x": torch.zeros(3, 1)}), np.ones((3, 2))) and not runner.half


def test_probabilities_agree_as_logarithms() -> None:
    """205 of 206 classes at zero are within 0.02 of small probabilities, and worth nothing."""
    exact = torch.full((2, 206), 1e-5)
    exact[:, 0] = 0.9

    def fast(x: Any, f: Any) -> torch.Tensor:
        return torch.where(exact > 0.5, exact, 0.0)

    logits = half_runner(fast, lambda x, f: exact)
    logits({"x": torch.zeros(2, 1)})
    assert logits.half  # as plain numbers they agree
    runner = half_runner(fast, lambda x, f: exact)
    runner.probabilities = True
    assert np.array_equal(runner({"x": torch.zeros(2, 1)}), exact.numpy()) and not runner.half
    assert "log-probabilities" in runner.notes[0]


@pytest.mark.parametrize(("name", "params"), CASES)
def test_folding_in_place_keeps_the_net_and_its_masks(name: str, params: dict[str, Any]) -> None:
    net = build_tiny(name, params)
    try:
        folded = backends.fold_in_place(net)
    except Exception as error:
        pytest.skip(f"cannot be traced ({type(error).__name__})")
    norms = [sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in n.modules()) for n in (net, folded)]
    assert norms[1] <= norms[0]
    inputs = draw(net, name, 3, 60)
    cases: list[torch.Tensor | None] = [None]
    if net.maskable and set(inputs) == {"x"} and net.fixed_frames is None:
        longest = inputs["x"].shape[-1]
        cases.append(torch.tensor([longest, longest - 7, max(net.min_frames, longest // 2)]))
    for frames in cases:
        with torch.no_grad():
            want = backends.call_net(net, inputs, frames)
            got = backends.call_net(folded, inputs, frames)
        assert float((got - want).abs().max()) <= 1e-5 * max(1.0, float(want.abs().max()))


def test_convolutions_really_lose_their_batch_norms() -> None:
    for name in ("simple_cnn", "aux_skip_attention", "dense_pyramid"):
        net = build_tiny(name, dict(FAMILIES[name].tiny))
        folded = backends.fold_in_place(net)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules()), name
        assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize("name", ["mel_densenet", "sed"])
def test_probabilities_leave_a_net_in_float32_whatever_precision_it_runs_in(name: str) -> None:
    net = build_tiny(name, dict(FAMILIES[name].tiny))
    assert net.output == "probabilities"
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = backends.call_net(net, draw(net, name, 2, 40), None)
    assert out.dtype == torch.float32
    assert not torch.equal(out, out.bfloat16().float())  # no rounding after the activation


def test_every_family_that_gives_probabilities_is_tested_for_it() -> None:
    """A new one belongs into the test above."""
    found = set()
    for name, family in FAMILIES.items():
        if not family.stacker:
            net = build_tiny(name, dict(family.tiny))
            found |= {name} if getattr(net, "output", "logits") == "probabilities" else set()
    assert found == {"mel_densenet", "sed"}


def test_layers_where_nothing_is_padded_are_left_alone() -> None:
    class Fills(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += "masked_fill" in str(func)
            return func(*args, **(kwargs or {}))

    net = build_tiny("simple_cnn", {"base": 4, "channels": 1})
    x = torch.randn(2, 1, 128, 64)
    counts = []
    for frames in ([64, 64], [64, 40]):
        with torch.no_grad(), Fills() as fills:
            net(x, torch.tensor(frames))
        counts.append(fills.count)
    assert counts[0] <= 1 < counts[1]  # the head's mean alone


def test_a_missing_gpu_is_a_note_and_the_cpu_is_used() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is present")
    devices, notes = find_devices("cuda")
    assert [d.name for d in devices] == ["cpu"] and "running on the CPU" in notes[-1]
    with pytest.raises(DeviceError, match="not used"):
        probe("cuda:0")


@pytest.mark.parametrize(("error", "memory", "lost"), [
    (torch.OutOfMemoryError("CUDA out of memory"), True, False),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True, False),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
    (RuntimeError("CUDA error: out of memory"), True, False),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False)])
def test_errors_are_told_apart(error: Exception, memory: bool, lost: bool) -> None:
    assert is_out_of_memory(error) is memory and is_lost(error) is lost and not lacks_engine(error)


@pytest.mark.parametrize("text", [
    "GET was unable to find an engine to execute this computation",
    "FIND was unable to find an engine to execute this computation after trying all 12 engine configs.",
    "Unable to find a valid cuDNN algorithm to run convolution",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuFFT error: CUFFT_INTERNAL_ERROR"])
def test_what_finds_no_engine_is_neither_lost_nor_the_net_s_fault(text: str) -> None:
    error = RuntimeError(text)
    assert lacks_engine(error) and not is_lost(error) and not is_out_of_memory(error)


def test_the_runtime_takes_a_core_for_each_caller_and_does_not_spin() -> None:
    """Rows run side by side, a core each: a pool of the runtime's own would take these cores twice."""
    runtime = pytest.importorskip("onnxruntime")
    seen: list[Any] = []

    class Session:
        def __init__(self, graph: bytes, options: Any, providers: list[str]) -> None:
            seen.append(options)

        def get_outputs(self) -> list[Any]:
            return []

    parts = {"SessionOptions": runtime.SessionOptions, "InferenceSession": Session, "__name__": "onnxruntime"}
    fake: Any = type("Runtime", (), parts)()
    onnx.open_session(b"", fake, callers=3, cores=1, steady=False)
    # one caller at a time: then the cores are the graph's
    onnx.open_session(b"", fake, callers=1, cores=3, steady=False)
    assert [options.intra_op_num_threads for options in seen] == [1, 3]
    assert all(options.get_session_config_entry("session.intra_op.allow_spinning") == "0" for options in seen)


def test_used_nets_leave_no_weights_behind() -> None:
    def weigh() -> int:
        backends.forget_nets()
        return sum(o.numel() for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter))

    sample = {"x": torch.randn(1, 1, 64, 64)}
    before = weigh()
    for _ in range(3):
        runner = backends.prepare(build_tiny("simple_cnn", {"base": 16, "channels": 1}), CPU, [sample])
        assert "frozen" in runner.path
        runner(sample)
        del runner
    assert weigh() <= before
