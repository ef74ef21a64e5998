"""Faults of long recordings: what strikes in the middle of one costs no other, and no byte of its windows."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kernel.sound.decode import READ_SAMPLES
from tests.helpers.guard_runs import GuardRun
from tests.helpers.whole_runs import (
    RATE,
    Place,
    check,
    faulty_build,
    prior_rows,
    run_whole,
    write_sample,
)

LENGTHS = (61.0, 30.5, 1000.0)  # s; the last one is longer than recordings were once read
LATE = f"r0@{2 * READ_SAMPLES}"  # the third read of the first recording, 24 s after its beginning
WINDOW = 5


def make_recordings(folder: Path) -> Place:
    """Three recordings and a sample with a row for each started window, and one behind the end of each."""
    place = Place(folder=folder)
    place.clips.mkdir(parents=True)
    ids = []
    for i, seconds in enumerate(LENGTHS):
        rng = np.random.default_rng(i)
        rate = RATE if seconds < 900 else 4_000
        t = np.arange(int(seconds * rate)) / rate
        wave = 0.4 * np.sin(2 * np.pi * (300 + 200 * np.sin(t / 9)) * t) + 0.05 * rng.standard_normal(len(t))
        soundfile.write(place.clips / f"r{i}.wav", wave, rate)
        ids += [f"r{i}_{WINDOW * (n + 1)}" for n in range(math.ceil(seconds / WINDOW) + 1)]
    write_sample(folder / "in", ids)
    return place


@pytest.fixture(scope="module")
def bundle() -> Path:
    return faulty_build("faulty_windows") / "bundle"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> GuardRun:
    """A run that nothing harms, with which all others are compared; each decoding leaves a mark."""
    counting = [{"at": "decode", "id": f"r{i}", "do": "sleep", "seconds": 0, "times": 50} for i in range(3)]
    run = run_whole(make_recordings(tmp_path_factory.mktemp("plain")), bundle, plan=counting)
    check(run, "ClipEmpty")
    return run


@pytest.mark.faults
@pytest.mark.fault(
    row=94,
    injection="a recording of 1,000 s; a window behind the end of each recording",
    outcome="every window is scored to the end; those behind it keep the prior and say where the audio ends",
)
def test_recordings_are_scored_to_their_end(plain: GuardRun) -> None:
    assert prior_rows(plain) == {"r0_70", "r1_40", "r2_1005"}
    told = {fault["where"]: fault["message"] for fault in plain.report["faults"]}
    assert "begins at 1000 s, the audio ends at 1000.00 s" in told["r2_1005"]


@pytest.mark.faults
@pytest.mark.fault(
    row=94,
    injection="three nets over two front ends; the page draws rows by a third one",
    outcome="a recording is decoded once per front end for the nets; after the last publication the page "
    "reads it again: once for pictures, once per front end for its explanations",
)
def test_a_recording_is_decoded_once_per_front_end(plain: GuardRun) -> None:
    marks = list((plain.working.parent / "marks").iterdir())
    for i in range(3):
        assert 2 <= sum(mark.name.startswith(f"{i}.") for mark in marks) <= 5


@pytest.mark.faults
@pytest.mark.fault(
    row=94,
    injection="the decoder kills its process, or never returns, in the middle of a recording, once",
    outcome="engine restarted; the recording runs first and alone, decoded once; the same bytes",
)
@pytest.mark.parametrize("deed", ["kill", "segv", "hang"])
def test_a_death_in_the_middle_of_a_recording_costs_time_alone(
    tmp_path: Path, bundle: Path, plain: GuardRun, deed: str
) -> None:
    strike = {"at": "read", "id": LATE, "do": deed, "times": 1}
    run = run_whole(make_recordings(tmp_path), bundle, plan=[strike])
    check(run, "EngineHung" if deed == "hang" else "EngineDied", reference=plain)
    assert run.report["guard"]["attempts"] == 2


@pytest.mark.faults
@pytest.mark.fault(
    row=94,
    injection="the decoder kills its process in the middle of a recording, each time",
    outcome="that recording is quarantined after two deaths; every window of the others as without the fault",
)
def test_a_poisonous_recording_costs_its_own_windows(
    tmp_path: Path, bundle: Path, plain: GuardRun
) -> None:
    run = run_whole(make_recordings(tmp_path), bundle, plan=[{"at": "read", "id": LATE, "do": "kill"}])
    lost = {id for id in prior_rows(run) if id.startswith("r0")}
    check(run, "ClipQuarantined", reference=plain, affected=lost)
    assert len(lost) == 14


@pytest.mark.faults
@pytest.mark.fault(
    row=94,
    injection="the decoder raises in the middle of a recording, each time",
    outcome="the windows before are scored, those behind keep the prior and name the error",
)
def test_an_error_in_the_middle_of_a_recording_costs_what_lies_behind(
    tmp_path: Path, bundle: Path, plain: GuardRun
) -> None:
    run = run_whole(make_recordings(tmp_path), bundle, plan=[{"at": "read", "id": LATE, "do": "strange"}])
    lost = {f"r0_{end}" for end in range(25, 71, 5)}
    # The frames of the last window that is heard reach one row further back, and smoothing the next one
    check(run, "ClipUnreadable", reference=plain, affected={*lost, "r0_20", "r0_15"})
    assert {id for id in prior_rows(run) if id.startswith("r0")} == lost


@pytest.mark.faults
@pytest.mark.fault(
    row=94,
    injection="windows with room for their arrays in RAM, on disk, or nowhere",
    outcome="the same bytes",
)
@pytest.mark.parametrize("limits", [("--ram", "430MB"), ("--ram", "460MB", "--disk", "0")])
def test_windows_have_the_same_bytes_wherever_their_arrays_lie(
    tmp_path: Path, bundle: Path, plain: GuardRun, limits: tuple[str, ...]
) -> None:
    run = run_whole(make_recordings(tmp_path), bundle, *limits)
    check(run, "ClipEmpty", reference=plain)
    store: dict[str, Any] = run.report["store"]
    assert store["hits"]["recompute"] > 0 if "--disk" in limits else store["spilled"] > 0
