"""The keys of a front end: what each means, which values it may have, and what other libraries call it.

Owns the names. Rules between keys are `front_end_rules`, what is done with them is `frontends`; values of
published systems are `presets`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SpecError, did_you_mean
from .front_end_rules import find_fault
from .layouts import LAYOUTS
from .resizing import RESIZES
from .stft_windows import OLD_NAMES, WINDOWS
from .waves import LEVELS, SHORT

CHOICES: dict[str, Collection[str]] = {  # key -> the values it may have; frontends adds its own tables
    "short": SHORT,
    "level": LEVELS,
    "preemphasis_in": ("wave", "frame"),
    "spectrum": ("mel", "stft", "cqt", "mel_chroma_stft", "wave", "statistics", "length"),
    "scale": ("db", "log", "pcen", "linear"),
    "layout": LAYOUTS,
    "norm": ("none", "image", "standard", "clip", "z", "minmax", "z_minmax"),
    "edges": ("reflect", "zeros", "edge", "none"),
    "window": WINDOWS,
    "win_place": ("centre", "start"),
    "window_norm": ("none", "window", "n_fft"),
    "mel_scale": ("slaney", "htk", "kaldi"),
    "mel_norm": ("slaney", "none"),
    "resize_kind": RESIZES,
    "scope": ("window", "recording", "batch"),
    "pieces": ("apart", "whole"),
    "precision": ("auto", "single", "double"),
    "stored": ("uint8", "float16", "float32"),
}
# Other libraries' names of a key (librosa, torchaudio, transformers, timm configurations) -> ours.
FOREIGN = {
    "hop_length": "hop",
    "hop_size": "hop",
    "frame_shift": "hop",
    "n_mels": "mels",
    "num_mel_bins": "mels",
    "n_bins": "mels",
    "f_min": "fmin",
    "low_freq": "fmin",
    "f_max": "fmax",
    "high_freq": "fmax",
    "sr": "rate",
    "sample_rate": "rate",
    "sampling_rate": "rate",
    "win": "win_length",
    "frame_length": "win_length",
    "window_fn": "window",
    "window_type": "window",
    "center": "edges",
    "pad_mode": "edges",
    "preemphasis_coefficient": "preemphasis",
    "remove_dc_offset": "remove_dc",
    "htk": "mel_scale",
    "multiplier": "db_factor",
    "normalized": "window_norm",
    "interpolation": "resize_kind",
    "top_scope": "scope",
    "norm_scope": "scope",
    "periodic_window": "periodic",
    "log_eps": "log_offset",
    "mel_power": "mel_exponent",
}
OPTIONAL = ("trim_db", "fmax", "top_db")  # TOML has no null: the text "none" stands for it


@dataclass(frozen=True, kw_only=True)
class FrontEndKeys:
    """What a front end does, in the order in which it is done.

    name             preset it came from, or "custom"
    rate             Hz of the wave it wants
    gain             the wave is multiplied by it
    level            change of the wave's level: waves.LEVELS
    trim_db          cut silent ends, dB below the loudest RMS frame; None = keep all (as librosa 0.6.3)
    short            what happens to short waves: waves.SHORT
    min_seconds      shortest wave after `short`
    step_seconds     beyond min_seconds, waves are padded up to whole steps of this; 0 = no steps
    preemphasis      0.97 takes that share of the sample before from each sample; 0 = off
    preemphasis_in   "wave" = one sample less, before framing; "frame" = in each frame, its first against
                     itself
    scope            what `top_db`, `ref` = "max" and `norm` look at: "window" = the row's own array,
                     "recording" = the whole recording, "batch" = `top_db` and `ref` at all windows of the
                     recording, `norm` at each
    piece_seconds    scopes other than "window": length of a window; 0 = the recording is one piece
    piece_frames     frames kept of a window; 0 = all it gives
    context_frames   frames of the neighbours on each side of a window, scope "recording" alone
    pieces           "apart" = each window has its own STFT (the first and last then repeat themselves as
                     context), "whole" = one STFT of the recording between zeros
    spectrum         SPECTRA: mel, stft, cqt, mel_chroma_stft, wave, statistics, length
    n_fft            length of the Fourier transform, samples; for spectrum "cqt" room for its longest kernel
    hop              step between frames, samples
    win_length       samples of the STFT window; 0 = n_fft
    win_place        where a shorter STFT window lies in n_fft: "centre" (torch, librosa), "start" (Kaldi, TF)
    window           STFT window: stft_windows.WINDOWS
    periodic         true = the window's period is its length (STFT), false = it is symmetric (Kaldi)
    edges            "reflect" (librosa 0.6.3, torchaudio), "zeros" (librosa >= 0.9), "edge" (the last sample
                     repeated), all centred; "none" = frames from sample 0 on, the tail dropped
    remove_dc        each frame loses its mean
    power            2 = power spectrum, 1 = magnitude; any exponent above 0 of the magnitude
    window_norm      power is divided by the sum of the squared "window" (torchaudio normalized=True), by
                     "n_fft" (torch.stft normalized=True), or not ("none")
    mels             rows of the mel bank, or bins of the cqt
    fmin, fmax       its edges, Hz; fmax None = rate / 2
    mel_scale        "slaney" (librosa), "htk" (torchaudio), "kaldi" (1127 ln(1 + f / 700), straight on it)
    mel_norm         "slaney" = each filter has area 1, "none" = height 1 (torchaudio, Kaldi)
    mel_exponent     values after the mel bank are raised to it
    bins_per_octave  of the cqt
    precision        of the spectrum: "single", "double", "auto" = single, but double in frames where it shows
                     (spectra.sharpen)
    scale            SCALES: db, log, pcen, linear
    db_factor        10 for power, 20 for magnitude
    amin             smallest value that counts in dB
    ref              0 dB: a number, or "max" = the largest value within the scope
    top_db           dB range kept below the largest value within the scope, for scale "db"; "none" = all
    log_offset       for scale "log": ln(max(x + offset, floor))
    log_floor        for scale "log", see log_offset; 0 = none
    layout           layouts.LAYOUTS: plain, canvas, margins, bands
    layout_frames    canvas width, or columns of one margin
    resize           [bins, frames] of the stored array, 0 = as they are; [] = no resizing
    resize_kind      resizing.RESIZES: bilinear, bicubic, nearest (torch interpolate)
    align_corners    true = corner values stay (UpsamplingBilinear2d)
    antialias        true = smooth where it shrinks (torchvision Resize of tensors)
    resize_first     true = resize before `norm`
    norm             NORMS: none, image (uint8), standard ((x - mean) / std), clip (own mean, std over n), z
                     (own mean, std over n-1), minmax ((x - min) / (max - min)), z_minmax (one, then the
                     other)
    mean, std        for norm "standard"
    eps              added to the std of norm "clip", "z" and "z_minmax"
    minmax_eps       added to the range of "minmax" and "z_minmax"; 0 = a range up to 1e-6 gives 0
    stored           dtype name: "uint8", "float16" or "float32"
    pad_value        what a later pad along time writes: a number, or "clip_min" = the least value of that
                     clip
    """

    name: str = "custom"
    rate: int = 44100
    gain: float = 1.0
    level: str = "keep"
    trim_db: float | None = None
    short: str = "keep"
    min_seconds: float = 0.0
    step_seconds: float = 0.0
    preemphasis: float = 0.0
    preemphasis_in: str = "wave"
    scope: str = "window"
    piece_seconds: float = 0.0
    piece_frames: int = 0
    context_frames: int = 0
    pieces: str = "apart"
    spectrum: str = "mel"
    n_fft: int = 2560
    hop: int = 690
    win_length: int = 0
    win_place: str = "centre"
    window: str = "hann"
    periodic: bool = True
    edges: str = "reflect"
    remove_dc: bool = False
    power: float = 2.0
    window_norm: str = "none"
    mels: int = 128
    fmin: float = 20.0
    fmax: float | None = None
    mel_scale: str = "slaney"
    mel_norm: str = "slaney"
    mel_exponent: float = 1.0
    bins_per_octave: int = 12
    precision: str = "auto"
    scale: str = "db"
    db_factor: float = 10.0
    amin: float = 1e-10
    ref: Any = 1.0
    top_db: float | None = 80.0
    log_offset: float = 1e-4
    log_floor: float = 0.0
    layout: str = "plain"
    layout_frames: int = 0
    resize: tuple[int, ...] = ()
    resize_kind: str = "bilinear"
    align_corners: bool = False
    antialias: bool = False
    resize_first: bool = False
    norm: str = "none"
    mean: float = 0.0
    std: float = 1.0
    eps: float = 1e-6
    minmax_eps: float = 1e-6
    stored: str = "float32"
    pad_value: Any = "clip_min"

    def __post_init__(self) -> None:
        for key, values in CHOICES.items():
            if getattr(self, key) not in values:
                raise SpecError(
                    f"frontend {self.name}: {key} = {getattr(self, key)!r} is unknown; "
                    + did_you_mean(str(getattr(self, key)), values)
                )
        wrong = find_fault(self)
        if wrong:
            raise SpecError(f"frontend {self.name}: {wrong}")

    @property
    def window_samples(self) -> int:
        """Samples of the STFT window."""
        return self.win_length or self.n_fft


def read_keys(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys with today's names and values: old names of windows, "none" for no value.

    Raises  SpecError for another library's name of a key, with ours
    """
    out = dict(spec)
    for key in out:
        if key in FOREIGN:
            raise SpecError(f"{where}.{key}: unknown key; did you mean {FOREIGN[key]!r}?")
    if out.get("window") in OLD_NAMES:
        out["window"] = OLD_NAMES[out["window"]]
    for key in OPTIONAL:
        if out.get(key) == "none":
            out[key] = None
    return out
