"""What may lie in a bundle folder, the upload through a stand-in client, wheels through a stand-in pip."""
from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder import assembly, backend_wheels, upload
from kernel.errors import UploadError
from kernel.spec import dumps_json, load_manifest
from tests.helpers import TESTS
from tests.helpers.bundles import TINY, copy_of_build, order


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return copy_of_build(tmp_path / "out")


# What may lie in the folder

PLANTED: dict[str, bytes] = {
    "kaggle.json": b'{"username": "me", "key": "0123456789abcdef0123456789abcdef"}',
    ".env": b"A=1",
    "id_rsa": b"x",
    "note.json": b"-----BEGIN OPENSSH PRIVATE KEY-----",
    "aws.json": b'{"id": "AKIAABCDEFGHIJKLMNOP"}',
    "token.json": b'{"t": "ghp_' + b"a1" * 18 + b'"}',
    "hub.json": b'["hf_' + b"abcDEF1234" * 4 + b'"]',
    "path.json": b'{"weights": "/home/someone/best.pt"}',
    "model.pt": b"PK\x03\x04",
    "clips.zip": b"PK\x03\x04",
    "a.csv.gz": b"\x1f\x8b",
    "sneaky.safetensors": b"PK\x03\x04rest",
    "pickled.onnx": b"\x80\x04rest",
    "run.ipynb": b"{}",
    "data.npz": b"PK\x03\x04",
    "kernel-metadata.json": b"{}",
    "model-metadata.json": b"{}",
    "datapackage.json": b"{}",
    "dataset-cover-image.png": b"x",
    "MANIFEST.json": b"{}",
    "na me.json": b"{}",
    "extra.json": b"{}",
    "tönë.json": b"{}",
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_files_are_refused_by_name(out: Path, name: str) -> None:
    (out / "bundle" / name).write_bytes(PLANTED[name])
    with pytest.raises(UploadError, match="(?i)" + re.escape(name)):
        upload.check(out)


def test_folders_links_and_crowds_are_refused(out: Path) -> None:
    bundle = out / "bundle"
    (bundle / "sub").mkdir()
    with pytest.raises(UploadError, match="flat"):
        upload.check(out)
    (bundle / "sub").rmdir()
    (bundle / "loop.json").symlink_to(bundle)
    with pytest.raises(UploadError, match="link"):
        upload.check(out)
    (bundle / "loop.json").unlink()
    for i in range(50):
        (bundle / f"{i}.json").write_text("{}")
    with pytest.raises(UploadError, match="50"):
        upload.check(out)


def test_a_secret_in_an_own_net_stops_the_build(tmp_path: Path) -> None:
    text = (TESTS / "ensembles" / "my_net.py").read_text(encoding="utf-8")
    (tmp_path / "my_net.py").write_text(text + '\nTOKEN = "hf_' + "abcDEF1234" * 4 + '"\n', encoding="utf-8")
    toml = TINY.read_text(encoding="utf-8").replace('"simple_cnn"', '"my_net.py:MyNet"') \
        .replace("{ base = 4, channels = 1 }", "{}")
    (tmp_path / "own.toml").write_text(toml, encoding="utf-8")
    with pytest.raises(UploadError, match="kernel/custom/my_net.py.*Hugging Face"):
        assembly.build(order(tmp_path / "o", ensemble=tmp_path / "own.toml"), say=lambda _: None)
    assert not list((tmp_path / "o").iterdir())


def test_a_flipped_byte_is_named_before_the_upload(out: Path) -> None:
    path = out / "bundle" / "tiled.0.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    with pytest.raises(UploadError, match="^tiled.0.safetensors: its bytes differ"):
        upload.check(out)


def test_a_kernel_of_another_bundle_is_refused(out: Path) -> None:
    manifest = load_manifest((out / "bundle" / "manifest.json").read_bytes())
    (out / "bundle" / "manifest.json").write_bytes(dumps_json(replace(manifest, version="9")))
    with pytest.raises(UploadError, match="another bundle"):
        upload.check(out)


# The client


class Client:
    """Stands for the kaggle client: answers by the command's words."""

    def __init__(self, **answers: tuple[int, str]) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.answers = answers

    def __call__(self, command: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append(tuple(command[1:3]))
        code, text = self.answers.get("_".join(command[1:3]), (0, "ready"))
        return subprocess.CompletedProcess(command, code, text, "")


@pytest.fixture
def configured(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kaggle").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "kaggle").chmod(0o755)
    return {"environment": {"PATH": str(tmp_path / "bin"), "KAGGLE_KEY": "set"}, "home": tmp_path}


def test_without_a_client_the_commands_are_printed(out: Path, configured: dict[str, Any]) -> None:
    client = Client()
    lines: list[str] = []
    for environment in ({"PATH": ""}, {"PATH": configured["environment"]["PATH"]}):
        assert not upload.upload(out, environment, home=out, run=client, say=lines.append)
    assert client.calls == [] and "not installed" in lines[0] and "not configured" in lines[1]
    assert "kaggle kernels push" in lines[0]


def test_an_existing_dataset_gets_a_version_and_a_new_one_is_created(
    out: Path, configured: dict[str, Any]
) -> None:
    client = Client()
    assert upload.upload(out, **configured, run=client, say=lambda _: None, sleep=lambda _: None)
    assert client.calls == [
        ("datasets", "status"),
        ("datasets", "version"),
        ("datasets", "status"),
        ("kernels", "push"),
    ]
    client = Client(datasets_status=(1, "404 ready"))
    upload.upload(out, **configured, run=client, say=lambda _: None, sleep=lambda _: None)
    assert client.calls[1] == ("datasets", "create")


@pytest.mark.parametrize(
    "answer", [(1, ""), (0, "The following are not valid dataset sources"), (0, "Kernel push error: 409")]
)
def test_complaints_of_the_client_are_errors(
    out: Path, configured: dict[str, Any], answer: tuple[int, str]
) -> None:
    with pytest.raises(UploadError, match="kernels push"):
        upload.upload(
            out, **configured, run=Client(kernels_push=answer), say=lambda _: None, sleep=lambda _: None
        )


def test_the_placeholder_owner_is_not_uploaded(tmp_path: Path) -> None:
    assembly.build(order(tmp_path, owner=assembly.PLACEHOLDER_OWNER), say=lambda _: None)
    with pytest.raises(UploadError, match="--owner"):
        upload.check(tmp_path)


# Wheels


class Pip:
    """Stands for pip: `download` leaves wheels, `install` wants every needed project among the links."""

    def __init__(self, projects: tuple[str, ...], needed: tuple[str, ...]) -> None:
        self.projects = projects
        self.needed = needed

    def __call__(self, command: Any) -> subprocess.CompletedProcess[str]:
        if "download" in command:
            for project in self.projects:
                folder = Path(command[command.index("--dest") + 1])
                (folder / f"{project}-1.0-py3-none-any.whl").write_bytes(b"x")
        if "install" in command:
            assert "--no-index" in command
            links = [Path(command[i + 1]) for i, part in enumerate(command) if part == "--find-links"]
            held = {path.name.split("-")[0] for link in links for path in link.iterdir()}
            for name in self.needed:
                if name not in held:
                    error = (
                        f"ERROR: Could not find a version that satisfies the requirement {name}>=1 "
                        "(from openvino) (from versions: none)"
                    )
                    return subprocess.CompletedProcess(command, 1, "", error)
        return subprocess.CompletedProcess(command, 0, "", "")


def test_wheels_ride_along_without_what_the_image_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_wheels.venv, "create", lambda *_, **__: None)
    pip = Pip(("openvino", "openvino_telemetry", "numpy"), ("numpy", "openvino_telemetry"))
    names = [path.name for path in backend_wheels.collect("openvino", tmp_path, run=pip)]
    assert names == ["openvino-1.0-py3-none-any.whl", "openvino_telemetry-1.0-py3-none-any.whl"]


def test_a_missing_dependency_is_named(tmp_path: Path) -> None:
    pip = Pip(("openvino", "numpy"), ("numpy", "openvino_telemetry"))
    with pytest.raises(UploadError, match="'openvino_telemetry>=1' is missing, needed by openvino"):
        backend_wheels.collect("openvino", tmp_path, run=pip)
    assert not list(tmp_path.iterdir())
