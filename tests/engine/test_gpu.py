"""Length groups give every row what it gets alone, for maskable families in padded batches, for the others in
equal ones.
"""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from kernel import models, spec
from kernel.engine import batches, gpu
from kernel.engine.batches import Answered, BatchedNets, Unsent
from kernel.engine.seats import seat_of
from kernel.errors import ClipEmpty, ClipError, DeviceError, SpecError
from kernel.inference.backends import Inputs, Runner, call_net
from kernel.inference.devices import Device
from kernel.inference.member import LoadedNet, load_net, predict_alone, row_inputs
from kernel.inference.recipe import build_recipe
from kernel.inference.staging import Lane, StagedBlock
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


def build_net(
    name: str,
    params: dict[str, Any],
    view: dict[str, Any] | None = None,
    finish: Sequence[Any] = (),
    **more: Any,
) -> LoadedNet:
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
    steps: list[Any] = list(finish) or (["repeat"] if module.channels > 1 else [])
    member = spec.load(spec.Member, {
        "name": "m", "family": name, "params": params, "frontend": "f", "view": view or {"kind": "full"},
        "finish": steps, **more}, "test")
    ensemble = spec.Ensemble(name="e", classes=("a", "b", "c"), members=(member,),
                             windows=spec.Windows() if "frames" in more else None,
                             frontends={"f": {"preset": "ex4_mel" if "frames" in more else "argus",
                                              "mels": module.bins or 128}})
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


def open_block(
    net: LoadedNet,
    store: Any,
    rows: Sequence[Row],
    lost: list[str],
    lane: Lane | None = None,
    cells: int | None = None,
) -> StagedBlock | None:
    """A block of these rows; the ids of broken ones go to `lost`."""
    return gpu.open_block(
        net, store, rows, lambda row, error: lost.append(row.id), lane or Lane(CPU), cells
    )


def told(answers: Iterator[Answered], place: int = 0) -> dict[str, np.ndarray]:
    """Row -> probabilities of one net."""
    return {
        row.id: probs
        for done in answers if place in done.probs
        for row, probs in zip(done.rows, done.probs[place], strict=True)
    }


def run_groups(net: LoadedNet, store: Any, frames: dict[str, int], cells: int = 1 << 20,
               books: Books | None = None) -> dict[str, np.ndarray]:
    """Row -> probabilities, all rows in one block."""
    lost: list[str] = []
    block = open_block(net, store, rows_of(frames), lost, None, cells)
    found = told(predict([net], iter([block] if block else []), store, books=books))
    assert lost == [id for id, t in frames.items() if t == 0]
    return found


def predict(
    nets: Sequence[LoadedNet],
    blocks: Iterator[Any],
    store: Any = None,
    books: Books | None = None,
    **more: Any,
) -> Generator[Answered]:
    """The nets' answers block by block."""
    seats = [seat_of(net, (books or Books()).count) for net in nets]
    batched = BatchedNets(seats, Lane(CPU), lambda rows: open_block(nets[0], store, rows, []))
    return batched.predict(blocks, **more)


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


class Loud(Lane):
    """A lane that tells of every block that is sent over it."""

    def __init__(self, send: Callable[[], None] = lambda: None) -> None:
        super().__init__(CPU)
        self.sent = 0
        self._send = send

    def send(self, values: Any) -> Any:
        self._send()
        self.sent += 1
        return super().send(values)


def watch(net: LoadedNet, run: Callable[[], None]) -> None:
    """`run` is called before each batch."""
    module = net.module

    def answer(inputs: Inputs, lengths: torch.Tensor | None) -> torch.Tensor:
        run()
        return call_net(module, inputs, lengths)

    net.runner = Runner(device=CPU, path="test", run=answer, exact=answer)


def until(true: Callable[[], bool]) -> None:
    """Waits for another thread, 20 s at most."""
    limit = time.monotonic() + 20
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_the_next_blocks_are_sent_while_one_runs() -> None:
    """A runner that waits for two more blocks would wait for ever if nothing were sent."""
    net = build_net("simple_cnn", {"base": 4, "channels": 1})
    frames = {f"r{i}": 50 + 10 * (i // 2) for i in range(12)}
    store, ran, lane = Stored(frames), list[int](), Loud()

    def run() -> None:
        ran.append(1)
        until(lambda: lane.sent >= min(6, len(ran) + 2))
        time.sleep(0.02)
        # The device has an end
        assert lane.sent <= len(ran) + 1 + batches.SENT_AHEAD

    watch(net, run)
    rows = rows_of(frames)
    blocks = (open_block(net, store, rows[i : i + 2], [], lane) for i in range(0, 12, 2))
    found = told(predict([net], blocks))
    assert len(ran) == lane.sent == 6
    for row in rows:
        np.testing.assert_allclose(found[row.id], predict_alone(net, store, row), atol=1e-5)


def test_only_the_rows_on_the_device_are_in_flight() -> None:
    """A block is launched before the answers of the one before are read: both are in flight then."""
    net = build_net("simple_cnn", {"base": 4, "channels": 1})
    frames = {f"r{i}": 50 + 40 * i for i in range(8)}
    store, flying, seen = Stored(frames), list[str](), list[tuple[str, ...]]()

    @contextmanager
    def flight(rows: Sequence[Row]) -> Iterator[None]:
        flying.extend(row.id for row in rows)
        yield
        flying.clear()

    watch(net, lambda: seen.append(tuple(flying)))
    ids = (("r0", "r1"), ("r2",), ("r3", "r4", "r5"), ("r6", "r7"))
    opened = [open_block(net, store, rows_of({id: frames[id] for id in part}), []) for part in ids]
    for done in predict([net], iter(opened), flight=flight):
        assert not {row.id for row in done.rows} & set(flying)
    assert not flying
    launched = list(dict.fromkeys(seen))
    assert launched[:2] == [("r0", "r1"), ("r2",)]  # a row alone is alone
    assert set(launched[2:]) <= {("r3", "r4", "r5"), ("r3", "r4", "r5", "r6", "r7"), ("r6", "r7")}


def test_leaving_early_ends_the_thread_that_sends() -> None:
    net = build_net("simple_cnn", {"base": 4, "channels": 1})
    store, opened = Stored({f"r{i}": 60 for i in range(50)}), list[str]()

    def blocks() -> Iterator[Any]:
        for row in rows_of(dict.fromkeys(store.arrays, 60)):
            opened.append(row.id)
            yield open_block(net, store, [row], [])

    done = predict([net], blocks())
    next(done)
    done.close()
    assert len(opened) <= 2 + batches.SENT_AHEAD + 1
    assert not [t for t in threading.enumerate() if t.name.startswith("inputs")]


def test_what_breaks_while_blocks_are_made_ready_is_raised_where_they_are_used() -> None:
    net = build_net("simple_cnn", {"base": 4, "channels": 1})

    def blocks() -> Iterator[Any]:
        yield open_block(net, Stored({"a": 60}), rows_of({"a": 60}), [])
        raise OSError("the disk went away")

    done = predict([net], blocks())
    assert [row.id for row in next(done).rows] == ["a"]
    with pytest.raises(OSError, match="went away"):
        next(done)


def test_rows_that_do_not_reach_the_device_are_sent_in_halves() -> None:
    net = build_net("simple_cnn", {"base": 4, "channels": 1})
    frames = {f"r{i}": 100 + i for i in range(8)}
    store, rows = Stored(frames), rows_of(frames)
    tried: list[int] = []

    def stage(some: Sequence[Row]) -> StagedBlock | None:
        tried.append(len(some))
        if len(some) > 2 or some[0].id == "r6":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return open_block(net, store, some, [])

    batched = BatchedNets([seat_of(net)], Lane(CPU), stage)
    found = told(batched.predict(iter([Unsent(rows=rows, error=torch.OutOfMemoryError("full"))])))
    assert tried == [4, 2, 2, 4, 2, 2, 1, 1] and set(found) == set(frames)
    for row in rows:
        if row.id == "r6":
            assert np.isnan(found["r6"]).all()
        else:
            np.testing.assert_allclose(found[row.id], predict_alone(net, store, row), atol=1e-5)
    assert any("halves" in note for note in net.runner.notes)


def test_no_engine_halves_a_batch_and_at_one_row_costs_the_net() -> None:
    net = build_net("simple_cnn", {"base": 4, "channels": 1})
    frames = {f"r{i}": 100 for i in range(8)}
    module = net.module

    def run(least: int) -> Callable[[Inputs, torch.Tensor | None], torch.Tensor]:
        def run_it(inputs: Inputs, lengths: torch.Tensor | None) -> torch.Tensor:
            if len(inputs["x"]) > least:
                raise RuntimeError("GET was unable to find an engine to execute this computation")
            return call_net(module, inputs, lengths)

        return run_it

    store = Stored(frames)
    net.runner = Runner(device=CPU, path="test", run=run(3), exact=run(3))
    found = run_groups(net, store, frames)
    for row in rows_of(frames):
        np.testing.assert_allclose(found[row.id], predict_alone(net, store, row), atol=1e-5)
    assert any("no engine" in note and "halved" in note for note in net.runner.notes)
    net.runner = Runner(device=CPU, path="test", run=run(0), exact=run(0))
    with pytest.raises(DeviceError, match="no way to compute one row"):
        run_groups(net, store, frames)


def test_folds_share_batches_and_one_that_fails_costs_itself() -> None:
    """Each batch is cut and finished once; the fold that can compute no row in the second has no answer."""
    view = {"kind": "tiles", "frames": 64, "step": 32}
    nets = [build_net("simple_cnn", {"base": 4, "channels": 1}, view) for _ in range(3)]
    for number, net in enumerate(nets):
        with torch.no_grad():
            for parameter in net.module.parameters():
                parameter.mul_(1 + 0.1 * number)
        watch(net, lambda: None)
    frames = {f"r{i}": 90 + 37 * i for i in range(12)}
    store, rows = Stored(frames), rows_of(frames)
    block = open_block(nets[0], store, rows, [], None, 64 * 20)
    assert block is not None and len(block.batches) > 2
    drawn: list[int] = []
    batches_run: list[int] = []

    def fail_second() -> None:
        batches_run.append(1)
        if len(batches_run) > 1:
            raise RuntimeError("GET was unable to find an engine to execute this computation")

    watch(nets[1], fail_second)
    failed: list[BaseException] = []
    seats = [seat_of(net, fail=failed.append) for net in nets]
    draw = StagedBlock.draw
    with mock.patch.object(StagedBlock, "draw", lambda self, *given: drawn.append(1) or draw(self, *given)):
        answered = list(BatchedNets(seats, Lane(CPU), print).predict(iter([block])))
    again = int(np.log2(block.batches[1][0].stop - block.batches[1][0].start))  # halved down to one row
    assert len(block.batches) <= len(drawn) <= len(block.batches) + again + 1
    assert len(failed) == 1 and "no way to compute one row" in str(failed[0])
    assert [set(done.probs) for done in answered] == [{0, 2}]
    for place in (0, 2):
        found = told(iter(answered), place)
        for row in rows:
            np.testing.assert_allclose(found[row.id], predict_alone(nets[place], store, row), atol=1e-5)


def test_the_first_fold_runs_while_the_next_is_still_being_opened() -> None:
    nets = [build_net("simple_cnn", {"base": 4, "channels": 1}) for _ in range(2)]
    frames = {f"r{i}": 60 + 9 * i for i in range(6)}
    store, rows = Stored(frames), rows_of(frames)
    first_ran = threading.Event()
    watch(nets[0], first_ran.set)
    seats = [seat_of(net) for net in nets]
    seats[1].opened = Future()

    def open_late() -> None:
        first_ran.wait(20)
        seats[1].opened.set_result(nets[1])

    thread = threading.Thread(target=open_late)
    thread.start()
    blocks = (open_block(nets[0], store, rows[i : i + 3], []) for i in (0, 3))
    answered = list(BatchedNets(seats, Lane(CPU), print).predict(blocks))
    thread.join()
    for place, net in enumerate(nets):
        found = told(iter(answered), place)
        for row in rows:
            np.testing.assert_allclose(found[row.id], predict_alone(net, store, row), atol=1e-5)


def test_rows_that_overflow_half_precision_run_again_after_their_block() -> None:
    net = build_net("simple_cnn", {"base": 4, "channels": 1})
    module = net.module
    frames = {f"r{i}": 60 + 9 * i for i in range(6)}
    store = Stored(frames)
    store.arrays["r3"][..., 5] = 50.0

    def fast(inputs: Inputs, lengths: torch.Tensor | None) -> torch.Tensor:
        out = call_net(module, inputs, lengths)
        return out.masked_fill((inputs["x"].amax((1, 2, 3)) > 40)[:, None], torch.inf)

    def exact(inputs: Inputs, lengths: torch.Tensor | None) -> torch.Tensor:
        return call_net(module, inputs, lengths)

    net.runner = Runner(device=CPU, path="fp16", run=fast, exact=exact, half=True, agreement=0.0)
    found = run_groups(net, store, frames)
    assert net.runner.reruns == 1 and net.runner.half
    net.runner.half = False
    for row in rows_of(frames):
        again = predict_alone(load_like(net, exact), store, row)
        np.testing.assert_allclose(found[row.id], again, atol=1e-5)


def load_like(net: LoadedNet, run: Any) -> LoadedNet:
    """The same net with another way to run it."""
    return replace(net, runner=Runner(device=CPU, path="exact", run=run, exact=run))


ODD = [ValueError("a bug of this net"), KeyboardInterrupt(), TypeError("no"), SystemExit(3)]


@pytest.mark.fault(
    row=73,
    injection="on a GPU, a net raises for one row of a batch that it shares with eight others",
    outcome="the batch is halved down to that row; the net gives it up and scores the others",
)
@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("half", [False, True])
def test_an_error_costs_the_row_that_it_is_raised_for(error: BaseException, half: bool) -> None:
    """Nine rows of two tiles and more in shared batches, of which one makes one of two nets fail."""
    view = {"kind": "tiles", "frames": 64, "step": 32}
    nets = [build_net("simple_cnn", {"base": 4, "channels": 1}, view) for _ in range(2)]
    frames = {f"r{i}": 70 + 30 * (i // 2) for i in range(9)}
    store, rows = Stored(frames), rows_of(frames)
    store.arrays["r4"][..., 60] = 50.0  # in both tiles over it
    whole = [{row.id: predict_alone(net, store, row) for row in rows} for net in nets]
    module = nets[0].module

    def run(inputs: Inputs, lengths: torch.Tensor | None) -> torch.Tensor:
        if (inputs["x"] > 40).any():
            raise error
        return call_net(module, inputs, lengths)

    nets[0].runner = Runner(device=CPU, path="fp16", run=run, exact=run, half=half, agreement=0.0)
    settled: list[tuple[str, BaseException]] = []
    seats = [
        seat_of(nets[0], settle=lambda row, given: settled.append((row.id, given))),
        seat_of(nets[1]),
    ]
    block = open_block(nets[0], store, rows, [])
    answered = list(BatchedNets(seats, Lane(CPU), print).predict(iter([block])))
    assert {id for id, _ in settled} == {"r4"} and all(given is error for _, given in settled)
    for place in (0, 1):
        found = told(iter(answered), place)
        for row in rows:
            if place == 0 and row.id == "r4":
                assert np.isnan(found["r4"]).all()
            else:
                np.testing.assert_allclose(found[row.id], whole[place][row.id], atol=1e-5)
    assert nets[0].fitting_cells is None and len(nets[0].runner.notes) <= 2
    assert not half or any("fp32 is used" in note for note in nets[0].runner.notes) or not isinstance(
        error, Exception
    )


def test_answers_that_do_not_go_with_their_inputs_are_no_silent_gap() -> None:
    net = build_net("simple_cnn", {"base": 4, "channels": 1})

    def run(inputs: Inputs, lengths: torch.Tensor | None) -> torch.Tensor:
        return torch.zeros(2, 3)

    net.runner = Runner(device=CPU, path="test", run=run, exact=run)
    frames = {f"r{i}": 50 for i in range(5)}
    store, settled = Stored(frames), list[str]()
    seat = seat_of(net, settle=lambda row, error: settled.append(f"{row.id} {error}"))
    block = open_block(net, store, rows_of(frames), [])
    done = told(BatchedNets([seat], Lane(CPU), print).predict(iter([block])))
    # Two rows for two inputs are believed
    assert settled == ["r2 the net gave [2, 3] for 1 inputs; give one row for each"]
    assert [id for id, probs in done.items() if np.isnan(probs).all()] == ["r2"]


def test_a_row_that_cannot_be_made_ready_costs_itself() -> None:
    """An error of a view or a front end's array: its block is made ready in halves."""
    net = build_net("simple_cnn", {"base": 4, "channels": 1})
    frames = {f"r{i}": 100 + i for i in range(8)}
    store, rows = Stored(frames), rows_of(frames)

    def stage(some: Sequence[Row]) -> StagedBlock | None:
        if any(row.id == "r6" for row in some):
            raise ValueError("a strange array")
        return open_block(net, store, some, [])

    settled: list[str] = []
    seat = seat_of(net, settle=lambda row, error: settled.append(f"{row.id} {error}"))
    batched = BatchedNets([seat], Lane(CPU), stage)
    found = told(batched.predict(iter([Unsent(rows=rows, error=ValueError("a strange array"))])))
    assert settled == ["r6 a strange array"] and np.isnan(found["r6"]).all()
    for row in rows:
        if row.id != "r6":
            np.testing.assert_allclose(found[row.id], predict_alone(net, store, row), atol=1e-5)


def test_nets_that_want_time_first_share_batches_of_one_length() -> None:
    finish = ["frequency_map", "time_first"]
    net = build_net("simple_cnn", {"base": 4, "channels": 2}, finish=finish)
    frames = {f"r{i}": 60 + 9 * (i // 3) for i in range(9)}
    store, books = Stored(frames), Books()
    found = run_groups(net, store, frames, books=books)
    assert books.batches == 3 and books.padded == 0
    for row in rows_of(frames):
        np.testing.assert_allclose(found[row.id], predict_alone(net, store, row), atol=1e-5)


def frames_of(net: LoadedNet) -> Callable[[Inputs, torch.Tensor | None], torch.Tensor]:
    """f32[B, T // 8, 3] instead of the net's answers."""
    def run(inputs: Inputs, lengths: torch.Tensor | None) -> torch.Tensor:
        assert lengths is None
        x = inputs["x"][:, 0]
        return torch.stack([x[:, i : i + 40].mean(1) for i in (0, 40, 80)], 2).unfold(1, 8, 8).mean(-1)

    return run


@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "none"])
@pytest.mark.parametrize("half", [False, True])
def test_nets_of_frames_answer_each_window_at_its_own_length(activation: str, half: bool) -> None:
    net = build_net(
        "simple_cnn", {"base": 4, "channels": 1}, finish=["standardise"], frames="average_max",
        activation=activation,
    )
    lengths = {f"r{i}": 64 + 8 * (i // 4) for i in range(12)}
    store, rows = Stored(lengths), rows_of(lengths)
    store.arrays = {id: np.roll(x, n, axis=1) for n, (id, x) in enumerate(store.arrays.items())}
    plain = frames_of(net)

    def run(inputs: Inputs, given: torch.Tensor | None) -> torch.Tensor:
        if len(inputs["x"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if any(torch.equal(x[0], poison) for x in inputs["x"]):
            raise ValueError("this one not")
        return plain(inputs, given)

    def fast(inputs: Inputs, given: torch.Tensor | None) -> torch.Tensor:
        out = run(inputs, given)
        out[0] = torch.inf
        return out

    net.runner = Runner(device=CPU, path="test", run=plain, exact=plain)
    whole = {row.id: predict_alone(net, store, row) for row in rows}
    poison = row_inputs(net, store, rows[5])["x"][0, 0]
    net.runner = Runner(device=CPU, path="test", run=run, exact=run)
    if half:
        net.runner = Runner(device=CPU, path="fp16", run=fast, exact=run, half=True, agreement=0.0)
    settled: list[str] = []
    seat = seat_of(net, settle=lambda row, error: settled.append(row.id))
    block = open_block(net, store, rows, [])
    found = told(BatchedNets([seat], Lane(CPU), print).predict(iter([block])))
    assert set(settled) == {"r5"} and np.isnan(found["r5"]).all()
    for row in rows:
        if row.id != "r5":
            assert found[row.id].shape == (lengths[row.id] // 8, 3)
            np.testing.assert_allclose(found[row.id], whole[row.id], atol=1e-5)


@pytest.mark.parametrize("half", [False, True])
def test_a_row_of_several_passes_costs_a_net_of_frames_that_row(half: bool) -> None:
    view = {"kind": "tiles", "frames": 64, "step": 64}
    net = build_net("simple_cnn", {"base": 4, "channels": 1}, view, finish=["standardise"],
                    frames="average_max")
    lengths = {"long": 200, "a": 64, "b": 64, "longer": 300}
    store, rows = Stored(lengths), rows_of(lengths)
    plain = frames_of(net)
    net.runner = Runner(device=CPU, path="test", run=plain, exact=plain, half=half, agreement=0.0)
    settled: dict[str, str] = {}
    seat = seat_of(net, settle=lambda row, error: settled.update({row.id: str(error)}))
    found = told(BatchedNets([seat], Lane(CPU), print).predict(iter([open_block(net, store, rows, [])])))
    assert set(settled) == {"long", "longer"} and "wants [1, F, K]" in settled["long"]
    for row in rows:
        if row.id in settled:
            assert np.isnan(found[row.id]).all()
            with pytest.raises(ValueError) as raised:  # as on a CPU
                predict_alone(net, store, row)
            assert str(raised.value) == settled[row.id]
        else:
            np.testing.assert_allclose(found[row.id], predict_alone(net, store, row), atol=1e-5)


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
