"""Length groups give every row what it gets alone, for maskable families in padded batches, for the others in
equal ones.
"""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kernel import models, spec
from kernel.engine import gpu
from kernel.engine.gpu import Answered, BatchedNet, Block, open_block
from kernel.errors import ClipEmpty, ClipError, SpecError
from kernel.inference.backends import Inputs, Runner, Sent, call_net
from kernel.inference.devices import Device
from kernel.inference.member import LoadedNet, load_net, predict_alone, row_inputs
from kernel.inference.recipe import build_recipe
from kernel.models import FAMILIES
from kernel.sound.decode import Clip
from kernel.sound.rows import Row

CPU = Device(name="cpu", about="test")
FREE = [pytest.param(name, dict(family.tiny), id=name) for name, family in FAMILIES.items()
        # Two inputs; a waveform: tests of their own
        if not family.stacker and name not in ("statistics_cnn", "envnet_v2")]


class Stored:
    """A store of seeded noise f32[channels, bins, frames] per row; a row of 0 frames is broken."""

    def __init__(self, frames: dict[str, int], channels: int = 1, bins: int = 128):
        self.arrays = {id: np.random.default_rng(t).standard_normal((channels, bins, t)).astype(np.float32)
                       for id, t in frames.items()}

    def get(self, fe: object, row: Row) -> np.ndarray:
        if self.arrays[row.id].shape[-1] == 0:
            raise ClipEmpty(f"{row.id}: no samples")
        return self.arrays[row.id]


def build_net(name: str, params: dict[str, Any], view: dict[str, Any] | None = None) -> LoadedNet:
    """A tiny net behind a front end that stores what it takes, on the CPU."""
    torch.manual_seed(0)
    try:
        module = models.build(name, params, 3).eval()
    except SpecError as error:
        if "not installed" in str(error):
            pytest.skip("timm is not installed")
        raise
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
    steps = ["repeat"] if module.channels > 1 else []
    member = spec.load(spec.Member, {
        "name": "m", "family": name, "params": params, "frontend": "f", "view": view or {"kind": "full"},
        "finish": steps}, "test")
    ensemble = spec.Ensemble(name="e", classes=("a", "b", "c"), members=(member,),
                             frontends={"f": {"preset": "argus", "mels": module.bins or 128}})
    return load_net(build_recipe(ensemble, member), module.state_dict(), 3, CPU, spec.Cost())


def rows_of(frames: dict[str, int]) -> list[Row]:
    return [Row(id=id, clip=Clip(id=id)) for id in frames]


class Books:
    """What the forwards of a test computed, in cells."""

    def __init__(self) -> None:
        self.batches = 0
        self.cells = 0
        self.padded = 0

    def count(self, width: int, cells: int, padded: int) -> None:
        self.batches += 1
        self.cells += cells
        self.padded += padded


def run_groups(net: LoadedNet, store: Any, frames: dict[str, int], cells: int = 1 << 20,
               books: Books | None = None) -> dict[str, np.ndarray]:
    """Row -> probabilities, all rows in one block."""
    lost: list[str] = []
    block = open_block(net, store, rows_of(frames), lambda row, error: lost.append(row.id))
    batched = BatchedNet(net, (books or Books()).count, lambda net: cells)
    done = [answer for part in batched.predict(iter([block])) for answer in part.answers]
    assert lost == [id for id, t in frames.items() if t == 0]
    return {row.id: probs for row, probs in done}


def predict(net: LoadedNet, blocks: Iterator[Block]) -> Generator[Answered]:
    """The net's answers block by block."""
    return BatchedNet(net, Books().count).predict(blocks)


def lengths_of(net: LoadedNet) -> dict[str, int]:
    """Some near, some equal, some shorter than the net takes."""
    most = net.module.max_frames or 10**9
    least = net.module.min_frames
    draw = np.random.default_rng(0).integers(max(1, least - 8), least + 120, 14)
    return {f"r{i}": int(min(t, most)) for i, t in enumerate([*draw, *draw[:3], least])}


@pytest.mark.parametrize(("name", "params"), FREE)
def test_groups_give_what_each_row_gets_alone(name: str, params: dict[str, Any]) -> None:
    net = build_net(name, params)
    frames = {**lengths_of(net), "broken": 0}
    store = Stored(frames, bins=net.module.bins or 128)
    books = Books()
    found = run_groups(net, store, frames, books=books)
    for row in rows_of(frames)[:-1]:
        np.testing.assert_allclose(found[row.id], predict_alone(net, store, row), atol=1e-5)
    assert net.module.maskable or books.padded == 0
    assert set(found) == set(frames) - {"broken"}


def test_tiles_of_many_rows_share_batches() -> None:
    net = build_net("simple_cnn", {"base": 4, "channels": 1}, {"kind": "tiles", "frames": 64, "step": 32})
    frames = {f"r{i}": 40 + 37 * i for i in range(12)}
    store = Stored(frames)
    books = Books()
    found = run_groups(net, store, frames, cells=64 * 20, books=books)
    assert books.batches < sum(len(row_inputs(net, store, row)["x"]) for row in rows_of(frames)) / 10
    for row in rows_of(frames):
        np.testing.assert_allclose(found[row.id], predict_alone(net, store, row), atol=1e-5)


def test_padding_stays_under_two_percent_on_real_lengths() -> None:
    """FAT2019 kind of lengths in blocks as the engine cuts them: log-normal, median 5 s, 0.3 to 30 s, 64
    frames a second.
    """
    seconds = np.clip(np.random.default_rng(1).lognormal(np.log(5.0), 0.9, 400), 0.3, 30.0)
    frames = {f"r{i}": max(8, int(64 * s) // 8) for i, s in enumerate(np.sort(seconds))}
    net = build_net("simple_cnn", {"base": 1, "channels": 1})
    net.module.min_frames = 1
    net.runner.run = lambda x, f: torch.zeros(len(x["x"]), 3)
    books = Books()
    for start in range(0, 400, 100):
        part = dict(list(frames.items())[start:start + 100])
        run_groups(net, Stored(part), part, books=books)
    assert 0 < books.padded <= 0.02 * books.cells
    assert books.batches < 400 / 2.5


def counting(net: LoadedNet, fail: Callable[[torch.Tensor], bool]) -> list[tuple[int, int]]:
    """Makes the runner fail for want of memory where `fail` says so; gives the list of shapes it was asked
    for.
    """
    module, asked = net.module, list[tuple[int, int]]()

    def run(inputs: Inputs, lengths: torch.Tensor | None) -> torch.Tensor:
        x = inputs["x"]
        asked.append((len(x), x.shape[-1]))
        if fail(x):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call_net(module, inputs, lengths)

    net.runner = Runner(device=CPU, path="test", run=run, exact=run)
    return asked


def test_what_ran_out_of_memory_bounds_later_batches() -> None:
    net = build_net("simple_cnn", {"base": 4, "channels": 1})
    frames = {f"r{i}": 100 for i in range(16)}
    asked = counting(net, lambda x: len(x) * x.shape[-1] > 450)
    first = run_groups(net, Stored(frames), frames, gpu.cells_per_batch(net))
    assert net.fitting_cells == 400 and max(n for n, _ in asked) == 16
    asked.clear()
    second = run_groups(net, Stored(frames), frames, gpu.cells_per_batch(net))
    assert {n for n, _ in asked} == {4} and all(np.allclose(first[k], second[k], atol=1e-6) for k in frames)


def test_batches_are_bounded_by_input_and_by_the_memory_of_the_device() -> None:
    net = build_net("simple_cnn", {"base": 4, "channels": 1})
    assert gpu.cells_per_batch(net) == gpu.VALUES_PER_BATCH // 128
    net.runner.device = Device(name="cpu", about="", memory_bytes=10**9)
    net.cost = spec.Cost(bytes_a=0, bytes_b=1e6)
    assert gpu.cells_per_batch(net) == 500


def watch(
    net: LoadedNet, run: Callable[[], None], send: Callable[[int], None] = lambda passes: None
) -> list[int]:
    """`run` is called before each batch, `send` before it is sent; gives the passes of each batch that was
    sent.
    """
    module, sent = net.module, list[int]()

    class Watched(Runner):
        def send(self, inputs: Inputs, frames: torch.Tensor | None = None) -> Sent:
            send(len(inputs["x"]))
            sent.append(len(inputs["x"]))
            return super().send(inputs, frames)

    def answer(inputs: Inputs, lengths: torch.Tensor | None) -> torch.Tensor:
        run()
        return call_net(module, inputs, lengths)

    net.runner = Watched(device=CPU, path="test", run=answer, exact=answer)
    return sent


def until(true: Callable[[], bool]) -> None:
    """Waits for another thread, 20 s at most."""
    limit = time.monotonic() + 20
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_the_next_batches_are_sent_while_one_runs_across_blocks() -> None:
    """A runner that waits for two more batches, one of them of the next block, would wait for ever if nothing
    were sent.
    """
    net = build_net("simple_cnn", {"base": 4, "channels": 1})
    frames = {"a": 50, "b": 80, "c": 120, "d": 200}
    store, ran = Stored(frames), list[int]()

    def run() -> None:
        ran.append(1)
        until(lambda: len(sent) >= min(4, len(ran) + 2))
        time.sleep(0.02)
        # And one more may have begun, no more: the device has an end
        assert len(sent) <= len(ran) + 1 + gpu.SENT_AHEAD

    sent = watch(net, run)
    parts = rows_of({"a": 50, "b": 80}), rows_of({"c": 120, "d": 200})
    blocks = (open_block(net, store, rows, print) for rows in parts)
    found = {row.id: p for done in predict(net, blocks) for row, p in done.answers}
    for row in rows_of(frames):
        np.testing.assert_allclose(found[row.id], predict_alone(net, store, row), atol=1e-5)


def test_only_the_rows_on_the_device_are_in_flight() -> None:
    net = build_net("simple_cnn", {"base": 4, "channels": 1})
    frames = {f"r{i}": 50 + 40 * i for i in range(6)}
    store, flying, seen = Stored(frames), list[str](), list[tuple[str, ...]]()

    @contextmanager
    def flight(rows: Sequence[Row]) -> Iterator[None]:
        flying.extend(row.id for row in rows)
        yield
        flying.clear()

    watch(net, lambda: seen.append(tuple(flying)))
    parts = [rows_of({id: frames[id] for id in ids}) for ids in (("r0", "r1"), ("r2",), ("r3", "r4", "r5"))]
    blocks = (open_block(net, store, rows, print) for rows in parts)
    for _ in BatchedNet(net, Books().count).predict(blocks, flight):
        assert not flying
    assert list(dict.fromkeys(seen)) == [("r0", "r1"), ("r2",), ("r3", "r4", "r5")]


def test_leaving_early_ends_the_thread_that_sends() -> None:
    net = build_net("simple_cnn", {"base": 4, "channels": 1})
    store, opened = Stored({f"r{i}": 60 for i in range(50)}), list[str]()

    def blocks() -> Iterator[Block]:
        for row in rows_of(dict.fromkeys(store.arrays, 60)):
            opened.append(row.id)
            yield open_block(net, store, [row], print)

    done = predict(net, blocks())
    next(done)
    done.close()
    assert len(opened) <= 2 + gpu.SENT_AHEAD + 1
    assert not [t for t in threading.enumerate() if t.name.startswith("inputs")]


def test_what_breaks_while_blocks_are_made_ready_is_raised_where_they_are_used() -> None:
    net = build_net("simple_cnn", {"base": 4, "channels": 1})

    def blocks() -> Iterator[Block]:
        yield open_block(net, Stored({"a": 60}), rows_of({"a": 60}), print)
        raise OSError("the disk went away")

    done = predict(net, blocks())
    assert [row.id for row, _ in next(done).answers] == ["a"]
    with pytest.raises(OSError, match="went away"):
        next(done)


def test_a_batch_that_does_not_reach_the_device_is_halved() -> None:
    net = build_net("simple_cnn", {"base": 4, "channels": 1})
    frames = {f"r{i}": 100 for i in range(8)}

    def send(passes: int) -> None:
        if passes > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    watch(net, lambda: None, send)
    store = Stored(frames)
    found = run_groups(net, store, frames)
    for row in rows_of(frames):
        np.testing.assert_allclose(found[row.id], predict_alone(net, store, row), atol=1e-5)
    assert any("halved" in note for note in net.runner.notes)


def test_errors_other_than_memory_are_not_hidden() -> None:
    net = build_net("simple_cnn", {"base": 4, "channels": 1})

    def run(inputs: Inputs, lengths: torch.Tensor | None) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    net.runner = Runner(device=CPU, path="test", run=run, exact=run)
    with pytest.raises(RuntimeError, match="illegal"):
        run_groups(net, Stored({"a": 50}), {"a": 50})
    assert issubclass(ClipEmpty, ClipError)


def test_no_rows_give_nothing() -> None:
    assert run_groups(build_net("simple_cnn", {"base": 4, "channels": 1}), Stored({}), {}) == {}
