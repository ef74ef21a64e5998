"""Waveform effects: altered copies of a clip, made before the front end.

Owns the table EFFECTS. An effect maps wave f32[S] at a rate to another wave; everything random comes from the
generator. Pitch and tempo are those of audiomentations (extra `augment`), called with values drawn here, so
that a seed repeats them.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import soxr
from scipy.signal import fftconvolve

from kernel.errors import SpecError

from . import lookup

Effect = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def reverb(
    wave: np.ndarray,
    rate: int,
    rng: np.random.Generator,
    *,
    seconds: tuple[float, float] = (0.1, 0.8),
    share: tuple[float, float] = (0.0, 0.5),
) -> np.ndarray:
    """The wave with a tail of noise that has decayed by 60 dB after `seconds`, mixed in at `share`.

    Source of the share: ex4sperans/freesound-classification.
    """
    length = max(1, int(rng.uniform(*seconds) * rate))
    tail = rng.normal(size=length) * 10 ** (-3 * np.arange(length) / length)
    wet = fftconvolve(wave, tail / np.sqrt((tail**2).sum()))[: len(wave)]
    amount = rng.uniform(*share)
    return (1 - amount) * wave + amount * wet


def overdrive(
    wave: np.ndarray, rate: int, rng: np.random.Generator, *, gain_db: tuple[float, float] = (2.0, 10.0)
) -> np.ndarray:
    """Soft clipping after a gain, brought back to the old peak. Source: 2 to 10, ex4sperans."""
    peak = max(float(np.abs(wave).max()), 1e-9)
    drive = 10 ** (rng.uniform(*gain_db) / 20)
    return peak * np.tanh(drive * wave / peak) / np.tanh(drive)


def speed(
    wave: np.ndarray, rate: int, rng: np.random.Generator, *, factor: tuple[float, float] = (0.9, 1.1)
) -> np.ndarray:
    """Played faster or slower, pitch and length together. Source: 0.9 to 1.1, ex4sperans."""
    return soxr.resample(wave, rate * rng.uniform(*factor), rate)


def shift(wave: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Rotated in time by a random amount."""
    return np.roll(wave, int(rng.integers(len(wave))))


def noise(
    wave: np.ndarray, rate: int, rng: np.random.Generator, *, snr_db: tuple[float, float] = (15.0, 40.0)
) -> np.ndarray:
    """White noise added at a signal-to-noise ratio."""
    level = np.sqrt((wave.astype(np.float64) ** 2).mean()) * 10 ** (-rng.uniform(*snr_db) / 20)
    return wave + rng.normal(size=len(wave)) * level


def _audiomentations() -> Any:
    try:
        import audiomentations
    except ImportError as error:
        raise SpecError(
            "wave_effects: pitch and tempo need audiomentations; pip install 'hourglass[augment]'"
        ) from error
    return audiomentations


def pitch(wave: np.ndarray, rate: int, rng: np.random.Generator, *, cents: float = 300.0) -> np.ndarray:
    """Pitch moved by up to `cents`, same length. Source: 300, ex4sperans; 500, Shirogane."""
    semitones = float(rng.uniform(-cents, cents) / 100)
    change = _audiomentations().PitchShift(min_semitones=semitones, max_semitones=semitones, p=1.0)
    return change(samples=wave, sample_rate=rate)


def tempo(
    wave: np.ndarray, rate: int, rng: np.random.Generator, *, factor: tuple[float, float] = (0.9, 1.1)
) -> np.ndarray:
    """Faster or slower at the same pitch."""
    value = float(rng.uniform(*factor))
    change = _audiomentations().TimeStretch(
        min_rate=value, max_rate=value, leave_length_unchanged=False, p=1.0
    )
    return change(samples=wave, sample_rate=rate)


EFFECTS: dict[str, Callable[..., np.ndarray]] = {
    "reverb": reverb,
    "overdrive": overdrive,
    "speed": speed,
    "shift": shift,
    "noise": noise,
    "pitch": pitch,
    "tempo": tempo,
}


def build(entries: Sequence[Mapping[str, Any]]) -> Effect:
    """One function of [{kind = "reverb", chance = 0.5, ...}, ...].

    Raises  SpecError naming the unknown kind or key
    """
    chosen = lookup.find_all(EFFECTS, entries, "wave_effects")

    def apply(wave: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
        for chance, effect in chosen:
            if rng.random() < chance:
                wave = np.ascontiguousarray(effect(wave, rate, rng), dtype=np.float32)
        return wave

    return apply
