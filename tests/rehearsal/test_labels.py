"""Score and worst rows of a rehearsed submission."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kernel import spec
from kernel.errors import SpecError
from kernel.rehearsal.labels import score_submission
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


def test_worst_rows_come_first(files: tuple[Path, Path]) -> None:
    labels, submission = files
    labels.write_text(labels.read_text().replace("x/b.wav", "b.wav"))
    score = score_submission(submission, labels, TINY, broken=())
    assert score.worst is not None
    assert [(row.row, row.rank, row.truth) for row in score.worst] == [
        ("d.wav", 3, ("hiss",)),
        ("e.wav", 3, ("bark",)),
        ("again1-b.wav", 2, ("meow", "hiss")),
        ("a.wav", 1, ("bark",)),
    ]
    assert score.worst[2].best == ("bark", "meow", "hiss")
    # a: 1; b: 1/2 and 2/3; d: 1/3; e: 1/3, over five labels
    assert score.lwlrap == pytest.approx((1 + 1 / 2 + 2 / 3 + 1 / 3 + 1 / 3) / 5)
    assert "over 4 labelled rows of 5" in score.notes[0]


def test_broken_rows_count_but_are_not_shown(files: tuple[Path, Path]) -> None:
    labels, submission = files
    score = score_submission(submission, labels, TINY, broken={"e.wav": "ClipEmpty"})
    assert score.worst and "e.wav" not in [row.row for row in score.worst]


def test_a_submission_of_labels_is_not_scored(files: tuple[Path, Path]) -> None:
    labels, submission = files
    named = replace(TINY, output=spec.Output(format="label"))
    score = score_submission(submission, labels, named, broken=())
    assert score.lwlrap is None and score.worst is None and "only submissions" in score.notes[0]


def test_labels_nobody_knows_are_refused(files: tuple[Path, Path]) -> None:
    labels, submission = files
    labels.write_text("fname,labels\na.wav,thunder\n")
    with pytest.raises(SpecError, match="no clip has a label"):
        score_submission(submission, labels, TINY, broken=())


def test_a_labels_file_needs_its_columns(files: tuple[Path, Path]) -> None:
    labels, submission = files
    labels.write_text("file,label\na.wav,bark\n")
    with pytest.raises(SpecError, match="needs fname and labels"):
        score_submission(submission, labels, TINY, broken=())


def test_rows_that_are_named_without_a_label_are_negatives(files: tuple[Path, Path]) -> None:
    labels, submission = files
    plain = score_submission(submission, labels, TINY, broken=())
    # bark: positives 0.9 and 0.1 against 1 (c) and 0.9 (d); hiss: d 0.1 against 0.1, 0 and 0.3
    assert plain.macro_auc == pytest.approx(((0 + 0.5 + 0 + 0) / 4 + (0.5 + 1 + 0) / 3) / 2)
    assert plain.notes[1].startswith("macro ROC-AUC 0.3125 over the 2 of 3 classes with a positive in 4 row")
    text = labels.read_text().replace("fname", "row_id").replace("c.wav,thunder\n", "c.wav,\n")
    labels.write_text(text + "again1-b.wav,\n")
    more = score_submission(submission, labels, TINY, broken=())
    assert more.lwlrap == plain.lwlrap and more.macro_auc == pytest.approx((1.5 / 6 + 1.5 / 4) / 2)
    assert plain.padded_cmap is not None and 0.7 < plain.padded_cmap < 1


def test_a_class_that_is_true_in_every_row_is_said_to_have_no_area(files: tuple[Path, Path]) -> None:
    labels, submission = files
    labels.write_text("fname,labels\na.wav,bark\n")
    score = score_submission(submission, labels, TINY, broken=())
    assert score.macro_auc is None
    assert "no macro ROC-AUC: a class is true in each of the 1 rows" in score.notes[1]
