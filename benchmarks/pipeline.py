"""The whole pipeline from wav files to scores against two baselines on the same clips and nets.

    python -m benchmarks.pipeline [--clips 32] [--nets 3] [--rounds 5] [--quick]

Two tasks: `tiles` (the 1st-place net on tiles of 256 frames, against its own one-clip-at-a-time loop) and
`padded` (a plain CNN on whole clips, against the everyday padded DataLoader). Ours runs twice: on torch
alone, and with exported graphs in the bundle. Every run is a process of its own from start to exit, imports
and loading included; runs take turns. "apart" is the largest difference of a score from ours on torch: the
tile loop agrees, padding does not. Baselines: benchmarks/baselines.py.
"""
from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rounds import Seconds, describe_machine, draw_seconds, median, ratio, write_clips

import numpy as np  # isort: skip

ROOT = Path(__file__).resolve().parent.parent
CLASSES = [f"class{k:02d}" for k in range(80)]
TASKS = {
    "tiles": (
        "the argus tile loop",
        'family = "aux_skip_attention"\nparams = {{ base = {base} }}\n'
        'finish = ["delta", {{ kind = "scale", divide = 100 }}]\n'
        'view = {{ kind = "tiles", frames = 256, step = 128 }}',
    ),
    "padded": ("the padded DataLoader", 'family = "simple_cnn"\nparams = {{ base = {base}, channels = 1 }}'),
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A command that writes scores, and how to read them."""

    command: list[str]
    out: Path


def build_bundle(folder: Path, task: str, nets: int, base: int, graphs: bool) -> Path:
    """A bundle of `nets` folds with seeded random weights."""
    from builder import assembly

    folder.mkdir(parents=True, exist_ok=True)
    toml = folder / f"{task}.toml"
    body = TASKS[task][1].format(base=base)
    toml.write_text(
        f'name = "{task}"\nclasses = {json.dumps(CLASSES)}\nmean = "geometric"\n'
        '[frontends.mel]\npreset = "argus"\n'
        f'[[members]]\nname = "net"\nfrontend = "mel"\nfolds = {list(range(nets))}\n{body}\n'
    )
    out = folder / f"{task}-{'graphs' if graphs else 'torch'}"
    request = assembly.BuildRequest(ensemble=toml, out=out, random_weights=True, export_onnx=graphs)
    assembly.build(request, say=lambda _: None)
    return out / "bundle"


def write_input(folder: Path, clips: int) -> Path:
    """An input folder of a competition: sample and test clips."""
    write_sample(folder, write_clips(folder / "test", draw_seconds(clips)))
    return folder


def write_sample(folder: Path, names: Sequence[str]) -> None:
    with open(folder / "sample_submission.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["fname", *CLASSES])
        writer.writerows([name, *[0] * len(CLASSES)] for name in names)


def ours(bundle: Path, given: Path, working: Path) -> Method:
    return Method(
        command=[sys.executable, "-I", str(ROOT / "infer_kernel.py"), "--bundle", str(bundle),
                 "--input", str(given), "--working", str(working), "--device", "cpu", "--seconds", "3600"],
        out=working / "submission.csv",
    )


def read_scores(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    with open(path, newline="", encoding="utf-8") as file:
        return np.array([[float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]])


def run_once(method: Method) -> Seconds:
    """(wall, CPU) seconds of the command and everything it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(method.command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(method.command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def describe_run(working: Path) -> str:
    """Where the time of our last run went, by its own report."""
    report = json.loads((working / "report.json").read_bytes())
    stages = {stage["name"]: stage for stage in report["stages"]}
    first = min(stage["start_s"] for name, stage in stages.items() if name.startswith("net."))
    loading = sum(net["loading_s"] for member in report["members"] for net in member["nets"])
    nets = sum(net["seconds"] for member in report["members"] for net in member["nets"]) - loading
    peak = report.get("peak_own_bytes", report["peak_ram_bytes"]) / 1e6
    return (
        f"{report['device']['path']}; first net began after {first:.1f} s, "
        f"waited {loading:.1f} s for spectrograms, computed {nets:.1f} s; peak {peak:.0f} MB"
    )


def compare(task: str, methods: dict[str, Method], rounds: int) -> None:
    times: dict[str, list[Seconds]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            times[name].append(run_once(method))
    wanted = read_scores(methods["hourglass, torch"].out)
    peer = TASKS[task][0]
    print(f"\n{task}: medians of {rounds} interleaved rounds, ratios to {peer}")
    print(f"{'':32}{'wall s':>9}{'x':>7}{'CPU s':>9}{'x':>7}{'apart':>10}")
    for name, values in times.items():
        apart = float(np.abs(read_scores(methods[name].out) - wanted).max())
        print(f"{name:<32}{median(values):>9.2f}{ratio(times[peer], values):>7.2f}{median(values, 1):>9.2f}"
              f"{ratio(times[peer], values, 1):>7.2f}{apart:>10.1e}", flush=True)
    for name, method in methods.items():
        if method.out.suffix == ".csv":
            print(f"  {name}: {describe_run(method.out.parent)}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--nets", type=int, default=3)
    parser.add_argument("--base", type=int, default=32, help="width of the nets (64 in the originals)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--quick", action="store_true", help="8 clips, 1 round, narrow nets")
    given = parser.parse_args(arguments)
    if given.quick:
        given.clips = 8
        given.rounds = 1
        given.base = 8
    print(describe_machine("torch", "librosa", "onnxruntime"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = write_input(folder / "input", given.clips)
        seconds = sum(draw_seconds(given.clips))
        print(f"{given.clips} clips, {seconds:.0f} s of audio, {given.nets} nets of base {given.base}")
        for task in given.tasks:
            plain, quick = (
                build_bundle(folder, task, given.nets, given.base, graphs) for graphs in (False, True)
            )
            out = folder / f"{task}.npy"
            methods = {
                TASKS[task][0]: Method(
                    out=out,
                    command=[sys.executable, "-m", "benchmarks.baselines", task, "--bundle", str(plain),
                             "--clips", str(data / "test"), "--out", str(out)],
                ),
                "hourglass, torch": ours(plain, data, folder / f"{task}-out-torch"),
                "hourglass, exported graphs": ours(quick, data, folder / f"{task}-out-graphs"),
            }
            compare(task, methods, given.rounds)


if __name__ == "__main__":
    main()
