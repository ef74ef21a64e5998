"""Tiny bundles for the tests: built once per process, copied for tests that break them."""
from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from builder import assembly
from tests.helpers import TESTS

TINY = TESTS / "ensembles" / "tiny.toml"


def order(out: Path, **more: Any) -> assembly.BuildRequest:
    """A request to build the tiny ensemble with random weights; `more` replaces its fields."""
    given = {"ensemble": TINY, "out": out, "owner": "someone", "random_weights": True}
    return assembly.BuildRequest(**{**given, **more})


@cache
def built_once() -> Path:
    """OUT of a build of the tiny ensemble, shared: read only."""
    out = Path(tempfile.mkdtemp(prefix="hourglass-tiny-"))
    atexit.register(shutil.rmtree, out, True)
    assembly.build(order(out), say=lambda _: None)
    return out


def copy_of_build(out: Path) -> Path:
    """A copy of that build, free to be broken."""
    return Path(shutil.copytree(built_once(), out))
