"""What may lie in a bundle folder, the words of the client, wheels through a stand-in pip.

Uploads through the real client are in test_upload_stories.
"""
from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder import assembly, backend_wheels, metadata, upload
from builder.commands import clean_lines, watch_command
from builder.kaggle_client import Answer, advise, find_client
from kernel.errors import HourglassError, UploadError
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


def answer(code: int = 0, out: str = "", err: str = "") -> Answer:
    return Answer(code=code, out=tuple(clean_lines(out)), err=tuple(clean_lines(err)))


def test_progress_bars_are_no_lines() -> None:
    bars = "\n  0%|          | 0.00/78.1k [00:00<?, ?B/s]\r100%|####| 78.1k/78.1k [00:00<00:00, 34.5MB/s]\n"
    assert clean_lines(f"{bars}156kB [00:00, 49.9MB/s]   \n\nwhat it is\r\n") == ["what it is"]


def test_a_question_without_an_answer_ends() -> None:
    done = watch_command(["sh", "-c", "echo begun; exec sleep 60"], os.environ, None, seconds=0.2)
    assert done.returncode != 0 and done.stdout == "begun\n"
    assert answer(done.returncode, done.stdout, done.stderr).passing


def test_lines_are_said_as_they_come() -> None:
    said: list[str] = []
    script = "printf 'one\\ntwo\\n'; printf ' 50%%|# | 1/2 [00:00<00:01, 3.0B/s]\\rodd\\n' >&2; exit 3"
    done = watch_command(["sh", "-c", script], os.environ, said.append)
    assert done.returncode == 3 and sorted(said) == ["odd", "one", "two"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (answer(1, err="Traceback (most recent call last):\n  File x\nValueError: no"), "ValueError: no"),
        (answer(2, err="usage: kaggle\nkaggle datasets status: error: unrecognized arguments: --format json"),
         "kaggle datasets status: error: unrecognized arguments: --format json"),
        (answer(1, err="Request failed: reset. Will retry in 0.8 seconds\nToo Many Requests\n\nYou have"),
         "Too Many Requests"),
        (answer(0, "Starting upload for file a\nKernel push error: an error"), "Kernel push error: an error"),
        (answer(1, "Upload unsuccessful: a.json\n", "odd"), "Upload unsuccessful: a.json"),
        (answer(1, "Authentication required to call the Kaggle API.\nFirst"),
         "Authentication required to call the Kaggle API."),
        (answer(3), "exit code 3, without a word"),
    ],
)
def test_the_line_that_says_why(given: Answer, reason: str) -> None:
    assert given.reason == reason


@pytest.mark.parametrize(
    ("reason", "cure"),
    [
        ('The requested title "Storage quota" is already in use by a dataset.', "--slug"),
        ("429 Client Error: Too Many Requests for url", "pause"),
        ("HTTPConnectionPool: Max retries exceeded with url", "reached"),
        ("Maximum batch GPU session count of 2 reached.", "kaggle quota"),
        ("409 Client Error: Conflict for url", "another --slug"),
        ("Permission 'kernels.create' was denied", "rules"),
        ("ModuleNotFoundError: No module named 'six'", "`pip install six`"),
        ("something new", "above"),
    ],
)
def test_what_to_do_about_it(reason: str, cure: str) -> None:
    assert cure in advise(reason)


def test_a_client_that_does_not_start_gives_way_to_the_next(tmp_path: Path) -> None:
    def client(name: str, script: str) -> str:
        path = tmp_path / name / "kaggle"
        path.parent.mkdir()
        path.write_text(script)
        path.chmod(0o755)
        return str(path.parent)

    shim = client("shim", "#!/bin/sh\necho 'pyenv: kaggle: command not found' >&2\nexit 127\n")
    gone = client("gone", "#!/no/such/python\n")
    works = client("works", "#!/bin/sh\necho Kaggle CLI 2.2.4\n")
    for folder, words in ((shim, "pyenv: kaggle: command not found"), (gone, "No such file")):
        with pytest.raises(UploadError, match=f"{folder}.*does not start.*{words}"):
            find_client({"PATH": folder}, print, beside=None)
        assert find_client({"PATH": folder}, print, beside=Path(works)).path == f"{works}/kaggle"
    with pytest.raises(UploadError, match="not installed"):
        find_client({"PATH": str(tmp_path)}, print, beside=None)


@pytest.mark.parametrize("name", ["", "bundle", "push", "bundle/dataset-metadata.json",
                                  "push/kernel-metadata.json", "push/infer_kernel.py"])
def test_what_is_missing_is_named_in_a_sentence(out: Path, name: str) -> None:
    path = out / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(UploadError, match=re.escape(path.name)):
        upload.check(out)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"def", b"[1, 2]", b"{", b"null"])
@pytest.mark.parametrize("name", ["bundle/dataset-metadata.json", "push/kernel-metadata.json",
                                  "push/infer_kernel.py"])
def test_what_cannot_be_read_is_named_in_a_sentence(out: Path, name: str, data: bytes) -> None:
    (out / name).write_bytes(data)
    with pytest.raises(HourglassError, match=Path(name).name):
        upload.check(out)


def test_a_kernel_without_the_dataset_is_refused(out: Path) -> None:
    path = out / "push" / "kernel-metadata.json"
    path.write_text(path.read_text().replace('"someone/hourglass-tiny"\n', '"someone/hourglass-tiny-2"\n'))
    with pytest.raises(UploadError, match="^dataset_sources"):
        upload.check(out)


def test_the_placeholder_owner_is_not_uploaded(tmp_path: Path) -> None:
    assembly.build(order(tmp_path, owner=metadata.PLACEHOLDER_OWNER), say=lambda _: None)
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
