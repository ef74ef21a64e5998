"""The files to push: the kernel with its one constant filled in, as script or notebook.

Owns the constant and its proof: nothing else in the file may change. Does not hold the kernel's code (infer_kernel.py).
"""
from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from kernel.errors import UploadError
from kernel.spec import Manifest

EMPTY = "CONSTANT = None  # filled by build_dataset.py"
FILLED = "CONSTANT = json.loads({text!r})  # filled by build_dataset.py"
SCRIPT, NOTEBOOK = "infer_kernel.py", "infer_kernel.ipynb"
NOTEBOOK_SCRIPT = "/tmp/infer_kernel.py"  # outside the saved output folder


def constant(manifest: Manifest, manifest_sha256: str, limits: dict[str, Any], slug: str) -> dict[str, Any]:
    """What the pushed kernel knows before it has seen the bundle."""
    output = manifest.ensemble.output
    return {
        "manifest_sha256": manifest_sha256, "bundle": manifest.bundle, "prior": list(manifest.prior), "profile": limits,
        "device": "auto", "classes": list(manifest.ensemble.classes), "slug": slug,
        "output": {"format": output.format, "label_column": output.label_column, "labels": dict(output.labels)},
    }


def _without_constant(source: str) -> str:
    """Dump of the syntax tree with the value of CONSTANT blanked.

    Raises  UploadError when there is not exactly one such assignment
    """
    tree, count = ast.parse(source), 0
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["CONSTANT"]:
            node.value, count = ast.Constant(None), count + 1
    if count != 1:
        raise UploadError(f"{SCRIPT}: {count} assignments to CONSTANT, expected one; restore the file")
    return ast.dump(tree)


def fill_constant(source: str, value: dict[str, Any]) -> str:
    """The kernel's source with CONSTANT filled; byte-equal outside that line.

    The value travels as JSON inside a Python string literal, so no title, class or id can break out of it.

    Raises  UploadError when the line is not there once, or anything else would change
    """
    lines = source.split("\n")
    if lines.count(EMPTY) != 1:
        raise UploadError(f"{SCRIPT}: {lines.count(EMPTY)} lines {EMPTY!r}, expected one; restore the file")
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    place = lines.index(EMPTY)
    lines[place] = FILLED.format(text=text)
    filled = "\n".join(lines)
    if _without_constant(filled) != _without_constant(source) or json.loads(text) != value:
        raise UploadError(f"{SCRIPT}: filling the constant would change more than the constant; report this")
    compile(filled, SCRIPT, "exec")
    return filled


def read_constant(source: str) -> dict[str, Any] | None:
    """The constant of a pushed file; None in the repository's own file."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["CONSTANT"] \
                and isinstance(node.value, ast.Call):
            return dict(json.loads(ast.literal_eval(node.value.args[0])))
    return None


def notebook(source: str) -> bytes:
    """The same kernel as an .ipynb: one cell writes the script, the next runs it and fails when it fails."""
    def cell(text: str) -> dict[str, Any]:
        return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [],
                "source": text.splitlines(keepends=True)}

    run = (f"import sys\n!{{sys.executable}} -I -u {NOTEBOOK_SCRIPT}\n"
           "if _exit_code:\n    raise SystemExit(f'the kernel ended with exit code {_exit_code}')\n")
    content = {"cells": [cell(f"%%writefile {NOTEBOOK_SCRIPT}\n{source}"), cell(run)], "nbformat": 4, "nbformat_minor": 4,
               "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                            "language_info": {"name": "python"}}}
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
