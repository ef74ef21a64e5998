"""The engine on devices that are not there: GPU schedule and one thread per device, with stand-ins that
compute on the CPU.
"""
from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from kernel.engine import choice, gpu, journal, step
from kernel.inference import backends
from kernel.inference.answers import sigmoid
from kernel.inference.devices import Device
from tests.helpers.stand_ins import (
    CLASSES,
    CLIPS,
    computing_on_cpu,
    make_input,
    open_engine,
    scores,
    stand_ins,
)


@pytest.fixture(scope="module")
def on_cpu(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Scores of every net by the CPU schedule."""
    with open_engine(tmp_path_factory.mktemp("cpu"), tiny_bundle / "bundle", stand_ins("cpu")) as opened:
        opened.execute()
        return scores(opened)


def test_the_gpu_schedule_gives_the_scores_of_the_cpu(
    tmp_path: Path, tiny_bundle: Path, on_cpu: dict[str, np.ndarray]
) -> None:
    with (
        open_engine(tmp_path, tiny_bundle / "bundle", stand_ins("cuda:0")) as opened,
        computing_on_cpu(lambda device: None),
    ):
        opened.execute()
        found = scores(opened)
    assert all(np.isfinite(values).all() for values in found.values())
    for net_id, values in found.items():
        np.testing.assert_allclose(values, on_cpu[net_id], atol=1e-5)


def test_scores_that_are_no_probabilities_are_named_on_a_gpu_too(tmp_path: Path, tiny_bundle: Path) -> None:
    """Once per net, with the row; they still count."""
    def prepare(module: torch.nn.Module, device: Device, samples: Any, **more: Any) -> backends.Runner:
        def run(inputs: backends.Inputs, frames: torch.Tensor | None) -> torch.Tensor:
            return torch.full((len(inputs["x"]), len(CLASSES)), 7.0)

        return backends.Runner(device=Device(name="cpu", about=""), path="", run=run, exact=run)

    with (
        open_engine(tmp_path, tiny_bundle / "bundle", stand_ins("cuda:0")) as opened,
        mock.patch.object(backends, "prepare", prepare),
        mock.patch.dict("kernel.inference.answers.ON_DEVICE", {sigmoid: lambda x: x}),
    ):
        opened.execute()
        found = scores(opened)
        told = [fault.where for fault in opened.run.recorder.faults if fault.code == "ScoresOutOfRange"]
    assert sorted(told) == sorted(found) and all((values == 7.0).all() for values in found.values())


def test_a_gpu_takes_suspects_alone_and_first_then_long_rows_before_short_ones(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    with (
        open_engine(tmp_path, tiny_bundle / "bundle", stand_ins("cuda:0")) as opened,
        computing_on_cpu(lambda device: None),
    ):
        run = opened.run
        run.journal.suspect_pairs = {(net_id, "c4.wav") for net_id in run.nets}
        taken: dict[str, list[list[str]]] = {}
        flight = run.journal.flight

        def watch(kind: str, ids: list[str], *nets: str) -> Any:
            for net in nets if kind == "batch" else ():
                taken.setdefault(net, []).append(ids)
            return flight(kind, ids, *nets)

        with mock.patch.object(run.journal, "flight", watch):
            opened.execute()
    longest = [f"c{i}.wav" for i in reversed(range(CLIPS)) if i != 4]
    members = [windows for net_id, windows in taken.items() if net_id in run.nets and len(windows) > 1]
    assert members and all(
        windows[0] == ["c4.wav"] and list(dict.fromkeys(sum(windows[1:], []))) == longest
        for windows in members
    )


def test_two_devices_work_at_once_one_thread_each(
    tmp_path: Path, tiny_bundle: Path, on_cpu: dict[str, np.ndarray]
) -> None:
    """The first two batches meet at a barrier: with one device, or one thread for both, it would break."""
    meet, met, users = threading.Barrier(2), set[str](), dict[str, set[int]]()

    def watch(device: Device) -> None:
        users.setdefault(device.name, set()).add(threading.get_ident())
        if device.name not in met:
            met.add(device.name)
            meet.wait(60)

    with (
        open_engine(tmp_path, tiny_bundle / "bundle", stand_ins("cuda:0", "cuda:1")) as opened,
        computing_on_cpu(watch),
    ):
        opened.execute()
        found = scores(opened)
    assert set(users) == {"cuda:0", "cuda:1"} and all(len(threads) == 1 for threads in users.values())
    assert users["cuda:0"] != users["cuda:1"]
    for net_id, values in found.items():
        np.testing.assert_allclose(values, on_cpu[net_id], atol=1e-5)


def test_folds_share_the_batches_that_the_device_has_cut(
    tmp_path: Path, tiny_bundle: Path, on_cpu: dict[str, np.ndarray]
) -> None:
    """The member's two folds run after the first cover; every batch of theirs is drawn once for both."""
    crowds: list[list[str]] = []
    predict = step.StepRunner._predict_on_gpu

    def watch(self: Any, runs: Any, *rest: Any) -> None:
        crowds.append([run.net_id for run in runs])
        predict(self, runs, *rest)

    with (
        open_engine(tmp_path, tiny_bundle / "bundle", stand_ins("cuda:0")) as opened,
        computing_on_cpu(lambda device: None),
        mock.patch.object(step.StepRunner, "_predict_on_gpu", watch),
        mock.patch.object(choice, "_cover", lambda ready, todo, speeds, left_s: choice._step(
            [c for c in ready if c.member == "plain"], todo, speeds)),
    ):
        opened.execute()
        found = scores(opened)
    assert ["plain.0", "plain.1"] in crowds and len(crowds) == 2
    for net_id, values in found.items():
        np.testing.assert_allclose(values, on_cpu[net_id], atol=1e-5)
    assert sorted(outcome.net_id for outcome in opened.dispatcher.outcomes) == sorted(opened.run.nets)


def test_folds_in_flight_together_are_all_suspects_and_then_run_one_by_one(
    tmp_path: Path, tiny_bundle: Path, on_cpu: dict[str, np.ndarray]
) -> None:
    """A device lost under two folds at once: the second engine runs them apart and finds the culprit."""
    def watch(device: Device) -> None:
        if "c4.wav" in in_flight(tmp_path, "plain.1"):
            raise RuntimeError("CUDA error: device-side assert triggered")

    cover = choice._cover

    def cover_with_both(ready: Any, todo: Any, *rest: Any) -> Any:
        plain = [c for c in ready if c.member == "plain"]
        return choice._step(plain, todo, rest[0]) if len(plain) == 2 else cover(ready, todo, *rest)

    both = mock.patch.object(choice, "_cover", cover_with_both)
    for attempt in (1, 2, 3):
        with (
            open_engine(tmp_path, tiny_bundle / "bundle", stand_ins("cuda:0"), attempt) as opened,
            computing_on_cpu(watch),
            both,
            nullcontext() if attempt == 3 else pytest.raises(RuntimeError, match="assert"),
        ):
            opened.execute()
        if attempt == 2:
            nets = {crash.net for crash in opened.run.journal.crashes}
            assert nets == {"plain.0", "plain.1"}
    assert opened.run.journal.quarantined_pairs == {("plain.1", "c4.wav")}
    for net_id, values in scores(opened).items():
        expected = on_cpu[net_id].copy()
        if net_id == "plain.1":
            expected[4] = np.nan
        np.testing.assert_allclose(values, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["fp32", "fp16, channels-last"])
def test_a_restart_goes_on_in_the_way_it_began(tmp_path: Path, tiny_bundle: Path, name: str) -> None:
    """The way is journalled before the first score; a restart neither times nor chooses anew."""
    asked: dict[int, set[str | None]] = {1: set(), 2: set()}
    way = f"torch cuda, folded, {name}"

    def prepare(
        module: Any, device: Device, samples: Any, precision: Any = None, **more: Any
    ) -> backends.Runner:
        asked[attempt].add(precision.way)
        net = module.eval()

        def run(inputs: backends.Inputs, frames: torch.Tensor | None) -> torch.Tensor:
            return backends.call_net(net, inputs, frames)

        return backends.Runner(device=Device(name="cpu", about=""), path=way, run=run, exact=run)

    for attempt in (1, 2):
        with (
            open_engine(tmp_path, tiny_bundle / "bundle", stand_ins("cuda:0"), attempt) as opened,
            mock.patch.object(backends, "prepare", prepare),
        ):
            if attempt == 1:
                seen: list[str | None] = []
                kept = opened.run.journal
                board = opened.run.board
                add = board.add

                def check(
                    net_id: str, *given: Any, kept: Any = kept, add: Any = add, seen: Any = seen
                ) -> None:
                    seen.append(kept.choice(net_id))
                    add(net_id, *given)

                with mock.patch.object(board, "add", check):
                    opened.execute()
                assert set(seen) == {way}
                for path in (tmp_path / "state" / "scores").glob("*.npy"):
                    path.unlink()
            else:
                opened.execute()
    assert asked == {1: {None}, 2: {name}}


def test_after_a_crash_of_a_net_nothing_is_opened_ahead(tmp_path: Path, tiny_bundle: Path) -> None:
    """Else the net that happens to be opened at a second crash would be blamed for it."""
    (tmp_path / "state" / "inflight").mkdir(parents=True)
    make_input(tmp_path / "in")
    mark = json.dumps({"kind": "batch", "ids": ["c4.wav"], "nets": ["plain.0", "tiled.0"]})
    (tmp_path / "state" / "inflight" / "0.json").write_text(mark)
    opening: set[str] = set()
    together: list[set[str]] = []

    with (
        open_engine(tmp_path, tiny_bundle / "bundle", stand_ins("cuda:0"), 2) as opened,
        computing_on_cpu(lambda device: together.append(set(opening))),
    ):
        assert opened.run.journal.suspect_pairs == {("plain.0", "c4.wav"), ("tiled.0", "c4.wav")}
        flight = opened.run.journal.flight

        @contextmanager
        def watch(kind: str, ids: Sequence[str], *nets: str) -> Iterator[None]:
            with flight(kind, ids, *nets):
                opening.update(nets if kind == "net" else ())
                yield
                opening.difference_update(nets if kind == "net" else ())

        with mock.patch.object(opened.run.journal, "flight", watch):
            opened.execute()
    assert together and not any(together)


@pytest.mark.parametrize("text", [b"", b"[1]", b'{"plain.0": '])
def test_a_choice_cut_short_is_made_anew(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "choices.json").write_bytes(text)
    found = journal.Journal(tmp_path, 2, print)
    assert found.choice("plain.0") is None
    found.choose("plain.0", "torch cpu")
    assert journal.Journal(tmp_path, 3, print).choice("plain.0") == "torch cpu"


def test_a_lost_device_ends_the_engine_with_the_scores_saved_and_published(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    batches: list[str] = []

    def watch(device: Device) -> None:
        batches.append(device.name)
        if len(batches) > 6:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with (
        open_engine(tmp_path, tiny_bundle / "bundle", stand_ins("cuda:0")) as opened,
        computing_on_cpu(watch),
        pytest.raises(RuntimeError, match="illegal"),
    ):
        opened.execute()
    assert len(batches) == 7  # nothing more was asked of a device that is lost
    saved = [np.load(path) for path in (tmp_path / "state" / "scores").glob("*.npy")]
    scored = np.logical_or.reduce([np.isfinite(values).all(axis=1) for values in saved]).sum()
    report = json.loads((tmp_path / "state" / "report.json").read_bytes())
    assert 0 < scored == CLIPS - report["prior_rows"] and report["publications"]


def test_one_lost_device_leaves_the_other_working(
    tmp_path: Path, tiny_bundle: Path, on_cpu: dict[str, np.ndarray]
) -> None:
    seen: list[str] = []

    def watch(device: Device) -> None:
        seen.append(device.name)
        if attempt == 1 and device.name == "cuda:1" and seen.count("cuda:1") > 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    found = stand_ins("cuda:0", "cuda:1")
    for attempt in (1, 2):
        with (
            open_engine(tmp_path, tiny_bundle / "bundle", found, attempt) as opened,
            computing_on_cpu(watch),
            pytest.raises(RuntimeError, match="illegal") if attempt == 1 else nullcontext(),
        ):
            opened.execute()
        if attempt == 1:
            aside = opened.dispatcher.aside
            whole = {net_id for net_id, values in scores(opened).items() if np.isfinite(values).all()}
            assert len(aside) == 1 and whole == set(opened.run.nets) - aside
            report = json.loads((tmp_path / "state" / "report.json").read_bytes())
            told = [fault for fault in report["faults"] if "the other devices go on" in json.dumps(fault)]
            assert told and next(iter(aside)) in json.dumps(told)
    assert {crash.net for crash in opened.run.journal.crashes if crash.kind == "batch"} == aside
    for net_id, values in scores(opened).items():
        np.testing.assert_allclose(values, on_cpu[net_id], atol=1e-5)


def in_flight(place: Path, net: str) -> list[str]:
    """Ids of the rows that the marks on disk name with this net."""
    marks = [json.loads(mark.read_bytes() or "{}") for mark in (place / "state" / "inflight").iterdir()]
    named = [mark for mark in marks if net in mark.get("nets", [mark.get("net")]) and mark["kind"] == "batch"]
    return [row_id for mark in named for row_id in mark["ids"]]


@pytest.mark.fault(
    row=81,
    injection="one row raises a CUDA error in one net on a GPU, each time; three rows share a block",
    outcome="its block is suspect, the pair is quarantined after two deaths; all else as without the fault",
)
def test_a_row_that_loses_the_gpu_each_time_costs_its_pair(
    tmp_path: Path, tiny_bundle: Path, on_cpu: dict[str, np.ndarray]
) -> None:
    def watch(device: Device) -> None:
        if "c4.wav" in in_flight(tmp_path, "plain.0"):
            raise RuntimeError("CUDA error: device-side assert triggered")

    named = []
    for attempt in (1, 2, 3):
        with (
            open_engine(tmp_path, tiny_bundle / "bundle", stand_ins("cuda:0"), attempt) as opened,
            computing_on_cpu(watch),
            mock.patch.object(gpu, "BLOCKS", 3),
            nullcontext() if attempt == 3 else pytest.raises(RuntimeError, match="assert"),
        ):
            # Another net may have been in the opener's hands meanwhile
            crashes = [crash for crash in opened.run.journal.crashes if crash.kind == "batch"]
            named.append([crash.ids for crash in crashes[attempt - 2:]])
            opened.execute()
    assert len(named[1][0]) > 1 and "c4.wav" in named[1][0] and named[2] == [("c4.wav",)]
    assert opened.run.journal.quarantined_pairs == {("plain.0", "c4.wav")}
    for net_id, values in scores(opened).items():
        expected = on_cpu[net_id].copy()
        if net_id == "plain.0":
            expected[4] = np.nan
        np.testing.assert_allclose(values, expected, atol=1e-5)


@pytest.mark.fault(
    row=81,
    injection="every row raises a CUDA error in the net that runs first",
    outcome="after two deaths the other nets run before it, over every row",
)
def test_a_net_that_loses_the_gpu_in_every_row_runs_last(
    tmp_path: Path, tiny_bundle: Path, on_cpu: dict[str, np.ndarray]
) -> None:
    def watch(device: Device) -> None:
        if in_flight(tmp_path, "plain.0"):
            raise RuntimeError("CUDA error: device-side assert triggered")

    for attempt in (1, 2, 3):
        with (
            open_engine(tmp_path, tiny_bundle / "bundle", stand_ins("cuda:0"), attempt) as opened,
            computing_on_cpu(watch),
            pytest.raises(RuntimeError, match="assert"),
        ):
            opened.execute()
    for net_id in ("plain.1", "tiled.0"):
        np.testing.assert_allclose(scores(opened)[net_id], on_cpu[net_id], atol=1e-5)


@pytest.mark.fault(
    row=82,
    injection="a sound clip and one that breaks while it is decoded stand in the sample twice; CPU and GPU",
    outcome="each net runs once, both rows of the sound clip get the same scores, both others the prior",
)
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_repeated_ids_are_one_clip_with_several_rows(
    tmp_path: Path, tiny_bundle: Path, on_cpu: dict[str, np.ndarray], device: str
) -> None:
    with (
        open_engine(
            tmp_path, tiny_bundle / "bundle", stand_ins(device), repeated=("c4.wav", "c3.wav")
        ) as opened,
        computing_on_cpu(lambda device: None) if device != "cpu" else nullcontext(),
    ):
        (tmp_path / "in" / "test" / "c3.wav").unlink()  # after its header was read
        opened.execute()
    for net_id, values in scores(opened).items():
        expected = on_cpu[net_id].copy()
        expected[3] = np.nan
        np.testing.assert_allclose(values, expected[[*range(CLIPS), 4, 3]], atol=1e-5)
        np.testing.assert_array_equal(values[9], values[4])
    assert sorted(outcome.net_id for outcome in opened.dispatcher.outcomes) == sorted(opened.run.nets)
    report = json.loads((tmp_path / "state" / "report.json").read_bytes())
    assert report["prior_rows"] == 2 and report["partial_rows"] == 0


@pytest.mark.fault(
    row=83,
    injection="two short rows of nine are left, by --first or after a restart; each takes 0.6 s",
    outcome="a member's second net is forecast by the rows that its first one did",
)
@pytest.mark.parametrize("restarted", [False, True])
def test_the_learned_speed_is_that_of_the_rows_done(
    tmp_path: Path, tiny_bundle: Path, restarted: bool
) -> None:
    bundle, found = tiny_bundle / "bundle", stand_ins("cuda:0")
    if restarted:
        with open_engine(tmp_path, bundle, found) as earlier:
            for net_id in earlier.run.nets:
                done = np.full((CLIPS, len(CLASSES)), 0.5, np.float32)
                done[:2] = np.nan
                earlier.run.journal.save_scores(net_id, done)
    more = {"attempt": 2} if restarted else {"first": 2}
    with (
        open_engine(tmp_path, bundle, found, **more) as opened,
        computing_on_cpu(lambda device: time.sleep(0.6)),
    ):
        opened.execute()
    (second,) = [step for step in opened.dispatcher.outcomes if step.net_id == "plain.1"]
    assert second.rows == second.done == 2
    assert 0.55 < second.forecast_s / second.seconds < 1.8
