"""The builder: the same bytes twice, checkpoints checked key by key, every part tried before it ships."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from builder import assembly, bundle_check, random_weights
from kernel import models
from kernel.bundle import open_bundle
from kernel.errors import ModelLoadFailed, SpecError, UploadError
from kernel.pin import read_constant
from kernel.spec import load_manifest
from tests.helpers import REPOSITORY, TESTS
from tests.helpers.bundles import TINY, built_once, copy_of_build, order


def run_builder(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "build_dataset.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )


def read_all(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def made() -> Path:
    return built_once()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return copy_of_build(tmp_path / "out")


# What a build is


def test_another_process_builds_the_same_bytes(made: Path, tmp_path: Path) -> None:
    done = run_builder(str(TINY), "--out", str(tmp_path / "again"), "--owner", "someone", "--random-weights")
    assert done.returncode == 0, done.stderr
    assert read_all(tmp_path / "again") == read_all(made)
    for command in ("datasets create", "datasets version", "datasets status", "kernels push",
                    "competitions submit"):
        assert f"kaggle {command}" in done.stdout
    assert "RANDOM WEIGHTS" in done.stdout
    assert "competition freesound-audio-tagging-2019 is attached" in done.stdout


def test_the_bundle_is_flat_listed_and_small(made: Path) -> None:
    manifest = bundle_check.check_bundle(made / "bundle")
    assert manifest.random_weights and manifest.prior == pytest.approx([1 / 3] * 3)
    assert [net.id for net in manifest.nets] == ["plain.0", "plain.1", "tiled.0"]
    assert set(manifest.costs) == {"plain", "tiled"} and manifest.costs["tiled"].gmac_b > 0
    assert len(manifest.bundle) == 16 and "fat2019" in manifest.profiles
    assert len(list((made / "bundle").iterdir())) <= 50
    with zipfile.ZipFile(made / "bundle" / manifest.wheel.file) as wheel:
        assert {i.date_time for i in wheel.infolist()} == {(2019, 5, 31, 0, 0, 0)}
        assert sorted(wheel.namelist()) == sorted(manifest.wheel.files)
        assert "kernel/run.py" in wheel.namelist()
        assert not any("builder" in name or "training" in name for name in wheel.namelist())


def test_nets_load_into_their_families(made: Path) -> None:
    manifest = load_manifest((made / "bundle" / "manifest.json").read_bytes())
    bundle = open_bundle(made / "bundle", manifest)
    for net in manifest.nets:
        member = next(m for m in manifest.ensemble.members if m.name == net.member)
        models.build(member.family, member.params, 3).load_state_dict(bundle.load_state(net))


def test_the_pushed_kernel_differs_in_one_line(made: Path) -> None:
    ours = (REPOSITORY / "infer_kernel.py").read_text(encoding="utf-8").split("\n")
    theirs = (made / "push" / "infer_kernel.py").read_text(encoding="utf-8").split("\n")
    changed = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
    assert len(changed) == 1 and changed[0][0].startswith("CONSTANT = None")
    value = read_constant("\n".join(theirs))
    digest = bundle_check.file_sha256(made / "bundle" / "manifest.json")
    assert value is not None and value["manifest_sha256"] == digest
    assert value["classes"] == ["bark", "meow", "hiss"] and value["slug"] == "hourglass-tiny"
    assert value["profile"]["seconds"] == 3600
    assert json.loads((made / "push" / "kernel-metadata.json").read_bytes())["enable_internet"] is False


def test_the_notebook_holds_the_same_script(tmp_path: Path) -> None:
    assembly.build(order(tmp_path, notebook=True), say=lambda _: None)
    cells = json.loads((tmp_path / "push" / "infer_kernel.ipynb").read_bytes())["cells"]
    script = (tmp_path / "push" / "infer_kernel.py").read_text(encoding="utf-8")
    assert "".join(cells[0]["source"]).partition("\n")[2] == script
    data = json.loads((tmp_path / "push" / "kernel-metadata.json").read_bytes())
    assert (data["code_file"], data["kernel_type"]) == ("infer_kernel.ipynb", "notebook")


def test_empty_mel_filters_are_named(tmp_path: Path) -> None:
    said: list[str] = []
    assembly.build(order(tmp_path / "good"), say=said.append)
    assert not any("mel filters" in line for line in said)
    text = TINY.read_text(encoding="utf-8").replace('preset = "argus"', 'preset = "argus"\nn_fft = 512')
    (tmp_path / "short.toml").write_text(text, encoding="utf-8")
    assembly.build(order(tmp_path / "o", ensemble=tmp_path / "short.toml"), say=said.append)
    assert any("front end mel: 10 of 128 mel filters" in line and "n_fft" in line for line in said), said


def test_a_refused_build_leaves_the_old_one(out: Path) -> None:
    before = read_all(out)
    for bad in (
        order(out, title="short"),
        order(out, random_weights=False, weights=out),
        order(out, licence="mine"),
    ):
        with pytest.raises((UploadError, ModelLoadFailed)):
            assembly.build(bad, say=lambda _: None)
    assert read_all(out) == before and not [p for p in out.iterdir() if p.name.startswith(".")]


def test_the_command_line_names_the_fault() -> None:
    done = run_builder(str(TINY), "--out", "/nonexistent/x", "--title", "abc")
    assert done.returncode == 1
    assert "UploadError: title: 'abc' (3 characters); 6 to 50 characters" in done.stderr
    assert run_builder().returncode == 2


# Weights


@pytest.fixture
def checkpoints(made: Path, tmp_path: Path) -> Path:
    """The three nets of the tiny ensemble under the names their TOML expects."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("plain.0", "plain.1", "tiled.0"):
        shutil.copy(made / "bundle" / f"{name}.safetensors", folder / f"{name.replace('.', '_')}.safetensors")
    return folder


def test_own_weights_are_stored_as_they_are(checkpoints: Path, tmp_path: Path) -> None:
    built = assembly.build(
        order(tmp_path / "o", random_weights=False, weights=checkpoints), say=lambda _: None
    )
    assert not built.manifest.random_weights
    for net in built.manifest.nets:
        stored = (tmp_path / "o" / "bundle" / net.file).read_bytes()
        assert stored == (checkpoints / f"{net.member}_{net.fold}.safetensors").read_bytes()
    state = load_file(tmp_path / "o" / "bundle" / "plain.0.safetensors")
    assert torch.float16 in {value.dtype for value in state.values()}


def test_checkpoints_with_wrong_keys_are_listed(checkpoints: Path, tmp_path: Path) -> None:
    path = checkpoints / "plain_1.safetensors"
    state = load_file(path)
    keys = [k for k, v in state.items() if v.dim() > 1]
    state[keys[0] + "s"] = state.pop(keys[0])
    state[keys[1]] = state[keys[1]][:1]
    save_file(state, path)
    with pytest.raises(ModelLoadFailed) as caught:
        assembly.build(order(tmp_path / "o", random_weights=False, weights=checkpoints), say=lambda _: None)
    text = str(caught.value)
    assert "1 missing, 1 extra, 1 misshapen" in text and str(path) in text
    assert f"missing {keys[0]} (the checkpoint has {keys[0]}s)" in text and f"{keys[1]} is [1" in text
    assert not (tmp_path / "o" / "bundle").exists()


def test_missing_checkpoints_are_listed_together(checkpoints: Path, tmp_path: Path) -> None:
    (checkpoints / "plain_1.safetensors").unlink()
    (checkpoints / "tiled_0.safetensors").unlink()
    with pytest.raises(ModelLoadFailed, match=r"plain\.1: plain_1\.safetensors\n.*tiled\.0"):
        assembly.build(order(tmp_path / "o", random_weights=False, weights=checkpoints), say=lambda _: None)


def test_weights_that_are_not_finite_are_refused(checkpoints: Path, tmp_path: Path) -> None:
    state = load_file(checkpoints / "tiled_0.safetensors")
    key = next(k for k, v in state.items() if v.is_floating_point())
    state[key].view(-1)[0] = float("nan")
    save_file(state, checkpoints / "tiled_0.safetensors")
    with pytest.raises(ModelLoadFailed, match=f"{key} holds NaN"):
        assembly.build(order(tmp_path / "o", random_weights=False, weights=checkpoints), say=lambda _: None)


def test_pytorch_checkpoints_become_safetensors(checkpoints: Path, tmp_path: Path) -> None:
    state = load_file(checkpoints / "tiled_0.safetensors")
    (checkpoints / "tiled_0.safetensors").unlink()
    wrapped = {"state_dict": {"module." + key: value for key, value in state.items()}}
    torch.save(wrapped, checkpoints / "tiled_0.pt")
    request = order(tmp_path / "o", random_weights=False, weights=checkpoints)
    built = assembly.build(request, say=lambda _: None)
    stored = load_file(tmp_path / "o" / "bundle" / "tiled.0.safetensors")
    assert all(torch.equal(stored[key], value) for key, value in state.items()) and not built.filled


def test_checkpoints_with_code_are_refused(checkpoints: Path, tmp_path: Path) -> None:
    (checkpoints / "tiled_0.safetensors").unlink()
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(checkpoints / "tiled_0.pt"))
    with pytest.raises(ModelLoadFailed, match="torch.onnx.export"):
        assembly.build(order(tmp_path / "o", random_weights=False, weights=checkpoints), say=lambda _: None)
    torch.save(torch.nn.Linear(2, 2), checkpoints / "tiled_0.pt")
    with pytest.raises(ModelLoadFailed, match="refused"):
        assembly.build(order(tmp_path / "o", random_weights=False, weights=checkpoints), say=lambda _: None)


def test_many_nets_share_files(tmp_path: Path) -> None:
    text = TINY.read_text(encoding="utf-8").replace("folds = [0, 1]", f"folds = {list(range(41))}")
    (tmp_path / "many.toml").write_text(text, encoding="utf-8")
    built = assembly.build(order(tmp_path / "o", ensemble=tmp_path / "many.toml"), say=lambda _: None)
    assert {net.file for net in built.manifest.nets} == {"plain.safetensors", "tiled.safetensors"}
    bundle = open_bundle(tmp_path / "o" / "bundle", built.manifest)
    assert set(bundle.load_state(built.manifest.nets[40])) == set(bundle.load_state(built.manifest.nets[0]))


def test_an_own_net_ships_in_the_wheel(tmp_path: Path) -> None:
    shutil.copy(TESTS / "ensembles" / "my_net.py", tmp_path / "my_net.py")
    text = TINY.read_text(encoding="utf-8").replace('"simple_cnn"', '"my_net.py:MyNet"') \
        .replace("{ base = 4, channels = 1 }", "{ width = 5 }")
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    built = assembly.build(order(tmp_path / "o", ensemble=tmp_path / "own.toml"), say=lambda _: None)
    assert built.manifest.ensemble.members[0].family == "my_net.py:MyNet"
    entry = built.manifest.wheel.files["kernel/custom/my_net.py"]
    assert entry.sha256 == bundle_check.file_sha256(tmp_path / "my_net.py")
    (tmp_path / "my_net.py").unlink()
    with pytest.raises(SpecError, match="my_net.py"):
        assembly.build(order(tmp_path / "o", ensemble=tmp_path / "own.toml"), say=lambda _: None)


@pytest.mark.parametrize(("old", "new", "names"), [
    ('preset = "argus"', 'preset = "argos"', "argus"), ('finish = ["delta"]', 'finish = ["dleta"]', "delta"),
    ('kind = "tiles"', 'kind = "tile"', "tiles"), ("base = 4 }", "bsae = 4 }", "base"),
    ('"simple_cnn"', '"simple_cn"', "simple_cnn"), ('finish = ["delta"]', "", "tiled")])
def test_every_part_is_tried_before_anything_is_written(
    tmp_path: Path, old: str, new: str, names: str
) -> None:
    (tmp_path / "bad.toml").write_text(TINY.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(SpecError, match=names):
        assembly.build(order(tmp_path / "o", ensemble=tmp_path / "bad.toml"), say=lambda _: None)
    assert not (tmp_path / "o").exists()


def test_onnx_members_need_their_runtime(tmp_path: Path) -> None:
    text = (
        TINY.read_text(encoding="utf-8")
        .replace('"simple_cnn"', '"onnx"')
        .replace("params = { base = 4, channels = 1 }\n", "")
    )
    (tmp_path / "graph.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match="--wheels onnxruntime"):
        assembly.build(order(tmp_path / "o", ensemble=tmp_path / "graph.toml"), say=lambda _: None)


def test_costs_of_a_rehearsal_enter_the_manifest(tmp_path: Path) -> None:
    costs = {"members": {"plain": {"seconds_a": 0.1, "seconds_b": 0.002}}, "frontends": {"mel": 0.01}}
    report = {"costs": costs}
    (tmp_path / "report.json").write_text(json.dumps(report))
    built = assembly.build(order(tmp_path / "o", costs=tmp_path / "report.json"), say=lambda _: None)
    assert built.manifest.costs["plain"].seconds_b == 0.002
    assert built.manifest.frontend_seconds == {"mel": 0.01}
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(SpecError, match="--costs"):
        assembly.build(order(tmp_path / "o", costs=tmp_path / "report.json"), say=lambda _: None)


def test_random_weights_are_drawn_from_the_key() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = random_weights.draw_state(net, "other", {})
    want = np.random.RandomState(zlib.crc32(b"0.weight")).standard_normal((2, 3)) * 1.4 / np.sqrt(3)
    assert state["0.weight"].numpy() == pytest.approx(want, abs=2e-3) and state["1.num_batches_tracked"] == 0
    assert 0.8 <= float(state["1.weight"].min()) and float(state["1.running_var"].min()) >= 0.5
