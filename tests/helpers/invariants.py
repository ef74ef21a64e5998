"""What must hold after every run of the kernel, whatever was done to it.

Owns `find_broken`, which every fault test uses.
"""
from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from tests.helpers.guard_runs import GuardRun

# All that a run may leave in the working folder
LEFT_BEHIND = {"submission.csv", "report.json", "report.html", "report.png", "dry_run.csv", "dry_run.json"}


def find_broken(
    run: GuardRun,
    *,
    fault: str | None = None,
    codes: Collection[int] = (0,),
    labels: Collection[str] | None = None,
    reference: GuardRun | None = None,
    affected: Collection[str] = (),
) -> list[str]:
    """Every invariant that a finished run breaks; an empty list is a pass.

    fault   code that report.json must name; None: no fault was injected
    codes   exit codes that are right for this run
    labels  texts allowed when the submission has one label column
    reference, affected  a run without faults on the same clips: every row but the affected ones has its bytes
    """
    return [*_submission(run, labels), *_exit(run, codes), *_leftovers(run), *_report(run, fault), *run.torn,
            *_differences(run, reference, affected)]


def read_table(path: Path) -> list[list[str]]:
    """Cells of a CSV file as raw text, by nobody's code but the csv module's."""
    text = path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return [row for row in csv.reader(io.StringIO(text, newline="")) if row]


def _submission(run: GuardRun, labels: Collection[str] | None) -> Iterator[str]:
    path = run.working / "submission.csv"
    if not path.is_file():
        yield "no submission.csv"
        return
    raw = path.read_bytes()
    if raw.startswith(b"\xef\xbb\xbf") or not raw.endswith(b"\n") or b"\0" in raw:
        yield "submission.csv is not plain UTF-8 text that ends with a newline"
    sample = read_table(run.sample)
    table = read_table(path)
    if not table or table[0] != sample[0]:
        yield "the header differs from the sample's"
        return
    if [row[0] for row in table[1:]] != [row[0] for row in sample[1:]]:
        yield "the ids differ from the sample's, or their order does"
    for number, row in enumerate(table[1:], 1):
        if len(row) != len(table[0]):
            yield f"row {number} has {len(row)} cells"
        elif labels is None and not all(_is_score(text) for text in row[1:]):
            yield f"row {number} has a value outside 0..1"
        elif labels is not None and row[1] not in labels:
            yield f"row {number} has the label {row[1]!r}"


def _is_score(text: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and 0 <= value <= 1


def _differences(run: GuardRun, reference: GuardRun | None, affected: Collection[str]) -> Iterator[str]:
    if reference is None or not (run.working / "submission.csv").is_file():
        return
    rows, wanted = (
        {row[0]: row for row in read_table(r.working / "submission.csv")} for r in (run, reference)
    )
    other = sorted(id for id, row in wanted.items() if id not in affected and rows.get(id) != row)
    if other:
        yield f"{len(other)} rows differ from the run without faults: {other[:5]}"


def _exit(run: GuardRun, codes: Collection[int]) -> Iterator[str]:
    if run.code not in codes:
        yield f"exit code {run.code}, expected {sorted(codes)}: {run.out[-500:]}"
    if run.budget_s >= 3 and run.wall_s >= run.budget_s:
        yield f"took {run.wall_s:.1f} s of {run.budget_s:g} s"


def _leftovers(run: GuardRun) -> Iterator[str]:
    alive = [pid for pid in find_processes(run.mark) if pid != os.getpid()]
    if alive:
        yield f"processes left behind: {alive}"
    strange = (
        sorted(p.name for p in run.working.iterdir() if p.name not in LEFT_BEHIND)
        if run.working.is_dir()
        else []
    )
    if strange:
        yield f"files left in the working folder: {strange}"
    private = sorted(p.name for p in run.scratch.iterdir()) if run.scratch.is_dir() else []
    if private:
        yield f"private files left behind: {private}"


def find_processes(mark: str) -> list[int]:
    """Processes that carry the mark of a run in their environment, dead ones not among them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue  # ended while we looked, or another user's
    return found


def _report(run: GuardRun, fault: str | None) -> Iterator[str]:
    if not run.report:
        yield "no report.json"
        return
    named = {entry["code"] for entry in run.report.get("faults", [])} | set(
        run.report.get("fault_counts", {})
    )
    if fault is not None and fault not in named:
        yield f"the report does not name {fault}; it names {sorted(named)}"
    if run.report.get("prior_rows") and not named:
        yield f"{run.report['prior_rows']} prior rows and no fault in the report"
    limit = run.report.get("limits", {}).get("ram_bytes")
    if limit and run.report.get("peak_ram_bytes", 0) > limit:
        yield f"peak memory {run.report['peak_ram_bytes']} above the limit {limit}"
