"""Which nets run next: the choice of a step, as pure functions of forecasts.

Owns the rules. Costs, forecasts and what was learnt about this machine are plan's; the live figures are
dispatch's. No I/O, no clock, no threads: times come in as numbers.

The objective is the sum over nets of value x share of rows scored at the stop mark; a further fold of a
member counts 1 / (1 + folds begun), our choice. The rules:

1. First the cheapest net over every row, whatever its forecast says; where none fits, the one that reaches
   most rows. The clock may cut it, and where it falls far behind its forecast a net that was not tried yet
   takes over.
2. Rows independent: the net that begins the best order found for the time left. A net that does not fit
   starts too, where nothing better can be done with the time: the rows that it reaches gain by it.
3. Rows compared by the metric or a mean (`row_independent = false`): a half-done member is worth nothing, so
   the members that fit together and are worth most run, and no others.
4. Stackers run once their inputs wait for no fold; where the inputs will not be finished, the time that
   stackers need for the rows that are is kept for them.
"""
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from .plan import LEAST_PATIENCE_S, MARGIN, PATIENCE, NetCost, Speeds, Step, Todo, forecast

CANDIDATES = 8  # first steps that are followed to the stop mark: the densest, and those that gain most
LEAST_START_S = 1.0  # a net is not opened for less before time that is kept for stackers
LEAST_KEPT_S = 1.0  # for a stacker: it is opened, and its multiply-adds are not all that its rows take
SETS_KEPT = 4096  # most sets of members that are compared where only complete members count


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a net would bring: `gain` over `seconds`, of which the first `setup_s` bring nothing."""

    cost: NetCost
    gain: float
    seconds: float
    setup_s: float

    def gain_within(self, seconds: float) -> float:
        """What it brings when it is cut after so long."""
        if seconds >= self.seconds:
            return self.gain
        work_s = self.seconds - self.setup_s
        return self.gain * max(0.0, seconds - self.setup_s) / work_s if work_s > 0 else 0.0

    @property
    def density(self) -> float:
        """Gain per second."""
        return self.gain / max(self.seconds, 1e-9)


def next_step(
    costs: Sequence[NetCost],
    todo: Mapping[str, Todo],
    speeds: Speeds,
    *,
    left_s: float,
    rows: int,
    uncovered: int,
    busy: Collection[str] = (),
    row_independent: bool = True,
    together: int = 1,
    devices: int = 1,
) -> Step | None:
    """The step to start now, or None when nothing is left that brings anything.

    todo       per net id the rows it lacks; nets that are done have 0 rows, those that have failed are
               absent. For a stacker: the rows whose inputs are complete
    left_s     seconds to the stop mark; nothing starts at <= 0
    rows       rows that can be predicted in all
    uncovered  rows that no net has scored and that can still be scored
    busy       net ids running on other devices
    together   most nets that this device runs on the same batches;  devices: that share the work
    """
    if left_s <= 0:
        return None
    ready = [c for c in costs if c.net_id not in busy and c.net_id in todo and todo[c.net_id].rows > 0]
    first_level = [c for c in ready if not c.inputs]
    others = [c for c in costs if c.net_id in busy and c.net_id in todo and not c.inputs]
    if uncovered > 0 and first_level and not any(todo[c.net_id].rows > 0 for c in others):
        cover = _cover(first_level, todo, speeds, left_s)
        # There only complete members count
        return cover if row_independent else replace(cover, patience_s=float("inf"))
    unfinished = {c.member for c in [*first_level, *others]}
    open_now = [c for c in ready if not unfinished & set(c.inputs)]
    # Stackers on the rows they can have, when nothing else is started
    waiting = [c for c in ready if c not in open_now and not {o.member for o in others} & set(c.inputs)]
    if not row_independent:
        whole = partial(_refine_whole, todo=todo, speeds=speeds, left_s=left_s, most=(together, devices))
        return whole(open_now) or whole(waiting)
    stackers = [c for c in costs if c.net_id in todo and unfinished & set(c.inputs)]
    outlooks = _outlooks(costs, open_now, todo, speeds, rows)
    kept_s = _kept_s(stackers, outlooks, todo, speeds, left_s)
    step = _refine(outlooks, todo, speeds, left_s, kept_s, (together, devices))
    if step is None:
        first = _choose_first(_outlooks(costs, waiting, todo, speeds, rows), left_s)
        step = _step([first], todo, speeds) if first else None
    if step is None and kept_s:  # the stackers have nothing to do: what was kept for them is free
        step = _refine(outlooks, todo, speeds, left_s, 0.0, (together, devices))
    return step


def _refine(
    outlooks: Sequence[Outlook],
    todo: Mapping[str, Todo],
    speeds: Speeds,
    left_s: float,
    kept_s: float,
    most: tuple[int, int],
) -> Step | None:
    """The best use of the time left, but for `kept_s` at its end; None where nothing brings anything.

    most  nets that run together, and devices that share the work
    """
    free_s = left_s - kept_s
    if kept_s and free_s < LEAST_START_S:
        return None
    first = _choose_first(outlooks, free_s)
    if first is None:
        return None
    ready = [first, *(o.cost for o in outlooks if o.cost is not first)]
    step = _step(_crowd(ready, todo, speeds, free_s, *most), todo, speeds)
    return replace(step, patience_s=free_s) if kept_s and step.forecast_s > free_s else step


def _cover(ready: Sequence[NetCost], todo: Mapping[str, Todo], speeds: Speeds, left_s: float) -> Step:
    """The cheapest net, or the one that reaches most rows where none fits; it starts whatever is forecast.

    A net never run here counts as the manifest says, since trying it covers rows too.
    """
    hopeful = replace(speeds, overall=None)

    def cost_of(c: NetCost) -> tuple[float, float]:
        seconds = forecast(c, todo[c.net_id], hopeful)
        setup_s = min(seconds, hopeful.setup(c.member))
        return -Outlook(cost=c, gain=1.0, seconds=seconds, setup_s=setup_s).gain_within(left_s), seconds

    cheapest = min(ready, key=cost_of)
    step = replace(_step([cheapest], todo, speeds), kind="cover")
    others = [forecast(c, todo[c.net_id], hopeful) for c in ready
              if c.member != step.member and c.member not in speeds.members]
    if not others:
        return step
    # The next one must have its time, too
    most_s = min(PATIENCE * step.forecast_s, left_s - MARGIN * min(others))
    return replace(step, patience_s=max(LEAST_PATIENCE_S, most_s))


def _step(nets: Sequence[NetCost], todo: Mapping[str, Todo], speeds: Speeds) -> Step:
    return Step(
        net_ids=tuple(c.net_id for c in nets),
        member=nets[0].member,
        kind="stack" if nets[0].inputs else "refine",
        forecast_s=_together_s(nets, todo, speeds),
    )


def _together_s(nets: Sequence[NetCost], todo: Mapping[str, Todo], speeds: Speeds) -> float:
    """Seconds of nets that run on the same batches: their arrays are loaded once."""
    loading_s = [todo[c.net_id].loading_s for c in nets]
    return sum(forecast(c, todo[c.net_id], speeds) for c in nets) - sum(loading_s) + max(loading_s)


def _outlooks(
    costs: Sequence[NetCost],
    ready: Sequence[NetCost],
    todo: Mapping[str, Todo],
    speeds: Speeds,
    rows: int,
) -> list[Outlook]:
    """What each net would bring, the densest first; the folds of a member count less and less."""
    begun: dict[str, int] = {}
    fresh = {c.net_id for c in ready if todo[c.net_id].rows >= rows}
    names = {c.net_id for c in ready}
    for c in costs:
        if c.net_id in todo and c.net_id not in names:
            begun[c.member] = begun.get(c.member, 0) + 1
    outlooks = []
    for c in sorted(ready, key=lambda c: c.net_id in fresh):  # folds that have begun keep their place
        share = min(1.0, todo[c.net_id].rows / max(1, rows))
        seconds = forecast(c, todo[c.net_id], speeds)
        setup_s = 0.0 if c.inputs else min(seconds, speeds.setup(c.member))
        gain = c.value * share / (1 + begun.get(c.member, 0))
        begun[c.member] = begun.get(c.member, 0) + 1
        outlooks.append(Outlook(cost=c, gain=gain, seconds=seconds, setup_s=setup_s))
    return sorted(outlooks, key=lambda o: -o.density)


def _choose_first(outlooks: Sequence[Outlook], left_s: float) -> NetCost | None:
    """The net that begins the best order found; the densest one where everything fits."""
    hopeful = [o for o in outlooks if o.gain_within(left_s) > 0]
    if not hopeful:
        return None
    if sum(o.seconds for o in outlooks) <= left_s:
        return hopeful[0].cost
    most = sorted(hopeful, key=lambda o: -o.gain_within(left_s))
    candidates = dict.fromkeys([*_leaders(hopeful), *_leaders(most)])
    return max(candidates, key=lambda o: _follow(o, outlooks, left_s)).cost


def _leaders(outlooks: Sequence[Outlook]) -> list[Outlook]:
    """The first net of each of the first members."""
    first: dict[str, Outlook] = {}
    for outlook in outlooks:
        first.setdefault(outlook.cost.member, outlook)
        if len(first) == CANDIDATES:
            break
    return list(first.values())


def _follow(first: Outlook, outlooks: Sequence[Outlook], left_s: float) -> float:
    """What `first`, and then always the densest net, bring in so long; at the end whatever brings most."""
    gained = first.gain_within(left_s)
    left_s -= first.seconds
    rest = [o for o in outlooks if o is not first]
    for number, outlook in enumerate(rest):
        if left_s <= 0:
            return gained
        if outlook.seconds > left_s:
            return gained + _fill(rest[number:], left_s)
        gained += outlook.gain
        left_s -= outlook.seconds
    return gained


def _fill(rest: Sequence[Outlook], left_s: float) -> float:
    """What the last seconds bring, where not everything fits into them any more."""
    gained = 0.0
    rest = list(rest)
    while rest and left_s > 0:
        best = max(rest, key=lambda o: o.gain_within(left_s))
        if not best.gain_within(left_s):
            break
        gained += best.gain_within(left_s)
        left_s -= best.seconds
        rest.remove(best)
    return gained


def _crowd(
    ready: Sequence[NetCost],
    todo: Mapping[str, Todo],
    speeds: Speeds,
    left_s: float,
    together: int,
    devices: int,
) -> list[NetCost]:
    """The first of these nets and as many that may share its batches as fit beside it.

    Not more than this device's share of the work: the others must not wait for it at the end.
    """
    crowd = [ready[0]]
    others = [cost for cost in ready[1:] if ready[0].may_share(cost)]
    share_s = math.inf
    if devices > 1:
        share_s = sum(forecast(cost, todo[cost.net_id], speeds) for cost in ready) / devices
    for cost in others[:together - 1]:
        seconds = _together_s([*crowd, cost], todo, speeds)
        if seconds * MARGIN > left_s or seconds > share_s:
            break
        crowd.append(cost)
    return crowd


def _kept_s(
    stackers: Sequence[NetCost],
    outlooks: Sequence[Outlook],
    todo: Mapping[str, Todo],
    speeds: Speeds,
    left_s: float,
) -> float:
    """Seconds that stackers will need whose inputs are unfinished; 0.0 where nets bring more in them.

    They need time for the rows that can be theirs by then; a net that gives way to them ends its row first.
    """
    hungry = [c for c in stackers if todo[c.net_id].rows + todo[c.net_id].later > 0]
    if not hungry or not outlooks:
        return 0.0
    reached = min(1.0, left_s / max(1e-9, sum(o.seconds for o in outlooks if not o.cost.inputs)))
    kept_s = 0.0
    for c in hungry:
        rows = todo[c.net_id].rows + math.ceil(reached * todo[c.net_id].later)
        kept_s += max(LEAST_KEPT_S, forecast(c, Todo(rows=rows, cells=0.0), speeds)) * MARGIN
    kept_s += max(o.seconds / max(1, todo[o.cost.net_id].rows) for o in outlooks)
    return kept_s if sum(c.value for c in hungry) > outlooks[0].density * kept_s else 0.0


def _refine_whole(
    ready: Sequence[NetCost],
    todo: Mapping[str, Todo],
    speeds: Speeds,
    left_s: float,
    most: tuple[int, int],
) -> Step | None:
    """As `_refine` where only complete members count; None where none fits."""
    chosen = _choose_members(ready, todo, speeds, left_s, most[1])
    return _step(_crowd(chosen, todo, speeds, left_s, *most), todo, speeds) if chosen else None


def _choose_members(
    ready: Sequence[NetCost], todo: Mapping[str, Todo], speeds: Speeds, left_s: float, devices: int
) -> list[NetCost]:
    """The nets of the best set of members that fits, where only complete ones count; the densest first."""
    seconds: dict[str, float] = {}
    longest: dict[str, float] = {}
    values: dict[str, float] = {}
    for c in ready:
        needed_s = forecast(c, todo[c.net_id], speeds) * MARGIN
        seconds[c.member] = seconds.get(c.member, 0.0) + needed_s / devices
        longest[c.member] = max(longest.get(c.member, 0.0), needed_s)
        values[c.member] = c.value
    fitting = {member: max(needed_s, longest[member]) for member, needed_s in seconds.items()}
    best = _best_set(fitting, values, left_s)
    order = sorted(best, key=lambda member: -values[member] / max(seconds[member], 1e-9))
    return [c for member in order for c in ready if c.member == member]


def _best_set(seconds: Mapping[str, float], values: Mapping[str, float], left_s: float) -> tuple[str, ...]:
    """The members that fit together and are worth most, among the sets that no other one beats in both."""
    if sum(seconds.values()) <= left_s:
        return tuple(seconds)
    sets: list[tuple[float, float, tuple[str, ...]]] = [(0.0, 0.0, ())]  # (seconds, value, members)
    for member, needed_s in seconds.items():
        longer = [(s + needed_s, v + values[member], (*chosen, member)) for s, v, chosen in sets]
        kept: list[tuple[float, float, tuple[str, ...]]] = []
        for entry in sorted([*sets, *longer], key=lambda entry: (entry[0], -entry[1])):
            if entry[0] <= left_s and (not kept or entry[1] > kept[-1][1]):
                kept.append(entry)
        every = -(-len(kept) // SETS_KEPT)
        sets = kept[::-1][::every][::-1]  # the last one is worth most, and always kept
    return sets[-1][2]
