"""The fake competition of a rehearsal: names, rows and lengths."""
from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kernel import spec
from kernel.errors import SampleMissing, SpecError
from kernel.rehearsal import fake_kaggle
from tests.helpers import TESTS

TINY = spec.load_ensemble(TESTS / "ensembles" / "tiny.toml")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    for name, seconds in (("a.wav", 1.0), ("deep/b.flac", 3.0)):
        soundfile.write(folder / name, np.sin(np.arange(int(8000 * seconds)) / 9) / 2, 8000)
    (folder / "broken.wav").write_text("junk")
    return folder


def seconds_of(laid: fake_kaggle.FakeKaggle) -> list[float]:
    return [soundfile.info(laid.test / id).duration if "broken" not in id else 0.0 for id in laid.ids]


def test_clips_become_rows_under_their_own_names(tmp_path: Path, clips: Path) -> None:
    laid = fake_kaggle.lay_clips(tmp_path / "in", clips, TINY)
    assert laid.ids == ("a.wav", "broken.wav", "deep/b.flac") and laid.notes == ()
    assert all((laid.test / id).read_bytes() == (clips / id).read_bytes() for id in laid.ids)
    sample = (tmp_path / "in/competitions/rehearsal/sample_submission.csv").read_text().splitlines()
    assert sample[0] == "fname,bark,meow,hiss" and sample[3] == "deep/b.flac,0,0,0"


def test_repeats_have_names_of_their_own(tmp_path: Path, clips: Path) -> None:
    laid = fake_kaggle.lay_clips(tmp_path / "in", clips, TINY, repeat_to=8)
    assert len(set(laid.ids)) == 8 and laid.ids[3:6] == (
        "again1-a.wav",
        "again1-broken.wav",
        "deep/again1-b.flac",
    )
    assert [fake_kaggle.original_name(id) for id in laid.ids[:6]] == 2 * list(laid.ids[:3])
    assert "3 files repeated to 8" in laid.notes[0]


@pytest.mark.parametrize("hours", [0.5 / 3600 * 9, 9 * 2.6 / 3600])
def test_lengths_follow_the_expected_hours(tmp_path: Path, clips: Path, hours: float) -> None:
    laid = fake_kaggle.lay_clips(tmp_path / "in", clips, TINY, repeat_to=9, hours=hours)
    lengths = seconds_of(laid)
    assert sum(lengths) == pytest.approx(hours * 3600, rel=1e-3)
    assert lengths[2] == pytest.approx(3 * lengths[0], rel=1e-3), "the shape of the distribution stays"
    assert (laid.test / "again1-a.wav").samefile(laid.test / "a.wav"), "repeats share their bytes"
    assert (laid.test / "broken.wav").read_text() == "junk"


def test_longer_clips_are_repetitions(tmp_path: Path, clips: Path) -> None:
    assert fake_kaggle.stretch(clips / "a.wav", tmp_path / "long.wav", 2.5)
    before, after = soundfile.read(clips / "a.wav")[0], soundfile.read(tmp_path / "long.wav")[0]
    assert (
        len(after) == 20_000
        and np.array_equal(after[:8000], before)
        and np.array_equal(after[8000:16_000], before)
    )


def test_hours_far_from_the_clips_are_refused(tmp_path: Path, clips: Path) -> None:
    with pytest.raises(SpecError, match="give others"):
        fake_kaggle.lay_clips(tmp_path / "in", clips, TINY, repeat_to=3, hours=100.0)


def test_a_folder_without_audio_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SampleMissing, match="no audio file"):
        fake_kaggle.lay_clips(tmp_path / "in", tmp_path, TINY)


def test_windows_give_several_rows_per_clip(tmp_path: Path, clips: Path) -> None:
    windowed = replace(TINY, windows=spec.Windows(seconds=1.0, pattern="{stem}_{end}"))
    laid = fake_kaggle.lay_clips(tmp_path / "in", clips, windowed, repeat_to=6)
    assert laid.ids[:4] == ("a_1", "b_1", "b_2", "b_3") and len(set(laid.ids)) == len(laid.ids) == 8


def test_a_long_recording_has_all_its_windows_whatever_is_read_of_it(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips/a.flac", np.zeros(1003 * 4000), 4000)
    data = bytearray((tmp_path / "clips/a.flac").read_bytes())
    data[21] &= 0xF0  # low 4 bits and the next 4 bytes of STREAMINFO: total samples, 0 = unknown
    data[22:26] = b"\0\0\0\0"
    (tmp_path / "clips/b.flac").write_bytes(data)
    windowed = replace(TINY, windows=spec.Windows(), max_seconds=20.0)
    laid = fake_kaggle.lay_clips(tmp_path / "in", tmp_path / "clips", windowed)
    assert laid.ids == tuple(f"{name}_{end}" for name in "ab" for end in range(5, 1006, 5))


def test_a_long_recording_is_stretched_a_piece_at_a_time(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.arange(600 * 4000) % 1000 / 1000, 4000)
    tracemalloc.start()
    assert fake_kaggle.stretch(tmp_path / "a.wav", tmp_path / "b.wav", 2.25)
    assert tracemalloc.get_traced_memory()[1] < 2.25 * 600 * 4000 * 4 / 2
    tracemalloc.stop()
    one, more = soundfile.read(tmp_path / "a.wav")[0], soundfile.read(tmp_path / "b.wav")[0]
    assert np.array_equal(more, np.tile(one, 3)[: round(2.25 * len(one))])


def test_rows_can_be_found_again(tmp_path: Path, clips: Path) -> None:
    laid = fake_kaggle.lay_clips(tmp_path / "in", clips, TINY, repeat_to=6)
    rows = fake_kaggle.find_rows(laid, TINY, {"deep/again1-b.flac", "a.wav"})
    assert [row.id for row in rows] == ["a.wav", "deep/again1-b.flac"] and all(
        row.clip.error is None for row in rows
    )


def test_weights_and_attached_files_are_mounted_beside_the_bundle(tmp_path: Path) -> None:
    """What a split build leaves, links that lead to local copies, and a folder given instead of those."""
    out = tmp_path / "out"
    for name in ("bundle/manifest.json", "bundle-weights/a.safetensors", "copy.onnx"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)
    link = out / "bundle-attached/models/o/m/onnx/v/1/perch.onnx"
    link.parent.mkdir(parents=True)
    link.symlink_to(out / "copy.onnx")
    fake_kaggle.lay_bundle(tmp_path / "in", out / "bundle")
    laid = {p.relative_to(tmp_path / "in").as_posix() for p in (tmp_path / "in").rglob("*") if p.is_file()}
    assert laid == {"datasets/owner/bundle/manifest.json", "datasets/owner/bundle-weights/a.safetensors",
                    "models/o/m/onnx/v/1/perch.onnx"}
    assert not (tmp_path / "in/models/o/m/onnx/v/1/perch.onnx").is_symlink(), "as it is mounted, a file"
    (tmp_path / "given/datasets/a/b").mkdir(parents=True)
    (tmp_path / "given/datasets/a/b/x.onnx").write_text("x")
    fake_kaggle.lay_bundle(tmp_path / "other", out / "bundle", tmp_path / "given")
    assert (tmp_path / "other/datasets/a/b/x.onnx").exists() and not (tmp_path / "other/models").exists()
    (out / "copy.onnx").unlink()
    with pytest.raises(SpecError, match=r"perch.onnx: leads to .*copy.onnx, which is gone"):
        fake_kaggle.lay_bundle(tmp_path / "third", out / "bundle")
