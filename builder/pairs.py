"""The file of `--compare`: clips, and what the user's own training code made of each.

Owns its form and its messages. What is compared with it is `compare`.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from kernel.errors import SpecError, did_you_mean
from kernel.sound import decode

from .causes import Cause


@dataclass(frozen=True, kw_only=True)
class Case:
    """One clip with what the training code made of it.

    wanted  ("frontends" | "inputs" | "members", name) -> array
    """

    name: str
    samples: np.ndarray  # f32[channels, S]
    rate: int
    wanted: dict[tuple[str, str], np.ndarray]

    def wave(self, rate: int, cause: Cause) -> np.ndarray:
        """f32[S'] at `rate`, mixed and resampled as the kernel does, or as the cause has it."""
        mono = self.samples[0] if cause.first else self.samples.mean(axis=0, dtype=np.float32)
        if cause.wave is not None and rate != self.rate:
            return cause.wave(mono, self.rate, rate)
        return decode.resample(decode.Wave(samples=mono, rate=self.rate), rate).samples


def read_cases(path: Path) -> list[Case]:
    """The clips of an .npz file: NAME/file or NAME/wave and NAME/rate, and NAME/KIND/WHAT for each array.

    Raises  SpecError
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            entries = {key: held[key] for key in held.files}
    except (OSError, ValueError, EOFError) as error:
        raise SpecError(
            f"--compare {path}: not a .npz file of plain arrays ({error}); write it by np.savez"
        ) from error
    cases = []
    for name in dict.fromkeys(key.partition("/")[0] for key in entries):
        own_entries = {
            key.partition("/")[2]: value for key, value in entries.items() if key.startswith(f"{name}/")
        }
        cases.append(_read_case(path, name, own_entries))
    if not cases:
        raise SpecError(f"--compare {path}: it is empty; give at least one clip")
    return cases


def _read_case(path: Path, name: str, entries: dict[str, np.ndarray]) -> Case:
    where = f"--compare {path}: {name}"
    wanted: dict[tuple[str, str], np.ndarray] = {}
    for key, value in entries.items():
        kind, slash, what = key.partition("/")
        if slash and kind in ("frontends", "inputs", "members"):
            wanted[kind, what] = np.asarray(value, np.float64)
        elif key not in ("file", "wave", "rate"):
            choices = ("file", "wave", "rate", "frontends/NAME", "inputs/MEMBER", "members/MEMBER")
            raise SpecError(f"{where}/{key}: unknown entry; {did_you_mean(key, choices)}")
    if not wanted:
        raise SpecError(
            f"{where}: no array to compare with; add {name}/frontends/NAME, {name}/inputs/MEMBER or "
            f"{name}/members/MEMBER"
        )
    if "file" in entries:
        file = path.parent / str(entries["file"])
        try:
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        except (OSError, soundfile.SoundFileError) as error:
            raise SpecError(
                f"{where}/file: {file} cannot be read ({error}); give it relative to the .npz"
            ) from error
        return Case(name=name, samples=np.ascontiguousarray(samples.T), rate=int(rate), wanted=wanted)
    if "wave" not in entries or "rate" not in entries:
        raise SpecError(f"{where}: give {name}/file, or {name}/wave and {name}/rate")
    samples = np.atleast_2d(np.asarray(entries["wave"], np.float32))
    if samples.ndim != 2 or not samples.size:
        raise SpecError(f"{where}/wave: shape {samples.shape}; give [S] or [channels, S]")
    return Case(name=name, samples=samples, rate=int(entries["rate"]), wanted=wanted)
