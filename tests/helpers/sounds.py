"""Short sounds on disk for the tests of decoding: seeded waves, written in any format, and read back."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from kernel.sound import decode as decoding

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
    """The wave as a sound file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, format=format, subtype=subtype)
    return path


def clip_of(path: Path, root: Path | None = None) -> decoding.Clip:
    """The file's header."""
    return decoding.probe(path.name, path, root or path.parent)


def read(path: Path, max_seconds: float = 60.0) -> decoding.Wave:
    """The file's samples."""
    return decoding.decode(clip_of(path), max_seconds)


def plant(root: Path, names: Sequence[str]) -> Path:
    """Empty files below `root`."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root
