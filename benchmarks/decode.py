"""Decode speed against plain soundfile, per format, on clips of the lengths of a real test set.

Prints the ratio soundfile / ours (above 1: ours is faster), medians of interleaved rounds measured in one
run; asserts nothing. `python -m benchmarks.decode [--clips FOLDER] [--quick]`: without a folder the rendered
demo clips are used.
"""
from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import soundfile

from kernel.sound import decode
from training.demo_clips import write_rendered

ROUNDS = 7


def seconds_of(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def measure(folder: Path, rounds: int) -> None:
    groups: dict[str, list[decode.Clip]] = defaultdict(list)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        clip = decode.probe(path.name, path, folder)
        if clip.error is None:
            groups[f"{path.suffix[1:].lower()} {soundfile.info(path).subtype} {clip.channels}ch"].append(clip)
    print(f"{'form':<26} {'clips':>5} {'ours ms':>8} {'soundfile ms':>12} {'ratio':>6}")
    for form, clips in sorted(groups.items()):
        ours = []
        peer = []
        for _ in range(rounds):
            ours.append(sum(seconds_of(lambda c=clip: decode.decode(c, 600.0)) for clip in clips))
            theirs = (seconds_of(lambda c=clip: soundfile.read(c.path, dtype="float32")) for clip in clips)
            peer.append(sum(theirs))
        ratio = statistics.median(p / o for p, o in zip(peer, ours, strict=True))
        per_clip = [1e3 * statistics.median(times) / len(clips) for times in (ours, peer)]
        print(f"{form:<26} {len(clips):>5} {per_clip[0]:>8.2f} {per_clip[1]:>12.2f} {ratio:>6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, help="folder of clips")
    parser.add_argument("--quick", action="store_true", help="2 rounds")
    options = parser.parse_args()
    rounds = 2 if options.quick else ROUNDS
    if options.clips is not None:
        measure(options.clips, rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_rendered(Path(folder))
        measure(Path(folder), rounds)


if __name__ == "__main__":
    main()
