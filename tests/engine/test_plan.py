"""The plan's values: forecasts, what is learnt, and what the report is told."""
from __future__ import annotations

import pytest

from kernel import spec
from kernel.engine import plan
from kernel.engine.plan import NetCost, Outcome, Speeds, Todo
from tests.helpers.plans import net, todo_of


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


def test_speeds_are_learnt_per_member_and_spread_to_the_unmeasured():
    speeds = Speeds().learn("a", 10.0, 40.0)
    assert speeds.factor("a") == speeds.factor("b") == 4.0
    later = speeds.learn("a", 10.0, 20.0).learn("c", 10.0, 10.0)
    assert 2.0 < later.factor("a") < 4.0 and later.factor("c") == 1.0 and 1.0 < later.factor("b") < 4.0
    assert speeds.factor("a") == 4.0  # a value: learning does not change it
    assert speeds.learn("a", 0.0, 5.0) is speeds


def test_a_net_of_next_to_no_multiply_adds_says_nothing_of_the_others():
    heads, mix, big = (NetCost(net_id=f"{name}.0", member=name, a_s=a, b_s_per_cell=0.0)
                       for name, a in (("heads", 1e-8), ("mix", 1e-8), ("big", 0.01)))
    todo = Todo(rows=7200, cells=0.0)
    assert plan.is_slight(heads, todo) and not plan.is_slight(big, todo)
    speeds = Speeds().learn("heads", plan.expected(heads, todo), 6.0, slight=True)
    assert plan.forecast(heads, todo, speeds) == pytest.approx(6.0)
    assert plan.forecast(big, todo, speeds) == pytest.approx(72.0)  # not six million
    assert plan.forecast(mix, todo, speeds) == pytest.approx(6.0)  # one of its kind was measured
    speeds = speeds.learn("big", 72.0, 144.0)
    assert speeds.factor("other") == 2.0 and plan.forecast(mix, todo, speeds) == pytest.approx(6.0)


def test_one_group_fifty_times_slower_is_forgotten_again():
    speeds = Speeds().learn("a", 1.0, 50.0)
    for _ in range(8):
        speeds = speeds.learn("a", 1.0, 1.0)
    assert speeds.factor("a") < 1.3


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
