"""Score and worst rows of a rehearsed submission."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kernel import spec
from kernel.errors import SpecError
from kernel.rehearsal.labels import add_truth
from tests.helpers import TESTS

TINY = spec.load_ensemble(TESTS / "ensembles" / "tiny.toml")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    labels, submission = tmp_path / "labels.csv", tmp_path / "submission.csv"
    labels.write_text(
        'fname,labels\na.wav,bark\nx/b.wav,"meow,hiss"\nc.wav,thunder\nd.wav,hiss\ne.wav,bark\n'
    )
    submission.write_text(
        "fname,bark,meow,hiss\na.wav,0.9,0.1,0.1\nagain1-b.wav,0.5,0.4,0.3\nc.wav,1,0,0\nd.wav,0.9,0.8,0.1\n"
        "e.wav,0.1,0.2,0.3\n"
    )
    return labels, submission


def empty(broken: dict[str, str] | None = None) -> dict[str, Any]:
    return {"rehearsal": {"notes": []}, "broken_rows": broken or {}}


def test_worst_rows_come_first(files: tuple[Path, Path]) -> None:
    files[0].write_text(files[0].read_text().replace("x/b.wav", "b.wav"))
    report = empty()
    add_truth(report, *files, TINY)
    assert [(e["row"], e["rank"], e["truth"]) for e in report["worst"]] == [
        ("d.wav", 3, ["hiss"]),
        ("e.wav", 3, ["bark"]),
        ("again1-b.wav", 2, ["meow", "hiss"]),
        ("a.wav", 1, ["bark"]),
    ]
    assert report["worst"][2]["best"] == ["bark", "meow", "hiss"]
    # a: 1; b: 1/2 and 2/3; d: 1/3; e: 1/3, over five labels
    assert report["rehearsal"]["lwlrap"] == pytest.approx((1 + 1 / 2 + 2 / 3 + 1 / 3 + 1 / 3) / 5)
    assert "over 4 labelled rows of 5" in report["rehearsal"]["notes"][0]


def test_broken_rows_count_but_are_not_shown(files: tuple[Path, Path]) -> None:
    report = empty({"e.wav": "ClipEmpty"})
    add_truth(report, *files, TINY)
    assert "e.wav" not in [e["row"] for e in report["worst"]]


def test_labels_nobody_knows_are_refused(files: tuple[Path, Path]) -> None:
    files[0].write_text("fname,labels\na.wav,thunder\n")
    with pytest.raises(SpecError, match="no clip has a label"):
        add_truth(empty(), *files, TINY)


def test_a_labels_file_needs_its_columns(files: tuple[Path, Path]) -> None:
    files[0].write_text("file,label\na.wav,bark\n")
    with pytest.raises(SpecError, match="needs fname and labels"):
        add_truth(empty(), *files, TINY)
