"""What is done to a waveform before its spectrum: silent ends, short waves, levels; and its plain statistics.

Owns the tables SHORT and LEVELS, whose names are values of a front end's keys. Waves are f32[S], mono, at
least one sample. Cutting a wave for a net is `kernel.inference.views`.
"""
from collections.abc import Callable

import numpy as np

from .scales import AMIN

LEAST_STD = 1e-6  # of a wave that is divided by it
BLOCK_PARTS = 4096  # whose squares exist at once: 8 MB


def trim_bounds(wave: np.ndarray, top_db: float = 60.0, frame: int = 2048, hop: int = 512) -> tuple[int, int]:
    """(start, stop) samples of the part whose RMS frames lie less than `top_db` dB below the loudest one.

    An all-silent clip is kept whole: every frame then equals the loudest.
    Source: librosa 0.6.3 effects.trim (frame 2048, hop 512, reflect padding).
    """
    if frame % hop:
        raise ValueError(f"frame {frame} is no multiple of hop {hop}")
    padded = np.pad(wave, frame // 2, mode="reflect")
    parts = len(padded) // hop
    pieces = padded[: parts * hop].reshape(parts, hop)
    energy = np.concatenate([np.square(pieces[at : at + BLOCK_PARTS]).sum(axis=1, dtype=np.float64)
                             for at in range(0, parts, BLOCK_PARTS)])
    per_frame = frame // hop
    frames = parts - per_frame + 1
    power = sum(energy[k : k + frames] for k in range(per_frame)) / frame
    level = np.log10(np.maximum(power, AMIN))
    loud = np.flatnonzero(10 * (level - level.max()) > -top_db)
    return int(loud[0]) * hop, min(len(wave), (int(loud[-1]) + 1) * hop)


def pad_centre(wave: np.ndarray, samples: int) -> np.ndarray:
    """The wave with zeros on both sides up to `samples`, the odd one at the end; longer waves as they are."""
    missing = max(0, samples - len(wave))
    return np.pad(wave, (missing // 2, missing - missing // 2)) if missing else wave


def _half_second(wave: np.ndarray, start: int, stop: int, samples: int) -> np.ndarray:
    """argus: a short trimmed clip becomes `samples` of the UNTRIMMED wave round half the trimmed length.

    The start is not added: that is how the net was trained. Source: lRomul/argus-freesound src/audio.py.
    """
    if stop - start >= samples:
        return wave[start:stop]
    centre = (stop - start) // 2
    half = samples // 2
    return pad_centre(wave[max(0, centre - half) : centre + half], samples)


def _half_peak(wave: np.ndarray) -> np.ndarray:
    """Jeong: rounded to float16, then divided by its own peak; a silent wave stays silent."""
    wave = wave.astype(np.float16).astype(np.float32)
    peak = np.abs(wave).max()
    return wave / peak if peak > 0 else wave


def _level_peak(wave: np.ndarray) -> np.ndarray:
    """The wave over its own peak; a silent wave stays silent."""
    peak = np.abs(wave).max()
    return wave / peak if peak > 0 else wave


def _level_std(wave: np.ndarray) -> np.ndarray:
    """The wave over its standard deviation over n-1, at least 1e-6. Source: TheoViel's BirdCLEF 2024 code."""
    std = float(wave.std(ddof=1, dtype=np.float64)) if len(wave) > 1 else 0.0
    return wave / np.float32(max(std, LEAST_STD))


def pad_end(wave: np.ndarray, samples: int) -> np.ndarray:
    """The wave with zeros behind it up to `samples`; longer waves as they are."""
    return np.pad(wave, (0, samples - len(wave))) if len(wave) < samples else wave


def repeat(wave: np.ndarray, samples: int) -> np.ndarray:
    """The wave floor(samples / its own) times, then zeros up to `samples` (CLAP's repeatpad)."""
    return pad_end(np.tile(wave, max(1, samples // len(wave))), samples)


def whole_steps(samples: int, least: int, step: int) -> int:
    """`samples`, at least `least`, rounded up to `least` and whole steps beyond it; step 0 = no rounding."""
    samples = max(samples, least)
    return least + -(-(samples - least) // step) * step if step else samples


def preemphasise(wave: np.ndarray, share: float) -> np.ndarray:
    """f32[S - 1]: each sample less `share` of the one before; a single sample stays (PaSST)."""
    return wave[1:] - np.float32(share) * wave[:-1] if len(wave) > 1 else wave


# (wave, start and stop of what trimming leaves, fewest samples) -> wave
SHORT: dict[str, Callable[[np.ndarray, int, int, int], np.ndarray]] = {
    "keep": lambda wave, start, stop, samples: wave[start:stop],
    "centre": lambda wave, start, stop, samples: pad_centre(wave[start:stop], samples),
    "end": lambda wave, start, stop, samples: pad_end(wave[start:stop], samples),
    "repeat": lambda wave, start, stop, samples: repeat(wave[start:stop], samples),
    "half_second": _half_second,
}
LEVELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "keep": lambda wave: wave,
    "half_peak": _half_peak,
    "peak": _level_peak,
    "std": _level_std,
}


def wave_statistics(wave: np.ndarray, steps: int = 128) -> np.ndarray:
    """f64[steps, 12] of overlapping parts: mean, std, range, percentiles 0 1 25 30 50 60 75 99 100.

    Part s covers [max(0, int(s w - w/2)), int(s w + 1.5 w)) with w = S / steps; a part without a sample
    (clips under about `steps` samples) takes its nearest one. Source: qrfaction code/utils.py.
    """
    width = len(wave) / steps
    shares = np.array([0, 1, 25, 30, 50, 60, 75, 99, 100]) / 100
    out = np.empty((steps, 12))
    for s in range(steps):
        start = min(max(0, int(s * width - width / 2)), len(wave) - 1)
        part = np.sort(wave[start : max(start + 1, int(s * width + 1.5 * width))]).astype(np.float64)
        place = shares * (len(part) - 1)
        below = place.astype(np.int64)
        above = np.minimum(below + 1, len(part) - 1)
        out[s, :3] = part.mean(), part.std(), part[-1] - part[0]
        out[s, 3:] = part[below] + (part[above] - part[below]) * (place - below)
    return out
