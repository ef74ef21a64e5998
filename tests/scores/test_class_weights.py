"""Members that do not know every class, and weights by class: the blend against a loop over its cells."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel import spec
from kernel.scores import blend
from kernel.scores.class_weights import known_classes, part_weights, unknown_classes
from kernel.scores.levels import open_levels
from kernel.scores.means import mean
from kernel.scores.smoothing import smooth
from kernel.sound.decode import Clip
from kernel.sound.rows import Row

K = 4
PRIOR = np.array([0.4, 0.3, 0.2, 0.1])
Line = dict[str, Any]


def map_of(*known: int) -> spec.ClassMap:
    """A map of a net with 9 outputs that knows these classes, each by the output of the same number."""
    return spec.ClassMap(outputs=9, takes=known, gives=known, weights=(1.0,) * len(known))


def member(name: str, known: tuple[int, ...] | None = None, **more: Any) -> spec.Member:
    own = None if known is None else map_of(*known)
    return spec.Member(name=name, family="simple_cnn", frontend="mel", classes_map=own, **more)


def ensemble(*members: spec.Member, **more: Any) -> spec.Ensemble:
    return spec.check(spec.Ensemble(
        name="e", classes=tuple("abcd"), frontends={"mel": {}}, members=members, **more))


def board_of(whole: spec.Ensemble, scores: dict[str, np.ndarray]) -> blend.Board:
    board = blend.open_board(whole, len(next(iter(scores.values()))))
    for net_id, values in scores.items():
        board.load(net_id, values)
    return board


def of_knowing(name: str, values: list[float], weights: list[float]) -> float:
    """The mean of some values by one line of numpy each."""
    v, w = np.array(values, np.float64), np.array(weights)
    if name == "arithmetic":
        return float(np.average(v, weights=w))
    if name == "geometric":
        return float(np.exp(np.average(np.log(np.maximum(v, 1e-30)), weights=w)))
    if name == "logit":
        p = np.clip(v, 1e-15, 1 - 1e-15)
        return float(1 / (1 + np.exp(-np.average(np.log(p / (1 - p)), weights=w))))
    if name == "power":
        return float(np.average(v**2, weights=w) ** 0.5)
    return float({"min": np.min, "max": np.max, "median": np.median}[name](v))


def by_hand(whole: spec.Ensemble, tables: dict[str, np.ndarray]) -> np.ndarray:
    """f64[N, K] of members' tables, cell by cell: only who is there and has a say counts; else the prior."""
    rows = len(next(iter(tables.values())))
    out = np.empty((rows, K))
    for i in range(rows):
        for k in range(K):
            said = []
            for part in whole.members:
                knows = part.classes_map is None or k in part.classes_map.gives
                weight = whole.weights_by[part.name][k] if part.name in whole.weights_by else part.weight
                if np.isnan(tables[part.name][i]).any() or (not knows and part.missing_score is None):
                    continue
                score = tables[part.name][i, k] if knows else part.missing_score
                said.append((float(score), weight))
            heavy = [(v, w) for v, w in said if w > 0] or [(v, 1.0) for v, _ in said]
            values, weights = [v for v, _ in heavy], [w for _, w in heavy]
            out[i, k] = of_knowing(whole.mean, values, weights) if heavy else PRIOR[k]
    return np.clip(out, 1e-30, 1)


KNOWN = st.none() | st.sets(st.integers(0, K - 1), min_size=1).map(lambda s: tuple(sorted(s)))
MISSING = st.sampled_from(["renormalise", "renormalise", "1/234", 0.5])
EACH = ["arithmetic", "geometric", "logit", "power", "min", "max"]


@settings(max_examples=80, deadline=None)
@given(known=st.tuples(KNOWN, KNOWN, KNOWN), missing=st.tuples(MISSING, MISSING, MISSING),
       name=st.sampled_from(EACH), by=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_a_blend_is_the_mean_of_those_who_know_cell_by_cell(
    known: tuple[Any, ...], missing: tuple[Any, ...], name: str, by: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    members = [
        member(f"m{i}", own, weight=float(rng.integers(0, 3)), **({} if own is None else {"missing": number}))
        for i, (own, number) in enumerate(zip(known, missing, strict=True))
    ]
    weights_by = {"m0": tuple(rng.integers(0, 3, K).astype(float)), "m2": (0.5, 0.0, 2.0, 1.0)} if by else {}
    whole = ensemble(*members)
    try:
        whole = spec.check(replace(whole, mean=name, weights_by=weights_by))
    except spec.SpecError as error:  # every member that knows a class has weight 0
        assert by and "has weight 0" in str(error)
        return
    scores = {f"m{i}.0": rng.random((5, K)).astype(np.float32) for i in range(3)}
    for values in scores.values():
        values[rng.random(5) < 0.3] = np.nan
    done = blend.blend(whole, board_of(whole, scores), PRIOR)
    tables = {net_id.partition(".")[0]: values.astype(np.float64) for net_id, values in scores.items()}
    np.testing.assert_allclose(done.values, by_hand(whole, tables), rtol=1e-9, atol=1e-30)
    nothing = np.isnan(np.stack(list(tables.values()))).any(axis=2).all(axis=0)
    assert done.prior_rows.tolist() == nothing.tolist()
    assert not (done.full & done.prior_rows).any()


@settings(max_examples=60, deadline=None)
@given(known=st.tuples(KNOWN, KNOWN, KNOWN), name=st.sampled_from(["rank", "minmax", "median"]),
       seed=st.integers(0, 2**32 - 1))
def test_means_over_rows_and_medians_are_those_of_the_members_that_know_the_class(
    known: tuple[Any, ...], name: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    whole = ensemble(*[member(f"m{i}", own, weight=i + 1.0) for i, own in enumerate(known)],
                     mean=name, row_independent=False)
    scores = {f"m{i}.0": rng.random((6, K)).astype(np.float32) for i in range(3)}
    done = blend.blend(whole, board_of(whole, scores), PRIOR)
    for k in range(K):
        knowing = [i for i, own in enumerate(known) if own is None or k in own]
        if knowing:
            column = np.stack([scores[f"m{i}.0"][:, k:k + 1] for i in knowing])
            wanted = mean(name, column, [i + 1.0 for i in knowing])[:, 0]
        else:
            wanted = np.full(6, PRIOR[k])
        np.testing.assert_allclose(done.values[:, k], np.clip(wanted, 1e-30, 1), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(known=st.tuples(KNOWN, KNOWN, KNOWN), seed=st.integers(0, 2**32 - 1))
def test_a_vote_is_for_the_best_known_class_and_counted_among_those_who_know_it(
    known: tuple[Any, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    whole = ensemble(*[member(f"m{i}", own) for i, own in enumerate(known)], mean="vote")
    scores = {f"m{i}.0": rng.random((5, K)).astype(np.float32) for i in range(3)}
    done = blend.blend(whole, board_of(whole, scores), PRIOR)
    for i in range(5):
        best = [max(own if own is not None else range(K), key=lambda k, j=j: scores[f"m{j}.0"][i, k])
                for j, own in enumerate(known)]
        for k in range(K):
            knowing = [j for j, own in enumerate(known) if own is None or k in own]
            share = float(np.mean([best[j] == k for j in knowing])) if knowing else float(PRIOR[k])
            assert done.values[i, k] == pytest.approx(share, abs=2e-6)


@pytest.mark.parametrize("name", spec.MEANS)
def test_members_that_know_everything_blend_to_the_same_bytes_as_without_maps(name: str) -> None:
    rng = np.random.default_rng(3)
    scores = {f"{letter}.0": rng.random((7, K)).astype(np.float32) for letter in "abc"}
    scores["b.0"][2] = np.nan
    row_independent = name not in spec.ROW_DEPENDENT_MEANS
    more: Line = {"mean": name, "row_independent": row_independent}
    plain = ensemble(member("a", weight=2.0), member("b"), member("c", weight=0.5), **more)
    own = ensemble(member("a", tuple(range(K)), weight=2.0), member("b"), member("c", weight=0.5), **more)
    by = replace(plain, weights_by={"a": (2.0,) * K})
    shapes = [part_weights(whole, whole.parts).shape for whole in (plain, own, by)]
    assert shapes == [(3,), (3,), (3, K)]
    wanted = blend.blend(plain, board_of(plain, scores), PRIOR).values
    for other in (own, by):
        np.testing.assert_array_equal(blend.blend(other, board_of(other, scores), PRIOR).values, wanted)


def test_a_number_counts_as_a_score_where_renormalising_leaves_the_member_out() -> None:
    scores = {"a.0": np.full((2, K), 0.5, np.float32), "b.0": np.full((2, K), 0.9, np.float32)}
    for missing, wanted in (("renormalise", 0.9), ("1/234", (0.9 + 1 / 234) / 2), (0.5, 0.7)):
        whole = ensemble(member("a", (1,), missing=missing), member("b"), mean="arithmetic")
        done = blend.blend(whole, board_of(whole, scores), PRIOR)
        assert done.values[:, 0] == pytest.approx(wanted) and done.values[:, 1] == pytest.approx(0.7)
        assert done.full.all() and done.prior_cells is None


def test_a_constant_column_ranks_in_the_middle_as_in_published_systems() -> None:
    """(N + 1) / 2N, where a net writes one number. Source: FlorentinGe/Birdclef2026-2ndplace."""
    whole = ensemble(member("a", (1,), missing="1/234"), mean="rank", row_independent=False)
    scores = {"a.0": np.random.default_rng(0).random((5, K)).astype(np.float32)}
    assert blend.blend(whole, board_of(whole, scores), PRIOR).values[:, 0] == pytest.approx(6 / 10)


@pytest.mark.fault(
    row=104,
    injection="the one member that knows a class has not run, or skips the row",
    outcome="the class's prior stands there alone, the row counts as partial; other classes are not touched",
)
def test_until_the_member_that_knows_a_class_has_run_the_prior_stands_there_alone() -> None:
    whole = ensemble(member("a", (2, 3)), member("b", (0, 1, 2)), mean="arithmetic")
    scores = np.full((2, K), 0.8, np.float32)
    board = board_of(whole, {"b.0": scores})
    first = blend.blend(whole, board, PRIOR)
    np.testing.assert_allclose(first.values[0], [0.8, 0.8, 0.8, PRIOR[3]], rtol=1e-6)
    assert not first.full.any() and not first.prior_rows.any()  # partial rows: that is what the report counts
    assert first.prior_cells is not None and first.prior_cells.tolist() == [[False, False, False, True]] * 2
    board.add("a.0", np.array([0]), np.full((1, K), 0.2))
    second = blend.blend(whole, board, PRIOR)
    np.testing.assert_allclose(second.values[0], [0.8, 0.8, 0.5, 0.2], rtol=1e-6)
    assert second.full.tolist() == [True, False]
    assert second.prior_cells is not None and second.prior_cells.sum() == 1 and second.prior_cells[1, 3]


@pytest.mark.fault(
    row=104,
    injection="such a class in one of three windows, under smoothing",
    outcome="the prior goes into no neighbour",
)
def test_the_prior_of_one_class_is_not_smoothed_into_its_neighbours() -> None:
    values = np.array([[0.2, 0.4], [0.6, 0.4], [0.4, 0.4]])
    cells = np.array([[False, False], [True, False], [False, False]])
    out = smooth(values, [[0, 1, 2]], (1.0, 2.0, 1.0), cells)
    np.testing.assert_allclose(out, [[0.2, 0.4], [0.6, 0.4], [0.4, 0.4]])
    plain = smooth(values, [[0, 1, 2]], (1.0, 2.0, 1.0))
    np.testing.assert_array_equal(smooth(values, [[0, 1, 2]], (1.0, 2.0, 1.0), np.zeros((3, 2), bool)), plain)
    lost = cells | np.array([True, False, False])[:, None]
    whole_row = smooth(values, [[0, 1, 2]], (1.0, 2.0, 1.0), lost)
    np.testing.assert_allclose(whole_row, [[0.2, 0.4], [0.6, 0.4], [0.4, 0.4]])


@pytest.mark.parametrize("step", [
    {"kind": "smooth", "weights": (1.0, 2.0, 1.0)}, {"kind": "file_top", "top": 2},
    {"kind": "file_logit_mix"}, {"kind": "smooth_events"}, {"kind": "smooth_adaptive"},
    {"kind": "smooth_local_max"}, {"kind": "rank"},
    {"kind": "damp_rare", "groups": ("all",)},
])
def test_the_prior_of_one_class_goes_through_no_step(step: dict[str, object]) -> None:
    rows = [Row(id=str(i), clip=Clip(id="clip"), start=i) for i in range(4)]
    whole = ensemble(member("a", (0, 1, 2)), member("b", (3,)), class_groups={"all": tuple("abcd")},
                     output=spec.Output(steps=(step,)))
    a = np.linspace(0.1, 0.7, 4 * K).reshape(4, K)
    b = np.where(np.arange(4)[:, None] == 2, np.nan, 1.0 - a)  # class d has no score in row 2

    def fault(where: str, error: Exception) -> None:
        raise AssertionError(f"{where}: {error}")

    levels = open_levels(whole, rows, fault)
    done = [levels.blend(board_of(whole, {"a.0": a, "b.0": b}), np.full(K, prior), {"a.0", "b.0"}).values
            for prior in (0.001, 0.999)]
    assert done[0][2, 3] == 0.001 and done[1][2, 3] == 0.999
    rest = np.arange(4 * K) != 2 * K + 3
    np.testing.assert_array_equal(done[0].ravel()[rest], done[1].ravel()[rest])


def test_a_class_that_nobody_knows_holds_the_prior_and_is_named() -> None:
    whole = ensemble(member("a", (0, 1)), member("b", (1, 2)))
    assert unknown_classes(whole) == ("d",)
    assert unknown_classes(ensemble(member("a", (0,)), member("b", (1,), missing=0.5))) == ()
    board = board_of(whole, {f"{name}.0": np.full((2, K), 0.5, np.float32) for name in "ab"})
    done = blend.blend(whole, board, PRIOR)
    np.testing.assert_allclose(done.values[0], [0.5, 0.5, 0.5, PRIOR[3]], rtol=1e-6)
    assert done.full.all()  # no net is missing


def test_a_row_that_only_members_of_weight_zero_have_is_theirs_class_by_class() -> None:
    by = {"a": (0.0, 0.0, 1.0, 1.0), "b": (1.0, 1.0, 0.0, 0.0)}
    whole = ensemble(member("a"), member("b"), mean="arithmetic", weights_by=by)
    a, b = np.full((1, K), 0.2, np.float32), np.full((1, K), 0.8, np.float32)
    both = blend.blend(whole, board_of(whole, {"a.0": a, "b.0": b}), PRIOR)
    np.testing.assert_allclose(both.values[0], [0.8, 0.8, 0.2, 0.2], rtol=1e-6)
    alone = blend.blend(whole, board_of(whole, {"a.0": a}), PRIOR)
    np.testing.assert_allclose(alone.values[0], [0.2] * K, rtol=1e-6)
    assert both.full.all() and not alone.full.any() and not alone.prior_rows.any()


@pytest.mark.parametrize("fold_mean", spec.MEANS)
def test_folds_merge_first_and_the_number_is_written_after_them(fold_mean: str) -> None:
    part = member("a", (1, 3), folds=(0, 1), fold_mean=fold_mean, missing="1/234")
    whole = ensemble(part, row_independent=fold_mean not in spec.ROW_DEPENDENT_MEANS)
    rng = np.random.default_rng(1)
    scores = {f"a.{fold}": rng.random((4, K)).astype(np.float32) for fold in range(2)}
    for values in scores.values():
        values[:, [0, 2]] = 0.0  # what the net's own map leaves there
    scores["a.1"][3] = np.nan
    scores["a.0"][2] = np.nan
    scores["a.1"][2] = np.nan
    merged = blend.merge_folds(part, board_of(whole, scores))
    assert (merged[[0, 1, 3]][:, [0, 2]] == 1 / 234).all() and np.isnan(merged[2]).all()
    np.testing.assert_array_equal(merged[:, [1, 3]], blend.merge_folds(
        replace(part, classes_map=None, missing="renormalise"), board_of(whole, scores))[:, [1, 3]])


def test_a_stacker_reads_the_number_where_its_input_does_not_know_a_class() -> None:
    stacker = spec.Stacker(name="s", family="fcnet", inputs=("a", "b"))
    whole = ensemble(member("a", (0, 1), missing=0.25), member("b"), stackers=(stacker,))
    scores = {f"{name}.0": np.full((3, K), 0.75, np.float32) for name in "ab"}
    rows, features = blend.stacker_features(stacker, whole, board_of(whole, scores))
    assert rows.tolist() == [0, 1, 2]
    assert features[0].tolist() == [0.75, 0.75, 0.25, 0.25, 0.75, 0.75, 0.75, 0.75]


def test_a_stacker_knows_every_class() -> None:
    stacker = spec.Stacker(name="s", family="fcnet", inputs=("b",))
    whole = ensemble(member("a", (0,)), member("b"), stackers=(stacker,))
    assert known_classes(stacker, K).all()
    assert known_classes(whole.members[0], K).tolist() == [True] + [False] * 3
    assert part_weights(whole, whole.parts)[:, 1].tolist() == [0.0, 1.0, 1.0]


def test_memory_is_reserved_for_what_depends_on_the_class() -> None:
    assert blend.count_tables(ensemble(member("a", (0,)), member("b"))) == 3
    both = ensemble(member("a", (0,)), member("b", fold_mean="vote"), mean="rank", row_independent=False)
    assert blend.count_tables(both) == 14
