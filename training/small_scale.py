"""What `--scale small` changes in a recipe, as data.

Owns the table [small]. How it is applied is the recipe's.
"""
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Small:
    """What `--scale small` puts in place of the published values, so that a CPU can follow.

    params     of nets: member name -> parameters changed, "all" = every member
    train      keys of [train] changed for every member
    members    kept members, empty = all; stackers are kept where their inputs are
    frontends  front end name -> keys changed
    data       another source of clips
    classes    another class file
    clips      at most so many clips, 0 = all
    folds      trained of the recipe's folds, empty = all
    """

    params: dict[str, dict[str, Any]] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    frontends: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    classes: str = ""
    clips: int = 0
    folds: tuple[int, ...] = (0,)
