"""From the nets' probabilities to the finished table, where steps and groups stand in between.

Owns the order: members and stackers with their steps, groups with theirs, the ensemble's mean, and the steps
on [output]; and what the scopes of all these make of a run in which something is missing. How scores are
merged is `blend`'s, what a step computes `steps`'.
"""
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from ..errors import HourglassError, SpecError, did_you_mean
from ..sound.rows import Row
from ..spec import LEAST_PROBABILITY, MEAN_SCOPES, Ensemble, Group, Part
from . import blend as folds
from .blend import Blend, Board
from .class_weights import fill_prior, fill_unknown, known_classes, part_weights, speaking
from .step import Sheet
from .steps import Bound, Circumstances, Step, bind, build, carry_out

# What a front end looks at, by its own key `scope`: a window is a row, and neither compares recordings.
FRONT_END_SCOPES = {"window": "row", "recording": "recording", "batch": "recording"}
OUTPUT = "output"
Fault = Callable[[str, HourglassError], None]


def steps_of(ensemble: Ensemble) -> dict[str, list[Step]]:
    """Name of each part and group, and "output" -> its steps, `output.smoothing` as the last of them.

    Raises  SpecError naming the key, also where a gate names no scores that are there before it
    """
    told: list[Any] = list(ensemble.output.steps)
    if ensemble.output.smoothing:
        told.append({"kind": "smooth", "weights": list(ensemble.output.smoothing)})
    found: dict[str, list[Step]] = {}
    for name, where, entries in [*_holders(ensemble), (OUTPUT, OUTPUT, tuple(told))]:
        built = build(entries, f"{where}.steps")
        for i, step in enumerate(built):
            for wanted in step.reads():
                if wanted not in found:
                    near = did_you_mean(wanted, found) if found else "let it stand there"
                    raise SpecError(f"{where}.steps[{i}]: reads {wanted!r}, which is no member or group that "
                                    f"stands before; {near}")
        found[name] = built
    return found


def _holders(ensemble: Ensemble) -> list[tuple[str, str, tuple[Any, ...]]]:
    """(name, key, steps) of all that has steps, [output] aside, in the order in which they run."""
    kinds = (("members", ensemble.members), ("stackers", ensemble.stackers), ("groups", ensemble.groups))
    return [(held.name, f"{kind}[{i}]", held.steps)
            for kind, several in kinds for i, held in enumerate(cast(Sequence[Any], several))]


def scopes(ensemble: Ensemble) -> dict[str, str]:
    """What every step, mean and front end of the ensemble compares: its key -> a scope (step.SCOPES).

    Raises  SpecError as `steps_of`
    """
    found = {f"frontends.{name}": FRONT_END_SCOPES.get(str(table.get("scope", "window")), "row")
             for name, table in ensemble.frontends.items()}
    found["mean"] = MEAN_SCOPES[ensemble.mean]
    found |= {f"{part.name}.fold_mean": MEAN_SCOPES[part.fold_mean] for part in ensemble.parts}
    found |= {f"{group.name}.mean": MEAN_SCOPES[group.mean] for group in ensemble.groups}
    for name, several in steps_of(ensemble).items():
        found |= {f"{name}.steps[{i}]": step.scope for i, step in enumerate(several)}
    return found


def is_row_independent(ensemble: Ensemble) -> bool:
    """False where scores of different recordings are compared: then only complete members count."""
    return ensemble.row_independent and "table" not in scopes(ensemble).values()


def recordings(rows: Sequence[Row]) -> list[list[int]]:
    """Row numbers of each recording, in time order; of an id that is repeated the first one."""
    first = {rows[i].id: i for i in reversed(range(len(rows)))}
    found: dict[str, list[int]] = {}
    for i in sorted(sorted(first.values()), key=lambda i: rows[i].start or 0):
        found.setdefault(rows[i].clip.id, []).append(i)
    return list(found.values())


def sheet_of(ensemble: Ensemble, rows: Sequence[Row]) -> Sheet:
    """What the steps may know of the rows of a run."""
    first = {rows[i].id: i for i in reversed(range(len(rows)))}
    repeats = len(first) < len(rows)
    return Sheet(
        classes=ensemble.classes,
        groups=ensemble.class_groups,
        ids=tuple(row.id for row in rows),
        files=tuple(row.clip.id for row in rows),
        recordings=tuple(np.array(index, np.intp) for index in recordings(rows)),
        same=np.array([first[row.id] for row in rows], np.intp) if repeats else None,
    )


@dataclass(kw_only=True)
class Levels:
    """An ensemble over the rows of a run, opened once.

    fault  hears of each step that fails, once; it is left out
    """

    ensemble: Ensemble
    sheet: Sheet
    fault: Fault
    row_independent: bool = True
    steps: dict[str, tuple[Bound, ...]] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def blend(
        self, board: Board, prior: np.ndarray, finished: Collection[str] | None = None,
        lost: np.ndarray | None = None,
    ) -> Blend:
        """The finished table from whatever is on the board; `blend.blend` says what may be missing.

        lost  bool[N]: rows that no net will ever have; None: not known
        """
        plain = replace(self.ensemble, row_independent=self.row_independent)
        whole = self.row_independent
        tables: dict[str, np.ndarray] = {}
        if not self.ensemble.groups and not any(self.steps[part.name] for part in self.ensemble.parts):
            if not any(bound.step.reads() for bound in self.steps[OUTPUT]):
                merged = folds.blend(plain, board, prior, finished)
                whole = whole or any(folds.is_complete(part, board, finished, plain.parts)
                                     for part in plain.parts)
                return self._finish(merged, tables, whole, lost)
        merged, whole = self._merge(plain, board, prior, finished, tables, lost)
        return self._finish(merged, tables, whole, lost)

    def _finish(
        self, merged: Blend, tables: dict[str, np.ndarray], whole: bool, lost: np.ndarray | None
    ) -> Blend:
        """The blend after the steps on [output]; scores that are the prior stay as they are."""
        if not self.steps[OUTPUT]:
            return merged
        prior = np.broadcast_to(merged.prior_rows[:, None], merged.values.shape)
        if merged.prior_cells is not None:
            prior = prior | merged.prior_cells
        table = merged.values
        held = table[prior]
        table[prior] = np.nan
        how = self._how(tables, whole, lost, ~merged.full & ~merged.prior_rows)
        table, marked = carry_out(self.steps[OUTPUT], table, self.sheet, how)
        np.clip(table, LEAST_PROBABILITY, 1.0, out=table)
        table[prior] = held
        return replace(merged, values=table, full=merged.full & ~marked)

    def _how(self, tables: dict[str, np.ndarray], whole: bool, lost: np.ndarray | None,
             partial: np.ndarray) -> Circumstances:
        final = np.zeros(len(partial), bool) if lost is None else lost
        return Circumstances(others=tables, final=final, partial=partial, complete=whole, fault=self._tell)

    def _tell(self, where: str, error: HourglassError) -> None:
        if where not in self._told:
            self._told.add(where)
            self.fault(where, error)

    def _merge(
        self, plain: Ensemble, board: Board, prior: np.ndarray, finished: Collection[str] | None,
        tables: dict[str, np.ndarray], lost: np.ndarray | None,
    ) -> tuple[Blend, bool]:
        """(the blend before the steps on [output], whether anything in it is complete); fills `tables`."""
        parts = plain.parts
        complete = {part.name: folds.is_complete(part, board, finished, parts) for part in parts}
        whole = self.row_independent or any(complete.values())
        full = folds.full_rows(self._deciding(), plain, board)  # before the scores are read
        lone, marked = np.zeros((2, board.shape[0]), bool)
        means: dict[str, np.ndarray] = {}  # what goes into a mean; `tables` is what gates read
        partial: dict[str, np.ndarray] = {}
        for part in parts:
            lacking = ~folds.full_rows([part], plain, board)  # before they are read, too
            table = folds.merge_folds(part, board)
            if whole and not self.row_independent and not complete[part.name]:
                table = np.full(board.shape, np.nan)
            table[:, ~known_classes(part, board.shape[1])] = np.nan
            how = self._how(tables, self.row_independent or complete[part.name], lost, lacking)
            table, unsure = carry_out(self.steps[part.name], table, self.sheet, how)
            means[part.name] = _fill(part, table)
            tables[part.name] = np.where(speaking(part, board.shape[1]), means[part.name], np.nan)
            marked |= unsure
            partial[part.name] = lacking | unsure
        for group in plain.groups:
            held: list[Any] = [self._named(plain, name) for name in group.members]
            merged, alone = _mean(replace(plain, mean=group.mean, mean_power=group.mean_power), held, means)
            counted = [one.name for one in held if one.weight > 0] or list(group.members)
            lacking = np.logical_or.reduce([partial[name] for name in counted])
            how = self._how(tables, whole, lost, lacking)
            means[group.name], unsure = carry_out(self.steps[group.name], merged, self.sheet, how)
            tables[group.name] = means[group.name]
            marked |= unsure
            partial[group.name] = lacking | unsure
            lone |= alone
        inside = {name for group in plain.groups for name in group.members}
        top: list[Any] = [held for held in (*parts, *plain.groups) if held.name not in inside]
        values, alone = _mean(plain, top, means)
        prior_rows, prior_cells = fill_prior(values, prior)
        np.clip(values, LEAST_PROBABILITY, 1.0, out=values)
        full &= ~(prior_rows | lone | alone | marked)
        return Blend(values=values, full=full, prior_rows=prior_rows, prior_cells=prior_cells), whole

    def _deciding(self) -> list[Part]:
        """The parts whose scores go into the final table: by weight, or through a gate."""
        ensemble = self.ensemble
        read = {name for several in self.steps.values() for bound in several for name in bound.step.reads()}
        every: list[Any] = [*ensemble.parts, *ensemble.groups]
        weights = part_weights(ensemble, every)
        weighty = [held for held, one in zip(every, weights, strict=True) if (one > 0).any()]
        counted = {held.name for held in weighty or ensemble.parts} | read
        inside = {name: group for group in ensemble.groups for name in group.members}
        deciding = []
        for part in ensemble.parts:
            above: Part | Group | None = part
            while above is not None and above.name in counted and above.name not in read:
                above = inside.get(above.name)
            if above is None or above.name in read:
                deciding.append(part)
        return deciding or list(ensemble.parts)

    @staticmethod
    def _named(ensemble: Ensemble, name: str) -> Part | Group:
        return next(held for held in (*ensemble.parts, *ensemble.groups) if held.name == name)


def _fill(part: Part, table: np.ndarray) -> np.ndarray:
    """A part's table for a mean: what it writes into classes that it does not know, after its steps."""
    rows = np.isfinite(table).any(axis=1)
    unknown = ~known_classes(part, table.shape[1])
    table = np.where(rows[:, None] & unknown, 0.0, table)
    return fill_unknown(part, table, table.shape[1])


def _mean(
    ensemble: Ensemble, held: Sequence[Any], tables: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """f64[N, K] of parts and groups, and bool[N]: rows that only those of weight 0 decide, wholly or in part.

    A group may lack single classes of a row: then each class is merged for itself.
    """
    stack = np.stack([tables[one.name] for one in held])
    lacking = np.isnan(stack)
    if (lacking == lacking.any(axis=2, keepdims=True)).all():
        return folds.blend_block(ensemble, held, stack)
    if ensemble.mean == "vote":  # it compares classes
        single = lacking & ~lacking.all(axis=2, keepdims=True)
        return folds.blend_block(ensemble, held, np.where(single, 0.0, stack))
    values, lone = np.empty(stack.shape[1:]), np.zeros(stack.shape[1], bool)
    for k in range(stack.shape[2]):
        columns = slice(k, k + 1)
        values[:, columns], alone = folds.blend_block(ensemble, held, stack[..., columns], columns)
        lone |= alone
    return values, lone


def open_levels(ensemble: Ensemble, rows: Sequence[Row], fault: Fault) -> Levels:
    """The ensemble over the rows of a run; a step that does not fit is told and left out.

    Raises  SpecError where the spec itself is wrong
    """
    sheet = sheet_of(ensemble, rows)
    opened = Levels(ensemble=ensemble, sheet=sheet, fault=fault, row_independent=is_row_independent(ensemble))
    for name, several in steps_of(ensemble).items():
        opened.steps[name] = bind(several, sheet, f"{name}.steps")
    return opened


def count_tables(ensemble: Ensemble) -> int:
    """Tables f64[N, K] that a blend holds at once beside the board.

    With steps or groups that is each part's and group's table, and what a step works with.
    """
    held = [*ensemble.parts, *ensemble.groups]
    if not ensemble.groups and not any(one.steps for one in ensemble.parts) and not ensemble.output.steps:
        return folds.count_tables(ensemble)
    return max(folds.count_tables(ensemble), 2 * len(held) + 8)
