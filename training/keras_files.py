"""What a Keras file lists -> the arrays of each layer, by name.

Owns which layer an array belongs to, and the origins that are refused. Opens no file: `hdf5_reader` does, in
a process of its own. What an array means is `kernel.models.keras_weights`.
"""
from collections.abc import Mapping
from typing import Any

import numpy as np

from kernel.errors import ModelLoadFailed

WHOLE = "save the whole net in Keras with model.save('x.h5'), which keeps the layers' names"
Layers = dict[str, dict[str, np.ndarray]]  # layer name -> its arrays in Keras order, by their own names


def layers_of(listed: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Layers:
    """Layers that hold arrays, of a weights file or a whole saved net, in the order of the file.

    listed, arrays  what `hdf5_reader` says of the file, and the arrays that it left
    Raises          ModelLoadFailed for two arrays of one name, and for kernels that lie otherwise
    """
    _check_origin(listed["keras"], listed["backend"])
    found: Layers = {}
    for i, (layer, weights) in enumerate(listed["layers"]):
        for j, weight in enumerate(weights):
            owner, name = (layer, weight) if listed["numbered"] else _owner(layer, weight)
            held = found.setdefault(owner, {})
            if name in held:
                raise ModelLoadFailed(f"layer {owner} holds two arrays {name!r}; {WHOLE}")
            held[name] = arrays[f"{i}.{j}"]
    return found


def _check_origin(version: str, backend: str) -> None:
    """Raises ModelLoadFailed for files whose arrays lie otherwise: Keras 1, and Keras on Theano or CNTK."""
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
