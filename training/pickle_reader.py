"""Reads one PyTorch checkpoint in a process of its own and leaves its tensors as safetensors.

    python -I pickle_reader.py SOURCE TARGET

Owns torch.load(weights_only=True), refusing archives that hold code or unpack to more than a checkpoint can,
and finding the state dict among the wrappers people save. Prints one line of JSON: {"refused": reason} or
{"keys": count}. Imports nothing of this project, so that it runs isolated. Never runs pickled code.
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

# Of argus, Lightning, plain PyTorch habit, and fastai.
WRAPPERS = ("nn_state_dict", "state_dict", "model_state_dict", "model")
MAX_DEPTH = 3  # Wrappers lie inside wrappers.
FREE_BYTES = 64 << 20  # Tensors and archives may unpack to this much whatever the file's size.
MAX_RATIO = 16  # Beyond it: so many times the file's size; torch.save does not compress.


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


def read(source: str) -> dict[str, torch.Tensor] | str:
    """The state dict in the file, or the reason why it is refused."""
    refused = refuse_archive(source)
    if refused is not None:
        return refused
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
    except Exception as error:  # A damaged file can fail anywhere in the loader; each means: not read.
        return f"it is damaged or no PyTorch file ({type(error).__name__}: {str(error)[:120]}); save it again"
    return find_state(loaded)


def main(source: str, target: str) -> None:
    found = read(source)
    refused = found if isinstance(found, str) else refuse_sizes(found, source)
    if isinstance(found, str) or refused is not None:
        print(json.dumps({"refused": refused}))
        return
    # Clones, because several names may share memory.
    save_file({k: v.detach().to_dense().clone().contiguous() for k, v in found.items()}, target)
    print(json.dumps({"keys": len(found)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
