"""Soundscapes as BirdCLEF gives them: what a run costs beside its decoding, its spectra and its nets.

    python -m benchmarks.soundscapes [--recordings 600] [--hours 12] [--rounds 3] [--quick]

Recordings of a minute, rendered, ogg, 32 kHz; rows of 5 s that hear 10 s; three nets of the size of
EfficientNet-B0 as exported graphs. Four figures:

- how often a recording is opened for decoding, per front end;
- the wall time of a whole run over that of decoding, spectra and nets alone, each with all cores and nothing
  beside it, in one process; and the same of what two thirds of the recordings add, since a short run does not
  outweigh its start and the opening of its nets;
- the same run on a mount where every opening takes 20 ms longer;
- the peak of memory for recordings of --hours and of a twelfth of that.
"""
from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.pipeline import ours
from benchmarks.rounds import describe_machine

import numpy as np  # isort: skip

ROOT = Path(__file__).resolve().parent.parent
RATE = 32_000  # Hz
CLASSES = [f"species{k:03d}" for k in range(40)]
BLOCK = 8  # recordings whose arrays exist at once in the run of the parts alone
SLOW_S = 0.02
NETS = """
[[members]]
name = "net{number}"
family = "timm"
params = {{ model = "{model}", in_chans = 1 }}
frontend = "mel"
"""
TOML = """name = "soundscapes"
classes = {classes}
mean = "arithmetic"
[windows]
seconds = 5.0
context_seconds = 10.0
[frontends.mel]
{front}
[[members]]
name = "level"
family = "{watched}:Level"
frontend = "mel"
"""
MEL = 'rate = 32000\nn_fft = 2048\nhop = 512\nmels = 128\nfmin = 20.0\nmel_scale = "htk"\nmel_norm = "none"'
COARSE = "rate = 32000\nn_fft = 2048\nhop = 8000\nmels = 8\nfmin = 50.0"  # arrays that weigh nothing


def build_bundle(folder: Path, name: str, front: str, model: str, nets: int) -> Path:
    """A bundle of `nets` nets with random weights and their graphs."""
    from builder import assembly

    folder.mkdir(parents=True, exist_ok=True)
    toml = folder / f"{name}.toml"
    head = TOML.format(classes=json.dumps(CLASSES), front=front, watched=ROOT / "benchmarks/watched_net.py")
    toml.write_text(head + "".join(NETS.format(number=i, model=model) for i in range(nets)))
    out = folder / name
    request = assembly.BuildRequest(ensemble=toml, out=out, random_weights=True, export_onnx=nets > 0)
    assembly.build(request, say=lambda _: None)
    return out / "bundle"


def write_recording(path: Path, seconds: float, seed: int) -> None:
    """A mono ogg of chirps in noise, written block by block."""
    import soundfile

    rng = np.random.default_rng(seed)
    t = np.arange(60 * RATE) / RATE
    block = 0.2 * np.sin(2 * np.pi * (500 + 40 * np.sin(t)) * t) * (np.sin(7 * t) > 0.6)
    with soundfile.SoundFile(path, "w", RATE, 1, "VORBIS", format="OGG") as file:
        for start in range(0, round(seconds), 60):
            noise = rng.standard_normal(len(t), dtype=np.float32)
            file.write((block + 0.02 * noise)[: round(min(60, seconds - start) * RATE)])


def write_input(folder: Path, lengths: Sequence[float]) -> Path:
    """Recordings of these seconds, and a sample that asks for all of their windows."""
    (folder / "test_soundscapes").mkdir(parents=True)
    with open(folder / "sample_submission.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row_id", *CLASSES])
        for i, seconds in enumerate(lengths):
            write_recording(folder / "test_soundscapes" / f"r{i}.ogg", seconds, i)
            ends = range(5, round(seconds) + 1, 5)
            writer.writerows([f"r{i}_{end}", *[0] * len(CLASSES)] for end in ends)
    return folder


def run(bundle: Path, given: Path, working: Path, **environment: str) -> tuple[float, dict[str, object]]:
    """Wall seconds of a whole run, and its report."""
    method = ours(bundle, given, working)
    start = time.perf_counter()
    done = subprocess.run(method.command, cwd=ROOT, capture_output=True, text=True, check=False,
                          env={**os.environ, **environment})
    wall = time.perf_counter() - start
    report = json.loads((working / "report.json").read_bytes())
    if done.returncode or report["faults"] or report["prior_rows"]:
        raise SystemExit(f"{' '.join(method.command)}\n{report['faults'][:3]}\n{done.stdout[-2000:]}")
    return wall, report


def alone(bundle: Path, given: Path) -> dict[str, float]:
    """Wall seconds of decoding, spectra and nets, one after the other on all cores."""
    import onnxruntime
    import soundfile

    from kernel.bundle import open_bundle
    from kernel.sound import frontends
    from kernel.spec import load_manifest

    manifest = load_manifest((bundle / "manifest.json").read_bytes())
    fe = frontends.build(manifest.ensemble.frontends["mel"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    opened = open_bundle(bundle, manifest)
    graphs = [opened.read_file(name) for name in sorted(manifest.files) if name.endswith(".onnx")]
    sessions = [onnxruntime.InferenceSession(graph, options) for graph in graphs]
    names = [session.get_inputs()[0].name for session in sessions]
    files = sorted((given / "test_soundscapes").iterdir())
    spent = dict.fromkeys(("decode", "spectra", "nets"), 0.0)
    reach = round(2.5 * RATE)

    def cut(wave: np.ndarray) -> list[np.ndarray]:
        padded = np.pad(wave, (reach, 4 * reach))
        return [padded[start:start + 4 * reach] for start in range(0, len(wave), 2 * reach)]

    def answer(x: np.ndarray) -> None:
        for session, name in zip(sessions, names, strict=True):
            session.run(None, {name: x[None].astype(np.float32)})

    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as pool:
        for start in range(0, len(files), BLOCK):
            began = time.perf_counter()
            waves = list(pool.map(lambda path: soundfile.read(path, dtype="float32")[0],
                                  files[start:start + BLOCK]))
            decoded = time.perf_counter()
            arrays = list(pool.map(fe, [piece for wave in waves for piece in cut(wave)]))
            made = time.perf_counter()
            list(pool.map(answer, arrays))
            for key, seconds in zip(spent, (decoded - began, made - decoded, time.perf_counter() - made),
                                    strict=True):
                spent[key] += seconds
    return spent


def count_openings(bundle: Path, given: Path, folder: Path) -> None:
    """How often each recording is opened for decoding."""
    opened = folder / "opened.txt"
    run(bundle, given, folder / "out", HOURGLASS_OPENED=str(opened))
    lines = [line.split() for line in opened.read_text().splitlines()]
    counts = Counter(id for what, id, thread in lines if what == "decode" and thread.startswith("loader"))
    pictures = sum(what == "decode" and not thread.startswith("loader") for what, _, thread in lines)
    most = max(counts.values())
    print(f"decoded by loaders: {len(counts)} recordings, one front end, at most {most} times "
          f"each; {pictures} once more for the report's pictures")


def time_alone(bundle: Path, given: Path) -> dict[str, float]:
    """As `alone`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.soundscapes", "--alone", str(bundle), str(given)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def compare(folder: Path, recordings: int, rounds: int, model: str) -> None:
    """Openings, wall time beside the parts alone, and the slow mount."""
    bundle = build_bundle(folder, "nets", MEL, model, 3)
    sizes = (recordings, recordings // 3)
    given = {size: write_input(folder / f"input-{size}", [60.0] * size) for size in sizes}
    count_openings(bundle, given[recordings], folder)
    whole, further, slow, shares = [], [], [], []
    for _ in range(rounds):
        parts, walls = {}, {}
        for size in sizes:
            parts[size] = time_alone(bundle, given[size])
            walls[size], report = run(bundle, given[size], folder / "out")
        alone_s = {size: sum(parts[size].values()) for size in sizes}
        first, second = sizes
        whole.append(walls[first] / alone_s[first])
        further.append((walls[first] - walls[second]) / (alone_s[first] - alone_s[second]))
        late, _ = run(bundle, given[recordings], folder / "out", HOURGLASS_SLOW_S=str(SLOW_S))
        slow.append(late / walls[recordings])
        shares.append({key: seconds / alone_s[first] for key, seconds in parts[first].items()})
    told = ", ".join(f"{key} {statistics.median(share[key] for share in shares):.0%}" for key in shares[0])
    print(f"alone: {told}; the run's nets: {report['device']['path']}")  # type: ignore[index]
    print(f"whole run / decode + spectra + nets alone: {statistics.median(whole):.3f}; of what "
          f"{first - second} recordings add, without start and opening: {statistics.median(further):.3f}")
    print(f"each opening {1000 * SLOW_S:.0f} ms slower: {statistics.median(slow):.3f} of the run")


def watch_memory(folder: Path, hours: float) -> None:
    """Peaks of memory for a long and a shorter recording."""
    bundle = build_bundle(folder, "coarse", COARSE, "", 0)
    peaks = []
    for part in (hours / 12, hours):
        given = write_input(folder / f"input-{part:g}", [part * 3600])
        _, report = run(bundle, given, folder / f"out-{part:g}")
        peaks.append(float(report.get("peak_own_bytes") or report["peak_ram_bytes"]))  # type: ignore
    arrays = hours * 3600 / 5 * 8 * 41 * 4
    print(f"peak with {hours:g} h / with {hours / 12:g} h: {peaks[1] / peaks[0]:.3f} "
          f"({(peaks[1] - peaks[0]) / 1e6:+.0f} MB, {arrays / 1e6:.0f} MB of them stored arrays)")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=int, default=600)
    parser.add_argument("--hours", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="efficientnet_b0", help="a timm model")
    parser.add_argument("--quick", action="store_true", help="24 recordings, 1 round, 1 hour")
    parser.add_argument("--alone", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.alone:
        print(json.dumps(alone(*given.alone)))
        return
    if given.quick:
        given.recordings = 24
        given.rounds = 1
        given.hours = 1.0
    print(describe_machine("torch", "onnxruntime", "soundfile"))
    print(f"{given.recordings} recordings of a minute, three nets {given.model}, rounds: {given.rounds}")
    with tempfile.TemporaryDirectory() as place:
        compare(Path(place), given.recordings, given.rounds, given.model)
        watch_memory(Path(place) / "long", given.hours)


if __name__ == "__main__":
    main()
