"""Where a build is written, and the swap with the one before: both folders are replaced, or neither.

Owns the private folder beside the results and what dead builds left of theirs. A build that lives holds a
lock in its folder, which the system releases when it dies: process ids say nothing, as a container gives
each build the same. Does not know what is built, but takes nobody else's folder for a build.
"""
import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel.errors import OutputUnwritable, text_of

PREFIX = ".building-"
LEFT = re.compile(r"\.building-\d+-\w+")  # What `mkdtemp` makes of it; a folder of the user's is not swept.
LOCK = "lock"
SCRIPT = "infer_kernel.py"  # kernel.pin has it too, but loads numpy.
NAMES = ("bundle", "push")
WEIGHTS, ATTACHED = "bundle-weights", "bundle-attached"  # kernel.bundle has them too, but loads torch.
OPTIONAL = (WEIGHTS, ATTACHED)
ALL = (NAMES[0], *OPTIONAL, NAMES[1])
# What file systems without such locks answer; there, two builds into one folder are the user's to avoid.
NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder beside the results; gone afterwards, and so are those that dead builds left.

    Raises  OutputUnwritable when `out` is no folder, read-only or full
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            _sweep(out)
            folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=out))
            lock = _lock(folder)
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        yield folder
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        if not _holds_old(folder):
            shutil.rmtree(folder, ignore_errors=True)  # What cannot be removed is tried by the next build.
        if lock is not None:
            os.close(lock)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """No other build sweeps or swaps in `out` meanwhile."""
    handle = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
    finally:
        os.close(handle)


def _lock(folder: Path) -> int | None:
    """The lock that says a build lives here, until it is closed; None where the file system has none.

    Raises  BlockingIOError while another process holds it, OSError
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in NO_LOCKS:
            return None
        raise
    return handle


def _sweep(out: Path) -> None:
    """Undo and remove what dead builds left in `out`.

    Raises  OSError when a swap cannot be undone
    """
    for left in out.glob(PREFIX + "*"):
        if not LEFT.fullmatch(left.name) or left.is_symlink() or not left.is_dir():
            continue
        try:
            lock = _lock(left)
        except BlockingIOError:
            continue  # Its build lives.
        if lock is None:
            continue
        try:
            put_back(left, out)
            shutil.rmtree(left, ignore_errors=True)  # Nothing of the build before is in it any more.
        finally:
            os.close(lock)


def sweep(out: Path) -> None:
    """The same, after a build died; what cannot be done now is tried by the next build."""
    try:
        with _alone(out):
            _sweep(out)
    except OSError:
        return


def stamp(out: Path) -> list[int]:
    """What tells the builds that lie in `out` one after the other apart: a swap changes it."""
    return [os.lstat(out / name).st_ino if os.path.lexists(out / name) else 0 for name in NAMES]


def check_replaceable(out: Path) -> None:
    """Nothing, when what would be replaced in `out` is a build, empty or not there.

    Raises  OutputUnwritable naming the folder that somebody else made
    """
    for name, is_ours in zip(ALL, (_is_bundle, _is_weights, _is_attached, _is_push), strict=True):
        there = out / name
        if not os.path.lexists(there):
            continue
        try:
            fine = there.is_dir() and (is_ours(there) or not any(there.iterdir()))
        except OSError as error:
            raise _unwritable(out, error) from error
        if not fine:
            raise OutputUnwritable(
                f"{there}: is there, and no earlier build wrote it, so it is not replaced; move it away, or "
                "give another --out. Nothing was changed"
            )


def _is_bundle(folder: Path) -> bool:
    """True for a bundle, also one whose manifest or code was damaged."""
    if any(folder.glob("hourglass-*.whl")):
        return True
    try:
        data = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and {"bundle", "wheel", "ensemble"} <= set(data)


def _is_weights(folder: Path) -> bool:
    """True for the weights of a bundle that was split."""
    return (folder / "dataset-metadata.json").is_file()


def _is_attached(folder: Path) -> bool:
    """True for links to attached files, laid out as Kaggle mounts them."""
    return {path.name for path in folder.iterdir()} <= {"datasets", "models"}


def _is_push(folder: Path) -> bool:
    """True for the folder to push, also one whose files were damaged."""
    try:
        return b"CONSTANT" in (folder / SCRIPT).read_bytes()
    except OSError:
        return False


def _unwritable(out: Path, error: OSError) -> OutputUnwritable:
    """The sentence for what the system refused."""
    where = "" if error.filename in (None, str(out)) else f" at {error.filename}"
    return OutputUnwritable(
        f"{out}: {error.strerror or error}{where}; give --out a folder that can be written and has room. "
        "What was built before is untouched"
    )


def put_in_place(folder: Path, out: Path) -> None:
    """Swap the finished parts of a build in `folder` with those of `out`; all, or none.

    Raises  OutputUnwritable, once the old ones are back
    """
    check_replaceable(out)
    with _alone(out):
        try:
            parts = [name for name in ALL if name in NAMES or _takes_part(folder, out, name)]
            for name in parts:
                if name in OPTIONAL:  # An empty one stands for none, so that the swap can be undone.
                    (folder / name).mkdir(exist_ok=True)
            for name in parts:
                if os.path.lexists(out / name):
                    os.rename(out / name, folder / f"old-{name}")
                os.rename(folder / name, out / name)
        except BaseException as error:  # An interrupt undoes the swap as well.
            try:
                put_back(folder, out)
            except OSError as second:
                raise OutputUnwritable(
                    f"{out}: {text_of(error)}, and {second.strerror or second} when the old build was put "
                    f"back; parts of it lie in {folder} as old-bundle and old-push: move them back"
                ) from error
            if isinstance(error, OSError):
                raise _unwritable(out, error) from error
            raise


        for name in OPTIONAL:
            if name in parts and not any((out / name).iterdir()):
                (out / name).rmdir()


def _takes_part(folder: Path, out: Path, name: str) -> bool:
    """True for what is optional and lies in the new build or in the one before."""
    return (folder / name).exists() or os.path.lexists(out / name)


def _holds_old(folder: Path) -> bool:
    """True while the only copy of the build before lies here: the swap could not even be undone."""
    unfinished = (folder / NAMES[-1]).exists()
    return unfinished and any(os.path.lexists(folder / f"old-{name}") for name in ALL)


def put_back(folder: Path, out: Path) -> None:
    """Undo a swap that did not reach its end; a swap that did, or never began, stays as it is.

    The last folder of `NAMES` is moved last: as long as it lies in `folder`, the swap is not done.
    """
    if not (folder / NAMES[-1]).exists():
        return
    begun = not (folder / NAMES[0]).exists()  # The first is moved first.
    for name in reversed(ALL):
        if name in OPTIONAL and not (begun and _takes_part(folder, out, name)):
            continue
        if not (folder / name).exists():
            os.rename(out / name, folder / name)
        if os.path.lexists(folder / f"old-{name}"):
            os.rename(folder / f"old-{name}", out / name)
