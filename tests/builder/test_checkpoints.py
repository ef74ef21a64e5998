"""Checkpoints in every accepted wrapper give identical logits; code in a file is refused and does not run."""
from __future__ import annotations

import argparse
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from builder.weights import load_blob
from kernel import models
from kernel.errors import ModelLoadFailed
from kernel.models.keras_layers import torch_state
from tests.helpers import recipe
from training.checkpoints import read_state

CLASSES = 5
FAMILY = "dense_pyramid"
PARAMS = {"base": 2, "hidden": 8}
State = dict[str, Tensor]


def filled(family: str = FAMILY, params: dict[str, Any] | None = None) -> nn.Module:
    module = models.build(family, PARAMS if params is None else params, CLASSES)
    module.load_state_dict(recipe.fill_state_dict(module.state_dict(), 1.2))
    return module.eval()


@pytest.fixture(scope="module")
def state() -> State:
    return filled().state_dict()


def convert(path: Path, family: str, params: dict[str, Any], out: Path) -> None:
    """What the builder ships of a checkpoint, as a file."""
    out.write_bytes(load_blob(path, family, params, models.build(family, params, CLASSES)))


def logits_of(
    path: Path, family: str = FAMILY, params: dict[str, Any] | None = None, x: Any = None
) -> Tensor:
    module = models.build(family, PARAMS if params is None else params, CLASSES)
    module.load_state_dict(load_file(path))
    if x is None:
        x = torch.from_numpy(recipe.make_input("import", 1, 32, 50))[None]
    with torch.no_grad():
        return module.eval()(x)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + k: v for k, v in state.items()}


def authors(state: State) -> State:
    """The keys of the contract viel_m1: conv.0 for our conv1."""
    return {f"conv.{int(k[4]) - 1}{k[5:]}" if k.startswith("conv") else k: v for k, v in state.items()}


WRAPPERS: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "the authors' keys": authors,
    "data parallel": lambda s: prefixed("module.", s),
    "lightning": lambda s: {
        "state_dict": {**prefixed("model.", s), "loss.pos_weight": torch.ones(3)},
        "epoch": 3,
        "hyper_parameters": {"lr": 0.1},
        "best": np.float64(0.8),
        "settings": argparse.Namespace(fold=1),
        "folder": Path("runs"),
        "optimizer_states": [{}],
    },
    "lightning, data parallel, the authors' keys": lambda s: {
        "state_dict": prefixed("model.module.", authors(s))
    },
    "argus": lambda s: {
        "model_name": "PyramidModel",
        "params": {"nn_module": ["M1", {}], "device": "cuda"},
        "nn_state_dict": s,
    },
    "fastai": lambda s: {"model": s, "opt": {"state": {}, "param_groups": [{"lr": 0.001}]}},
    "wrapper in a wrapper": lambda s: {"model": {"state_dict": s}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_wrapper_gives_identical_logits(wrapper: str, state: State, tmp_path: Path) -> None:
    torch.save(WRAPPERS[wrapper](state), tmp_path / "net.pth")
    convert(tmp_path / "net.pth", FAMILY, PARAMS, tmp_path / "out.safetensors")
    with torch.no_grad():
        want = filled()(torch.from_numpy(recipe.make_input("import", 1, 32, 50))[None])
    assert torch.equal(logits_of(tmp_path / "out.safetensors"), want)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_every_suffix_and_the_format_before_zip(suffix: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=suffix == ".pt")
    read = read_state(path)
    assert read.keys() == state.keys() and all(torch.equal(read[k], state[k]) for k in state)


def test_tensors_that_share_memory_and_views(tmp_path: Path) -> None:
    wide = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": wide, "b": wide, "c": wide.t()[1:]}, tmp_path / "net.pt")
    read = read_state(tmp_path / "net.pt")
    assert (
        torch.equal(read["a"], wide) and torch.equal(read["b"], wide) and torch.equal(read["c"], wide.t()[1:])
    )


def test_a_net_whose_own_keys_start_with_a_prefix_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\nclass Own(nn.Module):\n    def __init__(self, classes):\n"
        "        super().__init__()\n        self.model = nn.Linear(2, classes)\n"
        "    def forward(self, x):\n        return self.model(x)\n"
    )
    family = f"{tmp_path / 'own.py'}:Own"
    torch.save({"state_dict": prefixed("model.", filled(family, {}).state_dict())}, tmp_path / "net.ckpt")
    convert(tmp_path / "net.ckpt", family, {}, tmp_path / "out.safetensors")
    assert list(load_file(tmp_path / "out.safetensors")) == ["model.bias", "model.weight"]


# Refused files

class Runs:
    """A pickle that creates a file when it is opened carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("place", ["alone", "beside the weights", "bare pickle"])
def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(
    place: str, state: State, tmp_path: Path
) -> None:
    marker = tmp_path / "it ran"
    path = tmp_path / "net.pth"
    content = (
        {"state_dict": state, "callback": Runs(marker)} if place == "beside the weights" else Runs(marker)
    )
    if place.startswith("bare"):
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ModelLoadFailed, match=r"could run code.*weights_only=False.*state_dict"):
        convert(path, FAMILY, PARAMS, tmp_path / "out.safetensors")
    assert not marker.exists() and not (tmp_path / "out.safetensors").exists()
    pickle.loads(pickle.dumps(Runs(marker)))  # the same pickle, opened carelessly, does run
    assert marker.exists()


def test_a_whole_net_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    torch.save(filled(), tmp_path / "net.pth")
    with pytest.raises(ModelLoadFailed, match=r"dense_pyramid\.DensePyramid.*state_dict\(\)"):
        read_state(tmp_path / "net.pth")


def test_torchscript_is_refused_with_the_export_command(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        for name in ("net/data.pkl", "net/constants.pkl", "net/code/__torch__.py"):
            archive.writestr(name, b"")
    with pytest.raises(
        ModelLoadFailed, match=r"TorchScript.*torch\.jit\.load\('net\.pt'\).*torch\.onnx\.export.*net\.onnx"
    ):
        read_state(tmp_path / "net.pt")


def truncated() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(1000)}, buffer)
    return buffer.getvalue()[:2000]


@pytest.mark.parametrize("name, content, message", [
    ("net.pth", b"not a checkpoint", "damaged or no PyTorch file"),
    ("net.pth", truncated(), "damaged or no PyTorch file"),
    ("net.safetensors", b"\x08\0\0\0\0\0\0\0{broken}", "not a safetensors file"),
    ("export.pkl", b"", r"\.pkl is not accepted.*state_dict"),
    ("net", b"", "no suffix is not accepted"),
])
def test_unreadable_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelLoadFailed, match=message):
        read_state(tmp_path / name)


@pytest.mark.parametrize("content, message", [
    ([torch.ones(2)], "holds a list"),
    ({"epoch": 3, "score": 0.5}, "no tensors; its keys are epoch, score"),
])
def test_files_without_a_state_dict_are_named(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(ModelLoadFailed, match=message):
        read_state(tmp_path / "net.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="no such checkpoint"):
        read_state(tmp_path / "absent.pt")


# Keys

def test_missing_extra_and_misshapen_keys_come_with_the_nearest_name(state: State, tmp_path: Path) -> None:
    broken = {("conv2.conv1.0.wieght" if k == "conv2.conv1.0.weight" else k): v for k, v in state.items()}
    broken["conv1.conv1.0.weight"] = torch.ones(2, 3, 3, 3)
    save_file(broken, tmp_path / "net.safetensors")
    with pytest.raises(ModelLoadFailed) as caught:
        convert(tmp_path / "net.safetensors", FAMILY, PARAMS, tmp_path / "out.safetensors")
    text = str(caught.value)
    assert "1 missing, 1 extra, 1 misshapen" in text
    assert "missing conv2.conv1.0.weight (the checkpoint has conv2.conv1.0.wieght)" in text
    assert "extra conv2.conv1.0.wieght (the net has conv2.conv1.0.weight)" in text
    assert "conv1.conv1.0.weight is [2, 3, 3, 3], the net has [2, 1, 3, 3]" in text


def test_another_width_is_an_error_of_shapes_alone(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(ModelLoadFailed, match=r"0 missing, 0 extra, \d+ misshapen"):
        convert(tmp_path / "net.safetensors", FAMILY, {**PARAMS, "base": 3}, tmp_path / "out.safetensors")


def test_batch_counters_may_be_missing_and_nan_may_not(state: State, tmp_path: Path) -> None:
    save_file(
        {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
        tmp_path / "net.safetensors",
    )
    convert(tmp_path / "net.safetensors", FAMILY, PARAMS, tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors").keys() == state.keys()
    save_file(
        {k: v * float("nan") if k == "conv2.conv1.0.bias" else v for k, v in state.items()},
        tmp_path / "net.safetensors",
    )
    with pytest.raises(ModelLoadFailed, match=r"conv2\.conv1\.0\.bias holds NaN"):
        convert(tmp_path / "net.safetensors", FAMILY, PARAMS, tmp_path / "out.safetensors")


# Keras

def keras_arrays(state: State, session: int = 0) -> dict[str, list[np.ndarray]]:
    """The arrays Keras 2 would save for this net, its layers numbered from `session` on."""
    def gates(rows: np.ndarray) -> np.ndarray:
        r, z, n = np.split(rows, 3)
        return np.concatenate([z, r, n])

    layers: dict[str, list[np.ndarray]] = {"melspectrogram_1": [np.ones((3, 3), np.float32)]}
    for name in dict.fromkeys(k.rpartition(".")[0] for k in state):
        leaf = {k.removeprefix(name + "."): v.numpy() for k, v in state.items() if k.startswith(name + ".")}
        kind, number = name.rsplit("_", 1)
        if kind == "bidirectional":
            arrays = [a for end in ("", "_reverse") for a in (
                gates(leaf[f"weight_ih_l0{end}"]).T, gates(leaf[f"weight_hh_l0{end}"]).T,
                np.concatenate([gates(leaf[f"bias_ih_l0{end}"]), gates(leaf[f"bias_hh_l0{end}"])]))]
        else:
            axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
            arrays = [a.transpose(axes[a.ndim]) for a in leaf.values()]
        layers[f"{kind}_{int(number) + session}"] = arrays
    return layers


@pytest.mark.parametrize("family, params", [("statistics_cnn", {"width": 0.08, "excitation": True}),
                                            ("mel_densenet", {"growth": 2})])
def test_keras_arrays_become_our_state_dict(family: str, params: dict[str, Any]) -> None:
    state = filled(family, params).state_dict()
    back = torch_state(keras_arrays(state, session=20))
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)


def test_a_batch_norm_over_the_waveform_is_left_out() -> None:
    state = filled("mel_densenet", {"growth": 2}).state_dict()
    layers = keras_arrays(state, session=1)
    layers["batch_normalization_1"] = [np.ones(1, np.float32)] * 4
    assert torch_state(layers).keys() == state.keys()


@pytest.mark.parametrize("whole_net", [False, True])
def test_a_keras_file_gives_identical_logits(whole_net: bool, tmp_path: Path) -> None:
    family = "mel_densenet"
    params = {"growth": 2}
    net = filled(family, params)
    x = torch.from_numpy(recipe.make_input("keras", 1, 64, 40))[None]
    layers = keras_arrays(net.state_dict())
    with h5py.File(tmp_path / "net.h5", "w") as file:
        root = file.create_group("model_weights") if whole_net else file
        root.attrs["layer_names"] = [name.encode() for name in [*layers, "activation_1"]]
        root.create_group("activation_1").attrs["weight_names"] = []
        for name, arrays in layers.items():
            names = [f"{name}/array_{i}:0" for i in range(len(arrays))]
            root.create_group(name).attrs["weight_names"] = [n.encode() for n in names]
            for key, array in zip(names, arrays, strict=True):
                root[name][key] = array
    convert(tmp_path / "net.h5", family, params, tmp_path / "out.safetensors")
    with torch.no_grad():
        assert torch.equal(logits_of(tmp_path / "out.safetensors", family, params, x), net(x))


def test_an_hdf5_file_without_layers_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.h5").write_bytes(b"no hdf5")
    with pytest.raises(ModelLoadFailed, match="no Keras weights"):
        read_state(tmp_path / "net.h5")
