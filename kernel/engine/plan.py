"""What a step is and how long it will take: the deadline as pure values.

Owns costs, forecasts and what was learnt about this machine. No I/O, no clock, no threads: times come in as
numbers, new values go out, so every rule is tested with a fake clock. Does not choose (choice), run steps
(step), watch the clock inside one (the schedules do) or hand steps to devices (dispatch).
"""
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from types import MappingProxyType

from ..report.contents import PlanReport, StepReport
from ..spec import Ensemble, Manifest, Member, Stacker, net_ids

MARGIN = 1.15  # what must fit whole fits if its forecast times this does
LEARNING = 0.5  # weight of the newest measurement: two steps are enough to see a machine ten times slower
# A guess before anything is measured: a quarter of what 2 cores can do in fp32 (250 GMAC/s)
GMAC_PER_S_CPU = 60.0
GMAC_PER_S_GPU = 2500.0  # the same kind of guess for a P100 or T4: about half of its fp32 peak
# Seconds per row by multiply-adds alone: below it the time goes into calls, which tell nothing of how fast
# this machine multiplies (1 million multiply-adds on CPUs, 50 on a GPU; a B0 has 400). Our choice.
SLIGHT_ROW_S = 2e-5
UNKNOWN_ROW_S = 0.2  # seconds per row of a net whose cost nobody knows
# A covering net that takes this many times its forecast gives way; our choice, as for hung engines
PATIENCE = 4.0
LEAST_PATIENCE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class NetCost:
    """What one net costs before anything was measured here, and what it is worth.

    a_s, b_s_per_cell  seconds per row = a_s + b_s_per_cell x cells of the row (all its passes)
    value              worth of the net's member, > 0; equal values mean the cheap one first
    inputs             members that must be complete first (stackers); empty for first-level nets
    staged             nets of other members run on the same batches where this is equal; None = on none
    """

    net_id: str
    member: str
    a_s: float
    b_s_per_cell: float
    value: float = 1.0
    inputs: tuple[str, ...] = ()
    staged: Hashable = None

    def may_share(self, other: "NetCost") -> bool:
        """True where both may run on the same batches of a GPU."""
        alike = self.staged is not None and self.staged == other.staged
        return not self.inputs and not other.inputs and (self.member == other.member or alike)


@dataclass(frozen=True, kw_only=True)
class Todo:
    """Rows that a net still lacks or has done, and the cells it computes for them in all.

    later      for a stacker: rows that it lacks and cannot have yet
    loading_s  seconds for producing the arrays that nobody has produced yet (not scaled by the speeds of
               nets)
    """

    rows: int
    cells: float
    loading_s: float = 0.0
    later: int = 0

    def since(self, before: "Todo") -> "Todo":
        """The rows and cells that have come after `before`."""
        return Todo(rows=self.rows - before.rows, cells=self.cells - before.cells)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Nets that run together over the rows they lack: one, or several that share batches on a GPU.

    member      of the first of them
    kind        "cover": always starts; "refine" or "stack": the best use of the time left
    patience_s  after this long the step gives way to another choice: not every row may wait for the one slow
                net
    """

    net_ids: tuple[str, ...]
    member: str
    kind: str
    forecast_s: float
    patience_s: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Measured seconds / expected seconds, per member and over all of them (for members not measured yet).

    A factor of 1 means that the machine is as fast as the manifest says. A value is never changed: `learn`
    gives a new one.

    slight  as `overall`, of and for nets with next to no multiply-adds: their factors may be thousands
    setups  seconds once per step for reading and preparing the net, per measured member
    """

    members: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    overall: float | None = None
    slight: float | None = None
    setups: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def factor(self, member: str, slight: bool = False) -> float:
        known = self.slight if slight and self.slight is not None else self.overall
        return self.members.get(member, known if known is not None else 1.0)

    def setup(self, member: str) -> float:
        """Seconds of a step beside its rows; what other members took where this one was not measured."""
        return self.setups.get(member, sum(self.setups.values()) / len(self.setups) if self.setups else 0.0)

    def learn(
        self, member: str, expected_s: float, measured_s: float, setup_s: float = 0.0, slight: bool = False
    ) -> "Speeds":
        """Speeds after `member` took `measured_s`, setup and loading excluded, where `expected_s` was
        forecast.
        """
        if expected_s <= 0 or measured_s < 0:
            return self
        new = measured_s / expected_s
        return Speeds(
            members=MappingProxyType({**self.members, member: _blend(self.members.get(member), new)}),
            overall=self.overall if slight else _blend(self.overall, new),
            slight=_blend(self.slight, new) if slight else self.slight,
            setups=MappingProxyType({**self.setups, member: _blend(self.setups.get(member), setup_s)}),
        )


def _blend(known: float | None, new: float) -> float:
    return new if known is None else (1 - LEARNING) * known + LEARNING * new


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Forecast against outcome of one step, for the report.

    rows, done           rows the step wanted and rows it scored (fewer when the clock cut it)
    timed                the rows that it took its time for, set-up left out: what `Speeds.learn` is told
    seconds              wall seconds of the step;  loading_s: the part of it spent waiting for arrays
    setup_s              the part spent reading and preparing the net; 0 where `timed` holds that work too
    """

    net_id: str
    kind: str
    forecast_s: float
    seconds: float
    loading_s: float = 0.0
    setup_s: float = 0.0
    rows: int = 0
    done: int = 0
    timed: Todo = Todo(rows=0, cells=0.0)


def net_costs(manifest: Manifest, *, gpu: bool) -> list[NetCost]:
    """Cost of every net of the bundle: measured seconds where there are any (--costs), else multiply-adds."""
    speed = GMAC_PER_S_GPU if gpu else GMAC_PER_S_CPU
    values = [m.value for m in manifest.ensemble.members if m.value is not None]
    usual = sum(values) / len(values) if values else 1.0
    shares = share_of_classes(manifest.ensemble)
    costs = []
    for part in manifest.ensemble.parts:
        cost = manifest.costs.get(part.name)
        if cost is None:
            a, b = UNKNOWN_ROW_S, 0.0  # seconds per row and per cell
        elif cost.seconds_a is not None and cost.seconds_b is not None:
            a, b = cost.seconds_a, cost.seconds_b
        else:
            a, b = cost.gmac_a / speed, cost.gmac_b / speed
        value = part.value if isinstance(part, Member) else None
        inputs = part.inputs if isinstance(part, Stacker) else ()
        costs += [
            NetCost(net_id=net_id, member=part.name, a_s=a, b_s_per_cell=b, inputs=inputs,
                    value=usual * shares.get(part.name, 1.0) if value is None else value)
            for net_id in net_ids(part)]
    return costs


def share_of_classes(ensemble: Ensemble) -> dict[str, float]:
    """Member -> what it is worth beside the others by the classes it knows; empty where each knows all.

    A class is worth the same whoever knows it, and is shared by those who do; the average member has 1.
    """
    members = ensemble.members
    classes = len(ensemble.classes)
    if not any(member.classes_map for member in members):
        return {}
    known = [[True] * classes if m.classes_map is None else m.classes_map.knows(classes) for m in members]
    knowing = [sum(column) for column in zip(*known, strict=True)]
    named = sum(1 for count in knowing if count)
    return {
        member.name: len(members) * sum(1 / knowing[k] for k in range(classes) if own[k]) / named
        for member, own in zip(members, known, strict=True)
    }


def expected(cost: NetCost, todo: Todo) -> float:
    """Seconds by the manifest alone, setup and loading excluded: what `Speeds.learn` compares with."""
    return max(0.0, cost.a_s * todo.rows + cost.b_s_per_cell * todo.cells)


def is_slight(cost: NetCost, todo: Todo) -> bool:
    """True where a row costs so few multiply-adds that other things take its time."""
    return expected(cost, todo) < SLIGHT_ROW_S * todo.rows


def forecast(cost: NetCost, todo: Todo, speeds: Speeds) -> float:
    """Seconds of a step on this machine, as far as it is known."""
    setup_s = 0.0 if cost.inputs else speeds.setup(cost.member)  # a stacker has next to none
    return expected(cost, todo) * speeds.factor(cost.member, is_slight(cost, todo)) + setup_s + todo.loading_s


def remaining(costs: Sequence[NetCost], todo: Mapping[str, Todo], speeds: Speeds) -> float:
    """Seconds that everything not yet done would take on one device."""
    return sum(
        forecast(c, todo[c.net_id], speeds) for c in costs if c.net_id in todo and todo[c.net_id].rows > 0
    )


def order_rows(lengths: Sequence[float]) -> list[int]:
    """Row numbers in running order: the longest first, as a probe of memory, then from the shortest up."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return order[-1:] + order[:-1]


def accuracy(outcomes: Sequence[Outcome]) -> PlanReport:
    """Every step's forecast and outcome; median and worst of outcome / forecast over the finished ones."""
    finished = [o for o in outcomes if o.done >= o.rows and o.forecast_s > 0]
    ratios = [o.seconds / o.forecast_s for o in finished]
    steps = tuple(
        StepReport(net=o.net_id, kind=o.kind, forecast_s=round(o.forecast_s, 3), seconds=round(o.seconds, 3),
                   loading_s=round(o.loading_s, 3), rows=o.rows, done=o.done)
        for o in outcomes)
    return PlanReport(steps=steps, median_ratio=round(median(ratios), 3) if ratios else None,
                      worst_ratio=round(max(ratios), 3) if ratios else None)
