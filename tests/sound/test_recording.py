"""Windows of a recording: the samples of the whole wave, read once and forward, in little memory."""
from __future__ import annotations

import errno
import os
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kernel.errors import ClipEmpty, ClipUnreadable
from kernel.sound import decode, recording
from kernel.sound.recording import MOST_OPEN, Recordings, count_open_bytes
from kernel.sound.rows import Row
from tests.helpers.sounds import RATE, clip_of, sound, write


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Ids of the recordings in the order in which they were opened."""
    ids: list[str] = []
    plain = recording.open_clip

    def counting(clip: decode.Clip) -> Any:
        ids.append(clip.id)
        return plain(clip)

    monkeypatch.setattr(recording, "open_clip", counting)
    return ids


def windows_of(clip: decode.Clip, seconds: float, count: int | None = None) -> list[Row]:
    """The windows that a clip's header promises, or so many."""
    length = round(seconds * clip.rate)
    count = -(-clip.samples_claimed // length) if count is None else count
    return [Row(id=f"{clip.id}_{i}", clip=clip, start=i * length, stop=(i + 1) * length)
            for i in range(count)]


def piece_of(whole: np.ndarray, row: Row) -> np.ndarray:
    assert row.start is not None and row.stop is not None
    piece = whole[row.start:row.stop]
    return np.pad(piece, (0, row.stop - row.start - len(piece)))


@pytest.mark.parametrize(("form", "subtype", "channels", "rate", "seconds"), [
    ("WAV", "PCM_16", 1, RATE, 5.0),
    ("WAV", "PCM_16", 3, 8_000, 0.3),
    ("WAV", "FLOAT", 2, RATE, 2.5),
    ("WAV", "FLOAT", 1, 192_000, 0.7),
    ("WAV", "ULAW", 1, 8_000, 5.0),
    ("FLAC", "PCM_24", 2, 48_000, 5.0),
    ("OGG", "VORBIS", 2, 32_000, 5.0),
    ("MP3", "MPEG_LAYER_III", 1, 22_050, 5.0),
])
def test_windows_are_the_samples_of_the_whole_wave_and_the_file_is_opened_once(
    tmp_path: Path, opened: list[str], form: str, subtype: str, channels: int, rate: int, seconds: float
) -> None:
    wave = sound(26.3, rate, channels)
    if subtype == "FLOAT":
        flat = wave.reshape(len(wave), -1)
        flat[3000, 0], flat[rate * 9, 0] = np.nan, 1e30
    clip = clip_of(write(tmp_path / "a", wave, rate, form, subtype))
    whole = decode.decode(clip, 900).samples
    recordings = Recordings()
    rows = windows_of(clip, seconds)
    for row in rows:
        np.testing.assert_array_equal(recordings.cut(row).samples, piece_of(whole, row))
    assert opened == ["a"]
    for row in (rows[-1], rows[1], rows[len(rows) // 2]):  # any order gives the same samples
        np.testing.assert_array_equal(recordings.cut(row).samples, piece_of(whole, row))


def test_overlapping_windows_and_a_late_one_are_cut_from_what_is_at_hand(
    tmp_path: Path, opened: list[str]
) -> None:
    clip = clip_of(write(tmp_path / "a.wav", sound(60.0, 8_000), 8_000))
    whole = decode.decode(clip, 900).samples
    recordings = Recordings()
    starts = [0, 20_000, 40_000, 10_000, 200_000, 160_000, 190_000, 440_000, 400_000]
    for start in starts:
        row = Row(id=f"a_{start}", clip=clip, start=start, stop=start + 40_000)
        np.testing.assert_array_equal(recordings.cut(row).samples, piece_of(whole, row))
    assert opened == ["a.wav"]


def test_what_was_wrong_is_said_of_the_windows_that_it_touches(tmp_path: Path) -> None:
    wave = sound(10.0, 8_000)
    wave[9_000] = np.inf
    clip = clip_of(write(tmp_path / "a.wav", wave, 8_000, subtype="FLOAT"))
    notes = [Recordings().cut(row).notes for row in windows_of(clip, 1.0, 4)]
    assert [bool(note) for note in notes] == [False, True, False, False]
    assert notes[1][0].startswith("nonfinite: 1 samples")


def test_a_recording_that_ends_before_its_header_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", sound(30.0, 16_000), 16_000)
    clip = clip_of(path)
    os.truncate(path, path.stat().st_size // 2)
    recordings = Recordings()
    whole = decode.decode(clip, 900)
    end = len(whole.samples) / 16_000
    rows = windows_of(clip, 5.0)
    last = int(end // 5)
    for row in rows[:last]:
        assert recordings.cut(row).notes == ()
    assert recordings.cut(rows[last]).notes == whole.notes != ()
    np.testing.assert_array_equal(recordings.cut(rows[last]).samples, piece_of(whole.samples, rows[last]))
    with pytest.raises(ClipEmpty, match=rf"begins at {5 * last + 5} s, .*{end:.2f} s.*keeps the prior"):
        recordings.cut(rows[last + 1])


@pytest.mark.parametrize(("limit", "message"), [
    (float("inf"), r"begins at 15 s, the audio ends at 12.00 s; its row"),
    (7.0, r"begins at 15 s, only the first 7 s of a recording are read \(max_seconds\); its row"),
    (12.0, r"begins at 15 s, the audio ends at 12.00 s; its row"),
])
def test_the_reason_why_a_window_has_no_sound_is_true(tmp_path: Path, limit: float, message: str) -> None:
    clip = clip_of(write(tmp_path / "a.wav", sound(12.0, 8_000), 8_000))
    recordings = Recordings(limit)
    rows = windows_of(clip, 5.0, 4)
    wave = recordings.cut(rows[1])
    assert [note.split(":")[0] for note in wave.notes] == (["ClipTooLong"] if limit == 7.0 else [])
    if limit == 7.0:
        assert not wave.samples[2 * 8_000:].any() and wave.samples[:2 * 8_000].any()
    with pytest.raises(ClipEmpty, match=message):
        recordings.cut(rows[3])


def test_a_beginning_that_cannot_be_decoded_costs_every_window(tmp_path: Path, opened: list[str]) -> None:
    path = write(tmp_path / "a.flac", sound(30.0, 16_000), 16_000)
    clip = clip_of(path)
    os.truncate(path, 9_000)
    recordings = Recordings()
    for row in windows_of(clip, 5.0):
        with pytest.raises(ClipUnreadable, match="the decoder failed after 0"):
            recordings.cut(row)
    assert opened == ["a.flac"]  # asked once


def test_a_decoder_that_fails_late_is_not_asked_again_for_what_lies_behind(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = clip_of(write(tmp_path / "a.wav", sound(100.0, 8_000), 8_000))
    plain = recording.read_mono

    def fails_late(stream: Any, count: int, before: int = 0) -> Any:
        if before > 300_000:
            raise ZeroDivisionError("struck")
        return plain(stream, count, before)

    monkeypatch.setattr(recording, "read_mono", fails_late)
    recordings = Recordings()
    rows = windows_of(clip, 5.0)
    for row in rows[:13]:
        recordings.cut(row)
    for row in rows[13:]:
        with pytest.raises(ClipUnreadable, match="ZeroDivisionError: struck"):
            recordings.cut(row)
    assert recordings.cut(rows[0]).samples.any() and opened == ["a.wav", "a.wav"]


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    rate = 8_000
    peaks = []
    for minutes in (2, 60):
        path = write(tmp_path / "a.wav", np.ones(800), rate)
        header = bytearray(path.read_bytes()[:44])
        size = minutes * 60 * rate * 2
        header[4:8], header[40:44] = (size + 36).to_bytes(4, "little"), size.to_bytes(4, "little")
        path.write_bytes(header)
        os.truncate(path, 44 + size)
        clip = clip_of(path)
        recordings = Recordings()
        rows = windows_of(clip, 5.0)
        tracemalloc.start()
        for row in rows:
            recordings.cut(row)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000 and peaks[1] < count_open_bytes(rows[0]) + 2**20


def test_threads_that_ask_side_by_side_share_one_reading(tmp_path: Path, opened: list[str]) -> None:
    clip = clip_of(write(tmp_path / "a.ogg", sound(120.0, 8_000), 8_000))
    whole = decode.decode(clip, 900).samples
    recordings = Recordings()
    rows = windows_of(clip, 2.0)
    wrong: list[str] = []

    def take(mine: list[Row], turns: threading.Barrier) -> None:
        for row in mine:
            turns.wait(20)
            if not np.array_equal(recordings.cut(row).samples, piece_of(whole, row)):
                wrong.append(row.id)

    turns = threading.Barrier(4)
    threads = [threading.Thread(target=take, args=(rows[i::4], turns)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == [] and opened == ["a.ogg"]


def test_few_recordings_wait_open_and_give_way_where_descriptors_are_short(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [clip_of(write(tmp_path / f"{i}.wav", sound(4.0, 8_000), 8_000)) for i in range(MOST_OPEN + 4)]
    recordings = Recordings()
    before = len(os.listdir("/proc/self/fd"))
    for half in (0, 1):
        for clip in clips:
            recordings.cut(windows_of(clip, 2.0)[half])
            assert len(os.listdir("/proc/self/fd")) <= before + MOST_OPEN
    plain = os.open

    def exhausted(path: Any, *more: Any, **named: Any) -> int:
        if len(os.listdir("/proc/self/fd")) > before:
            raise OSError(errno.EMFILE, "Too many open files")
        return plain(path, *more, **named)

    last = write(tmp_path / "last.wav", sound(4.0, 8_000), 8_000)
    row = windows_of(clip_of(last), 2.0)[0]
    recordings.cut(windows_of(clips[0], 2.0)[0])
    monkeypatch.setattr(os, "open", exhausted)
    assert recordings.cut(row).samples.any()
    recordings.close()


def test_every_read_gives_a_sign_of_life(tmp_path: Path) -> None:
    clip = clip_of(write(tmp_path / "a.wav", sound(200.0, 8_000), 8_000))
    beats: list[int] = []
    recordings = Recordings(beat=lambda: beats.append(1))
    recordings.cut(windows_of(clip, 5.0)[-1])
    assert len(beats) == -(-200 * 8_000 // decode.READ_SAMPLES)


# -- what lies around a window


def heard_of(
    clip: decode.Clip, window: int, before: int, after: int, edges: str = "zeros", count: int | None = None
) -> list[np.ndarray]:
    """What is cut for each window of a recording, in time order."""
    rows = windows_of(clip, window / clip.rate, count)
    recordings = Recordings()
    return [recordings.cut(replace(row, before=before, after=after, edges=edges)).samples for row in rows]


def ramp_of(tmp_path: Path, samples: int, rate: int = 4_000) -> decode.Clip:
    """A recording of 1, 2, 3 ... / 32768: a sample says where it came from, zeros are padding."""
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.arange(1, samples + 1, dtype=np.int16), rate, subtype="PCM_16")
    return clip_of(path)


@pytest.mark.parametrize(("samples", "window", "before", "after"), [
    (24_000, 2_000, 0, 0),
    (19_000, 2_000, 3_000, 3_000),
    (10_100, 1_000, 0, 1_000),
    (900, 2_000, 5_000, 5_000),
    (25_000, 500, 2_250, 2_250),
])
def test_a_context_is_the_audio_around_a_window_with_zeros_beyond_the_ends(
    tmp_path: Path, opened: list[str], samples: int, window: int, before: int, after: int
) -> None:
    wave = np.arange(1, samples + 1, dtype=np.float32) / 32768
    padded = np.pad(wave, (before, window + after))
    heard = heard_of(ramp_of(tmp_path, samples), window, before, after)
    assert len(heard) == -(-samples // window) and opened == ["ramp.wav"]
    for i, cut in enumerate(heard):
        np.testing.assert_array_equal(cut, padded[i * window:][: before + window + after])


def test_beyond_the_ends_the_first_and_the_last_window_are_heard_again(tmp_path: Path) -> None:
    heard = [np.round(cut * 32768).astype(int) for cut in
             heard_of(ramp_of(tmp_path, 12_000), 3_000, 1_500, 1_500, "repeat")]
    ends = [[cut[0], cut[1499], cut[1500], cut[4499], cut[4500], cut[5999]] for cut in heard]
    assert ends == [
        [1501, 3000, 1, 3000, 3001, 4500],
        [1501, 3000, 3001, 6000, 6001, 7500],
        [4501, 6000, 6001, 9000, 9001, 10500],
        [7501, 9000, 9001, 12000, 9001, 10500],
    ]


def test_an_only_window_that_is_not_whole_is_repeated_with_its_zeros(tmp_path: Path) -> None:
    (cut,) = heard_of(ramp_of(tmp_path, 1_900), 3_000, 4_000, 4_000, "repeat")
    own = np.pad(np.arange(1, 1_901), (0, 1_100))
    np.testing.assert_array_equal(np.round(cut * 32768), np.tile(own, 5)[2_000:13_000])


def test_a_last_window_that_is_not_whole_may_have_its_zeros_in_front(tmp_path: Path) -> None:
    heard = heard_of(ramp_of(tmp_path, 5_000), 2_000, 0, 0, "front")
    assert not heard[-1][:1_000].any() and round(heard[-1][1_000] * 32768) == 4_001
    np.testing.assert_array_equal(heard[0], heard_of(ramp_of(tmp_path, 5_000), 2_000, 0, 0)[0])


def test_a_window_behind_the_end_has_no_sound_whatever_its_context_hears(tmp_path: Path) -> None:
    with pytest.raises(ClipEmpty, match="begins at 2.5 s, the audio ends at 2.50 s"):
        heard_of(ramp_of(tmp_path, 10_000), 2_000, 4_000, 4_000, count=6)
