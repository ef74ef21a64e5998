"""The kernel file in notebook form, for competitions that take notebooks alone.

Owns the two cells and their check. Does not fill the kernel's constant (kernel.pin).
"""
import json
from pathlib import Path
from typing import Any

from kernel.errors import UploadError

FILE = "infer_kernel.ipynb"
SCRIPT_PATH = "/tmp/infer_kernel.py"  # Outside the output folder, which Kaggle saves.
RUN = f"""import sys
!{{sys.executable}} -I -u {SCRIPT_PATH}
if _exit_code:
    raise SystemExit(f'the kernel ended with exit code {{_exit_code}}')
"""


def make_notebook(source: str) -> bytes:
    """The same kernel as an .ipynb: one cell writes the script, the next runs it and fails when it fails."""
    def cell(text: str) -> dict[str, Any]:
        return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [],
                "source": text.splitlines(keepends=True)}

    content = {
        "cells": [cell(f"%%writefile {SCRIPT_PATH}\n{source}"), cell(RUN)],
        "nbformat": 4,
        "nbformat_minor": 4,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
    }
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def read_script(path: Path) -> str:
    """The kernel's source out of a notebook that has no stored outputs (they hold paths and tokens).

    Raises  UploadError
    """
    cells = json.loads(path.read_bytes())["cells"]
    if any(cell.get("outputs") for cell in cells):
        raise UploadError(f"{path.name}: has stored outputs; clear them before it is published")
    return "".join(cells[0]["source"]).partition("\n")[2]
