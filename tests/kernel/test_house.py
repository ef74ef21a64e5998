"""The house rules: sizes, types, plain references, and a page that knows every file.

Owns the rules of CONTRIBUTING.md that a machine can check. Which room may import which is test_imports.
"""
from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY

KERNEL_ENTRIES = 20
MODULE_LINES = 350
FUNCTION_LINES = 50
LINE = 110
ROOM_LINES = 10
TYPED = ("kernel/", "builder/", "training/", "infer_kernel.py")
WRITTEN = (".py", ".toml", ".md", ".yml", ".yaml", "Makefile")
SELF = Path(__file__).resolve().relative_to(REPOSITORY).as_posix()
PAGE = "docs/architecture.md"
# Papers that are not in this repository: a comment states the fact itself, or names a public source.
ELSEWHERE = re.compile(
    r"\bDESIGN\b|seed-systems|reliability\.md|frontends-2026|reference/soundscapes\.md|kaggle\.md|style\.md"
    r"|\.\./shared"
    r"|(?<!docs/)\bperformance\.md \d"
)
COMMAND = re.compile(r"(?:^|[\s`])(?:\.venv/bin/)?python (-m )?([\w./]+)")
TARGET = re.compile(r"(?:^|`)make ([a-z]+)(?=`|\s+#|\s*$| [A-Z]+=)", re.MULTILINE)


@cache
def tracked() -> tuple[str, ...]:
    """Files of the repository, as git knows them."""
    done = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        pytest.skip("not a git repository", allow_module_level=True)
    return tuple(name for name in done.stdout.split("\0") if name and (REPOSITORY / name).is_file())


def sources(*folders: str) -> list[str]:
    """Python files below these folders (all of them without one)."""
    return [name for name in tracked() if name.endswith(".py") and name.startswith(folders or ("",))]


@cache
def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(read(name))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def is_typed(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """True if every argument but self and cls has a type, and the result too."""
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    wanted = [each for each in arguments if each is not None and each.arg not in ("self", "cls")]
    return function.returns is not None and all(each.annotation is not None for each in wanted)


def test_the_kernel_can_be_taken_in_at_a_glance() -> None:
    entries = {name.split("/")[1] for name in tracked() if name.startswith("kernel/")}
    assert len(entries) <= KERNEL_ENTRIES, sorted(entries)


def test_no_module_is_too_long() -> None:
    lengths = {name: read(name).count("\n") for name in sources("kernel/", "builder/", "training/")}
    long = [f"{name} has {lines} lines" for name, lines in lengths.items() if lines > MODULE_LINES]
    assert not long, "\n".join(long)


def test_no_function_is_too_long() -> None:
    long = []
    for name in sources(*TYPED):
        for function in functions(name):
            lines = (function.end_lineno or 0) - function.lineno + 1
            if lines > FUNCTION_LINES:
                long.append(f"{name}: {function.name} has {lines} lines")
    assert not long, "\n".join(long)


def test_no_line_is_too_long() -> None:
    long = []
    for name in sources():
        for number, line in enumerate(read(name).splitlines(), 1):
            if len(line) > LINE:
                long.append(f"{name}:{number} has {len(line)} characters")
    assert not long, "\n".join(long)


def test_every_definition_has_types() -> None:
    untyped = []
    for name in sources(*TYPED):
        untyped += [f"{name}: {each.name}" for each in functions(name) if not is_typed(each)]
    assert not untyped, "\n".join(untyped)


def test_nothing_refers_to_a_paper_that_is_not_here() -> None:
    found = []
    for name in tracked():
        # A model card records the command that made its weights, wherever the clips lay.
        if name == SELF or name.startswith("weights/") or not name.endswith(WRITTEN):
            continue
        for number, line in enumerate(read(name).splitlines(), 1):
            if ELSEWHERE.search(line):
                found.append(f"{name}:{number} {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_a_room_introduces_itself_in_ten_lines() -> None:
    for name in sources("kernel/"):
        if name.endswith("/__init__.py") and name != "kernel/__init__.py":
            told = ast.get_docstring(ast.parse(read(name)))
            assert told and len(told.splitlines()) <= ROOM_LINES, name


def test_the_page_on_architecture_knows_every_file_of_the_kernel() -> None:
    listed = []
    folder = ""
    for line in read(PAGE).splitlines():
        heading = re.match(r"### `(kernel/(?:\w+/)?)`", line)
        row = re.match(r"\| `(\w+)` \| \S", line)
        if line.startswith("#"):
            folder = heading[1] if heading else ""
        elif row and folder:
            listed.append(f"{folder}{row[1]}.py")
    there = {name for name in sources("kernel/") if not name.endswith("__init__.py")}
    missing, gone = sorted(there - set(listed)), sorted(set(listed) - there)
    assert not missing and not gone, f"not on the page: {missing}; on the page, but not there: {gone}"
    assert len(listed) == len(set(listed)), "a file stands on the page twice"


def pages() -> list[str]:
    return [name for name in tracked() if name.endswith(".md")]


@pytest.mark.parametrize("name", pages())
def test_links_of_a_page_lead_somewhere(name: str) -> None:
    folder = (REPOSITORY / name).parent
    for target in re.findall(r"\]\(([^)\s#]+)", read(name)):
        assert re.match(r"https?://", target) or (folder / target).exists(), target


@pytest.mark.parametrize("name", pages())
def test_commands_of_a_page_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    for target in TARGET.findall(read(name)):
        assert target in targets, f"make {target}"
    for module, called in COMMAND.findall(read(name)):
        path = called.replace(".", "/") if module else called
        if path.startswith(("pip", "venv", "pytest", "ruff", "mypy", "out/", "-")):
            continue
        known = (f"{path}.py", f"{path}/__main__.py") if module else (path,)
        assert any((REPOSITORY / each).exists() for each in known), f"python {module}{called}"
