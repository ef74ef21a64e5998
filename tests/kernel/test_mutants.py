"""The command that asks whether tests notice a change: every change it tells of was really run."""
from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY
from tests.helpers.changes import mutants
from tests.helpers.mutants import TABLE, Unmeasurable, dotted, files_of, main

LARGE = """
LIMIT = 10


def is_large(x):
    return x > LIMIT
"""
MODULE = LARGE + """

def count_down(n):
    steps = 0
    while n > 0:
        n -= 1
        steps += 1
    return steps
"""
STRICT = """
import small

def test_large():
    assert [small.is_large(x) for x in (9, 10, 11)] == [False, False, True]

def test_count():
    assert [small.count_down(n) for n in (0, 1, 3)] == [0, 1, 3]
"""


def ask(place: Path, test: str, *arguments: str, module: str = MODULE) -> tuple[int, str]:
    """Exit code and output of the command over small.py with `test` as its tests."""
    (place / "small.py").write_text(module)
    (place / "test_small.py").write_text(test)
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.mutants", "small.py", "--tests", "test_small.py", *arguments],
        cwd=place, capture_output=True, text=True, timeout=280,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.faults
def test_tests_that_look_notice_everything_and_a_change_that_hangs_is_noticed(tmp_path: Path) -> None:
    code, told = ask(tmp_path, STRICT, "--count", "7")
    assert "small: 7 of 7 noticed" in told and code == 0, told


@pytest.mark.faults
def test_tests_that_only_import_notice_nothing_and_the_exit_code_says_so(tmp_path: Path) -> None:
    code, told = ask(tmp_path, "import small\n\ndef test_it():\n    assert small\n", "--count", "3")
    assert told.count("SURVIVED small.py:") == 3 and "small: 0 of 3 noticed" in told and code == 1, told


def test_the_module_that_tests_see_is_the_changed_one(tmp_path: Path) -> None:
    """A test that writes down what it sees and notices one of the four changes that there are."""
    test = (
        "import pathlib\nimport small\n\ndef test_it():\n    seen = pathlib.Path('seen')\n"
        "    old = seen.read_text() if seen.exists() else ''\n"
        "    large = [small.is_large(x) for x in (9, 10, 11)]\n"
        "    seen.write_text(old + f'{small.LIMIT} {large}\\n')\n"
        "    assert small.LIMIT != 9\n"
    )
    code, told = ask(tmp_path, test, module=LARGE)
    assert code == 1 and "small: 1 of 4 noticed" in told and "LIMIT = 10  ->  LIMIT = 9" in told, told
    seen = (tmp_path / "seen").read_text().splitlines()
    # As it is, twice: before and after the libraries are imported
    assert seen[:2] == ["10 [False, False, True]"] * 2
    assert sorted(seen[2:]) == [
        "10 [False, True, True]", "10 [True, True, False]",
        "11 [False, False, False]", "9 [False, True, True]",
    ]


def test_no_changes_are_no_question(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["kernel/limits.py", "--count", "0"])
    assert left.value.code == 2 and "at least 1" in capsys.readouterr().err
    assert main(["kernel/no_such.py"]) == 2 and "no file kernel/no_such.py" in capsys.readouterr().err


@pytest.mark.faults
def test_nothing_is_said_of_tests_that_fail_or_do_not_look(tmp_path: Path) -> None:
    code, told = ask(tmp_path, "def test_it():\n    pass\n")
    assert code == 2 and "do not import small" in told
    code, told = ask(tmp_path, "import small\n\ndef test_it():\n    assert small.is_large(1)\n")
    assert code == 2 and "fail without any change" in told and "is_large" in told


def test_what_is_drawn_compiles_differs_and_is_repeatable() -> None:
    source = (REPOSITORY / "kernel/sound/rows.py").read_text()
    drawn = mutants(source, "rows.py", [], 1000, 5)
    assert len(drawn) > 20 and all(m.before != m.after and len(m.after) < 100 for m in drawn)
    assert [(m.line, m.after) for m in mutants(source, "rows.py", [], 10, 5)] == [
        (m.line, m.after) for m in drawn[:10]
    ]
    plain = compile(source, "rows.py", "exec", dont_inherit=True)
    assert all(m.code != plain for m in drawn)
    assert [m.line for m in mutants(source, "rows.py", [], 10, 6)] != [m.line for m in drawn[:10]]


def test_texts_annotations_and_decorators_are_left_alone() -> None:
    source = (
        "@cache(3)\ndef f(x: int | None = 4, *, y: 'A | B') -> 'C | D':\n    '''Says 1.'''\n"
        "    z: int | str = 5\n    if not x:\n        raise ValueError(f'{x + 1} is not {2}')\n"
        "    return f'{x:>3} {z + 1}', list(zip(x, strict=True)), x is None\n"
    )
    found = {(m.before, m.after) for m in mutants(source, "f.py", [], 99, 0)}
    assert found == {
        ("z: int | str = 5", "z: int | str = 6"), ("z: int | str = 5", "z: int | str = 4"), ("not x", "x"),
        ("x is None", "x is not None"), ("x: int | None=4, *, y: 'A | B'", "x: int | None=5, *, y: 'A | B'"),
        ("x: int | None=4, *, y: 'A | B'", "x: int | None=3, *, y: 'A | B'"),
    }
    assert mutants("a = 1\nb = 2\n", "f.py", ["b = "], 99, 0)[0].line == 1


def test_the_table_names_modules_tests_and_lines_that_there_are() -> None:
    table = tomllib.loads(TABLE.read_text())
    assert set(table) == {"pure", "tests", "unseen"}
    for module in {*table["pure"]["modules"], *table["tests"], *table["unseen"]}:
        name, path = dotted(module)
        assert files_of(name, table["tests"].get(name, ()))
        lines = path.read_text().splitlines()
        for piece, reason in table["unseen"].get(name, {}).items():
            assert any(piece in line for line in lines), f"{module}: no line has {piece!r} any more"
            assert len(reason) > 20, f"{module}: {piece!r}: why does no behaviour depend on it?"


def test_modules_are_files_or_dotted_names_and_have_tests() -> None:
    both = dotted("kernel/limits.py"), dotted("kernel.limits")
    assert both == (("kernel.limits", Path("kernel/limits.py")),) * 2
    assert files_of("kernel.limits", ()) == ["tests/kernel/test_limits.py"]
    assert files_of("kernel.engine.plan", ()) == ["tests/engine/test_plan.py"]
    with pytest.raises(Unmeasurable, match="no file"):
        dotted("kernel/no_such.py")
    with pytest.raises(Unmeasurable, match="test_pin"):
        files_of("kernel.pin", ())
