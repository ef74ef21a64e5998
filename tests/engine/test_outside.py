"""What a rehearsal's engine may open: its own files, the environment, and nothing else of this machine."""
from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernel.engine.outside import MOST_TOLD, Outside, find_packages
from tests.helpers import REPOSITORY

PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {repository!r})
from kernel.engine.outside import Outside
sys.addaudithook(Outside(Path({log!r}), {places!r}, {home!r}, {temporary!r}).hear)
"""


def make(tmp_path: Path) -> Outside:
    """Files: inside/x is allowed, elsewhere/x is not, tmp/x was there before; home is not there at all."""
    for name in ("inside", "elsewhere", "tmp", "inside2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
        os.utime(tmp_path / name / "x", (time.time() - 99,) * 2)
    (tmp_path / "inside" / "out").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "way").symlink_to(tmp_path / "inside")
    places = (tmp_path / "inside", "/", "relative")
    return Outside(tmp_path / "log", places, str(tmp_path / "home"), str(tmp_path / "tmp"))


@pytest.mark.parametrize(("name", "outside"), [
    ("inside/x", False), ("inside", False), ("inside/none", False), ("way/x", False), ("log", False),
    ("inside/out", False), ("elsewhere/x", True), ("inside2/x", True), ("inside/../elsewhere/x", True),
    ("elsewhere/none", False), ("home/none", True), ("home2/none", False), ("tmp/x", True),
    ("tmp/none", False), ("elsewhere/module.py", False), ("elsewhere/lib.so", False),
])
def test_what_is_outside(name: str, outside: bool, tmp_path: Path) -> None:
    assert make(tmp_path).is_outside(str(tmp_path / name), writes=False) == outside


def test_temporary_files_of_the_run_itself_are_its_own(tmp_path: Path) -> None:
    found = make(tmp_path)
    (tmp_path / "tmp" / "new").write_text("x")
    os.utime(tmp_path / "tmp" / "new", (time.time() + 9,) * 2)
    assert not found.is_outside(str(tmp_path / "tmp/new"), writes=False)
    assert not found.is_outside(str(tmp_path / "tmp/x"), writes=True)
    assert found.is_outside(str(tmp_path / "elsewhere/x"), writes=True)


def test_python_is_refused_and_what_it_asked_for_is_named_once(tmp_path: Path) -> None:
    make(tmp_path)
    text = PROGRAM.format(repository=str(REPOSITORY), log=str(tmp_path / "log"), home=str(tmp_path / "home"),
                          places=[str(tmp_path / "inside"), sys.prefix, sys.base_prefix, "/usr", "/etc"],
                          temporary=str(tmp_path / "tmp"))
    stray = str(tmp_path / "elsewhere/x")
    text += f"""
import os, socket
import numpy as np
open({str(tmp_path / 'inside/x')!r}).read()
for action in (lambda: open({stray!r}), lambda: open({stray.encode()!r}, "rb"), lambda: os.open({stray!r}, 0),
               lambda: np.load({str(tmp_path / 'home/stats.npy')!r}), lambda: open({stray!r}, "w"),
               lambda: socket.getaddrinfo("huggingface.co", 443)):
    try:
        action()
        print("ALLOWED")
    except OSError as error:
        print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.stdout.split() == ["FileNotFoundError"] * 5 + ["OSError"], done.stderr
    assert (tmp_path / "log").read_text().splitlines() == [
        stray, str(tmp_path / "home/stats.npy"), "network: huggingface.co"]
    assert Path(stray).read_text() == "x"


def test_a_flood_of_files_does_not_flood_the_log(tmp_path: Path) -> None:
    found = make(tmp_path)
    for number in range(MOST_TOLD + 9):
        with pytest.raises(FileNotFoundError, match="not there on Kaggle"):
            found.hear("open", (str(tmp_path / f"home/{number}\n"), "r", 0))
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == MOST_TOLD and lines[0].endswith("home/0?")
    found.hear("open", (3, "r", 0))  # a descriptor
    found.hear("import", ("x",))


def test_packages_that_a_pth_file_leads_to_are_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that borrows another one's packages: reading their metadata is no fault of a net."""
    monkeypatch.setattr(sys, "path", ["/mine", "/other/lib/python3.11/site-packages", "/d/dist-packages"])
    assert find_packages() == ["/other/lib/python3.11/site-packages", "/d/dist-packages"]
