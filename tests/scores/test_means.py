"""Means against numpy one-liners, with parts, rows and weights missing."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel import spec
from kernel.errors import SpecError
from kernel.scores.means import MEANS, mean

K = 4
RNG = np.random.default_rng(5)
STACK = RNG.uniform(0.01, 0.99, (3, 6, K))
WEIGHTS = [1.0, 2.0, 0.5]


def minmax_of(part):
    return (part - part.min(0)) / (part.max(0) - part.min(0))


def ranks_of(part):
    return (part.argsort(0).argsort(0) + 1) / len(part)


def logit_of(p):
    return np.log(p / (1 - p))


ONE_LINERS = {
    "geometric": lambda s, w: np.exp(np.average(np.log(s), axis=0, weights=w)),
    "arithmetic": lambda s, w: np.average(s, axis=0, weights=w),
    "logit": lambda s, w: 1 / (1 + np.exp(-np.average(logit_of(s), axis=0, weights=w))),
    "power": lambda s, w: np.average(s**3, axis=0, weights=w) ** (1 / 3),
    "rank": lambda s, w: np.average(np.stack([ranks_of(p) for p in s]), axis=0, weights=w),
    "minmax": lambda s, w: np.average(np.stack([minmax_of(p) for p in s]), axis=0, weights=w),
    "min": lambda s, w: s.min(axis=0),
    "max": lambda s, w: s.max(axis=0),
}


@pytest.mark.parametrize("weights", [(), WEIGHTS])
@pytest.mark.parametrize("name", ONE_LINERS)
def test_mean_equals_its_numpy_one_liner(name, weights):
    expected = ONE_LINERS[name](STACK, weights or [1.0] * 3)
    np.testing.assert_allclose(mean(name, STACK, weights, 3.0), expected, rtol=1e-12)


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5])
def test_median_of_equal_weights_is_numpy_s(parts):
    stack = RNG.uniform(size=(parts, 7, K))
    np.testing.assert_allclose(mean("median", stack), np.median(stack, axis=0), rtol=1e-15)


def test_weighted_median_equals_the_median_of_repeated_parts():
    repeated = STACK[[0, 1, 1, 2, 2, 2]]
    np.testing.assert_allclose(
        mean("median", STACK, [1, 2, 3]), np.median(repeated, axis=0), rtol=1e-15
    )


def test_every_mean_of_the_spec_has_a_function():
    assert set(MEANS) == set(spec.MEANS)


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", [m for m in spec.MEANS if m not in spec.ROW_DEPENDENT_MEANS])
def test_a_missing_part_counts_as_if_it_had_never_been_there(name, data):
    there = data.draw(st.lists(st.booleans(), min_size=3, max_size=3))
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=3, max_size=3))
    stack = STACK.copy()
    stack[np.flatnonzero(~np.array(there)), 2, 1] = np.nan  # one NaN makes the row missing
    out = mean(name, stack, weights, 2.0)
    kept = [i for i in range(3) if there[i] and weights[i] > 0]
    if not kept:
        assert np.isnan(out[2]).all()
    else:
        alone = mean(name, STACK[kept][:, 2:3], [weights[i] for i in kept], 2.0)
        np.testing.assert_allclose(out[2], alone[0], rtol=1e-12)
    assert np.isfinite(out[[0, 1, 3, 4, 5]]).all() == (sum(weights) > 0)


def test_an_exact_zero_does_not_wipe_out_the_geometric_mean():
    stack = np.array([[[0.0, 0.0, 0.5, 0.5]], [[0.9, 0.1, 0.5, 0.5]]])
    out = mean("geometric", stack)[0]
    assert out[0] > out[1] > 0 and out[2] == 0.5


def test_logit_mean_survives_exact_zero_and_one():
    out = mean("logit", np.array([[[0.0, 1.0, 0.5, 0.2]], [[0.5, 0.5, 0.5, 0.2]]]))[0]
    assert np.isfinite(out).all() and out[0] < out[3] < out[2] < out[1]


@pytest.mark.fault(
    row=85,
    injection="power means of 1e-9 to 1 with exponents from -400 to 400, one part missing",
    outcome="a number between the smallest and the largest part, never NaN or 0",
)
@pytest.mark.parametrize("power", [-400.0, -11.0, -1.0, 0.5, 50.0, 400.0])
def test_a_power_mean_stays_between_its_parts(power: float) -> None:
    stack = np.array([[[1e-9, 0.2, 1.0, 0.3]], [[1e-8, 0.4, 1e-9, 0.3]], [[np.nan] * K]])
    out = mean("power", stack, [1.0, 1.0, 2.0], power)[0]
    low, high = stack[:2].min(axis=0)[0], stack[:2].max(axis=0)[0]
    assert (out >= low * (1 - 1e-12)).all() and (out <= high * (1 + 1e-12)).all()
    with np.errstate(over="ignore", under="ignore"):
        plain = np.mean(stack[:2, 0] ** power, axis=0) ** (1 / power)
    fits = np.isfinite(plain) & (plain > 0)
    np.testing.assert_allclose(out[fits], plain[fits], rtol=1e-9)


def test_vote_is_the_majority_and_ties_go_to_the_better_mean_probability():
    a, b, c = [0.9, 0.1, 0.0, 0.0], [0.2, 0.6, 0.1, 0.1], [0.3, 0.4, 0.2, 0.1]
    assert mean("vote", np.array([[a], [b], [c]]))[0].argmax() == 1  # two votes beat one confident one
    tie = mean("vote", np.array([[a], [b]]))[0]
    assert tie.argmax() == 0 and tie[1] > tie[2]  # one vote each: mean 0.55 against 0.35
    assert mean("vote", np.array([[a], [b]]), [1, 1.01])[0].argmax() == 1
    # equals: the lowest class number
    assert mean("vote", np.array([[[0.5, 0.5, 0, 0]]]))[0].argmax() == 0


def test_ranks_share_ties_and_skip_missing_rows():
    part = np.array([[0.1] * K, [0.5] * K, [0.5] * K, [np.nan] * K])
    np.testing.assert_allclose(mean("rank", part[None])[:3, 0], [1 / 3, 2.5 / 3, 2.5 / 3])


def test_a_constant_class_keeps_its_value_under_minmax():
    part = np.array([[0.2, 0.3, 0.4, 0.5], [0.6, 0.3, 0.2, 0.5]])
    np.testing.assert_allclose(mean("minmax", part[None]), [[0, 0.3, 1, 0.5], [1, 0.3, 0, 0.5]])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: mean("geomtric", STACK), "geometric"),
        (lambda: mean("max", STACK, [1.0]), "1 weights for 3"),
        (lambda: mean("max", STACK, [1.0, -1.0, 1.0]), "negative"),
    ],
)
def test_wrong_means_are_named(call, text):
    with pytest.raises(SpecError, match=text):
        call()


def test_certain_probabilities_count_as_a_quadrillionth_from_certain_in_a_mean_of_logits() -> None:
    stack = np.array([[[0.0, 1.0]], [[0.5, 0.5]]])
    least = 1e-15**0.5  # the odds of half the logit of 1e-15
    found = mean("logit", stack)[0]
    np.testing.assert_allclose(found[0], least / (1 + least), rtol=1e-3)
    np.testing.assert_allclose(1 - found[1], least / (1 + least), rtol=1e-1)
