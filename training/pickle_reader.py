"""Reads one PyTorch checkpoint in a process of its own and leaves its tensors as safetensors.

    python -I pickle_reader.py SOURCE TARGET

Owns torch.load(weights_only=True) and finding the state dict among the wrappers people save. Prints one line
of JSON: {"refused": reason} or {"keys": count}. Imports nothing of this project, so that it runs isolated.
Never runs pickled code.
"""
import argparse
import json
import pathlib
import pickle
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

# Of argus, Lightning, plain PyTorch habit, and fastai.
WRAPPERS = ("nn_state_dict", "state_dict", "model_state_dict", "model")
MAX_DEPTH = 3  # Wrappers lie inside wrappers.


def inert_globals() -> list[Any]:
    """Classes that training leaves beside the weights (metrics, settings, paths): values that run nothing."""
    scalar = np.float64(0).__reduce__()[0]  # Its name differs between versions of numpy.
    dtypes = [type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "bool")]
    return [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        *dtypes,
        argparse.Namespace,
        pathlib.PosixPath,
        pathlib.PurePosixPath,
    ]


def find_state(loaded: Any) -> dict[str, torch.Tensor] | str:
    """The tensors of the innermost known wrapper, or the reason why there are none."""
    for _ in range(MAX_DEPTH):
        if not isinstance(loaded, Mapping):
            break
        loaded = next((loaded[w] for w in WRAPPERS if isinstance(loaded.get(w), Mapping)), loaded)
    if not isinstance(loaded, Mapping):
        return f"it holds a {type(loaded).__name__}, not a dictionary of tensors; save net.state_dict()"
    state = {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)}
    if not state:
        keys = ", ".join(map(str, list(loaded)[:8]))
        return f"it holds no tensors; its keys are {keys}; save net.state_dict()"
    return state


def read(source: str) -> dict[str, torch.Tensor] | str:
    """The state dict in the file, or the reason why it is refused."""
    try:
        with torch.serialization.safe_globals(inert_globals()):
            loaded = torch.load(source, map_location="cpu", weights_only=True)
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
    except (RuntimeError, EOFError, ValueError, KeyError, UnicodeDecodeError) as error:
        return f"it is damaged or no PyTorch file ({type(error).__name__}: {str(error)[:120]}); save it again"
    return find_state(loaded)


def main(source: str, target: str) -> None:
    found = read(source)
    if isinstance(found, str):
        print(json.dumps({"refused": found}))
        return
    # Clones, because several names may share memory.
    save_file({k: v.detach().to_dense().clone().contiguous() for k, v in found.items()}, target)
    print(json.dumps({"keys": len(found)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
