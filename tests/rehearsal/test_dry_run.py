"""The dry run at save time: when, on which recordings, and that nothing but side files comes of it."""
from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from builder import assembly
from kernel import spec
from kernel.errors import SampleMissing, SpecError
from kernel.limits import limits
from kernel.rehearsal import dry_run
from kernel.report.contents import Report, load_report
from kernel.sound.clips import find_clips
from kernel.sound.rows import list_rows
from kernel.spec import DryRun
from tests.helpers import TESTS
from tests.helpers.bundles import TINY, built_once, order
from tests.helpers.sample_report import make_report
from tests.helpers.whole_runs import (
    check,
    faulty_build,
    make_place,
    render_clip,
    run_whole,
    write_sample,
)

TRAIN = "competitions/c/train_soundscapes"


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


# When


@pytest.mark.parametrize(("clips", "audio", "placeholder"), [
    (3, 0.0, True), (5000, 0.0, True), (3, 180.0, True), (1, 60.0, True), (4, 240.0, False),
    (700, 42e3, False),
])
def test_a_placeholder_is_a_test_set_without_sound_or_of_three_clips(
    clips: int, audio: float, placeholder: bool
) -> None:
    report = replace(make_report(), seconds_of_audio=audio)
    ids = [f"c{i}.wav" for i in range(clips)]
    assert dry_run.is_placeholder(ids, report, None) == placeholder
    windows = [f"c{i}_{end}" for i in range(clips) for end in (5, 10, 15)]
    assert dry_run.is_placeholder(windows, report, spec.Windows()) == placeholder


# Which


@pytest.mark.parametrize("place", ["train", "competitions/c/train", "c/train", "datasets/o/s/train"])
def test_the_folder_is_found_wherever_the_data_are_mounted(place: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(parents=True)
    assert dry_run.find_folder(tmp_path, "train") == tmp_path / place
    assert dry_run.find_folder(tmp_path, str(tmp_path / place)) == tmp_path / place
    with pytest.raises(SampleMissing, match="no folder 'tests' below .*in the competition's data"):
        dry_run.find_folder(tmp_path, "tests")


def test_recordings_are_spread_over_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i:02d}.ogg" for i in range(10)), "notes.txt", "deep/x.FLAC", "deep/er/y.wav")
    assert dry_run.choose_clips(tmp_path, 3) == ["00.ogg", "04.ogg", "08.ogg"]
    every = [*(f"{i:02d}.ogg" for i in range(10)), "deep/er/y.wav", "deep/x.FLAC"]
    assert dry_run.choose_clips(tmp_path, 99) == every
    with pytest.raises(SampleMissing, match="no audio file below"):
        dry_run.choose_clips(touch(tmp_path / "empty", "a.txt"), 3)


def test_a_huge_folder_is_not_listed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "MOST_LISTED", 5)
    touch(tmp_path, *(f"{folder}/{i}.ogg" for folder in "abc" for i in range(4)))
    assert dry_run.choose_clips(tmp_path, 5) == ["a/0.ogg", "a/1.ogg", "a/2.ogg", "a/3.ogg", "b/0.ogg"]


def test_windows_of_recordings_in_several_folders_are_found(tmp_path: Path) -> None:
    """Windows are named by the file alone; broken recordings have none, and a name counts once."""
    train = tmp_path / "in/train"
    for name in ("a/x.wav", "b/x.wav", "b/y.wav"):
        render_clip(train / name, 6.0, 1)
    touch(train, "b/broken.ogg", "b/empty.wav")
    asked = SimpleNamespace(input=tmp_path / "in", state=tmp_path / "state")
    windowed = SimpleNamespace(windows=spec.Windows())
    trial = dry_run.lay_trial(asked, windowed, "train", 9)  # type: ignore[arg-type]
    assert trial.names == ("x.wav", "y.wav") and trial.ids == ("x_5", "x_10", "y_5", "y_10")
    rows = list_rows(trial.ids, find_clips(trial.folder, ["x", "y"]), windowed.windows)
    assert [row.clip.error for row in rows] == [None] * 4
    shutil.rmtree(train / "a")
    for name in ("x", "y"):
        (train / f"b/{name}.wav").unlink()
    asked.state = tmp_path / "another"
    with pytest.raises(SampleMissing, match="none of 2 recordings of 'train' has a row"):
        dry_run.lay_trial(asked, windowed, "train", 9)  # type: ignore[arg-type]


# What for


def test_the_forecast_is_for_the_hidden_set(tmp_path: Path) -> None:
    report = make_report()
    allowed = limits("birdclef-cpu90")
    told = dry_run.judge(report, DryRun(clips="t", expect_clips=7200, expect_hours=12.0), allowed)
    assert (told.clips, told.hours, told.slowdown) == (7200, 12.0, 1.3)
    assert "expect_clips" not in " ".join(told.notes) and "processor" in told.notes[0]
    most = dry_run.count_fitting(report, allowed)
    hours = report.seconds_of_audio / 3600 / report.rows
    fits = [all(line.passed for line in dry_run.forecast(report, rows, hours * rows, allowed))
            for rows in (most, most + 1)]
    assert most > 0 and fits == [True, False]
    told = dry_run.judge(report, DryRun(clips="t"), allowed)
    assert told.clips == most and "these are the most rows that fit" in told.notes[1]
    failed = dry_run.judge(report, DryRun(clips="t", expect_clips=most * 9), allowed)
    assert not failed.passed and "forecast on a slower machine" in failed.problems[0]


def test_a_processor_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Intel(R) Xeon(R) CPU @ 2.00GHz\n")
    assert dry_run.name_processor(str(tmp_path / "cpuinfo")) == "Intel(R) Xeon(R) CPU @ 2.00GHz"
    assert dry_run.name_processor(str(tmp_path / "none")) == "unknown"


@pytest.mark.parametrize(("table", "words"), [
    ({"clips": "../x"}, "dry_run.clips"), ({"clips": "/x"}, "dry_run.clips"),
    ({"clips": ""}, "dry_run.clips"),
    ({"clips": "x", "count": 0}, "dry_run.count: 0"), ({"clips": "x", "expect_clips": 0}, "expect_clips: 0"),
    ({"clips": "x", "expect_hours": 0.0}, "expect_hours"), ({"count": 3}, "dry_run.clips: missing"),
])
def test_a_table_that_is_none_is_named(table: dict[str, object], words: str) -> None:
    data = spec.read_toml(TINY, "an ensemble TOML")
    assert spec.parse_ensemble({**data, "dry_run": {"clips": "train"}}, TINY).dry_run == DryRun(clips="train")
    with pytest.raises(SpecError, match=words):
        spec.parse_ensemble({**data, "dry_run": table}, TINY)


# Whole


def save_version(folder: Path) -> Path:
    """An input as at save time: three rows, an empty test folder, twelve training recordings."""
    place = make_place(folder, 12)
    place.clips.rename(folder / "moved")
    place.clips.mkdir()
    (folder / "in" / TRAIN).parent.mkdir(parents=True)
    (folder / "moved").rename(folder / "in" / TRAIN)
    write_sample(folder / "in", ["a.wav", "b.wav", "c.wav"])
    return folder


@pytest.mark.faults
def test_a_saved_version_shows_what_the_hidden_set_needs(tmp_path: Path) -> None:
    """The ensemble asks; the submission is the one without it, byte for byte."""
    toml = tmp_path / "asking.toml"
    table = '[dry_run]\nclips = "train_soundscapes"\ncount = 4\nexpect_clips = 50\n'
    toml.write_text(TINY.read_text() + "\n" + table)
    assembly.build(order(tmp_path / "out", ensemble=toml), say=lambda _: None)
    found = {}
    for name, bundle in (("plain", built_once()), ("asking", tmp_path / "out")):
        place = replace(make_place(tmp_path / "unused" / name, 1), folder=save_version(tmp_path / name))
        found[name] = run_whole(place, bundle / "bundle")
        check(found[name], "ClipUnreadable")
    assert found["asking"].submission == found["plain"].submission
    working = found["asking"].working
    lines = (working / "dry_run.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["fname", "c00.wav", "c03.wav", "c06.wav", "c09.wav"]
    report = load_report((working / "dry_run.json").read_bytes())
    assert isinstance(report, Report) and report.rehearsal is not None
    assert report.rehearsal.clips == 50 and report.rehearsal.passed and report.prior_rows == 0
    assert "DRY RUN forecast for 50 rows" in found["asking"].out and "processor" in found["asking"].out
    assert not (found["plain"].working / "dry_run.csv").exists()
    rerun = run_whole(place, tmp_path / "out/bundle", KAGGLE_IS_COMPETITION_RERUN="1")
    assert rerun.submission == found["plain"].submission and "DRY RUN" not in rerun.out


@pytest.mark.faults
def test_a_test_set_that_is_there_is_never_a_reason(tmp_path: Path) -> None:
    place = make_place(tmp_path, 5)
    render_clip(tmp_path / "in/train/t.wav", 0.5, 1)
    found = run_whole(place, built_once() / "bundle", "--dry-run-clips", "train")
    check(found)
    assert "no dry run: the test set is there" in found.out and not (found.working / "dry_run.csv").exists()


@pytest.mark.faults
@pytest.mark.fault(row=96, injection="a training recording that ends the process; a folder that is not there",
                   outcome="DryRunFailed; the submission is the one without a dry run, exit 0")
def test_a_dry_run_that_fails_costs_nothing(tmp_path: Path) -> None:
    place = replace(make_place(tmp_path / "unused", 1), folder=save_version(tmp_path))
    bundle = faulty_build() / "bundle"
    plain = run_whole(place, bundle)
    plan = [{"at": "decode", "id": "c00.wav", "do": "kill"}]
    struck = run_whole(place, bundle, "--dry-run-clips", "train_soundscapes", plan=plan)
    check(struck, "DryRunFailed")
    assert struck.submission == plain.submission and struck.code == 0
    shutil.rmtree(tmp_path / "in" / TRAIN)
    missing = run_whole(place, bundle, "--dry-run-clips", "train_soundscapes")
    check(missing, "DryRunFailed")
    assert missing.submission == plain.submission and "no folder 'train_soundscapes'" in missing.out
    assert json.loads((missing.working / "report.json").read_bytes())["guard"]["finished"]


@pytest.mark.faults
def test_windows_of_training_soundscapes_are_tried(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assembly.build(order(out, ensemble=TESTS / "ensembles" / "faulty_windows.toml"), say=lambda _: None)
    place = replace(make_place(tmp_path / "unused", 1), folder=tmp_path)
    render_clip(tmp_path / "in" / TRAIN / "s1.wav", 12.0, 3)
    write_sample(tmp_path / "in", ["s_5", "s_10", "s_15"])
    found = run_whole(place, out / "bundle", "--dry-run-clips", "train_soundscapes")
    rows = (found.working / "dry_run.csv").read_text().splitlines()[1:]
    assert rows and all(row.startswith("s1_") for row in rows), found.out
