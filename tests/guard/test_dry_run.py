"""The guard around a dry run: when it starts one, what it is given, and that none of it costs the run."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.guard_runs import GuardRun, run_guard
from tests.helpers.stub_bundle import Bundle, check, describe_bundle, make_bundle, make_input

# What stands for kernel/rehearsal/dry_run.py: it tells what it was given.
TOLD = """
import json, os, sys, time
from pathlib import Path
def main(state, clips, count, seconds):
    order = json.loads((Path(state) / "run.json").read_bytes())
    print("TRIED", clips or "-", count or "-", float(seconds) > 1, flush=True)
    DEED
    os._exit(0)
"""
ASKED = ("--dry-run-clips", "train", "--dry-run", "7")


def stub(folder: Path, deed: str = "pass", dry_run: dict[str, Any] | None = None) -> Bundle:
    """A stub bundle whose dry run does this deed, and whose ensemble asks for one or not."""
    extra = {"kernel/rehearsal/__init__.py": "", "kernel/rehearsal/dry_run.py": TOLD.replace("DEED", deed)}
    ensemble = {**describe_bundle(b"", {})["ensemble"], "dry_run": dry_run}
    return make_bundle(folder / "bundle", extra=extra, ensemble=ensemble)


def run(tmp_path: Path, bundle: Bundle, *arguments: str, seconds: float = 60.0, **env: str) -> GuardRun:
    make_input(tmp_path / "in")
    return run_guard(tmp_path, bundle.folder, *arguments, seconds=seconds, **env)


@pytest.mark.parametrize(("arguments", "wanted", "told"), [
    (ASKED, None, "TRIED train 7 True"),
    ((), {"clips": "soundscapes", "count": 9}, "TRIED - - True"),
    (ASKED[:2], {"clips": "soundscapes", "count": 9}, "TRIED train - True"),
    (ASKED[2:], {"clips": "soundscapes", "count": 9}, "TRIED - 7 True"),
])
def test_a_dry_run_follows_the_submission(
    arguments: tuple[str, ...], wanted: dict[str, Any] | None, told: str, tmp_path: Path
) -> None:
    deed = "assert os.path.exists(order['working'] + '/submission.csv')"
    found = run(tmp_path, stub(tmp_path, deed, wanted), *arguments)
    check(found)
    assert told in found.out and found.code == 0


@pytest.mark.parametrize(("arguments", "wanted", "env"), [
    ((), None, {}), (ASKED[2:], None, {}), (ASKED, None, {"KAGGLE_IS_COMPETITION_RERUN": "1"}),
    ((), {"clips": "soundscapes"}, {"KAGGLE_IS_COMPETITION_RERUN": ""}),
])
def test_nobody_asked_or_kaggle_scores(
    arguments: tuple[str, ...], wanted: dict[str, Any] | None, env: dict[str, str], tmp_path: Path
) -> None:
    found = run(tmp_path, stub(tmp_path, dry_run=wanted), *arguments, **env)
    check(found)
    assert "TRIED" not in found.out


def test_a_submission_is_the_same_with_and_without(tmp_path: Path) -> None:
    spoil = "Path(order['working'], 'dry_run.csv').write_text('x')"
    plain = run(tmp_path / "a", stub(tmp_path / "a"))
    tried = run(tmp_path / "b", stub(tmp_path / "b", spoil), *ASKED)
    check(tried)
    assert tried.submission == plain.submission and (tried.working / "dry_run.csv").read_text() == "x"


@pytest.mark.parametrize("deed", ["os._exit(1)", "os.kill(os.getpid(), 9)", "raise MemoryError"])
def test_a_dry_run_that_dies_costs_a_line(deed: str, tmp_path: Path) -> None:
    found = run(tmp_path, stub(tmp_path, deed), *ASKED)
    check(found, "DryRunFailed")
    assert found.code == 0 and found.report["guard"]["finished"] and found.report["prior_rows"] == 0


def test_a_dry_run_that_never_ends_is_ended(tmp_path: Path) -> None:
    deed = "import subprocess; subprocess.Popen(['sleep', '99']); time.sleep(99)"
    found = run(tmp_path, stub(tmp_path, deed), *ASKED, seconds=6.0)
    check(found, "DryRunFailed")
    assert found.code == 0 and found.report["prior_rows"] == 0


def test_an_engine_that_did_not_finish_is_not_followed_by_one(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", "def run():\n    sys.exit(5)\n", extra={
        "kernel/rehearsal/__init__.py": "", "kernel/rehearsal/dry_run.py": TOLD})
    found = run(tmp_path, bundle, *ASKED)
    check(found, "EngineDied")
    assert "TRIED" not in found.out
