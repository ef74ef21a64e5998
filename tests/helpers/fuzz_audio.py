"""Mutated audio files, decoded in child processes: a native crash costs one mutant, named by its number.

`python -m tests.helpers.fuzz_audio --count 10000 --seed 0` prints the outcome; mutant i of a seed is the same
on every machine that has the same codecs. `python -m tests.helpers.fuzz_audio --seed S --keep I --to FILE`
writes one mutant for a look at it.
"""
from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from kernel.errors import ClipEmpty, ClipUnreadable
from kernel.sound import decode
from tests.helpers import REPOSITORY

BASES = (
    ("WAV", "PCM_U8", 11_025, 1),
    ("WAV", "PCM_16", 44_100, 1),
    ("WAV", "PCM_24", 48_000, 2),
    ("WAV", "FLOAT", 16_000, 1),
    ("WAV", "IMA_ADPCM", 22_050, 1),
    ("WAV", "MS_ADPCM", 22_050, 2),
    ("WAV", "GSM610", 8_000, 1),
    ("WAVEX", "PCM_32", 44_100, 3),
    ("FLAC", "PCM_16", 44_100, 1),
    ("FLAC", "PCM_24", 96_000, 2),
    ("OGG", "VORBIS", 44_100, 1),
    ("OGG", "OPUS", 48_000, 2),
    ("MP3", "MPEG_LAYER_III", 44_100, 1),
    ("MP3", "MPEG_LAYER_III", 22_050, 2),
    ("AIFF", "PCM_16", 44_100, 1),
    ("AIFF", "PCM_24", 48_000, 2),
    ("AU", "ULAW", 8_000, 1),
    ("CAF", "PCM_16", 32_000, 1),
    ("W64", "PCM_16", 44_100, 1),
)
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
MAX_SECONDS = 10.0
CHILD_BYTES = 3 * 2**30  # address space of a child: a decoder that asks for more is a finding
HANG_SECONDS = 20.0  # per mutant


def make_bases() -> list[bytes]:
    """One small valid file per format, without anything random in it."""
    files = []
    for i, (container, subtype, rate, channels) in enumerate(BASES):
        t = np.arange(int(rate * (0.3 + 0.1 * ((i + 5) % 8)))) / rate
        wave = np.stack(
            [0.5 * np.sin(2 * np.pi * 220 * (c + 1) * t) * np.exp(-t) for c in range(channels)], axis=1
        )
        made = io.BytesIO()
        soundfile.write(made, wave, rate, subtype=subtype, format=container)
        data = bytearray(made.getvalue())
        if container == "OGG":
            _set_serial(data)
        if b"PEAK" in data:
            _clear_peak_time(data)
        files.append(bytes(data))
    return files


def _clear_peak_time(data: bytearray) -> None:
    """Zero the time in a float WAV's PEAK chunk, which libsndfile takes from the clock."""
    at = data.index(b"PEAK") + 12
    data[at:at + 4] = bytes(4)


def _set_serial(data: bytearray) -> None:
    """Give every Ogg page one fixed serial number (libsndfile draws one by the clock) and a new checksum."""
    at = 0
    while at < len(data):
        size = 27 + data[at + 26] + sum(data[at + 27:at + 27 + data[at + 26]])
        data[at + 14:at + 18] = b"HG\0\0"
        data[at + 22:at + 26] = bytes(4)
        crc = 0
        for byte in data[at:at + size]:
            crc ^= byte << 24
            for _ in range(8):
                crc = ((crc << 1) ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
        data[at + 22:at + 26] = crc.to_bytes(4, "little")
        at += size


# One kind of change each; a kind that stands twice is drawn twice as often.
KINDS = ("flip", "flip", "head", "size", "size", "cut", "repeat", "remove", "insert", "splice", "zero")


def mutate(bases: list[bytes], seed: int, index: int) -> tuple[str, bytes]:
    """(what was done, bytes) of one mutant."""
    rng = np.random.default_rng([seed, index])
    base = int(rng.integers(len(bases)))
    data = bytearray(bases[base])
    done: list[str] = []
    for _ in range(int(rng.integers(1, 4))):
        done.append(str(rng.choice(KINDS)))
        if len(data) < 8:
            break
        _change(data, done[-1], bases, rng)
    return "+".join([*(str(part) for part in BASES[base]), *done]), bytes(data)


def _change(data: bytearray, kind: str, bases: list[bytes], rng: np.random.Generator) -> None:
    """One change of a mutant, in place."""
    size = len(data)
    at = int(rng.integers(size))
    length = int(rng.integers(1, 400))
    if kind == "flip":
        for place in rng.integers(size, size=int(rng.integers(1, 20))):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == "head":
        for place in rng.integers(min(size, 120), size=int(rng.integers(1, 6))):
            data[place] = int(rng.integers(256))
    elif kind == "size":
        place = int(rng.integers(min(size, 200) - 4))
        width = int(rng.choice([1, 2, 4]))
        value = EXTREMES[int(rng.integers(len(EXTREMES)))] & (256**width - 1)
        data[place:place + width] = value.to_bytes(width, "little" if rng.random() < 0.5 else "big")
    elif kind == "cut":
        del data[at:]
    elif kind == "repeat":
        data[at:at] = data[at:at + length] * int(rng.integers(1, 5))
    elif kind == "remove":
        del data[at:at + length]
    elif kind == "insert":
        data[at:at] = rng.bytes(length)
    elif kind == "splice":
        other = bases[int(rng.integers(len(bases)))]
        data[at:] = other[int(rng.integers(len(other))):]
    else:
        data[at:at + length] = bytes(min(length, size - at))


def check(path: Path) -> str:
    """Outcome of one file: "whole", a note's first word or an error's name. AssertionError if it is wrong."""
    clip = decode.probe(path.name, path, path.parent)
    try:
        wave = decode.decode(clip, MAX_SECONDS)
    except (ClipUnreadable, ClipEmpty) as error:
        return error.code
    samples = wave.samples
    assert samples.dtype == np.float32 and samples.ndim == 1, f"{samples.dtype} {samples.shape}"
    assert decode.MIN_RATE <= wave.rate <= decode.MAX_RATE, f"{wave.rate} Hz"
    assert 1 <= len(samples) <= MAX_SECONDS * wave.rate, f"{len(samples)} samples at {wave.rate} Hz"
    assert np.isfinite(samples).all() and np.abs(samples).max() <= decode.MAX_LEVEL, "sample out of range"
    return wave.notes[0].split(":")[0] if wave.notes else "whole"


def work(seed: int, start: int, stop: int) -> None:
    """Child: one line before each mutant and one after it, so that the parent knows which one killed us."""
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES, CHILD_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bases = make_bases()
    with tempfile.TemporaryDirectory() as folder:
        for index in range(start, stop):
            _, data = mutate(bases, seed, index)
            path = Path(folder) / f"mutant.{('wav', 'mp3', 'flac', 'ogg')[index % 4]}"
            path.write_bytes(data)
            print(json.dumps({"begun": index}), flush=True)
            try:
                outcome = check(path)
            except Exception as error:  # every kind counts here: that is what is being looked for
                outcome = f"WRONG {type(error).__name__}: {error}"
            print(json.dumps({"done": index, "outcome": outcome}), flush=True)
    print(json.dumps({"peak": own_peak_bytes()}), flush=True)


def own_peak_bytes() -> int:
    """Most resident bytes of this program (ru_maxrss would keep what the parent held at the start)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@dataclass
class Report:
    """What became of the mutants.

    outcomes    how often each
    wrong       mutant -> what was wrong; crashed: mutant -> how the child ended; hung: mutants
    peak_bytes  of the largest child
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: dict[int, str] = field(default_factory=dict)
    crashed: dict[int, str] = field(default_factory=dict)
    hung: list[int] = field(default_factory=list)
    peak_bytes: int = 0


def run(count: int, seed: int, batch: int = 500) -> Report:
    """Report over mutants 0..count-1 of a seed; after a crash or hang the next child goes on behind that
    mutant.
    """
    report = Report()
    next_index = 0
    while next_index < count:
        stop = min(count, next_index + batch)
        next_index = _run_batch(report, seed, next_index, stop)
    return report


def _run_batch(report: Report, seed: int, start: int, stop: int) -> int:
    """The mutant to go on with after one child."""
    program = [sys.executable, "-m", "tests.helpers.fuzz_audio"]
    command = [*program, "--seed", str(seed), "--work", str(start), str(stop)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(command, stdout=out, stderr=err, cwd=REPOSITORY)
        hung = _wait(child, out.fileno())
        out.seek(0)
        err.seek(0)
        lines = [json.loads(line) for line in out.read().splitlines() if line.endswith(b"}")]
        tail = err.read()[-300:].decode("utf-8", "replace")
    begun = start - 1
    for line in lines:
        begun = line.get("begun", begun)
        report.peak_bytes = max(report.peak_bytes, line.get("peak", 0))
        if "done" in line:
            outcome = line["outcome"]
            report.outcomes[outcome.split(" ")[0]] += 1
            if outcome.startswith("WRONG"):
                report.wrong[line["done"]] = outcome
    if child.returncode == 0:
        return stop
    if begun < start:
        raise RuntimeError(f"the child did not start (exit {child.returncode}): {tail}")
    if hung:
        report.hung.append(begun)
    else:
        report.crashed[begun] = f"exit {child.returncode}"
    return begun + 1


def _wait(child: subprocess.Popen[bytes], out: int) -> bool:
    """True if the child was killed because its output stood still."""
    size, since = -1, time.monotonic()
    while True:
        try:
            child.wait(timeout=0.2)
            return False
        except subprocess.TimeoutExpired:
            grown = os.fstat(out).st_size
            if grown != size:
                size, since = grown, time.monotonic()
            elif time.monotonic() - since > HANG_SECONDS:
                child.kill()
                child.wait()
                return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=int, nargs=2, metavar=("START", "STOP"), help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=int, help="number of one mutant to write")
    parser.add_argument("--to", type=Path, default=Path("mutant"), help="where to write it")
    options = parser.parse_args()
    if options.work:
        work(options.seed, *options.work)
        return 0
    if options.keep is not None:
        name, data = mutate(make_bases(), options.seed, options.keep)
        options.to.write_bytes(data)
        print(f"{options.to}: mutant {options.keep} of seed {options.seed}, {name}, {len(data)} bytes")
        return 0
    begun = time.monotonic()
    report = run(options.count, options.seed)
    print(f"{options.count} mutants of seed {options.seed} in {time.monotonic() - begun:.0f} s, "
          f"largest child {report.peak_bytes / 2**20:.0f} MiB")
    for outcome, number in report.outcomes.most_common():
        print(f"  {number:6d}  {outcome}")
    for title, found in (
        ("wrong", report.wrong),
        ("crashed", report.crashed),
        ("hung", dict.fromkeys(report.hung, "")),
    ):
        print(
            f"{title}: {len(found)}", *(f"  mutant {index} {text}" for index, text in found.items()), sep="\n"
        )
    return 1 if report.wrong or report.crashed or report.hung else 0


if __name__ == "__main__":
    sys.exit(main())
