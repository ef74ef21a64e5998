"""Front ends: a waveform becomes the array that the store keeps, one clip at a time, full length, before any
crop.

Owns what is stored: a front end = wave rules x spectrum x scale x layout x normalisation, each a name in a
table below, plus the dtype. The published systems are in presets.py. Does not crop (views), and does not do
what a net wants after the crop (finish: deltas per tile, /255, channel repeat, in-net spectra).

`python -m kernel.sound` prints the table of presets.
"""
from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..errors import ClipEmpty, SpecError, did_you_mean
from ..spec import load
from . import spectra
from .presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """`fe(wave f32[S] mono at fe.rate) -> array[C, M, T]` in fe.dtype; pure, thread-safe, the same for any
    number of threads.

    name             preset it came from, or "custom"
    rate             Hz of the wave it wants
    trim_db          cut silent ends, dB below the loudest RMS frame; None = keep all (librosa 0.6.3
                     behaviour)
    short            what happens to short waves: SHORT
    min_seconds      shortest wave after `short`
    level            change of the wave's level: LEVELS
    spectrum         SPECTRA: mel, stft, mel_chroma_stft, wave, statistics, length
    n_fft, hop       window and step of the STFT, samples
    mels             rows of the mel bank
    fmin, fmax       its edges, Hz; fmax None = rate / 2
    power            2 = power spectrum, 1 = magnitude
    edges            "reflect" (librosa 0.6.3), "zeros" (librosa >= 0.9), both centred
    window           "exact" (librosa) or "single" (torch.hann_window in float32): spectra.hann
    precision        of the spectrum: "single", "double", "auto" = single, but double in frames where it shows
                     (spectra.sharpen)
    scale            SCALES: db, log, pcen, linear
    top_db           dB range kept below the clip's maximum, for scale "db"
    log_offset       for scale "log": ln(x + offset)
    layout           LAYOUTS: plain, canvas, margins, bands
    layout_frames    canvas width, or columns of one margin
    norm             NORMS: none, image (uint8), standard ((x - mean) / std), clip (own mean and std)
    mean, std, eps   for norm "standard"; eps is added to the std of norm "clip"
    stored           dtype name: "uint8", "float16" or "float32"
    pad_value        what a later pad along time writes: a number, or "clip_min" = the least value of that
                     clip
    """

    name: str = "custom"
    rate: int = 44100
    trim_db: float | None = None
    short: str = "keep"
    min_seconds: float = 0.0
    level: str = "keep"
    spectrum: str = "mel"
    n_fft: int = 2560
    hop: int = 690
    mels: int = 128
    fmin: float = 20.0
    fmax: float | None = None
    power: float = 2.0
    edges: str = "reflect"
    window: str = "exact"
    precision: str = "auto"
    scale: str = "db"
    top_db: float | None = 80.0
    log_offset: float = 1e-4
    layout: str = "plain"
    layout_frames: int = 0
    norm: str = "none"
    mean: float = 0.0
    std: float = 1.0
    eps: float = 1e-6
    stored: str = "float32"
    pad_value: Any = "clip_min"

    def __post_init__(self) -> None:
        for key, table in (
            ("short", SHORT),
            ("level", LEVELS),
            ("spectrum", SPECTRA),
            ("scale", SCALES),
            ("layout", LAYOUTS),
            ("norm", NORMS),
            ("edges", ("reflect", "zeros")),
            ("window", ("exact", "single")),
            ("precision", ("auto", "single", "double")),
            ("stored", ("uint8", "float16", "float32")),
        ):
            if getattr(self, key) not in table:
                raise SpecError(f"frontend {self.name}: {key} = {getattr(self, key)!r} is unknown; "
                                + did_you_mean(str(getattr(self, key)), table))
        if self.pad_value != "clip_min" and not isinstance(self.pad_value, (int, float)):
            raise SpecError(
                f'frontend {self.name}: pad_value = {self.pad_value!r}; give a number or "clip_min"'
            )
        if (
            min(self.rate, self.n_fft, self.hop, self.mels) < 1
            or self.std <= 0
            or self.power not in (1.0, 2.0)
        ):
            raise SpecError(
                f"frontend {self.name}: rate, n_fft, hop, mels and std must be positive, power 1 or 2"
            )
        if (self.norm == "image") != (self.stored == "uint8"):
            raise SpecError(f"frontend {self.name}: norm \"image\" and stored \"uint8\" go together")
        if self.layout in ("canvas", "margins") and self.layout_frames < 1:
            raise SpecError(f"frontend {self.name}: layout {self.layout!r} needs layout_frames >= 1")
        if self.layout == "bands" and self.mels % 3:
            raise SpecError(
                f'frontend {self.name}: layout "bands" needs mels divisible by 3, got {self.mels}'
            )

    @functools.cached_property  # asked for several times per row
    def key(self) -> str:
        """Name and a hash of every field: equal keys mean equal arrays."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.stored)

    @property
    def pad(self) -> float | Literal["clip_min"]:
        return self.pad_value

    @property
    def time(self) -> bool:
        """False where the last axis is not time (statistics, length): views leave such arrays alone."""
        return self.spectrum not in ("statistics", "length")

    @property
    def channels(self) -> int:
        return 3 if self.layout == "bands" or self.spectrum == "mel_chroma_stft" else 1

    @property
    def bins(self) -> int:
        """M of the array."""
        rows = {"stft": self.n_fft // 2 + 1, "wave": 1, "statistics": 128, "length": 1}.get(
            self.spectrum, self.mels
        )
        return rows // 3 if self.layout == "bands" else rows

    @property
    def empty_filters(self) -> int:
        """Mel filters that lie between two FFT bins and give nothing."""
        return (
            int((_bank(self, torch.float32).peaks == 0).sum())
            if self.spectrum in ("mel", "mel_chroma_stft")
            else 0
        )

    @property
    def min_samples(self) -> int:
        return round(self.min_seconds * self.rate)

    @property
    def fixed(self) -> int | None:
        """T when every clip has the same, else None."""
        if not self.time:
            return 12 if self.spectrum == "statistics" else 1
        return self.layout_frames if self.layout == "canvas" else None

    def max_frames(self, samples: int) -> int:
        """Upper bound of T for a wave of `samples` samples at fe.rate; exact where nothing is trimmed."""
        if self.fixed is not None:
            return self.fixed
        samples = max(1, samples, self.min_samples)
        if self.spectrum == "wave":
            return samples
        frames = spectra.count_frames(samples, self.edges, self.n_fft, self.hop)
        return frames + (2 * self.layout_frames if self.layout == "margins" else 0)

    def max_bytes(self, samples: int) -> int:
        """Upper bound of the stored bytes of such a wave."""
        return self.channels * self.bins * self.max_frames(samples) * self.dtype.itemsize

    @torch.inference_mode()
    @spectra.one_thread()
    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """array[C, M, T], C-contiguous, fe.dtype, of a mono wave f32[S] at fe.rate; finite for every finite
        wave.

        Raises  ClipEmpty
        """
        wave = np.ascontiguousarray(wave, dtype=np.float32)
        if wave.ndim != 1 or len(wave) == 0:
            raise ClipEmpty(
                f"front end {self.name}: wave of shape {wave.shape}; decode the clip to at least one mono sample"
            )
        wave = LEVELS[self.level](wave)
        start, stop = (0, len(wave)) if self.trim_db is None else spectra.trim_bounds(wave, self.trim_db)
        wave = SHORT[self.short](self, wave, start, stop)
        x = LAYOUTS[self.layout](self, SPECTRA[self.spectrum](self, wave))
        return np.ascontiguousarray(NORMS[self.norm](self, x), dtype=self.dtype)


# Wave rules
# -----------------------------------------------------------------------------------------------------------------


def pad_centre(wave: np.ndarray, samples: int) -> np.ndarray:
    """The wave with zeros on both sides up to `samples`, the odd zero at the end; longer waves as they
    are.
    """
    missing = max(0, samples - len(wave))
    return np.pad(wave, (missing // 2, missing - missing // 2)) if missing else wave


def _half_second(fe: FrontEnd, wave: np.ndarray, start: int, stop: int) -> np.ndarray:
    """argus: a short trimmed clip becomes min_seconds of the UNTRIMMED wave round half the trimmed length
    (start is not added).

    Source: lRomul/argus-freesound src/audio.py.
    """
    if stop - start >= fe.min_samples:
        return wave[start:stop]
    centre, half = (stop - start) // 2, fe.min_samples // 2
    return pad_centre(wave[max(0, centre - half) : centre + half], fe.min_samples)


def _half_peak(wave: np.ndarray) -> np.ndarray:
    """Jeong: rounded to float16, then divided by its own peak; a silent wave stays silent."""
    wave = wave.astype(np.float16).astype(np.float32)
    peak = np.abs(wave).max()
    return wave / peak if peak > 0 else wave


SHORT: dict[str, Callable[[FrontEnd, np.ndarray, int, int], np.ndarray]] = {
    "keep": lambda fe, wave, start, stop: wave[start:stop],
    "centre": lambda fe, wave, start, stop: pad_centre(wave[start:stop], fe.min_samples),
    "half_second": _half_second,
}
LEVELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"keep": lambda wave: wave, "half_peak": _half_peak}


# Spectra: wave -> [C, M, T], already scaled
# ---------------------------------------------------------------------------------

def _bank(fe: FrontEnd, kind: torch.dtype) -> spectra.MelBank:
    return spectra.mel_bank(fe.rate, fe.n_fft, fe.mels, fe.fmin, fe.fmax or fe.rate / 2, kind)


def _power(fe: FrontEnd, wave: np.ndarray, mel: bool) -> torch.Tensor:
    """[T, bins] linear spectrum, through the mel bank or not."""
    kind = torch.float64 if fe.precision == "double" else torch.float32
    padded = torch.from_numpy(spectra.pad_wave(wave, fe.edges, fe.n_fft, fe.hop)).to(kind)
    window = spectra.hann(fe.n_fft, fe.window)
    out = spectra.spectrogram(padded, window, fe.hop, fe.power, _bank(fe, kind) if mel else None)
    if mel and (fe.precision, fe.scale, fe.power) == ("auto", "db", 2.0):
        spectra.sharpen(out, padded, window, fe.hop, _bank(fe, torch.float64), fe.top_db)
    return out


def _mel_chroma_stft(fe: FrontEnd, wave: np.ndarray) -> np.ndarray:
    """Three pictures of one power STFT: mel, 12 chroma rows repeated, STFT rows averaged; all `mels` rows
    high (our sizes).
    """
    power = _power(fe, wave, mel=False)
    mel = power.new_empty((len(power), fe.mels))
    _bank(fe, power.dtype)(power, mel)
    chroma = spectra.chroma(power, spectra.chroma_bank(fe.rate, fe.n_fft).to(power.dtype)).T.numpy()
    rows = np.arange(fe.mels) * len(chroma) // fe.mels
    stft = torch.nn.functional.adaptive_avg_pool1d(spectra.decibels(power, fe.top_db)[None], fe.mels)[0]
    return np.stack([_db(fe, mel), chroma[rows], stft.T.numpy()])


SPECTRA: dict[str, Callable[[FrontEnd, np.ndarray], np.ndarray]] = {
    "mel": lambda fe, wave: SCALES[fe.scale](fe, _power(fe, wave, mel=True))[None],
    "stft": lambda fe, wave: SCALES[fe.scale](fe, _power(fe, wave, mel=False))[None],
    "mel_chroma_stft": _mel_chroma_stft,
    "wave": lambda fe, wave: wave[None, None],
    "statistics": lambda fe, wave: spectra.wave_statistics(wave)[None],
    # share of 10 s. Source: qrfaction
    "length": lambda fe, wave: np.full((1, 1, 1), len(wave) / (10.0 * fe.rate)),
}


# Scales: [T, M] -> [M, T]
# ---------------------------------------------------------------------------------------------------

def _db(fe: FrontEnd, x: torch.Tensor) -> np.ndarray:
    return spectra.decibels(x, fe.top_db).T.contiguous().numpy()


def _pcen(fe: FrontEnd, x: torch.Tensor) -> np.ndarray:
    return spectra.pcen(x.T.float().contiguous().numpy(), frames_per_second=fe.rate / fe.hop)


SCALES: dict[str, Callable[[FrontEnd, torch.Tensor], np.ndarray]] = {
    "db": _db,
    "log": lambda fe, x: x.add_(fe.log_offset).log_().T.contiguous().numpy(),
    "pcen": _pcen,
    "linear": lambda fe, x: x.T.contiguous().numpy(),
}


# Layouts and normalisations: [C, M, T] -> [C, M, T]
# -------------------------------------------------------------------------

def _canvas(fe: FrontEnd, x: np.ndarray) -> np.ndarray:
    """HackerEarth: the first `layout_frames` columns, the rest 0.0 (0 dB is the BRIGHT end of a quiet
    clip).
    """
    out = np.zeros((*x.shape[:2], fe.layout_frames))
    width = min(x.shape[2], fe.layout_frames)
    out[..., :width] = x[..., :width]
    return out


def _margins(fe: FrontEnd, x: np.ndarray) -> np.ndarray:
    """OsciiArt: `layout_frames` columns of max(clip max - 80, -100) dB on both sides."""
    fill = max(float(x.max()) - 80.0, -100.0)
    return np.pad(x, ((0, 0), (0, 0), (fe.layout_frames, fe.layout_frames)), constant_values=fill)


LAYOUTS: dict[str, Callable[[FrontEnd, np.ndarray], np.ndarray]] = {
    "plain": lambda fe, x: x,
    "canvas": _canvas,
    "margins": _margins,
    "bands": lambda fe, x: x.reshape(3, fe.mels // 3, x.shape[2]),  # low rows red, middle green, high blue
}


def _image(fe: FrontEnd, x: np.ndarray) -> np.ndarray:
    """uint8 in 0..255: standardised and min-max scaled over the whole clip, truncated; a flat clip gives 0.

    mel_chroma_stft channels have different units and are scaled one by one; colour bands are scaled jointly.
    Source: "mono_to_color" of daisukelab's FAT2019 kernel.
    """
    if fe.spectrum == "mel_chroma_stft":
        return np.stack([_grey(channel) for channel in x])
    return _grey(x)


def _grey(x: np.ndarray) -> np.ndarray:
    x = x - x.mean()
    x /= x.std() + 1e-6
    low, high = x.min(), x.max()
    if high - low <= 1e-6:
        return np.zeros(x.shape, np.uint8)
    x -= low
    x *= 255
    x /= high - low
    return x.astype(np.uint8)


NORMS: dict[str, Callable[[FrontEnd, np.ndarray], np.ndarray]] = {
    "none": lambda fe, x: x,
    "image": _image,
    "standard": lambda fe, x: (x - np.float32(fe.mean)) / np.float32(fe.std),
    "clip": lambda fe, x: (x - x.mean()) / (x.std() + fe.eps),
}


def build(spec: Mapping[str, Any]) -> FrontEnd:
    """FrontEnd of {"preset": NAME, key = value, ...} (keys override the preset) or of keys alone.

    Raises  SpecError naming the unknown preset, key or value
    """
    own = dict(spec)
    preset = own.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        raise SpecError(f"frontend.preset: {preset!r} is unknown; {did_you_mean(str(preset), PRESETS)}")
    base = {"name": preset, **PRESETS[preset]} if preset else {}
    return load(FrontEnd, {**base, **own}, "frontend")


def table() -> str:
    """The presets as text: shape of one second, frames of 10 s, bytes per second, milliseconds per second of
    audio here.
    """
    import time

    lines = [
        f"{'preset':22}{'Hz':>7}{'C x M':>9}{'T of 10 s':>10}{'dtype':>9}{'bytes/s':>10}{'ms/s':>8}  pad"
    ]
    for name in PRESETS:
        fe = build({"preset": name})
        wave = np.sin(np.arange(10 * fe.rate, dtype=np.float32) ** 1.5 / fe.rate).astype(np.float32)
        fe(wave)
        costs = []
        for _ in range(5):
            started = time.perf_counter()
            array = fe(wave)
            costs.append(time.perf_counter() - started)
        lines.append(f"{name:22}{fe.rate:7}{f'{fe.channels} x {fe.bins}':>9}{array.shape[2]:10}{fe.stored:>9}"
                     f"{array.nbytes / 10:10.0f}{sorted(costs)[2] * 100:8.2f}  {fe.pad}")
    return "\n".join(lines)
