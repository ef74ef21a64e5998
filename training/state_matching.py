"""A checkpoint's tensors -> a state dict that fits one of our nets, every tensor accounted for.

Owns the prefixes of wrapped nets, the patterns of what may be left out, and the key-by-key check: a tensor
that no part of the net takes is an error that names it. Reads no files (`checkpoints`).
"""
import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from kernel import models
from kernel.errors import ModelLoadFailed, SpecError

MAX_LISTED = 8  # So many keys are named in one message.
# Parts of a key that only a wrapper writes: torch.compile, FSDP, activation checkpointing.
WRAPPED = re.compile(r"(?:(?<=\.)|\A)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, *FLOAT8)
LEAST_SHARE = 0.5  # of the net's entries must lie below a prefix for it to be tried


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A state dict of a net.

    state  in the net's own order
    rest   what the net does not take, under our names: for whoever prepares its input, or an error
    said   what was taken off or left out on the way, a sentence each
    """

    state: dict[str, Tensor]
    rest: dict[str, Tensor]
    said: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """The tensors below one prefix under our keys, and those beside it; stored keys of what is left out."""

    prefix: str
    state: dict[str, Tensor]
    unused: tuple[str, ...]
    dropped: tuple[str, ...]
    outside: dict[str, Tensor]


def match_state(stored: Mapping[str, Tensor], family: str, params: Mapping[str, Any], module: nn.Module,
                where: str, drop: Sequence[str] = (), which: str = "") -> Matched:
    """`stored` as a state dict of `module`: wrappers' prefixes stripped, the authors' keys renamed.

    drop    patterns (with * and ?) of stored keys that may be left out
    which   prefix of the keys to take, where several nets lie in one state dict; what lies outside is then
            left out
    Raises  ModelLoadFailed
    """
    said: list[str] = []
    bare = _without_wrappers(stored, said, where)
    kept = dict(bare)
    if which:
        inside = {key: value for key, value in kept.items() if key.startswith(which + ".")}
        if not inside:
            begin = ", ".join(sorted({key.split(".")[0] for key in kept})[:MAX_LISTED])
            raise ModelLoadFailed(
                f"{where}: weights_key = {which!r} is neither a name in the file nor a prefix "
                "of its keys, which "
                f"begin with {begin}"
            )
        outside = [key for key in kept if key not in inside]
        said += [f"weights_key {which}: {_some(outside)} left out"] if outside else []
        kept = inside
    best = _best_trial(kept, family, params, module, where, drop)
    if best.prefix:
        said.append(f"prefix {best.prefix!r} taken off {sum(k.startswith(best.prefix) for k in kept)} keys")
    if best.unused:
        said.append(f"never used by {family}, left out: {_some(best.unused)}")
    if best.dropped:
        said.append(f"left out by drop: {_some(best.dropped)}")
    own = module.state_dict()
    rest = {key: value for key, value in best.state.items() if key not in own}
    rest |= best.outside
    state = {key: value for key, value in best.state.items() if key in own}
    return Matched(state=state, rest=rest, said=tuple(said))


def _without_wrappers(stored: Mapping[str, Tensor], said: list[str], where: str) -> dict[str, Tensor]:
    """The keys without the parts that only wrappers write. Raises ModelLoadFailed when two become one."""
    found = Counter(part for key in stored for part in WRAPPED.findall(key))
    bare = {WRAPPED.sub("", key): value for key, value in stored.items()}
    if len(bare) != len(stored):
        raise ModelLoadFailed(
            f"{where}: holds the same net with and without {', '.join(found)}; save net.state_dict() alone"
        )
    said += [f"prefix {part!r} taken off {count} keys" for part, count in found.items()]
    return bare


def _best_trial(stored: Mapping[str, Tensor], family: str, params: Mapping[str, Any], module: nn.Module,
                where: str, drop: Sequence[str]) -> _Trial:
    """The prefix below which the net lies.

    Raises  ModelLoadFailed when whole nets lie below several, or two keys become one
    """
    own = set(module.state_dict())
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    trials = []
    refused: SpecError | None = None
    for prefix in _prefixes(stored, len(needed)):
        try:
            trials.append(_try(prefix, stored, family, params, drop))
        except SpecError as error:
            refused = refused or error
    whole = [trial.prefix for trial in trials if needed and needed <= set(trial.state)]
    if refused and not whole:
        raise ModelLoadFailed(f"{where}: {refused}") from refused
    # The one that fits best, then the shortest, so that a net whose own keys start so keeps them.
    best = max(trials, key=lambda trial: len(own & set(trial.state)))
    others = [p for p in whole if not p.startswith(best.prefix) and not best.prefix.startswith(p)]
    if best.prefix in whole and others:
        names = ", ".join(repr(p.rstrip(".")) for p in (best.prefix, *others))
        raise ModelLoadFailed(
            f"{where}: holds {len(others) + 1} whole nets, below {names}; name one in the TOML: "
            f"weights_key = {next((p for p in whole if 'ema' in p), others[-1]).rstrip('.')!r}"
        )
    return best


def _prefixes(stored: Mapping[str, Tensor], entries: int) -> list[str]:
    """"" and what enough keys begin with, the shortest first."""
    counts: Counter[str] = Counter()
    for key in stored:
        parts = key.split(".")
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, len(parts)))
    common = [prefix for prefix, count in counts.items() if count >= LEAST_SHARE * entries]
    return ["", *sorted(common, key=lambda prefix: (len(prefix), prefix))]


def _try(prefix: str, stored: Mapping[str, Tensor], family: str, params: Mapping[str, Any],
         drop: Sequence[str]) -> _Trial:
    """The tensors below `prefix` renamed; patterns of `drop` meet stored keys with and without it.

    Raises  SpecError when two keys become one
    """
    dropped = tuple(key for key in stored if any(
        fnmatchcase(key, pattern) or fnmatchcase(key.removeprefix(prefix), pattern) for pattern in drop))
    kept = {key: value for key, value in stored.items() if key not in set(dropped)}
    below = {key.removeprefix(prefix): key for key in kept if key.startswith(prefix)}
    renamed = models.rename(family, dict(params), below)
    return _Trial(
        prefix=prefix,
        state={ours: kept[theirs] for ours, theirs in renamed.items()},
        unused=tuple(key for key in below.values() if key not in set(renamed.values())),
        dropped=dropped,
        outside={key: value for key, value in kept.items() if not key.startswith(prefix)},
    )


def _some(keys: Sequence[str]) -> str:
    """The first keys by name, and how many there are."""
    keys = sorted(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def fit_state(module: nn.Module, state: Mapping[str, Tensor], rest: Mapping[str, Tensor],
              where: str) -> dict[str, Tensor]:
    """`state` in the key order of `module`, once keys and shapes are equal and every value is finite.

    Batch counters (`num_batches_tracked`), which nothing reads in evaluation, may be missing, and averaged
    ones become whole numbers again.

    rest    tensors that nothing took; any is an error
    Raises  ModelLoadFailed listing missing, extra and misshapen keys, each with the nearest name, or naming a
            tensor that the net could only take by losing a part of it (complex, quantised)
    """
    own = module.state_dict()
    state = dict(state)
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            counter = state.setdefault(key, torch.zeros_like(value))
            if counter.shape == value.shape and counter.is_floating_point():
                state[key] = counter.to(value.dtype)
    missing = [k for k in own if k not in state]
    extra = [*(k for k in state if k not in own), *rest]
    shapes = [f"{k} is {list(state[k].shape)}, the net has {list(own[k].shape)}"
              for k in own if k in state and state[k].shape != own[k].shape]
    if missing or extra or shapes:
        count = f"{where}: {len(missing)} missing, {len(extra)} extra, {len(shapes)} misshapen keys"
        lines = [f"missing {k}{_nearest(k, extra, 'the checkpoint has')}" for k in missing[:MAX_LISTED]]
        lines += [f"extra {k}{_nearest(k, missing or list(own), 'the net has')}" for k in extra[:MAX_LISTED]]
        raise ModelLoadFailed(
            "\n  ".join([count, *lines, *shapes[:MAX_LISTED], _advice(missing, extra, shapes)])
        )
    for key, value in state.items():
        _check_value(value, own[key], f"{where}: {key}")
    return {key: state[key] for key in own}


def _advice(missing: Sequence[str], extra: Sequence[str], shapes: Sequence[str]) -> str:
    """What to do about keys that do not fit."""
    if not missing and not shapes:
        parts = sorted({key.split(".")[0] + ".*" if "." in key else key for key in extra})[:MAX_LISTED]
        quoted = ", ".join(f'"{part}"' for part in parts)
        return f"if nothing of the net reads them, add to the TOML: drop = [{quoted}]"
    if not extra and not shapes and all(key.endswith(".bias") for key in missing):
        return "the checkpoint's layers have no bias there: fastai 2 heads want params = { bias = false }"
    return "correct family and params, or the checkpoint"


def _check_value(value: Tensor, wanted: Tensor, what: str) -> None:
    """Raises ModelLoadFailed for numbers of a kind that the net has not, and for NaN and infinity."""
    if _kind(value) != _kind(wanted):
        raise ModelLoadFailed(
            f"{what} holds {value.dtype}, the net has {wanted.dtype}: a part of it would be lost; store "
            f"{_kind(wanted)} numbers, or correct the family"
        )
    if value.is_floating_point() and value.dtype not in FLOATS:
        raise ModelLoadFailed(f"{what} holds {value.dtype}; store it as float16 or float32")
    if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
        raise ModelLoadFailed(f"{what} holds NaN or infinity; export the checkpoint again")


def _kind(value: Tensor) -> str:
    """Which numbers a tensor holds."""
    if value.is_complex():
        return "complex"
    if value.is_floating_point():
        return "real"
    return "true-or-false" if value.dtype == torch.bool else "whole"


def _nearest(key: str, keys: list[str], owner: str) -> str:
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
    return f" ({owner} {near[0]})" if near else ""
