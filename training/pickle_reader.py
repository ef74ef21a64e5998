"""Reads one PyTorch checkpoint in a process of its own and leaves its tensors as safetensors.

    python -I pickle_reader.py SOURCE TARGET [WHICH]

Owns torch.load(weights_only=True), refusing archives that hold code or unpack to more than a checkpoint can,
and finding the state dict among the wrappers people save; WHICH names one of several. Prints one line of
JSON: {"refused": reason}, or {"keys": count, "said": [what was left aside], "named": whether WHICH is a name
in the file}. Imports nothing of this project, so that it runs isolated. Never runs pickled code.
"""
import argparse
import json
import pathlib
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

# Of argus, Lightning, plain PyTorch habit, and fastai; the first that a file has is taken.
WRAPPERS = ("nn_state_dict", "state_dict", "model_state_dict", "model")
MAX_DEPTH = 3  # Wrappers lie inside wrappers.
MAX_ENTRIES = 2_000_000  # looked at on the way: one dictionary may stand in another again and again
FREE_BYTES = 64 << 20  # Tensors and archives may unpack to this much whatever the file's size.
MAX_RATIO = 16  # Beyond it: so many times the file's size; torch.save does not compress.
# What belongs to training, not to the net: their tensors are never looked at.
OF_TRAINING = re.compile(
    r"(.*_)?(opt|optim|optimizer|optimizers|scheduler|schedulers|lr_scheduler|lr_schedulers|scaler|"
    r"amp_scaler|amp|loss|callbacks|loops|hyper_parameters|rng|native_amp_scaling)"
    r"(_states?|_state_dict|_dict)?",
    re.IGNORECASE,
)
# Packages whose settings, metrics and lists lie beside weights. Their classes are replaced by `Inert`, so
# that nothing of them runs; any other class refuses the file.
PACKAGES = ("accelerate", "argus", "fastai", "fastcore", "fastprogress", "ignite", "lightning",
            "lightning_fabric", "omegaconf", "pytorch_lightning", "timm", "torchmetrics")
MAX_STAND_INS = 100
State = dict[str, torch.Tensor]


class Inert:
    """Stands for a class of `PACKAGES`: takes whatever a pickle gives it and does nothing."""

    def __new__(cls, *values: Any, **named: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *values: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def inert_globals() -> list[Any]:
    """Classes that training leaves beside the weights (metrics, settings, paths): values that run nothing.

    Arrays of numpy are passed over like classes of `PACKAGES`: their bytes and dtype come from the file.
    """
    scalar = np.float64(0).__reduce__()[0]  # Its name differs between versions of numpy.
    dtypes = [type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "bool")]
    arrays = ("numpy.ndarray", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    return [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        *((type("Inert", (Inert,), {}), name) for name in arrays),
        np.dtype,
        *dtypes,
        argparse.Namespace,
        pathlib.PosixPath,
        pathlib.PurePosixPath,
    ]


def list_states(loaded: Any, all_of: bool = False) -> dict[str, State]:
    """Path, such as "model.state_dict" -> the tensors that lie directly there.

    all_of  True = what is of training, too
    Raises  ValueError where dictionaries stand in each other without end
    """
    found: dict[str, State] = {}
    left = MAX_ENTRIES
    waiting: list[tuple[tuple[str, ...], Any]] = [((), loaded)]
    while waiting:
        path, entry = waiting.pop()
        left -= len(entry)
        if left < 0:
            raise ValueError(f"its dictionaries hold more than {MAX_ENTRIES} entries")
        tensors = {str(k): v for k, v in entry.items() if isinstance(v, torch.Tensor)}
        if tensors:
            found[".".join(path)] = tensors
        if len(path) < MAX_DEPTH:
            inside = [(k, v) for k, v in entry.items() if isinstance(v, Mapping)
                      and (all_of or not OF_TRAINING.fullmatch(str(k)))]
            waiting += [((*path, str(k)), v) for k, v in reversed(inside)]  # The first is looked at first.
    return found


def usual_state(states: Mapping[str, State]) -> str | None:
    """Path of the state dict that its program would load itself, or None where that is not clear."""
    path = ""
    for _ in range(MAX_DEPTH + 1):
        inside = [p for p in states if p == path or p.startswith(path + "." if path else "")]
        wrapper = next((w for w in WRAPPERS if any(_below(path, w, p) for p in inside)), None)
        if wrapper is None:
            break
        path = f"{path}.{wrapper}".strip(".")
    inside = [p for p in states if not path or p == path or p.startswith(path + ".")]
    weights = [p for p in inside if _has_weights(states[p])] or inside
    if path in weights or len(weights) == 1:
        return path if path in weights else weights[0]
    return None


def _has_weights(tensors: State) -> bool:
    """False where every tensor is a single number, such as a best score beside the weights."""
    return any(tensor.numel() > 1 for tensor in tensors.values())


def _below(path: str, wrapper: str, candidate: str) -> bool:
    inner = f"{path}.{wrapper}".strip(".")
    return candidate == inner or candidate.startswith(inner + ".")


def find_state(loaded: Any, which: str = "") -> tuple[State, list[str], bool] | str:
    """The tensors of one state dict, what else the file holds, and whether `which` named it; or why not.

    which  path of the state dict; one that names none may be a prefix of keys, which the caller looks at
    """
    if not isinstance(loaded, Mapping):
        return f"it holds a {type(loaded).__name__}, not a dictionary of tensors; save net.state_dict()"
    states = list_states(loaded)
    if not states:
        keys = ", ".join(map(str, list(loaded)[:8]))
        return f"it holds no tensors; its keys are {keys}; save net.state_dict()"
    named = list_states(loaded, all_of=True) if which else {}
    inside = [path for path in named if path == which or path.startswith(which + ".")]
    chosen = inside[0] if inside and (len(inside) == 1 or inside[0] == which) else usual_state(states)
    if chosen is None:
        names = ", ".join(f"{path or 'at the top'} ({len(states[path])} tensors)" for path in states)
        return f"it holds several sets of tensors: {names}; name one in the TOML: weights_key = \"...\""
    said = [f"weights taken from {chosen}"] if chosen and (which or len(states) > 1) else []
    said += [f"left aside: {_describe(path, tensors)}" for path, tensors in states.items() if path != chosen]
    return (states | named)[chosen], said, chosen in inside


def _describe(path: str, tensors: State) -> str:
    """What a set of tensors is that was not taken."""
    if not _has_weights(tensors):
        return ", ".join(f"{path}.{key}".strip(".") for key in list(tensors)[:4]) + " (single numbers)"
    takes = f"; weights_key = {path!r} takes it" if path else ""
    return f"{path or 'the top'} ({len(tensors)} tensors){takes}"


def load_inert(source: str) -> Any:
    """What torch.load(weights_only=True) gives, classes of `PACKAGES` replaced by stand-ins."""
    allowed = inert_globals()
    for _ in range(MAX_STAND_INS):
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(source, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            if named is None or named[1].split(".")[0] not in PACKAGES or _stands_in(allowed, named[1]):
                raise
            allowed.append((type("Inert", (Inert,), {}), named[1]))
    raise ValueError(f"more than {MAX_STAND_INS} classes beside the weights")


def _stands_in(allowed: list[Any], name: str) -> bool:
    return any(isinstance(entry, tuple) and entry[1] == name for entry in allowed)


def refuse_archive(source: str) -> str | None:
    """Why a zip archive is not opened; None for one that torch.save writes, and for what is none."""
    try:
        if not zipfile.is_zipfile(source):
            return None
        with zipfile.ZipFile(source) as archive:
            held = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        return f"it is a damaged archive ({error}); save it again"
    path = pathlib.Path(source)
    size = sum(entry.file_size for entry in held)
    if size > FREE_BYTES + MAX_RATIO * path.stat().st_size:
        return f"its archive unpacks to {size} bytes, which torch.save does not write"
    if any(entry.filename.endswith("/constants.pkl") or "/code/" in entry.filename for entry in held):
        return (
            'TorchScript, which carries code. Export it once: python -c "import torch; '
            f"net = torch.jit.load({path.name!r}); "
            "torch.onnx.export(net, torch.zeros(1, CHANNELS, BINS, FRAMES), "
            f"{path.stem + '.onnx'!r}, dynamo=False, "
            "input_names=['x'], dynamic_axes={'x': {0: 'batch', 3: 'frames'}})\" and use family = \"onnx\"; "
            "or save its state_dict() and name the family"
        )
    return None


def refuse_sizes(state: Mapping[str, torch.Tensor], source: str) -> str | None:
    """Why tensors are not written out: a view of one number may claim more bytes than there is memory."""
    size = sum(value.numel() * value.element_size() for value in state.values())
    if size > FREE_BYTES + MAX_RATIO * pathlib.Path(source).stat().st_size:
        return f"its tensors claim {size} bytes, many times what the file holds; save net.state_dict() again"
    odd = [key for key, value in state.items() if value.is_quantized or value.is_meta]
    if odd:
        return f"{odd[0]} is quantised or without values; save it as float16 or float32"
    return None


def read(source: str, which: str = "") -> tuple[State, list[str], bool] | str:
    """What `find_state` makes of the file, or the reason why it is refused."""
    refused = refuse_archive(source)
    if refused is not None:
        return refused
    try:
        loaded = load_inert(source)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        with open(source, "rb") as file:
            binary_pickle = file.read(1) == b"\x80"
        if named is None and not binary_pickle:
            return "it is damaged or no PyTorch file; save it again"
        what = f"names {named[1]}" if named else "was not written by torch.save"
        return (
            f"its pickle {what}, so opening it could run code. If you trust it, write the weights alone "
            "where it was made: held = torch.load(PATH, weights_only=False), "
            "then torch.save(held.state_dict(), NEW) "
            "for a whole net, or torch.save(held[KEY], NEW), KEY being where the weights are "
            "(state_dict, nn_state_dict, model)"
        )
    except Exception as error:  # A damaged file can fail anywhere in the loader; each means: not read.
        return f"it is damaged or no PyTorch file ({type(error).__name__}: {str(error)[:120]}); save it again"
    try:
        return find_state(loaded, which)
    except ValueError as error:
        return f"{error}; save net.state_dict() alone"


def main(source: str, target: str, which: str = "") -> None:
    found = read(source, which)
    if isinstance(found, str):
        print(json.dumps({"refused": found}))
        return
    state, said, named = found
    refused = refuse_sizes(state, source)
    if refused is not None:
        print(json.dumps({"refused": refused}))
        return
    # Clones, because several names may share memory.
    save_file({k: v.detach().to_dense().clone().contiguous() for k, v in state.items()}, target)
    print(json.dumps({"keys": len(state), "said": said, "named": named}))


if __name__ == "__main__":
    main(*sys.argv[1:])
