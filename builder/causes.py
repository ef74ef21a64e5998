"""The known ways in which a spectrogram differs from the one that a net was trained on, each to be tried.

Owns the list of causes: a change of a front end's keys, of the wave before it, or of the array behind it,
with the words for it. Which of them explains a difference is found by `compare`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soxr
from scipy import signal

Wave = Callable[[np.ndarray, int, int], np.ndarray]  # (f32[S], its rate, wanted rate) -> f32[S']
Change = Callable[[np.ndarray], np.ndarray]  # array[..., M, T] -> array


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One thing that the training code may have done otherwise.

    keys   of the front end, changed;  words: what the difference is
    wave   another resampler;  after: what was done to the array as well
    first  the first channel of the file instead of the mean of all
    """

    words: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    wave: Wave | None = None
    after: Change | None = None
    first: bool = False

    def tell(self) -> str:
        """The words, and what to write into the front end."""
        values = (
            f"{key} = {json.dumps('none' if value is None else value)}" for key, value in self.keys.items()
        )
        return f"{self.words}; set {', '.join(values)}" if self.keys else self.words

    def joined(self, other: "Cause") -> "Cause":
        """Both at once."""
        after = self.after
        if after is not None and other.after is not None:
            mine, its = after, other.after
            after = lambda x: its(mine(x))  # noqa: E731
        return Cause(
            words=f"{self.words}; and {other.words}",
            keys={**self.keys, **other.keys},
            wave=other.wave or self.wave,
            after=after or other.after,
            first=self.first or other.first,
        )


def _torchaudio_resample(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """f32[ceil(S wanted / rate)]: windowed sinc. Source: torchaudio.functional.resample with its defaults."""
    divisor = np.gcd(rate, wanted)
    old, new = rate // divisor, wanted // divisor
    base = min(old, new) * 0.99
    width = int(np.ceil(6 * old / base))
    places = np.arange(-width, width + old) / old
    t = np.clip((np.arange(0, -new, -1)[:, None] / new + places) * base, -6, 6)
    kernels = np.sinc(t) * np.cos(t * np.pi / 12) ** 2 * base / old
    padded = np.pad(wave.astype(np.float64), (width, width + old))
    cut = np.lib.stride_tricks.sliding_window_view(padded, kernels.shape[1])[::old]
    return (cut @ kernels.T).reshape(-1)[: int(np.ceil(new * len(wave) / old))].astype(np.float32)


def _soxr(quality: str) -> Wave:
    return lambda wave, rate, wanted: soxr.resample(wave, rate, wanted, quality=quality)


def _poly(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    divisor = np.gcd(rate, wanted)
    return signal.resample_poly(wave, wanted // divisor, rate // divisor).astype(np.float32)


def _fourier(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    return signal.resample(wave, int(np.ceil(len(wave) * wanted / rate))).astype(np.float32)


def _linear(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    places = np.arange(int(np.ceil(len(wave) * wanted / rate))) * rate / wanted
    return np.interp(places, np.arange(len(wave)), wave).astype(np.float32)


RESAMPLERS: dict[str, Wave] = {
    "torchaudio's resample": _torchaudio_resample,
    "librosa's kaiser_best or soxr VHQ": _soxr("VHQ"),
    "soxr MQ": _soxr("MQ"),
    "soxr QQ": _soxr("QQ"),
    "scipy's resample_poly (librosa's polyphase)": _poly,
    "scipy's resample (librosa's fft)": _fourier,
    "linear interpolation": _linear,
}


def _z(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / (x.std(ddof=1) + 1e-6)


def _minmax(x: np.ndarray) -> np.ndarray:
    return (x - x.min()) / (np.ptp(x) + 1e-6)


AFTER: dict[str, Change] = {
    "/255 is done once more, or once too few here (the training array is 255 times ours)": lambda x: x * 255,
    "/255 is done twice, or not at all here (the training array is ours / 255)": lambda x: x / 255,
    "a division by 100 is done here and not there": lambda x: x * 100,
    "a division by 100 is done there and not here": lambda x: x / 100,
    "channel order: the channels stand the other way round": lambda x: (
        x[..., ::-1, :, :] if x.ndim > 2 else x
    ),
    "channel order: the second channel comes first": lambda x: np.roll(x, -1, axis=-3) if x.ndim > 2 else x,
    "channel order: the last channel comes first": lambda x: np.roll(x, 1, axis=-3) if x.ndim > 2 else x,
    "rows stand the other way round (high frequencies first)": lambda x: x[..., ::-1, :],
    "axes: time stands before frequency": lambda x: x.swapaxes(-1, -2),
    "per-clip normalisation: mean 0, standard deviation 1 there": _z,
    "per-clip normalisation: scaled to 0..1 there": _minmax,
    "per-clip normalisation: scaled to 0..255 there": lambda x: 255 * _minmax(x),
    "per-clip normalisation: the clip's mean is taken off there": lambda x: x - x.mean(),
    "the sign is turned": lambda x: -x,
}
# Key -> values that training codes use, and the words for a value that explains.
VALUES: dict[str, tuple[tuple[Any, ...], str]] = {
    "ref": (("max", 1.0), "ref: 0 dB is {there} there (power_to_db's ref), {here} here"),
    "mel_scale": (("slaney", "htk", "kaldi"), "mel scale: {there} there, {here} here (HTK against Slaney)"),
    "mel_norm": (("slaney", "none"), "area norm of the mel filters: {there} there, {here} here"),
    "edges": (
        ("reflect", "zeros", "edge", "none"),
        "centre and padding: frames at the edges read {there} there, {here} here",
    ),
    "trim_db": ((None, 60.0, 40.0, 30.0, 20.0), "trim: silent ends are cut at {there} dB there, {here} here"),
    "trim_edges": (("zeros", "reflect"), "trim: frames at the wave's ends read {there} there, {here} here "
                   "(zeros: librosa >= 0.9)"),
    "power": ((2.0, 1.0), "power: magnitudes to the power {there} there, {here} here"),
    "norm": (
        ("none", "clip", "z", "minmax", "z_minmax"),
        "per-clip normalisation: {there} there, {here} here",
    ),
    "top_db": ((None, 80.0, 100.0, 60.0), "top_db: {there} there, {here} here"),
    "db_factor": ((10.0, 20.0), "decibels: {there} log10 there, {here} log10 here"),
    "amin": ((1e-10, 1e-5, 1e-8, 1e-6, 1e-12), "amin: {there} there, {here} here"),
    "scale": (("db", "log", "linear"), "scale: {there} there, {here} here"),
    "log_offset": (
        (1e-4, 1e-5, 1e-6, 1e-8, 1e-10, 1.0),
        "offset of the logarithm: {there} there, {here} here",
    ),
    "periodic": ((True, False), "STFT window: periodic {there} there, {here} here"),
    "window": (("hann", "hamming", "povey", "ones"), "STFT window: {there} there, {here} here"),
    "window_norm": (("none", "window", "n_fft"), "STFT normalized: {there} there, {here} here"),
    "gain": ((1.0, 32768.0, 1 / 32768.0), "level of the wave: x {there} there, x {here} here"),
    "level": (("keep", "peak", "std"), "level of the wave: {there} there, {here} here"),
    "preemphasis": ((0.0, 0.97), "pre-emphasis: {there} there, {here} here"),
    "fmin": ((0.0, 20.0, 40.0, 50.0, 300.0), "fmin: {there} Hz there, {here} here"),
    "fmax": ((None, 8000.0, 11025.0, 14000.0, 15000.0, 16000.0), "fmax: {there} Hz there, {here} here"),
    "n_fft": ((400, 512, 1024, 2048, 4096), "n_fft: {there} there, {here} here"),
    "win_length": ((0, 400, 800, 1024), "win_length: {there} there, {here} here"),
    "hop": ((160, 250, 256, 320, 500, 512, 1024), "hop: {there} there, {here} here"),
}
TOGETHER: dict[str, dict[str, Any]] = {  # What libraries change at once.
    "mel scale and area norm: htk there and no area norm (torchaudio's defaults), slaney here": {
        "mel_scale": "htk",
        "mel_norm": "none",
    },
    "mel scale and area norm: slaney there, both (librosa's defaults), htk here": {
        "mel_scale": "slaney",
        "mel_norm": "slaney",
    },
    "power: magnitudes and 20.0 log10 there (amplitude_to_db), power and 10.0 log10 here": {
        "power": 1.0,
        "db_factor": 20.0,
        "amin": 1e-5,
    },
    "power: power and 10.0 log10 there, magnitudes and 20.0 log10 here": {
        "power": 2.0,
        "db_factor": 10.0,
        "amin": 1e-10,
    },
}
COMPANIONS: dict[tuple[str, Any], dict[str, Any]] = {  # What else must change with a value.
    ("mel_scale", "kaldi"): {"mel_norm": "none"},
}


def key_causes(here: Mapping[str, Any]) -> Iterator[Cause]:
    """Each single change of a front end's keys; `here` are all its keys."""
    for key, (values, words) in VALUES.items():
        for value in values:
            if here[key] != value and not (key == "trim_edges" and here["trim_db"] is None):
                changed = {key: value, **COMPANIONS.get((key, value), {})}
                if key == "norm" and here["stored"] == "uint8":
                    changed["stored"] = "float32"
                yield Cause(words=words.format(there=value, here=here[key]), keys=changed)
    for words, keys in TOGETHER.items():
        if all(here[key] != value for key, value in keys.items()):
            yield Cause(words=words, keys=keys)


def other_causes(is_resampled: bool, channels: int) -> Iterator[Cause]:
    """What is no key: the order of an array, a factor, the resampler, the mixing of channels."""
    if is_resampled:
        for name, resampler in RESAMPLERS.items():
            yield Cause(words=f"resampler: {name} there, soxr HQ here", wave=resampler)
    if channels > 1:
        yield Cause(words="mixing: the first channel of the file there, the mean of all here", first=True)
    for words, after in AFTER.items():
        yield Cause(words=words, after=after)
