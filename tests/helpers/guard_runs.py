"""Runs of the guard in a process of its own, for tests and for the fault matrix.

Owns `run_guard` and `GuardRun`, what is known of a finished run; `tests/helpers/invariants.py` checks it.
"""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helpers import REPOSITORY

KERNEL = REPOSITORY / "infer_kernel.py"


@dataclass(frozen=True, kw_only=True)
class GuardRun:
    """A finished (or running) guard: everything the invariants need.

    torn  what a look at the submission during the run found wrong with it
    """

    code: int
    wall_s: float
    out: str
    working: Path
    sample: Path
    scratch: Path
    budget_s: float
    mark: str
    report: dict[str, Any] = field(default_factory=dict)
    torn: tuple[str, ...] = ()

    @property
    def submission(self) -> str:
        return (self.working / "submission.csv").read_bytes().decode("utf-8", "surrogateescape")

    @property
    def faults(self) -> list[str]:
        return [fault["code"] for fault in self.report.get("faults", [])]


def start_guard(kernel: Path, where: Path, *arguments: str, env: dict[str, str] | None = None,
                prefix: tuple[str, ...] = ()) -> tuple[subprocess.Popen[str], str]:
    """A running guard, and the mark in the environment of every process it starts; `prefix` = command words
    before it.
    """
    (where / "scratch").mkdir(exist_ok=True)
    mark = uuid.uuid4().hex
    environment = {**os.environ, "TMPDIR": str(where / "scratch"), "HOURGLASS_TEST_MARK": mark, **(env or {})}
    return subprocess.Popen(
        [*prefix, sys.executable, "-I", str(kernel), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=where,
        errors="backslashreplace",
    ), mark


def run_guard(
    where: Path,
    bundle: Path | None,
    *arguments: str,
    kernel: Path = KERNEL,
    seconds: float = 12.0,
    during: Callable[[subprocess.Popen[str], Path], None] | None = None,
    prefix: tuple[str, ...] = (),
    **env: str,
) -> GuardRun:
    """A finished guard run on `where`/in into `where`/out; `during` may do harm meanwhile."""
    working = where / "out"
    given = [] if bundle is None else ["--bundle", str(bundle)]
    if not any(a.startswith("--working") for a in arguments):
        given += ["--working", str(working)]
    if not any(a.startswith("--input") for a in arguments):
        given += ["--input", str(where / "in")]
    if not any(a.startswith("--seconds") for a in arguments):
        given += ["--seconds", str(seconds)]
    began = time.monotonic()
    process, mark = start_guard(kernel, where, *given, *arguments, env=env, prefix=prefix)
    try:
        if during is not None:
            during(process, working)
        out, _ = process.communicate(timeout=max(60.0, seconds + 20))
    except BaseException:
        process.send_signal(signal.SIGKILL)
        raise
    report = working / "report.json"
    return GuardRun(
        code=process.returncode,
        wall_s=time.monotonic() - began,
        out=out,
        working=working,
        scratch=where / "scratch",
        sample=where / "in" / "sample_submission.csv",
        budget_s=seconds,
        mark=mark,
        report=json.loads(report.read_bytes()) if report.is_file() else {},
    )


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """The first true answer of `condition`; AssertionError when there is none in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.01)
    raise AssertionError("waited in vain")
