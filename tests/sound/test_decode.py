"""Audio intake against crafted files: ids and folders, formats, broken and hostile files, windows,
resampling.
"""
from __future__ import annotations

import os
import socket
import struct
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from kernel.errors import ClipEmpty, ClipError, ClipUnreadable, SpecError
from kernel.sound import decode as audio
from kernel.spec import Windows
from tests.helpers import fuzz_audio

RATE = 44_100


def sound(seconds: float = 1.0, rate: int = RATE, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Decaying tones in noise, f32[S] or [S, C], |x| < 1."""
    rng = np.random.default_rng(seed)
    t = np.arange(max(1, round(seconds * rate))) / rate
    tones = [0.5 * np.exp(-t) * np.sin(2 * np.pi * 330 * (c + 1) * t) for c in range(channels)]
    wave = (np.stack(tones, axis=1) + 0.05 * rng.standard_normal((len(t), channels))).astype(np.float32)
    return wave[:, 0] if channels == 1 else wave


def write(
    path: Path, wave: np.ndarray, rate: int = RATE, format: str | None = None, subtype: str | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, format=format, subtype=subtype)
    return path


def clip_of(path: Path, root: Path | None = None) -> audio.Clip:
    return audio.probe(path.name, path, root or path.parent)


def decode(path: Path, max_seconds: float = 60.0) -> audio.Wave:
    return audio.decode(clip_of(path), max_seconds)


def fault_of(path: Path, max_seconds: float = 60.0) -> ClipError:
    """The named error of a file that must not decode, from probe or decode."""
    with pytest.raises(ClipError) as caught:
        decode(path, max_seconds)
    assert path.name in str(caught.value) or repr(path.name)[1:-1] in str(caught.value)
    return caught.value


# -- ids and folders
# --------------------------------------------------------------------------------------------------

def plant(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


@pytest.mark.parametrize("folder", ["test", "audio_test", "test_soundscapes", "competition/data/test", ""])
def test_the_clip_folder_is_the_one_that_resolves_most_ids(tmp_path: Path, folder: str) -> None:
    names = [f"{i}.wav" for i in range(5)]
    plant(tmp_path, [f"{folder}/{n}".lstrip("/") for n in names])
    plant(tmp_path, ["train/0.wav", "train/1.wav", "train/x.wav", "notes.txt"])
    index = audio.find_clips(tmp_path, [*names, "missing.wav"])
    assert index.folder == tmp_path / folder
    assert [index.path(n) for n in names] == [tmp_path / folder / n for n in names]
    assert index.path("missing.wav") is None and "missing.wav" in str(index.error("missing.wav"))


def test_the_same_names_in_train_and_test_mean_the_test_clips(tmp_path: Path) -> None:
    plant(tmp_path, ["a_train/1.wav", "b_test/1.wav", "c_other/1.wav"])
    assert audio.find_clips(tmp_path, ["1.wav"]).folder == tmp_path / "b_test"


def test_ids_are_paths_else_base_names_else_stems(tmp_path: Path) -> None:
    plant(
        tmp_path,
        ["clips/a/1.wav", "clips/a/2.wav", "clips/b/1.wav", "clips/b/3.ogg", "clips/4.flac", "clips/4.txt"],
    )
    index = audio.find_clips(tmp_path, ["a/1.wav", "b/1.wav", "2.wav", "3", "4", "b/3"])
    found = {id: path.relative_to(tmp_path / "clips").as_posix() for id, path in index.paths.items()}
    assert found == {
        "a/1.wav": "a/1.wav",
        "b/1.wav": "b/1.wav",
        "2.wav": "a/2.wav",
        "3": "b/3.ogg",
        "4": "4.flac",
        "b/3": "b/3.ogg",
    }
    assert index.extra == 0


def test_an_id_that_could_mean_several_files_is_a_named_error_for_that_id_alone(tmp_path: Path) -> None:
    plant(tmp_path, ["test/a/1.wav", "test/b/1.wav", "test/c/2.wav", "test/5.wav", "test/5.flac"])
    index = audio.find_clips(tmp_path, ["1.wav", "c/2.wav", "5", "2.wav"])
    assert index.path("1.wav") is None and index.ambiguous["1.wav"] == ("a/1.wav", "b/1.wav")
    assert index.path("5") is None and index.path("c/2.wav") is not None
    rows = audio.list_rows(["1.wav"], index, None)
    assert isinstance(rows[0].clip.error, ClipUnreadable) and "'a/1.wav', 'b/1.wav'" in str(
        rows[0].clip.error
    )


def test_a_file_right_in_the_folder_is_meant_before_deeper_ones(tmp_path: Path) -> None:
    plant(tmp_path, ["test/1.wav", "test/old/1.wav", "test/2.wav"])
    index = audio.find_clips(tmp_path, ["1.wav", "2.wav"])
    assert index.path("1.wav") == tmp_path / "test/1.wav" and index.extra == 1


def test_extra_audio_is_counted_in_the_clip_folder_only(tmp_path: Path) -> None:
    plant(tmp_path, ["test/1.wav", "test/2.wav", "test/3.mp3", "test/readme.md", "train/9.wav"])
    assert audio.find_clips(tmp_path, ["1.wav"]).extra == 2


def test_thousands_of_neighbours_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for i in range(3000):
        os.close(os.open(tmp_path / "train" / f"{i}.wav", os.O_CREAT | os.O_WRONLY))
    plant(tmp_path, [f"test/t{i}.wav" for i in range(20)])
    index = audio.find_clips(tmp_path, [f"t{i}.wav" for i in range(20)])
    assert len(index.paths) == 20 and index.folder == tmp_path / "test" and index.extra == 0


def test_a_dataset_may_be_a_link_and_a_loop_of_links_ends(tmp_path: Path) -> None:
    outside = plant(tmp_path / "mount", ["sub/1.wav", "2.wav"])
    root = tmp_path / "input"
    root.mkdir()
    (root / "data").symlink_to(outside, target_is_directory=True)
    (root / "loop").symlink_to(root, target_is_directory=True)
    (outside / "up").symlink_to(tmp_path, target_is_directory=True)
    write(outside / "sub/1.wav", sound(0.1))
    index = audio.find_clips(root, ["sub/1.wav", "2.wav"])
    assert len(index.paths) == 2
    assert audio.list_rows(["sub/1.wav"], index, None)[0].clip.error is None


def test_rows_stand_in_the_order_of_the_ids_and_missing_clips_carry_an_error(tmp_path: Path) -> None:
    write(tmp_path / "test/a.wav", sound(0.1))
    ids = ["z.wav", "a.wav", "m.wav"]
    rows = audio.list_rows(ids, audio.find_clips(tmp_path, ids), None)
    assert [row.id for row in rows] == ids and [row.clip.error is None for row in rows] == [
        False,
        True,
        False,
    ]
    assert (rows[1].clip.rate, rows[1].clip.channels, rows[1].clip.samples_claimed) == (RATE, 1, 4410)


def test_headers_are_read_once_per_recording_by_the_prober_given(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", sound(0.1))
    seen = []

    def prober(id: str, path: Path, roots: Sequence[Path]) -> audio.Clip:
        seen.append((id, path, tuple(roots)))
        return audio.Clip(id=id, error=ClipUnreadable("refused"))

    rows = audio.list_rows(["a_5", "a_10", "b_5"], audio.find_clips(tmp_path, ["a"]), Windows(), prober)
    assert seen == [("a", tmp_path / "a.wav", (tmp_path.resolve(),))]
    assert str(rows[1].clip.error) == "refused"


# -- formats that exist in the world
# ----------------------------------------------------------------------------------

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
    wave = decode(path)
    with open(path, "rb") as file:
        expected, _ = soundfile.read(file, dtype="float32")
    assert wave.rate == rate and wave.samples.dtype == np.float32 and wave.notes == ()
    np.testing.assert_array_equal(wave.samples, expected)
    assert abs(len(wave.samples) - round(0.7 * rate)) <= (0 if (format, subtype) in EXACT else 2400)


@pytest.mark.parametrize("name", ["a.wav", "b.flac", "c.ogg"])
def test_an_mp3_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    made = write(tmp_path / "x.mp3", sound(0.7), format="MP3").rename(tmp_path / name)
    assert len(decode(made).samples) == 30_870


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 96_000, 192_000, 384_000])
@pytest.mark.parametrize("channels", [1, 2, 5, 32])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_channels_are_averaged_at_any_rate(tmp_path: Path, rate: int, channels: int, subtype: str) -> None:
    path = write(tmp_path / "a.wav", sound(0.05, rate, channels), rate, subtype=subtype)
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
    wave = decode(path)
    assert (wave.rate, len(wave.samples)) == (rate, len(expected))
    np.testing.assert_allclose(wave.samples, expected.mean(axis=1), rtol=1e-5, atol=1e-7)


def test_blocks_join_without_a_seam(tmp_path: Path) -> None:
    for name, channels, subtype in (("a.flac", 1, "PCM_16"), ("b.wav", 2, "PCM_16"), ("c.ogg", 1, "VORBIS"),
                                    ("d.wav", 2, "FLOAT")):
        path = write(tmp_path / name, sound(14.0, RATE, channels), subtype=subtype)
        expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
        np.testing.assert_array_equal(decode(path).samples, expected.mean(axis=1))


def test_one_sample_silence_and_direct_current_are_audio(tmp_path: Path) -> None:
    for name, wave in (
        ("one.wav", np.array([0.25])),
        ("silence.flac", np.zeros(1000)),
        ("dc.wav", np.full(1000, 0.5)),
    ):
        found = decode(write(tmp_path / name, wave))
        np.testing.assert_array_equal(found.samples, wave.astype(np.float32))
        assert found.notes == ()


def test_numbers_that_are_none_become_zero_and_loud_ones_are_clipped_with_a_note(tmp_path: Path) -> None:
    wave = np.array([0.5, np.nan, np.inf, -np.inf, 1e30, -1e30, 7.5], np.float32)
    for name, written in (("a.wav", wave), ("b.wav", np.stack([wave, wave], 1))):
        found = decode(write(tmp_path / name, written, subtype="FLOAT"))
        np.testing.assert_array_equal(found.samples, np.array([0.5, 0, 0, 0, 8, -8, 7.5], np.float32))
        assert [note.split(":")[0] for note in found.notes] == ["nonfinite", "clipped"]
    assert decode(write(tmp_path / "d.wav", np.array([1e300, 0.5]), subtype="DOUBLE")).samples.tolist() == [
        0.0,
        0.5,
    ]


# -- broken and hostile files
# -----------------------------------------------------------------------------------------

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
            audio.decode(clip, 60)


def test_a_file_without_samples_is_empty(tmp_path: Path) -> None:
    for name, format in (("a.wav", "WAV"), ("b.au", "AU"), ("c.aiff", "AIFF")):
        assert isinstance(fault_of(write(tmp_path / name, np.zeros(0), format=format)), ClipEmpty)


@pytest.mark.parametrize("claim", [0, 0xFFFFFFFF, 0x7FFFFFFF, 9])
def test_wrong_riff_sizes_give_what_is_there_or_a_name(tmp_path: Path, claim: int) -> None:
    (tmp_path / "a.wav").write_bytes(riff(riff_size=claim))
    assert len(decode(tmp_path / "a.wav").samples) == 4000
    (tmp_path / "b.wav").write_bytes(riff(claim=claim))
    try:
        assert 1 <= len(decode(tmp_path / "b.wav").samples) <= 4000
    except ClipEmpty:
        assert claim == 0


def traced_peak(path: Path, max_seconds: float) -> tuple[audio.Wave, int]:
    tracemalloc.start()
    try:
        return decode(path, max_seconds), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_ten_claimed_hours_in_a_sparse_file_cost_the_cap_only(tmp_path: Path) -> None:
    path, size = tmp_path / "sparse.wav", 10 * 3600 * RATE * 2
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
    expected = decode(path).samples
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # low 4 bits and the next 4 bytes of STREAMINFO: total samples, 0 = unknown
    data[22:26] = b"\0\0\0\0"
    path.write_bytes(data)
    clip = clip_of(path)
    assert clip.samples_claimed >= len(expected) and clip.samples_claimed <= 2**40
    wave = audio.decode(clip, 60)
    np.testing.assert_array_equal(wave.samples, expected)
    assert wave.notes == ()


def test_exactly_the_cap_is_not_too_long(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", sound(2.0))
    assert decode(path, 2.0).notes == ()
    assert len(decode(path, 1.0).samples) == RATE and decode(path, 1.0).notes[0].startswith("ClipTooLong")


def test_a_cut_flac_is_salvaged_or_named_by_what_came_before(tmp_path: Path) -> None:
    whole = decode(write(tmp_path / "a.flac", sound(3.0))).samples
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 2])
    wave = decode(tmp_path / "a.flac")
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
            wave = decode(tmp_path / "mutant")
        except ClipError as error:
            assert error.code in ("ClipUnreadable", "ClipEmpty")
            continue
        assert np.isfinite(wave.samples).all() and 1 <= len(wave.samples) <= 60 * wave.rate


def test_a_short_prefix_without_a_decoder_error_is_predicted_with_a_note(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3", sound(3.0))
    path.write_bytes(path.read_bytes()[:12_000])
    wave = decode(path)
    assert wave.notes[0].startswith("short") and RATE // 2 < len(wave.samples) < 3 * RATE


def test_an_mp3_behind_foreign_bytes_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3", sound(1.0))
    expected = decode(path).samples
    path.write_bytes(b"\x11" * 3000 + path.read_bytes())
    wave = decode(path)
    assert abs(len(wave.samples) - len(expected)) <= 2 * 1152


@pytest.mark.parametrize("name", ["with\nnewline.wav", "-rf.wav", "%s%n.wav", "{0}.wav", "\udcff\udcfe.wav",
                                  "\u00fcn\u00efcode \u97f3.wav", "n" * 251 + ".wav", "a,b'\".wav"])
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    write(tmp_path / "plain.wav", sound(0.1)).rename(tmp_path / name)
    row, = audio.list_rows([name], audio.find_clips(tmp_path, [name]), None)
    assert row.id == name and len(audio.decode(row.clip, 60).samples) == 4410


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
    index = audio.find_clips(tmp_path, ["x.wav"])
    row, = audio.list_rows(["x.wav"], index, None)
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
    rows = audio.list_rows(ids, audio.find_clips(root, ids), None)
    assert all(row.clip.error is None and len(audio.decode(row.clip, 60).samples) == 4410 for row in rows[:2])
    assert isinstance(rows[2].clip.error, ClipUnreadable) and "outside the input folder" in str(
        rows[2].clip.error
    )


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
        audio.decode(clip, 60)
    path.unlink()
    with pytest.raises(ClipUnreadable, match="cannot be opened"):
        audio.decode(clip, 60)
    write(tmp_path / "other.wav", sound(0.1))
    path.symlink_to("other.wav")
    with pytest.raises(ClipUnreadable, match="links to"):
        audio.decode(clip, 60)


def test_no_file_descriptor_is_left_open(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "a.wav", sound(0.1)), tmp_path / "b.mp3"
    bad.write_bytes(b"nothing")
    decode(good)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        decode(good)
        fault_of(bad)
    assert len(os.listdir("/proc/self/fd")) == before


# -- windows, cutting, resampling
# -------------------------------------------------------------------------------------

def test_a_ten_minute_recording_has_120_windows_of_five_seconds() -> None:
    ids = audio.window_ids("soundscape_7", 600.0, Windows())
    assert len(ids) == 120 and ids[0] == "soundscape_7_5" and ids[-1] == "soundscape_7_600"
    assert audio.window_ids("a", 6.0, Windows(seconds=2.5)) == ["a_2.5", "a_5", "a_7.5"]
    assert audio.clip_ids([*ids, "other_5"], Windows()) == ["soundscape_7", "other"]


def windows_of(root: Path, ids: Sequence[str], windows: Windows) -> list[audio.Row]:
    return audio.list_rows(ids, audio.find_clips(root, ids), windows)


def test_windows_are_cut_from_the_waveform_and_equal_the_cut_run_as_a_clip(tmp_path: Path) -> None:
    path = write(tmp_path / "test_soundscapes/site_1_2020.ogg", sound(13.0, 32_000), 32_000)
    whole = audio.decode(clip_of(path), 900)
    rows = windows_of(tmp_path, [f"site_1_2020_{end}" for end in (10, 5, 15)], Windows())
    assert [(row.start, row.stop) for row in rows] == [(160_000, 320_000), (0, 160_000), (320_000, 480_000)]
    assert rows[0].clip is rows[1].clip
    for row in rows:
        expected = np.zeros(160_000, np.float32)
        piece = whole.samples[row.start:row.stop]
        expected[: len(piece)] = piece
        np.testing.assert_array_equal(audio.cut(whole, row).samples, expected)
    alone = write(tmp_path / "alone.wav", whole.samples[160_000:320_000], 32_000, subtype="FLOAT")
    np.testing.assert_array_equal(
        audio.load(rows[0], 16_000, 900).samples, audio.resample(decode(alone), 16_000).samples
    )


def test_windows_that_cannot_be_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", sound(6.0))
    ids = ["a_5", "a_10", "a_15", "a_3", "nonsense", "b_5"]
    rows = windows_of(tmp_path, ids, Windows())
    assert [row.id for row in rows] == ids
    assert [row.clip.error is None for row in rows] == [True, True, True, False, False, False]
    with pytest.raises(ClipEmpty, match="a_15"):
        audio.load(rows[2], RATE, 900)
    assert len(audio.load(rows[1], RATE, 900).samples) == 5 * RATE


def test_other_patterns_and_names_with_suffix(tmp_path: Path) -> None:
    write(tmp_path / "rec.ogg", sound(6.0))
    rows = windows_of(tmp_path, ["rec.ogg@2.5s", "rec.ogg@5s"], Windows(seconds=2.5, pattern="{stem}@{end}s"))
    assert [row.start for row in rows] == [0, 110_250]
    with pytest.raises(SpecError, match="pattern"):
        audio.list_rows(["a_5"], audio.find_clips(tmp_path, []), Windows(pattern="{stem}"))


@pytest.mark.parametrize(
    ("rate", "to"), [(44_100, 16_000), (8_000, 44_100), (48_000, 32_000), (22_050, 44_100)]
)
def test_resampling_is_soxr_hq_of_a_length_rounded_up(rate: int, to: int) -> None:
    wave = audio.Wave(samples=sound(0.5001, rate), rate=rate, notes=("salvaged: x",))
    found = audio.resample(wave, to)
    expected = soxr.resample(wave.samples, rate, to, quality="HQ")
    assert len(found.samples) == int(np.ceil(len(wave.samples) * to / rate)) and found.notes == wave.notes
    count = min(len(expected), len(found.samples))
    np.testing.assert_array_equal(found.samples[:count], expected[:count])
    assert audio.resample(wave, rate) is wave


def test_a_single_sample_survives_resampling() -> None:
    assert len(audio.resample(audio.Wave(samples=np.ones(1, np.float32), rate=384_000), 16_000).samples) == 1


# -- fuzz: the suite's cut of `make fuzz`
# -----------------------------------------------------------------------------

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
