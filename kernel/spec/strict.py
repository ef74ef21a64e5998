"""Strict loading: plain data becomes a typed value, or a SpecError that names the key.

Owns `load` (a mapping -> a dataclass), the rule checks' two helpers, reading a TOML file, and JSON without
its traps. Knows no particular dataclass.
"""
import json
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import SpecError, did_you_mean

MAX_JSON_BYTES = 1 << 20  # a larger file is refused before it is parsed
MAX_DEPTH = 32  # tables and lists inside each other; a written key needs five
T = TypeVar("T")


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


def _convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as the annotated type `kind`; SpecError with the path `where` when it is something else."""
    origin = get_origin(kind)
    args = get_args(kind)
    if kind is Any:
        _check_plain(value, where)
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert_first(value, [a for a in args if a is not type(None)], where)
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
        try:
            return float(value)
        except OverflowError as error:
            raise SpecError(f"{where}: this number is too large") from error
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SpecError(f"{where}: expected {kind.__name__}, got {value!r}")
    if kind is float and not abs(value) < float("inf"):
        raise SpecError(f"{where}: expected a finite number, got {value!r}")
    return value


def _convert_first(value: Any, kinds: Sequence[Any], where: str) -> Any:
    """`value` as the first of these types that it can be; SpecError as of the last one."""
    for kind in kinds[:-1]:
        try:
            return _convert(value, kind, where)
        except SpecError:
            continue
    return _convert(value, kinds[-1], where)


def _check_plain(value: Any, where: str, depth: int = 0) -> None:
    """SpecError, unless a value without a type of its own is what JSON can hold: it travels in a manifest."""
    if depth > MAX_DEPTH:
        raise SpecError(f"{where.partition('.')[0]}: more than {MAX_DEPTH} tables or lists inside each other")
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise SpecError(f"{where}: expected a finite number, got {value!r}")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_plain(inner, f"{where}.{name}", depth + 1)
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            _check_plain(inner, f"{where}[{i}]", depth + 1)
    elif value is not None and not isinstance(value, (str, int, float)):
        raise SpecError(f"{where}: expected text, a number, a list or a table, got {value!r}")


def require(holds: bool, message: str) -> None:
    """SpecError with this message, unless the rule holds."""
    if not holds:
        raise SpecError(message)


def require_choice(value: str, choices: Collection[str], where: str) -> None:
    """SpecError with a suggestion, unless `value` is one of the choices."""
    if value not in choices:
        raise SpecError(f"{where}: {value!r} is unknown; {did_you_mean(value, choices)}")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file; `what` it should be ("an ensemble TOML") stands in the message.

    Raises  SpecError
    """
    import tomllib  # the engine reads no TOML: its start does not pay for this

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); give the path of {what}") from error
    except RecursionError as error:
        raise SpecError(
            f"{path}: more than {MAX_DEPTH} tables or lists inside each other; this is not {what}"
        ) from error
    except ValueError as error:  # no TOML, no UTF-8, a number of thousands of digits, or NUL in the path
        raise SpecError(f"{path}: not TOML ({error})") from error


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

    require(
        len(text) <= MAX_JSON_BYTES,
        f"{where}: {len(text)} bytes, more than {MAX_JSON_BYTES}; this is no manifest of ours",
    )
    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{where}: not JSON ({error}); build the file again") from error


def dumps_json(value: Any) -> bytes:
    """Canonical bytes of a dataclass or plain value: sorted keys, fixed spaces, one final newline."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return (json.dumps(plain, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
