"""lwlrap equals the official numbers, with ties, empty clips and wrong input settled; accuracy."""
from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.scores.metrics import (
    COUNTING_NEGATIVES,
    METRICS,
    PADDING_ROWS,
    accuracy,
    average_precision,
    lwlrap,
    lwlrap_per_class,
    macro_auc,
    macro_auc_per_class,
    padded_cmap,
)
from tests import contracts

CASES = json.loads((contracts.GOLDENS / "lwlrap.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=[case["what"][:30] for case in CASES])
def test_official_numbers(case: dict[str, Any]) -> None:
    truth, scores = np.array(case["truth"]), np.array(case["scores"])
    assert lwlrap(truth, scores) == pytest.approx(case["lwlrap"], abs=1e-9)
    per_class, weight = lwlrap_per_class(truth, scores)
    assert np.allclose(per_class, case["per_class"], atol=1e-9) and np.allclose(
        weight, case["weight"], atol=1e-9
    )


def direct(truth: np.ndarray, scores: np.ndarray) -> float:
    """The definition, pair by pair; among equal scores the higher class index ranks first."""
    values = []
    for t, s in zip(truth, scores, strict=True):
        order = sorted(range(len(s)), key=lambda c: (-s[c], -c))
        values += [
            sum(t[c] > 0 for c in order[: order.index(c) + 1]) / (order.index(c) + 1)
            for c in np.flatnonzero(t)
        ]
    return float(np.mean(values))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31), rows=st.integers(1, 12), classes=st.integers(2, 9), levels=st.integers(1, 6)
)
def test_definition_with_ties(seed: int, rows: int, classes: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (rows, classes))
    truth[0, 0] = 1
    scores = rng.integers(0, levels, (rows, classes)) / 4
    assert lwlrap(truth, scores) == pytest.approx(direct(truth, scores), abs=1e-12)
    assert lwlrap(truth, 3 * scores - 7) == lwlrap(truth, scores)
    per_class, weight = lwlrap_per_class(truth, scores)
    assert (per_class * weight).sum() == pytest.approx(lwlrap(truth, scores), abs=1e-12)


def test_tie_rule_prefers_the_higher_index() -> None:
    assert lwlrap(np.array([[0, 1]]), np.array([[0.5, 0.5]])) == 1.0
    assert lwlrap(np.array([[1, 0]]), np.array([[0.5, 0.5]])) == 0.5


@pytest.mark.parametrize(
    "truth, scores, word",
    [
        ([[1, 0]], [[np.nan, 1]], "NaN in row 0"),
        ([[0, 0]], [[1, 2]], "no true class"),
        ([[1, 0]], [[1, 2, 3]], "one shape"),
        ([1, 0], [1, 2], "one shape"),
    ],
)
def test_wrong_input_is_named(truth: Any, scores: Any, word: str) -> None:
    for function in (lwlrap, lwlrap_per_class):
        with pytest.raises(ValueError, match=word):
            function(np.array(truth), np.array(scores))


def test_accuracy() -> None:
    scores = np.array([[0.1, 0.9], [0.5, 0.5], [0.8, 0.2]])
    assert accuracy(np.array([1, 0, 1]), scores) == pytest.approx(2 / 3)
    for labels, wrong in (([1], scores), ([], np.zeros((0, 2))), ([1, 0, 1], np.full((3, 2), np.nan))):
        with pytest.raises(ValueError):
            accuracy(np.array(labels), wrong)


def pairs_in_order(truth: np.ndarray, scores: np.ndarray) -> float:
    """The area under the ROC curve of one class, pair by pair."""
    won = [(a > b) + 0.5 * (a == b) for a in scores[truth] for b in scores[~truth]]
    return float(np.mean(won))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(2, 12), classes=st.integers(1, 5))
def test_macro_auc_is_the_share_of_pairs_in_order(seed: int, rows: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    truth, scores = rng.random((rows, classes)) < 0.4, rng.integers(0, 4, (rows, classes)) / 4
    truth[0], truth[-1] = True, False  # each class has both
    per_class = [pairs_in_order(truth[:, k], scores[:, k]) for k in range(classes)]
    np.testing.assert_allclose(macro_auc_per_class(truth, scores), per_class)
    assert macro_auc(truth, scores) == pytest.approx(np.mean(per_class))
    more = np.concatenate([truth, np.zeros((rows, 1), bool)], axis=1)  # a class without a positive is skipped
    wider = np.concatenate([scores, scores[:, :1]], axis=1)
    assert macro_auc(more, wider) == pytest.approx(np.mean(per_class))
    assert np.isnan(macro_auc_per_class(more, wider)[-1])


def test_a_class_that_is_true_everywhere_has_no_area() -> None:
    truth = np.array([[1, 1], [1, 0]])
    assert np.isnan(macro_auc(truth, np.array([[0.1, 0.9], [0.2, 0.1]])))
    with pytest.raises(ValueError, match="no true class in any row"):
        macro_auc(np.zeros((2, 2)), np.zeros((2, 2)))


def test_padded_cmap_by_hand() -> None:
    truth = np.array([[1, 0], [0, 0], [1, 0]])
    scores = np.array([[0.9, 0.2], [0.6, 0.1], [0.6, 0.3]])
    # Class 0: five padded rows, then 0.9 (6 of 6), then two of 0.6 at once (7 of 8); seven positives.
    # Class 1: the padded rows alone, found first
    assert padded_cmap(truth, scores) == pytest.approx(((6 * 1 + 7 / 8) / 7 + 1) / 2)
    assert padded_cmap(truth, np.zeros((3, 2))) == pytest.approx(((5 + 2 * 7 / 8) / 7 + 1) / 2)
    with pytest.raises(ValueError, match="wants 0..1"):
        padded_cmap(truth, scores * 2)


def test_average_precision_equals_the_definition() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        truth, scores = rng.random(9) < 0.5, rng.integers(0, 5, 9) / 5
        truth[0] = True
        found, last = 0.0, 0.0
        for threshold in np.unique(scores)[::-1]:
            taken = scores >= threshold
            recall = truth[taken].sum() / truth.sum()
            found += (recall - last) * truth[taken].mean()
            last = recall
        assert average_precision(truth, scores) == pytest.approx(found)


def test_five_rows_pad_every_class_and_the_bounds_are_scores() -> None:
    assert PADDING_ROWS == 5
    truth, scores = np.zeros((4, 1)), np.ones((4, 1))
    assert padded_cmap(truth, scores) == pytest.approx(5 / 9)  # found together with four others
    assert padded_cmap(truth, 0 * scores) == 1.0 and padded_cmap(np.zeros((0, 2)), np.zeros((0, 2))) == 1.0
    for wrong in (scores + 1e-9, -1e-9 * scores):
        with pytest.raises(ValueError, match="wants 0..1"):
            padded_cmap(truth, wrong)


def test_the_row_of_a_missing_score_is_named() -> None:
    scores = np.zeros((4, 2))
    scores[2, 1] = scores[3, 0] = np.nan
    for function in (lwlrap, macro_auc, padded_cmap):
        with pytest.raises(ValueError, match="NaN in row 2"):
            function(np.ones((4, 2)), scores)
    with pytest.raises(ValueError, match="NaN in row 2"):
        accuracy(np.zeros(4, int), scores)


def test_truth_is_what_is_above_zero() -> None:
    scores = np.array([[0.9, 0.1, 0.5]])
    assert lwlrap(np.array([[-1.0, 0.0, 0.25]]), scores) == 0.5
    per_class, weight = lwlrap_per_class(np.array([[-1.0, 0.0, 0.25]]), scores)
    assert per_class.tolist() == [0.0, 0.0, 0.5] and weight.tolist() == [0.0, 0.0, 1.0]
    assert macro_auc(np.array([[-1.0], [0.25]]), np.array([[0.1], [0.2]])) == 1.0
    with pytest.raises(ValueError, match="no true class"):
        macro_auc(np.array([[-1.0], [0.0]]), np.zeros((2, 1)))


def test_what_a_row_without_a_true_class_says() -> None:
    """A negative of every class to those that compare rows, nothing to lwlrap; all are in the table."""
    truth, scores = np.array([[1, 0], [0, 1]]), np.array([[0.8, 0.2], [0.3, 0.9]])
    more, wider = np.vstack([truth, [[0, 0]]]), np.vstack([scores, [[1.0, 1.0]]])
    changed = {name for name, metric in METRICS.items() if metric(more, wider) != metric(truth, scores)}
    assert changed == set(COUNTING_NEGATIVES) == {"macro_auc", "padded_cmap"} and len(METRICS) == 3


def test_accuracy_wants_a_label_for_each_row() -> None:
    scores = np.array([[0.1, 0.9]])
    assert accuracy(np.array([1]), scores) == 1.0 and accuracy(np.array([0]), scores) == 0.0
    for labels, wrong in (([1], scores[0]), ([1, 1], scores), ([[1]], scores)):
        with pytest.raises(ValueError, match="N >= 1"):
            accuracy(np.array(labels), wrong)
