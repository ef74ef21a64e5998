"""What the guard's tests share."""
from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.stub_bundle import make_input


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """A folder with an input of two rows."""
    make_input(tmp_path / "in")
    return tmp_path
