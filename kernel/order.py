"""The guard's order to the engine: run.json as typed parts.

Owns the contract between the two processes. The guard writes run.json with the standard library alone
(describe_order in infer_kernel.py); the engine loads it here, where a key too many or too few is an error
that names it. Does not decide what the engine does with it (kernel.engine).
"""
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import SpecError
from .limits import Limits, Marks
from .spec import load

PATHS = frozenset({"bundle", "manifest", "input", "clips", "working", "state", "path"})  # file names


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The sample submission: its plain copy in the private folder, its column names and its row ids."""

    path: Path
    header: tuple[str, ...]
    ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the engine is told.

    bundle        folder of the bundle whose code was verified
    manifest      the verified manifest, a copy in the private folder
    input, clips  where the competition's files lie, and the clips if the guard knows it better
    working       where submission.csv and the report go
    state         the private folder: scores, marks and whatever outlives a crash of the engine
    limits        what the run may use; `limits.seconds` is the time budget
    marks         when what happens, in seconds since the start
    started       the guard's start by CLOCK_MONOTONIC; started_boot: by CLOCK_BOOTTIME
    offset_s      seconds that had gone before that start
    device        "auto", "cpu" or "cuda"
    backend       how nets run: "auto", "torch", "fp32" (torch, full precision on a GPU too), "onnxruntime" or
                  "openvino"; what cannot run so runs as under "auto"
    loaders       loader threads, None = one per core;  first: predict the first rows only, None = all
    attempt       1 for the first engine of this run, 2 after the first restart, ...
    """

    bundle: Path
    manifest: Path
    input: Path
    clips: Path | None
    working: Path
    state: Path
    sample: Sample
    limits: Limits
    marks: Marks
    started: float
    started_boot: float
    offset_s: float
    device: str
    loaders: int | None
    first: int | None
    attempt: int
    backend: str = "auto"


def load_order(text: bytes) -> Order:
    """The order in the bytes of run.json.

    Raises  SpecError naming the key that is unknown, missing or of the wrong type
    """
    try:
        return load(Order, json.loads(text, object_hook=_with_paths))
    except (ValueError, SpecError) as error:
        raise SpecError(f"run.json: {error}") from error


def _with_paths(table: dict[str, Any]) -> dict[str, Any]:
    """A JSON table whose file names are paths."""
    return {
        key: Path(value) if key in PATHS and isinstance(value, str) else value for key, value in table.items()
    }
