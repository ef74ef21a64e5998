"""Foreign checkpoints are hostile: no other file is read, no code runs, no small file takes the memory."""
from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from builder.weights import load_blob, to_blob
from kernel.bundle import parse_state
from kernel.errors import ModelLoadFailed
from training import hdf5_reader, pickle_reader
from training.checkpoints import fit_state, read_keras, read_state

SECRET = b'{"username":"me","key":"0123456789abcdef0123456789abcdef"}'.ljust(64)


def keras_file(path: Path, fill: Callable[[h5py.Group], Any], names: tuple[str, ...] = ("k:0",)) -> Path:
    """A Keras weights file with one dense layer, whose group `fill` fills."""
    with h5py.File(path, "w", libver="latest") as file:  # Older forms of the file hold short lists only.
        file.attrs["layer_names"] = [b"dense_1"]
        group = file.create_group("dense_1")
        group.attrs["weight_names"] = [name.encode() for name in names]
        fill(group)
    return path


def stolen(path: Path) -> Callable[[h5py.Group], Any]:
    return lambda group: group.create_dataset("k:0", (4, 4), "f4", external=[(str(path), 0, 64)])


def virtual(path: Path) -> Callable[[h5py.Group], Any]:
    def fill(group: h5py.Group) -> None:
        layout = h5py.VirtualLayout((4, 4), "f4")
        layout[:] = h5py.VirtualSource(str(path), "x", (4, 4))
        group.create_virtual_dataset("k:0", layout)

    return fill


def linked(link: Any) -> Callable[[h5py.Group], Any]:
    def fill(group: h5py.Group) -> None:
        group["real"] = np.ones((4, 4), np.float32)
        group["k:0"] = link

    return fill


def test_a_file_of_this_machine_never_becomes_weights(tmp_path: Path) -> None:
    (tmp_path / "kaggle.json").write_bytes(SECRET)
    path = keras_file(tmp_path / "net.h5", stolen(tmp_path / "kaggle.json"))
    with h5py.File(path, "r") as file:  # Read carelessly, the file gives the secret as numbers.
        assert file["dense_1/k:0"][()].tobytes() == SECRET
    net = nn.Module()
    net.dense_1 = nn.Linear(4, 4, bias=False)
    with pytest.raises(ModelLoadFailed, match="in another file, which would be read and shipped"):
        load_blob(path, "simple_cnn", {}, net)


@pytest.mark.parametrize("whole", [False, True])
def test_no_link_is_followed(whole: bool, tmp_path: Path) -> None:
    other = keras_file(tmp_path / "other.h5", lambda g: g.create_dataset("k:0", data=np.ones((4, 4), "f4")))
    links = [h5py.ExternalLink(str(other), "/dense_1/k:0"), h5py.SoftLink("/dense_1/real")]
    for link in links:
        path = keras_file(tmp_path / "net.h5", linked(link))
        if whole:
            with h5py.File(path, "w") as file:
                file["model_weights"] = h5py.ExternalLink(str(other), "/")
        with pytest.raises(hdf5_reader.Refused, match="is a link"):
            hdf5_reader.read(path)


@pytest.mark.parametrize(
    "fill, reason",
    [
        (virtual(Path("other.h5")), "in another file"),
        (lambda g: g.create_dataset("k:0", (1 << 40,), "f4", chunks=(1 << 20,)), "none were ever written"),
        (lambda g: g.create_dataset("k:0", data=np.zeros(1 << 26, "u1"), compression=9), "unpack to"),
        (lambda g: g.create_group("k:0"), "is no array"),
        (lambda g: g.create_dataset("k:0", data=np.ones(3, complex)), "complex128, not real"),
        (lambda g: g.create_dataset("k:0", data=np.ones(3, "f8").astype("V8")), "not real"),
        (lambda g: g.create_dataset("k:0", data=["text"]), "not real"),
        (lambda g: g.create_dataset("k:0", data=h5py.Empty("f4")), "not real"),
        (lambda g: None, "'k:0' is missing"),
    ],
)
def test_arrays_that_are_no_weights_are_refused(
    fill: Callable[[h5py.Group], Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5_reader, "FREE_BYTES", 1 << 20)
    path = keras_file(tmp_path / "net.h5", fill)
    with pytest.raises(hdf5_reader.Refused, match=reason):
        hdf5_reader.read(path)


def test_one_array_named_again_and_again_counts_every_time(tmp_path: Path) -> None:
    def fill(group: h5py.Group) -> None:
        group.create_dataset("k:0", data=np.zeros(1 << 16, "u1"), compression=9)

    path = keras_file(tmp_path / "net.h5", fill, ("k:0",) * 19_000)
    with pytest.raises(hdf5_reader.Refused, match="unpack to"):
        hdf5_reader.read(path)


def test_a_list_of_names_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "net.h5", lambda g: None, ("k" * 100,) * 20_001)
    with pytest.raises(hdf5_reader.Refused, match="claims 20001 names"):
        hdf5_reader.read(path)


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 2, 2, 2, 2)])
def test_arrays_of_another_layer_are_one_sentence(shape: tuple[int, ...], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "net.h5", "w") as file:
        file.attrs["layer_names"] = [b"conv2d_1", b"batch_normalization_1"]
        for name in ("conv2d_1", "batch_normalization_1"):
            file.create_group(name).attrs["weight_names"] = [b"k:0"]
            file[name]["k:0"] = np.ones(shape, np.float32)
    with pytest.raises(ModelLoadFailed, match="not those that Keras 2 saves"):
        read_state(tmp_path / "net.h5")


def test_layers_come_back_in_order_with_their_dtypes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "net.h5", "w") as file:
        file.attrs["layer_names"] = [b"b/1", b"a", b"none"]
        for name, dtype in (("b/1", "f2"), ("a", "f8"), ("none", None)):
            group = file.create_group(name)
            group.attrs["weight_names"] = [b"x/k:0", b"x/b:0"] if dtype else []
            if dtype:
                group["x/k:0"] = np.arange(6).reshape(2, 3).astype(dtype)
                group["x/b:0"] = np.float32(3)
    layers = read_keras(tmp_path / "net.h5")
    assert list(layers) == ["b/1", "a"] and [len(arrays) for arrays in layers.values()] == [2, 2]
    assert layers["b/1"][0].dtype == np.float16 and layers["a"][0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert layers["a"][1].shape == () and layers["a"][1] == 3


# Archives and pickles


def archive(**held: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in held.items():
            file.writestr(name, data)
    return buffer.getvalue()


def test_an_archive_that_unpacks_to_much_is_refused_unopened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickle_reader, "FREE_BYTES", 1 << 16)
    (tmp_path / "net.pth").write_bytes(archive(data=bytes(1 << 22)))
    monkeypatch.setattr(torch, "load", None)
    assert "unpacks to 4194304 bytes" in str(pickle_reader.read(str(tmp_path / "net.pth")))


@pytest.mark.parametrize("damage", [lambda data: data[:-10] + b"\xff" * 10, lambda data: data[50:]])
def test_a_corrupt_archive_is_one_sentence(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(damage(archive(a=bytes(100), b=bytes(100))))
    assert "damaged" in str(pickle_reader.read(str(tmp_path / "net.pth")))


def test_a_view_that_claims_more_than_the_file_holds_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": torch.ones(1).expand(1 << 20, 1 << 20)}, tmp_path / "net.pth")
    pickle_reader.main(str(tmp_path / "net.pth"), str(tmp_path / "out"))
    assert "many times what the file holds" in json.loads(capsys.readouterr().out)["refused"]
    assert not (tmp_path / "out").exists()


# Numbers of another kind


def net_of(value: torch.Tensor) -> nn.Module:
    net = nn.Module()
    net.register_buffer("x", value)
    return net


@pytest.mark.parametrize(
    "value, message",
    [
        (torch.ones(2, dtype=torch.complex64), "complex64, the net has torch.float32: a part"),
        (torch.ones(2, dtype=torch.int8), "int8, the net has torch.float32"),
        (torch.ones(2, dtype=torch.bool), "bool, the net has torch.float32"),
        (torch.full((2,), 1e300, dtype=torch.float64), "NaN or infinity"),
        (torch.ones(2).to(torch.float8_e8m0fnu), "float8_e8m0fnu; store it as float16"),
    ],
)
def test_numbers_that_would_lose_a_part_are_refused(value: torch.Tensor, message: str) -> None:
    with pytest.raises(ModelLoadFailed, match=message):
        fit_state(net_of(torch.zeros(2)), {"x": value}, "net.pt")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_small_floats_arrive_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    value = torch.tensor([0.5, -1.75, 448.0]).to(dtype)
    save_file({"x": value}, tmp_path / "net.safetensors")
    blob = load_blob(tmp_path / "net.safetensors", "simple_cnn", {}, net_of(torch.zeros(3)))
    assert torch.equal(parse_state(blob, "x")["x"], value.float())
    assert b"F8_" not in blob


def test_averaged_batch_counters_are_whole_numbers_again() -> None:
    norm = nn.BatchNorm2d(2)
    averaged = {k: v.float() + 0.4 if k.endswith("tracked") else v for k, v in norm.state_dict().items()}
    fitted = fit_state(norm, averaged, "net.pt")
    assert fitted["num_batches_tracked"].dtype == torch.int64
    assert parse_state(to_blob(fitted, "x"), "x").keys() == norm.state_dict().keys()
