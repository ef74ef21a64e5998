"""The plan's values: forecasts, what is learnt, and what the report is told."""
from __future__ import annotations

from dataclasses import replace

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


def test_guesses_before_anything_is_measured_are_the_documented_ones():
    """They decide how soon a first net gives way, and whether folds share a device."""
    assert (plan.MARGIN, plan.LEARNING, plan.UNKNOWN_ROW_S) == (1.15, 0.5, 0.2)
    assert (plan.GMAC_PER_S_CPU, plan.GMAC_PER_S_GPU) == (60.0, 2500.0)
    assert (plan.PATIENCE, plan.LEAST_PATIENCE_S) == (4.0, 3.0)


def test_a_gpu_has_a_guess_of_its_own_and_unknown_nets_cost_rows_alone():
    measured = manifest(a=spec.Cost(gmac_a=50, gmac_b=25), b=spec.Cost(gmac_a=6.0, gmac_b=0.6, seconds_a=1.0))
    costs = {c.net_id: c for c in plan.net_costs(measured, gpu=True)}
    assert (costs["a.0"].a_s, costs["a.0"].b_s_per_cell) == (50 / 2500, 25 / 2500)
    # A time without its second part is none
    assert (costs["b.0"].a_s, costs["b.0"].b_s_per_cell) == (6.0 / 2500, 0.6 / 2500)
    assert (costs["s.0"].a_s, costs["s.0"].b_s_per_cell) == (0.2, 0.0)


def test_without_any_value_every_net_is_worth_one():
    members = tuple(replace(m, value=None) for m in manifest().ensemble.members)
    plain = replace(manifest(), ensemble=replace(manifest().ensemble, members=members))
    assert {c.value for c in plan.net_costs(plain, gpu=False)} == {1.0}
    several = tuple(replace(m, value=v) for m, v in zip(members, (0.5, 2.0), strict=True))
    plain = replace(manifest(), ensemble=replace(manifest().ensemble, members=several))
    assert [c.value for c in plan.net_costs(plain, gpu=False)] == [0.5, 0.5, 2.0, 1.25]


def test_defaults_are_what_has_no_effect():
    cost = NetCost(net_id="m.0", member="m", a_s=0.5, b_s_per_cell=0.01)
    assert (cost.value, cost.inputs, cost.staged) == (1.0, (), None)
    todo = Todo(rows=3, cells=9.0)
    assert (todo.loading_s, todo.later) == (0.0, 0)
    told = Outcome(net_id="a.0", kind="cover", forecast_s=1, seconds=1)
    assert (told.rows, told.done, told.loading_s, told.setup_s) == (0, 0, 0.0, 0.0)
    assert told.timed == Todo(rows=0, cells=0.0)
    step = plan.Step(net_ids=("m.0",), member="m", kind="cover", forecast_s=1.0)
    assert step.patience_s == float("inf")


def test_what_has_come_since():
    assert Todo(rows=7, cells=50.0).since(Todo(rows=3, cells=20.0)) == Todo(rows=4, cells=30.0)


def test_nets_share_batches_within_a_member_or_where_both_hear_the_same():
    a, b = net("a"), net("b")
    assert a.may_share(net("a", 1)) and not a.may_share(b)
    mel = {"staged": "mel"}
    assert replace(a, **mel).may_share(replace(b, **mel)) and not replace(a, **mel).may_share(b)
    assert not replace(a, **mel).may_share(replace(b, staged="cqt"))
    stacker = net("a", inputs=("a",))
    assert not a.may_share(stacker) and not stacker.may_share(a) and not stacker.may_share(stacker)


def test_an_immeasurable_step_teaches_nothing_and_the_newest_measurement_counts_half():
    speeds = Speeds()
    assert speeds.learn("a", 0.0, 1.0) is speeds and speeds.learn("a", -1.0, 1.0) is speeds
    assert speeds.learn("a", 1.0, -0.5) is speeds
    assert speeds.learn("a", 0.5, 0.0).factor("a") == 0.0 and speeds.learn("a", 0.5, 1.0).factor("a") == 2.0
    assert speeds.factor("a") == 1.0
    later = speeds.learn("a", 10.0, 40.0, setup_s=8.0).learn("a", 10.0, 10.0, setup_s=4.0)
    assert later.factor("a") == later.factor("other") == 2.5 and later.setup("a") == 6.0
    assert speeds.learn("a", 1.0, 1.0).setup("a") == 0.0


def test_less_than_nothing_is_no_forecast():
    """A straight line fitted to measured seconds may begin below 0."""
    cost = NetCost(net_id="m.0", member="m", a_s=-0.5, b_s_per_cell=0.01)
    assert plan.expected(cost, Todo(rows=10, cells=100.0)) == 0.0
    assert plan.expected(cost, Todo(rows=10, cells=600.0)) == pytest.approx(1.0)


def test_only_rows_that_are_left_take_time():
    costs = [net("a", seconds=3), net("b", seconds=4), net("lost", seconds=9)]
    todo = {"a.0": Todo(rows=1, cells=0), "b.0": Todo(rows=0, cells=0, loading_s=5.0)}
    assert plan.remaining(costs, todo, Speeds()) == pytest.approx(0.3)


def test_rows_of_one_length_keep_their_order():
    assert plan.order_rows([2.0, 1.0, 2.0, 1.0]) == [2, 1, 3, 0]


def test_accuracy_tells_each_step_in_milliseconds():
    steps = [Outcome(net_id="a.0", kind="cover", forecast_s=3.01249, seconds=2.01251, loading_s=0.12349,
                     rows=5, done=5),
             Outcome(net_id="b.0", kind="stack", forecast_s=0.0, seconds=8, rows=5, done=5),
             Outcome(net_id="c.0", kind="refine", forecast_s=0.5, seconds=1, rows=2, done=3)]
    told = plan.accuracy(steps)
    first = told.steps[0]
    assert (first.forecast_s, first.seconds, first.loading_s) == (3.012, 2.013, 0.123)
    assert (first.net, first.kind, first.rows, first.done) == ("a.0", "cover", 5, 5)
    # Of 0.66806 and 2; a step without a forecast has no ratio
    assert told.worst_ratio == 2.0 and told.median_ratio == 1.334
    assert plan.accuracy(steps[1:2]).worst_ratio is None
    assert plan.accuracy(steps[:1]).worst_ratio == plan.accuracy(steps[:1]).median_ratio == 0.668


def test_a_member_is_worth_its_share_of_the_classes():
    """Four classes, one known to nobody: those who know a class share it, the average member has 1."""
    def only(*known):
        return spec.ClassMap(outputs=9, takes=known, gives=known, weights=(1.0,) * len(known))

    members = tuple(spec.Member(name=name, family="f", frontend="x", classes_map=only(*known))
                    for name, known in (("a", (0, 1)), ("b", (1, 2))))
    whole = spec.Ensemble(name="e", classes=tuple("wxyz"), members=members)
    assert plan.share_of_classes(whole) == pytest.approx({"a": 1.0, "b": 1.0})
    third = spec.Member(name="c", family="f", frontend="x")
    told = plan.share_of_classes(replace(whole, members=(*members, third)))
    assert told == pytest.approx({"a": 3 * (1 / 2 + 1 / 3) / 4, "b": 3 * (1 / 3 + 1 / 2) / 4,
                                  "c": 3 * (1 / 2 + 1 / 3 + 1 / 2 + 1) / 4})
    costs = plan.net_costs(replace(manifest(), ensemble=replace(whole, members=(*members, third))), gpu=False)
    assert [c.value for c in costs] == pytest.approx(list(told.values()))
