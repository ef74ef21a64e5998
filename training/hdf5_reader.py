"""Reads the arrays of one Keras file (HDF5) in a process of its own and leaves them as safetensors.

    python -I hdf5_reader.py SOURCE TARGET

Owns walking a hostile file: an HDF5 dataset may lie in any other file of this machine (external storage,
virtual datasets, external links) or claim more bytes than there is memory. Only arrays whose bytes lie in
the file itself are read, found by hard links alone, and their sizes are added up before the first is read.
Prints one line of JSON: {"refused": reason} or {"layers": [[layer name, count of arrays], ...]}; array j of
layer i is "i.j" in TARGET. Imports nothing of this project, so that it runs isolated.
"""
import json
import math
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from safetensors.numpy import save_file

SAVE = "save it with model.save_weights('x.h5')"
MAX_NAMES = 20_000  # layers, and arrays of a layer; the deepest Keras nets have about a thousand layers
MAX_NAME_BYTES = 1 << 20  # of one list of names
FREE_BYTES = 64 << 20  # arrays may unpack to this much whatever the file's size
MAX_RATIO = 16  # beyond it: so many times the file's size; float32 weights hardly shrink at all
SPARE_BYTES = 2 << 30  # address space of this process beside the arrays


class Refused(Exception):
    """Why the file is not read."""


def find(group: h5py.Group, path: str) -> Any:
    """The object at `path` below a group, by hard links alone.

    Raises  Refused for any other link and for what is not there
    """
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if not isinstance(group, h5py.Group) or group.get(part, getclass=True, getlink=True) is None:
            raise Refused(f"no Keras weights in it ({path[:80]!r} is missing); {SAVE}")
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise Refused(f"{path[:80]!r} is a link out of the file or to another place; Keras writes none")
        group = group[part]
    return group


def names(group: h5py.Group, attribute: str) -> list[str]:
    """The texts of an attribute, whose size is known before it is read."""
    if attribute not in group.attrs:
        raise Refused(f"no Keras weights in it ({attribute!r} is missing); {SAVE}")
    found = group.attrs.get_id(attribute)
    count = math.prod(found.shape or ())
    if count > MAX_NAMES or count * found.dtype.itemsize > MAX_NAME_BYTES:
        raise Refused(f"{attribute!r} claims {count} names; Keras writes no such list")
    return [v.decode() if isinstance(v, bytes) else str(v) for v in np.atleast_1d(group.attrs[attribute])]


def check(array: Any, name: str) -> int:
    """Bytes of an array that lies in the file itself.

    Raises  Refused
    """
    if not isinstance(array, h5py.Dataset):
        raise Refused(f"{name[:80]!r} is no array")
    if array.is_virtual or array.external:
        raise Refused(f"{name[:80]!r} keeps its values in another file, which would be read and shipped")
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8 or array.shape is None:
        raise Refused(f"{name[:80]!r} holds {array.dtype}, not real numbers")
    size = math.prod(array.shape) * int(array.dtype.itemsize)
    if size and not array.id.get_storage_size():
        raise Refused(f"{name[:80]!r} claims {size} bytes and none were ever written")
    return size


def list_arrays(file: h5py.File) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """(layer name, its named arrays) in Keras order; layers without arrays are left out."""
    whole = file.get("model_weights", getclass=True, getlink=True) is not None
    root = find(file, "model_weights") if whole else file
    for layer in names(root, "layer_names"):
        group = find(root, layer)
        if not isinstance(group, h5py.Group):
            raise Refused(f"{layer!r} is no layer")
        listed = names(group, "weight_names")
        if listed:
            yield layer, [(name, find(group, name)) for name in listed]


def read(source: Path) -> tuple[list[tuple[str, int]], dict[str, np.ndarray]]:
    """Layers with the number of their arrays, and the arrays under "i.j"."""
    most = FREE_BYTES + MAX_RATIO * source.stat().st_size
    with h5py.File(source, "r") as file:
        layers = list(list_arrays(file))
        size = sum(check(array, name) for _, arrays in layers for name, array in arrays)
        if size > most:
            raise Refused(f"its arrays unpack to {size} bytes, {most} are believed of a file of this size")
        held = {
            f"{i}.{j}": np.asarray(array[()], order="C")
            for i, (_, arrays) in enumerate(layers)
            for j, (_, array) in enumerate(arrays)
        }
    return [(layer, len(arrays)) for layer, arrays in layers], held


def main(source: str, target: str) -> None:
    path = Path(source)
    space = FREE_BYTES + MAX_RATIO * path.stat().st_size + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    try:
        layers, arrays = read(path)
    except Refused as error:
        print(json.dumps({"refused": str(error)}))
        return
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        reason = f"it is damaged or no HDF5 file ({type(error).__name__}: {str(error)[:160]})"
        print(json.dumps({"refused": f"no Keras weights in it: {reason}; {SAVE}"}))
        return
    save_file(arrays, target)
    print(json.dumps({"layers": layers}))


if __name__ == "__main__":
    main(*sys.argv[1:])
