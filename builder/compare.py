"""`--compare`: arrays and scores of the user's own training code against those that the bundle will give.

Owns the comparison and the search for the likeliest cause of a difference: each known cause (`causes`) is
tried, alone and by twos. The file of pairs is `pairs`. A wrong spectrogram gives scores that look right and
are not: that is the reason for all of this.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from kernel import spec
from kernel.bundle import parse_state
from kernel.errors import HourglassError, SpecError, did_you_mean
from kernel.inference import backends
from kernel.inference.devices import Device
from kernel.inference.member import ACTIVATIONS, LoadedNet, load_net, predict_alone, row_inputs
from kernel.inference.recipe import CONSTANTS, Recipe, build_recipe, fill_constants
from kernel.scores.class_weights import known_classes
from kernel.scores.means import mean
from kernel.sound import decode, own
from kernel.sound.rows import Row
from kernel.sound.source import Source

from . import weights
from .causes import Cause, key_causes, other_causes
from .pairs import Case, read_cases

ARRAY_TOLERANCE = 1e-3  # largest difference of an array, as a share of the spread of the training code's
SCORE_TOLERANCE = 1e-4  # largest difference of a score
BEST_ALONE = 6  # causes that are tried together with every other one, where none explains alone
HINT_SHARE = 0.5  # a cause that leaves at most this share of the mean difference is worth naming
NOTHING = Cause(words="")
CPU = Device(name="cpu", about="compare")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far one array lies from the training code's.

    largest, mean  of the absolute differences; inf where the shapes differ
    place          where it sits, in words
    """

    largest: float
    mean: float
    place: str


def measure(ours: np.ndarray, wanted: np.ndarray) -> Difference:
    """The difference of two arrays, axes of length 1 aside."""
    ours = np.squeeze(np.asarray(ours, np.float64))
    wanted = np.squeeze(wanted)
    if ours.shape != wanted.shape:
        return Difference(
            largest=np.inf,
            mean=np.inf,
            place=f"shapes: ours {list(ours.shape)}, training {list(wanted.shape)}",
        )
    if not np.isfinite(wanted).all():
        return Difference(largest=np.inf, mean=np.inf, place="the training array holds NaN or infinity")
    away = np.abs(ours - wanted)
    if not away.size or not away.max():
        return Difference(largest=0.0, mean=0.0, place="nowhere")
    return Difference(largest=float(away.max()), mean=float(away.mean()), place=_place(away))


def _place(away: np.ndarray) -> str:
    """Which rows and columns hold the cells that differ by more than half the largest difference."""
    if away.ndim < 2:
        worst = int(np.argmax(away)) if away.ndim else 0
        return f"class {worst}"
    cells = np.nonzero(away > away.max() / 2)
    bins, frames = cells[-2], cells[-1]
    text = (
        f"bins {bins.min()}..{bins.max()} of {away.shape[-2]}, frames {frames.min()}..{frames.max()} of "
        f"{away.shape[-1]}"
    )
    edge = np.minimum(frames, away.shape[-1] - 1 - frames)
    if away.shape[-1] > 12 and edge.max() <= 3:
        text += " (the outer frames alone)"
    return text


Evaluate = Callable[[Case, Cause], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the comparison: what was compared, how far it is off, and why."""

    what: str
    difference: Difference
    tolerance: float
    cause: str | None

    @property
    def holds(self) -> bool:
        return self.difference.largest <= self.tolerance

    def tell(self) -> str:
        """The line, or the lines, for the build's output."""
        d = self.difference
        if np.isinf(d.largest):
            text = f"{self.what}: DIFFERS, {d.place}"
        else:
            text = (
                f"{self.what}: {'agrees' if self.holds else 'DIFFERS'}, largest {d.largest:.3g}, mean "
                f"{d.mean:.3g} (allowed {self.tolerance:.3g})"
            )
            text += "" if self.holds else f"; at {d.place}"
        return text if self.holds else f"{text}\n  likeliest cause: {self.cause or 'none of the known ones'}"


class _OneWave:
    """Stands for the store: the front end's array of one clip, changed as a cause has it."""

    def __init__(self, case: Case, cause: Cause) -> None:
        self._case = case
        self._cause = cause

    def get(self, fe: Source, row: Row) -> np.ndarray:
        return fe.of_row(self._case.wave(fe.rate, self._cause), row.id)


class Comparison:
    """All that an ensemble makes of a clip, with its front ends as they are or changed.

    modules  member -> its net; a graph has none
    states   member -> reads the state dicts of its folds
    """

    def __init__(self, ensemble: spec.Ensemble, modules: Mapping[str, nn.Module],
                 states: Mapping[str, Callable[[], list[dict[str, Any]]]]) -> None:
        self.ensemble = replace(ensemble, windows=None)  # A clip is compared as a whole.
        self._modules = modules
        self._states = states
        self._folds = lru_cache(maxsize=1)(self._load)
        self._constants = lru_cache(maxsize=1)(self._load_constants)

    def evaluate(self, kind: str, name: str) -> Evaluate:
        """What the clip becomes under a cause: an array, a member's input, or its probabilities."""
        if kind == "frontends":
            return lambda case, cause: _after(cause, self._front(name, case, cause))
        member = self._member(name)
        if kind == "inputs":
            return lambda case, cause: _after(cause, self._inputs(member, case, cause))
        return lambda case, cause: self._scores(member, case, cause)

    def _changed(self, fronts: Iterable[str], cause: Cause) -> spec.Ensemble:
        tables = dict(self.ensemble.frontends)
        for name in fronts if cause.keys else ():
            tables[name] = {**tables[name], **cause.keys}
        return replace(self.ensemble, frontends=tables)

    def _front(self, name: str, case: Case, cause: Cause) -> np.ndarray:
        fe = own.open_front_end(self._changed([name], cause).frontends[name], name)
        return fe.of_row(case.wave(fe.rate, cause), case.name)

    def _recipe(self, member: spec.Member, cause: Cause) -> Recipe:
        fronts = [entry.frontend for entry in member.named_inputs().values()]
        return build_recipe(self._changed(fronts, cause), member)

    def _inputs(self, member: spec.Member, case: Case, cause: Cause) -> np.ndarray:
        """What the net sees of the clip, all passes: the input that has the time axis."""
        module = self._modules.get(member.name, nn.Identity())
        run = partial(backends.call_net, module)
        runner = backends.Runner(device=CPU, path="compare", run=run, exact=run)
        recipe = self._recipe(member, cause)
        if member.name in self._states and recipe.takes_constants:
            recipe = fill_constants(recipe, self._constants(member.name)[0])[0]
        net = LoadedNet(module=module, runner=runner, recipe=recipe,
                        activate=ACTIVATIONS["none"], cost=spec.Cost())
        inputs = row_inputs(net, _OneWave(case, cause), Row(id=case.name, clip=decode.Clip(id=case.name)))
        return inputs[net.recipe.timed].numpy()

    def _load(self, name: str) -> list[LoadedNet]:
        """The nets of all folds of a member. Raises SpecError for a graph."""
        member = self._member(name)
        if name not in self._states:
            raise SpecError(f"member {name} is a graph: compare its input, inputs/{name}, not its scores")
        recipe = self._recipe(member, NOTHING)
        classes = len(self.ensemble.classes)
        return [load_net(recipe, state, classes, CPU, spec.Cost()) for state in self._states[name]()]

    def _load_constants(self, name: str) -> list[dict[str, Any]]:
        """What the checkpoints of all folds hold for the member's finish."""
        return [{key: value for key, value in state.items() if key.startswith(CONSTANTS)}
                for state in self._states[name]()]

    def _scores(self, member: spec.Member, case: Case, cause: Cause) -> np.ndarray:
        row = Row(id=case.name, clip=decode.Clip(id=case.name))
        recipe = self._recipe(member, cause)
        waves = _OneWave(case, cause)
        nets = self._folds(member.name)
        recipes = [recipe] * len(nets)
        if recipe.takes_constants:
            recipes = [fill_constants(recipe, held)[0] for held in self._constants(member.name)]
        folds = [predict_alone(replace(net, recipe=own_recipe), waves, row)
                 for net, own_recipe in zip(nets, recipes, strict=True)]
        scores = mean(member.fold_mean, np.stack(folds)[:, None], member.fold_weights)[0]
        return self.known("members", member.name, scores)

    def known(self, kind: str, name: str, values: np.ndarray) -> np.ndarray:
        """The values that are compared: of a member's scores those of the classes that it knows."""
        if kind != "members":
            return values
        known = known_classes(self._member(name), len(self.ensemble.classes))
        flat = np.squeeze(values)
        return flat[known] if flat.shape == known.shape else values

    def _member(self, name: str) -> spec.Member:
        """The member. Raises SpecError for a head: what its embedding's graph reads can be compared."""
        found = next(member for member in self.ensemble.members if member.name == name)
        for entry in found.named_inputs().values():
            if entry.frontend in self.ensemble.embeddings:
                front = self.ensemble.embeddings[entry.frontend].frontend
                raise SpecError(f"member {name} reads the embedding {entry.frontend!r}; compare what its "
                                f"graph reads, frontends/{front}")
        return found

    def causes(self, kind: str, name: str, case: Case) -> list[Cause]:
        """Everything that may be tried for one comparison."""
        if kind == "frontends":
            fronts = [name]
        else:
            member = self._member(name)
            fronts = [entry.frontend for entry in member.named_inputs().values()]
        opened = [own.open_front_end(self.ensemble.frontends[front], front) for front in fronts]
        found: list[Cause] = []
        for fe in opened:
            if isinstance(fe, own.OwnFrontEnd):
                continue
            found += key_causes(asdict(fe))
        found += other_causes(any(fe.rate != case.rate for fe in opened), len(case.samples))
        return [cause for cause in found if cause.after is None] if kind == "members" else found


def _after(cause: Cause, x: np.ndarray) -> np.ndarray:
    return x if cause.after is None else cause.after(np.asarray(x, np.float64))


def find_cause(
    evaluate: Evaluate,
    case: Case,
    wanted: np.ndarray,
    causes: list[Cause],
    here: Difference,
    tolerance: float,
) -> str | None:
    """The words for the cause that explains a difference best: alone, else by twos; None where none helps."""

    def attempt(cause: Cause) -> Difference:
        try:
            return measure(evaluate(case, cause), wanted)
        except (
            HourglassError,
            RuntimeError,
            ValueError,
            IndexError,
        ):  # Keys that do not go together, and such.
            return Difference(largest=np.inf, mean=np.inf, place="")

    tried = sorted(((attempt(cause), cause) for cause in causes), key=lambda pair: pair[0].mean)
    best = tried[0] if tried else (here, NOTHING)
    if best[0].largest > tolerance:
        fits = [cause for difference, cause in tried if np.isfinite(difference.mean)][:BEST_ALONE]
        pairs = [
            first.joined(second)
            for first in fits
            for second in causes
            if first is not second and not set(first.keys) & set(second.keys)
        ]
        both = [(attempt(cause), cause) for cause in pairs]
        best = min([best, *both], key=lambda pair: pair[0].mean)
    difference, cause = best
    if difference.largest <= tolerance:
        return f"{cause.tell()} (then they agree: {difference.largest:.2g})"
    if np.isfinite(difference.mean) and difference.mean <= HINT_SHARE * here.mean:
        return f"in part {cause.tell()} (a mean difference of {difference.mean:.2g} is left)"
    return None


def compare(comparison: Comparison, cases: list[Case], tolerance: float | None, where: str) -> list[Finding]:
    """A finding for each array and each member's scores of each clip; the largest one of each comes first.

    tolerance  instead of both usual ones

    Raises  SpecError for a name that the ensemble does not have
    """
    known = {"frontends": list(comparison.ensemble.frontends)}
    known["inputs"] = known["members"] = [member.name for member in comparison.ensemble.members]
    findings = []
    for case in cases:
        for (kind, name), wanted in case.wanted.items():
            if name not in known[kind]:
                raise SpecError(f"{where}: {case.name}/{kind}/{name}: {did_you_mean(name, known[kind])}")
            evaluate = comparison.evaluate(kind, name)
            wanted = comparison.known(kind, name, wanted)
            spread = 1.0 if kind == "members" else float(np.ptp(wanted)) or 1.0
            usual = SCORE_TOLERANCE if kind == "members" else ARRAY_TOLERANCE
            allowed = spread * (usual if tolerance is None else tolerance)
            here = measure(evaluate(case, NOTHING), wanted)
            cause = None
            if here.largest > allowed:
                causes = comparison.causes(kind, name, case)
                cause = find_cause(evaluate, case, wanted, causes, here, allowed)
            what = {"frontends": "front end", "inputs": "input of member", "members": "scores of member"}[
                kind
            ]
            findings.append(
                Finding(
                    what=f"{what} {name}, clip {case.name}", difference=here, tolerance=allowed, cause=cause
                )
            )
    return findings


def check(path: Path, ensemble: spec.Ensemble, modules: Mapping[str, nn.Module],
          sources: Sequence[weights.Source], tolerance: float | None, allowed: bool,
          say: Callable[[str], None]) -> None:
    """Tells how far the ensemble is from what the training code gave for the clips of `path`.

    allowed  a difference beyond the tolerance is only told

    Raises  SpecError for a difference that is not allowed, and for a file or a name that is not right
    """
    blobs: dict[str, list[Callable[[], bytes]]] = {}
    for source in sources:
        if source.kind == "safetensors":
            blobs.setdefault(source.member, []).append(source.read)

    def states(name: str) -> Callable[[], list[dict[str, Any]]]:
        return lambda: [parse_state(read(), name) for read in blobs[name]]

    comparison = Comparison(ensemble, modules, {name: states(name) for name in blobs})
    findings = compare(comparison, read_cases(path), tolerance, f"--compare {path}")
    for finding in findings:
        say(finding.tell())
    differ = sum(not finding.holds for finding in findings)
    if differ and not allowed:
        raise SpecError(
            f"--compare {path}: {differ} of {len(findings)} comparisons differ from the training code "
            "(above); correct the front end, or give --compare-allow to build all the same"
        )
