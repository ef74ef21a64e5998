"""Clean runs of published ensembles on rendered clips: the input, the run, its scores.

Owns `make_input`, `run_clean` and `read_scores`. The ensembles themselves are `small_ensembles`; runs with
faults are `whole_runs`.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernel import spec
from kernel.errors import SpecError
from kernel.models.timm_backbone import import_timm
from tests.helpers.guard_runs import GuardRun, run_guard
from tests.helpers.invariants import read_table
from tests.helpers.whole_runs import render_clip

RATE = 44_100  # Hz of rendered clips


def write_sample(folder: Path, header: list[str], ids: list[str], cell: str = "0") -> None:
    """A sample submission in which every cell beside the ids holds `cell`."""
    cells = [cell] * (len(header) - 1)
    lines = [",".join(header), *(",".join([id, *cells]) for id in ids)]
    (folder / "sample_submission.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def sample_columns(ensemble: spec.Ensemble) -> tuple[list[str], str]:
    """Columns beside the ids in the ensemble's output form, and what its sample writes into each cell."""
    if ensemble.output.format == "label":
        return [str(ensemble.output.label_column)], ensemble.classes[0]
    return list(ensemble.classes), "0"


def make_input(
    folder: Path, ensemble: spec.Ensemble, seconds: list[float], id_column: str = "fname"
) -> list[str]:
    """Ids of rendered clips of these lengths below folder/in, with a sample in the ensemble's output form."""
    ids = [f"c{i}.wav" for i in range(len(seconds))]
    for i, (id, length) in enumerate(zip(ids, seconds, strict=True)):
        render_clip(folder / "in" / "test" / id, length, i, RATE)
    columns, cell = sample_columns(ensemble)
    write_sample(folder / "in", [id_column, *columns], ids, cell)
    return ids


def run_clean(
    folder: Path, bundle: Path, *arguments: str, seconds: float = 100.0, prefix: tuple[str, ...] = ()
) -> GuardRun:
    """A run without any fault in which every net scored every row."""
    run = run_guard(
        folder,
        bundle,
        *("--device", "cpu", *arguments),
        seconds=seconds,
        prefix=prefix,
        OMP_WAIT_POLICY="PASSIVE",
    )
    assert run.code == 0 and run.report["faults"] == [], run.out[-3000:]
    assert run.report["prior_rows"] == run.report["partial_rows"] == 0
    for member in run.report["members"]:
        assert member["nets_done"] == len(member["nets"]), member["name"]
        assert member["rows"] == run.report["rows"], member["name"]
    return run


def read_scores(run: GuardRun) -> dict[str, np.ndarray]:
    """Row id -> f64[K]."""
    return {row[0]: np.array(row[1:], float) for row in read_table(run.working / "submission.csv")[1:]}


def need_timm() -> Any:
    """timm, or a skipped test."""
    try:
        return import_timm()
    except SpecError:
        pytest.skip("timm is not installed")
