"""A large pretrained graph: the engine's own way over windows against a plain ONNX Runtime loop.

The graph is made on the spot, of the shape of a published bird classifier: 5 s at 32 kHz in, spectrogram,
spatial embedding, embedding and 14,795 logits out, about 100 MB. Its weights are random, as only its work
counts.
Both sides get the same windows, cut and in memory, and the same number of threads. The peer is what everybody
writes: one session with its defaults but the number of threads, one window per call.

`python -m benchmarks.graphs --threads 2`
"""
from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

from benchmarks.rounds import describe_machine, median, race, ratio

import numpy as np  # isort: skip
import onnxruntime  # isort: skip
import soundfile  # isort: skip
import torch  # isort: skip
from onnx import helper  # isort: skip

from kernel.engine import loop
from kernel.engine.cpu import CpuSchedule
from kernel.engine.graph_ways import GraphWays
from kernel.engine.heartbeat import Heartbeat
from kernel.scores.submission import read_sample
from tests.helpers import graphs
from tests.helpers.orders import make_order

RATE, SAMPLES, LABELS, EMBEDDING = 32_000, 160_000, 14_795, 1536
CHANNELS = (1, 32, 64, 128, 256, EMBEDDING)  # of the five convolutions over the spectrogram
RECORDING_WINDOWS = 12  # windows of 5 s in a recording of a minute


def bird_graph() -> bytes:
    """A wave [batch, 160000] -> "embedding", "spatial_embedding", "spectrogram", "label"."""
    node = helper.make_node
    nodes = [
        node("Unsqueeze", ["inputs", "one"], ["wave"]),
        node("Conv", ["wave", "frames"], ["bands"], strides=[320], pads=[160, 160], kernel_shape=[640]),
        node("Abs", ["bands"], ["power"]),
        node("Transpose", ["power"], ["spectrogram"], perm=[0, 2, 1]),
        node("Unsqueeze", ["spectrogram", "one"], ["x0"]),
    ]
    weights = {"one": np.array([1], np.int64), "frames": graphs.draw(128, 1, 640)}
    for i, (few, many) in enumerate(zip(CHANNELS[:-1], CHANNELS[1:], strict=True)):
        weights[f"c{i}"] = graphs.draw(many, few, 3, 3, seed=i) / np.float32(np.sqrt(few))
        nodes += [node("Conv", [f"x{i}", f"c{i}"], [f"y{i}"], strides=[2, 2], pads=[1, 1, 1, 1]),
                  node("Relu", [f"y{i}"], [f"x{i + 1}"])]
    weights["w"], weights["b"] = graphs.draw(EMBEDDING, LABELS), graphs.draw(LABELS)
    last = f"x{len(CHANNELS) - 1}"
    nodes += [node("Transpose", [last], ["spatial_embedding"], perm=[0, 2, 3, 1]),
              node("ReduceMean", [last], ["embedding"], axes=[2, 3], keepdims=0),
              node("Gemm", ["embedding", "w", "b"], ["label"])]
    outputs = {"embedding": [EMBEDDING], "spatial_embedding": [16, 4, EMBEDDING], "spectrogram": [500, 128],
               "label": [LABELS]}
    return graphs.model(nodes, [graphs.port("inputs", ["batch", SAMPLES])],
                        [graphs.port(name, ["batch", *axes]) for name, axes in outputs.items()], **weights)


def make_place(where: Path, recordings: int, graph: bytes) -> None:
    """A bundle of the graph, and recordings of a minute whose windows are the rows."""
    classes = [f"c{i}" for i in range(LABELS)]
    graphs.build(where, graph, 'output = "label"\n[windows]\nseconds = 5.0\n', classes, RATE)
    folder = where / "in" / "test"
    folder.mkdir(parents=True)
    ids = []
    for n in range(recordings):
        wave = 0.1 * np.random.default_rng(n).standard_normal(SAMPLES * RECORDING_WINDOWS)
        soundfile.write(folder / f"r{n}.wav", wave, RATE, subtype="PCM_16")
        ids += [f"r{n}_{5 * (i + 1)}" for i in range(RECORDING_WINDOWS)]
    rows = [",".join(["row_id", *classes]), *(",".join([i, *["0"] * LABELS]) for i in ids)]
    (where / "in" / "sample_submission.csv").write_text("\n".join(rows) + "\n")
    assert len(read_sample(where / "in" / "sample_submission.csv").ids) == len(ids)


def compare(where: Path, graph: bytes, threads: int, rounds: int, backend: str) -> None:
    """Print ms per window of both ways, and how far their logits are apart."""
    state = where / f"state-{backend}"
    state.mkdir()
    order = make_order(where / "in", where / "out" / "bundle", state, device="cpu", backend=backend)
    order = replace(order, limits=replace(order.limits, cores=threads))
    with mock.patch("signal.signal"):
        engine = loop.Engine(order, Heartbeat(state / "heartbeat.json"))
    run = engine.run.nets["m.0"]
    assert run.recipe is not None
    todo = run.missing()
    feed, cores = engine.run.feed, engine.run.cores
    feed.load(run.recipe, todo, lambda: False)
    ways = GraphWays(bundle=engine.run.bundle, feed=feed, cores=cores, runtimes=state / "r", backend=backend)
    net = ways.open(run, run.recipe, todo, lambda: False)
    fe = next(iter(run.recipe.stages.values())).fe
    windows = [np.ascontiguousarray(feed.store.get(fe, run.rows.all[i]).reshape(1, -1)) for i in todo]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def plain() -> list[np.ndarray]:
        return [session.run(["label"], {"inputs": window})[0] for window in windows]

    def ours() -> None:
        for _ in CpuSchedule(run, net, cores, feed, lambda: False).predict(todo):
            pass

    times = race({"plain": plain, "ours": ours}, rounds)
    want = 1 / (1 + np.exp(-np.concatenate(plain()).astype(np.float64)))
    apart = np.abs(engine.run.board.get("m.0")[todo] - want).max()
    logits = net.runner({"x": torch.from_numpy(windows[0].copy())[:, None, None]})
    logits_apart = np.abs(logits - session.run(["label"], {"inputs": windows[0]})[0]).max()
    per = 1000 / len(windows)
    wall = 1 / ratio(times["plain"], times["ours"])
    print(f"{net.runner.path}: {per * median(times['ours']):.1f} ms a window, plain loop "
          f"{per * median(times['plain']):.1f} ms; ours / plain {wall:.3f} "
          f"(median of {rounds} rounds of {len(windows)} windows, {threads} threads)")
    print(f"  CPU seconds: ours / plain {1 / ratio(times['plain'], times['ours'], 1):.3f}; scores differ by "
          f"{apart:.1e}, logits by {logits_apart:.1e}; {'; '.join(run.notes) or 'no notes'}")
    feed.store.close()


def main(say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="of both ways (default: 2)")
    parser.add_argument("--recordings", type=int, default=2, help="of a minute each (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved (default: 5)")
    parser.add_argument("--backends", nargs="+", default=["onnxruntime", "auto"],
                        help="of the kernel (default: onnxruntime auto)")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    say(describe_machine("onnxruntime", "numpy", "torch"))
    graph = bird_graph()
    say(f"graph of {len(graph) / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory(prefix="hourglass-graphs-") as folder:
        where = Path(folder)
        make_place(where, chosen.recordings, graph)
        for backend in chosen.backends:
            compare(where, graph, chosen.threads, chosen.rounds, backend)


if __name__ == "__main__":
    main()
