"""Files that are always whole, and the space that is left for them.

Owns the atomic replacement of a file, its safety from a power cut, and the free space of a disk. Knows
nothing of what is written.
"""
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from .errors import LimitError


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a reader sees the old bytes or the new ones, never a part.

    Raises  OSError; nothing half-written stays
    """
    temporary = name_temporary(path)
    try:
        with open(temporary, "wb") as file:
            hold(file.fileno())
            file.write(data)
            file.flush()
            put_in_place(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def hold(handle: int) -> None:
    """Lock a file while it is written: a guard that starts in the same folder sweeps what nobody holds."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def name_temporary(path: Path) -> Path:
    """A path beside `path` for its next bytes, that nobody can have taken."""
    return path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")


def put_in_place(temporary: Path, path: Path) -> None:
    """Replace `path` in one step; a folder of that name is moved aside, whole.

    Raises  OSError
    """
    try:
        os.replace(temporary, path)
    except IsADirectoryError:
        os.rename(path, path.with_name(f"{path.name}.{os.urandom(4).hex()}.folder"))
        os.replace(temporary, path)


def sync_folder(folder: Path) -> None:
    """Let a replacement in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def free_disk(path: Path) -> int:
    """Bytes an unprivileged process may still write below `path` (or below its nearest existing parent).

    Raises  LimitError if the file system does not answer
    """
    at = Path(os.path.abspath(path))
    while True:
        try:
            found = os.statvfs(at)
            return found.f_bavail * found.f_frsize
        except FileNotFoundError:
            at = at.parent
        except OSError as error:
            raise LimitError(
                f"{at}: free space cannot be read ({error.strerror}); give another folder"
            ) from error
