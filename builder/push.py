"""What is pushed and how: the notebook form of the kernel, and the commands that upload, run and submit.

Does not fill the kernel's constant (kernel.pin) and runs no command (upload).
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NOTEBOOK = "infer_kernel.ipynb"
NOTEBOOK_SCRIPT = "/tmp/infer_kernel.py"  # outside the saved output folder


def notebook(source: str) -> bytes:
    """The same kernel as an .ipynb: one cell writes the script, the next runs it and fails when it fails."""
    def cell(text: str) -> dict[str, Any]:
        return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [],
                "source": text.splitlines(keepends=True)}

    run = (f"import sys\n!{{sys.executable}} -I -u {NOTEBOOK_SCRIPT}\n"
           "if _exit_code:\n    raise SystemExit(f'the kernel ended with exit code {_exit_code}')\n")
    content = {
        "cells": [cell(f"%%writefile {NOTEBOOK_SCRIPT}\n{source}"), cell(run)],
        "nbformat": 4,
        "nbformat_minor": 4,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
    }
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def commands(out: Path, owner: str, slug: str, competition: str | None) -> list[str]:
    """Shell commands that upload, wait, push and submit, in order."""
    bundle, push = out / "bundle", out / "push"
    return [
        f"kaggle datasets status {owner}/{slug} >/dev/null 2>&1 \\",
        f"  && kaggle datasets version -p {bundle} -m 'new bundle' \\",
        f"  || kaggle datasets create -p {bundle}",
        f"kaggle datasets status {owner}/{slug}      # wait for 'ready': a kernel pushed earlier sees the previous version",
        f"kaggle kernels push -p {push}",
        f"kaggle kernels status {owner}/{slug}       # wait for COMPLETE",
        f"kaggle competitions submit {competition or 'COMPETITION'} -k {owner}/{slug} -v VERSION -f submission.csv "
        "-m 'hourglass'",
    ]
