"""The choice of steps against a fake clock: what starts, what is skipped, and what the whole order brings."""
from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.engine import choice, plan
from kernel.engine.plan import NetCost, Speeds, Todo
from tests.helpers.plans import net, todo_of


def choose(costs, done=(), left_s=1e9, uncovered=0, speeds=None, **more):
    return choice.next_step(
        costs, todo_of(costs, done), speeds or Speeds(), left_s=left_s, rows=10, uncovered=uncovered, **more
    )


def chosen(*args, **more):
    """The one net of the step that is chosen."""
    (net_id,) = choose(*args, **more).net_ids
    return net_id


def run(costs, budget_s, true_speed=1.0, row_independent=True, learn=True):
    """(net ids in order, seconds used): a whole run on a clock that only the steps move."""
    done, order, now, speeds, uncovered = set(), [], 0.0, Speeds(), 10
    while True:
        step = choose(costs, done, budget_s - now, uncovered, speeds, row_independent=row_independent)
        if step is None:
            return order, now
        (net_id,) = step.net_ids
        cost = next(c for c in costs if c.net_id == net_id)
        expected = plan.expected(cost, Todo(rows=10, cells=0))
        # The engine's per-batch clock cuts a step at the stop mark
        took = min(expected * true_speed, budget_s - now)
        if took < expected * true_speed:
            assert step.kind == "cover" or row_independent
        if learn:
            speeds = speeds.learn(step.member, expected, expected * true_speed)
        now, uncovered = now + took, 0
        order.append(net_id)
        done.add(net_id)


def test_a_net_is_not_opened_for_less_than_its_setup():
    """Two nets of 10 s for their rows and 8 s to read: what is left must be more than the reading."""
    costs = [NetCost(net_id=f"m.{fold}", member="m", a_s=1.0, b_s_per_cell=0.0) for fold in (0, 1)]
    speeds = Speeds().learn("m", 10.0, 10.0, setup_s=8.0)
    assert choose(costs, {"m.0"}, 7.9, speeds=speeds) is None
    assert chosen(costs, {"m.0"}, 9.0, speeds=speeds) == "m.1"
    assert choose(costs, {"m.0"}, 7.9, speeds=Speeds().learn("m", 10.0, 10.0)) is not None


def test_the_cheapest_net_comes_first_and_starts_even_if_it_does_not_fit():
    costs = [net("big", seconds=50, value=9), net("small", seconds=5)]
    step = choose(costs, left_s=1.0, uncovered=10)
    assert (step.net_ids, step.kind, step.forecast_s) == (("small.0",), "cover", 5.0)
    assert choose(costs, left_s=0.0, uncovered=10) is None  # exactly nothing left is nothing left


def test_a_net_that_misses_rows_does_not_end_coverage():
    costs = [net("small", seconds=5), net("big", seconds=50)]
    step = choose(costs, done={"small.0"}, left_s=10, uncovered=3)
    assert (step.net_ids, step.kind) == (("big.0",), "cover")


def test_while_one_device_covers_the_other_refines():
    costs = [net("a", seconds=1), net("b", seconds=3), net("c", seconds=2)]
    step = choose(costs, uncovered=10, busy={"a.0"})
    assert (step.net_ids, step.kind) == (("c.0",), "refine")


def test_after_coverage_value_per_second_decides():
    costs = [net("a", seconds=1, value=0.1), net("b", seconds=4, value=2.0), net("c", seconds=2, value=0.8)]
    assert run(costs, 1e9)[0] == ["a.0", "b.0", "c.0"]


def test_first_folds_of_other_members_come_before_further_folds():
    costs = [net(m, fold, seconds) for m, seconds in (("a", 1.0), ("b", 1.4)) for fold in range(3)]
    assert run(costs, 1e9)[0] == ["a.0", "b.0", "a.1", "b.1", "a.2", "b.2"]


def test_where_no_net_fits_the_one_that_reaches_most_rows_covers():
    costs = [net("quick", seconds=20), net("slow", seconds=50)]
    speeds = Speeds(setups={"quick": 15.0, "slow": 0.0}, members={"quick": 1.0, "slow": 1.0})
    assert choose(costs, left_s=16.0, uncovered=10, speeds=speeds).member == "slow"  # 3 rows, not half a one
    assert choose(costs, left_s=40.0, uncovered=10, speeds=speeds).member == "quick"


def test_no_time_is_left_over_while_a_net_waits():
    """The best net of 2,700 s and five of 120 s in 3,420 s; five folds of 1,300 s in the same."""
    costs = [net("best", seconds=2700, value=0.9), *(net(f"m{i}", seconds=120, value=0.6) for i in range(5))]
    order, used = run(costs, 3420.0)
    assert sorted(order) == sorted(c.net_id for c in costs) and used == pytest.approx(3300)
    folds = [net("m", fold, 1300) for fold in range(5)]
    order, used = run(folds, 3420.0)
    assert order == ["m.0", "m.1", "m.2"] and used == 3420.0


def test_a_net_that_does_not_fit_starts_where_it_brings_more_than_those_that_do():
    costs = [net("a"), net("b", seconds=20, value=100), net("c", seconds=8, value=1)]
    assert chosen(costs, done={"a.0"}, left_s=10) == "b.0"  # half of its rows are worth 50
    costs = [net("a"), net("b", seconds=100, value=1), net("c", seconds=8, value=1)]
    assert chosen(costs, done={"a.0"}, left_s=10) == "c.0"


def test_a_whole_net_comes_before_more_folds_where_its_setup_leaves_no_other_chance():
    """Five small nets of 0.1 a second, and one that gives 9 after 50 s of setup and 50 of work."""
    costs = [net("big", seconds=50, value=9.0), *(net(f"m{i}", seconds=10) for i in range(5))]
    setups = {"big": 50.0, **{f"m{i}": 0.0 for i in range(5)}}
    speeds = Speeds(members={c.member: 1.0 for c in costs}, setups=setups)
    assert chosen(costs, left_s=100.0, speeds=speeds) == "big.0"
    assert chosen(costs, left_s=200.0, speeds=speeds).startswith("m")  # there everything fits


def test_folds_run_together_as_far_as_they_fit():
    costs = [net("m", fold, 10) for fold in range(4)] + [net("n", 0, 10, value=0.5)]
    step = choose(costs, left_s=100.0, together=4)
    assert step.net_ids == ("m.0", "m.1", "m.2", "m.3") and step.forecast_s == 40.0
    assert choose(costs, left_s=100.0, together=2).net_ids == ("m.0", "m.1")
    assert choose(costs, left_s=30 * plan.MARGIN, together=4).net_ids == ("m.0", "m.1", "m.2")
    assert choose(costs, left_s=5.0, together=4).net_ids == ("m.0",)  # cut by the clock: one, not a crowd
    assert choose(costs, uncovered=10, together=4).net_ids == ("m.0",)
    loading = {c.net_id: Todo(rows=10, cells=0, loading_s=7.0) for c in costs}
    step = choice.next_step(costs, loading, Speeds(), left_s=100.0, rows=10, uncovered=0, together=4)
    assert step.forecast_s == 47.0  # their arrays are loaded once


def test_a_failed_fold_is_no_fold_that_has_begun():
    costs = [net("a", 0), net("a", 1, value=1.2), net("b", seconds=1.1)]
    todo = todo_of(costs)
    del todo["a.0"]
    ask = {"left_s": 1e9, "rows": 10, "uncovered": 0}
    assert choice.next_step(costs, todo, Speeds(), **ask).net_ids == ("a.1",)
    assert choice.next_step(costs, {**todo, "a.0": Todo(rows=0, cells=0)}, Speeds(), **ask).member == "b"


def test_time_is_kept_for_stackers_whose_inputs_will_not_be_finished():
    costs = [net("a", value=1.0), net("b", seconds=100), net("s", seconds=2.0, inputs=("a", "b"))]
    todo = {**todo_of(costs, {"a.0"}), "s.0": Todo(rows=0, cells=0, later=10)}
    ask = {"rows": 10, "uncovered": 0}
    step = choice.next_step(costs, todo, Speeds(), left_s=80.0, **ask)
    # The stacker's time for the 8 rows that will be there, and a row of b (10 s) that ends before it goes
    assert step.member == "b" and step.patience_s == pytest.approx(80.0 - 1.6 * 1.15 - 10.0)
    # It has given way with half of its rows
    todo = {**todo, "b.0": Todo(rows=5, cells=0), "s.0": Todo(rows=5, cells=0, later=5)}
    assert choice.next_step(costs, todo, Speeds(), left_s=1.2, **ask).member == "s"
    # The stacker has what it can have, too little is left for both: nothing is kept from the net
    todo = {**todo, "s.0": Todo(rows=0, cells=0, later=5)}
    step = choice.next_step(costs, todo, Speeds(), left_s=9.0, **ask)
    assert step.member == "b" and step.patience_s == math.inf
    # A stacker that costs more than it is worth waits for what is left
    dear = [net("a"), net("b", seconds=100), net("s", seconds=200.0, inputs=("a", "b"))]
    todo = {**todo_of(dear, {"a.0"}), "s.0": Todo(rows=0, cells=0, later=10)}
    step = choice.next_step(dear, todo, Speeds(), left_s=50.0, **ask)
    assert step.member == "b" and step.patience_s == math.inf


def test_patience_leaves_its_time_to_the_net_that_comes_next():
    """Forecasts of 9 and 18 s, 45 s to the stop: the first one gives way in time for the second."""
    costs = [net("a", seconds=9), net("b", seconds=18)]
    assert choose(costs, left_s=45.0, uncovered=10).patience_s == pytest.approx(45 - 18 * plan.MARGIN)
    assert choose(costs, left_s=20.0, uncovered=10).patience_s == plan.LEAST_PATIENCE_S
    assert choose(costs, left_s=500.0, uncovered=10).patience_s == 36.0


def test_several_devices_share_the_folds_of_a_member():
    costs = [net("m", fold, 25) for fold in range(4)]
    ask = {"left_s": 60.0, "row_independent": False}
    assert choose(costs, devices=1, **ask) is None
    assert choose(costs, devices=2, **ask).member == "m"  # 57.5 s with 15 % in hand
    assert choose(costs, devices=9, left_s=28.0, row_independent=False) is None  # one net needs 28.75 s


def test_complete_members_that_fit_exactly_into_the_time_with_15_percent_in_hand():
    costs = [net("a"), net("b", seconds=20, value=100), net("c", seconds=8, value=1)]
    ask = {"done": {"a.0"}, "row_independent": False}
    assert chosen(costs, left_s=8 * 1.15, **ask) == "c.0"
    assert choose(costs, left_s=8 * 1.15 - 1e-6, **ask) is None


def test_the_set_of_members_that_is_worth_most_runs_not_the_densest_first():
    """Within 100 s: one of 60 s (value 6.1) or two of 50 s (5 each); in 111 s, the first and one of them."""
    costs = [net("x", seconds=60, value=6.1), net("y", seconds=50, value=5), net("z", seconds=50, value=5)]
    assert choose(costs, left_s=100 * plan.MARGIN, row_independent=False).member in ("y", "z")
    assert choose(costs, left_s=111 * plan.MARGIN, row_independent=False).member == "x"
    many = [net(f"m{i}", seconds=1 + i / 97, value=1 + (i * 37 % 41) / 40) for i in range(60)]
    assert choose(many, left_s=30.0, row_independent=False) is not None


def test_stackers_run_once_their_inputs_are_complete():
    costs = [net("a"), net("b"), net("s", seconds=0.1, inputs=("a", "b"))]
    assert chosen(costs, done={"a.0"}) == "b.0"
    assert choose(costs, done={"a.0"}, busy={"b.0"}) is None
    step = choose(costs, done={"a.0", "b.0"})
    assert (step.net_ids, step.kind) == (("s.0",), "stack")


def test_a_stacker_takes_the_rows_it_can_have_when_no_input_can_be_opened_any_more():
    costs = [net("a"), net("b", seconds=100), net("s", seconds=0.1, inputs=("a", "b"))]
    speeds = Speeds(members={"b": 1.0}, setups={"b": 6.0})
    assert chosen(costs, done={"a.0"}, left_s=5, speeds=speeds) == "s.0"


def test_a_stacker_never_covers():
    costs = [net("a", seconds=9), net("s", seconds=0.1, inputs=("a",))]
    assert chosen(costs, uncovered=10) == "a.0"


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
    assert 8 <= len(order) <= 10 and used == 1000
    assert len(run(costs, 1000, true_speed=1)[0]) == 20


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


ROWS = 100


def worth(order, setups, budget_s):
    """Value x share of rows of nets that run whole in this order, the last one cut by the clock."""
    begun, total = {}, 0.0
    for c in order:
        work_s = c.a_s * ROWS
        share = min(1.0, max(0.0, budget_s - setups[c.member]) / work_s)
        total += c.value * share / (1 + begun.get(c.member, 0))
        begun[c.member] = begun.get(c.member, 0) + 1
        budget_s -= setups[c.member] + work_s
        if budget_s <= 0:
            break
    return total


def worth_chosen(costs, setups, budget_s, covers):
    """The same of the order that the choice makes on a machine just as fast as forecast."""
    speeds = Speeds(members={c.member: 1.0 for c in costs}, overall=1.0, setups=setups)
    done, left_s, order = set(), budget_s, []
    while left_s > 0:
        todo = {c.net_id: Todo(rows=0 if c.net_id in done else ROWS, cells=0) for c in costs}
        step = choice.next_step(costs, todo, speeds, left_s=left_s, rows=ROWS,
                                uncovered=ROWS if covers and not order else 0)
        if step is None:
            break
        order.append(next(c for c in costs if (c.net_id,) == step.net_ids))
        done.add(order[-1].net_id)
        left_s -= setups[step.member] + order[-1].a_s * ROWS
    return worth(order, setups, budget_s), order


MEMBERS = st.lists(st.tuples(st.floats(1.0, 200.0), st.floats(0.1, 3.0), st.floats(0.0, 30.0),
                             st.integers(1, 3)), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(MEMBERS, st.floats(0.05, 1.2), st.booleans())
def test_the_order_is_within_a_tenth_of_the_best_one(members, share, covers):
    costs = [NetCost(net_id=f"m{i}.{f}", member=f"m{i}", a_s=seconds / ROWS, b_s_per_cell=0.0, value=value)
             for i, (seconds, value, _, folds) in enumerate(members) for f in range(folds)][:6]
    setups = {f"m{i}": setup for i, (_, _, setup, _) in enumerate(members)}
    budget_s = share * sum(setups[c.member] + c.a_s * ROWS for c in costs)
    got, order = worth_chosen(costs, setups, budget_s, covers)
    # The net that covers the rows is not chosen by its worth
    orders = [o for o in itertools.permutations(costs) if not covers or not order or o[0] is order[0]]
    assert got >= 0.9 * max(worth(o, setups, budget_s) for o in orders)


@settings(max_examples=100, deadline=None)
@given(MEMBERS, st.floats(0.05, 1.2))
def test_complete_members_are_within_a_tenth_of_the_best_set(members, share):
    costs = [NetCost(net_id=f"m{i}.{f}", member=f"m{i}", a_s=seconds / ROWS, b_s_per_cell=0.0, value=value)
             for i, (seconds, value, _, folds) in enumerate(members) for f in range(folds)]
    speeds = Speeds(members={c.member: 1.0 for c in costs}, overall=1.0)
    seconds = {c.member: sum(d.a_s * ROWS for d in costs if d.member == c.member) for c in costs}
    values = {c.member: c.value for c in costs}
    budget_s = left_s = share * sum(seconds.values()) * plan.MARGIN
    done = set()
    while (todo := {c.net_id: Todo(rows=0 if c.net_id in done else ROWS, cells=0) for c in costs}):
        step = choice.next_step(costs, todo, speeds, left_s=left_s, rows=ROWS, uncovered=0,
                                row_independent=False)
        if step is None:
            break
        done.update(step.net_ids)
        left_s -= step.forecast_s
    whole = [m for m in seconds if all(c.net_id in done for c in costs if c.member == m)]
    sets = itertools.chain.from_iterable(itertools.combinations(seconds, n) for n in range(len(seconds) + 1))
    fitting = [chosen for chosen in sets if sum(seconds[m] for m in chosen) * plan.MARGIN <= budget_s]
    best = max(sum(values[m] for m in chosen) for chosen in fitting)
    assert sum(values[m] for m in whole) >= 0.9 * best


def staged(member, fold=0, seconds=10, key="mel", **more):
    return replace(net(member, fold, seconds, **more), staged=key)


def test_members_that_hear_the_same_share_batches():
    costs = [staged(member, fold) for member in "ab" for fold in (0, 1)]
    costs.append(staged("c", 0, 10, "other", value=0.1))
    assert choose(costs, left_s=1e3, together=16).net_ids == ("a.0", "b.0", "a.1", "b.1")
    assert choose([net("a"), net("b")], left_s=1e3, together=16).net_ids == ("a.0",)  # nothing is known
    whole = choose(costs, left_s=1e3, together=16, row_independent=False)
    assert whole.net_ids == ("a.0", "a.1", "b.0", "b.1")
    some = choose(costs, left_s=27.0, together=16, row_independent=False)
    assert some.net_ids == ("a.0", "a.1")  # no member begins that cannot end


def test_a_crowd_is_no_more_than_a_device_s_share_of_the_work():
    costs = [staged("a", fold) for fold in range(6)]
    assert len(choose(costs, left_s=1e3, together=16, devices=2).net_ids) == 3
    assert len(choose(costs, left_s=1e3, together=16, devices=4).net_ids) == 1
    assert len(choose(costs, left_s=1e3, together=16).net_ids) == 6
