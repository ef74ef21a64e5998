"""Front ends: a waveform becomes the array that is stored, one clip at a time, full length, before any cut.

Owns `FrontEnd`: in which order the parts that its keys name are done, and how large the result is. The keys
are `front_end_keys`, the arithmetic is in `waves`, `spectra`, `constant_q`, `scales`, `layouts`, `norms`,
`resizing` and `scopes`, the published systems are in `presets`, an ensemble's own function is `own`.
Does not cut (views), nor do what a net wants after the cut (finish).

`python -m kernel.sound` prints the table of presets.
"""

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
from . import constant_q, scales, scopes, spectra
from .filter_banks import MelBank, chroma_bank, mel_bank
from .front_end_keys import FrontEndKeys, read_keys
from .layouts import LAYOUTS
from .norms import NORMS
from .presets import PRESETS
from .resizing import resize
from .stft_windows import stft_window
from .waves import LEVELS, SHORT, preemphasise, trim_bounds, wave_statistics, whole_steps


@dataclass(frozen=True, kw_only=True)
class FrontEnd(FrontEndKeys):
    """`fe(wave f32[S] mono at fe.rate) -> array[C, M, T]` in fe.dtype; the same for any number of threads."""

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
    def uneven(self) -> bool:
        """True where no view may cut the wave first: what is trimmed differs, or a recording is looked at."""
        return self.trim_db is not None or self.scope != "window"

    @property
    def channels(self) -> int:
        return 3 if self.layout == "bands" or self.spectrum == "mel_chroma_stft" else 1

    @property
    def bins(self) -> int:
        """M of the array."""
        rows = {"stft": self.n_fft // 2 + 1, "wave": 1, "statistics": 128, "length": 1}
        height = rows.get(self.spectrum, self.mels)
        if self.resize and self.resize[0]:
            return self.resize[0]
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
        if self.resize and self.resize[1]:
            return self.resize[1]
        return self.layout_frames if self.layout == "canvas" else None

    def max_frames(self, samples: int) -> int:
        """Upper bound of T for a wave of `samples` samples at fe.rate; exact where nothing is trimmed."""
        if self.fixed is not None:
            return self.fixed
        samples = max(1, samples, self.min_samples)
        if self.step_seconds:
            samples = whole_steps(samples, self.min_samples, round(self.step_seconds * self.rate))
        if self.spectrum == "wave":
            return samples
        pieces = scopes.count_pieces(self, samples)
        if self.piece_seconds and (pieces > 1 or self.context_frames or self.pieces == "whole"):
            return pieces * scopes.whole_frames(self) + 2 * self.context_frames
        if self.preemphasis and self.preemphasis_in == "wave":
            samples = max(1, samples - 1)
        frames = spectra.count_frames(
            samples,
            self.n_fft,
            self.hop,
            self.edges,
            self.window_samples if self.win_place == "start" else None,
        )
        frames = min(frames, self.piece_frames or frames)
        return frames + (2 * self.layout_frames if self.layout == "margins" else 0)

    def max_bytes(self, samples: int) -> int:
        """Upper bound of the stored bytes of such a wave."""
        return self.channels * self.bins * self.max_frames(samples) * self.dtype.itemsize

    def of_row(self, wave: np.ndarray, row_id: str) -> np.ndarray:
        """The front end's array; nothing in it depends on the row's id."""
        return self(wave)

    def of_recording(self) -> scopes.OfRecording:
        """This front end for rows that are windows of a recording; scope "recording" or "batch"."""
        return scopes.OfRecording(
            self, lambda wave: self._raw(_checked(self, wave), True), self.key, self.bins
        )

    @torch.inference_mode()
    @spectra.one_thread()
    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """array[C, M, T], C-contiguous, fe.dtype, of a mono wave f32[S] at fe.rate; finite for finite waves.

        Raises  ClipEmpty
        """
        wave = _checked(self, wave)
        if self.scope != "window":
            return np.ascontiguousarray(scopes.finish_all(self, self._raw(wave, False)), dtype=self.dtype)
        x = LAYOUTS[self.layout](_spectrum(self, wave), self.layout_frames)
        if self.resize and self.resize_first:
            x = _resized(self, x)
        x = NORMS[self.norm](self, x, None)
        if self.resize and not self.resize_first:
            x = _resized(self, x)
        return np.ascontiguousarray(x, dtype=self.dtype)

    @torch.inference_mode()
    @spectra.one_thread()
    def _raw(self, wave: np.ndarray, windows: bool) -> np.ndarray:
        """f32[C, M, T] of a recording, neither clipped nor normalised."""
        x = scopes.join(self, wave, functools.partial(_spectrum, self), windows)
        return np.ascontiguousarray(x, np.float32)


def _checked(fe: FrontEnd, wave: np.ndarray) -> np.ndarray:
    """The wave as f32[S]. Raises ClipEmpty."""
    wave = np.ascontiguousarray(wave, dtype=np.float32)
    if wave.ndim != 1 or len(wave) == 0:
        raise ClipEmpty(f"front end {fe.name}: wave of shape {wave.shape}; give it one sample or more")
    return wave


def _spectrum(fe: FrontEnd, wave: np.ndarray) -> np.ndarray:
    """[C, M, T] of a wave, scaled, before layout and norm."""
    if fe.gain != 1.0:
        wave = wave * np.float32(fe.gain)
    wave = LEVELS[fe.level](wave)
    start, stop = (0, len(wave)) if fe.trim_db is None else trim_bounds(wave, fe.trim_db)
    least = fe.min_samples
    if fe.step_seconds:
        least = whole_steps(stop - start, least, round(fe.step_seconds * fe.rate))
    wave = SHORT[fe.short](wave, start, stop, least)
    if fe.preemphasis and fe.preemphasis_in == "wave":
        wave = preemphasise(wave, fe.preemphasis)
    return SPECTRA[fe.spectrum](fe, wave)


def _resized(fe: FrontEnd, x: np.ndarray) -> np.ndarray:
    return resize(x, fe.resize, fe.resize_kind, fe.align_corners, fe.antialias)


# Spectra: wave -> [C, M, T], already scaled


def _bank(fe: FrontEnd, kind: torch.dtype) -> MelBank:
    return mel_bank(
        fe.rate, fe.n_fft, fe.mels, fe.fmin, fe.fmax or fe.rate / 2, kind, "cpu", fe.mel_scale, fe.mel_norm
    )


def _window(fe: FrontEnd) -> torch.Tensor:
    return stft_window(fe.window, fe.window_samples, fe.n_fft, fe.periodic, fe.win_place)


def _prepare(fe: FrontEnd, window: torch.Tensor) -> spectra.Prepare | None:
    """What is done to single frames beside the window, None where nothing is."""
    in_frame = fe.preemphasis if fe.preemphasis_in == "frame" else 0.0
    if not (fe.remove_dc or in_frame):
        return None
    left = 0 if fe.win_place == "start" else (fe.n_fft - fe.window_samples) // 2
    return spectra.prepare_frames(window, fe.window_samples, left, fe.remove_dc, in_frame)


def _padded(fe: FrontEnd, wave: np.ndarray) -> torch.Tensor:
    kind = torch.float64 if fe.precision == "double" else torch.float32
    counted = fe.window_samples if fe.win_place == "start" else None
    return torch.from_numpy(spectra.pad_wave(wave, fe.edges, fe.n_fft, counted)).to(kind)


def _power(fe: FrontEnd, wave: np.ndarray, mel: bool) -> torch.Tensor:
    """[T, bins] linear spectrum, through the mel bank or not."""
    padded = _padded(fe, wave)
    window = _window(fe)
    prepare = _prepare(fe, window)
    out = spectra.spectrogram(
        padded, window, fe.hop, fe.power, _bank(fe, padded.dtype) if mel else None, prepare
    )
    unit = {"none": 1.0, "window": float(window.square().sum()), "n_fft": float(fe.n_fft)}[fe.window_norm]
    if mel and (fe.precision, fe.scale, fe.power, fe.mel_exponent) == ("auto", "db", 2.0, 1.0):
        spectra.sharpen(
            out, padded, window, fe.hop, _bank(fe, torch.float64), fe.top_db, fe.amin * unit, prepare
        )
    if unit != 1.0:
        out.mul_(unit ** (-fe.power / 2))
    return out if fe.mel_exponent == 1.0 else out.pow_(fe.mel_exponent)


def _cqt(fe: FrontEnd, wave: np.ndarray) -> np.ndarray:
    padded = _padded(fe, wave)
    parts = constant_q.kernels(fe.rate, fe.n_fft, fe.mels, fe.fmin, fe.bins_per_octave, padded.dtype)
    magnitude = constant_q.constant_q(padded, fe.n_fft, fe.hop, parts)
    return SCALES[fe.scale](fe, magnitude if fe.power == 1.0 else magnitude.pow_(fe.power))[None]


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
    "cqt": _cqt,
    "mel_chroma_stft": _mel_chroma_stft,
    "wave": lambda fe, wave: wave[None, None],
    "statistics": lambda fe, wave: wave_statistics(wave)[None],
    # The share of 10 s. Source: qrfaction code/utils.py.
    "length": lambda fe, wave: np.full((1, 1, 1), len(wave) / (10.0 * fe.rate)),
}


# Scales: [T, M] -> [M, T]


def _db(fe: FrontEnd, x: torch.Tensor) -> np.ndarray:
    """Clipped and against its own maximum only where the front end looks no further than this array."""
    alone = fe.scope == "window"
    ref = 1.0 if fe.ref == "max" and not alone else fe.ref
    top_db = fe.top_db if alone else None
    decibels = scales.decibels(x, top_db, amin=fe.amin, ref=ref, factor=fe.db_factor)
    return decibels.T.contiguous().numpy()


def _log(fe: FrontEnd, x: torch.Tensor) -> np.ndarray:
    return scales.natural_log(x, fe.log_offset, fe.log_floor).T.contiguous().numpy()


def _pcen(fe: FrontEnd, x: torch.Tensor) -> np.ndarray:
    return scales.pcen(x.T.float().contiguous().numpy(), frames_per_second=fe.rate / fe.hop)


SCALES: dict[str, Callable[[FrontEnd, torch.Tensor], np.ndarray]] = {
    "db": _db,
    "log": _log,
    "pcen": _pcen,
    "linear": lambda fe, x: x.T.contiguous().numpy(),
}


def build(spec: Mapping[str, Any], where: str = "frontend") -> FrontEnd:
    """FrontEnd of {"preset": NAME, key = value, ...} (keys override the preset) or of keys alone.

    where  what messages call it: the table of the TOML

    Raises  SpecError naming the unknown preset, key or value
    """
    own = read_keys(spec, where)
    preset = own.pop("preset", None)
    if preset is not None and not (isinstance(preset, str) and preset in PRESETS):
        raise SpecError(f"{where}.preset: {preset!r} is unknown; {did_you_mean(str(preset), PRESETS)}")
    base = {"name": preset, **read_keys(PRESETS[preset], preset)} if preset else {}
    try:
        return load(FrontEnd, {**base, **own}, where)
    except SpecError as error:
        rule = str(error)
        if rule.startswith("frontend "):  # one between keys, which does not know the table
            rule = f"{where}: {rule.partition(': ')[2]}"
        raise SpecError(rule) from None
