"""A GPU measured: its tests, how fast the host feeds it, and the published ensembles on it against two peers.

    python -m benchmarks.gpu [PART ...] [--clips 3361] [--peer-clips 300] [--out gpu.json] [--device auto]

Parts: `tests` (those marked `cuda`), `feed` (benchmarks.zero_cost), the name of an ensemble, `scale` (20,000
clips of 1 to 2 s, the shipped ensemble), `limit` (the device's largest convolution); all but `scale` without
a name. Without a GPU the tests run on a stand-in (the CPU takes the GPU's way), `feed` counts launches and
host seconds, everything else is left out, and the exit code is 0.

An ensemble runs whole, from wav files on disk and a bundle with random weights, by the engine itself. Peers
compute the same nets on --peer-clips of the same clips and are scaled by seconds of audio: `one clip a call`
(the loop of the argus kernel: its cuts, fp32) and `padded` (batches of 32 in arrival order, padded, fp16
autocast). Both get our front ends' arrays for nothing, which favours them.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import zero_cost
from benchmarks.rounds import describe_machine, draw_seconds, write_clips

import numpy as np  # isort: skip
import torch  # isort: skip

from builder import assembly
from kernel import models, spec
from kernel.bundle import open_bundle
from kernel.engine import loop
from kernel.engine.batches import BatchedNets
from kernel.engine.heartbeat import Heartbeat
from kernel.inference.member import row_inputs
from tests.helpers.orders import make_order

ROOT = Path(__file__).resolve().parent.parent
ENSEMBLES = ("default", "argus", "qrfaction", "simongrest", "hackerearth")
STAND_IN = ("tests/inference/test_staging.py", "tests/inference/test_backends.py", "tests/engine/test_gpu.py",
            "tests/engine/test_devices.py")
PADDED_BATCH = 32
WARM_UP_CLIPS = 4


def run_tests(gpu: bool) -> dict[str, Any]:
    """The tests marked `cuda`, or the GPU's tests on the stand-in."""
    chosen = ["-m", "cuda", "tests"] if gpu else list(STAND_IN)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen]
    began = time.perf_counter()
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    return {"tests": "cuda" if gpu else "stand-in", "exit_code": code, "seconds": time.perf_counter() - began}


def render(folder: Path, seconds: Sequence[float], classes: Sequence[str]) -> Path:
    """An input folder of a competition; the clips are rendered in parallel."""
    parts = [list(seconds[i : i + 64]) for i in range(0, len(seconds), 64)]
    with ProcessPoolExecutor() as pool:
        names = list(pool.map(write_clips, [folder / f"part{i}" for i in range(len(parts))], parts))
    (folder / "test").mkdir(parents=True)
    ids = []
    for number, part in enumerate(names):
        for name in part:
            ids.append(f"p{number:04d}_{name}")
            (folder / f"part{number}" / name).rename(folder / "test" / ids[-1])
    lines = [",".join(["fname", *classes]), *(",".join([id, *["0"] * len(classes)]) for id in ids)]
    (folder / "sample_submission.csv").write_text("\n".join(lines) + "\n")
    return folder


def build(name: str, folder: Path) -> Path:
    """The ensemble's bundle: the shipped weights, or random ones."""
    request = assembly.BuildRequest(
        ensemble=ROOT / "ensembles" / f"{name}.toml", out=folder / name, random_weights=name != "default"
    )
    assembly.build(request, say=lambda _: None)
    return folder / name / "bundle"


class Busy:
    """Seconds from the first to the last operation of every block, by events.

    Waits for the host inside a block count as busy, waits for the next block do not.
    """

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        self._pairs: list[tuple[Any, Any]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        launch = BatchedNets._launch

        def timed(nets: BatchedNets, *given: Any) -> Any:
            if not self._cuda:
                return launch(nets, *given)
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
            launched = launch(nets, *given)
            pair[1].record()
            self._pairs.append(pair)
            return launched

        with mock.patch.object(BatchedNets, "_launch", timed):
            yield

    def seconds(self) -> float:
        return sum(first.elapsed_time(last) for first, last in self._pairs) / 1000


def measure_ensemble(name: str, data: Path, folder: Path, device: str, audio_s: float) -> dict[str, Any]:
    """The whole ensemble by the engine, wav files to scores."""
    bundle = build(name, folder)
    state = Path(tempfile.mkdtemp(dir=folder))
    cuda = device != "cpu" and torch.cuda.is_available()
    busy = Busy(cuda)
    began = time.perf_counter()
    order = make_order(data, bundle, state, seconds=3600.0, device=device, loaders=None)
    with mock.patch("signal.signal"), busy.watching():
        engine = loop.Engine(order, Heartbeat(state / "heartbeat.json"))
        engine.execute()
    seconds = time.perf_counter() - began
    report = json.loads((state / "report.json").read_bytes())
    nets = [net for member in report["members"] for net in member["nets"]]
    steps_s = sum(outcome.seconds for outcome in engine.dispatcher.outcomes)
    return {
        "ensemble": name,
        "seconds": seconds,
        "audio_s_per_s": audio_s / seconds,
        "nets": len(nets),
        "seconds_per_net": steps_s / max(1, len(nets)),
        "busy_share_of_steps": busy.seconds() / steps_s if cuda else None,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "paths": sorted({net.path for net in engine.run.nets.values()}),
        "prior_rows": report["prior_rows"],
        "partial_rows": report["partial_rows"],
    }


def load_modules(bundle: Path, device: str) -> list[tuple[spec.Member, torch.nn.Module]]:
    """Every first-level net of a bundle, on the device."""
    manifest = spec.load_manifest((bundle / "manifest.json").read_bytes(), "manifest.json")
    opened = open_bundle(bundle, manifest)
    members = {member.name: member for member in manifest.ensemble.members}
    nets = []
    for entry in manifest.nets:
        if entry.member in members:
            member = members[entry.member]
            outputs = member.outputs(len(manifest.ensemble.classes))
            net = models.build(member.family, dict(member.params), outputs)
            net.load_state_dict(models.rename(member.family, dict(member.params), opened.load_state(entry)))
            nets.append((member, net.eval().to(device)))
    return nets


def measure_peers(
    name: str, folder: Path, device: str, clips: int, seconds: Sequence[float]
) -> dict[str, Any]:
    """Seconds of both peers on some clips, their inputs at hand, scaled to all by seconds of audio."""
    ensemble = spec.load_ensemble(ROOT / "ensembles" / f"{name}.toml")
    where = "cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda"
    modules = load_modules(folder / name / "bundle", where)
    scale = sum(seconds) / sum(seconds[:clips])
    spent = {"one clip a call": 0.0, "padded": 0.0}
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        inputs: dict[str, list[dict[str, torch.Tensor]]] = {}
        for member, module in modules:
            if member.name not in inputs:
                setting = zero_cost.open_setting(ensemble, member, seconds[:clips], Path(place))
                rows = [setting.runs[0].rows.all[i] for i in range(clips)]
                net = setting.nets[0]
                inputs = {member.name: [row_inputs(net, setting.feed.store, row) for row in rows]}
                setting.feed.store.close()
                setting.runs[0].heartbeat.close()
            for peer, run in PEERS.items():
                run(module, inputs[member.name][:WARM_UP_CLIPS], where)
                began = time.perf_counter()
                run(module, inputs[member.name], where)
                spent[peer] += time.perf_counter() - began
    return {f"{peer}, s, {clips} clips scaled": s * scale for peer, s in spent.items()}


def one_clip_a_call(module: torch.nn.Module, inputs: Sequence[dict[str, torch.Tensor]], where: str) -> None:
    """fp32, the passes of one clip a call, answers read at once."""
    for given in inputs:
        there = {k: v.to(where) for k, v in given.items()}
        _first(module(there["x"] if set(there) == {"x"} else there)).cpu()


def padded(module: torch.nn.Module, inputs: Sequence[dict[str, torch.Tensor]], where: str) -> None:
    """fp16 autocast, batches of 32 clips' passes in arrival order, padded to the longest."""
    for first in range(0, len(inputs), PADDED_BATCH):
        some = inputs[first : first + PADDED_BATCH]
        there = {k: _pad([given[k] for given in some]).to(where) for k in some[0]}
        with torch.autocast(where, dtype=torch.float16 if where == "cuda" else torch.bfloat16):
            _first(module(there["x"] if set(there) == {"x"} else there)).float().cpu()


def _pad(values: Sequence[torch.Tensor]) -> torch.Tensor:
    longest = max(value.shape[-1] for value in values)
    return torch.cat([torch.nn.functional.pad(v, (0, longest - v.shape[-1])) for v in values])


def _first(out: Any) -> torch.Tensor:
    found: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return found


PEERS: dict[str, Callable[..., None]] = {"one clip a call": one_clip_a_call, "padded": padded}


def measure_limit(device: str) -> dict[str, Any]:
    """TFLOP/s of one 256-channel 3 x 3 convolution: what the device can do at all."""
    if device == "cpu" or not torch.cuda.is_available():
        return {}
    found = {}
    for kind in (torch.float32, torch.float16):
        x = torch.randn(64, 256, 64, 64, device="cuda", dtype=kind).to(memory_format=torch.channels_last)
        weights = torch.randn(256, 256, 3, 3, device="cuda", dtype=kind)
        for _ in range(3):
            torch.nn.functional.conv2d(x, weights, padding=1)
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        for _ in range(10):
            torch.nn.functional.conv2d(x, weights, padding=1)
        events[1].record()
        torch.cuda.synchronize()
        flops = 10 * 2 * 9 * 256 * x.numel()
        found[str(kind)] = flops / (events[0].elapsed_time(events[1]) / 1000) / 1e12
    return {"limit_tflops": found}


def measure(part: str, given: argparse.Namespace, gpu: bool) -> list[dict[str, Any]]:
    """The rows of one part."""
    if part == "tests":
        return [run_tests(gpu)]
    if part == "feed":
        return zero_cost.report(zero_cost.NAMES, min(1000, given.clips), 3, None)
    if part == "limit":
        return [measure_limit(given.device)]
    scale = part == "scale"
    name = "default" if scale else part
    seconds = draw_seconds(given.clips)
    if scale:
        seconds = np.random.default_rng(0).uniform(1, 2, 20_000).tolist()
    ensemble = spec.load_ensemble(ROOT / "ensembles" / f"{name}.toml")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = render(folder / "input", seconds, ensemble.classes)
        row = measure_ensemble(name, data, folder, given.device, sum(seconds))
        if not scale:
            peer_clips = min(given.peer_clips, given.clips)
            row |= measure_peers(name, folder, given.device, peer_clips, seconds)
    return [row]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["tests", "feed", "limit", *ENSEMBLES])
    parser.add_argument("--clips", type=int, default=3361)
    parser.add_argument("--peer-clips", type=int, default=300)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="auto", help="cpu: try the script itself where there is no GPU")
    given = parser.parse_args(arguments)
    gpu = torch.cuda.is_available()
    print(describe_machine("torch"), "|", torch.cuda.get_device_name() if gpu else "no GPU on this machine")
    if not gpu and given.device != "cpu":
        print("no GPU: the GPU's tests run on a stand-in, and the host alone is measured")
        given.parts = [part for part in given.parts if part in ("tests", "feed")]
    rows: list[dict[str, Any]] = []
    failed = 0
    for part in given.parts:
        try:
            found = measure(part, given, gpu)
        except Exception as error:  # the other parts are measured all the same, and the exit code tells
            found = [{"part": part, "failed": f"{type(error).__name__}: {error}"}]
            failed = 1
        for row in found:
            print(json.dumps(row, default=str), flush=True)
            failed |= bool(row.get("exit_code"))
        rows += found
        if given.out is not None:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(rows, indent=1, default=str) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
