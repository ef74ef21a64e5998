"""Uploads through the real `kaggle` client: a finished build, a home folder and a fake Kaggle.

Owns `Place` and what success and failure look like on both sides. The server itself is fake_kaggle.
"""
from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from builder import bundle_check
from tests.helpers import REPOSITORY
from tests.helpers.fake_kaggle import KEY, USER, Dataset, KaggleServer

NAME = "someone/hourglass-tiny"
needs_client = pytest.mark.skipif(
    find_spec("kaggle") is None, reason="the kaggle client is not installed (pip install -e '.[dev]')"
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A finished build, a home folder and a server."""

    server: KaggleServer
    out: Path
    home: Path

    def log_in(self, name: str = "kaggle.json", folder: str = ".kaggle", **content: str) -> None:
        """A file of the client's, as its own commands or the website leave it."""
        path = self.home / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content or {"username": USER, "key": KEY})
        path.write_text(content["text"] if "text" in content else text)
        path.chmod(0o600)

    def upload(
        self, *arguments: str, python: str = sys.executable, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """`build_dataset.py --upload`, from another folder and with nothing activated."""
        return subprocess.run(
            [python, str(REPOSITORY / "build_dataset.py"), "--upload", str(self.out), *arguments],
            env=self.environment(**environment),
            cwd=self.home,
            capture_output=True,
            text=True,
        )

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", **self.server.environment(self.home), **more}

    def files(self) -> dict[str, bytes]:
        """What the server must have of this build."""
        folder = self.out / "bundle"
        return {
            path.name: path.read_bytes() for path in folder.iterdir() if path.name != bundle_check.METADATA
        }


def make_version(place: Place) -> None:
    """The dataset is there already, in its third version."""
    place.server.datasets[NAME] = Dataset(
        title="Hourglass tiny", is_private=True, versions=[{}, {}, {}], current=3
    )


def check_success(place: Place, done: subprocess.CompletedProcess[str], number: int = 1) -> None:
    """Everything of the newest version arrived, privately, and the kernel was pushed once it was current."""
    assert done.returncode == 0, done.stdout + done.stderr
    dataset = place.server.datasets[NAME]
    assert len(dataset.versions) == number and dataset.versions[-1] == place.files() and dataset.is_private
    (kernel,) = place.server.kernels[NAME]
    assert kernel["saw"] == {NAME: number} and kernel["enableInternet"] is False and kernel["isPrivate"]
    assert kernel["text"] == (place.out / "push" / "infer_kernel.py").read_text(encoding="utf-8")


def check_failure(place: Place, done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 1, no kernel, and on stderr the reason and what to do, without progress bars."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert not place.server.kernels
    for word in words:
        assert word in done.stderr, done.stdout + done.stderr
    assert "B/s" not in done.stderr and "Traceback" not in done.stderr
