"""lwlrap equals the official numbers, with ties, empty clips and wrong input settled; accuracy."""
from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.scores.metrics import accuracy, lwlrap, lwlrap_per_class
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
