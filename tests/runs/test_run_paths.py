"""Whole runs take the fast way: the environment is set before anything loads, exported graphs are used."""
from __future__ import annotations

import csv
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile

from builder import assembly
from tests.helpers.bundles import order
from tests.helpers.guard_runs import GuardRun, run_guard

CLASSES = ("bark", "meow", "hiss")


def make_place(where: Path) -> Path:
    """An input of six clips of different lengths."""
    (where / "in" / "test").mkdir(parents=True)
    names = [f"c{i}.wav" for i in range(6)]
    for i, name in enumerate(names):
        wave = 0.1 * np.random.default_rng(i).standard_normal(int(22_050 * (0.7 + 0.45 * i)))
        soundfile.write(where / "in" / "test" / name, wave, 22_050, subtype="PCM_16")
    with open(where / "in" / "sample_submission.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["fname", *CLASSES])
        writer.writerows([name, 0, 0, 0] for name in names)
    return where


def scores(run: GuardRun) -> np.ndarray:
    _, *rows = csv.reader(run.submission.splitlines())
    return np.array([row[1:] for row in rows], float)


def test_graphs_of_the_bundle_run_and_agree_with_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    runs = []
    for graphs in (False, True):
        place = make_place(tmp_path / f"graphs-{graphs}")
        assembly.build(order(place / "build", export_onnx=graphs), say=lambda _: None)
        runs.append(run_guard(place, place / "build" / "bundle", "--device", "cpu", seconds=100))
    plain, quick = runs
    assert plain.code == quick.code == 0 and not plain.report["prior_rows"] and not quick.report["prior_rows"]
    assert "frozen" in plain.report["device"]["path"] and quick.report["device"]["path"] == "onnxruntime cpu"
    assert np.abs(scores(plain) - scores(quick)).max() <= 1e-5


def test_pools_of_threads_are_bounded_before_anything_loads(tmp_path: Path, tiny_bundle: Path) -> None:
    """Two pools of threads would fight for the cores, and threads that wait would spin on them."""
    seen: list[dict[str, str]] = []

    def look(process: Any, working: Path) -> None:
        watcher = psutil.Process(process.pid)
        while process.poll() is None and not seen:
            for child in watcher.children(recursive=True):
                try:
                    found = child.environ()
                except psutil.Error:
                    continue  # gone, or not started yet
                if "OMP_WAIT_POLICY" in found and "-c" in child.cmdline():
                    seen.append(found)
            time.sleep(0.01)

    hostile = {"OMP_NUM_THREADS": "64", "OPENBLAS_NUM_THREADS": "64", "OMP_WAIT_POLICY": "ACTIVE"}
    run = run_guard(
        make_place(tmp_path), tiny_bundle / "bundle", "--device", "cpu", seconds=100, during=look, **hostile
    )
    cores = min(2, len(os.sched_getaffinity(0)))
    assert run.code == 0 and seen
    assert seen[0]["OMP_WAIT_POLICY"] == "PASSIVE" and seen[0]["OPENBLAS_NUM_THREADS"] == "1"
    assert seen[0]["OMP_NUM_THREADS"] == seen[0]["MKL_NUM_THREADS"] == str(cores)
    assert run.report["device"]["about"] == f"{cores} CPU threads"
