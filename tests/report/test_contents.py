"""report.json as types: strict when read, the same JSON when written, whoever wrote it."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kernel.errors import SpecError
from kernel.report.contents import BareReport, Report, encode_report, load_report
from tests.helpers.guard_runs import run_guard
from tests.helpers.sample_report import make_json, make_report
from tests.helpers.stub_bundle import make_bundle, make_input


def load(data: dict[str, Any]) -> Report | BareReport:
    return load_report(json.dumps(data).encode())


def test_a_report_is_written_as_it_was_read() -> None:
    data = make_json()
    assert json.loads(encode_report(make_report())) == data
    data["worst"] = [{"row": "a", "best": [], "scores": [], "truth": ["bark"], "rank": 2}]
    data["page"] = "report.html"
    data["crashes"] = [{"attempt": 1, "kind": "unknown", "ids": []}]
    assert json.loads(encode_report(load(data))) == data


def test_parts_that_are_absent_have_no_key() -> None:
    text = encode_report(make_report(guard=None))
    assert not {"guard", "rehearsal", "worst", "page"} & set(json.loads(text))
    assert b'"failed": null' in text, "a value that may be null is no part that may be absent"


def set_deep(data: dict[str, Any], path: str, value: Any) -> None:
    *folders, name = path.split(".")
    place: Any = data
    for folder in folders:
        place = place[int(folder) if folder.isdigit() else folder]
    place[name] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rowz", 1),
        ("guard.exitcode", 0),
        ("members.0.nets.1.second", 1.0),
        ("costs.members.cnn.shape", 1),
        ("rows", "100"),
        ("timeline.3.used", 0.5),
        ("stages.0.end_s", None),
    ],
)
def test_unknown_and_mistyped_keys_are_named(path: str, value: Any) -> None:
    data = make_json()
    set_deep(data, path, value)
    with pytest.raises(SpecError, match=path.rpartition(".")[2]):
        load(data)


def test_missing_keys_are_named() -> None:
    data = make_json()
    del data["store"]["hits"]
    with pytest.raises(SpecError, match=r"report\.json\.store\.hits: missing"):
        load(data)


@pytest.mark.parametrize("engine", [None, "def run():\n    beat(1, scored=1)\n    os._exit(1)\n"])
def test_the_guard_alone_writes_a_bare_report(tmp_path: Path, engine: str | None) -> None:
    make_input(tmp_path / "in")
    bundle = None if engine is None else make_bundle(tmp_path / "bundle", engine).folder
    run = run_guard(tmp_path, bundle)
    report = load(run.report)
    assert isinstance(report, BareReport) and report.guard is not None and not report.guard.finished
    assert json.loads(encode_report(report)) == run.report
    assert report.rows == 2 and len(report.guard.deaths) == (0 if engine is None else report.guard.attempts)
