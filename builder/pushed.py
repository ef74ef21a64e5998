"""The file to push against the repository's own: beside the constant that was filled in, nothing differs.

Owns that one check before an upload. Fills no constant (kernel.pin) and writes no notebook (notebook).
"""
from pathlib import Path

from kernel.errors import UploadError
from kernel.pin import SCRIPT, fill_constant, read_constant

from . import notebook

OURS = Path(__file__).resolve().parent.parent / SCRIPT


def check_unchanged(code: Path) -> None:
    """Nothing, when `code` holds the very bytes that a build with its constant writes now.

    Raises  UploadError naming the first line that differs
    """
    held = code.read_bytes()
    try:
        source = notebook.read_script(code) if code.suffix == ".ipynb" else held.decode()
        value = read_constant(source)
    except (ValueError, SyntaxError, LookupError, TypeError, AttributeError) as error:
        raise UploadError(f"{code}: cannot be read as a kernel ({error}); build again") from error
    ours = OURS.read_text(encoding="utf-8")
    wanted = ours if value is None else fill_constant(ours, value)
    if held == (notebook.make_notebook(wanted) if code.suffix == ".ipynb" else wanted.encode()):
        return
    found, expected = source.split("\n"), wanted.split("\n")
    pairs = zip(found, expected, strict=False)
    shared = min(len(found), len(expected))
    line = next((i for i, (a, b) in enumerate(pairs) if a != b), shared)
    text = found[line].strip()[:60] if line < len(found) else "missing"
    where = f"line {line + 1} of its script, {text!r}, is not that of {SCRIPT} here"
    if found == expected:
        where = "it holds more than the script"
    raise UploadError(
        f"{code}: is not what the builder wrote: {where}. Somebody changed it, or the repository since the "
        "build; build again"
    )
