"""Hands steps to devices: what is left to do, what it costs on this machine, and who does what now.

Owns `Dispatcher`, the live figures behind the plan. The rules of the choice are plan's; running a step is
step's.
"""
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..scores.blend import input_nets, stacker_rows
from ..sound.source import Source
from ..spec import Stacker
from . import choice, crowds, plan
from .net_run import NetRun
from .state import Run

WAIT_S = 0.25  # between two looks at the clock while another device's step may open new ones


class Dispatcher:
    """Thread-safe; every method may be called by any device's thread.

    left_s    seconds to the stop mark
    ended     True once no further step may start
    outcomes  of the steps so far
    busy      net ids that run now
    changed   notified whenever a step has ended
    aside     net ids that a lost device had in hand: they wait for another process
    devices   that still work
    """

    def __init__(self, run: Run, left_s: Callable[[], float], ended: Callable[[], bool]) -> None:
        self._run = run
        self._left_s = left_s
        self._ended = ended
        self._costs = plan.net_costs(run.manifest, gpu=any(device.cuda for device in run.devices))
        self._speeds = plan.Speeds()
        self.outcomes: list[plan.Outcome] = []
        self.busy: set[str] = set()
        self.changed = threading.Condition()
        self.aside: set[str] = set()
        self.devices = len(run.devices)
        self._ready: dict[str, tuple[list[int], int]] = {}

    def take(self, together: int = 1) -> plan.Step | None:
        """The next step for an idle device, None when nothing fits; waits where a running step may open one.

        Nets of members that have ended engines come last, and nothing runs beside them: whatever they do, the
        others have spoken, and a second crash has one culprit.

        together  most nets that the device runs on the same batches
        """
        with self.changed:
            while not self._ended():
                step = self._choose_by_trouble(self._todo(), together)
                if step is not None:
                    self.busy.update(step.net_ids)
                    return step
                if not self.busy:
                    return None
                self.changed.wait(WAIT_S)
        return None

    def guess_next(self) -> NetRun | None:
        """The net that would run if a device were idle now, None where none would: it may be opened ahead."""
        with self.changed:
            step = None if self._ended() else self._choose_by_trouble(self._todo(), 1)
        run = None if step is None else self._run.nets[step.net_ids[0]]
        return None if run is None or run.recipe is None else run

    def _choose_by_trouble(self, todo: Mapping[str, plan.Todo], together: int) -> plan.Step | None:
        """The plan's choice among the nets with least trouble; those that have any run alone."""
        rank = self._run.journal.rank_trouble
        untried = self.count_untried()
        if any(map(rank, self.busy)):
            return None
        for most in (0, 1, 2):
            candidates = {net_id: work for net_id, work in todo.items() if rank(net_id) <= most}
            step = self._choose(candidates, untried, together if most == 0 else 1)
            if step is not None or self.busy:
                return step
        return None

    def _choose(
        self, todo: Mapping[str, plan.Todo], untried: int, together: int
    ) -> plan.Step | None:
        """The plan's choice among these nets, at this moment."""
        costs = self._costs if together == 1 else self._with_stages(self._costs)
        return choice.next_step(
            costs,
            todo,
            self._speeds,
            left_s=self._left_s(),
            rows=int(np.count_nonzero(self._run.rows.left())),
            uncovered=untried,
            busy=self.busy | self.aside,
            row_independent=self._run.levels.row_independent,
            together=together,
            devices=self.devices,
        )

    def _with_stages(self, costs: Sequence[plan.NetCost]) -> list[plan.NetCost]:
        """The costs with what nets of several members may share: equal inputs, taken in the same way.

        A member of which no net was opened yet counts as like the others; the step finds out.
        """
        known: dict[str, Hashable] = {}
        usual: dict[Hashable, Hashable] = {}
        for net in self._run.nets.values():
            if net.recipe is not None and net.intake is not None:
                known[net.part.name] = net.intake
                usual.setdefault(net.recipe.key, net.intake)
        found = []
        for cost in costs:
            net = self._run.nets[cost.net_id]
            if net.recipe is not None and crowds.may_mix(net):
                key = net.recipe.key
                cost = replace(cost, staged=(key, known.get(cost.member, usual.get(key))))
            found.append(cost)
        return found

    def stop_of(self, step: plan.Step) -> Callable[[], bool]:
        """Tells a step when to leave: time is up, or it takes so long that the plan wants another choice.

        Not before its first row: a step that has learned nothing would only be chosen again, and a loader
        that hangs would look like one step after another.
        """
        until = time.monotonic() + step.patience_s
        nets = [self._run.nets[net_id] for net_id in step.net_ids]
        before = sum(net.answered for net in nets)
        return lambda: self._ended() or (
            time.monotonic() > until and sum(net.answered for net in nets) > before)

    def left_of(self, step: plan.Step) -> Callable[[], float]:
        """Tells a step how many seconds it has, by the clock and the plan."""
        until = time.monotonic() + step.patience_s
        return lambda: min(self._left_s(), until - time.monotonic())

    def finish(self, step: plan.Step, outcomes: Sequence[plan.Outcome]) -> None:
        """Learn from a step that has ended, and let the store drop what nobody will read again."""
        with self.changed:
            self.busy.difference_update(step.net_ids)
            for outcome in outcomes:
                self.outcomes.append(outcome)
                if outcome.timed.rows:
                    cost = next(c for c in self._costs if c.net_id == outcome.net_id)
                    expected_s = plan.expected(cost, outcome.timed)
                    spent = outcome.seconds - outcome.loading_s - outcome.setup_s
                    slight = plan.is_slight(cost, outcome.timed)
                    self._speeds = self._speeds.learn(
                        cost.member, expected_s, spent, outcome.setup_s, slight)
            self._drop_finished()
            self.changed.notify_all()

    def lose_device(self, step: plan.Step) -> bool:
        """A device is lost in this step: its nets wait for another process. False where it was the last."""
        with self.changed:
            if self.devices < 2:
                return False
            self.devices -= 1
            self.busy.difference_update(step.net_ids)
            self.aside.update(step.net_ids)
            self.changed.notify_all()
        return True

    def waits_aside(self) -> bool:
        """True where a net that a lost device had in hand still lacks rows."""
        nets = (self._run.nets[net_id] for net_id in self.aside)
        return any(not net.failed and net.lacking().rows for net in nets)

    def remaining_s(self) -> float:
        """Seconds that everything not yet done would take on these devices."""
        with self.changed:
            return plan.remaining(self._costs, self._todo(), self._speeds) / self.devices

    def count_untried(self) -> int:
        """Rows to predict that no net has scored or had to pass over.

        While nothing at all is scored, rows that nets had to pass over count too: another net may do better.
        """
        rows = self._run.rows
        scored = self._run.board.scored()
        untried = rows.left() & ~scored
        if scored.any():
            untried &= ~rows.tried
        return int(np.count_nonzero(untried))

    def _todo(self) -> dict[str, plan.Todo]:
        """What every live net still lacks."""
        return {net.net_id: self._todo_of(net) for net in self._run.nets.values() if not net.failed}

    def _todo_of(self, net: NetRun) -> plan.Todo:
        if isinstance(net.part, Stacker):
            ready = self._count_ready(net, net.part)
            return plan.Todo(rows=ready, cells=0.0, later=net.lacking().rows - ready)
        lacking = net.lacking()
        if not lacking.rows or net.recipe is None:
            return plan.Todo(rows=lacking.rows, cells=0.0)
        loading_s = self._run.feed.forecast_s(net.recipe, lacking.mask)
        return plan.Todo(rows=lacking.rows, cells=lacking.cells, loading_s=loading_s)

    def _count_ready(self, net: NetRun, stacker: Stacker) -> int:
        """Rows that the stacker lacks and can have; counted anew where a net of its inputs has moved."""
        run = self._run
        read = input_nets(stacker, run.ensemble)
        # Before the rows are looked at: a change meanwhile is then seen at the next look
        key = [run.board.changes(net_id) for net_id in [net.net_id, *read]] + [run.rows.changes]
        known = self._ready.get(net.net_id)
        if known is None or known[0] != key:
            ready = stacker_rows(stacker, run.ensemble, run.board)
            known = self._ready[net.net_id] = key, int(np.count_nonzero(net.lacking().mask[ready]))
        return known[1]

    def _drop_finished(self) -> None:
        """Tell the store how often each front end will still be read; it drops one that no live net needs."""
        uses = Counter[str]()
        sources: dict[str, Source] = {}
        for net in self._run.nets.values():
            if net.recipe is not None:
                live = not net.failed and net.lacking().rows > 0
                for stage in net.recipe.stages.values():
                    sources[stage.fe.key] = stage.fe
                    uses[stage.fe.key] += live
        for key, fe in sources.items():
            if uses[key]:
                self._run.feed.store.expect(fe, uses[key])
            else:
                self._run.feed.store.forget(fe)
