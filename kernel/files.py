"""Files that are always whole, and the room that is left for them.

Owns the atomic replacement of a file and the free space of a disk. Knows nothing of what is written.
"""
from __future__ import annotations

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
