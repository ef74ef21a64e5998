"""Which runtime runs a graph: all are tried on the first rows, what disagrees or fails is out, the choice is
kept before the first score, a restart obeys it, and a pin goes before it.
"""
from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch

from kernel.engine import graph_ways, loop
from kernel.engine.heartbeat import Heartbeat
from kernel.inference import graph_net
from kernel.inference.onnx import RUNTIMES
from tests.helpers import graphs
from tests.helpers.orders import make_order

pytest.importorskip("openvino")
RATE = 8000
SECONDS = (0.3, 1.0, 1.7, 2.4, 3.1, 4.0)
WAVES = [np.round(8000 * graphs.draw(int(RATE * s), seed=i)) / 32768 for i, s in enumerate(SECONDS)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips, and a bundle of one graph that hears a second at a time."""
    where = tmp_path_factory.mktemp("graphs")
    graphs.build(where, graphs.wave_graph(), 'output = "label"')
    (where / "in" / "test").mkdir(parents=True)
    names = [f"c{i}.wav" for i in range(len(WAVES))]
    for name, wave in zip(names, WAVES, strict=True):
        soundfile.write(where / "in" / "test" / name, wave, RATE, subtype="PCM_16")
    with open(where / "in" / "sample_submission.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["fname", "bark", "meow", "hiss"])
        writer.writerows([name, 0, 0, 0] for name in names)
    return where


@contextmanager
def engine(place: Path, state: Path, backend: str = "auto") -> Iterator[loop.Engine]:
    state.mkdir(exist_ok=True)
    bundle = place / "out" / "bundle"
    order = make_order(place / "in", bundle, state, device="cpu", backend=backend)
    threads = torch.get_num_threads()
    with mock.patch("signal.signal"):
        opened = loop.Engine(order, Heartbeat(state / "heartbeat.json"))
        try:
            yield opened
        finally:
            opened.run.feed.store.close()
            torch.set_num_threads(threads)


def run(place: Path, state: Path, backend: str = "auto") -> tuple[Any, np.ndarray]:
    """(the net's run, its scores) of a whole run."""
    with engine(place, state, backend) as opened:
        opened.execute()
        return opened.run.nets["m.0"], opened.run.board.get("m.0")


def expected() -> np.ndarray:
    """f64[6, 3], by numpy."""
    rows = []
    for wave in WAVES:
        missing = max(0, RATE - len(wave))
        wave = np.pad(wave, (missing // 2, missing - missing // 2))
        count = -(-(len(wave) - RATE) // RATE) + 1
        starts = np.linspace(0, len(wave) - RATE, count).round().astype(int)
        logits = [graphs.run_wave_graph(wave[s : s + RATE])[1] for s in starts]
        rows.append(np.mean(1 / (1 + np.exp(-np.array(logits))), axis=0))
    return np.array(rows)


@contextmanager
def opened_as(change: Callable[[str, graph_net.GraphNet], None]) -> Iterator[list[str]]:
    """The runtimes that were opened; `change` may spoil a graph that they run."""
    names: list[str] = []
    open_graph = graph_net.open_graph

    def watch(data: bytes, name: str, *rest: Any) -> graph_net.GraphNet:
        net = open_graph(data, name, *rest)
        names.append(name)
        change(name, net)
        return net

    with mock.patch.object(graph_net, "open_graph", watch):
        yield names


def as_it_is(name: str, net: graph_net.GraphNet) -> None:
    return None


def test_all_runtimes_are_tried_and_one_is_kept_before_the_first_score(place: Path, tmp_path: Path) -> None:
    with opened_as(as_it_is) as names, engine(place, tmp_path / "s") as opened:
        seen: list[str | None] = []
        board, journal = opened.run.board, opened.run.journal
        add = board.add

        def check(net_id: str, *given: Any) -> None:
            seen.append(journal.choice(net_id))
            add(net_id, *given)

        with mock.patch.object(board, "add", check):
            opened.execute()
        net = opened.run.nets["m.0"]
        assert np.allclose(board.get("m.0"), expected(), atol=1e-6)
    assert tuple(names) == RUNTIMES and set(seen) == {net.path} and net.path.split()[0] in RUNTIMES
    assert any(f"{net.path.split()[0]} is used: onnxruntime" in note for note in net.notes)
    (tmp_path / "s" / "scores" / "m.0.npy").unlink()
    with opened_as(as_it_is) as names:
        again, scores = run(place, tmp_path / "s")
    assert names == [net.path.split()[0]] and again.path == net.path
    assert np.allclose(scores, expected(), atol=1e-6)


@pytest.mark.parametrize("backend", RUNTIMES)
def test_a_pinned_runtime_is_the_only_one(place: Path, tmp_path: Path, backend: str) -> None:
    with opened_as(as_it_is) as names:
        net, scores = run(place, tmp_path / "s", backend)
    assert names == [backend] and net.path == f"{backend} cpu"
    assert np.allclose(scores, expected(), atol=1e-6)


def test_a_runtime_that_gives_other_numbers_is_not_used(place: Path, tmp_path: Path) -> None:
    def spoil(name: str, net: graph_net.GraphNet) -> None:
        session = net._run
        if name == "openvino":
            net._run = lambda feed, places: [1.01 * answer for answer in session(feed, places)]

    with opened_as(spoil), mock.patch.object(graph_ways, "FASTER", 1e9):
        net, scores = run(place, tmp_path / "s")
    assert net.path == "onnxruntime cpu" and any("openvino differs" in note for note in net.notes)
    assert np.allclose(scores, expected(), atol=1e-6)


def test_a_runtime_that_fails_on_the_first_rows_leaves_the_other(place: Path, tmp_path: Path) -> None:
    def spoil(name: str, net: graph_net.GraphNet) -> None:
        def fail(feed: Any, places: Any) -> Any:
            raise RuntimeError("no kernel for this")

        if name == "onnxruntime":
            net._run = fail

    with opened_as(spoil):
        net, scores = run(place, tmp_path / "s")
    assert net.path == "openvino cpu" and any("onnxruntime: fails on the first" in n for n in net.notes)
    assert np.allclose(scores, expected(), atol=1e-6)


def test_the_faster_one_of_those_that_agree_is_taken(place: Path, tmp_path: Path) -> None:
    seconds = {"onnxruntime": 2.0, "openvino": 1.0}

    def told(self: Any, run: Any, ways: Any, passes: Any) -> None:
        for way in ways:
            way.seconds = seconds[way.name]

    with mock.patch.object(graph_ways.GraphWays, "_time", told):
        assert run(place, tmp_path / "s")[0].path == "openvino cpu"
        seconds["openvino"] = 1.95  # no faster to speak of
        assert run(place, tmp_path / "t")[0].path == "onnxruntime cpu"


def test_rows_run_side_by_side_and_memory_is_in_the_books(place: Path, tmp_path: Path) -> None:
    with engine(place, tmp_path / "s", "onnxruntime") as opened:
        cost = opened.run.manifest.costs["m"]
        opened.execute()
        assert cost.bytes_b > 0 and cost.open_bytes > 0
        assert opened.run.nets["m.0"].path == "onnxruntime cpu"


def test_where_no_runtime_is_there_the_net_fails_and_says_why(place: Path, tmp_path: Path) -> None:
    with mock.patch.dict("sys.modules", {"onnxruntime": None, "openvino": None}):
        net, _ = run(place, tmp_path / "s")
    assert net.failed and "onnxruntime: not installed" in net.failed and "--wheels openvino" in net.failed


def test_a_torch_net_that_was_to_run_as_a_graph_is_named(
    tmp_path: Path, tiny_bundle: Path, place: Path
) -> None:
    (tmp_path / "s").mkdir()
    order = make_order(place / "in", tiny_bundle / "bundle", tmp_path / "s", device="cpu", backend="openvino")
    with mock.patch("signal.signal"):
        opened = loop.Engine(order, Heartbeat(tmp_path / "s" / "heartbeat.json"))
        opened.execute()
    faults = [fault for fault in opened.run.recorder.faults if fault.code == "BackendNotUsed"]
    assert {fault.where for fault in faults} == {"plain.0", "plain.1", "tiled.0"}
    assert "build with --export onnx" in faults[0].message
