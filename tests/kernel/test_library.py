"""`from kernel import score`: the kernel's numbers as a table, its sentences as exceptions."""
from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

import kernel
from builder import assembly
from kernel import library, limits
from kernel.errors import (
    BundleHashMismatch,
    BundleMissing,
    HourglassError,
    LimitError,
    ModelLoadFailed,
    SampleMissing,
    SpecError,
)
from kernel.rehearsal import options
from tests.helpers import REPOSITORY
from tests.helpers.bundles import TINY, copy_of_build, order
from tests.helpers.guard_runs import run_guard

CLASSES = ["bark", "meow", "hiss"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input as a competition has it: five clips and their sample."""
    place = tmp_path_factory.mktemp("library")
    names = ["007.wav", "sub/b.wav", "c.wav", "d.wav", "e.wav"]
    for number, name in enumerate(names):
        path = place / "in" / "test" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = 0.1 * np.random.default_rng(number).standard_normal(int(22_050 * (0.4 + 0.3 * number)))
        soundfile.write(path, wave, 22_050)
    with open(place / "in" / "sample_submission.csv", "w", newline="") as file:
        csv.writer(file).writerows([["fname", *CLASSES], *([name, 0, 0, 0] for name in names)])
    return place


def read(text: str) -> tuple[list[str], np.ndarray]:
    _, *rows = csv.reader(text.splitlines())
    return [row[0] for row in rows], np.array([row[1:] for row in rows], float)


def test_the_table_holds_the_kernels_own_numbers(place: Path, tiny_bundle: Path) -> None:
    run = run_guard(place, tiny_bundle / "bundle", "--device", "cpu", seconds=100)
    ids, values = read(run.submission)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = kernel.score(tiny_bundle, place / "in" / "test", device="cpu", progress=False)
    assert list(found.columns) == CLASSES and sorted(found.index) == sorted(ids)
    assert found.index.name == "fname" and (found.dtypes == np.float64).all()
    assert np.array_equal(found.loc[ids].to_numpy(), values)
    assert found.attrs["report"]["rows"] == 5 and found.attrs["report"]["prior_rows"] == 0


def test_rows_by_name_and_the_first_of_them(place: Path, tiny_bundle: Path) -> None:
    table = pd.DataFrame({"clip": ["c.wav", "007.wav", "gone.wav"], "more": [1, 2, 3]})
    with pytest.warns(UserWarning, match="2 of 3 rows hold only the prior"):
        found = kernel.score(tiny_bundle / "bundle", place / "in/test", names=table, first=1, device="cpu")
    assert list(found.index) == ["c.wav", "007.wav", "gone.wav"]
    assert np.allclose(found.iloc[1:], 1 / 3) and not np.allclose(found.iloc[0], 1 / 3)


def test_a_label_stays_the_text_that_it_is(place: Path, tmp_path: Path) -> None:
    output = '\n[output]\nformat = "label"\nlabels = { bark = "007", meow = "007", hiss = "007" }\n'
    (tmp_path / "label.toml").write_text(TINY.read_text() + output)
    assembly.build(order(tmp_path / "out", ensemble=tmp_path / "label.toml"), say=lambda _: None)
    found = kernel.score(tmp_path / "out", place / "in/test", names=["c.wav"], device="cpu", progress=False)
    assert found.to_numpy().tolist() == [["007"]] and list(found.columns) == ["label"]


@pytest.mark.faults
def test_recordings_have_a_row_per_window(place: Path, tmp_path: Path) -> None:
    (tmp_path / "windows.toml").write_text(TINY.read_text() + "\n[windows]\nseconds = 0.5\n")
    assembly.build(order(tmp_path / "out", ensemble=tmp_path / "windows.toml"), say=lambda _: None)
    (tmp_path / "clips").mkdir()
    shutil.copy(place / "in/test/e.wav", tmp_path / "clips")
    found = kernel.score(tmp_path / "out", tmp_path / "clips", device="cpu", progress=False)
    assert list(found.index) == ["e_0.5", "e_1", "e_1.5", "e_2"]  # 1.6 s: the last one is not full
    last = kernel.score(tmp_path / "out", tmp_path / "clips", names=[found.index[-1]], device="cpu")
    assert last.equals(found.iloc[-1:])


def test_only_a_chosen_backend_is_in_the_order(place: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """The kernel of a bundle of before knows no such key."""
    known = [action.choices for action in options.make_parser()._actions if action.dest == "backend"]
    assert known == [library.BACKENDS]
    (tmp_path / "input").mkdir()
    shutil.copy(place / "in/sample_submission.csv", tmp_path / "input")

    def order_of(backend: str) -> dict[str, object]:
        return library._make_order(tmp_path, tiny_bundle, place / "in/test", limits.limits("fat2019", None),
                                   device="cpu", backend=backend, first=None)

    assert "backend" not in order_of("auto") and order_of("openvino")["backend"] == "openvino"


@pytest.mark.parametrize(
    "change, error, reason",
    [
        ({"bundle": "nowhere"}, BundleMissing, "nowhere: no manifest.json"),
        ({"clips": "nowhere"}, SampleMissing, "^.*nowhere: no audio file"),
        ({"names": []}, SampleMissing, "at least one id"),
        ({"names": "c.wav"}, SpecError, "is one text"),
        ({"names": 5}, SpecError, "names: 5 is no list"),
        ({"names": pd.DataFrame({"fname": ["c.wav", None]})}, SpecError, "no id at position 1"),
        ({"names": ["c.wav", pd.NA, float("nan")]}, SpecError, "no id at position 1"),
        ({"limits": 5}, SpecError, "limits: 5 is no name"),
        ({"names": pd.DataFrame()}, SpecError, "without a column"),
        ({"names": ["c.wav"], "clips": "nowhere"}, SampleMissing, "nowhere: no such folder"),
        ({"limits": "fat2091"}, LimitError, "did you mean 'fat2019'"),
        ({"device": "gpu"}, SpecError, "choose one of: auto, cpu, cuda"),
        ({"backend": "onnx"}, SpecError, "choose one of: auto, torch, fp32, onnxruntime, openvino"),
        ({"first": 0}, SpecError, "whole number of at least 1"),
    ],
)
def test_what_cannot_be_scored_is_named(
    place: Path, tiny_bundle: Path, change: dict, error: type[HourglassError], reason: str
) -> None:
    given = {"bundle": tiny_bundle, "clips": place / "in/test", "progress": False, **change}
    with pytest.raises(error, match=reason):
        kernel.score(**given)


def test_code_that_was_changed_is_not_run(place: Path, tmp_path: Path) -> None:
    wheel = next((copy_of_build(tmp_path / "out") / "bundle").glob("*.whl"))
    wheel.write_bytes(wheel.read_bytes().replace(b"EXIT_VERDICT", b"EXIT_VERDICX"))
    with pytest.raises(BundleHashMismatch, match="build the bundle again"):
        kernel.score(tmp_path / "out", place / "in/test")
    wheel.unlink()
    with pytest.raises(BundleMissing, match="cannot be read"):
        kernel.score(tmp_path / "out", place / "in/test")


def test_a_verdict_of_the_engine_is_its_own_exception(
    place: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verdict(where: Path, *_: object) -> tuple[int, str]:
        (where / "state" / "verdict.json").write_text('{"code": "ModelLoadFailed", "message": "no such net"}')
        return 3, ""

    monkeypatch.setattr(library, "_one_life", verdict)
    with pytest.raises(ModelLoadFailed, match="no such net"):
        kernel.score(tiny_bundle, place / "in/test", progress=False)
    monkeypatch.setattr(library, "_one_life", lambda *_: (-9, "its last words"))
    with pytest.raises(HourglassError, match="died 4 times, last with exit code -9:\nits last words"):
        kernel.score(tiny_bundle, place / "in/test", progress=False)


@pytest.mark.faults
def test_the_printed_cell_scores_from_the_wheel_alone(place: Path, tmp_path: Path) -> None:
    shutil.copytree(copy_of_build(tmp_path / "out") / "bundle", tmp_path / "input" / "somewhere")
    page = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8").partition("## From Python")[2]
    cell = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]
    cell = cell.replace("/kaggle/input/YOUR_COMPETITION/test", str(place / "in/test"))
    code = cell.replace("/kaggle/input", str(tmp_path / "input")) + "print(kernel.__file__, scores.shape)"
    code = code.replace("import sys\n", "import sys\nsys.path.remove('')\n", 1) + "\n"
    done = subprocess.run(
        [sys.executable, "-c", code.replace("print(kernel", "import kernel\nprint(kernel")],
        capture_output=True, text=True, timeout=110, cwd=tmp_path, check=False,
    )
    assert done.returncode == 0 and ".whl/kernel/__init__.py (5, 3)" in done.stdout, done.stderr


def test_the_package_itself_stays_light() -> None:
    code = "import sys, kernel; assert not {'pandas', 'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
    with pytest.raises(AttributeError, match="no attribute 'scoer'"):
        _ = kernel.scoer
