"""What is pushed is what the builder wrote: a line more, and nothing is uploaded."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from builder import assembly, pushed, upload
from kernel.errors import UploadError
from kernel.pin import FILLED
from tests.helpers.bundles import built_once, copy_of_build, order


def constant_line(text: str) -> str:
    return next(line for line in text.split("\n") if line.startswith(FILLED.partition("{")[0]))


@pytest.mark.parametrize(
    "change, names",
    [
        (lambda text: text + "\nimport shutil\n", "'import shutil'"),
        (lambda text: text.replace("EXIT_S = ", "EXIT_S = 9 + ", 1), "'EXIT_S = 9"),
        (lambda text: text.replace(constant_line(text), constant_line(text) + "; print(1)"), "'CONSTANT = "),
        (lambda text: "\n".join(text.split("\n")[:-5]), "is not that of"),
        (lambda text: text + "def (", "cannot be read as a kernel"),
    ],
)
def test_a_kernel_with_another_line_is_not_uploaded(
    change: Callable[[str], str], names: str, tmp_path: Path
) -> None:
    out = copy_of_build(tmp_path / "out")
    upload.check(out)
    code = out / "push" / "infer_kernel.py"
    text = code.read_text(encoding="utf-8")
    assert change(text) != text
    code.write_text(change(text), encoding="utf-8")
    with pytest.raises(UploadError, match=names):
        pushed.check_unchanged(code)
    with pytest.raises((UploadError, SyntaxError)):
        upload.check(out)


def test_the_builder_s_own_files_pass(tmp_path: Path) -> None:
    pushed.check_unchanged(built_once() / "push" / "infer_kernel.py")
    assembly.build(order(tmp_path, notebook=True), say=lambda _: None)
    code = tmp_path / "push" / "infer_kernel.ipynb"
    pushed.check_unchanged(code)
    code.write_bytes(code.read_bytes().replace(b"raise SystemExit", b"import os; raise SystemExit"))
    with pytest.raises(UploadError, match="is not what the builder wrote"):
        pushed.check_unchanged(code)
