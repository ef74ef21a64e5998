"""Rows of a sample: in its order, one per clip or one per window of a recording."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kernel.errors import ClipEmpty, ClipUnreadable, SpecError
from kernel.sound import decode
from kernel.sound.clips import find_clips
from kernel.sound.loading import load_wave
from kernel.sound.recording import Recordings
from kernel.sound.rows import Row, clip_ids, list_rows, window_ids
from kernel.spec import Windows
from tests.helpers.sounds import RATE, clip_of, read, sound, write


def test_rows_stand_in_the_order_of_the_ids_and_missing_clips_carry_an_error(tmp_path: Path) -> None:
    write(tmp_path / "test/a.wav", sound(0.1))
    ids = ["z.wav", "a.wav", "m.wav"]
    rows = list_rows(ids, find_clips(tmp_path, ids), None)
    assert [row.id for row in rows] == ids
    assert [row.clip.error is None for row in rows] == [False, True, False]
    assert (rows[1].clip.rate, rows[1].clip.channels, rows[1].clip.samples_claimed) == (RATE, 1, 4410)


def test_headers_are_read_once_per_recording_by_the_prober_given(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", sound(0.1))
    seen = []

    def prober(id: str, path: Path, roots: Sequence[Path]) -> decode.Clip:
        seen.append((id, path, tuple(roots)))
        return decode.Clip(id=id, error=ClipUnreadable("refused"))

    rows = list_rows(["a_5", "a_10", "b_5"], find_clips(tmp_path, ["a"]), Windows(), prober)
    assert seen == [("a", tmp_path / "a.wav", (tmp_path.resolve(),))]
    assert str(rows[1].clip.error) == "refused"


def test_a_ten_minute_recording_has_120_windows_of_five_seconds() -> None:
    ids = window_ids("soundscape_7", 600.0, Windows())
    assert len(ids) == 120 and ids[0] == "soundscape_7_5" and ids[-1] == "soundscape_7_600"
    assert window_ids("a", 6.0, Windows(seconds=2.5)) == ["a_2.5", "a_5", "a_7.5"]
    assert clip_ids([*ids, "other_5"], Windows()) == ["soundscape_7", "other"]


def windows_of(root: Path, ids: Sequence[str], windows: Windows) -> list[Row]:
    return list_rows(ids, find_clips(root, ids), windows)


def test_windows_are_cut_from_the_waveform_and_equal_the_cut_run_as_a_clip(tmp_path: Path) -> None:
    path = write(tmp_path / "test_soundscapes/site_1_2020.ogg", sound(13.0, 32_000), 32_000)
    whole = decode.decode(clip_of(path), 900)
    rows = windows_of(tmp_path, [f"site_1_2020_{end}" for end in (10, 5, 15)], Windows())
    assert [(row.start, row.stop) for row in rows] == [(160_000, 320_000), (0, 160_000), (320_000, 480_000)]
    assert rows[0].clip is rows[1].clip
    for row in rows:
        expected = np.zeros(160_000, np.float32)
        piece = whole.samples[row.start:row.stop]
        expected[: len(piece)] = piece
        np.testing.assert_array_equal(Recordings().cut(row).samples, expected)
    alone = write(tmp_path / "alone.wav", whole.samples[160_000:320_000], 32_000, subtype="FLOAT")
    np.testing.assert_array_equal(
        load_wave(rows[0], 16_000, Recordings()).samples, decode.resample(read(alone), 16_000).samples
    )


def test_windows_that_cannot_be_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", sound(6.0))
    ids = ["a_5", "a_10", "a_15", "a_3", "nonsense", "b_5"]
    rows = windows_of(tmp_path, ids, Windows())
    assert [row.id for row in rows] == ids
    assert [row.clip.error is None for row in rows] == [True, True, True, False, False, False]
    with pytest.raises(ClipEmpty, match="a_15"):
        load_wave(rows[2], RATE, Recordings())
    assert len(load_wave(rows[1], RATE, Recordings()).samples) == 5 * RATE


def test_other_patterns_and_names_with_suffix(tmp_path: Path) -> None:
    write(tmp_path / "rec.ogg", sound(6.0))
    rows = windows_of(tmp_path, ["rec.ogg@2.5s", "rec.ogg@5s"], Windows(seconds=2.5, pattern="{stem}@{end}s"))
    assert [row.start for row in rows] == [0, 110_250]
    with pytest.raises(SpecError, match="pattern"):
        list_rows(["a_5"], find_clips(tmp_path, []), Windows(pattern="{stem}"))


def test_a_context_lies_around_its_window_in_samples_of_the_recording(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", sound(30.0, 8_000), 8_000)
    centred = windows_of(tmp_path, ["a_5", "a_30"], Windows(context_seconds=20.0))
    assert [(row.start, row.stop, row.before, row.after) for row in centred] == [
        (0, 40_000, 60_000, 60_000),
        (200_000, 240_000, 60_000, 60_000),
    ]
    after = Windows(context_seconds=10.0, context_before=0.0, edges="repeat")
    (behind,) = windows_of(tmp_path, ["a_5"], after)
    assert (behind.before, behind.after, behind.edges, behind.heard) == (0, 40_000, "repeat", 80_000)
    (alone,) = windows_of(tmp_path, ["a_5"], Windows())
    assert (alone.before, alone.after, alone.heard) == (0, 0, 40_000)
