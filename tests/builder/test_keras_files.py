"""Keras files: every layout gives the net's own numbers; an array that no part of a net takes is an error.

Files below tests/goldens/keras were written by tf-keras 2.21 and Keras 3.15 (tests/producers/keras_small.py).
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import nn

from builder.weights import load_blob
from kernel import models
from kernel.errors import ModelLoadFailed
from kernel.models.keras_weights import torch_state, torch_weights
from kernel.spec import Member
from kernel.spec import load as load_spec
from tests.contracts import GOLDENS
from tests.helpers import recipe
from training.checkpoints import read_checkpoint, read_keras

CLASSES = 5
KERAS = GOLDENS / "keras"
MEL = {"kind": "mel_in_net", "rate": 16000, "hop": 128, "mel_power": 1.0}
Layers = dict[str, dict[str, np.ndarray]]
h5py = pytest.importorskip("h5py")


def filled(family: str, params: dict[str, Any]) -> nn.Module:
    module = models.build(family, params, CLASSES)
    module.load_state_dict(recipe.fill_state_dict(module.state_dict(), 1.2))
    return module.eval()


def keras_arrays(state: dict[str, torch.Tensor], session: int = 0) -> Layers:
    """The arrays Keras 2 would save for this net, its layers numbered from `session` on."""
    def gates(rows: np.ndarray) -> np.ndarray:
        r, z, n = np.split(rows, 3)
        return np.concatenate([z, r, n])

    layers: Layers = {}
    for name in dict.fromkeys(k.rpartition(".")[0] for k in state):
        leaf = {k.removeprefix(name + "."): v.numpy() for k, v in state.items() if k.startswith(name + ".")}
        kind, number = name.rsplit("_", 1)
        if kind == "bidirectional":
            arrays = [a for end in ("", "_reverse") for a in (
                gates(leaf[f"weight_ih_l0{end}"]).T, gates(leaf[f"weight_hh_l0{end}"]).T,
                np.stack([gates(leaf[f"bias_ih_l0{end}"]), gates(leaf[f"bias_hh_l0{end}"])]))]
        else:
            axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
            arrays = [a.transpose(axes[a.ndim]) for a in leaf.values()]
        layers[f"{kind}_{int(number) + session}"] = {f"array_{i}": a for i, a in enumerate(arrays)}
    return layers


def write_keras(path: Path, layers: Layers, whole_net: bool = False, **attributes: str) -> Path:
    """An .h5 as Keras 2 lays it out."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole_net else file
        root.attrs["layer_names"] = [name.encode() for name in [*layers, "activation_1"]]
        for key, text in attributes.items():
            root.attrs[key] = text.encode()
        root.create_group("activation_1").attrs["weight_names"] = []
        for name, arrays in layers.items():
            names = [f"{name}/{key}:0" for key in arrays]
            root.create_group(name).attrs["weight_names"] = [n.encode() for n in names]
            for key, array in zip(names, arrays.values(), strict=True):
                root[name][key] = array
    return path


def cudnn(layers: Layers) -> Layers:
    """The same recurrent layers as cuDNN stores them. Source: Keras 2.2.4, the way back of its conversion."""
    def stored(i: int, value: np.ndarray) -> np.ndarray:
        if i % 3 == 2:
            return value.reshape(-1)
        return np.hstack([k.reshape(k.T.shape, order="F").T if i % 3 == 0 else k.T
                          for k in np.hsplit(value, 3)])

    def kernel_back(k: np.ndarray) -> np.ndarray:
        return k.T.reshape(k.shape, order="C")

    out: Layers = {}
    for name, arrays in layers.items():
        if not name.startswith("bidirectional"):
            out[name] = arrays
            continue
        values = list(arrays.values())
        out[name] = {f"array_{i}": np.hstack([kernel_back(k) for k in np.hsplit(v, 3)]) if i % 3 == 0
                     else stored(i, v) for i, v in enumerate(values)}
    return out


@pytest.mark.parametrize("family, params", [("statistics_cnn", {"width": 0.08, "excitation": True}),
                                            ("mel_densenet", {"growth": 2})])
def test_keras_arrays_become_our_state_dict(family: str, params: dict[str, Any]) -> None:
    state = filled(family, params).state_dict()
    back = torch_state(keras_arrays(state, session=20))
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)


def test_cudnn_layers_are_converted_and_said() -> None:
    state = filled("statistics_cnn", {"width": 0.08}).state_dict()
    back = torch_weights(cudnn(keras_arrays(state)))
    assert all(torch.equal(back.state[k], state[k]) for k in state)
    said = "cuDNN's layout, turned into torch's gate by gate"
    assert back.said == tuple(f"bidirectional_{i}: {said}" for i in (1, 2))


@pytest.mark.parametrize("kind", ["gru", "lstm", "bidirectional_gru", "bidirectional_lstm"])
def test_files_of_tf_keras_with_cudnn_layers_give_its_own_answers(kind: str) -> None:
    weights = torch_weights(read_keras(KERAS / f"cudnn_{kind}.h5"))
    answers = json.loads((KERAS / "answers.json").read_text())[kind]
    name = next(key for key in weights.state).partition(".")[0]
    state = {k.partition(".")[2]: v for k, v in weights.state.items()}
    cell = nn.LSTM if kind.endswith("lstm") else nn.GRU
    net = cell(4, 3, batch_first=True, bidirectional=name.startswith("bidirectional"))
    net.load_state_dict(state)
    with torch.no_grad():
        out = net(torch.tensor(answers["x"]))[0]
    assert len(weights.said) == 1
    assert float((out - torch.tensor(answers["y"])).abs().max()) < 1e-6


def test_a_gru_that_resets_before_is_refused() -> None:
    with pytest.raises(ModelLoadFailed, match=r"gru_1: a GRU with reset_after = False.*ONNX"):
        torch_state({"gru_1": [np.ones((4, 9)), np.ones((3, 9)), np.ones(9)]})


def test_a_gru_without_bias_is_refused() -> None:
    with pytest.raises(ModelLoadFailed, match="gru_1: 2 arrays per direction.*bias"):
        torch_state({"gru_1": [np.ones((4, 9)), np.ones((3, 9))]})


def test_a_batch_norm_without_scale_or_centre() -> None:
    arrays = {"beta": np.full(3, 0.5), "moving_mean": np.ones(3), "moving_variance": np.full(3, 2.0)}
    state = torch_state({"batch_normalization_4": arrays})
    assert state["batch_normalization_1.weight"].tolist() == [1, 1, 1]
    assert state["batch_normalization_1.bias"].tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(ModelLoadFailed, match="batch_normalization_4.*3 arrays.*does not name"):
        torch_state({"batch_normalization_4": list(arrays.values())})


@pytest.mark.parametrize("whole_net", [False, True])
def test_a_keras_file_gives_identical_logits(whole_net: bool, tmp_path: Path) -> None:
    params = {"growth": 2}
    net = filled("mel_densenet", params)
    path = write_keras(tmp_path / "net.h5", keras_arrays(net.state_dict()), whole_net)
    blob = load_blob(path, "mel_densenet", params, models.build("mel_densenet", params, CLASSES))
    assert all(torch.equal(load(blob)[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize("attributes, message", [
    ({"keras_version": "2.1.5", "backend": "theano"}, "Keras 2.1.5 on theano"),
    ({"keras_version": "1.2.2"}, "written by Keras 1.2.2"),
])
def test_files_whose_kernels_lie_otherwise_are_refused(
    attributes: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = write_keras(tmp_path / "net.h5", {"dense_1": {"kernel": np.ones((2, 2))}}, **attributes)
    with pytest.raises(ModelLoadFailed, match=message):
        read_checkpoint(path)


def test_an_hdf5_file_without_layers_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.h5").write_bytes(b"no hdf5")
    with pytest.raises(ModelLoadFailed, match="no Keras weights"):
        read_checkpoint(tmp_path / "net.h5")


def test_an_archive_of_keras_3_leads_to_the_right_file(tmp_path: Path) -> None:
    (tmp_path / "net.keras").write_bytes(b"")
    with pytest.raises(ModelLoadFailed, match=r"model\.save\('x\.h5'\)"):
        read_checkpoint(tmp_path / "net.keras")


# Keras 3

def test_both_files_of_keras_3_hold_the_same_net() -> None:
    """The two branches of that net have equal shapes, and the file numbers them the other way round."""
    whole = read_checkpoint(KERAS / "three.h5").tensors
    weights = read_checkpoint(KERAS / "three.weights.h5").tensors
    assert whole.keys() == weights.keys() and {"conv2d_1.weight", "conv2d_2.weight"} <= whole.keys()
    assert all(torch.equal(whole[k], weights[k]) for k in whole)
    assert not torch.equal(whole["conv2d_1.weight"], whole["conv2d_2.weight"])


def test_a_keras_3_file_without_layer_names_leads_to_the_right_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "net.weights.h5", "w") as file:
        file.create_group("layers/dense/vars")["0"] = np.ones((2, 2))
    with pytest.raises(ModelLoadFailed, match=r"layer dense.*model\.save\('x\.h5'\)"):
        read_checkpoint(tmp_path / "net.weights.h5")


# The mel layer inside a net, and the batch norm before it

def waved(layers: Layers) -> Layers:
    """The layers with a batch norm over the wave before all others."""
    moved = {}
    for name, arrays in layers.items():
        kind, number = name.rsplit("_", 1)
        moved[f"{kind}_{int(number) + (kind == 'batch_normalization')}"] = arrays
    norm = {"gamma": 1.5, "beta": 0.01, "moving_mean": -0.004, "moving_variance": 0.04}
    return {"batch_normalization_1": {k: np.array([v], np.float32) for k, v in norm.items()}} | moved


def mel_layer(n_fft: int = 1024, mels: int = 64, rate: int = 16000) -> dict[str, np.ndarray]:
    """Arrays of kapre 0.1's layer."""
    from librosa.filters import mel

    angles = 2 * np.pi / n_fft * np.outer(np.arange(n_fft), np.arange(n_fft // 2 + 1))
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft))[:, None]
    return {"real_kernels": (np.cos(angles) * window)[:, None, None].astype(np.float32),
            "imag_kernels": (np.sin(angles) * window)[:, None, None].astype(np.float32),
            "Variable": mel(sr=rate, n_fft=n_fft, n_mels=mels).T}


def jeong_member(**more: Any) -> Member:
    return load_spec(Member, {"name": "net", "family": "mel_densenet", "params": {"growth": 2},
                              "frontend": "wave", "finish": [MEL], **more})


def blob_of(path: Path, member: Member) -> Any:
    module = models.build(member.family, member.params, CLASSES)
    return load_blob(path, member.family, member.params, module, member)


def test_a_batch_norm_over_the_wave_reaches_the_finish(tmp_path: Path) -> None:
    state = filled("mel_densenet", {"growth": 2}).state_dict()
    path = write_keras(tmp_path / "net.h5", waved(keras_arrays(state)))
    blob = blob_of(path, jeong_member())
    held = load(blob)
    scale = 1.5 / np.sqrt(0.04 + 1e-3)
    assert float(held["finish.x.0.wave_scale"]) == pytest.approx(scale)
    assert float(held["finish.x.0.wave_offset"]) == pytest.approx(0.01 + 0.004 * scale)
    assert all(torch.equal(held[k], v) for k, v in state.items())
    assert any("batch norm over the wave given to mel_in_net" in sentence for sentence in blob.said)


def test_a_batch_norm_over_the_wave_that_no_finish_takes_is_an_error(tmp_path: Path) -> None:
    state = filled("mel_densenet", {"growth": 2}).state_dict()
    path = write_keras(tmp_path / "net.h5", waved(keras_arrays(state)))
    with pytest.raises(ModelLoadFailed, match=r"batch norm over the waveform.*mel_in_net.*drop"):
        blob_of(path, jeong_member(finish=[]))
    assert "finish.x.0.wave_scale" not in load(blob_of(path, jeong_member(finish=[], drop=["wave_norm.*"])))


def test_a_batch_norm_behind_the_mel_layer_is_not_over_the_wave(tmp_path: Path) -> None:
    """One channel, too: the mel picture has one."""
    layers = keras_arrays(filled("mel_densenet", {"growth": 2}).state_dict())
    norm, *others = waved(layers).items()
    path = write_keras(tmp_path / "net.h5", {"melspectrogram_1": mel_layer()} | dict([norm, *others]))
    with pytest.raises(ModelLoadFailed, match=r"1 extra|extra batch_normalization|misshapen"):
        blob_of(path, jeong_member())
    path = write_keras(tmp_path / "net.h5", dict([norm]) | {"melspectrogram_1": mel_layer()} | dict(others))
    assert "finish.x.0.wave_scale" in load(blob_of(path, jeong_member()))


def test_the_mel_layer_is_left_out_where_the_finish_computes_the_same(tmp_path: Path) -> None:
    layers = keras_arrays(filled("mel_densenet", {"growth": 2}).state_dict())
    path = write_keras(tmp_path / "net.h5", layers | {"melspectrogram_1": mel_layer()})
    said = "melspectrogram_1: its kernels are those that mel_in_net computes"
    assert blob_of(path, jeong_member()).said == (said,)


@pytest.mark.parametrize("changed", ["rate", "bank", "kernels", "n_fft"])
def test_a_mel_layer_that_differs_from_the_finish_is_an_error(changed: str, tmp_path: Path) -> None:
    layer = mel_layer(rate=32000 if changed == "rate" else 16000, n_fft=2048 if changed == "n_fft" else 1024)
    if changed == "bank":
        layer["Variable"] = layer["Variable"] * 1.01
    if changed == "kernels":
        layer["real_kernels"] = layer["real_kernels"] + np.float32(2e-3)
    layers = keras_arrays(filled("mel_densenet", {"growth": 2}).state_dict())
    path = write_keras(tmp_path / "net.h5", layers | {"melspectrogram_1": layer})
    with pytest.raises(ModelLoadFailed, match=r"melspectrogram_1.*is not what mel_in_net computes"):
        blob_of(path, jeong_member())


def test_a_layer_that_the_net_lacks_is_named(tmp_path: Path) -> None:
    layers = keras_arrays(filled("mel_densenet", {"growth": 2}).state_dict())
    path = write_keras(tmp_path / "net.h5", layers | {"p_re_lu_1": {"alpha": np.ones((1, 1, 4))}})
    with pytest.raises(ModelLoadFailed, match=r"(?s)extra p_re_lu_1\.alpha.*drop = \[\"p_re_lu_1\.\*\"\]"):
        blob_of(path, jeong_member())
    assert blob_of(path, jeong_member(drop=["p_re_lu_1.*"])).said == ("left out by drop: p_re_lu_1.alpha",)


def test_the_per_class_stacker_reads_its_original_file() -> None:
    module = models.build("per_class_stacker", {"inputs": 7}, CLASSES)
    blob = load_blob(KERAS / "stacker.h5", "per_class_stacker", {"inputs": 7}, module)
    module.load_state_dict(load(blob))
    answers = json.loads((KERAS / "answers.json").read_text())["stacker"]
    with torch.no_grad():
        out = module(torch.tensor(answers["x"]))
    assert float((out - torch.tensor(answers["y"])).abs().max()) < 1e-6
