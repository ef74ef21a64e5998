"""The page of faults is what the tests say, and no row of the matrix is without a test."""
from __future__ import annotations

import ast
from collections import Counter

from tests.helpers import TESTS, faults_page
from tests.helpers.fault_rows import ELSEWHERE, NOT_OURS, ROWS


def test_the_page_is_up_to_date() -> None:
    text = faults_page.PAGE.read_text(encoding="utf-8")
    assert text == faults_page.page(faults_page.collect()), "run python -m tests.helpers.faults_page"


def test_every_row_has_a_test_or_a_reason() -> None:
    assert list(ROWS) == sorted(ROWS) and min(ROWS) == 1
    covered = {case.row for case in faults_page.collect()}
    assert covered.isdisjoint(NOT_OURS) and covered | set(NOT_OURS) == set(ROWS)


def test_every_test_named_elsewhere_exists_once() -> None:
    named = Counter((e.file, e.test) for entries in ELSEWHERE.values() for e in entries)
    assert max(named.values()) == 1
    for file, test in named:
        assert test in faults_page.functions_of(file), f"{file} has no {test}: correct tests/fault_rows.toml"


def test_the_fast_cut_has_at_most_twelve_whole_runs() -> None:
    """`make test` must stay short: a run of the product takes seconds."""
    count = 0
    for path in TESTS.rglob("test_faults_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for node in functions.values():
            slow = any(ast.unparse(d) == "pytest.mark.faults" for d in node.decorator_list)
            calls = {ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)}
            helpers = calls & set(functions)
            starts = {"run_whole", "start_guard"} & calls or any(
                "run_whole" in ast.unparse(functions[name]) for name in helpers
            )
            count += bool(starts and not slow and node.name.startswith("test_"))
    assert 6 <= count + 1 <= 12  # and the run that nothing strikes
