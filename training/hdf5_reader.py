"""Reads the arrays of one Keras file (HDF5) in a process of its own and leaves them as safetensors.

    python -I hdf5_reader.py SOURCE TARGET

Owns walking a hostile file: an HDF5 dataset may lie in any other file of this machine (external storage,
virtual datasets, external links) or claim more bytes than there is memory. Only arrays whose bytes lie in
the file itself are read, found by hard links alone, and their sizes are added up before the first is read.
Knows where both layouts keep layers: `.h5` of Keras 1 and 2 (and whole nets saved as `.h5` by Keras 3) and
`.weights.h5` of Keras 3. Prints one line of JSON: {"refused": reason} or {"layers": [[layer name, names of
its arrays], ...], "numbered": whether these names are numbers, as in Keras 3, "keras": version, "backend":
name}; array j of layer i is "i.j" in TARGET. Imports nothing of this project, so that it runs isolated.
"""
import json
import math
import resource
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from safetensors.numpy import save_file

SAVE = "save it with model.save_weights('x.h5')"
WHOLE = "save the whole net in Keras with model.save('x.h5'), which keeps the layers' names"
KERAS_3 = ("layers", "_layer_checkpoint_dependencies")  # where a .weights.h5 has its layers
OF_TRAINING = ("optimizer", "metrics")  # beside them; nothing reads it in use
SEEDS = "seed_generator"  # the state of a dropout layer's random numbers in Keras 3; nothing reads it in use
MAX_NAMES = 20_000  # layers, and arrays of a layer; the deepest Keras nets have about a thousand layers
MAX_NAME_BYTES = 1 << 20  # of one list of names
FREE_BYTES = 64 << 20  # arrays may unpack to this much whatever the file's size
MAX_RATIO = 16  # beyond it: so many times the file's size; float32 weights hardly shrink at all
SPARE_BYTES = 2 << 30  # address space of this process beside the arrays


Listed = list[tuple[str, list[tuple[str, Any]]]]  # layer name, its named arrays


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


def list_arrays(root: h5py.Group) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """(layer name, its named arrays) of the older layout, in Keras order; without empty layers."""
    for layer in names(root, "layer_names"):
        group = find(root, layer)
        if not isinstance(group, h5py.Group):
            raise Refused(f"{layer!r} is no layer")
        listed = names(group, "weight_names")
        if listed:
            yield layer, [(name, find(group, name)) for name in listed]


def keys_once(group: Any, name: str, seen: set[int]) -> list[str]:
    """Names in a group that is reached for the first time.

    Raises  Refused for what is no group, and for one that was reached before: it may lie in itself
    """
    if not isinstance(group, h5py.Group):
        raise Refused(f"{name[:80]!r} is no layer")
    place = h5py.h5o.get_info(group.id).addr
    if place in seen or len(seen) > MAX_NAMES or len(group) > MAX_NAMES:
        raise Refused(f"{name[:80]!r} stands in several places, or in itself; Keras writes no such file")
    seen.add(place)
    return list(group)


def list_numbered(
    group: h5py.Group, name: str, seen: set[int], skip: Collection[str] = ()
) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """`list_arrays` of the layers below a group of a Keras 3 file, and of nets inside that net.

    Its own name is needed of each: the file numbers layers along the net's graph.
    """
    for key in keys_once(group, name, seen):
        if key in skip:
            continue
        layer = find(group, key)
        inside = keys_once(layer, key, seen)
        if "layers" in inside:
            yield from list_numbered(find(layer, "layers"), key, seen)
        arrays = list(below(layer, [k for k in inside if k != "layers"], "", seen))
        if not arrays:
            continue
        if "vars" not in inside or "name" not in find(layer, "vars").attrs:
            raise Refused(f"layer {key[:80]}: this Keras 3 did not store the layers' names; {WHOLE}")
        yield names(find(layer, "vars"), "name")[0], arrays


def below(group: h5py.Group, keys: Collection[str], prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Arrays of a layer and of those inside it: its own first, a forward layer before a backward one."""
    for key in sorted(keys, key=lambda k: (k != "vars", k.startswith("backward"), k)):
        if key == SEEDS:
            continue
        entry = find(group, key)
        inside = keys_once(entry, prefix + key, seen)
        if key == "vars":
            yield from ((prefix + number, find(entry, number)) for number in sorted(inside, key=int))
        else:
            yield from below(entry, inside, f"{prefix}{key}/", seen)


def list_layers(file: h5py.File) -> tuple[Listed, dict[str, Any]]:
    """The layers of either layout, and what the file says of itself."""
    if "layer_names" not in file.attrs and any(has(file, place) for place in KERAS_3):
        seen: set[int] = set()
        listed: Listed = []
        for place in KERAS_3:
            listed += list_numbered(find(file, place), place, seen) if has(file, place) else []
        # What a net keeps beside its layers: told to whoever matches names, not passed over.
        listed += list_numbered(file, "the file", seen, skip=(*KERAS_3, *OF_TRAINING, "vars"))
        if has(file, "vars") and len(find(file, "vars")):
            listed.append(("vars", list(below(file, ["vars"], "", seen))))
        return listed, {"numbered": True, "keras": "", "backend": ""}
    root = find(file, "model_weights") if has(file, "model_weights") else file
    version, backend = (
        (names(root, key) or [""])[0] if key in root.attrs else "" for key in ("keras_version", "backend")
    )
    return list(list_arrays(root)), {"numbered": False, "keras": version, "backend": backend}


def has(group: h5py.Group, name: str) -> bool:
    """True where a group has a link of that name, of any kind; `find` judges it."""
    return group.get(name, getclass=True, getlink=True) is not None


def read(source: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is printed of a file, and the arrays under "i.j"."""
    most = FREE_BYTES + MAX_RATIO * source.stat().st_size
    with h5py.File(source, "r") as file:
        layers, said = list_layers(file)
        size = sum(check(array, name) for _, arrays in layers for name, array in arrays)
        if size > most:
            raise Refused(f"its arrays unpack to {size} bytes, {most} are believed of a file of this size")
        held = {
            f"{i}.{j}": np.asarray(array[()], order="C")
            for i, (_, arrays) in enumerate(layers)
            for j, (_, array) in enumerate(arrays)
        }
    return {"layers": [(layer, [name for name, _ in arrays]) for layer, arrays in layers], **said}, held


def main(source: str, target: str) -> None:
    path = Path(source)
    space = FREE_BYTES + MAX_RATIO * path.stat().st_size + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    try:
        said, arrays = read(path)
    except Refused as error:
        print(json.dumps({"refused": str(error)}))
        return
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        reason = f"it is damaged or no HDF5 file ({type(error).__name__}: {str(error)[:160]})"
        print(json.dumps({"refused": f"no Keras weights in it: {reason}; {SAVE}"}))
        return
    save_file(arrays, target)
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
