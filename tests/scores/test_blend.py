"""The board, and the ensemble's scores with everything that may be missing."""
from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel import spec
from kernel.inference.member import sigmoid
from kernel.scores import blend
from kernel.scores.blend import Board
from kernel.scores.means import mean, present

K = 4
RNG = np.random.default_rng(5)
STACK = RNG.uniform(0.01, 0.99, (3, 6, K))


def member(name, weight=1.0, folds=(0,), **more):
    return spec.Member(name=name, family="simple_cnn", frontend="mel", weight=weight, folds=folds, **more)


def ensemble(members, stackers=(), **more):
    return spec.Ensemble(
        name="e", classes=tuple("abcd"), members=tuple(members), stackers=tuple(stackers), **more
    )


def board_of(scores):
    board = Board(*next(iter(scores.values())).shape)
    for net_id, values in scores.items():
        board.load(net_id, values)
    return board


def test_board_keeps_what_was_added_and_nothing_else():
    board = Board(3, K)
    board.add("m.0", np.array([2, 0]), np.array([[0.1] * K, [0.2] * K]))
    assert board.covered("m.0").tolist() == [True, False, True] and board.get("m.0")[0, 0] == np.float32(0.2)
    assert np.isnan(board.get("other.0")).all() and board.get("m.0").dtype == np.float32
    with pytest.raises(ValueError):
        board.add("m.0", np.array([0]), np.zeros((1, K + 1)))
    with pytest.raises(ValueError):
        board.load("m.0", np.zeros((2, K)))
    with pytest.raises(ValueError):
        board.get("m.0")[0] = 1.0  # read-only: scores change through add alone


@pytest.mark.fault(
    row=85,
    injection="logits of 17 to 33, whose probability is 1 in f32, in a mean of logits over folds and members",
    outcome="the sigmoid of the mean logit, as if no probability had been between",
)
@pytest.mark.parametrize("fold_mean", ["logit", "geometric"])
def test_a_sure_net_does_not_spoil_a_mean_of_logits(fold_mean: str) -> None:
    logits = {"a": np.array([17.0, 18.0, 25.0, 33.0]), "b": np.array([-21.0, -22.0, -29.0, -34.0])}
    whole = ensemble([member(name, folds=(0, 1), fold_mean=fold_mean) for name in logits], mean="logit")
    board = blend.open_board(whole, 1)
    for name, row in logits.items():
        for fold in range(2):
            board.add(f"{name}.{fold}", np.array([0]), sigmoid(row)[None])
    values = blend.blend(whole, board, np.full(K, 0.25)).values
    np.testing.assert_allclose(values[0], sigmoid((logits["a"] + logits["b"]) / 2), rtol=0.02)
    assert blend.open_board(ensemble([member("a")]), 1).get("a.0").dtype == np.float32  # memory as it was


@pytest.mark.fault(
    row=87,
    injection="a blend of 4,000 rows x 264 classes x 3 nets, by means that compare rows and by others",
    outcome="beside its own table, memory for a few blocks only; the same bytes as in one piece",
)
@pytest.mark.parametrize("name", ["geometric", "median", "rank", "minmax"])
def test_a_blend_takes_little_more_memory_than_its_table(name: str) -> None:
    rows, classes = 4000, 264
    members = [member(letter) for letter in "abc"]
    whole = replace(ensemble(members, mean=name), classes=tuple(map(str, range(classes))))
    scores = {f"{letter}.0": RNG.random((rows, classes), np.float32) for letter in "abc"}
    scores["a.0"][::7, 3] = np.nan
    scores["b.0"][5] = np.nan
    board, prior = board_of(scores), np.full(classes, 1 / classes)
    tracemalloc.start()
    done = blend.blend(whole, board, prior)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < done.values.nbytes + 32e6
    pieces = np.stack([np.where(present(part)[:, None], part, np.nan) for part in scores.values()])
    np.testing.assert_array_equal(done.values, np.clip(mean(name, pieces, [1.0] * 3), 1e-30, 1.0))


def test_argus_levels_equal_a_hand_computation():
    rng = np.random.default_rng(0)
    members = [member(f"m{i}", folds=tuple(range(5))) for i in range(7)]
    stackers = [
        spec.Stacker(
            name=f"s{i}", family="fcnet", inputs=tuple(f"m{j}" for j in range(7)), folds=tuple(range(5))
        )
        for i in range(3)
    ]
    scores = {
        f"{p.name}.{f}": rng.uniform(1e-4, 1, (9, K)).astype(np.float32)
        for p in [*members, *stackers]
        for f in p.folds
    }
    board = board_of(scores)

    def folds(name):
        return np.exp(np.mean([np.log(scores[f"{name}.{f}"].astype(float)) for f in range(5)], axis=0))

    rows, features = blend.stacker_features(stackers[0], ensemble(members, stackers), board)
    assert rows.tolist() == list(range(9)) and features.dtype == np.float32
    np.testing.assert_allclose(
        features, np.concatenate([folds(f"m{j}") for j in range(7)], axis=1), rtol=1e-6
    )
    expected = np.exp(np.mean([np.log(folds(p.name)) for p in [*members, *stackers]], axis=0))
    done = blend.blend(ensemble(members, stackers), board, np.full(K, 0.25))
    np.testing.assert_allclose(done.values, expected, rtol=1e-12)
    assert done.full.all() and not done.prior_rows.any()


def test_rows_take_what_is_there_and_only_rows_without_anything_the_prior():
    a, b = RNG.uniform(0.1, 0.9, (2, 4, K)).astype(np.float32)
    a[2:] = np.nan
    b[[1, 3]] = np.nan
    prior = np.array([0.4, 0.3, 0.2, 0.0])
    done = blend.blend(ensemble([member("a", 3.0), member("b")]), board_of({"a.0": a, "b.0": b}), prior)
    np.testing.assert_allclose(done.values[0], np.exp((3 * np.log(a[0]) + np.log(b[0])) / 4), rtol=1e-6)
    np.testing.assert_allclose(done.values[1], a[1])
    np.testing.assert_allclose(done.values[2], b[2])
    np.testing.assert_allclose(done.values[3], [0.4, 0.3, 0.2, 1e-30])
    assert done.full.tolist() == [True, False, False, False]
    assert done.prior_rows.tolist() == [False, False, False, True]


def test_members_of_weight_zero_speak_equally_until_the_stacker_does():
    a, b, s = RNG.uniform(0.1, 0.9, (3, 2, K)).astype(np.float32)
    s[1] = np.nan
    stacker = spec.Stacker(name="s", family="local", inputs=("a", "b"))
    whole = ensemble([member("a", 0.0), member("b", 0.0)], [stacker], mean="arithmetic")
    done = blend.blend(whole, board_of({"a.0": a, "b.0": b, "s.0": s}), np.full(K, 0.1))
    np.testing.assert_allclose(done.values, [s[0], (a[1].astype(float) + b[1]) / 2], rtol=1e-6)
    assert done.full.tolist() == [True, False] and not done.prior_rows.any()


def test_means_that_compare_rows_take_complete_members_only():
    a, b = RNG.uniform(0.1, 0.9, (2, 4, K)).astype(np.float32)
    half = b.copy()
    half[2:] = np.nan
    whole = ensemble([member("a"), member("b")], mean="minmax", row_independent=False)
    prior = np.full(K, 0.1)
    both = blend.blend(whole, board_of({"a.0": a, "b.0": b}), prior).values
    alone = blend.blend(whole, board_of({"a.0": a}), prior).values
    assert not np.allclose(both, alone)
    np.testing.assert_array_equal(blend.blend(whole, board_of({"a.0": a, "b.0": half}), prior).values, alone)
    told = blend.blend(whole, board_of({"a.0": a, "b.0": half}), prior, finished={"a.0", "b.0"}).values
    # The engine knows that the missing rows of b will never come: the others take both
    assert not np.allclose(told[:2], alone[:2])
    np.testing.assert_array_equal(told[2:], alone[2:])
    first = blend.blend(whole, board_of({"b.0": half}), prior)
    # Nothing complete yet: better than the prior
    assert first.prior_rows.tolist() == [False, False, True, True]


def test_fold_weights_are_used():
    part = member("m", folds=(0, 1), fold_weights=(3.0, 1.0), fold_mean="arithmetic")
    x, y, _ = STACK.astype(np.float32)
    np.testing.assert_allclose(
        blend.merge_folds(part, board_of({"m.0": x, "m.1": y})), (3 * x.astype(float) + y) / 4
    )


def test_stacker_features_per_class_end_with_the_weighted_average_and_skip_incomplete_rows():
    a, b = RNG.uniform(0.1, 0.9, (2, 5, K)).astype(np.float32)
    b[3] = np.nan
    stacker = spec.Stacker(
        name="s", family="local", inputs=("b", "a"), features="per_class", average_weights=(2.0, 1.0)
    )
    rows, x = blend.stacker_features(
        stacker, ensemble([member("a"), member("b")], [stacker]), board_of({"a.0": a, "b.0": b})
    )
    assert rows.tolist() == [0, 1, 2, 4] and x.shape == (4, K, 3)
    np.testing.assert_allclose(x, np.stack([b, a, (2 * b + a) / 3], axis=-1)[rows], rtol=1e-6)


def test_an_incomplete_fold_keeps_a_row_from_the_stacker():
    a = RNG.uniform(0.1, 0.9, (2, K)).astype(np.float32)
    stacker = spec.Stacker(name="s", family="fcnet", inputs=("a",))
    whole = ensemble([member("a", folds=(0, 1))], [stacker])
    rows, x = blend.stacker_features(stacker, whole, board_of({"a.0": a}))
    assert len(rows) == 0 and x.shape == (0, K)


def test_a_fold_that_was_given_up_leaves_the_row_to_the_others():
    a, b = RNG.uniform(0.1, 0.9, (2, 3, K)).astype(np.float32)
    b[[0, 1]] = np.nan
    stacker = spec.Stacker(name="s", family="fcnet", inputs=("a",))
    whole = ensemble([member("a", 0.0, folds=(0, 1))], [stacker])
    board = board_of({"a.0": a, "a.1": b, "s.0": a})
    board.give_up("a.1", [0])
    rows, x = blend.stacker_features(stacker, whole, board)
    assert rows.tolist() == [0, 2]  # row 1 may still come
    np.testing.assert_allclose(x[0], a[0], rtol=1e-6)
    assert blend.count_lacking(stacker, whole, board, [0, 2]) == {"a.1": 1}
    assert blend.blend(whole, board, np.full(K, 0.1)).full.tolist() == [False, False, True]
    gone = board_of({"a.0": b, "a.1": b})
    gone.give_up("a.0")
    gone.give_up("a.1")
    assert blend.stacker_rows(stacker, whole, gone).tolist() == [2]  # no fold at all, nothing to read


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(spec.MEANS), st.booleans())
def test_a_blend_is_always_finite_and_in_range(seed, name, row_independent):
    rng = np.random.default_rng(seed)
    names = ["a", "b", "c"]
    scores = {f"{n}.{f}": rng.choice([0.0, 1.0, 1e-38, 0.3, np.nan, rng.random()], (6, K)).astype(np.float32)
              for n in names for f in range(2)}
    members = [member(n, float(rng.integers(0, 3)), folds=(0, 1), fold_mean=name) for n in names]
    whole = ensemble(members, mean=name, row_independent=row_independent)
    done = blend.blend(whole, board_of(scores), rng.choice([0.0, 0.5], K))
    assert np.isfinite(done.values).all() and (done.values >= 1e-30).all() and (done.values <= 1).all()
    assert not (done.full & done.prior_rows).any()


@pytest.mark.parametrize(
    ("means", "tables"), [(("geometric", "rank"), 2), (("vote", "vote"), 2), (("vote", "rank"), 10)]
)
def test_a_blend_that_cannot_go_piece_by_piece_is_reserved_whole(means: tuple[str, str], tables: int) -> None:
    member = spec.Member(name="a", family="simple_cnn", frontend="f", fold_mean=means[1])
    members = (member, replace(member, name="b"))
    whole = spec.Ensemble(name="e", classes=("x", "y"), members=members, frontends={"f": {}}, mean=means[0])
    assert blend.count_tables(whole) == tables


def test_a_row_is_whole_without_members_of_weight_zero_and_not_without_the_others() -> None:
    scores = RNG.uniform(0.1, 0.9, (2, K)).astype(np.float32)
    gone = scores.copy()
    gone[1] = np.nan
    whole = ensemble([member("a"), member("b", 0.0)])
    prior = np.full(K, 0.1)
    assert blend.blend(whole, board_of({"a.0": scores, "b.0": gone}), prior).full.tolist() == [True, True]
    assert blend.blend(whole, board_of({"a.0": gone, "b.0": scores}), prior).full.tolist() == [True, False]
