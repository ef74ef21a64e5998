"""docs/faults.md out of the tests: each row of the fault matrix, its injection, its outcome, its test.

`python -m tests.helpers.faults_page` writes the page; `--check` only says whether it is up to date. Tests are
read, not run or imported.
"""
from __future__ import annotations

import ast
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.helpers import REPOSITORY, TESTS
from tests.helpers.fault_rows import ELSEWHERE, NOT_OURS, ROWS

PAGE = REPOSITORY / "docs" / "faults.md"
HEAD = """# What goes wrong, and what you get

Written by `python -m tests.helpers.faults_page` from the tests themselves; do not edit. `make test` runs
the fast ones, `make faults` the slow ones (marked s), `make chaos` thirty seeds of ten random faults each.
Whole runs are checked by one function, `tests/helpers/invariants.py`: a valid submission.csv at every
instant, exit 0 before the limit, no process or file left behind, peak memory under the limit, every row that
the fault does not touch equal to the byte, and the fault named in report.json. What a machine does not allow
(namespaces, control groups, strace) is skipped and counted by reason at the end of the test run.

| # | fault | how it is injected | what you get | test |
| --- | --- | --- | --- | --- |
"""
FOOT = """
## Rows that do not apply

The matrix was drawn up for any inference kernel, decode worker processes and shared memory among them.
Hourglass has threads inside one engine process, so these rows have no counterpart; where a row speaks of a
worker, the engine is meant:

"""


@dataclass(frozen=True, order=True)
class Case:
    """One line of the page: a row of the matrix as one test shows it."""

    row: int
    file: str
    line: int
    test: str
    injection: str
    outcome: str
    slow: bool = False


def marked(path: Path) -> list[Case]:
    """Cases of the fault markers in a test file."""
    cases = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        slow = any(ast.unparse(mark) == "pytest.mark.faults" for mark in node.decorator_list)
        for mark in node.decorator_list:
            if not isinstance(mark, ast.Call) or ast.unparse(mark.func) != "pytest.mark.fault":
                continue
            given = {str(keyword.arg): _text(keyword.value) for keyword in mark.keywords}
            row = int(given.pop("row"))
            cases.append(Case(row=row, file=path.name, line=node.lineno, test=node.name, slow=slow, **given))
    return cases


def _text(node: ast.expr) -> str:
    """A marker's text; in an f-string the constants of the module stand as their names."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else _constant(v) for v in node.values)
    return str(ast.literal_eval(node))


def _constant(node: ast.expr) -> str:
    name = ast.unparse(node.value) if isinstance(node, ast.FormattedValue) else ast.unparse(node)
    for path in sorted(TESTS.rglob("test_faults*.py")):
        for line in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == name:
                return str(ast.literal_eval(line.value))
    return name


@cache
def functions_of(file: str) -> dict[str, int]:
    """Test functions of a file and their lines."""
    tree = ast.parse(next(TESTS.rglob(file)).read_text(encoding="utf-8"))
    return {node.name: node.lineno for node in tree.body if isinstance(node, ast.FunctionDef)}


def collect() -> list[Case]:
    """Every case, in the order of the rows.

    Raises  KeyError when a test that ELSEWHERE names is gone
    """
    cases = [case for path in sorted(TESTS.rglob("test_*.py")) for case in marked(path)]
    for row, entries in ELSEWHERE.items():
        for entry in entries:
            cases.append(Case(row=row, line=functions_of(entry.file)[entry.test], **vars(entry)))
    return sorted(cases)


def page(cases: list[Case]) -> str:
    """The text of docs/faults.md."""
    by_row = defaultdict(list)
    for case in cases:
        by_row[case.row].append(case)
    lines = []
    for row, title in ROWS.items():
        if row in NOT_OURS:
            lines.append(f"| {row} | {title} | | does not apply, see below | |")
        for number, case in enumerate(by_row[row]):
            name = f"{case.file.removeprefix('test_').removesuffix('.py')}: {case.test.removeprefix('test_')}"
            begin = f"| {row} | {title} |" if number == 0 else "|  |  |"
            slow = " (s)" if case.slow else ""
            lines.append(f"{begin} {_cell(case.injection)} | {_cell(case.outcome)} | {name}{slow} |")
    left_out = [f"- {row}, {ROWS[row]}: {reason}" for row, reason in NOT_OURS.items()]
    return HEAD + "\n".join(lines) + "\n" + FOOT + "\n".join(left_out) + "\n"


def _cell(text: str) -> str:
    """A text that cannot end a cell of the table."""
    return text.replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """0, or 1 when --check finds the page out of date."""
    cases = collect()
    text = page(cases)
    if "--check" in arguments:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
            print(f"{PAGE.name} is up to date")
            return 0
        print(f"{PAGE.name} is out of date: run python -m tests.helpers.faults_page")
        return 1
    PAGE.write_text(text, encoding="utf-8")
    covered = len({case.row for case in cases})
    print(f"{PAGE}: {len(cases)} cases, {covered} of {len(ROWS) - len(NOT_OURS)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
