"""The plan against a fake clock: what starts, what is skipped, what is learnt."""
from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel import spec
from kernel.engine import plan
from kernel.engine.plan import NetCost, Outcome, Speeds, Todo


def net(member, fold=0, seconds=1.0, value=1.0, inputs=()):
    """A net whose step over the 10 rows of these tests takes `seconds`."""
    return NetCost(
        net_id=f"{member}.{fold}",
        member=member,
        a_s=seconds / 10,
        b_s_per_cell=0.0,
        value=value,
        inputs=inputs,
    )


def todo_of(costs, done=()):
    return {c.net_id: Todo(rows=0 if c.net_id in done else 10, cells=0) for c in costs}


def choose(costs, done=(), left_s=1e9, uncovered=0, speeds=None, **more):
    return plan.next_step(
        costs, todo_of(costs, done), speeds or Speeds(), left_s=left_s, uncovered=uncovered, **more
    )


def run(costs, budget_s, true_speed=1.0, row_independent=True, learn=True):
    """(net ids in order, seconds used): a whole run on a clock that only the steps move."""
    done, order, now, speeds, uncovered = set(), [], 0.0, Speeds(), 10
    while True:
        step = choose(costs, done, budget_s - now, uncovered, speeds, row_independent=row_independent)
        if step is None:
            return order, now
        cost = next(c for c in costs if c.net_id == step.net_id)
        expected = plan.expected(cost, Todo(rows=10, cells=0))
        # The engine's per-batch clock cuts a step at the stop mark
        took = min(expected * true_speed, budget_s - now)
        if took < expected * true_speed:
            assert step.kind == "cover"
        if learn:
            speeds = speeds.learn(step.member, expected, expected * true_speed)
        now, uncovered = now + took, 0
        order.append(step.net_id)
        done.add(step.net_id)


def test_forecast_is_linear_in_rows_and_cells_plus_setup_and_loading():
    cost = NetCost(net_id="m.0", member="m", a_s=0.5, b_s_per_cell=0.01)
    todo = Todo(rows=10, cells=1000, loading_s=7.0)
    assert plan.expected(cost, todo) == pytest.approx(5 + 10)
    speeds = Speeds(members={"m": 2.0}, setups={"m": 3.0})
    # Setup and loading are no net's speed
    assert plan.forecast(cost, todo, speeds) == pytest.approx(2 * 15 + 3 + 7)


def test_setup_is_learnt_per_member_and_expected_of_nets_that_were_not_measured_but_not_of_stackers():
    speeds = Speeds().learn("a", 10.0, 10.0, setup_s=4.0).learn("b", 10.0, 10.0, setup_s=2.0)
    assert (speeds.setup("a"), speeds.setup("b"), speeds.setup("c")) == (4.0, 2.0, 3.0) and Speeds().setup(
        "a"
    ) == 0.0
    assert 2.0 < speeds.learn("a", 10.0, 10.0, setup_s=2.0).setup("a") < 4.0
    todo = Todo(rows=10, cells=0.0)
    costs = [
        NetCost(net_id=f"{member}.0", member=member, a_s=1.0, b_s_per_cell=0.0) for member in ("a", "c")
    ]
    stacker = NetCost(net_id="s.0", member="s", a_s=1.0, b_s_per_cell=0.0, inputs=("a",))
    assert [plan.forecast(c, todo, speeds) for c in (*costs, stacker)] == pytest.approx([14.0, 13.0, 10.0])


def test_a_net_whose_setup_does_not_fit_is_not_started():
    """Two nets of 10 s for their rows and 8 s to read: after the first, 15 s would be enough without the
    reading.
    """
    costs = [NetCost(net_id=f"m.{fold}", member="m", a_s=1.0, b_s_per_cell=0.0) for fold in (0, 1)]
    speeds = Speeds().learn("m", 10.0, 10.0, setup_s=8.0)
    todo = {"m.1": Todo(rows=10, cells=0.0)}
    assert plan.next_step(costs, todo, speeds, left_s=15.0, uncovered=0) is None
    assert plan.next_step(costs, todo, Speeds().learn("m", 10.0, 10.0), left_s=15.0, uncovered=0) is not None


def test_the_cheapest_net_comes_first_and_starts_even_if_it_does_not_fit():
    costs = [net("big", seconds=50, value=9), net("small", seconds=5)]
    step = choose(costs, left_s=1.0, uncovered=10)
    assert (step.net_id, step.kind, step.forecast_s) == ("small.0", "cover", 5.0)
    assert choose(costs, left_s=0.0, uncovered=10) is None  # exactly nothing left is nothing left


def test_a_net_that_misses_rows_does_not_end_coverage():
    costs = [net("small", seconds=5), net("big", seconds=50)]
    step = choose(costs, done={"small.0"}, left_s=10, uncovered=3)
    assert (step.net_id, step.kind) == ("big.0", "cover")


def test_while_one_device_covers_the_other_refines():
    costs = [net("a", seconds=1), net("b", seconds=3), net("c", seconds=2)]
    step = choose(costs, uncovered=10, busy={"a.0"})
    assert (step.net_id, step.kind) == ("c.0", "refine")


def test_after_coverage_value_per_second_decides():
    costs = [net("a", seconds=1, value=0.1), net("b", seconds=4, value=2.0), net("c", seconds=2, value=0.8)]
    assert run(costs, 1e9)[0] == ["a.0", "b.0", "c.0"]


def test_first_folds_of_other_members_come_before_further_folds():
    costs = [net(m, fold, seconds) for m, seconds in (("a", 1.0), ("b", 1.4)) for fold in range(3)]
    assert run(costs, 1e9)[0] == ["a.0", "b.0", "a.1", "b.1", "a.2", "b.2"]


def test_a_step_that_does_not_fit_is_skipped_for_the_next_one_that_does():
    costs = [net("a"), net("b", seconds=20, value=100), net("c", seconds=8, value=1)]
    step = choose(costs, done={"a.0"}, left_s=10)
    assert (step.net_id, step.kind) == ("c.0", "refine")
    assert choose(costs, done={"a.0"}, left_s=8 * 1.15).net_id == "c.0"
    assert choose(costs, done={"a.0"}, left_s=8 * 1.15 - 1e-6) is None  # 15 % are kept in hand


def test_stackers_run_once_their_inputs_are_complete():
    costs = [net("a"), net("b"), net("s", seconds=0.1, inputs=("a", "b"))]
    assert choose(costs, done={"a.0"}).net_id == "b.0"
    assert choose(costs, done={"a.0"}, busy={"b.0"}) is None
    step = choose(costs, done={"a.0", "b.0"})
    assert (step.net_id, step.kind) == ("s.0", "stack")


def test_a_stacker_takes_the_rows_it_can_have_when_no_input_fits_any_more():
    costs = [net("a"), net("b", seconds=100), net("s", seconds=0.1, inputs=("a", "b"))]
    assert choose(costs, done={"a.0"}, left_s=5).net_id == "s.0"


def test_a_stacker_never_covers():
    costs = [net("a", seconds=9), net("s", seconds=0.1, inputs=("a",))]
    assert choose(costs, uncovered=10).net_id == "a.0"


def test_complete_members_only_when_rows_are_compared():
    costs = [net("a", f) for f in range(3)] + [net("b", f, 0.9) for f in range(10)]
    assert choose(costs, left_s=5, row_independent=False).member == "a"  # three nets fit, ten do not
    assert choose(costs, left_s=3, row_independent=False) is None
    assert choose(costs, left_s=3, row_independent=True).member == "b"
    assert choose(costs, done={"b.0"}, left_s=10, row_independent=False).member == "a"
    order, _ = run(costs, 1e9, row_independent=False)
    members = [net_id.split(".")[0] for net_id in order]
    assert members == ["b"] + ["a"] * 3 + ["b"] * 9  # coverage first, then one whole member after the other


def test_a_machine_ten_times_slower_than_the_manifest_is_noticed():
    costs = [net(f"m{i}", seconds=10) for i in range(20)]
    order, used = run(costs, 1000, true_speed=10)
    assert 8 <= len(order) <= 10 and used <= 1000
    assert len(run(costs, 1000, true_speed=1)[0]) == 20


def test_speeds_are_learnt_per_member_and_spread_to_the_unmeasured():
    speeds = Speeds().learn("a", 10.0, 40.0)
    assert speeds.factor("a") == speeds.factor("b") == 4.0
    later = speeds.learn("a", 10.0, 20.0).learn("c", 10.0, 10.0)
    assert 2.0 < later.factor("a") < 4.0 and later.factor("c") == 1.0 and 1.0 < later.factor("b") < 4.0
    assert speeds.factor("a") == 4.0  # a value: learning does not change it
    assert speeds.learn("a", 0.0, 5.0) is speeds


def test_one_group_fifty_times_slower_is_forgotten_again():
    speeds = Speeds().learn("a", 1.0, 50.0)
    for _ in range(8):
        speeds = speeds.learn("a", 1.0, 1.0)
    assert speeds.factor("a") < 1.3


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 5), st.integers(1, 4)), min_size=1, max_size=6),
       st.floats(1, 500), st.floats(0.2, 5), st.booleans())
def test_no_run_passes_the_stop_mark_by_more_than_its_first_misjudged_step(
    members, budget, speed, row_independent
):
    costs = [
        net(f"m{i}", f, seconds, value)
        for i, (seconds, value, folds) in enumerate(members)
        for f in range(folds)
    ]
    order, used = run(costs, budget, min(speed, plan.MARGIN), row_independent, learn=False)
    assert used <= budget + 1e-9 and len(order) == len(set(order)) >= 1
    if budget > sum(c.a_s * 10 for c in costs) * plan.MARGIN * 1.16:
        assert len(order) == len(costs)  # everything fits: nothing is left out


def test_rows_run_from_the_shortest_after_one_longest():
    assert plan.order_rows([3.0, 9.0, 1.0, 2.0]) == [1, 2, 3, 0]
    assert plan.order_rows([5.0]) == [0] and plan.order_rows([]) == []


def test_accuracy_compares_finished_steps_only():
    steps = [Outcome(net_id="a.0", kind="cover", forecast_s=10, seconds=12, rows=5, done=5),
             Outcome(net_id="b.0", kind="refine", forecast_s=10, seconds=8, rows=5, done=5),
             Outcome(net_id="c.0", kind="refine", forecast_s=10, seconds=99, rows=5, done=2)]
    told = plan.accuracy(steps)
    assert told.median_ratio == 1.0 and told.worst_ratio == 1.2 and len(told.steps) == 3
    assert plan.accuracy([]).median_ratio is None


def manifest(**costs):
    members = (spec.Member(name="a", family="simple_cnn", frontend="f", folds=(0, 1), value=0.7),
               spec.Member(name="b", family="simple_cnn", frontend="f"))
    stackers = (spec.Stacker(name="s", family="fcnet", inputs=("a", "b")),)
    whole = spec.Ensemble(
        name="e", classes=("x", "y"), members=members, stackers=stackers, frontends={"f": {}}
    )
    entry = spec.FileEntry(bytes=1, sha256="0")
    return spec.Manifest(format=1, bundle="0", version="0", ensemble=whole, files={}, nets=(), costs=costs,
                         wheel=spec.Wheel(file="w", entry=entry, files={}))


def test_costs_come_from_measured_seconds_else_from_multiply_adds():
    costs = {
        c.net_id: c
        for c in plan.net_costs(
            manifest(
                a=spec.Cost(gmac_a=1, gmac_b=1, seconds_a=0.25, seconds_b=0.5),
                b=spec.Cost(gmac_a=6.0, gmac_b=0.6),
            ),
            gpu=False,
        )
    }
    assert list(costs) == ["a.0", "a.1", "b.0", "s.0"]
    assert (costs["a.1"].a_s, costs["a.1"].b_s_per_cell) == (0.25, 0.5)
    assert costs["b.0"].b_s_per_cell == pytest.approx(0.6 / plan.GMAC_PER_S_CPU)
    assert costs["s.0"].inputs == ("a", "b") and costs["a.0"].inputs == ()
    assert costs["b.0"].value == costs["a.0"].value == 0.7  # unknown worth: as the others
    assert costs["s.0"].a_s > 0  # no cost in the manifest: a guess, never free


def test_remaining_sums_what_is_left():
    costs = [net("a", seconds=3), net("b", seconds=4)]
    assert plan.remaining(costs, todo_of(costs, {"a.0"}), Speeds(overall=2.0)) == pytest.approx(8)


def test_a_covering_net_far_behind_its_forecast_gives_way_to_one_not_tried_yet():
    costs = [net("fast", seconds=5), net("slow", seconds=9)]
    first = choose(costs, uncovered=10)
    assert first.member == "fast" and first.patience_s == 4 * first.forecast_s
    behind = Speeds().learn("fast", 5, 500)  # a hundred times slower than the manifest says
    second = choose(costs, uncovered=8, speeds=behind)
    assert second.member == "slow" and second.patience_s == float("inf")  # nothing else is left to try
    # It was the machine
    assert choose(costs, uncovered=6, speeds=behind.learn("slow", 9, 900)).member == "fast"
    assert choose(costs, uncovered=10, row_independent=False).patience_s == float("inf")
