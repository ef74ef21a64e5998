"""Keras arrays -> torch tensors under Keras layer names: layouts of convolutions, norms and recurrent layers.

Owns the order of axes and gates, cuDNN's layout, and the numbering of layers. Every array comes out again:
what has no torch form here keeps its Keras name, so that a net which does not take it is told. Reads no files
(`training.keras_files`).
"""
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelLoadFailed

Arrays = Mapping[str, np.ndarray]  # name inside its layer, such as "kernel" -> values, in Keras order
Leaves = dict[str, np.ndarray]  # leaf of the torch key -> values
NORM_NAMES = ("gamma", "beta", "moving_mean", "moving_variance")
NORM_LEAVES = ("weight", "bias", "running_mean", "running_var")
GATES = {3: "GRU", 4: "LSTM"}  # arrays of one step, stacked along the last axis
# A batch norm of one channel stands over the waveform, before the net's own mel spectrum.
WAVE_NORM = "wave_norm"
MEL_LAYER = re.compile(r"spectrogram|melgram")


@dataclass(frozen=True, kw_only=True)
class TorchWeights:
    """A Keras net's arrays for torch.

    state  torch key -> tensor
    said   what was converted out of a layout that is not Keras's usual one, a sentence each
    """

    state: dict[str, Tensor]
    said: tuple[str, ...]


def torch_weights(layers: Mapping[str, Arrays | Sequence[np.ndarray]]) -> TorchWeights:
    """Every array of a Keras net, under the layer names of a fresh Keras session.

    layers: Keras layer name -> its arrays in Keras order, by name where the file names them. A later model of
    one session has higher numbers, so layers are numbered anew by rank within their kind. Layers of other
    kinds keep their names and arrays. A batch norm of one channel beside others is `wave_norm`.
    Source: Keras 2.1 layers (kernels height, width, in, out; gates z, r, h; torch wants r, z, n).

    Raises  ModelLoadFailed for a recurrent layer that torch does not have
    """
    state: dict[str, np.ndarray] = {}
    said: list[str] = []
    for name, new in _renumbered(layers).items():
        arrays = _named(layers[name])
        convert = _LEAVES.get(re.sub(r"_\d+\Z", "", name))
        if convert is None:
            leaves = {key: np.asarray(value) for key, value in arrays.items()}
        else:
            single = {key: np.asarray(value, np.float32) for key, value in arrays.items()}
            leaves = convert(single, name)
            recurrent = convert in (_bidirectional, _recurrent)
            if recurrent and any(_is_cudnn(part) for part in _directions(single)):
                said.append(f"{name}: cuDNN's layout, turned into torch's gate by gate")
        state |= {f"{new}.{leaf}": value for leaf, value in leaves.items()}
    return TorchWeights(
        state={key: torch.from_numpy(np.array(value, order="C")) for key, value in state.items()},
        said=tuple(said),
    )


def torch_state(layers: Mapping[str, Arrays | Sequence[np.ndarray]]) -> dict[str, Tensor]:
    """The tensors of `torch_weights`."""
    return torch_weights(layers).state


def _renumbered(layers: Mapping[str, Arrays | Sequence[np.ndarray]]) -> dict[str, str]:
    """Keras layer name -> our name; layers of a kind in the order of their numbers."""
    found: dict[str, list[tuple[int, str]]] = {}
    out: dict[str, str] = {}
    for name in layers:
        match = re.fullmatch(r"(.+?)(?:_(\d+))?", name)
        kind = match[1] if match else name
        if kind in _LEAVES:
            found.setdefault(kind, []).append((int(match[2] or 0) if match else 0, name))
        else:
            out[name] = name
    for kind, numbered in found.items():
        ordered = [name for _, name in sorted(numbered)]
        if kind == "batch_normalization":
            over_waves = [name for name in _before_mel(list(layers)) if name in ordered
                          and _channels(layers[name]) == 1]
            if len(over_waves) == 1 and len(ordered) > 1:
                ordered.remove(over_waves[0])
                out[over_waves[0]] = WAVE_NORM
        out |= {name: f"{kind}_{rank}" for rank, name in enumerate(ordered, start=1)}
    return out


def _before_mel(names: Sequence[str]) -> Sequence[str]:
    """Layers before the net's own mel layer, in the file's order; all of them where it holds none."""
    mel = next((i for i, name in enumerate(names) if MEL_LAYER.search(name)), len(names))
    return names[:mel]


def _channels(arrays: Arrays | Sequence[np.ndarray]) -> int:
    return int(np.size(next(iter(_named(arrays).values()))))


def _named(arrays: Arrays | Sequence[np.ndarray]) -> Arrays:
    if isinstance(arrays, Mapping):
        return arrays
    return {f"array_{i}": value for i, value in enumerate(arrays)}


def _kernel(axes: tuple[int, ...]) -> Callable[[Arrays, str], Leaves]:
    """Kernel with its axes in torch's order, then the bias if there is one."""
    def convert(arrays: Arrays, where: str) -> Leaves:
        kernel, *bias = arrays.values()
        if kernel.ndim != len(axes) or len(bias) > 1:
            raise ModelLoadFailed(f"{where}: arrays of shapes {[list(a.shape) for a in arrays.values()]}; "
                                  f"expected a kernel of {len(axes)} axes and at most one bias")
        leaves = {"weight": kernel.transpose(axes)}
        return leaves | ({"bias": bias[0]} if bias else {})

    return convert


def _per_place(arrays: Arrays, where: str) -> Leaves:
    """LocallyConnected1D: kernel (places, inputs, filters) -> [places, inputs] where there is one filter."""
    leaves = _kernel((0, 2, 1))(arrays, where)
    kernel = leaves["weight"]
    return leaves | {"weight": kernel[:, 0] if kernel.shape[1] == 1 else kernel}


def _batch_norm(arrays: Arrays, where: str) -> Leaves:
    """gamma, beta, mean, variance; scale = False and center = False are gamma 1 and beta 0."""
    if len(arrays) == len(NORM_NAMES):
        return dict(zip(NORM_LEAVES, arrays.values(), strict=True))
    known = {re.sub(r"_\d+\Z", "", name): value for name, value in arrays.items()}
    if not {"moving_mean", "moving_variance"} <= set(known) or not set(known) <= set(NORM_NAMES):
        raise ModelLoadFailed(
            f"{where}: a batch norm of {len(arrays)} arrays ({', '.join(arrays)}) that the file "
            "does not name; "
            "save the whole net in Keras with model.save('x.h5'), which keeps their names"
        )
    usual = {"gamma": np.ones_like(known["moving_mean"]), "beta": np.zeros_like(known["moving_mean"])}
    return {leaf: {**usual, **known}[name] for leaf, name in zip(NORM_LEAVES, NORM_NAMES, strict=True)}


def _directions(arrays: Arrays) -> list[list[np.ndarray]]:
    """Kernel, recurrent kernel and bias of each direction: one, or forward and backward."""
    values = list(arrays.values())
    return [values] if len(values) <= 3 else [values[: len(values) // 2], values[len(values) // 2 :]]


def _is_cudnn(arrays: Sequence[np.ndarray]) -> bool:
    """True for CuDNNGRU and CuDNNLSTM, whose flat bias holds input and recurrent biases."""
    return len(arrays) == 3 and arrays[2].ndim == 1 and arrays[2].size == 2 * arrays[1].shape[1]


def _bidirectional(arrays: Arrays, where: str) -> Leaves:
    forward, *backward = _directions(arrays)
    if not backward:
        raise ModelLoadFailed(f"{where}: {len(arrays)} arrays; expected two kernels and a bias, twice")
    return _one_direction(forward, "", where) | _one_direction(backward[0], "_reverse", where)


def _recurrent(arrays: Arrays, where: str) -> Leaves:
    return _one_direction(list(arrays.values()), "", where)


def _one_direction(arrays: Sequence[np.ndarray], suffix: str, where: str) -> Leaves:
    """Leaves of torch's GRU or LSTM of one direction.

    Raises  ModelLoadFailed for a cell that torch lacks: other gates, no bias, or a GRU that resets before
    """
    if len(arrays) != 3:
        raise ModelLoadFailed(
            f"{where}: {len(arrays)} arrays per direction; without a bias the file does not "
            "tell which GRU it "
            "is, and torch's has one; export the net to ONNX (tf2onnx) and use family = \"onnx\""
        )
    kernel, recurrent, bias = arrays
    units, width = recurrent.shape
    gates = width // units
    if gates not in GATES or width % units:
        raise ModelLoadFailed(f"{where}: {width} columns for {units} units are neither a GRU nor an LSTM")
    if _is_cudnn(arrays):
        # Each gate's own matrix lies transposed. Source: Keras 2.2.4 engine/saving.py convert_rnn weights,
        # the same in tf-keras 2.x layers/rnn (checked against tf-keras 2.21: within 4e-7).
        kernel = np.hstack([k.T.reshape(k.shape, order="F") for k in np.hsplit(kernel, gates)])
        recurrent = np.hstack([k.T for k in np.hsplit(recurrent, gates)])
    if GATES[gates] == "GRU" and bias.size != 2 * width:
        raise ModelLoadFailed(
            f"{where}: a GRU with reset_after = False resets its state before the recurrent product, which "
            "torch's GRU cannot; export the net to ONNX (tf2onnx) and use family = \"onnx\""
        )
    inner, outer = np.split(bias.reshape(-1), 2) if bias.size == 2 * width else (bias, np.zeros_like(bias))
    rows = {"weight_ih": kernel.T, "weight_hh": recurrent.T, "bias_ih": inner, "bias_hh": outer}
    order = _reset_first if GATES[gates] == "GRU" else np.asarray
    return {f"{name}_l0{suffix}": order(value) for name, value in rows.items()}


def _reset_first(rows: np.ndarray) -> np.ndarray:
    """Keras's gates z, r, h as torch's r, z, n."""
    z, r, h = np.split(rows, 3)
    return np.concatenate([r, z, h])


_LEAVES: dict[str, Callable[[Arrays, str], Leaves]] = {  # Keras layer kinds that torch has
    "conv1d": _kernel((2, 1, 0)),
    "conv2d": _kernel((3, 2, 0, 1)),
    "dense": _kernel((1, 0)),
    "locally_connected1d": _per_place,
    "batch_normalization": _batch_norm,
    "bidirectional": _bidirectional,
    "gru": _recurrent,
    "lstm": _recurrent,
    "cu_dnngru": _recurrent,
    "cu_dnnlstm": _recurrent,
}
