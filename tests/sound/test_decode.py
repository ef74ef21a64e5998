"""Decoding whole files: every format gives soundfile's samples; channels, odd numbers, other rates."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from kernel.sound import decode
from tests.helpers.sounds import RATE, read, sound, write

EXACT = [
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAV", "ULAW"),
    ("WAV", "ALAW"),
    ("WAVEX", "PCM_16"),
    ("FLAC", "PCM_S8"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("AIFF", "PCM_16"),
    ("AIFF", "PCM_24"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("W64", "PCM_16"),
    ("RF64", "PCM_24"),
]
LOSSY = [("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("WAV", "GSM610"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
         ("MP3", "MPEG_LAYER_III")]


@pytest.mark.parametrize(("format", "subtype"), EXACT + LOSSY)
def test_samples_equal_soundfile_float32_whatever_the_name_says(
    tmp_path: Path, format: str, subtype: str
) -> None:
    rate = 8_000 if subtype == "GSM610" else 48_000 if subtype == "OPUS" else RATE
    path = write(tmp_path / "clip.mp3", sound(0.7, rate), rate, format, subtype)
    wave = read(path)
    with open(path, "rb") as file:
        expected, _ = soundfile.read(file, dtype="float32")
    assert wave.rate == rate and wave.samples.dtype == np.float32 and wave.notes == ()
    np.testing.assert_array_equal(wave.samples, expected)
    assert abs(len(wave.samples) - round(0.7 * rate)) <= (0 if (format, subtype) in EXACT else 2400)


@pytest.mark.parametrize("name", ["a.wav", "b.flac", "c.ogg"])
def test_an_mp3_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    made = write(tmp_path / "x.mp3", sound(0.7), format="MP3").rename(tmp_path / name)
    assert len(read(made).samples) == 30_870


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 96_000, 192_000, 384_000])
@pytest.mark.parametrize("channels", [1, 2, 5, 32])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_channels_are_averaged_at_any_rate(tmp_path: Path, rate: int, channels: int, subtype: str) -> None:
    path = write(tmp_path / "a.wav", sound(0.05, rate, channels), rate, subtype=subtype)
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
    wave = read(path)
    assert (wave.rate, len(wave.samples)) == (rate, len(expected))
    np.testing.assert_allclose(wave.samples, expected.mean(axis=1), rtol=1e-5, atol=1e-7)


def test_blocks_join_without_a_seam(tmp_path: Path) -> None:
    for name, channels, subtype in (("a.flac", 1, "PCM_16"), ("b.wav", 2, "PCM_16"), ("c.ogg", 1, "VORBIS"),
                                    ("d.wav", 2, "FLOAT")):
        path = write(tmp_path / name, sound(14.0, RATE, channels), subtype=subtype)
        expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
        np.testing.assert_array_equal(read(path).samples, expected.mean(axis=1))


def test_one_sample_silence_and_direct_current_are_audio(tmp_path: Path) -> None:
    for name, wave in (
        ("one.wav", np.array([0.25])),
        ("silence.flac", np.zeros(1000)),
        ("dc.wav", np.full(1000, 0.5)),
    ):
        found = read(write(tmp_path / name, wave))
        np.testing.assert_array_equal(found.samples, wave.astype(np.float32))
        assert found.notes == ()


def test_numbers_that_are_none_become_zero_and_loud_ones_are_clipped_with_a_note(tmp_path: Path) -> None:
    wave = np.array([0.5, np.nan, np.inf, -np.inf, 1e30, -1e30, 7.5], np.float32)
    for name, written in (("a.wav", wave), ("b.wav", np.stack([wave, wave], 1))):
        found = read(write(tmp_path / name, written, subtype="FLOAT"))
        np.testing.assert_array_equal(found.samples, np.array([0.5, 0, 0, 0, 8, -8, 7.5], np.float32))
        assert [note.split(":")[0] for note in found.notes] == ["nonfinite", "clipped"]
    found = read(write(tmp_path / "d.wav", np.array([1e300, 0.5]), subtype="DOUBLE"))
    assert found.samples.tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("rate", "to"), [(44_100, 16_000), (8_000, 44_100), (48_000, 32_000), (22_050, 44_100)]
)
def test_resampling_is_soxr_hq_of_a_length_rounded_up(rate: int, to: int) -> None:
    wave = decode.Wave(samples=sound(0.5001, rate), rate=rate, notes=("salvaged: x",))
    found = decode.resample(wave, to)
    expected = soxr.resample(wave.samples, rate, to, quality="HQ")
    assert len(found.samples) == int(np.ceil(len(wave.samples) * to / rate)) and found.notes == wave.notes
    count = min(len(expected), len(found.samples))
    np.testing.assert_array_equal(found.samples[:count], expected[:count])
    assert decode.resample(wave, rate) is wave


def test_a_single_sample_survives_resampling() -> None:
    wave = decode.Wave(samples=np.ones(1, np.float32), rate=384_000)
    assert len(decode.resample(wave, 16_000).samples) == 1
