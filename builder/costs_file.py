"""Costs that a rehearsal measured: the part of report.json that `--costs` gives back to a build.

Owns which figures are believed. What they are used for is the plan's.
"""
import json
from pathlib import Path
from typing import Any

from kernel.errors import SpecError


def _seconds(value: Any) -> float:
    """A measured cost; ValueError for what is none."""
    seconds = float(value)
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{seconds} is no number of seconds")
    return seconds


def read(path: Path | None) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """Measured costs of a rehearsal's report.json.

    First member -> seconds (a, b per frame), then front end -> seconds per second of audio.
    Raises  SpecError when the file holds no costs
    """
    if path is None:
        return {}, {}
    try:
        costs = json.loads(path.read_bytes())["costs"]
        members = {k: (_seconds(v["seconds_a"]), _seconds(v["seconds_b"]))
                   for k, v in costs["members"].items()}
        return members, {k: _seconds(v) for k, v in costs["frontends"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SpecError(
            f"--costs {path}: no measured costs ({type(error).__name__}: {error}); "
            "give the report.json of a rehearsal"
        ) from error
