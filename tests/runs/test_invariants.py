"""The checker of every fault test notices each broken invariant."""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.guard_runs import GuardRun
from tests.helpers.invariants import find_broken

GOOD = "fname,A,B\nx,0.5,0.25\ny,1,0\n"


@pytest.fixture
def run(tmp_path: Path) -> GuardRun:
    """A run with nothing wrong."""
    (tmp_path / "out").mkdir()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "sample.csv").write_text(
        "\ufefffname,A,B\r\nx,0,0\r\ny,0,0\r\n", encoding="utf-8", newline=""
    )
    (tmp_path / "out" / "submission.csv").write_text(GOOD, encoding="utf-8")
    return GuardRun(
        code=0,
        wall_s=2.0,
        out="",
        working=tmp_path / "out",
        sample=tmp_path / "sample.csv",
        budget_s=10.0,
        scratch=tmp_path / "scratch",
        mark="no such mark anywhere",
        report={
            "faults": [{"code": "ClipEmpty"}],
            "prior_rows": 1,
            "limits": {"ram_bytes": 10},
            "peak_ram_bytes": 9,
        },
    )


def test_a_good_run_breaks_nothing(run: GuardRun) -> None:
    assert find_broken(run, fault="ClipEmpty") == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("\ufeff" + GOOD, "plain UTF-8"),
        (GOOD.rstrip(), "newline"),
        ("fname,B,A\nx,0,0\ny,0,0\n", "header"),
        ("", "header"),
        ("fname,A,B\nx,0,0\n", "ids"),
        ("fname,A,B\ny,0,0\nx,0,0\n", "ids"),
        (GOOD + "z,0,0\n", "ids"),
        ("fname,A,B\nx,0\ny,0,0\n", "2 cells"),
        ("fname,A,B\nx,nan,0\ny,0,0\n", "outside"),
        ("fname,A,B\nx,,0\ny,0,0\n", "outside"),
        ("fname,A,B\nx,1.5,0\ny,0,0\n", "outside"),
        ("fname,A,B\nx,inf,0\ny,0,0\n", "outside"),
    ],
)
def test_a_bad_submission_is_noticed(run: GuardRun, content: str, reason: str) -> None:
    (run.working / "submission.csv").write_text(content, encoding="utf-8")
    assert any(reason in text for text in find_broken(run))


def test_a_wrong_label_is_noticed(run: GuardRun) -> None:
    run.sample.write_text("fname,label\nx,?\n", encoding="utf-8")
    (run.working / "submission.csv").write_text("fname,label\nx,Dog\n", encoding="utf-8")
    assert find_broken(run, labels={"Dog"}) == []
    assert any("'Dog'" in text for text in find_broken(run, labels={"Cat"}))


@pytest.mark.parametrize(("breaks", "reason"), [
    (lambda r: (r.working / "submission.csv").unlink(), "no submission"),
    (lambda r: (r.working / ".submission.csv.7.tmp").touch(), "left in the working folder"),
    (lambda r: (r.scratch / "hourglass-1").mkdir(), "private files"),
])
def test_files_that_are_missing_or_left_are_noticed(
    run: GuardRun, breaks: Callable[[GuardRun], None], reason: str
) -> None:
    breaks(run)
    assert any(reason in text for text in find_broken(run))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"code": 1}, "exit code 1"),
        ({"wall_s": 10.0}, "took 10.0 s"),
        ({"report": {}}, "no report"),
        ({"report": {"prior_rows": 3}}, "prior rows and no fault"),
        ({"report": {"faults": [{"code": "Other"}]}}, "does not name"),
        ({"report": {"limits": {"ram_bytes": 10}, "peak_ram_bytes": 11}}, "above the limit"),
    ],
)
def test_a_wrong_outcome_is_noticed(run: GuardRun, change: dict, reason: str) -> None:
    assert any(reason in text for text in find_broken(replace(run, **change), fault="ClipEmpty"))


def test_a_process_left_behind_is_noticed(run: GuardRun) -> None:
    left = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={"MARK": "left-behind-7"}
    )
    try:
        assert any("processes" in text for text in find_broken(replace(run, mark="left-behind-7")))
    finally:
        left.kill()
        left.communicate()
    assert find_broken(replace(run, mark="left-behind-7"), fault="ClipEmpty") == []


def test_a_torn_submission_during_the_run_is_noticed(run: GuardRun) -> None:
    assert find_broken(replace(run, torn=("2 lines of 3",)), fault="ClipEmpty") == ["2 lines of 3"]


def test_a_row_that_differs_from_the_run_without_faults_is_noticed(run: GuardRun, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "submission.csv").write_text(GOOD.replace("0.25", "0.26"), encoding="utf-8")
    other = replace(run, working=tmp_path / "other")
    assert any("1 rows differ" in text for text in find_broken(run, reference=other))
    assert find_broken(run, reference=other, affected={"x"}) == [] == find_broken(run, reference=run)
