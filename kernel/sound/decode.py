"""From one audio file to its mono wave: the header, the samples, another rate.

Owns what becomes of broken, empty, lying and over-long audio. Which file an id means is `clips`, which part
of it a row wants `rows`, windows of long recordings `recording`, the order of the work `loading`. Files are
read forward, a few samples at a time, never mapped and never whole.
"""
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ..errors import ClipEmpty, ClipError, ClipUnreadable, text_of
from .clips import SUFFIXES
from .mpeg_words import drop_tag_warnings

# Hz; outside lie only broken headers (1 Hz would grow 44,100-fold on resampling).
MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_CHANNELS = 32
SALVAGE_SECONDS = 0.5  # a decoder error after this much audio keeps the prefix
MAX_LEVEL = 8.0  # |sample| above this is clipped; full scale is 1
READ_SAMPLES = 1 << 18  # of all channels together, at once
PCM16_SCALE = np.float32(1 / 32768)  # a power of two: bit-identical to libsndfile's own float conversion
MAX_CLAIM = 1 << 40  # a FLAC without length claims 2**63 samples; kept small enough for int64 arithmetic
MPEG_SUFFIXES = (".mp3", ".mp2", ".mpga")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One audio file as its header describes it; a header may lie.

    id               the sample's id (for windowed rows: the recording's)
    path             resolved file, or None where there is none
    rate             Hz, 0 where it is unknown
    samples_claimed  per channel, by the header
    unread_below     the roots, where its header was not read yet: then rate, length and channels are 0
    error            why it cannot be used, or None
    """

    id: str
    path: Path | None = None
    rate: int = 0
    samples_claimed: int = 0
    channels: int = 0
    unread_below: tuple[Path, ...] = ()
    error: ClipError | None = None

    @property
    def unread(self) -> bool:
        """True where the header was not read yet: `decode` does that first."""
        return bool(self.unread_below)


@dataclass(frozen=True, kw_only=True)
class Wave:
    """Decoded audio: samples f32[S], mono, S >= 1, |x| <= 8, at `rate` Hz.

    notes  what was repaired or left out, each beginning with "salvaged", "short", "ClipTooLong", "nonfinite"
           or "clipped"
    """

    samples: np.ndarray
    rate: int
    notes: tuple[str, ...] = ()


class Stream(soundfile.SoundFile):
    """A sound file that is only read forward.

    soundfile seeks after every read of a seekable file. On a cut FLAC that seek fails and hides the samples
    just read.
    """

    def seekable(self) -> bool:
        return False


def _is_audio_name(real: str) -> bool:
    """True for a link's target that is audio by its name.

    A folder of links to one's own clips is a usual way to try things out; secrets have other names.
    """
    return os.path.splitext(real)[1].lower() in SUFFIXES


@contextmanager
def open_audio(
    id: str, path: Path, roots: Sequence[Path], links: bool = False
) -> Iterator[tuple[Stream, str]]:
    """Stream of a regular file inside one of `roots`, and its resolved path; never waits.

    links  a file outside them will do, too, if it is audio by its name

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
        inside = any(Path(real).is_relative_to(root) for root in roots)
        if not inside and not (links and _is_audio_name(real)):
            raise ClipUnreadable(f"{id!r}: {str(path)!r} links to {real!r}, outside the input folder and no "
                                 "audio by its name; copy the file instead")
        with _hush(fd, real):
            stream = _open_stream(id, fd, real)
        if not (MIN_RATE <= stream.samplerate <= MAX_RATE and 1 <= stream.channels <= MAX_CHANNELS):
            raise ClipUnreadable(f"{id!r}: header says {stream.samplerate} Hz, {stream.channels} channels; "
                                 f"{MIN_RATE}-{MAX_RATE} Hz and 1-{MAX_CHANNELS} channels can be read")
        yield stream, real
    finally:
        if stream is not None:
            stream.close()
        os.close(fd)


def _hush(fd: int, real: str) -> AbstractContextManager[None]:
    """Keeps libmpg123's words about tags to itself while a file is opened that it may read."""
    tagged = os.pread(fd, 3, 0) == b"ID3" or os.path.splitext(real)[1].lower() in MPEG_SUFFIXES
    return drop_tag_warnings() if tagged else nullcontext()


def _open_stream(id: str, fd: int, real: str) -> Stream:
    """Stream by content; only an MP3 behind foreign bytes needs its name to be recognised."""
    try:
        return Stream(fd, closefd=False)
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        if os.path.splitext(real)[1].lower() in MPEG_SUFFIXES:
            try:
                return Stream(os.fsencode(real))
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
        with open_audio(id, path, roots, links=True) as (stream, real):
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


@contextmanager
def open_clip(clip: Clip) -> Iterator[Stream]:
    """Stream of a clip whose header was read before.

    Raises  ClipUnreadable, also where the file is not what it was; the clip's own error
    """
    if clip.error is not None:
        raise type(clip.error)(*clip.error.args)  # a copy: raising one error twice would chain its tracebacks
    if clip.path is None:
        raise ClipUnreadable(f"{clip.id!r}: no file; check the id")
    with open_audio(clip.id, clip.path, (clip.path,)) as (stream, _):
        if (stream.samplerate, stream.channels) != (clip.rate, clip.channels):
            raise ClipUnreadable(f"{clip.id!r}: the file changed while the run was going on; run again")
        yield stream


def check_beginning(clip: Clip, count: int, error: str | None) -> None:
    """Nothing where `count` samples at the beginning of a clip can be used, whatever the decoder said then.

    Raises  ClipUnreadable, ClipEmpty
    """
    if error is not None and count < SALVAGE_SECONDS * clip.rate:
        raise ClipUnreadable(
            f"{clip.id!r}: the decoder failed after {count / clip.rate:.2f} s ({error}); replace the file"
        )
    if not count:
        raise ClipEmpty(f"{clip.id!r}: no sample could be decoded; its row keeps the prior")


def is_short(stream: Stream, count: int, wanted: int) -> bool:
    """True where a file that ended after `count` samples has claimed to hold `wanted`."""
    # An MP3's length is an estimate: its claim may be too large by this much.
    slack = round(SALVAGE_SECONDS * stream.samplerate) if "MPEG" in stream.subtype else 0
    return count < wanted - slack and stream.frames < MAX_CLAIM


def note_salvaged(clip: Clip, count: int, error: str) -> str:
    """The note of audio that a decoder gave up."""
    seconds = f"{count / clip.rate:.2f} s"
    return f"salvaged: the decoder failed after {seconds} ({error}); the audio before is used"


def note_short(clip: Clip, count: int, claimed: int) -> str:
    """The note of audio that holds less than its header says."""
    return f"short: {count / clip.rate:.2f} s decoded of {claimed / clip.rate:.2f} s claimed"


def note_too_long(max_seconds: float) -> str:
    """The note of audio whose end is not read."""
    return f"ClipTooLong: only the first {max_seconds:g} s are used"


def as_clip_error(id: str, what: str, error: BaseException) -> ClipError:
    """The error itself if it names a fault of the clip, else one that does."""
    if isinstance(error, ClipError):
        return error
    reason = f"{type(error).__name__}: {text_of(error)}"
    return ClipUnreadable(f"{id}: the {what} failed: {reason}; replace the file")


def decode(clip: Clip, max_seconds: float) -> Wave:
    """Wave of a clip: mean of its channels at its own rate, at most `max_seconds` of it.

    Raises  ClipUnreadable, ClipEmpty
    """
    if clip.unread:
        clip = probe(clip.id, clip.path, clip.unread_below)
    with open_clip(clip) as stream:
        cap = max(1, int(max_seconds * clip.rate))
        mono, error = read_mono(stream, min(stream.frames, cap))
        count = len(mono)
        check_beginning(clip, count, error)
        notes = []
        if error is not None:
            notes.append(note_salvaged(clip, count, error))
        elif is_short(stream, count, min(stream.frames, cap)):
            notes.append(note_short(clip, count, stream.frames))
        elif count == cap and stream.frames > cap and len(read_mono(stream, 1, count)[0]):
            notes.append(note_too_long(max_seconds))
        if not stream.subtype.startswith("PCM"):
            notes += repair(mono)
    return Wave(samples=mono, rate=clip.rate, notes=tuple(notes))


def read_mono(stream: Stream, count: int, before: int = 0) -> tuple[np.ndarray, str | None]:
    """At most `count` samples f32, mean of the channels, and the decoder's complaint if it stopped there.

    before  samples of the stream that were read earlier
    """
    channels = stream.channels
    is_pcm16 = stream.subtype == "PCM_16"
    mono = np.empty(count, np.float32)
    step = min(count, READ_SAMPLES // channels)
    direct = channels == 1 and not is_pcm16
    buffer = mono if direct else np.empty((step, channels), np.int16 if is_pcm16 else np.float32)
    done = 0
    error: str | None = None
    while done < count and error is None:
        size = min(step, count - done)
        target = mono[done:done + size] if direct else buffer[:size]
        got, error = _read_into(stream, target, before + done)
        if not got:
            break
        if not direct:
            _mix(buffer[:got], mono[done:done + got], is_pcm16)
        done += got
    return (mono if done == count else mono[:done].copy()), error


def _read_into(stream: Stream, target: np.ndarray, done: int) -> tuple[int, str | None]:
    """How many samples of `target` were filled, and the decoder's complaint; `done` were read before."""
    try:
        return len(stream.read(len(target), out=target)), None
    except soundfile.SoundFileError as error:
        text = str(getattr(error, "error_string", None) or error).strip()
        reason = text or f"code {getattr(error, 'code', '?')}"
    try:  # What came before the error is in `target`: the position says how much.
        return min(max(0, stream.tell() - done), len(target)), reason
    except soundfile.SoundFileError:
        return 0, reason


def _mix(read: np.ndarray, out: np.ndarray, is_pcm16: bool) -> None:
    """Mean over the channels of read[n, C] into out f32[n]; 16-bit sums are exact in float32."""
    out[:] = read[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):  # float files may hold inf and NaN: see repair
        for channel in range(1, read.shape[1]):
            out += read[:, channel]
    if is_pcm16:
        out *= PCM16_SCALE
    if read.shape[1] > 1:
        out /= np.float32(read.shape[1])


def repair(mono: np.ndarray) -> list[str]:
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


def resample(wave: Wave, rate: int) -> Wave:
    """The wave at `rate` Hz by soxr HQ, ceil(S x rate / wave.rate) samples.

    Source: librosa 0.11 `resample(res_type="soxr_hq", fix=True)`, which the published systems used.
    """
    if rate == wave.rate:
        return wave
    length = math.ceil(len(wave.samples) * (float(rate) / wave.rate))
    samples = soxr.resample(wave.samples, wave.rate, rate, quality="HQ")[:length]
    if len(samples) < length:
        samples = np.pad(samples, (0, length - len(samples)))
    return Wave(samples=np.ascontiguousarray(samples, np.float32), rate=rate, notes=wave.notes)
