"""A fake /kaggle to rehearse in: the attached dataset, and a competition made of the user's clips.

Owns the tree and the stretching of clips to the size of a hidden test set. Files are hard links where
possible. Does not run the kernel in it (command).
"""
import csv
import itertools
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from .. import spec
from ..bundle import ATTACHED_FOLDER, WEIGHTS_FOLDER
from ..errors import SampleMissing, SpecError
from ..sound.clips import SUFFIXES, find_clips
from ..sound.decode import MAX_CLAIM, Stream, probe
from ..sound.rows import Row, clip_ids, list_rows, window_ids

NEGLIGIBLE = 0.01  # a length factor this close to 1 changes nothing
AGAIN = "again{}-"  # leads the name of a repeated clip: window rows are named by the file, not by its folder
BLOCK = 1 << 18  # samples per channel that are copied at once
FACTORS = (0.02, 50.0)  # beyond it the clips say nothing about the hidden ones
COMPETITION = "competitions/rehearsal"  # its place below the input


@dataclass(frozen=True, kw_only=True)
class FakeKaggle:
    """What was laid: the test folder of clips, the ids of its rows, and what was done to the clips."""

    test: Path
    ids: tuple[str, ...]
    notes: tuple[str, ...] = ()


def link(source: Path, target: Path) -> None:
    """`target` holds the bytes of `source`: a hard link where possible, a copy elsewhere."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def find_audio(folder: Path) -> list[Path]:
    """Audio files below a folder, sorted by path.

    Raises  SampleMissing when there is none
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise SampleMissing(
            f"--clips {folder}: no audio file; give a folder of wav, flac, ogg, mp3 or aiff files"
        )
    return files


def lay_bundle(root: Path, bundle: Path, attached: Path | None = None) -> None:
    """The bundle as an attached dataset below `root`, its weights as another if it was split, and the files
    of other datasets and models.

    attached  where those lie, laid out as Kaggle mounts them; None = where the build left links to them

    Raises  SpecError when a local copy is gone
    """
    for folder, name in ((bundle, "bundle"), (bundle.parent / WEIGHTS_FOLDER, "bundle-weights")):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_file():
                link(path, root / "datasets/owner" / name / path.name)
    place = attached or bundle.parent / ATTACHED_FOLDER
    for path in sorted(place.rglob("*")):
        if path.is_symlink() and not path.exists():
            raise SpecError(
                f"{path}: leads to {os.readlink(path)}, which is gone; put it back, or build again"
            )
        if path.is_file():
            link(path, root / path.relative_to(place))


def lay_training(folder: Path, clips: Path) -> None:
    """The clips once more, as the competition's training recordings."""
    for path in find_audio(clips):
        link(path, folder / path.relative_to(clips))


def lay_clips(
    root: Path,
    clips: Path,
    ensemble: spec.Ensemble,
    repeat_to: int | None = None,
    hours: float | None = None,
) -> FakeKaggle:
    """A competition below `root`: the clips as test folder, and a sample submission that names them.

    repeat_to  clips in all: the given ones again and again, under other names
    hours      with repeat_to, hours of audio in all: every clip is cut or repeated by one factor, so that the
               shape of the length distribution stays

    Raises  SampleMissing, SpecError
    """
    files = find_audio(clips)
    seconds = [_seconds(path) for path in files]
    wanted = repeat_to or len(files)
    notes = []
    factor = _length_factor(seconds, wanted, hours) if repeat_to and hours else 1.0
    if factor != 1.0:
        notes.append(f"clips: every length times {factor:.3g} (cut or repeated), {hours:g} h in all")
    if wanted > len(files):
        notes.append(f"clips: {len(files)} files repeated to {wanted}")
    ids: list[str] = []
    competition = root / COMPETITION
    made: dict[Path, Path] = {}
    for number in range(wanted):
        source = files[number % len(files)]
        name = _repeated_name(source.relative_to(clips), number // len(files))
        target = competition / "test" / name
        if source not in made and factor != 1.0 and stretch(source, target, factor):
            made[source] = target
        else:
            link(made.get(source, source), target)
        ids += row_ids(name, target, ensemble)
    write_sample(competition, ids, ensemble)
    return FakeKaggle(test=competition / "test", ids=tuple(ids), notes=tuple(notes))


def _repeated_name(place: Path, again: int) -> str:
    """Name of a clip at its `again`-th repetition; 0 = its own."""
    return (place.with_name(AGAIN.format(again) + place.name) if again else place).as_posix()


def original_name(id: str) -> str:
    """Name of the clip that a row repeats; the row's own for one that is no repetition."""
    folder, slash, name = id.rpartition("/")
    return folder + slash + re.sub("^" + AGAIN.format(r"\d+"), "", name, count=1)


def find_rows(kaggle: FakeKaggle, ensemble: spec.Ensemble, wanted: Collection[str]) -> list[Row]:
    """The rows with these ids, to draw them."""
    ids = [id for id in kaggle.ids if id in wanted]
    index = find_clips(kaggle.test, clip_ids(ids, ensemble.windows))
    return list_rows(ids, index, ensemble.windows)


def write_sample(competition: Path, ids: Sequence[str], ensemble: spec.Ensemble) -> None:
    """sample_submission.csv in the ensemble's own format."""
    output = ensemble.output
    columns = ensemble.classes if output.format == "probabilities" else (output.label_column or "label",)
    competition.mkdir(parents=True, exist_ok=True)
    path = competition / "sample_submission.csv"
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["fname", *columns])
        writer.writerows([id, *["0"] * len(columns)] for id in ids)


def find_sample(clips: Path) -> Path | None:
    """The competition's own sample submission, where it lies in the folder of clips or beside it."""
    places = (folder / "sample_submission.csv" for folder in (clips, clips.parent))
    return next((path for path in places if path.is_file()), None)


def stretch(source: Path, target: Path, factor: float) -> bool:
    """`target` is `source` cut or repeated to `factor` times its length; False when that cannot be."""
    try:
        info = soundfile.info(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        length = sum(map(len, _read_blocks(source)))
        if not length:
            return False
        missing = max(1, round(length * factor))
        form = {"format": info.format, "subtype": info.subtype}
        with soundfile.SoundFile(target, "w", info.samplerate, info.channels, **form) as file:
            for block in itertools.chain.from_iterable(map(_read_blocks, itertools.repeat(source))):
                file.write(block[:missing])
                missing -= min(missing, len(block))
                if not missing:
                    break
    except (soundfile.SoundFileError, OSError, ValueError):
        # A broken clip stays as it is: it belongs to the rehearsal.
        target.unlink(missing_ok=True)
        return False
    return True


def _read_blocks(path: Path, kind: type[soundfile.SoundFile] = soundfile.SoundFile) -> Iterator[np.ndarray]:
    """The samples f32[n, channels] of a file, some at a time: a recording may last for hours."""
    with kind(path) as file:
        while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
            yield block


def _length_factor(seconds: Sequence[float], wanted: int, hours: float) -> float:
    """What every length is multiplied with so that `wanted` clips last `hours`."""
    total = sum(seconds[number % len(seconds)] for number in range(wanted))
    factor = hours * 3600 / total if total > 0 else 0.0
    if not FACTORS[0] <= factor <= FACTORS[1]:
        raise SpecError(
            f"--expect-hours {hours:g}: {wanted} clips would need lengths times {factor:.3g}; the given "
            "clips are too different from the hidden ones, give others"
        )
    return 1.0 if abs(factor - 1) <= NEGLIGIBLE else factor


def _seconds(path: Path) -> float:
    """Length by the header, or by what is there where the header does not tell; 0 for no audio."""
    clip = probe(path.name, path, path.parent)
    samples = clip.samples_claimed
    if samples == MAX_CLAIM:
        samples = 0
        with suppress(soundfile.SoundFileError):  # a broken end: what comes before it counts
            for block in _read_blocks(path, Stream):
                samples += len(block)
    return samples / clip.rate if clip.rate else 0.0


def row_ids(name: str, path: Path, ensemble: spec.Ensemble) -> list[str]:
    """The sample's ids for one clip: itself, or one per window."""
    if ensemble.windows is None:
        return [name]
    return window_ids(Path(name).stem, _seconds(path), ensemble.windows)
