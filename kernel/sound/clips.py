"""Which file an id means: the listing of an input folder and the choice of its clip folder.

Owns the rules of ids (path below the clip folder, else base name, else stem, each only where unique) and of
links. Never opens a file: that is `decode`.
"""
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ClipUnreadable

# Names that count as audio where an id is a bare stem; some cannot be decoded and are then named as such.
SUFFIXES = frozenset(".wav .wave .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff .aifc .au .snd .w64 .rf64 .caf "
                     ".m4a .aac .wma .webm".split())
MAX_NAMED = 3  # candidates shown in an ambiguity message


@dataclass(frozen=True, kw_only=True)
class ClipIndex:
    """Files of the ids of one run.

    input_dir   the folder that was searched
    folder      the clip folder below it (the input itself if no id was found)
    roots       resolved folders inside which a clip must lie
    paths       id -> file, for every id that means exactly one file
    ambiguous   id -> the files it could mean, below `folder`
    extra       audio files in the clip folder that no id means
    files       everything found below the input, as relative POSIX paths
    """

    input_dir: Path
    folder: Path
    roots: tuple[Path, ...]
    paths: dict[str, Path]
    ambiguous: dict[str, tuple[str, ...]]
    extra: int
    files: tuple[str, ...] = field(default=(), repr=False)

    def path(self, id: str) -> Path | None:
        """File of an id, or None where it has none or could mean several."""
        return self.paths.get(id)

    def error(self, id: str) -> ClipUnreadable:
        """Why an id has no file."""
        several = self.ambiguous.get(id)
        if several:
            shown = ", ".join(repr(name) for name in several[:MAX_NAMED])
            return ClipUnreadable(
                f"{id!r}: could mean {len(several)} files below {self.folder}, such as {shown}; "
                "use paths below the clip folder as ids"
            )
        return ClipUnreadable(f"{id!r}: no such file below {self.folder}; check the id and the clip folder")

    def of_ids(self, ids: Iterable[str]) -> "ClipIndex":
        """The same listing resolved for other ids."""
        return _resolve(self.input_dir, self.roots, self.files, ids)


def find_clips(input_dir: Path, ids: Sequence[str], beat: Callable[[], None] = lambda: None) -> ClipIndex:
    """Index of the clips behind `ids` in `input_dir`; ids without a file are no error here.

    beat  called for every folder and entry: a slow mount can take minutes to list

    The clip folder is the one that resolves most ids; among equals the one with most ids directly in it, then
    one with "test" in its name, then the deepest. Links to folders are followed at the top level only
    (datasets may be links).
    """
    files, roots = _list(os.fspath(input_dir), beat)
    return _resolve(Path(input_dir), roots, files, ids)


def _list(top: str, beat: Callable[[], None]) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """Relative paths of all that could be a clip (in sorted order), and the allowed roots.

    A folder that cannot be read has no clips: their ids are named one by one.
    """
    roots = [os.path.realpath(top)]
    files = []
    folders = [""]
    while folders:
        inside = folders.pop()
        for entry in _scan(os.path.join(top, inside), beat):
            name = f"{inside}/{entry.name}" if inside else entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif entry.is_symlink() and not inside and _is_foreign_folder(entry, roots):
                roots.append(os.path.realpath(entry.path))
                folders.append(name)
                continue
            # Folders, pipes and dangling links named like a clip stay listed: their id gets a true reason.
            if not entry.is_dir(follow_symlinks=False) or _suffix(entry.name) in SUFFIXES:
                files.append(name)
    return tuple(sorted(files)), tuple(Path(root) for root in roots)


def _scan(folder: str, beat: Callable[[], None]) -> Iterator[os.DirEntry[str]]:
    """Entries of a folder, as far as it can be read."""
    beat()
    with suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            beat()
            yield entry


def _is_foreign_folder(link: os.DirEntry[str], roots: list[str]) -> bool:
    """True for a link to a folder that is neither inside nor around a folder already listed."""
    target = os.path.realpath(link.path)
    return os.path.isdir(target) and not any(
        os.path.commonpath([target, root]) in (target, root) for root in roots
    )


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _folders_above(parts: list[str], tail: int) -> Iterator[tuple[str, bool]]:
    """Every folder from which the last `tail` parts can be reached, and whether they lie directly in it."""
    last = len(parts) - tail
    for depth in range(last + 1):
        yield "/".join(parts[:depth]), depth == last


def _resolve(
    input_dir: Path, roots: tuple[Path, ...], files: Sequence[str], ids: Iterable[str]
) -> ClipIndex:
    wanted = dict.fromkeys(ids)
    hits = _find_hits(files, wanted)
    folder = _choose_folder(files, hits)
    below = folder + "/" if folder else ""
    paths: dict[str, Path] = {}
    ambiguous: dict[str, tuple[str, ...]] = {}
    for id in wanted:
        names, stems = hits.get(id, ([], []))
        found = _pick([files[i] for i in names], [files[i] for i in stems], id, below)
        if len(found) == 1:
            paths[id] = input_dir / found[0]
        elif found:
            ambiguous[id] = tuple(name[len(below):] for name in found)
    used = {os.fspath(path) for path in paths.values()}
    top = os.path.join(input_dir, "")
    extra = sum(
        name.startswith(below) and _suffix(name) in SUFFIXES and top + name not in used for name in files
    )
    return ClipIndex(
        input_dir=input_dir,
        folder=input_dir / folder,
        roots=roots,
        paths=paths,
        ambiguous=ambiguous,
        extra=extra,
        files=tuple(files),
    )


def _find_hits(files: Sequence[str], wanted: dict[str, None]) -> dict[str, tuple[list[int], list[int]]]:
    """id -> (files whose path ends in the id, files whose path without suffix does)."""
    depths = sorted({id.count("/") + 1 for id in wanted})
    hits: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for i, name in enumerate(files):
        stem = name[: -len(_suffix(name))] if _suffix(name) in SUFFIXES else None
        for depth in depths:
            cut = _tail_start(name, depth)
            if cut is None:
                break
            if name[cut:] in wanted:
                hits[name[cut:]][0].append(i)
            if stem is not None and stem[cut:] in wanted:
                hits[stem[cut:]][1].append(i)
    return hits


def _tail_start(name: str, depth: int) -> int | None:
    """Where the last `depth` parts of a path begin; None when it has fewer."""
    at = len(name)
    for _ in range(depth):
        if at < 0:
            return None
        at = name.rfind("/", 0, at) if at > 0 else -1
    return at + 1


def _choose_folder(files: Sequence[str], hits: dict[str, tuple[list[int], list[int]]]) -> str:
    """The folder that resolves most ids; "" (the input itself) when no id has a file."""
    resolved: dict[str, int] = defaultdict(int)
    direct: dict[str, int] = defaultdict(int)
    for id, (names, stems) in hits.items():
        tail = id.count("/") + 1
        # Folder -> files by name, by stem, directly in it
        seen: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for kind, found in enumerate((names, stems)):
            for i in found:
                for folder, is_direct in _folders_above(files[i].split("/"), tail):
                    seen[folder][kind] += 1
                    seen[folder][2] += is_direct and (kind == 0 or not names)
        for folder, (by_name, by_stem, at_once) in seen.items():
            if by_name == 1 or (by_name and at_once) or (not by_name and by_stem == 1):
                resolved[folder] += 1
                direct[folder] += bool(at_once)

    def rank(folder: str) -> tuple[int, int, bool, int, str]:
        depth = folder.count("/") + bool(folder)
        return -resolved[folder], -direct[folder], "test" not in folder.lower(), -depth, folder

    return min(resolved, key=rank, default="")


def _pick(names: list[str], stems: list[str], id: str, below: str) -> list[str]:
    """The files an id can mean below one folder: the path itself, else by name, else by stem."""
    names = [name for name in names if name.startswith(below)]
    if below + id in names:
        return [below + id]
    return names or [name for name in stems if name.startswith(below)]
