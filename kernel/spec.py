"""What an ensemble is: the typed form of an ensemble TOML and of the bundle's manifest, with strict loaders.

Owns `Ensemble` (written by people), `Manifest` (written by the builder) and the rule that an unknown key is
an error. Does not build anything: front ends, views, finishes and families check their own parameters.
"""
from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import SpecError, did_you_mean

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}\Z")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")  # flat bundle names (reliability.md 6)
MAX_JSON_BYTES = 1 << 20  # a larger manifest is refused before it is parsed (reliability.md 6)
MEANS = ("geometric", "arithmetic", "logit", "rank", "power", "min", "max", "median", "minmax", "vote")
ROW_DEPENDENT_MEANS = ("rank", "minmax")  # these compare rows: complete members only (DESIGN 9)
ACTIVATIONS = ("sigmoid", "softmax", "none")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Input:
    """One named input of a net: a front end and what is done to the view's output.

    frontend  name in [frontends]
    finish    steps of kernel.inference.finish, in order: names or tables with `kind`
    """

    frontend: str
    finish: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model of the ensemble, with all its folds.

    name          unique, used in files and reports
    family        key of kernel.models.FAMILIES, or "my_model.py:MyNet" (own file), or "onnx"
    params        constructor values of the family
    frontend      name in [frontends], for a net with one input
    finish        steps of kernel.inference.finish for that input, in order: names or tables with `kind`
    inputs        several named inputs, for nets that take a dict; then no `frontend` and `finish`
    view          {kind = "full", ...}: kernel.inference.views
    weights       file name, with {fold} where folds > 1; read below --weights; None = NAME_{fold}.safetensors
    folds         fold numbers
    fold_mean     mean over folds
    fold_weights  one weight per fold; empty = all alike
    weight        weight in the final mean (0 = feeds stackers only)
    activation    "sigmoid", "softmax" or "none" (the net gives probabilities); None = sigmoid for logits,
                  none otherwise
    value         what the member is worth to the plan (an out-of-fold score); None = all alike
    """

    name: str
    family: str
    params: dict[str, Any] = field(default_factory=dict)
    frontend: str | None = None
    finish: tuple[Any, ...] = ()
    inputs: dict[str, Input] = field(default_factory=dict)
    view: dict[str, Any] = field(default_factory=lambda: {"kind": "full"})
    weights: str | None = None
    folds: tuple[int, ...] = (0,)
    fold_mean: str = "geometric"
    fold_weights: tuple[float, ...] = ()
    weight: float = 1.0
    activation: str | None = None
    value: float | None = None

    def named_inputs(self) -> dict[str, Input]:
        """Input name -> Input; a single-input member has the name "x"."""
        return self.inputs or {"x": Input(frontend=self.frontend or "", finish=self.finish)}

    def weights_file(self, fold: int) -> str:
        return (self.weights or self.name + "_{fold}.safetensors").replace("{fold}", str(fold))


@dataclass(frozen=True, kw_only=True)
class Stacker:
    """A second-level net over the members' fold-averaged probabilities.

    name             unique among members and stackers
    family           key of kernel.models.FAMILIES, of a stacker
    inputs           names of the members it reads, in order
    params           constructor values of the family
    features         "concat" -> [B, n*K] in the order of `inputs`; "per_class" -> [B, K, n(+1)], the weighted
                     average last
    average_weights  one weight per input for that average ("per_class" only); empty = no average
    weights          file name, as for a member
    folds            fold numbers
    fold_mean        mean over folds
    weight           weight in the final mean, beside the members
    activation       as for a member
    """

    name: str
    family: str
    inputs: tuple[str, ...]
    params: dict[str, Any] = field(default_factory=dict)
    features: str = "concat"
    average_weights: tuple[float, ...] = ()
    weights: str | None = None
    folds: tuple[int, ...] = (0,)
    fold_mean: str = "geometric"
    weight: float = 1.0
    activation: str | None = None

    weights_file = Member.weights_file


@dataclass(frozen=True, kw_only=True)
class Output:
    """Form of submission.csv.

    format        "probabilities" (one column per class) or "label" (one column with the best class)
    label_column  name of the label column; None or not in the sample = the first column after the id
    labels        class -> text written (default: the class name)
    smoothing     kernel over neighbouring windows of one clip, odd length, e.g. [0.1, 0.8, 0.1]
    """

    format: str = "probabilities"
    label_column: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    smoothing: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Windows:
    """One row per fixed window of a long recording, cut from the waveform at its own rate.

    seconds  length of a window
    pattern  row id, of {stem} (the file name without suffix) and {end} (the window's end in seconds)
    """

    seconds: float = 5.0
    pattern: str = "{stem}_{end}"


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """A whole solution as data; docs/ensembles.md lists every key.

    name             a-z, 0-9, "_", "-" and ".": part of the dataset's default name
    classes          class names, or a text file beside the TOML with one per line
    members          [[members]]: the first-level nets
    frontends        [frontends.NAME]: what is stored of a clip; {preset = ...} or kernel.sound.frontends'
                     keys
    stackers         [[stackers]]: second-level nets
    about            one sentence for the dataset's page
    profile          limits it runs under: fat2019, code-gpu, code-cpu or birdclef-cpu90
                     (kernel.limits.PROFILES)
    mean             over members and stackers: kernel.scores.blend.MEANS
    mean_power       exponent of the mean "power"
    row_independent  false where a mean or the metric compares rows: then only complete members count
    max_seconds      longer clips are cut there; None = 60, or 900 with [windows]
    prior            score of each class in rows that nothing could predict, or a text file beside the TOML;
                     empty = uniform
    output           [output]: form of submission.csv
    windows          [windows]: rows are windows of long recordings
    """

    name: str
    classes: tuple[str, ...]
    members: tuple[Member, ...]
    frontends: dict[str, dict[str, Any]] = field(default_factory=dict)
    stackers: tuple[Stacker, ...] = ()
    about: str = ""
    profile: str = "fat2019"
    mean: str = "geometric"
    mean_power: float = 2.0
    row_independent: bool = True
    max_seconds: float | None = None
    prior: tuple[float, ...] = ()
    output: Output = field(default_factory=Output)
    windows: Windows | None = None


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the bundle (or of the wheel): bytes and sha256 (hex)."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Net:
    """One net: a (member or stacker, fold) and where its bytes lie.

    offset, length   slice of `file` in bytes (a whole safetensors blob)
    kind             "safetensors" or "onnx"
    """

    member: str
    fold: int
    file: str
    offset: int
    length: int
    sha256: str
    kind: str = "safetensors"

    @property
    def id(self) -> str:
        return f"{self.member}.{self.fold}"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one net per forward, linear in frames: value = a + b x frames of one clip (all its tiles).

    gmac_a, gmac_b    multiply-adds / 1e9
    bytes_a, bytes_b  peak activation bytes
    seconds_a/b       measured on a rehearsal (--costs), None before
    """

    gmac_a: float = 0.0
    gmac_b: float = 0.0
    bytes_a: float = 0.0
    bytes_b: float = 0.0
    parameters: int = 0
    seconds_a: float | None = None
    seconds_b: float | None = None


@dataclass(frozen=True, kw_only=True)
class Wheel:
    file: str
    entry: FileEntry
    files: dict[str, FileEntry]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the bundle holds; its own sha256 is compiled into the pushed kernel.

    bundle    id: first 16 hex digits of the sha256 over everything below
    files     every other file of the bundle: name -> FileEntry (the wheel and the manifest itself excluded)
    graphs    exported graphs for other back ends: net id -> {"onnx": file name} (files listed in `files`)
    costs     member name -> Cost; frontend_seconds: front end name -> seconds per second of audio (--costs)
    profiles  every named limits profile, so that --limits works on the unpinned file
    random_weights  True if any net was filled by --random-weights
    """

    format: int
    bundle: str
    version: str
    ensemble: Ensemble
    wheel: Wheel
    files: dict[str, FileEntry]
    nets: tuple[Net, ...]
    costs: dict[str, Cost] = field(default_factory=dict)
    frontend_seconds: dict[str, float] = field(default_factory=dict)
    graphs: dict[str, dict[str, str]] = field(default_factory=dict)
    prior: tuple[float, ...] = ()
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    random_weights: bool = False


def _convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as the annotated type `kind`; SpecError with the path `where` when it is something else."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(value, next(a for a in args if a is not type(None)), where)
    if isinstance(kind, type) and is_dataclass(kind):
        return load(kind, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise SpecError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise SpecError(f"{where}: expected a table, got {value!r}")
        return {str(k): _convert(v, args[1], f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SpecError(f"{where}: expected {kind.__name__}, got {value!r}")
    if kind is float and not abs(value) < float("inf"):
        raise SpecError(f"{where}: expected a finite number, got {value!r}")
    return value


def load(kind: type[T], data: Any, where: str = "") -> T:
    """Dataclass `kind` from a mapping; unknown, missing or mistyped keys are SpecErrors naming the path."""
    if not isinstance(data, Mapping):
        raise SpecError(f"{where or kind.__name__}: expected a table, got {data!r}")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    dot = f"{where}." if where else ""
    for key in data:
        if key not in known:
            raise SpecError(f"{dot}{key}: unknown key; {did_you_mean(str(key), known)}")
    for name, f in known.items():
        if name not in data and f.default is MISSING and f.default_factory is MISSING:
            raise SpecError(f"{dot}{name}: missing; add it")
    return kind(**{name: _convert(value, hints[name], dot + name) for name, value in data.items()})


def loads_json(text: bytes, where: str) -> Any:
    """JSON without its traps: twin keys, NaN, and texts above 1 MB are SpecErrors."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(items)
        if len(out) != len(items):
            twice = next(k for i, (k, _) in enumerate(items) if k in dict(items[:i]))
            raise SpecError(
                f"{where}: key {twice!r} stands twice; the file was edited by hand, build it again"
            )
        return out

    def constant(name: str) -> Any:
        raise SpecError(f"{where}: {name} is not a JSON number; build the file again")

    if len(text) > MAX_JSON_BYTES:
        raise SpecError(
            f"{where}: {len(text)} bytes, more than {MAX_JSON_BYTES}; this is no manifest of ours"
        )
    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{where}: not JSON ({error}); build the file again") from error


def dumps_json(value: Any) -> bytes:
    """Canonical bytes of a dataclass or plain value: sorted keys, no spaces lost to chance, one final
    newline.
    """
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return (json.dumps(plain, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _choice(value: str | None, choices: tuple[str, ...], where: str) -> None:
    if value is not None and value not in choices:
        raise SpecError(f"{where}: {value!r} is unknown; {did_you_mean(value, choices)}")


def _check_part(part: Member | Stacker, where: str) -> None:
    if not NAME.match(part.name):
        raise SpecError(f"{where}.name: {part.name!r}; use a-z, 0-9, '_', '-' and '.', at most 64 characters")
    if not part.folds or len(set(part.folds)) != len(part.folds):
        raise SpecError(f"{where}.folds: {list(part.folds)}; list each fold number once, at least one")
    if len(part.folds) > 1 and part.weights is not None and "{fold}" not in part.weights:
        raise SpecError(
            f"{where}.weights: {part.weights!r} has no {{fold}} although there are {len(part.folds)} folds"
        )
    if part.weight < 0:
        raise SpecError(
            f"{where}.weight: {part.weight} is negative; use 0 to leave the part out of the final mean"
        )
    _choice(part.fold_mean, MEANS, f"{where}.fold_mean")
    _choice(part.activation, ACTIVATIONS, f"{where}.activation")


def check(ensemble: Ensemble) -> Ensemble:
    """The ensemble itself, once every rule that needs no other module holds.

    Raises  SpecError naming the key
    """
    if len(ensemble.classes) < 2 or len(set(ensemble.classes)) != len(ensemble.classes):
        raise SpecError("classes: at least two names, each once")
    if ensemble.prior and (
        len(ensemble.prior) != len(ensemble.classes) or not all(0 <= p <= 1 for p in ensemble.prior)
    ):
        raise SpecError(
            f"prior: {len(ensemble.prior)} values for {len(ensemble.classes)} classes; one each, in 0..1"
        )
    if not NAME.match(ensemble.name):
        raise SpecError(f"name: {ensemble.name!r}; use a-z, 0-9, '_', '-' and '.', at most 64 characters")
    if not ensemble.members:
        raise SpecError("members: none; add at least one [[members]]")
    _choice(ensemble.mean, MEANS, "mean")
    _choice(ensemble.output.format, ("probabilities", "label"), "output.format")
    if len(ensemble.output.smoothing) % 2 == 0 and ensemble.output.smoothing:
        raise SpecError("output.smoothing: give an odd number of weights, the middle one for the row itself")
    parts: list[Member | Stacker] = [*ensemble.members, *ensemble.stackers]
    names = [p.name for p in parts]
    for i, member in enumerate(ensemble.members):
        where = f"members[{i}]"
        _check_part(member, where)
        if bool(member.frontend) == bool(member.inputs):
            raise SpecError(
                f"{where}: give either `frontend` (one input) or `inputs` (several), not both and not neither"
            )
        for name, entry in member.named_inputs().items():
            if entry.frontend not in ensemble.frontends:
                raise SpecError(f"{where}.{name}.frontend: {entry.frontend!r} is not in [frontends]; "
                                + did_you_mean(entry.frontend, ensemble.frontends))
        if member.fold_weights and len(member.fold_weights) != len(member.folds):
            raise SpecError(
                f"{where}.fold_weights: {len(member.fold_weights)} weights for {len(member.folds)} folds"
            )
    for i, stacker in enumerate(ensemble.stackers):
        where = f"stackers[{i}]"
        _check_part(stacker, where)
        _choice(stacker.features, ("concat", "per_class"), f"{where}.features")
        for name in stacker.inputs:
            if name not in [m.name for m in ensemble.members]:
                raise SpecError(f"{where}.inputs: {name!r} is no member; {did_you_mean(name, names)}")
        if stacker.average_weights and len(stacker.average_weights) != len(stacker.inputs):
            raise SpecError(f"{where}.average_weights: one weight per input, {len(stacker.inputs)} in all")
    if len(set(names)) != len(names):
        raise SpecError(f"members: the name {next(n for n in names if names.count(n) > 1)!r} is used twice")
    row_means = {ensemble.mean, *(p.fold_mean for p in parts)} & set(ROW_DEPENDENT_MEANS)
    if row_means and ensemble.row_independent:
        raise SpecError(
            f"row_independent: the mean {sorted(row_means)[0]!r} compares rows; write row_independent = false"
        )
    return ensemble


def load_ensemble(path: Path) -> Ensemble:
    """Ensemble of a TOML file; `classes` and `prior` may name a text file beside it, one value per line.

    Raises  SpecError
    """
    import tomllib

    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(
            f"{path}: cannot be read ({error.strerror}); give the path of an ensemble TOML"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not TOML ({error})") from error
    for key, kind in (("classes", str), ("prior", float)):
        if isinstance(data.get(key), str):
            listed = path.parent / data[key]
            try:
                data[key] = [kind(line) for line in listed.read_text(encoding="utf-8").split("\n") if line]
            except OSError as error:
                raise SpecError(
                    f"{path}: {key} = {data[key]!r}: {listed} cannot be read ({error.strerror}); give its place "
                    "relative to the TOML's own folder, or write the values as a list"
                ) from error
            except ValueError as error:
                raise SpecError(f"{path}: {key} = {data[key]!r}: {error}") from error
    try:
        return check(load(Ensemble, data))
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def load_manifest(text: bytes, where: str = "manifest.json") -> Manifest:
    """Manifest from the very bytes that were hashed.

    Raises  SpecError
    """
    data = loads_json(text, where)
    try:
        manifest = load(Manifest, data)
        check(manifest.ensemble)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from error
    for name in [manifest.wheel.file, *manifest.files, *(n.file for n in manifest.nets)]:
        if not FILE_NAME.match(name):
            raise SpecError(f"{where}: file name {name!r} is not allowed; build the bundle again")
    folded = [n.casefold() for n in [manifest.wheel.file, *manifest.files]]
    if len(set(folded)) != len(folded):
        raise SpecError(f"{where}: two file names differ only in case; build the bundle again")
    for net in manifest.nets:
        entry = manifest.files.get(net.file)
        if entry is None or net.offset < 0 or net.length <= 0 or net.offset + net.length > entry.bytes:
            raise SpecError(f"{where}: net {net.id} lies outside {net.file}; build the bundle again")
    return manifest
