"""From a file to a mono wave: clips, rows, decoding with caps, cutting, resampling.

Owns what becomes of broken, empty, lying and over-long audio. Which file an id means is `kernel.sound.clips`;
spectrograms are `kernel.sound.frontends`. Inputs are read forward, block by block, never mapped and never
read whole.
"""
from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ..errors import ClipEmpty, ClipError, ClipUnreadable, SpecError
from ..spec import Windows
from .clips import SUFFIXES, ClipIndex, find_clips

__all__ = [
    "Clip",
    "ClipIndex",
    "Row",
    "Wave",
    "clip_ids",
    "cut",
    "decode",
    "find_clips",
    "list_rows",
    "load",
    "probe",
    "resample",
    "window_ids",
]

# Hz; outside lie only broken headers (1 Hz would grow 44,100-fold on resampling)
MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_CHANNELS = 32
SALVAGE_SECONDS = 0.5  # a decoder error after this much audio keeps the prefix
MAX_LEVEL = 8.0  # |sample| above this is clipped; full scale is 1
BLOCK = 1 << 18  # samples per read, all channels together
PCM16_SCALE = np.float32(1 / 32768)  # a power of two: bit-identical to libsndfile's own float conversion
MAX_CLAIM = 1 << 40  # a FLAC without length claims 2**63 samples; kept small enough for int64 arithmetic
MPEG_SUFFIXES = (".mp3", ".mp2", ".mpga")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One audio file as its header describes it; a header may lie.

    id               the sample's id (for windowed rows: the recording's)
    path             resolved file, or None when there is none
    rate             Hz, 0 when unknown
    samples_claimed  per channel, by the header
    error            why it cannot be used, or None
    """

    id: str
    path: Path | None = None
    rate: int = 0
    samples_claimed: int = 0
    channels: int = 0
    error: ClipError | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the submission: a whole clip, or samples start..stop of it at the clip's own rate."""

    id: str
    clip: Clip
    start: int | None = None
    stop: int | None = None


@dataclass(frozen=True, kw_only=True)
class Wave:
    """Decoded audio: samples f32[S], mono, S >= 1, |x| <= 8, at `rate` Hz.

    notes  what was repaired or left out; each begins with "salvaged", "short", "ClipTooLong", "nonfinite" or
           "clipped"
    """

    samples: np.ndarray
    rate: int
    notes: tuple[str, ...] = ()


class _Stream(soundfile.SoundFile):
    """A sound file that is only read forward.

    soundfile seeks after every read of a seekable file. On a cut FLAC that seek fails and hides the samples
    just read.
    """

    def seekable(self) -> bool:
        return False


def _within(real: str, roots: Sequence[Path]) -> bool:
    return any(real == str(root) or real.startswith(str(root).rstrip("/") + "/") for root in roots)


def _is_audio_name(real: str) -> bool:
    """True for a link's target that is audio by its name: a folder of links to one's own clips is a usual way
    to try things out, while a link to a secret has another name."""
    return os.path.splitext(real)[1].lower() in SUFFIXES


@contextmanager
def _open(id: str, path: Path, roots: Sequence[Path], links: bool = False) -> Iterator[tuple[_Stream, str]]:
    """Stream of a regular file inside one of `roots` (links: or audio by name) and its resolved path; never
    blocks.

    Raises  ClipUnreadable
    """
    try:
        real = os.path.realpath(path)
        fd = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClipUnreadable(f"{id!r}: cannot be opened ({reason}); check {str(path)!r}") from error
    stream = None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ClipUnreadable(
                f"{id!r}: {str(path)!r} is a folder, pipe or device; put a regular file there"
            )
        if not (_within(real, roots) or links and _is_audio_name(real)):
            raise ClipUnreadable(f"{id!r}: {str(path)!r} links to {real!r}, outside the input folder and no "
                                 "audio by its name; copy the file instead")
        stream = _open_stream(id, fd, real)
        if not (MIN_RATE <= stream.samplerate <= MAX_RATE and 1 <= stream.channels <= MAX_CHANNELS):
            raise ClipUnreadable(f"{id!r}: header says {stream.samplerate} Hz, {stream.channels} channels; "
                                 f"{MIN_RATE}-{MAX_RATE} Hz and 1-{MAX_CHANNELS} channels can be read")
        yield stream, real
    finally:
        if stream is not None:
            stream.close()
        os.close(fd)


def _open_stream(id: str, fd: int, real: str) -> _Stream:
    """Stream by content; only an MP3 behind foreign bytes needs its name to be recognised."""
    try:
        return _Stream(fd, closefd=False)
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        if os.path.splitext(real)[1].lower() in MPEG_SUFFIXES:
            try:
                return _Stream(os.fsencode(real))
            except (soundfile.SoundFileError, ValueError, TypeError):
                pass  # the first reason is the better one
        raise ClipUnreadable(
            f"{id!r}: not audio that libsndfile can read ({reason.strip()}); convert it to wav, flac, ogg "
            "or mp3"
        ) from error


def probe(id: str, path: Path | None, root: Path | Sequence[Path]) -> Clip:
    """Clip of a file's header; anything wrong with it stands in `error`.

    root  folder, or resolved folders, inside which the file must lie once links are followed
    """
    if path is None:
        return Clip(
            id=id, error=ClipUnreadable(f"{id!r}: no file has this id; check the id and the clip folder")
        )
    roots = [Path(os.path.realpath(root))] if isinstance(root, (str, Path)) else root
    try:
        with _open(id, path, roots, links=True) as (stream, real):
            if stream.frames <= 0:
                raise ClipEmpty(f"{id!r}: the file holds no samples; its row keeps the prior")
            return Clip(
                id=id,
                path=Path(real),
                rate=stream.samplerate,
                samples_claimed=min(stream.frames, MAX_CLAIM),
                channels=stream.channels,
            )
    except ClipError as error:
        return Clip(id=id, path=path, error=error)


def _window_pattern(windows: Windows) -> re.Pattern[str]:
    if windows.pattern.count("{stem}") != 1 or windows.pattern.count("{end}") != 1 or windows.seconds <= 0:
        raise SpecError(
            f"windows: pattern {windows.pattern!r}, seconds {windows.seconds}; the pattern needs {{stem}} and "
            "{end} once each, seconds must be above 0"
        )
    text = (
        re.escape(windows.pattern)
        .replace(r"\{stem\}", r"(?P<stem>.+)")
        .replace(r"\{end\}", r"(?P<end>[0-9]+(?:\.[0-9]+)?)")
    )
    return re.compile(text, re.DOTALL)


def window_ids(stem: str, seconds: float, windows: Windows) -> list[str]:
    """Row ids of a recording of `seconds`: one per window, the last one padded if it is not whole."""
    _window_pattern(windows)
    ends = (windows.seconds * (i + 1) for i in range(math.ceil(round(seconds / windows.seconds, 6))))
    return [windows.pattern.replace("{stem}", stem).replace("{end}", f"{end:.12g}") for end in ends]


def clip_ids(ids: Sequence[str], windows: Windows | None) -> list[str]:
    """Ids of the recordings behind row ids, each once, in order; the row ids themselves without windows."""
    if windows is None:
        return list(dict.fromkeys(ids))
    pattern = _window_pattern(windows)
    matches = (pattern.fullmatch(id) for id in ids)
    return list(dict.fromkeys(match["stem"] for match in matches if match))


def list_rows(ids: Sequence[str], index: ClipIndex, windows: Windows | None,
              prober: Callable[[str, Path, Sequence[Path]], Clip] = probe) -> list[Row]:
    """One Row per id, in the order of `ids`; headers are read once per clip, broken clips carry their error.

    prober  reads one header like `probe`; a caller may wrap it to beat, to name the clip in flight, or to
            refuse one

    Raises  SpecError for a window pattern without {stem} and {end}
    """
    wanted = clip_ids(ids, windows)
    if windows is not None and any(id not in index.paths and id not in index.ambiguous for id in wanted):
        index = index.of_ids(wanted)  # the index was made from row ids
    clips: dict[str, Clip] = {}
    for id in wanted:
        path = index.path(id)
        clips[id] = Clip(id=id, error=index.error(id)) if path is None else prober(id, path, index.roots)
    if windows is None:
        return [Row(id=id, clip=clips[id]) for id in ids]
    pattern = _window_pattern(windows)
    return [_window_row(id, pattern, windows, clips) for id in ids]


def _window_row(id: str, pattern: re.Pattern[str], windows: Windows, clips: dict[str, Clip]) -> Row:
    match = pattern.fullmatch(id)
    if match is None:
        return Row(
            id=id,
            clip=Clip(
                id=id,
                error=ClipUnreadable(
                    f"{id!r}: does not fit the window pattern {windows.pattern!r}; correct `windows.pattern` of the ensemble"
                ),
            ),
        )
    clip = clips[match["stem"]]
    if clip.error is not None:
        return Row(id=id, clip=clip)
    start = round((float(match["end"]) - windows.seconds) * clip.rate)
    if start < 0:
        return Row(
            id=id,
            clip=Clip(
                id=clip.id,
                path=clip.path,
                error=ClipUnreadable(
                    f"{id!r}: a window of {windows.seconds} s cannot end at {match['end']} s; correct `windows.seconds`"
                ),
            ),
        )
    return Row(id=id, clip=clip, start=start, stop=start + round(windows.seconds * clip.rate))


def decode(clip: Clip, max_seconds: float) -> Wave:
    """Wave of a clip: mean of its channels at its own rate, at most `max_seconds` of it.

    Raises  ClipUnreadable, ClipEmpty
    """
    if clip.error is not None or clip.path is None:
        raise (
            _again(clip.error)
            if clip.error is not None
            else ClipUnreadable(f"{clip.id!r}: no file; check the id")
        )
    with _open(clip.id, clip.path, (clip.path,)) as (stream, _):
        if (stream.samplerate, stream.channels) != (clip.rate, clip.channels):
            raise ClipUnreadable(f"{clip.id!r}: the file changed while the run was going on; run again")
        cap = max(1, int(max_seconds * clip.rate))
        mono, error = _read_mono(stream, min(stream.frames, cap))
        count = len(mono)
        if error is not None and count < SALVAGE_SECONDS * clip.rate:
            raise ClipUnreadable(
                f"{clip.id!r}: the decoder failed after {count / clip.rate:.2f} s ({error}); replace the file"
            )
        if not count:
            raise ClipEmpty(f"{clip.id!r}: no sample could be decoded; its row keeps the prior")
        notes = []
        if error is not None:
            notes.append(
                f"salvaged: the decoder failed after {count / clip.rate:.2f} s ({error}); the audio before is used"
            )
        elif count < min(stream.frames, cap) - _claim_slack(stream) and stream.frames < MAX_CLAIM:
            notes.append(
                f"short: {count / clip.rate:.2f} s decoded of {stream.frames / clip.rate:.2f} s claimed"
            )
        elif count == cap and stream.frames > cap and len(_read_mono(stream, 1)[0]):
            notes.append(f"ClipTooLong: only the first {max_seconds:g} s are used")
        if not stream.subtype.startswith("PCM"):
            notes += _repair(mono)
    return Wave(samples=mono, rate=clip.rate, notes=tuple(notes))


def _claim_slack(stream: _Stream) -> int:
    """Samples by which a sound file's claim may be too large: an MP3's length is an estimate."""
    return round(SALVAGE_SECONDS * stream.samplerate) if "MPEG" in stream.subtype else 0


def _again(error: ClipError) -> ClipError:
    """A fresh copy: raising one stored exception twice would chain their tracebacks."""
    return type(error)(*error.args)


def _read_mono(stream: _Stream, count: int) -> tuple[np.ndarray, str | None]:
    """At most `count` samples f32, mean of the channels, and the decoder's complaint if it stopped there."""
    channels, is_pcm16 = stream.channels, stream.subtype == "PCM_16"
    mono = np.empty(count, np.float32)
    step = min(count, BLOCK // channels)
    direct = channels == 1 and not is_pcm16
    block = mono if direct else np.empty((step, channels), np.int16 if is_pcm16 else np.float32)
    done, error = 0, None
    while done < count and error is None:
        size = min(step, count - done)
        target = mono[done:done + size] if direct else block[:size]
        got, error = _read_block(stream, target, done)
        if not got:
            break
        if not direct:
            _mix(block[:got], mono[done:done + got], is_pcm16)
        done += got
    return (mono if done == count else mono[:done].copy()), error


def _read_block(stream: _Stream, target: np.ndarray, done: int) -> tuple[int, str | None]:
    """How many of the frames of `target` were filled, and the decoder's complaint."""
    try:
        return len(stream.read(len(target), out=target)), None
    except soundfile.SoundFileError as error:
        reason = (
            str(getattr(error, "error_string", None) or error).strip()
            or f"code {getattr(error, 'code', '?')}"
        )
    try:  # what came before the error is in `target`: the position says how much
        return min(max(0, stream.tell() - done), len(target)), reason
    except soundfile.SoundFileError:
        return 0, reason


def _mix(block: np.ndarray, out: np.ndarray, is_pcm16: bool) -> None:
    """Mean over the channels of block[n, C] into out f32[n]; 16-bit sums are exact in float32."""
    out[:] = block[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):  # float files may hold inf and NaN: see _repair
        for channel in range(1, block.shape[1]):
            out += block[:, channel]
    if is_pcm16:
        out *= PCM16_SCALE
    if block.shape[1] > 1:
        out /= np.float32(block.shape[1])


def _repair(mono: np.ndarray) -> list[str]:
    """Replace NaN and infinite samples by 0 and clip to +-8, in place; the notes about it."""
    notes = []
    if not (mono.min() >= -MAX_LEVEL and mono.max() <= MAX_LEVEL):  # false for NaN as well
        broken = ~np.isfinite(mono)
        if broken.any():
            mono[broken] = 0.0
            notes.append(f"nonfinite: {int(broken.sum())} samples were no numbers and became 0")
        loud = int((np.abs(mono) > MAX_LEVEL).sum())
        if loud:
            np.clip(mono, -MAX_LEVEL, MAX_LEVEL, out=mono)
            notes.append(f"clipped: {loud} samples above {MAX_LEVEL:g} times full scale")
    return notes


def cut(wave: Wave, row: Row) -> Wave:
    """The row's window of a decoded clip, zero-padded at the end to full length; the whole wave for a
    whole-clip row.

    Raises  ClipEmpty if the window begins after the last sample
    """
    if row.start is None or row.stop is None:
        return wave
    piece = wave.samples[row.start:row.stop]
    if not len(piece):
        raise ClipEmpty(f"{row.id!r}: the window begins at {row.start / wave.rate:g} s, the audio ends at "
                        f"{len(wave.samples) / wave.rate:.2f} s; its row keeps the prior")
    if len(piece) < row.stop - row.start:
        piece = np.pad(piece, (0, row.stop - row.start - len(piece)))
    return Wave(samples=np.ascontiguousarray(piece), rate=wave.rate, notes=wave.notes)


def resample(wave: Wave, rate: int) -> Wave:
    """The wave at `rate` Hz by soxr HQ, ceil(S x rate / wave.rate) samples.

    Source: librosa 0.11 `resample(res_type="soxr_hq", fix=True)`, which the published systems were trained
    with.
    """
    if rate == wave.rate:
        return wave
    length = math.ceil(len(wave.samples) * (float(rate) / wave.rate))
    samples = soxr.resample(wave.samples, wave.rate, rate, quality="HQ")[:length]
    if len(samples) < length:
        samples = np.pad(samples, (0, length - len(samples)))
    return Wave(samples=np.ascontiguousarray(samples, np.float32), rate=rate, notes=wave.notes)


def load(row: Row, rate: int, max_seconds: float) -> Wave:
    """The row's audio at `rate` Hz: decode, cut, resample.

    Raises  ClipUnreadable, ClipEmpty
    """
    return resample(cut(decode(row.clip, max_seconds), row), rate)
