"""Costs of nets over ten rows, as the tests of the plan and of the choice of steps need them."""
from __future__ import annotations

from collections.abc import Collection, Sequence

from kernel.engine.plan import NetCost, Todo

ROWS = 10


def net(
    member: str, fold: int = 0, seconds: float = 1.0, value: float = 1.0, inputs: tuple[str, ...] = ()
) -> NetCost:
    """A net whose step over the ten rows takes `seconds`."""
    return NetCost(
        net_id=f"{member}.{fold}", member=member, a_s=seconds / ROWS, b_s_per_cell=0.0, value=value,
        inputs=inputs,
    )


def todo_of(costs: Sequence[NetCost], done: Collection[str] = ()) -> dict[str, Todo]:
    """All rows of each net, none of those whose net ids are in `done`."""
    return {c.net_id: Todo(rows=0 if c.net_id in done else ROWS, cells=0) for c in costs}
