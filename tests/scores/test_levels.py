"""Steps on members, groups and the finished table, with whatever may be missing; what scopes make of it."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel import spec
from kernel.errors import SpecError
from kernel.scores import blend, levels
from kernel.scores.blend import Board
from kernel.scores.means import mean
from kernel.scores.scaling import ranks
from kernel.scores.smoothing import smooth
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from kernel.spec import Group, Output

K = 4
CLASSES = tuple("abcd")
PRIOR = np.full(K, 0.25)
TOP = {"kind": "file_top", "top": 2, "power": 0.4}
RANK = {"kind": "rank"}


def window(clip: str, start: int | None) -> Row:
    return Row(id=f"{clip}_{start}", clip=Clip(id=clip), start=start)


ROWS = [window(clip, start) for clip in ("r0", "r1") for start in range(6)]
RNG = np.random.default_rng(7)
SCORES = {f"{name}.0": RNG.uniform(0.01, 0.99, (len(ROWS), K)) for name in ("a", "b", "c")}


def member(name: str, **more: object) -> spec.Member:
    return spec.Member(name=name, family="simple_cnn", frontend="mel", **more)  # type: ignore[arg-type]


def ensemble(*members: spec.Member, **more: object) -> spec.Ensemble:
    return spec.Ensemble(name="e", classes=CLASSES, members=members, **more)  # type: ignore[arg-type]


def board_of(**gaps: list[int]) -> Board:
    """SCORES, with NaN in these rows of a member."""
    board = Board(len(ROWS), K, np.float64)
    for net_id, values in SCORES.items():
        held = values.copy()
        held[gaps.get(net_id[0], [])] = np.nan
        board.load(net_id, held)
    return board


def opened(whole: spec.Ensemble, rows: list[Row] | None = None) -> levels.Levels:
    def fault(where: str, error: Exception) -> None:
        raise AssertionError(f"{where}: {error}")

    return levels.open_levels(spec.check(replace(whole, frontends={"mel": {}})), rows or ROWS, fault)


def top_2(x: np.ndarray) -> np.ndarray:
    """TOP by hand, on two recordings of six rows."""
    files = x.reshape(2, 6, K)
    return (files * np.sort(files, axis=1)[:, -2:].mean(axis=1, keepdims=True) ** 0.4).reshape(12, K)


def test_smoothing_mixes_neighbours_of_one_recording_only() -> None:
    values = np.arange(5.0)[:, None] * np.ones((1, K))
    out = smooth(values, [[0, 1, 2], [3], [4]], [1.0, 2.0, 1.0])
    np.testing.assert_allclose(out[:, 0], [(2 * 0 + 1) / 3, (0 + 2 * 1 + 2) / 4, (1 + 2 * 2) / 3, 3, 4])


@pytest.mark.fault(
    row=85,
    injection="a window without any prediction between two predicted ones, under smoothing",
    outcome="it keeps the prior, which goes into no neighbour",
)
def test_smoothing_leaves_prior_rows_out() -> None:
    rows = [window("a", start) for start in (0, 10, 20, 30)]
    scores = np.array([1e-6, np.nan, 1e-6, 3e-6])[:, None] * np.ones((1, K))
    board = Board(4, K, np.float64)
    board.load("a.0", scores)
    whole = opened(ensemble(member("a"), output=Output(smoothing=(1.0, 2.0, 1.0))), rows)
    out = whole.blend(board, np.full(K, 0.0056)).values
    np.testing.assert_allclose(out[:, 0], [1e-6, 0.0056, 5e-6 / 3, 7e-6 / 3])


def test_rows_of_a_recording_are_found_wherever_they_stand_and_put_in_time_order() -> None:
    rows = [window(*at) for at in (("b", 10), ("a", 20), ("b", 0), ("a", 0), ("a", 10), ("c", None))]
    assert sorted(levels.recordings(rows)) == [[2, 0], [3, 4, 1], [5]]


def test_smoothing_of_the_output_is_the_last_of_its_steps() -> None:
    whole = ensemble(member("a"), output=Output(smoothing=(1.0, 2.0, 1.0), steps=(TOP,)))
    out = opened(whole).blend(board_of(), PRIOR).values
    table = top_2(SCORES["a.0"])
    np.testing.assert_array_equal(out, smooth(table, levels.recordings(ROWS), (1.0, 2.0, 1.0)))
    plain = opened(ensemble(member("a"))).blend(board_of(), PRIOR).values
    np.testing.assert_array_equal(plain, blend.blend(ensemble(member("a")), board_of(), PRIOR).values)


def test_steps_run_on_a_member_a_group_and_the_output_in_that_order() -> None:
    whole = ensemble(
        member("a", steps=(TOP,)), member("b"), member("c", weight=3.0),
        groups=(Group(name="pair", members=("a", "b"), mean="arithmetic", weight=2.0,
                      steps=({"kind": "power", "power": 2.0},)),),
        mean="arithmetic", output=Output(steps=({"kind": "cut", "low": 0.2},)),
    )
    done = opened(whole).blend(board_of(), PRIOR)
    pair = ((top_2(SCORES["a.0"]) + SCORES["b.0"]) / 2) ** 2
    np.testing.assert_allclose(done.values, np.maximum(0.4 * pair + 0.6 * SCORES["c.0"], 0.2))
    assert done.full.all() and not done.prior_rows.any()


def test_a_group_may_hold_a_group() -> None:
    whole = ensemble(
        member("a"), member("b"), member("c", weight=3.0), mean="arithmetic",
        groups=(Group(name="in", members=("a", "b"), mean="max"),
                Group(name="out", members=("in", "c"), mean="arithmetic")),
    )
    wanted = 0.25 * np.maximum(SCORES["a.0"], SCORES["b.0"]) + 0.75 * SCORES["c.0"]
    np.testing.assert_allclose(opened(whole).blend(board_of(), PRIOR).values, wanted)


def test_the_order_of_a_rank_and_a_scaling_matters() -> None:
    after = ensemble(member("a"), member("b"), mean="rank", output=Output(steps=(TOP,)))
    before = ensemble(member("a", steps=(TOP,)), member("b", steps=(TOP,)), mean="rank")
    done = [opened(whole).blend(board_of(), PRIOR).values for whole in (after, before)]
    tables = [top_2(SCORES[name]) for name in ("a.0", "b.0")]
    np.testing.assert_allclose(done[1], mean("rank", np.stack(tables)))
    np.testing.assert_allclose(done[0], top_2(mean("rank", np.stack([SCORES["a.0"], SCORES["b.0"]]))))
    assert np.abs(done[0] - done[1]).max() > 0.1


def test_rows_are_independent_unless_a_mean_or_a_step_compares_the_table() -> None:
    a, b = member("a"), member("b")
    assert levels.is_row_independent(ensemble(a, b, output=Output(steps=(TOP,))))
    for compared in (
        ensemble(a, b, mean="rank"),
        ensemble(replace(a, fold_mean="minmax"), b),
        ensemble(a, b, groups=(Group(name="g", members=("a",), mean="rank"),)),
        ensemble(replace(a, steps=(RANK,)), b),
        ensemble(a, b, output=Output(steps=({"file": "my_post.py:fn", "scope": "table"},))),
        ensemble(a, b, row_independent=False),
    ):
        assert not levels.is_row_independent(compared)
    told = levels.scopes(ensemble(replace(a, steps=(TOP, RANK)), b, frontends={"mel": {"scope": "batch"}}))
    assert told == {"frontends.mel": "recording", "mean": "row", "a.fold_mean": "row", "b.fold_mean": "row",
                    "a.steps[0]": "recording", "a.steps[1]": "table"}


def test_a_recording_with_a_missing_row_is_marked_and_the_others_are_not() -> None:
    whole = opened(ensemble(member("a", steps=(TOP,)), member("b"), mean="arithmetic"))
    done = whole.blend(board_of(a=[2]), PRIOR)
    assert done.full.tolist() == [False] * 6 + [True] * 6 and not done.prior_rows.any()
    here = np.delete(SCORES["a.0"][:6], 2, axis=0)
    scaled = here * np.sort(here, axis=0)[-2:].mean(axis=0) ** 0.4
    np.testing.assert_allclose(np.delete(done.values[:6], 2, axis=0),
                               (scaled + np.delete(SCORES["b.0"][:6], 2, axis=0)) / 2)
    np.testing.assert_allclose(done.values[2], SCORES["b.0"][2])
    # A row that no net will ever have leaves its recording as final as it can be
    lost = np.arange(12) == 2
    done = whole.blend(board_of(a=[2], b=[2]), PRIOR, lost=lost)
    assert done.full.tolist() == [row != 2 for row in range(12)] and done.prior_rows.tolist() == lost.tolist()


def test_a_row_that_lacks_one_of_its_members_marks_the_recording_of_its_group() -> None:
    whole = opened(ensemble(member("a"), member("b"), member("c"), mean="arithmetic",
                            groups=(Group(name="g", members=("a", "b"), steps=(TOP,)),)))
    assert whole.blend(board_of(a=[2]), PRIOR).full.tolist() == [False] * 6 + [True] * 6
    smoothed = opened(ensemble(member("a"), member("b"), output=Output(smoothing=(1.0, 2.0, 1.0))))
    assert smoothed.blend(board_of(a=[2]), PRIOR).full.tolist() == [False] * 6 + [True] * 6


def test_a_step_of_the_row_alone_marks_nothing() -> None:
    whole = opened(ensemble(member("a", steps=({"kind": "power", "power": 2.0},)), member("b")))
    assert whole.blend(board_of(a=[2]), PRIOR).full.tolist() == [row != 2 for row in range(12)]


@pytest.mark.fault(
    row=100,
    injection="a member that is half done, under a step that ranks the whole table",
    outcome="only complete members count; while none is, the step waits and its rows are marked",
)
def test_a_step_on_the_table_runs_over_complete_members_only() -> None:
    whole = opened(ensemble(member("a", steps=(RANK,)), member("b", steps=(RANK,)), mean="arithmetic"))
    gaps = [8, 9, 10, 11]
    done = whole.blend(board_of(a=gaps), PRIOR, finished={"b.0"})
    np.testing.assert_allclose(done.values, ranks(SCORES["b.0"]))
    assert done.full.tolist() == [True] * 8 + [False] * 4
    done = whole.blend(board_of(a=gaps, b=gaps), PRIOR, finished=set())
    np.testing.assert_allclose(done.values[:8], (SCORES["a.0"] + SCORES["b.0"])[:8] / 2)
    assert done.prior_rows.tolist() == [False] * 8 + [True] * 4 and not done.full.any()


def test_a_gate_reads_another_members_table_after_its_steps() -> None:
    noise = {"kind": "gate_noise", "gate": "a", "others": ["b"], "above": 0.3, "others_below": 0.5}
    whole = opened(ensemble(member("a", weight=0.0, steps=(TOP,)), member("b"), member("c"), mean="rank",
                            output=Output(steps=(noise,))))
    done = whole.blend(board_of(), PRIOR)
    gate, plain = top_2(SCORES["a.0"]), mean("rank", np.stack([SCORES["b.0"], SCORES["c.0"]]))
    acts = (gate > 0.3) & (SCORES["b.0"] < 0.5)
    np.testing.assert_allclose(done.values, np.where(acts, 0.92 * plain + 0.08 * ranks(gate), plain))
    assert 0 < acts.sum() < acts.size and done.full.all()
    # Without the gate's row the blend stays as it is, and is not final
    done = whole.blend(board_of(a=[3]), PRIOR, finished={"b.0", "c.0", "a.0"})
    np.testing.assert_allclose(done.values[3], plain[3])
    assert not done.full[3]


def test_a_member_of_weight_zero_in_a_group_speaks_where_nothing_else_does() -> None:
    whole = opened(ensemble(member("a", weight=0.0), member("b"), member("c"), mean="arithmetic",
                            groups=(Group(name="g", members=("a", "b")),)))
    done = whole.blend(board_of(b=[0], c=[0]), PRIOR)
    np.testing.assert_allclose(done.values[0], SCORES["a.0"][0])
    assert not done.full[0] and done.full[1:].all()


@pytest.mark.fault(
    row=101,
    injection="a step that raises, or gives what is no score, in the middle of a run",
    outcome="it is left out and named; every row is predicted and marked",
)
@pytest.mark.parametrize("body", ["raise OSError('gone')", "return scores * 3", "return scores[:1]",
                                  "return scores * float('nan')", "import nothing_of_the_kind"])
def test_a_step_that_fails_is_left_out_and_named(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.chdir(str(tmp_path))
    with open("my_post.py", "w", encoding="utf-8") as file:
        file.write(f"def fn(scores, about):\n    {body}\n")
    faults: list[str] = []
    whole = ensemble(member("a"), output=Output(steps=({"file": "my_post.py:fn", "scope": "recording"},)))
    run = levels.open_levels(whole, ROWS, lambda where, error: faults.append(f"{where} {error}"))
    for _ in range(2):  # named once, however often it is published
        done = run.blend(board_of(), PRIOR)
    np.testing.assert_allclose(done.values, SCORES["a.0"])
    assert not done.full.any() and not done.prior_rows.any()
    assert len(faults) == 1 and faults[0].startswith("output.steps[0] ")


STEPS = (
    TOP, RANK, {"kind": "smooth", "weights": [1.0, 2.0, 1.0]}, {"kind": "smooth_adaptive", "ends": "keep"},
    {"kind": "smooth_events"}, {"kind": "file_logit_mix"}, {"kind": "smooth_local_max"},
    {"kind": "softmax_share"}, {"kind": "threshold_remap", "threshold": 0.3},
    {"kind": "gate_sustained", "gate": "a"}, {"kind": "gate_spike", "gate": "a", "others": ["b"]},
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_missing_a_table_is_finite_in_range_and_holds_the_prior_where_nothing_is(
    data: st.DataObject,
) -> None:
    some = st.lists(st.sampled_from(range(12)), max_size=12)
    gaps = {name: data.draw(some, label=name) for name in ("a", "b", "c")}
    drawn = data.draw(st.lists(st.sampled_from(STEPS), max_size=3))
    own = data.draw(st.lists(st.sampled_from(STEPS[:9]), max_size=2))
    whole = ensemble(
        member("a", steps=tuple(own)), member("b"), member("c", weight=0.0),
        output=Output(steps=tuple(drawn)),
        groups=(Group(name="g", members=("b", "c"), mean=data.draw(st.sampled_from(["geometric", "rank"]))),),
    )
    done = opened(whole).blend(board_of(**gaps), np.full(K, 0.123))
    nothing = [all(row in gaps[name] for name in gaps) for row in range(12)]
    assert np.isfinite(done.values).all() and done.values.min() > 0 and done.values.max() <= 1
    assert (done.values[done.prior_rows] == 0.123).all()
    assert all(done.prior_rows[row] for row in range(12) if nothing[row])
    assert not (done.full & done.prior_rows).any()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"output": Output(steps=({"kind": "file_tip"},))}, r"output.steps\[0\].kind: 'file_tip'.*file_top"),
        ({"output": Output(steps=(TOP, {"kind": "power"}))}, r"output.steps\[1\].power: missing"),
        ({"output": Output(steps=({"kind": "group_max", "groups": [["a", "a"]]},))}, "at least two classes"),
        ({"output": Output(steps=({"kind": "site_floor", "sites": {"S1": "a"}},))}, "each with a list"),
        ({"output": Output(steps=("rank",))}, r"output.steps\[0\]: 'rank'; give a table with `kind`"),
        ({"output": Output(steps=({"kind": "rank", "groups": ["Aves"]},))}, "'Aves' is none of class_groups"),
        ({"output": Output(steps=({"kind": "gate_sustained", "gate": "z"},))},
         r"output.steps\[0\]: reads 'z', which is no member or group that stands before"),
        ({"groups": (Group(name="g", members=("z",)),)}, r"groups\[0\].members: 'z' is no member"),
        ({"groups": (Group(name="g", members=("a",)), Group(name="h", members=("a",)))}, "in the group 'g'"),
        ({"groups": (Group(name="a", members=("b",)),)}, "'a' is used twice"),
        ({"groups": (Group(name="g", members=("a",), mean="mead"),)}, r"groups\[0\].mean: 'mead'.*mean"),
        ({"class_groups": {"x": ("a", "e")}}, "class_groups.x: 'e' is no class"),
        ({"class_groups": {"x": ("a",), "y": ("a",)}}, "class_groups.y: 'a' is in 'x' already"),
    ],
)
def test_wrong_steps_and_groups_are_named(change: dict[str, object], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        opened(replace(ensemble(member("a"), member("b")), **change))  # type: ignore[arg-type]


def test_a_gate_of_a_member_stands_behind_the_member_that_it_reads() -> None:
    gate = {"kind": "gate_sustained", "gate": "b"}
    with pytest.raises(SpecError, match=r"members\[0\].steps\[0\]: reads 'b'.*stands before"):
        opened(ensemble(member("a", steps=(gate,)), member("b")))
    assert opened(ensemble(member("b"), member("a", steps=(gate,)))).blend(board_of(), PRIOR).full.all()


@pytest.mark.fault(
    row=82,
    injection="an id that the sample repeats, under steps over recordings and over the table",
    outcome="all its rows equal, no other row changes",
)
def test_a_repeated_id_is_no_neighbour_of_itself() -> None:
    steps = ({"kind": "smooth", "weights": [1.0, 2.0, 1.0]}, {"kind": "smooth_gaussian", "sigma": 1.0}, TOP,
             {"kind": "gate_sustained", "gate": "a", "share": 0.5})
    whole = ensemble(member("a"), member("b"), output=Output(steps=steps))
    plain = opened(whole).blend(board_of(), PRIOR)
    rows = [*ROWS, ROWS[3], ROWS[3]]
    board = Board(len(rows), K, np.float64)
    for net_id in ("a.0", "b.0"):
        board.load(net_id, SCORES[net_id][[*range(len(ROWS)), 3, 3]])
    done = opened(replace(whole, output=Output(steps=steps[:3])), rows).blend(board, PRIOR)
    once = opened(replace(whole, output=Output(steps=steps[:3]))).blend(board_of(), PRIOR)
    np.testing.assert_array_equal(done.values[: len(ROWS)], once.values)
    for values in (done.values, opened(whole, rows).blend(board, PRIOR).values):
        np.testing.assert_array_equal(values[-2:], values[[3, 3]])
    assert done.full.all() and plain.full.all()


@pytest.mark.parametrize(("step", "words"), [
    ({"kind": "smooth_gaussian", "sigma": 1e300}, "sigma: .*at most 50"),
    ({"kind": "smooth_events", "reach": 1 << 40}, "reach at most 200"),
    ({"kind": "gate_sustained", "gate": "a", "reach": 1 << 40}, "reach: 0 to 200"),
    ({"kind": "site_floor", "sites": {"S01": 0.5}}, "each with a list of classes"),
])
def test_a_kernel_without_end_and_a_site_without_a_list_are_refused(
    step: dict[str, object], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        opened(ensemble(member("a"), output=Output(steps=(step,))))
