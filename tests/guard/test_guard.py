"""The guard, alone: a run without faults, its arguments, its clock, the rehearsal it starts.

Every test in this folder runs the real file in its own process, with a stub in place of the engine.
"""
from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import infer_kernel
from tests.helpers.guard_runs import KERNEL, run_guard
from tests.helpers.stub_bundle import (
    EMPTY,
    GOOD,
    STUB_CELLS,
    check,
    has_published,
    is_prior,
    make_bundle,
    make_input,
    pin,
)


def test_the_engine_publishes_and_the_guard_adds_its_section(where: Path) -> None:
    bundle = make_bundle(where / "bundle", GOOD)
    run = run_guard(where, bundle.folder, "--strict")
    check(run)
    assert STUB_CELLS in run.submission and "UNPINNED" in run.out and "DEGRADED" not in run.out
    guard = run.report["guard"]
    assert guard["attempts"] == 1 and guard["finished"] and not guard["pinned"] and guard["exit_code"] == 0


def test_the_pushed_form_is_pinned_and_needs_no_bundle_argument(where: Path) -> None:
    bundle = make_bundle(where / "in" / "datasets" / "me" / "stub-data")
    run = run_guard(where, None, "--strict", kernel=pin(bundle, where / "kernel.py"))
    check(run)
    assert STUB_CELLS in run.submission and "UNPINNED" not in run.out and run.report["guard"]["pinned"]


def test_a_defect_of_the_guard_itself_is_named_and_leaves_the_prior(where: Path) -> None:
    kernel = pin(make_bundle(where / "in" / "stub-data"), where / "kernel.py", slug=["no", "text"])
    run = run_guard(where, None, kernel=kernel)
    check(run, "GuardError")
    assert is_prior(run) and "Traceback" in run.report["guard"]["stacks"]


def test_modules_planted_in_the_input_are_not_imported(where: Path) -> None:
    bundle = make_bundle(where / "bundle", "import json, zipfile, ctypes\n" + GOOD)
    for folder in (where, where / "in", where / "bundle"):
        for name in ("json", "torch", "numpy", "sitecustomize", "csv", "argparse", "zipfile", "ctypes"):
            (folder / f"{name}.py").write_text("raise SystemExit('planted')\n")
    run = run_guard(where, bundle.folder)
    check(run)
    assert not list(where.rglob("__pycache__"))


@pytest.mark.fault(
    row=78,
    injection="__future__.py, json.py, csv.py and their like beside the script, started by name or link",
    outcome="not imported: the script's own folder leaves the path first",
)
@pytest.mark.parametrize("linked", [False, True])
def test_modules_planted_beside_the_script_are_not_imported(where: Path, linked: bool) -> None:
    bundle = make_bundle(where / "bundle")
    script = pin(bundle, where / "pushed.py")
    for name in ("__future__", "time", "json", "csv", "argparse", "re", "zipfile", "ctypes", "fcntl"):
        (where / f"{name}.py").write_text("raise SystemExit('planted')\n")
    if linked:
        (where / "links").mkdir()
        (where / "links" / "kernel.py").symlink_to(script)
        script = where / "links" / "kernel.py"
    places = [f"--bundle={bundle.folder}", f"--input={where / 'in'}", f"--working={where / 'out'}"]
    done = subprocess.run(
        # Without site: the hooks of an editable installation would import from PYTHONPATH before it
        [sys.executable, *([] if linked else ["-S"]), script, *places, "--seconds=12"],
        capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": "" if linked else str(where)}
    )
    assert done.returncode == 0 and has_published(where / "out"), done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seconds", "soon"],
        ["--seconds", "nan"],
        ["--ram", "14 apples"],
        ["--first", "0"],
        ["--device", "tpu"],
        ["--unknown"],
        ["--loaders", "-1"],
        ["--work", "short"],
    ],
)
def test_bad_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        infer_kernel.make_parser().parse_args(arguments)
    assert ended.value.code == 2


def test_an_unknown_profile_is_refused_with_the_known_ones(where: Path) -> None:
    run = run_guard(where, make_bundle(where / "bundle").folder, "--limits", "no-such")
    assert run.code == 2 and "choose one of: code-cpu, fat2019" in run.out


@pytest.mark.parametrize("seconds", [-5, 2.9])
def test_a_budget_too_small_leaves_the_prior(where: Path, seconds: float) -> None:
    run = run_guard(where, make_bundle(where / "bundle").folder, f"--seconds={seconds}")
    check(run, "BudgetTooSmall")
    assert is_prior(run) and run.report["guard"]["attempts"] == 0


def test_time_that_passed_before_the_start_counts(where: Path) -> None:
    run = run_guard(where, make_bundle(where / "bundle").folder, "--offset", "11")
    check(run, "BudgetTooSmall")
    assert is_prior(run)


def test_the_clock_ignores_the_wall_clock_and_counts_suspension(monkeypatch: pytest.MonkeyPatch) -> None:
    run = infer_kernel.Run(infer_kernel.make_parser().parse_args(["--offset", "5"]))
    monkeypatch.setattr(time, "time", lambda: 1 / 0)
    monkeypatch.setattr(time, "monotonic", lambda: infer_kernel.STARTED + 10)
    monkeypatch.setattr(infer_kernel, "read_boot_clock", lambda: infer_kernel.STARTED_BOOT + 70)
    assert run.elapsed() == pytest.approx(75.0)


@pytest.mark.parametrize(("age_s", "offset_s"), [(180.0, 180.0), (5000.0, 0.0)])
def test_the_age_of_the_oldest_ancestor_is_the_offset(tmp_path: Path, age_s: float, offset_s: float) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    (tmp_path / "uptime").write_text("10000.00 5.0\n")
    for pid, parent, age in (("self", 7, 3.0), ("7", 1, age_s), ("1", 0, 60.0)):
        (tmp_path / pid).mkdir()
        fields = ["S", str(parent), *["0"] * 17, str(int((10000 - age) * ticks))]
        (tmp_path / pid / "stat").write_text(f"9 (python (3)) {' '.join(fields)} 0 0\n")
    assert infer_kernel.find_offset(3600, str(tmp_path)) == pytest.approx(offset_s, abs=0.02)
    assert infer_kernel.find_offset(3600, str(tmp_path / "none")) == 0.0


def test_a_closed_stdout_costs_nothing(where: Path) -> None:
    bundle = make_bundle(where / "bundle")
    for stream in ("/dev/full", "closed"):
        shell = ">&-" if stream == "closed" else f"> {stream}"
        done = subprocess.run(
            f"{sys.executable} -I {KERNEL} --bundle {bundle.folder} --input {where}/in --working {where}/out "
            f"--seconds 12 {shell}",
            shell=True,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert has_published(where / "out")


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    make_input(tmp_path / "in", header=("fname", "\x1b[31mred", "Bark"))
    run = run_guard(tmp_path, make_bundle(tmp_path / "bundle").folder)
    assert "\x1b" not in run.out and "red" in run.out


def test_a_rehearsal_runs_the_bundles_own_code_with_the_other_arguments(where: Path) -> None:
    rehearsal = """
import json, os, sys
def main(arguments, kernel):
    print(json.dumps([arguments, kernel, os.getcwd()]))
    return 1
"""
    extra = {"kernel/rehearsal/__init__.py": "", "kernel/rehearsal/command.py": rehearsal}
    bundle = make_bundle(where / "bundle", extra=extra)
    command = [
        sys.executable,
        str(KERNEL),
        "--rehearse",
        "--bundle",
        "bundle",
        "--clips=clips",
        "--expect-clips",
        "5",
    ]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    arguments, kernel, folder = json.loads(done.stdout)
    assert done.returncode == 1 and kernel == str(KERNEL)
    assert arguments[:5] == ["--bundle", "bundle", "--clips=clips", "--expect-clips", "5"]
    assert arguments[5:8] == ["--folder", str(where), "--bundle"], "its paths begin in the caller's folder"
    assert where / arguments[8] == bundle.folder and len(arguments) == 9
    assert not os.path.exists(folder)


def test_a_rehearsal_without_bundle_is_refused(where: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(KERNEL), "--rehearse", "--clips", "x"], cwd=where, capture_output=True, text=True
    )
    assert done.returncode == 2 and "BundleMissing" in done.stderr


def test_the_pushed_file_is_small_and_needs_the_standard_library_only() -> None:
    source = KERNEL.read_text(encoding="utf-8")
    assert len(source.encode()) < 110_000 and source.count(EMPTY) == 1
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    # What this interpreter does not bring (the hash of another version) nothing else may bring either.
    strangers = names - sys.stdlib_module_names
    assert [name for name in strangers if importlib.util.find_spec(name)] == [], names


def test_other_systems_are_told_to_use_linux(tmp_path: Path) -> None:
    code = (
        "import sys, time; del time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC, time.clock_gettime; "
        f"sys.platform = 'win32'; sys.path.insert(0, {str(KERNEL.parent)!r}); "
        "import infer_kernel; infer_kernel.main([])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "Linux only" in done.stderr and list(tmp_path.iterdir()) == []
