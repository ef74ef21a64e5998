"""Which weights are which version of their dataset, as far as they were uploaded from here.

Owns the note beside a build (`uploaded-weights.json`). It is a note, no proof: whoever asks compares the
version with the one that is current on Kaggle, and the kernel checks every hash.
"""
import hashlib
import json
from pathlib import Path

from kernel.files import write_atomically
from kernel.spec import dumps_json

from . import bundle_check
from .staging import WEIGHTS

NOTE = "uploaded-weights.json"


def _digest(out: Path) -> str:
    """One hash for the names and bytes of all files that are uploaded."""
    held = {path.name: bundle_check.file_sha256(path) for path in sorted((out / WEIGHTS).iterdir())
            if path.name != bundle_check.METADATA}
    return hashlib.sha256(dumps_json(held)).hexdigest()


def remember(out: Path, dataset: str, version: int) -> None:
    """Note that the weights of `out` are this version of the dataset."""
    note = {"dataset": dataset, "sha256": _digest(out), "version": version}
    write_atomically(out / NOTE, dumps_json(note))


def find_version(out: Path, dataset: str) -> int | None:
    """The version that the weights of `out` were uploaded as; None when they were not, or nobody knows."""
    try:
        told = json.loads((out / NOTE).read_bytes())
        same = (told["dataset"], told["sha256"]) == (dataset, _digest(out))
        return int(told["version"]) if same else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
