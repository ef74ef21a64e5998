"""Files that are always whole, and the space that is left for them.

Owns the atomic replacement of a file, its safety from a power cut, and the free space of a disk. Knows
nothing of what is written.
"""
import os
import threading
from pathlib import Path

from .errors import LimitError


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a reader sees the old bytes or the new ones, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


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
