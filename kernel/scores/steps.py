"""The steps on tables of scores: which there are, and how a list of them is built and carried out.

Owns the table `STEPS`, building steps from what an ensemble says, and how each is carried out by its scope.
What a step computes is in `scaling`, `smoothing`, `gates`, `priors` and `own_step`; on which table it stands
is `levels`'.

A score that is missing is NaN, stays missing and goes into no other. A recording of which a row is missing
that may still come, or is made of a part of its nets, is computed from what is there, and its rows are
marked: they are not final.
"""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import HourglassError, SpecError, StepFailed, did_you_mean, text_of
from ..spec import load
from .gates import DampRare, GateNoise, GateSpike, GateSustained
from .own_step import OwnStep
from .priors import HourPrior, SiteFloor, SiteHourPrior
from .scaling import Cut, FileTop, GroupMax, Power, Rank, SoftmaxShare, Temperature, ThresholdRemap
from .smoothing import FileLogitMix, Smooth, SmoothAdaptive, SmoothEvents, SmoothGaussian, SmoothLocalMax
from .step import Function, Piece, Sheet, Step

ROUNDING = 1e-6  # beyond 0..1, which a step may leave

STEPS: dict[str, type[Step]] = {
    "file_top": FileTop,
    "file_logit_mix": FileLogitMix,
    "smooth": Smooth,
    "smooth_gaussian": SmoothGaussian,
    "smooth_local_max": SmoothLocalMax,
    "smooth_adaptive": SmoothAdaptive,
    "smooth_events": SmoothEvents,
    "power": Power,
    "temperature": Temperature,
    "cut": Cut,
    "threshold_remap": ThresholdRemap,
    "group_max": GroupMax,
    "softmax_share": SoftmaxShare,
    "site_hour_prior": SiteHourPrior,
    "hour_prior": HourPrior,
    "site_floor": SiteFloor,
    "rank": Rank,
    "damp_rare": DampRare,
    "gate_noise": GateNoise,
    "gate_sustained": GateSustained,
    "gate_spike": GateSpike,
}


def build(entries: Sequence[Any], where: str) -> list[Step]:
    """The steps of a list of tables, each with `kind` or with `file`.

    Raises  SpecError naming the step and the key
    """
    built = []
    for i, entry in enumerate(entries):
        at = f"{where}[{i}]"
        if not isinstance(entry, Mapping):
            raise SpecError(f"{at}: {entry!r}; give a table with `kind` and its keys, or with `file`")
        keys = dict(entry)
        if "file" in keys and "kind" not in keys:
            made: type[Step] = OwnStep
        else:
            kind = keys.pop("kind", None)
            if not isinstance(kind, str) or kind not in STEPS:
                raise SpecError(f"{at}.kind: {kind!r} is unknown; {did_you_mean(str(kind), STEPS)}")
            made = STEPS[kind]
        try:
            built.append(load(made, keys, at))
        except SpecError as error:
            text = str(error)
            raise SpecError(text if text.startswith(at) else f"{at}: {text}") from error
    return built


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A step that fits its table.

    where  for messages: the key that holds it
    """

    where: str
    step: Step
    change: Function


def bind(steps: Sequence[Step], sheet: Sheet, where: str) -> tuple[Bound, ...]:
    """The steps for a table. Raises SpecError naming the step and the key."""
    bound = []
    for i, step in enumerate(steps):
        try:
            bound.append(Bound(where=f"{where}[{i}]", step=step, change=step.bind(sheet)))
        except SpecError as error:
            raise SpecError(f"{where}[{i}].{error}" if str(error)[:1].isalpha() else f"{where}[{i}]: {error}"
                            ) from error
    return tuple(bound)


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """How far a run is, for the steps on one table.

    others    scores f64[N, K] of members and groups by name
    final     bool[N]: rows of which nothing more can come
    partial   bool[N]: rows that are there, but lack a part of what they are made of
    complete  nothing of the table itself is still to come; steps of the scope "table" run only then
    fault     hears of a step that failed and was left out
    """

    others: Mapping[str, np.ndarray]
    final: np.ndarray
    partial: np.ndarray
    complete: bool
    fault: Callable[[str, HourglassError], None]


def carry_out(
    steps: Sequence[Bound], table: np.ndarray, sheet: Sheet, how: Circumstances
) -> tuple[np.ndarray, np.ndarray]:
    """(the table f64[N, K] after the steps, rows bool[N] that are marked: not final).

    A step that fails, or leaves 0..1, is left out for the whole table and told; all rows are marked then.
    """
    there = np.isfinite(table).any(axis=1)
    marked = np.zeros(len(table), bool)
    acted = np.zeros(table.shape if any(bound.step.reads() for bound in steps) else (len(table), 0), bool)
    known = np.isfinite(table)
    waiting = (~known[:, known.any(axis=0)].all(axis=1) | how.partial) & ~how.final
    for bound in steps:
        if not there.any():
            break
        if bound.step.scope == "table" and not how.complete:
            marked |= there
            continue
        try:
            table = _run(bound, table, there, sheet, how, acted)
        except HourglassError as error:
            how.fault(bound.where, error)
            marked |= there
            continue
        for name in bound.step.reads():  # where the other table has no row, the step has not looked
            marked |= there & ~np.isfinite(how.others[name]).any(axis=1)
        marked |= _touched(bound.step, waiting, sheet) & there
    return table, marked


def _touched(step: Step, waiting: np.ndarray, sheet: Sheet) -> np.ndarray:
    """bool[N]: rows whose result depends on one that may still come."""
    if step.scope == "row" or not waiting.any():
        return np.zeros(len(waiting), bool)
    if step.scope == "table":
        return np.ones(len(waiting), bool)
    touched = np.zeros(len(waiting), bool)
    for rows in sheet.recordings:
        touched[rows] = waiting[rows].any()
    return touched if sheet.same is None else touched[sheet.same]


def _run(bound: Bound, table: np.ndarray, there: np.ndarray, sheet: Sheet, how: Circumstances,
         acted: np.ndarray) -> np.ndarray:
    """The table after one step. Raises HourglassError."""
    out = np.full(table.shape, np.nan)
    try:
        for rows in _pieces(bound.step.scope, there, sheet):
            piece = Piece(values=table[rows], rows=rows, others=how.others,
                          acted=acted[rows] if bound.step.scope != "table" else acted)
            out[rows] = bound.change(piece)
    except (HourglassError, MemoryError):
        raise
    except Exception as error:  # of numbers that nobody thought of: the submission goes without the step
        raise StepFailed(f"{type(error).__name__}: {text_of(error)}; the step is left out") from error
    if sheet.same is not None:
        out = out[sheet.same]
    known = np.isfinite(table)
    low, high = out[known].min(initial=0.0), out[known].max(initial=1.0)
    if not (low >= -ROUNDING and high <= 1.0 + ROUNDING):  # NaN fails, too
        raise StepFailed(f"gave {low:.3g} to {high:.3g}, which are no scores in 0..1; the step is left out")
    out[~known] = np.nan
    return np.clip(out, 0.0, 1.0, out=out)


def _pieces(scope: str, there: np.ndarray, sheet: Sheet) -> Sequence[np.ndarray]:
    """Row numbers of what a step of this scope changes at once."""
    if scope == "row":
        return (np.flatnonzero(there),)
    if scope == "table":
        return (np.arange(len(there)),)
    return [rows for rows in sheet.recordings if there[rows].any()]
