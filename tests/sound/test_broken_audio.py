"""Broken and hostile files: each gives what can be saved of it, or a named error, and never waits."""
from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kernel.errors import ClipEmpty, ClipError, ClipUnreadable
from kernel.sound import decode, mpeg_words
from kernel.sound.clips import find_clips
from kernel.sound.rows import list_rows
from tests.helpers import fuzz_audio
from tests.helpers.sounds import RATE, clip_of, read, sound, write


def fault_of(path: Path, max_seconds: float = 60.0) -> ClipError:
    """The named error of a file that must not decode, from probe or decode."""
    with pytest.raises(ClipError) as caught:
        read(path, max_seconds)
    assert path.name in str(caught.value) or repr(path.name)[1:-1] in str(caught.value)
    return caught.value


def riff(rate: int = RATE, channels: int = 1, bits: int = 16, codec: int = 1, data: bytes = b"\1\0" * 4000,
         claim: int | None = None, riff_size: int | None = None) -> bytes:
    """A WAV file with any header fields."""
    block = max(1, channels * bits // 8) & 0xFFFF
    head = struct.pack("<HHIIHH", codec, channels, rate, (rate * block) & 0xFFFFFFFF, block, bits)
    size = len(data) if claim is None else claim
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", len(body) if riff_size is None else riff_size) + body


BROKEN = {
    "empty.wav": b"",
    "three.wav": b"RIF",
    "text.wav": b"once upon a time " * 50,
    "random.ogg": bytes(range(256)) * 16,
    "random.mp3": np.random.default_rng(5).bytes(5000),
    "cut_header.wav": riff()[:30],
    "no_channel.wav": riff(channels=0),
    "channels.wav": riff(channels=65_535),
    "no_rate.wav": riff(rate=0),
    "one_hertz.wav": riff(rate=1),
    "slow.wav": riff(rate=3_999),
    "fast.wav": riff(rate=2**31 - 1),
    "faster.wav": riff(rate=384_001),
    "no_bits.wav": riff(bits=0),
    "codec.wav": riff(codec=0x1234),
    "id3.mp3": b"ID3\4\0\0\x7f\x7f\x7f\x7f" + b"\0" * 3000,
    "oggs.ogg": b"OggS" + b"\0" * 500,
    "flac.flac": b"fLaC" + b"\0" * 500,
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_audio_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BROKEN[name])
    assert fault_of(tmp_path / name).code == "ClipUnreadable"


def test_a_clip_with_an_error_raises_it_from_decode_every_time(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIF")
    clip = clip_of(tmp_path / "a.wav")
    for _ in range(2):
        with pytest.raises(ClipUnreadable, match="a.wav"):
            decode.decode(clip, 60)


def test_a_file_without_samples_is_empty(tmp_path: Path) -> None:
    for name, format in (("a.wav", "WAV"), ("b.au", "AU"), ("c.aiff", "AIFF")):
        assert isinstance(fault_of(write(tmp_path / name, np.zeros(0), format=format)), ClipEmpty)


@pytest.mark.parametrize("claim", [0, 0xFFFFFFFF, 0x7FFFFFFF, 9])
def test_wrong_riff_sizes_give_what_is_there_or_a_name(tmp_path: Path, claim: int) -> None:
    (tmp_path / "a.wav").write_bytes(riff(riff_size=claim))
    assert len(read(tmp_path / "a.wav").samples) == 4000
    (tmp_path / "b.wav").write_bytes(riff(claim=claim))
    try:
        assert 1 <= len(read(tmp_path / "b.wav").samples) <= 4000
    except ClipEmpty:
        assert claim == 0


def traced_peak(path: Path, max_seconds: float) -> tuple[decode.Wave, int]:
    tracemalloc.start()
    try:
        return read(path, max_seconds), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_ten_claimed_hours_in_a_sparse_file_cost_the_cap_only(tmp_path: Path) -> None:
    path = tmp_path / "sparse.wav"
    size = 10 * 3600 * RATE * 2
    path.write_bytes(riff(claim=size, riff_size=size + 36))
    os.truncate(path, size + 44)
    wave, peak = traced_peak(path, 10)
    assert len(wave.samples) == 10 * RATE and wave.notes[0].startswith("ClipTooLong")
    assert peak < 10 * RATE * 4 + 4 * 2**20


def test_hours_of_silence_in_a_small_flac_cost_the_cap_only(tmp_path: Path) -> None:
    path = tmp_path / "bomb.flac"
    with soundfile.SoundFile(path, "w", 8_000, 1, "PCM_16") as file:
        for _ in range(60):
            file.write(np.zeros(60 * 8_000, np.int16))
    wave, peak = traced_peak(path, 30)
    assert len(wave.samples) == 30 * 8_000 and wave.notes[0].startswith("ClipTooLong") and peak < 6 * 2**20


def test_a_flac_that_does_not_say_its_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", sound(1.5))
    expected = read(path).samples
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # low 4 bits and the next 4 bytes of STREAMINFO: total samples, 0 = unknown
    data[22:26] = b"\0\0\0\0"
    path.write_bytes(data)
    clip = clip_of(path)
    assert clip.samples_claimed >= len(expected) and clip.samples_claimed <= 2**40
    wave = decode.decode(clip, 60)
    np.testing.assert_array_equal(wave.samples, expected)
    assert wave.notes == ()


def test_exactly_the_cap_is_not_too_long(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", sound(2.0))
    assert read(path, 2.0).notes == ()
    assert len(read(path, 1.0).samples) == RATE and read(path, 1.0).notes[0].startswith("ClipTooLong")


def test_a_cut_flac_is_salvaged_or_named_by_what_came_before(tmp_path: Path) -> None:
    whole = read(write(tmp_path / "a.flac", sound(3.0))).samples
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 2])
    wave = read(tmp_path / "a.flac")
    assert wave.notes[0].startswith("salvaged") and RATE < len(wave.samples) < 2 * RATE
    np.testing.assert_array_equal(wave.samples, whole[: len(wave.samples)])
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 12])
    assert "decoder failed after 0." in str(fault_of(tmp_path / "a.flac"))


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"),
                                                 ("MP3", "MPEG_LAYER_III")])
def test_cut_and_flipped_files_give_a_prefix_or_a_name_never_more(
    tmp_path: Path, format: str, subtype: str
) -> None:
    data = write(tmp_path / "whole", sound(1.0), format=format, subtype=subtype).read_bytes()
    rng = np.random.default_rng(1)
    for i in range(40):
        at = int(rng.integers(len(data)))
        changed = (
            data[:at]
            if i % 2
            else data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
        )
        (tmp_path / "mutant").write_bytes(changed)
        try:
            wave = read(tmp_path / "mutant")
        except ClipError as error:
            assert error.code in ("ClipUnreadable", "ClipEmpty")
            continue
        assert np.isfinite(wave.samples).all() and 1 <= len(wave.samples) <= 60 * wave.rate


def test_a_short_prefix_without_a_decoder_error_is_predicted_with_a_note(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3", sound(3.0))
    path.write_bytes(path.read_bytes()[:12_000])
    wave = read(path)
    assert wave.notes[0].startswith("short") and RATE // 2 < len(wave.samples) < 3 * RATE


def test_an_mp3_behind_foreign_bytes_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3", sound(1.0))
    expected = read(path).samples
    path.write_bytes(b"\x11" * 3000 + path.read_bytes())
    wave = read(path)
    assert abs(len(wave.samples) - len(expected)) <= 2 * 1152


@pytest.mark.parametrize("name", ["with\nnewline.wav", "-rf.wav", "%s%n.wav", "{0}.wav", "\udcff\udcfe.wav",
                                  "\u00fcn\u00efcode \u97f3.wav", "n" * 251 + ".wav", "a,b'\".wav"])
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    write(tmp_path / "plain.wav", sound(0.1)).rename(tmp_path / name)
    row, = list_rows([name], find_clips(tmp_path, [name]), None)
    assert row.id == name and len(decode.decode(row.clip, 60).samples) == 4410


def make_special(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.fspath(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(
            {"device": "/dev/zero", "tty": "/dev/tty", "dangling": "nowhere.wav", "loop": path.name}[kind]
        )


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device", "tty", "dangling", "loop"])
@pytest.mark.timeout(10)
def test_what_is_no_regular_file_is_named_without_waiting(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may not be long
    make_special(Path("x.wav"), kind)
    index = find_clips(tmp_path, ["x.wav"])
    row, = list_rows(["x.wav"], index, None)
    assert isinstance(row.clip.error, ClipUnreadable) and "x.wav" in str(row.clip.error)


def test_links_out_of_the_input_are_followed_to_audio_files_only(tmp_path: Path) -> None:
    root = tmp_path / "input"
    write(root / "store/real.wav", sound(0.1))
    write(tmp_path / "secret.wav", sound(0.1)).rename(tmp_path / "secret.key")
    write(tmp_path / "mine.wav", sound(0.1))
    (root / "test").mkdir()
    (root / "test/in.wav").symlink_to("../store/real.wav")
    (root / "test/own.wav").symlink_to(tmp_path / "mine.wav")
    (root / "test/out.wav").symlink_to(tmp_path / "secret.key")
    ids = ["in.wav", "own.wav", "out.wav"]
    rows = list_rows(ids, find_clips(root, ids), None)
    for row in rows[:2]:
        assert row.clip.error is None and len(decode.decode(row.clip, 60).samples) == 4410
    error = rows[2].clip.error
    assert isinstance(error, ClipUnreadable) and "outside the input folder" in str(error)


def test_a_file_we_may_not_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "a.wav", sound(0.1))
        path.chmod(0)
        os.chmod(folder, 0o755)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65_534)  # root may read everything
            assert "ermission" in str(fault_of(path))
        finally:
            os.seteuid(user)


def test_a_file_that_changes_or_goes_after_the_listing_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", sound(0.1))
    clip = clip_of(path)
    write(path, sound(0.1, 8_000), 8_000)
    with pytest.raises(ClipUnreadable, match="changed"):
        decode.decode(clip, 60)
    path.unlink()
    with pytest.raises(ClipUnreadable, match="cannot be opened"):
        decode.decode(clip, 60)
    write(tmp_path / "other.wav", sound(0.1))
    path.symlink_to("other.wav")
    with pytest.raises(ClipUnreadable, match="links to"):
        decode.decode(clip, 60)


def test_no_file_descriptor_is_left_open(tmp_path: Path) -> None:
    good = write(tmp_path / "a.wav", sound(0.1))
    bad = tmp_path / "b.mp3"
    bad.write_bytes(b"nothing")
    read(good)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        read(good)
        fault_of(bad)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.timeout(120)
def test_mutants_are_decoded_or_named_and_none_kills_its_process() -> None:
    report = fuzz_audio.run(150, seed=0, batch=150)
    assert (report.wrong, report.crashed, report.hung) == ({}, {}, [])
    assert sum(report.outcomes.values()) == 150 and len(report.outcomes) >= 3
    assert report.peak_bytes < 300 * 2**20


def test_a_mutant_is_the_same_each_time() -> None:
    assert fuzz_audio.mutate(fuzz_audio.make_bases(), 0, 7) == fuzz_audio.mutate(
        fuzz_audio.make_bases(), 0, 7
    )


TAGS = {  # Frames of an ID3v2.3 tag that libmpg123 complains about
    "encoding": b"TIT2\0\0\0\5\0\0\x09abcd",
    "longer than the tag": b"TIT2\0\0\x13\x08\0\0\0abc",
    "half a letter": b"TIT2\0\0\0\5\0\0\1\xff\xfe\0\xd8",
    "comment": b"COMM\0\0\0\2\0\0\0e",
}


def tagged(path: Path, frame: bytes) -> Path:
    path.write_bytes(b"ID3\3\0\0" + bytes([0, 0, 0, len(frame)]) + frame + path.read_bytes())
    return path


@pytest.mark.parametrize("frame", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("name", ["a.mp3", "a.bin"])
def test_words_about_damaged_tags_stay_off_the_terminal(
    name: str, frame: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tagged(write(tmp_path / "made.mp3", sound(0.7), format="MP3").rename(tmp_path / name), frame)
    soundfile.SoundFile(path).close()
    if "libmpg123" not in capfd.readouterr().err:
        pytest.skip("this libsndfile does not print what libmpg123 finds in tags")
    wave = decode.decode(decode.probe("a", path, tmp_path), 60.0)
    assert len(wave.samples) >= 0.7 * RATE and capfd.readouterr().err == ""


def test_what_others_write_meanwhile_is_not_lost(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with mpeg_words.drop_tag_warnings():
        os.write(2, b"mine\n\n[src/libmpg123/id3.c:f():1] error: a tag\n")
        os.write(2, b"Warning: mine too\n")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "mine\nWarning: mine too\n"


def test_a_closed_standard_error_costs_no_clip(tmp_path: Path) -> None:
    path = tagged(write(tmp_path / "a.mp3", sound(0.7), format="MP3"), TAGS["comment"])
    code = (
        "import os, sys, pathlib; os.close(2); from kernel.sound import decode; "
        "path = pathlib.Path(sys.argv[1]); clip = decode.probe('a', path, path.parent); "
        "print(len(decode.decode(clip, 60.0).samples), os.path.exists('/proc/self/fd/2'))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[0]) >= 0.7 * RATE and done.stdout.split()[1] == "False"
