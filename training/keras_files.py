"""The two layouts of Keras weights in HDF5 -> the arrays of each layer, by name.

Owns where Keras puts what: `.h5` of Keras 1 and 2 (and whole nets saved as `.h5` by Keras 3), `.weights.h5`
of Keras 3. Takes an open file, opens none, and runs nothing of it. What an array means is
`kernel.models.keras_weights`.
"""
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kernel.errors import ModelLoadFailed

Layers = dict[str, dict[str, np.ndarray]]  # layer name -> its arrays in Keras order, by their own names
SEEDS = "seed_generator"  # the state of a dropout layer's random numbers in Keras 3; nothing reads it in use
KERAS_3 = ("layers", "_layer_checkpoint_dependencies")  # where a .weights.h5 has its layers
WHOLE = "save the whole net in Keras with model.save('x.h5'), which keeps the layers' names"


def layers_of(file: Mapping[str, Any]) -> Layers:
    """Layers that hold arrays, of a weights file or a whole saved net, in the order of the file.

    Raises  ModelLoadFailed for a Keras 3 file without layer names, KeyError where there are no layers
    """
    for place in KERAS_3 if "layer_names" not in _attributes(file) else ():
        if place in file:
            return _of_keras_3(file[place])
    root = file["model_weights"] if "model_weights" in file else file
    _check_origin(_attributes(root))
    found: Layers = {}
    for layer in _texts(_attributes(root)["layer_names"]):
        for weight in _texts(_attributes(root[layer])["weight_names"]):
            owner, name = _owner(layer, weight)
            arrays = found.setdefault(owner, {})
            if name in arrays:
                raise ModelLoadFailed(f"layer {owner} holds two arrays {name!r}; {WHOLE}")
            arrays[name] = root[layer][weight][()]
    return found


def _check_origin(attributes: Mapping[str, Any]) -> None:
    """Raises ModelLoadFailed for files whose arrays lie otherwise: Keras 1, and Keras on Theano or CNTK."""
    version, backend = (_texts([attributes.get(key, "")])[0] for key in ("keras_version", "backend"))
    if version.startswith("1.") or backend in ("theano", "cntk"):
        raise ModelLoadFailed(
            f"written by Keras {version} on {backend or 'an unnamed back end'}, whose kernels lie otherwise; "
            "load it in Keras 2 on TensorFlow and save its weights again"
        )


def _owner(layer: str, weight: str) -> tuple[str, str]:
    """(layer, array name) of a weight like "conv2d_1/kernel:0"; a net inside a net gives its own layers."""
    parts = weight.removesuffix(":0").split("/")
    if layer.startswith(("model", "sequential", "functional")) and len(parts) > 1 and parts[0] != layer:
        return parts[0], "/".join(parts[1:])
    return layer, "/".join(parts[1:] if len(parts) > 1 and parts[0] == layer else parts)


def _of_keras_3(layers: Mapping[str, Any]) -> Layers:
    """The arrays of every layer. Its own name is needed: the file numbers layers along the net's graph."""
    found: Layers = {}
    for key, group in layers.items():
        arrays = dict(_arrays(group, ""))
        inner = group.get("layers")
        if inner is not None:
            found |= _of_keras_3(inner)  # A net inside a net.
            continue
        if not arrays:
            continue
        name = _attributes(group["vars"]).get("name") if "vars" in group else None
        if name is None:
            raise ModelLoadFailed(f"layer {key}: this Keras 3 did not store the layers' names; {WHOLE}")
        found[_texts([name])[0]] = arrays
    return found


def _arrays(group: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays of a layer and of those inside it: its own first, a forward layer before a backward one."""
    for key in sorted(group, key=lambda k: (k != "vars", k.startswith("backward"), k)):
        entry = group[key]
        if key == SEEDS or not isinstance(entry, Mapping):
            continue
        if key == "vars":
            for number in sorted(entry, key=int):
                yield f"{prefix}{number}", entry[number][()]
        else:
            yield from _arrays(entry, f"{prefix}{key}/")


def _attributes(group: Mapping[str, Any]) -> Mapping[str, Any]:
    return group.attrs  # type: ignore[attr-defined, no-any-return]


def _texts(values: Any) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]
