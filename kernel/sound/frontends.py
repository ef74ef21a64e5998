"""Front ends: a waveform becomes the array that is stored, one clip at a time, full length, before any cut.

Owns `FrontEnd`: which wave rule, spectrum, scale, layout, normalisation and dtype its keys name, and in
which order they are done. The arithmetic is in `waves`, `spectra`, `scales` and `layouts`, the published
systems are in `presets`. Does not cut (views), nor do what a net wants after the cut (finish).

`python -m kernel.sound` prints the table of presets.
"""
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..errors import ClipEmpty, SpecError, did_you_mean
from ..spec import load
from . import scales, spectra
from .filter_banks import MelBank, chroma_bank, mel_bank
from .layouts import LAYOUTS, grey
from .presets import PRESETS
from .waves import LEVELS, SHORT, trim_bounds, wave_statistics


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """`fe(wave f32[S] mono at fe.rate) -> array[C, M, T]` in fe.dtype; the same for any number of threads.

    name             preset it came from, or "custom"
    rate             Hz of the wave it wants
    trim_db          cut silent ends, dB below the loudest RMS frame; None = keep all (as librosa 0.6.3)
    short            what happens to short waves: waves.SHORT
    min_seconds      shortest wave after `short`
    level            change of the wave's level: waves.LEVELS
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
    layout           layouts.LAYOUTS: plain, canvas, margins, bands
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
        for key, table in TABLES.items():
            if getattr(self, key) not in table:
                raise SpecError(f"frontend {self.name}: {key} = {getattr(self, key)!r} is unknown; "
                                + did_you_mean(str(getattr(self, key)), table))
        wrong = None
        if self.pad_value != "clip_min" and not isinstance(self.pad_value, (int, float)):
            wrong = f'pad_value = {self.pad_value!r}; give a number or "clip_min"'
        elif min(self.rate, self.n_fft, self.hop, self.mels, self.std) <= 0 or self.power not in (1.0, 2.0):
            wrong = "rate, n_fft, hop, mels and std must be positive, power 1 or 2"
        elif (self.norm == "image") != (self.stored == "uint8"):
            wrong = 'norm "image" and stored "uint8" go together'
        elif self.layout in ("canvas", "margins") and self.layout_frames < 1:
            wrong = f"layout {self.layout!r} needs layout_frames >= 1"
        elif self.layout == "bands" and self.mels % 3:
            wrong = f'layout "bands" needs mels divisible by 3, got {self.mels}'
        if wrong:
            raise SpecError(f"frontend {self.name}: {wrong}")

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
        rows = {"stft": self.n_fft // 2 + 1, "wave": 1, "statistics": 128, "length": 1}
        height = rows.get(self.spectrum, self.mels)
        return height // 3 if self.layout == "bands" else height

    @property
    def empty_filters(self) -> int:
        """Mel filters that lie between two FFT bins and give nothing."""
        if self.spectrum not in ("mel", "mel_chroma_stft"):
            return 0
        return int((_bank(self, torch.float32).peaks == 0).sum())

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
        frames = spectra.count_frames(samples, self.n_fft, self.hop)
        return frames + (2 * self.layout_frames if self.layout == "margins" else 0)

    def max_bytes(self, samples: int) -> int:
        """Upper bound of the stored bytes of such a wave."""
        return self.channels * self.bins * self.max_frames(samples) * self.dtype.itemsize

    def of_row(self, wave: np.ndarray, row_id: str) -> np.ndarray:
        """The front end's array; nothing in it depends on the row's id."""
        return self(wave)

    @torch.inference_mode()
    @spectra.one_thread()
    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """array[C, M, T], C-contiguous, fe.dtype, of a mono wave f32[S] at fe.rate; finite for finite waves.

        Raises  ClipEmpty
        """
        wave = np.ascontiguousarray(wave, dtype=np.float32)
        if wave.ndim != 1 or len(wave) == 0:
            raise ClipEmpty(f"front end {self.name}: wave of shape {wave.shape}; give it one sample or more")
        wave = LEVELS[self.level](wave)
        start, stop = (0, len(wave)) if self.trim_db is None else trim_bounds(wave, self.trim_db)
        wave = SHORT[self.short](wave, start, stop, self.min_samples)
        x = LAYOUTS[self.layout](SPECTRA[self.spectrum](self, wave), self.layout_frames)
        return np.ascontiguousarray(NORMS[self.norm](self, x), dtype=self.dtype)


# Spectra: wave -> [C, M, T], already scaled


def _bank(fe: FrontEnd, kind: torch.dtype) -> MelBank:
    return mel_bank(fe.rate, fe.n_fft, fe.mels, fe.fmin, fe.fmax or fe.rate / 2, kind)


def _power(fe: FrontEnd, wave: np.ndarray, mel: bool) -> torch.Tensor:
    """[T, bins] linear spectrum, through the mel bank or not."""
    kind = torch.float64 if fe.precision == "double" else torch.float32
    padded = torch.from_numpy(spectra.pad_wave(wave, fe.edges, fe.n_fft)).to(kind)
    window = spectra.hann(fe.n_fft, fe.window)
    out = spectra.spectrogram(padded, window, fe.hop, fe.power, _bank(fe, kind) if mel else None)
    if mel and (fe.precision, fe.scale, fe.power) == ("auto", "db", 2.0):
        spectra.sharpen(out, padded, window, fe.hop, _bank(fe, torch.float64), fe.top_db)
    return out


def _mel_chroma_stft(fe: FrontEnd, wave: np.ndarray) -> np.ndarray:
    """Three pictures of one power STFT, each `mels` rows high: mel, chroma rows repeated, STFT rows averaged.

    The original's code is unpublished: these heights are ours.
    """
    power = _power(fe, wave, mel=False)
    mel = power.new_empty((len(power), fe.mels))
    _bank(fe, power.dtype)(power, mel)
    chroma = spectra.chroma(power, chroma_bank(fe.rate, fe.n_fft).to(power.dtype)).T.numpy()
    rows = np.arange(fe.mels) * len(chroma) // fe.mels
    stft = torch.nn.functional.adaptive_avg_pool1d(scales.decibels(power, fe.top_db)[None], fe.mels)[0]
    return np.stack([_db(fe, mel), chroma[rows], stft.T.numpy()])


SPECTRA: dict[str, Callable[[FrontEnd, np.ndarray], np.ndarray]] = {
    "mel": lambda fe, wave: SCALES[fe.scale](fe, _power(fe, wave, mel=True))[None],
    "stft": lambda fe, wave: SCALES[fe.scale](fe, _power(fe, wave, mel=False))[None],
    "mel_chroma_stft": _mel_chroma_stft,
    "wave": lambda fe, wave: wave[None, None],
    "statistics": lambda fe, wave: wave_statistics(wave)[None],
    # The share of 10 s. Source: qrfaction code/utils.py.
    "length": lambda fe, wave: np.full((1, 1, 1), len(wave) / (10.0 * fe.rate)),
}


# Scales: [T, M] -> [M, T]


def _db(fe: FrontEnd, x: torch.Tensor) -> np.ndarray:
    return scales.decibels(x, fe.top_db).T.contiguous().numpy()


def _pcen(fe: FrontEnd, x: torch.Tensor) -> np.ndarray:
    return scales.pcen(x.T.float().contiguous().numpy(), frames_per_second=fe.rate / fe.hop)


SCALES: dict[str, Callable[[FrontEnd, torch.Tensor], np.ndarray]] = {
    "db": _db,
    "log": lambda fe, x: x.add_(fe.log_offset).log_().T.contiguous().numpy(),
    "pcen": _pcen,
    "linear": lambda fe, x: x.T.contiguous().numpy(),
}


# Normalisations: [C, M, T] -> [C, M, T]


def _image(fe: FrontEnd, x: np.ndarray) -> np.ndarray:
    """uint8 in 0..255: colour bands are scaled together, channels of different units one by one."""
    return np.stack([grey(channel) for channel in x]) if fe.spectrum == "mel_chroma_stft" else grey(x)


NORMS: dict[str, Callable[[FrontEnd, np.ndarray], np.ndarray]] = {
    "none": lambda fe, x: x,
    "image": _image,
    "standard": lambda fe, x: (x - np.float32(fe.mean)) / np.float32(fe.std),
    "clip": lambda fe, x: (x - x.mean()) / (x.std() + fe.eps),
}
TABLES: dict[str, Collection[str]] = {  # key of a front end -> the values it may have
    "short": SHORT,
    "level": LEVELS,
    "spectrum": SPECTRA,
    "scale": SCALES,
    "layout": LAYOUTS,
    "norm": NORMS,
    "edges": ("reflect", "zeros"),
    "window": ("exact", "single"),
    "precision": ("auto", "single", "double"),
    "stored": ("uint8", "float16", "float32"),
}


def build(spec: Mapping[str, Any]) -> FrontEnd:
    """FrontEnd of {"preset": NAME, key = value, ...} (keys override the preset) or of keys alone.

    Raises  SpecError naming the unknown preset, key or value
    """
    own = dict(spec)
    preset = own.pop("preset", None)
    if preset is not None and not (isinstance(preset, str) and preset in PRESETS):
        raise SpecError(f"frontend.preset: {preset!r} is unknown; {did_you_mean(str(preset), PRESETS)}")
    base = {"name": preset, **PRESETS[preset]} if preset else {}
    return load(FrontEnd, {**base, **own}, "frontend")
