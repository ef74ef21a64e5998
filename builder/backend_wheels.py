"""Wheels of a back end the Kaggle image lacks, and the proof that they suffice without internet.

Owns the download for each Python of the image's near future, the choice of what must ride along (what the
image has stays out), and the proof: an installation from those files alone, and on this machine's own Python
an import in an empty environment. Installs nothing here and does not use the back end
(kernel.inference.backends does).
"""
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

from kernel.errors import UploadError

from .commands import Run, run_command

PYTHONS = ("3.11", "3.12", "3.13")  # Kaggle ran 3.12 in Aug 2026; its base image had just moved to 3.13.
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux2014_x86_64",
    "manylinux_2_17_x86_64",
    "linux_x86_64",
)
# What the image has and a back end may lean on: the version per Python.
# Source: googlecolab/backend-info, May and Aug 2026.
IMAGE = {
    "3.11": {"numpy": "2.0.2", "protobuf": "5.29.5"},
    "3.12": {"numpy": "2.0.2", "protobuf": "5.29.5"},
    "3.13": {"numpy": "2.1.3", "protobuf": "5.29.5"},
}
IMAGE_UNPINNED = ("packaging", "sympy", "mpmath", "typing_extensions", "coloredlogs", "humanfriendly")
UNSATISFIED = re.compile(
    r"Could not find a version that satisfies the requirement ([^\s(]+)(?: \(from (?!versions)([^)]*)\))?"
)

def _project(wheel: Path) -> str:
    """Normalised project name of a wheel file."""
    return re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()


def in_image(wheel: Path) -> bool:
    """True for a package that the image has: it must not be shadowed by one of ours."""
    names = {*IMAGE["3.12"], *IMAGE_UNPINNED}
    return _project(wheel) in {re.sub(r"[-_.]+", "-", name) for name in names}


def _pip(verb: str, *options: str, interpreter: str = sys.executable) -> list[str]:
    """A pip command of this machine (or of another interpreter) that asks nothing and prints only errors."""
    return [interpreter, "-m", "pip", verb, "--quiet", "--disable-pip-version-check", *options]


def _for_kaggle(python: str) -> list[str]:
    """Options that make pip choose wheels for `python` on Kaggle's Linux, whatever runs here."""
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    return ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]


def _check(done: subprocess.CompletedProcess[str], what: str) -> None:
    """Nothing, when pip succeeded.

    Raises  UploadError naming the requirement that is missing and who asks for it
    """
    if done.returncode == 0:
        return
    missing = UNSATISFIED.search(done.stderr)
    if missing is None:
        reason = done.stderr.strip().splitlines()[-1:] or done.returncode
        raise UploadError(f"wheels: {what} failed: {reason}")
    asked = f", needed by {missing.group(2).split('->')[-1].strip()}" if missing.group(2) else ""
    raise UploadError(
        f"wheels: {what}: {missing.group(1)!r} is missing{asked}; without it the back end fails on Kaggle"
    )


def download(back_end: str, folder: Path, run: Run = run_command) -> None:
    """Wheels of `back_end` and everything it needs, for every Python of PYTHONS, into `folder`.

    Raises  UploadError when pip finds no closed set
    """
    for python in PYTHONS:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
            pins.write("\n".join(f"{name}=={version}" for name, version in IMAGE[python].items()) + "\n")
            pins.flush()
            options = [*_for_kaggle(python), "--constraint", pins.name, "--dest", str(folder)]
            done = run(_pip("download", *options, back_end))
        _check(done, f"download of {back_end} for Python {python}")


def prove(back_end: str, folders: Sequence[Path], run: Run = run_command) -> None:
    """Nothing, when the wheels in `folders` install without an index for every Python and import on this one.

    Raises  UploadError naming the missing dependency
    """
    links = [part for folder in folders for part in ("--find-links", str(folder))]
    for python in PYTHONS:
        with tempfile.TemporaryDirectory() as target:
            done = run(
                _pip("install", "--no-index", *links, *_for_kaggle(python), "--target", target, back_end)
            )
        _check(done, f"offline installation of {back_end} for Python {python}")
    if f"{sys.version_info.major}.{sys.version_info.minor}" not in PYTHONS:
        return
    with tempfile.TemporaryDirectory() as empty:
        venv.create(empty, with_pip=True)
        python = f"{empty}/bin/python"
        done = run(_pip("install", "--no-index", *links, back_end, interpreter=python))
        _check(done, f"offline installation of {back_end} into an empty environment")
        _check(run([python, "-I", "-c", f"import {back_end}"]), f"import of the installed {back_end}")


def collect(back_end: str, folder: Path, run: Run = run_command) -> list[Path]:
    """The wheels that must ride along, copied to `folder` once their closure is proved.

    Raises  UploadError
    """
    with tempfile.TemporaryDirectory() as work:
        everything, ours, image = (Path(work) / name for name in ("all", "ours", "image"))
        for place in (everything, ours, image):
            place.mkdir()
        download(back_end, everything, run)
        for wheel in sorted(everything.iterdir()):
            wheel.rename((image if in_image(wheel) else ours) / wheel.name)
        prove(back_end, [ours, image], run)
        return [Path(shutil.copyfile(wheel, folder / wheel.name)) for wheel in sorted(ours.iterdir())]
