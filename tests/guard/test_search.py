"""The search for a sample among datasets that are slow, hostile or do not answer."""
from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

import infer_kernel
from infer_kernel import Run, Sample, find_sample
from tests.helpers.guard_runs import run_guard
from tests.helpers.hung_mount import hung_mount, needs_fuse
from tests.helpers.stub_bundle import STUB_CELLS, check, make_bundle, make_input


def make_run(where: Path) -> Run:
    words = ["--input", str(where / "in"), "--working", str(where / "out"), "--seconds", "20"]
    return Run(infer_kernel.make_parser().parse_args(words))


def codes(run: Run) -> list[str]:
    return [fault["code"] for fault in run.faults]


def test_the_first_sample_is_published_before_the_others_are_read(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        make_input(where / "in" / f"zoo{number}")
    monkeypatch.setattr(infer_kernel, "SEARCH_S", 0.3)
    reads: list[str] = []
    read = infer_kernel.read_sample

    def read_slowly(path: str, within_s: float) -> Sample:
        reads.append(path)
        if len(reads) > 1:
            threading.Event().wait(within_s + 0.01)
            raise ValueError("a bomb")
        return read(path, within_s)

    monkeypatch.setattr(infer_kernel, "read_sample", read_slowly)
    published: list[Sample] = []
    run = make_run(where)

    def publish(sample: Sample) -> None:
        assert len(reads) == 1
        published.append(sample)

    assert find_sample(run, publish) is published[0]
    assert len(published) == 1 and 2 <= len(reads) < 9, "all the others together have one search's time"
    assert run.faults[-1]["message"].startswith("no time to read more samples") or len(reads) == 2


def test_many_folders_that_hang_cost_little_more_than_one(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        (where / "in" / f"zoo{number}").mkdir()
    over = threading.Event()
    waits: list[str] = []
    names: list[str] = []
    listed, named = infer_kernel.list_folder, infer_kernel.find_names

    def hang(folder: str, files: list[str], below: list[str]) -> None:
        if "zoo" in folder:
            waits.append(folder)
            over.wait()
        listed(folder, files, below)

    def find(folder: str, wanted: tuple[str, ...]) -> set[str]:
        names.append(folder)
        return named(folder, wanted)

    monkeypatch.setattr(infer_kernel, "list_folder", hang)
    monkeypatch.setattr(infer_kernel, "find_names", find)
    monkeypatch.setattr(infer_kernel, "LEAST_PATIENCE_S", 0.01)
    run = make_run(where)
    run.reader.patience_s = 0.1
    asked: list[float] = []
    ask = run.reader.ask
    monkeypatch.setattr(
        run.reader, "ask", lambda *given, patience_s=0.0: (asked.append(patience_s), ask(
            *given, patience_s=patience_s))[1]
    )
    try:
        assert find_sample(run) is not None
    finally:
        over.set()
    assert len(waits) == 10 and codes(run).count("InputHung") == 10, run.faults
    assert not any("zoo" in folder for folder in names), "who does not answer is not asked in another way"
    assert min(asked[1:11]) == 0.01 and sum(asked[1:11]) < 0.5


@needs_fuse
@pytest.mark.faults
@pytest.mark.fault(
    row=92,
    injection="the same: ten datasets at once",
    outcome="each is passed over by name and once, together in a fraction of the time; everything scored",
)
def test_ten_datasets_that_do_not_answer(where: Path) -> None:
    bundle = make_bundle(where / "bundle")
    (where / "source").mkdir()
    with ExitStack() as stack:
        for number in range(10):
            stack.enter_context(hung_mount(where / "source", where / "in" / f"zoo{number}", "list", "source"))
        run = run_guard(where, bundle.folder, seconds=20.0)
    check(run, "InputHung")
    assert STUB_CELLS in run.submission and run.faults.count("InputHung") == 10


def test_a_scratch_place_that_hangs_is_passed_over(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    usable, sweep = infer_kernel.is_usable, infer_kernel.sweep_stale
    slow = {str(where / "first"), str(where / "second")}

    def ask_first(place: str, working: str) -> bool:
        return over.wait() if place == str(where / "first") else usable(place, working)

    def sweep_second(place: str) -> None:
        if place == str(where / "second"):
            over.wait()
        else:
            sweep(place)

    monkeypatch.setattr(infer_kernel, "is_usable", ask_first)
    monkeypatch.setattr(infer_kernel, "sweep_stale", sweep_second)
    for place in (*slow, str(where / "out")):
        Path(place).mkdir()
    run = make_run(where)
    run.reader.patience_s = 0.05
    monkeypatch.setenv("TMPDIR", str(where / "first"))
    try:
        assert str(where / "first") not in infer_kernel.scratch_places(run.working, run.reader)
        monkeypatch.setenv("TMPDIR", str(where / "second"))
        infer_kernel.make_state(run, {})
        assert Path(run.state).is_dir() and Path(run.state).parent != where / "second"
        assert {fault["where"] for fault in run.faults if fault["code"] == "InputHung"} == slow
    finally:
        over.set()
        infer_kernel.remove_tree(run.state)


@needs_fuse
@pytest.mark.faults
@pytest.mark.fault(
    row=92,
    injection="the same: TMPDIR; a dead run's private folder in it",
    outcome="passed over by name, another place is taken, everything scored",
)
@pytest.mark.parametrize(
    ("operation", "name"), [("list", "source"), ("look up", "hourglass-0123456789abcdef")]
)
def test_a_scratch_folder_that_never_answers(where: Path, operation: str, name: str) -> None:
    (where / "source" / "hourglass-0123456789abcdef").mkdir(parents=True)
    with hung_mount(where / "source", where / "slow", operation, name):
        run = run_guard(where, make_bundle(where / "bundle").folder, TMPDIR=str(where / "slow"))
    assert run.code == 0 and STUB_CELLS in run.submission, run.out
