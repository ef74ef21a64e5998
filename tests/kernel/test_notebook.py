"""docs/ten_minutes.ipynb: no stored outputs, and it runs from the first cell to the last, from any folder."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "ten_minutes.ipynb"
RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbformat.validate(notebook)
NotebookClient(notebook, timeout=280, kernel_name="python3").execute(cwd=sys.argv[2])
nbformat.write(notebook, sys.argv[3])
"""


def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_nothing_is_stored_in_it() -> None:
    for cell in cells():
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_scoring_takes_three_lines() -> None:
    shown = next("".join(cell["source"]) for cell in cells() if "import score" in "".join(cell["source"]))
    assert len([line for line in shown.splitlines() if line]) == 3


@pytest.mark.faults
def test_it_runs_from_another_folder(tmp_path: Path) -> None:
    """As Jupyter runs it: an installation to import from, and a folder of its own to write to."""
    for package in ("nbclient", "nbformat", "ipykernel", "matplotlib"):
        pytest.importorskip(package)
    place = tmp_path / "somewhere"
    place.mkdir()
    done = tmp_path / "done.ipynb"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "IPYTHONDIR": str(tmp_path / "ipython"),
                   "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}
    environment.pop("MPLBACKEND", None)  # a notebook has its own
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", RUN, str(NOTEBOOK), str(place), str(done)],
                         cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=290,
                         check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    outputs = [output for cell in json.loads(done.read_text(encoding="utf-8"))["cells"]
               for output in cell.get("outputs", ())]
    text = "\n".join("".join(output.get("text", "")) for output in outputs)
    assert "PASS" in text and "FAIL" not in text and "disagreeing:" in text, text[-3000:]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2, "a spectrogram, and what was heard"
    tables = [output for output in outputs if "text/html" in output.get("data", {})]
    assert len(tables) == 2 and (place / "out" / "rehearsal" / "report.html").is_file()
