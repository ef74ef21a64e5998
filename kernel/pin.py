"""The kernel's pushed form: the one constant filled in, and the proof that nothing else changed.

Owns the constant: what the pushed file knows before it has seen the bundle. Used by the builder, and by a
rehearsal that was started from the repository's own file. Does not hold the kernel's code (infer_kernel.py).
"""
import ast
import json
from typing import Any

from .errors import UploadError
from .spec import Manifest

EMPTY = "CONSTANT = None  # filled by build_dataset.py"
FILLED = "CONSTANT = json.loads({text!r})  # filled by build_dataset.py"
SCRIPT = "infer_kernel.py"


def constant(manifest: Manifest, manifest_sha256: str, limits: dict[str, Any], slug: str) -> dict[str, Any]:
    """What the pushed kernel knows before it has seen the bundle."""
    output = manifest.ensemble.output
    return {
        "manifest_sha256": manifest_sha256,
        "bundle": manifest.bundle,
        "prior": list(manifest.prior),
        "profile": limits,
        "device": "auto",
        "classes": list(manifest.ensemble.classes),
        "slug": slug,
        "output": {
            "format": output.format,
            "label_column": output.label_column,
            "labels": dict(output.labels),
        },
    }


def _without_constant(source: str) -> str:
    """Dump of the syntax tree with the value of CONSTANT blanked.

    Raises  UploadError when there is not exactly one such assignment
    """
    tree = ast.parse(source)
    found = _assignments(tree)
    if len(found) != 1:
        raise UploadError(f"{SCRIPT}: {len(found)} assignments to CONSTANT, expected one; restore the file")
    found[0].value = ast.Constant(None)
    return ast.dump(tree)


def _assignments(tree: ast.Module) -> list[ast.Assign]:
    """The top-level assignments to CONSTANT."""
    assigns = [node for node in tree.body if isinstance(node, ast.Assign)]
    return [node for node in assigns if [ast.unparse(target) for target in node.targets] == ["CONSTANT"]]


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
    for node in _assignments(ast.parse(source)):
        if isinstance(node.value, ast.Call):
            return dict(json.loads(ast.literal_eval(node.value.args[0])))
    return None
