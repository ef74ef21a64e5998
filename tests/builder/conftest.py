"""What the tests of the builder share: a place to upload from."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import fake_kaggle
from tests.helpers.bundles import copy_of_build
from tests.helpers.uploads import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with fake_kaggle.serve() as server:
        home = tmp_path / "home"
        home.mkdir()
        found = Place(server=server, out=copy_of_build(tmp_path / "out"), home=home)
        found.log_in()
        yield found
