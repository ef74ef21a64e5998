"""The dry run at save time as data: `[dry_run]` of an ensemble, and its rules.

Owns what the keys mean. Whether and how it is done is rehearsal.dry_run's.
"""
from dataclasses import dataclass

from .strict import require


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What the kernel tries when a version is saved and the test set is not there yet.

    clips         folder of recordings, below the competition's data, e.g. "train_soundscapes"
    count         recordings that are scored, spread over that folder
    expect_clips  rows of the hidden test set, for the forecast; None = only how many rows would fit
    expect_hours  hours of audio in it; None = as the recordings that were tried
    """

    clips: str
    count: int = 10
    expect_clips: int | None = None
    expect_hours: float | None = None


def check_dry_run(dry_run: DryRun) -> None:
    """Raises SpecError, unless there is something to try."""
    parts = dry_run.clips.split("/")
    require(bool(parts[0]) and ".." not in parts,
            f"dry_run.clips: {dry_run.clips!r}; a folder below the competition's data")
    require(dry_run.count > 0, f"dry_run.count: {dry_run.count}; at least 1")
    require(dry_run.expect_clips is None or dry_run.expect_clips > 0,
            f"dry_run.expect_clips: {dry_run.expect_clips}; at least 1")
    require(dry_run.expect_hours is None or dry_run.expect_hours > 0,
            f"dry_run.expect_hours: {dry_run.expect_hours}; above 0")
