"""A GPU measured: its tests, how fast the host feeds it, and the published ensembles on it against two peers.

    python -m benchmarks.gpu [PART ...] [--clips 3361] [--peer-clips 300] [--out gpu.json] [--device auto]

Parts: `tests` (those marked `cuda`), `feed` (benchmarks.zero_cost), the name of an ensemble, `scale` (20,000
clips of 1 to 2 s, the shipped ensemble), `limit` (the device's largest convolution); all but `scale` without
a name. Without a GPU the tests run on a stand-in (the CPU takes the GPU's way), `feed` counts launches and
host seconds, everything else is left out, and the exit code is 0.

An ensemble runs whole, from wav files on disk and a bundle with random weights, by the engine itself. Its
peers (`benchmarks.gpu_peers`) compute the same nets on --peer-clips of the same clips and are scaled. Every
part's figures go to --out as JSON when it is done, beside those of parts that ran before; the lines for
docs/performance.md stand at the end.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import gpu_peers, zero_cost
from benchmarks.rounds import describe_machine, draw_seconds, write_clips

import numpy as np  # isort: skip
import torch  # isort: skip

from builder import assembly
from kernel import spec
from kernel.engine import loop
from kernel.engine.batches import BatchedNets
from kernel.engine.heartbeat import Heartbeat
from kernel.inference.recipe import build_recipe
from tests.helpers.orders import make_order

ROOT = Path(__file__).resolve().parent.parent
ENSEMBLES = ("default", "argus", "qrfaction", "simongrest", "hackerearth")
# Both: files with tests marked `cuda`, so that nothing is imported that such a machine need not have
ON_GPU = ("tests/inference/test_staging.py", "tests/inference/test_ways.py", "tests/engine/test_on_gpu.py")
STAND_IN = (*ON_GPU, "tests/inference/test_backends.py", "tests/engine/test_gpu.py",
            "tests/engine/test_crowds.py", "tests/engine/test_devices.py")


def run_tests(gpu: bool) -> dict[str, Any]:
    """The tests marked `cuda`, or the GPU's tests on the stand-in."""
    chosen = ["-m", "cuda", *ON_GPU] if gpu else list(STAND_IN)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
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


def count_gmac(bundle: Path, seconds: Sequence[float]) -> float:
    """Multiply-adds / 1e9 of all first-level nets over clips of these lengths, by the manifest."""
    manifest = spec.load_manifest((bundle / "manifest.json").read_bytes(), "manifest.json")
    total = 0.0
    for member in manifest.ensemble.members:
        cost = manifest.costs.get(member.name, spec.Cost())
        recipe = build_recipe(manifest.ensemble, member)
        cells = sum(recipe.cells(s) for s in seconds)
        total += len(member.folds) * (cost.gmac_a * len(seconds) + cost.gmac_b * cells)
    return total


def table_row(row: dict[str, Any]) -> str | None:
    """A measured row as a line of docs/performance.md, None for one that has none."""
    if "ensemble" not in row:
        return None
    peers = row.get("peers", {})
    told = ", ".join(f"{peer} {seconds:,.0f} s" for peer, seconds in peers.items()) or "-"
    if row.get("librosa_s"):
        told += f", librosa {row['librosa_s']:,.0f} s"
    busy = row["busy_share_of_steps"]
    limit = row.get("limit_s")
    parts = [
        f"{row['seconds']:.1f} s ({row['audio_s_per_s']:,.0f} s of audio a second)",
        f"{row['seconds_per_net']:.2f} s a net",
        "busy -" if busy is None else f"busy {100 * busy:.0f} %",
        "" if row["peak_device_bytes"] is None else f"{row['peak_device_bytes'] / 1e9:.1f} GB",
        f"{limit:.1f} s at the rate of its largest convolution" if limit else "",
    ]
    name = f"{row['ensemble']}, {row['nets']} nets, {row['clips']:,} clips, {row['device']}"
    against = f"{told} (scaled from {row['peer_clips']} clips)" if peers else "-"
    measured = ", ".join(part for part in parts if part)
    return f"| {name} | {against} | {measured} | `make gpu PART={row['part']}` |"


def device_name(wanted: str) -> str:
    """The device that is measured, for people."""
    cuda = wanted != "cpu" and torch.cuda.is_available()
    return torch.cuda.get_device_name() if cuda else "CPU"


def measure(part: str, given: argparse.Namespace, gpu: bool) -> list[dict[str, Any]]:
    """The rows of one part."""
    if part == "tests":
        return [run_tests(gpu)]
    if part == "feed":
        return zero_cost.report(zero_cost.NAMES, min(1000, given.clips), 3, None)
    limit = gpu_peers.measure_limit(gpu and given.device != "cpu")
    if part == "limit":
        return [{"limit_tflops": limit}]
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
        bundle = folder / name / "bundle"
        row |= {"part": part, "clips": len(seconds), "device": device_name(given.device)}
        if limit:
            row["limit_s"] = 2 * count_gmac(bundle, seconds) / 1e3 / max(limit.values())
        if not scale:
            where = "cuda" if limit else "cpu"
            row |= gpu_peers.measure(ensemble, bundle, where, seconds, min(given.peer_clips, len(seconds)))
        if name == "argus":
            row |= gpu_peers.measure_librosa(sorted((data / "test").iterdir()), seconds)
    return [row]


def keep(out: Path, part: str, rows: list[dict[str, Any]]) -> None:
    """Write a part's rows beside those of other parts."""
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        known = json.loads(out.read_bytes())
    except (OSError, ValueError):  # none yet, or no file of ours: it is written anew
        known = {}
    known = known if isinstance(known, dict) else {}
    out.write_text(json.dumps({**known, part: rows}, indent=1, default=str) + "\n")


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
    lines: list[str] = []
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
            if (line := table_row(row)) is not None:
                lines.append(line)
        if given.out is not None:
            keep(given.out, part, found)
    if lines:
        print("\n| what | against | measured | command |\n| --- | --- | --- | --- |")
        print("\n".join(lines))
    return failed


if __name__ == "__main__":
    sys.exit(main())
