"""Where a build is written, and the swap with the one before: both folders are replaced, or neither.

Owns the private folder beside the results and what dead builds left of theirs. Does not know what is built.
"""
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel.errors import OutputUnwritable

PREFIX = ".building-"
NAMES = ("bundle", "push")


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder beside the results; gone afterwards, and so are those that dead builds left.

    Raises  OutputUnwritable when `out` is no folder, read-only or full
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for left in out.glob(PREFIX + "*"):
            process = left.name.removeprefix(PREFIX).partition("-")[0]
            if process.isdigit() and not Path(f"/proc/{process}").exists():
                put_back(left, out)
                shutil.rmtree(left, ignore_errors=True)  # Nothing of the build before is in it any more.
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=out))
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        yield folder
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        if not _holds_old(folder):
            shutil.rmtree(folder, ignore_errors=True)  # What cannot be removed is tried by the next build.


def _unwritable(out: Path, error: OSError) -> OutputUnwritable:
    """The sentence for what the system refused."""
    where = "" if error.filename in (None, str(out)) else f" at {error.filename}"
    return OutputUnwritable(
        f"{out}: {error.strerror or error}{where}; give --out a folder that can be written and has room. "
        "What was built before is untouched"
    )


def put_in_place(folder: Path, out: Path) -> None:
    """Swap the finished `bundle` and `push` of `folder` with those of `out`; both, or neither.

    Raises  OutputUnwritable, once the old ones are back
    """
    try:
        for name in NAMES:
            if os.path.lexists(out / name):
                os.rename(out / name, folder / f"old-{name}")
            os.rename(folder / name, out / name)
    except OSError as error:
        try:
            put_back(folder, out)
        except OSError as second:
            raise OutputUnwritable(
                f"{out}: {error.strerror or error}, and {second.strerror or second} when the old build "
                f"was put back; parts of it lie in {folder} as old-bundle and old-push: move them back"
            ) from error
        raise _unwritable(out, error) from error


def _holds_old(folder: Path) -> bool:
    """True while the only copy of the build before lies here: the swap could not even be undone."""
    unfinished = (folder / NAMES[-1]).exists()
    return unfinished and any(os.path.lexists(folder / f"old-{name}") for name in NAMES)


def put_back(folder: Path, out: Path) -> None:
    """Undo a swap that did not reach its end; a swap that did, or never began, stays as it is.

    The last folder of `NAMES` is moved last: as long as it lies in `folder`, the swap is not done.
    """
    if not (folder / NAMES[-1]).exists():
        return
    for name in reversed(NAMES):
        if not (folder / name).exists():
            os.rename(out / name, folder / name)
        if os.path.lexists(folder / f"old-{name}"):
            os.rename(folder / f"old-{name}", out / name)
