"""Which values of a front end's keys do not go together.

Owns the rules and their messages. The keys themselves are `front_end_keys`.
"""
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .front_end_keys import FrontEndKeys

# A key -> (the key it belongs to, that key's values with which it means anything): new keys alone, since
# files that were written for older versions may name an idle one.
BELONGS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "preemphasis_in": ("spectrum", ("mel", "stft", "mel_chroma_stft")),
    "remove_dc": ("spectrum", ("mel", "stft", "mel_chroma_stft")),
    "win_length": ("spectrum", ("mel", "stft", "mel_chroma_stft")),
    "win_place": ("edges", ("none",)),
    "window_norm": ("spectrum", ("mel", "stft")),
    "mel_scale": ("spectrum", ("mel", "mel_chroma_stft")),
    "mel_norm": ("spectrum", ("mel", "mel_chroma_stft")),
    "mel_exponent": ("spectrum", ("mel",)),
    "bins_per_octave": ("spectrum", ("cqt",)),
    "db_factor": ("scale", ("db",)),
    "amin": ("scale", ("db",)),
    "ref": ("scale", ("db",)),
    "log_floor": ("scale", ("log",)),
    "minmax_eps": ("norm", ("minmax", "z_minmax")),
    "step_seconds": ("short", ("end", "repeat")),
}


def find_fault(fe: "FrontEndKeys") -> str | None:
    """The first rule that is broken, as the tail of a message; None where all hold."""
    for rule in (_wrong_numbers, _wrong_window, _wrong_layout, _wrong_scale, _wrong_scope, _idle_key):
        wrong = rule(fe)
        if wrong:
            return wrong
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _wrong_numbers(fe: "FrontEndKeys") -> str | None:
    if fe.pad_value != "clip_min" and not _is_number(fe.pad_value):
        return f'pad_value = {fe.pad_value!r}; give a number or "clip_min"'
    for key in (
        "rate",
        "n_fft",
        "hop",
        "mels",
        "std",
        "power",
        "gain",
        "mel_exponent",
        "db_factor",
        "amin",
        "bins_per_octave",
    ):
        if getattr(fe, key) <= 0:
            return f"{key} = {getattr(fe, key)} must be positive"
    for key in (
        "min_seconds",
        "step_seconds",
        "piece_seconds",
        "piece_frames",
        "context_frames",
        "win_length",
        "log_offset",
        "log_floor",
        "eps",
        "minmax_eps",
        "fmin",
        "layout_frames",
    ):
        if getattr(fe, key) < 0:
            return f"{key} = {getattr(fe, key)} must not be negative"
    if not 0 <= fe.preemphasis <= 1:
        return f"preemphasis = {fe.preemphasis}; give a share from 0 to 1, such as 0.97"
    if fe.top_db is not None and fe.top_db <= 0:
        return f'top_db = {fe.top_db} must be positive; "none" keeps the whole range'
    top = fe.fmax or fe.rate / 2
    if fe.spectrum in ("mel", "mel_chroma_stft") and not fe.fmin < top:
        return f"fmin = {fe.fmin:g} must lie below fmax = {top:g} Hz (rate / 2 where it is left out)"
    return None


def _wrong_window(fe: "FrontEndKeys") -> str | None:
    if fe.win_length > fe.n_fft:
        return f"win_length = {fe.win_length} must not exceed n_fft = {fe.n_fft}; raise n_fft"
    if fe.mel_scale == "kaldi" and fe.mel_norm != "none":
        return 'mel_scale = "kaldi" has no area norm; add mel_norm = "none"'
    if fe.spectrum == "cqt":
        highest = fe.fmin * 2 ** ((fe.mels - 1) / fe.bins_per_octave)
        if not 0 < fe.fmin <= highest <= fe.rate / 2:
            return (
                f'spectrum "cqt": mels = {fe.mels} bins from fmin = {fe.fmin:g} Hz reach {highest:.0f} Hz, '
                f"rate / 2 is {fe.rate / 2:g}; lower mels, or raise bins_per_octave"
            )
        longest = fe.rate / (2 ** (1 / fe.bins_per_octave) - 1) / fe.fmin
        if longest > fe.n_fft:
            return f'spectrum "cqt": its longest kernel has {longest:.0f} samples; raise n_fft = {fe.n_fft}'
    return None


def _wrong_layout(fe: "FrontEndKeys") -> str | None:
    if (fe.norm == "image") != (fe.stored == "uint8"):
        return 'norm "image" and stored "uint8" go together'
    if fe.layout in ("canvas", "margins") and fe.layout_frames < 1:
        return f"layout {fe.layout!r} needs layout_frames >= 1"
    if fe.layout == "bands" and fe.mels % 3:
        return f'layout "bands" needs mels divisible by 3, got {fe.mels}'
    if fe.resize and (len(fe.resize) != 2 or min(fe.resize) < 0 or max(fe.resize) == 0):
        return f"resize = {list(fe.resize)}; give [bins, frames], 0 for what stays as it is"
    if fe.resize and (fe.norm == "image" or fe.spectrum in ("wave", "statistics", "length")):
        return f'resize wants a spectrum and another norm than "image", not {fe.spectrum!r}, {fe.norm!r}'
    if fe.resize_kind == "nearest" and (fe.align_corners or fe.antialias):
        return 'resize_kind = "nearest" knows neither align_corners nor antialias; leave them out'
    for key in ("align_corners", "antialias", "resize_first"):
        if getattr(fe, key) and not fe.resize:
            return f"{key} needs resize = [bins, frames]"
    return None


def _wrong_scale(fe: "FrontEndKeys") -> str | None:
    if fe.ref != "max" and not (_is_number(fe.ref) and fe.ref > 0):
        return f'ref = {fe.ref!r}; give a number above 0, or "max"'
    if fe.scale == "log" and fe.log_offset == fe.log_floor == 0:
        return "log_offset and log_floor are both 0: silence would be minus infinity; set one of them"
    return None


def _wrong_scope(fe: "FrontEndKeys") -> str | None:
    if fe.scope == "window":
        named = [key for key in ("piece_seconds", "piece_frames", "context_frames") if getattr(fe, key)]
        return f'{named[0]} wants scope = "recording" or "batch"' if named else None
    if fe.spectrum not in ("mel", "stft", "cqt") or fe.scale == "pcen" or fe.layout != "plain":
        return (
            f"scope = {fe.scope!r} wants spectrum mel, stft or cqt, no pcen and layout plain; "
            f"here {fe.spectrum!r}, {fe.scale!r} and {fe.layout!r}"
        )
    if fe.norm in ("image", "clip") or fe.resize or fe.trim_db is not None or fe.short != "keep":
        return (
            f"scope = {fe.scope!r} goes with norm none, standard, z, minmax or z_minmax, and without resize, "
            "trim_db and short"
        )
    if fe.scope == "batch" and (not fe.piece_seconds or fe.context_frames or fe.pieces == "whole"):
        return 'scope = "batch" wants piece_seconds, and neither context_frames nor pieces = "whole"'
    if (fe.piece_frames or fe.context_frames or fe.pieces == "whole") and not fe.piece_seconds:
        return "piece_frames, context_frames and pieces want piece_seconds, the length of a window"
    if (fe.context_frames or fe.pieces == "whole") and not fe.piece_frames:
        return 'context_frames and pieces = "whole" want piece_frames, the frames of a window'
    if fe.pieces == "apart" and fe.context_frames > fe.piece_frames:
        return f"context_frames = {fe.context_frames} must not exceed piece_frames = {fe.piece_frames}"
    if fe.pieces == "whole" and fe.edges == "none":
        return 'pieces = "whole" wants centred frames: edges = "none" does not go with it'
    return None


def _idle_key(fe: "FrontEndKeys") -> str | None:
    """Names a key that was set and would change nothing."""
    for field in fields(fe):
        owner, values = BELONGS.get(field.name, ("", ()))
        if owner and getattr(fe, field.name) != field.default and getattr(fe, owner) not in values:
            wanted = " or ".join(repr(value) for value in values)
            return (
                f"{field.name} = {getattr(fe, field.name)!r} changes nothing with {owner} = "
                f"{getattr(fe, owner)!r}; it wants {owner} = {wanted}, else leave it out"
            )
    return None
