"""Faults of the input: broken, lying and strange files, and inputs that fail while they are read."""
from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.helpers.guard_runs import GuardRun, wait_for
from tests.helpers.injectors import inject, needs_strace
from tests.helpers.whole_runs import (
    RATE,
    Place,
    check,
    faulty_build,
    make_place,
    prior_rows,
    render_clip,
    rows_of,
    run_whole,
    write_sample,
)

Maker = Callable[[Path], object]


def header(
    rate: int = RATE, channels: int = 1, bits: int = 16, data: int = 2000, riff: int | None = None
) -> bytes:
    """The first 44 bytes of a PCM WAV file, true or not."""
    riff = 36 + data if riff is None else riff
    block = channels * bits // 8 & 0xFFFF
    form = (1, channels, rate, rate * block & 0xFFFFFFFF, block, bits)
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", riff, b"WAVE", b"fmt ", 16, *form, b"data", data)


def sparse_hours(path: Path) -> None:
    """Ten hours of silence by header and file size, no bytes on disk."""
    size = 10 * 3600 * RATE * 2
    path.write_bytes(header(data=size))
    os.truncate(path, 44 + size)


def silent_hours(path: Path) -> None:
    """Two hours in a FLAC of about a megabyte."""
    with soundfile.SoundFile(path, "w", RATE, 1, format="FLAC") as file:
        for _ in range(120):
            file.write(np.zeros(60 * RATE, np.int16))


def listen(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path must be short
    try:
        server.bind(path.name)
    finally:
        os.chdir(here)
        server.close()


def damage(path: Path, form: str, how: str) -> None:
    """A FLAC, OGG or MP3 cut in the middle or with flipped bits."""
    data = bytearray(render_clip(path.with_suffix(".tmp"), 1.5, 3, format=form).read_bytes())
    path.with_suffix(".tmp").unlink()
    if how == "cut":
        del data[len(data) // 2:]
    else:
        for at in range(len(data) // 3, len(data), len(data) // 7):
            data[at] ^= 0x55
    path.write_bytes(data)


def put(data: bytes) -> Maker:
    return lambda path: path.write_bytes(data)


def link(target: str) -> Maker:
    return lambda path: path.symlink_to(target)


def sound(wave: np.ndarray, **form: str) -> Maker:
    return lambda path: soundfile.write(path, wave, RATE, **form)


def chirp(**form: str) -> Maker:
    return lambda path: render_clip(path, 0.5, 1, **form)


UNREADABLE: dict[str, Maker] = {
    "empty.wav": put(b""),
    "three.wav": put(b"RIF"),
    "text.wav": put(b"hello\n" * 99),
    "random.wav": put(np.random.default_rng(0).bytes(5000)),
    "cut_header.wav": put(header()[:30]),
    "rate_0.wav": put(header(rate=0) + bytes(2000)),
    "rate_1.wav": put(header(rate=1) + bytes(2000)),
    "rate_huge.wav": put(header(rate=2**31 - 1) + bytes(2000)),
    "channels_0.wav": put(header(channels=0) + bytes(2000)),
    "channels_many.wav": put(header(channels=65535) + bytes(2000)),
    "bits_0.wav": put(header(bits=0) + bytes(2000)),
    "no_samples.wav": put(header(data=0)),
    "id3.mp3": put(b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(1000)),
    "folder.wav": lambda path: path.mkdir(),
    "fifo.wav": lambda path: os.mkfifo(path),
    "socket.wav": listen,
    "device.wav": link("/dev/zero"),
    "secret.wav": link("/etc/passwd"),
    "dangling.wav": link("nowhere"),
    "loop.wav": link("loop.wav"),
    "absent.wav": lambda path: None,
}
READABLE: dict[str, Maker] = {
    "u8.wav": chirp(subtype="PCM_U8"),
    "i24.wav": chirp(subtype="PCM_24"),
    "f64.wav": chirp(subtype="DOUBLE"),
    "ulaw.wav": chirp(subtype="ULAW"),
    "adpcm.wav": chirp(subtype="IMA_ADPCM"),
    "flac.wav": chirp(format="FLAC"),
    "vorbis.wav": chirp(format="OGG"),
    "wav.mp3": chirp(format="WAV"),
    "one_sample.wav": sound(np.array([0.5])),
    "direct.wav": sound(np.ones(9999)),
    "silence.wav": sound(np.zeros(9999)),
    "not_numbers.wav": sound(np.array([np.nan, np.inf, 1e30, 0.1] * 4000), subtype="FLOAT"),
    "hours_sparse.wav": sparse_hours,
    "hours_silent.flac": silent_hours,
    "riff_0.wav": put(header(data=40_000, riff=0) + bytes(40_000)),
    "cut.flac": lambda path: damage(path, "FLAC", "cut"),
    "flipped.mp3": lambda path: damage(path, "MP3", "flip"),
    "cut.ogg": lambda path: damage(path, "OGG", "cut"),
    "-rf.wav": chirp(),
    "%s%n.wav": chirp(),
    "späte Töne.wav": chirp(),
    'a,b "c".wav': chirp(),
    "line\nbreak.wav": chirp(),
    "=cmd.wav": chirp(),
    "x" * 251 + ".wav": chirp(),
}
# The good part is used, or the file is named: both are right.
EITHER = {"cut.flac", "flipped.mp3", "cut.ogg", "riff_0.wav"}


def make_zoo(folder: Path) -> Place:
    place = make_place(folder)
    makers = {**UNREADABLE, **READABLE}
    for name, make in makers.items():
        make(place.clips / name)
    write_sample(folder / "in", [*place.ids, *('"' + n.replace('"', '""') + '"' for n in makers)])
    return place


@pytest.mark.fault(
    row=62,
    injection="0 or 3 bytes, text, noise, cut headers; absurd rate, channels or bits; a huge ID3 tag",
    outcome="ClipUnreadable or ClipEmpty with the reason; the row keeps the prior; other rows are untouched",
)
@pytest.mark.fault(
    row=63,
    injection="8 to 64 bits, mu-law, ADPCM, FLAC and OGG named .wav, WAV named .mp3",
    outcome="predicted",
)
@pytest.mark.fault(row=64, injection="1 sample, silence, direct current, NaN, infinity and 1e30 as samples",
                   outcome="predicted; samples that are no numbers are noted")
@pytest.mark.fault(row=65, injection="a sparse WAV of ten hours, RIFF size 0",
                   outcome="the first 60 s are predicted, ClipTooLong noted; memory bounded")
@pytest.mark.fault(row=66, injection="two hours of silence in a FLAC of a megabyte",
                   outcome="the first 60 s are predicted, ClipTooLong noted")
@pytest.mark.fault(
    row=67, injection="a rate of 1 Hz and of 2^31-1 Hz", outcome="ClipUnreadable; the row keeps the prior"
)
@pytest.mark.fault(
    row=68,
    injection="FLAC, MP3 and OGG cut or with flipped bits",
    outcome="the good part is predicted, or named",
)
@pytest.mark.fault(
    row=69,
    injection="FIFO, socket, device, folder, dangling link, loop, link out of the input; names with "
    "comma, quote, newline, %, leading - and =, 255 bytes",
    outcome="no hang; what is no clip is named, every name comes back as its text",
)
def test_a_zoo_of_files(tmp_path: Path, unharmed: GuardRun) -> None:
    run = run_whole(make_zoo(tmp_path), faulty_build() / "bundle")
    zoo = {*UNREADABLE, *READABLE}
    check(run, "ClipUnreadable")
    assert {id: cells for id, cells in rows_of(run).items() if id not in zoo} == rows_of(unharmed)
    lost = prior_rows(run)
    assert lost - EITHER == set(UNREADABLE) and lost <= zoo
    named = {fault["where"] for fault in run.report["faults"]}
    assert lost <= named and run.report["prior_rows"] == len(lost)
    notes = {id: " ".join(texts) for id, texts in run.report["clip_notes"].items()}
    assert "ClipTooLong" in notes["hours_sparse.wav"] and "ClipTooLong" in notes["hours_silent.flac"]
    assert "nonfinite" in notes["not_numbers.wav"]
    assert run.report["peak_ram_bytes"] < 1.5e9


@needs_strace
@pytest.mark.faults
@pytest.mark.fault(row=70, injection="every read of one clip fails with EIO (strace)",
                   outcome="named; its row keeps the prior; every other row as without the fault")
def test_an_input_that_fails_while_it_is_read(tmp_path: Path, unharmed: GuardRun) -> None:
    place = make_place(tmp_path)
    only = ("-P", str(place.clips / "c05.wav"))
    prefix = (*inject("read:error=EIO"), *only)
    run = run_whole(place, faulty_build() / "bundle", prefix=prefix, seconds=60)
    check(run, "ClipUnreadable", reference=unharmed, affected={"c05.wav"})
    assert prior_rows(run) == {"c05.wav"}


@pytest.mark.faults
@pytest.mark.fault(
    row=70,
    injection="one clip deleted and one cut short after their headers were read",
    outcome="the lost one is named and keeps the prior; of the other what is left is predicted",
)
def test_clips_that_change_during_the_run(tmp_path: Path, unharmed: GuardRun) -> None:
    place = make_place(tmp_path)

    def harm(process: subprocess.Popen[str], working: Path) -> None:
        # A decoder is asleep before the first clip is read.
        wait_for(lambda: list((tmp_path / "marks").iterdir()), 30.0)
        (place.clips / "c05.wav").unlink()
        os.truncate(place.clips / "c06.wav", 30_000)

    run = run_whole(place, faulty_build() / "bundle", during=harm, plan=[
        {"at": "decode", "do": "sleep", "seconds": 3, "times": 2}])
    check(run, "ClipUnreadable", reference=unharmed, affected={"c05.wav", "c06.wav"})
    assert prior_rows(run) == {"c05.wav"}
