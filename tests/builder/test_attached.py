"""Weights that lie in other datasets and models, and bundles split into code and weights."""
from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from builder import assembly, attached, embeddings, mounts, readdress, upload
from builder.staging import ATTACHED, WEIGHTS
from kernel import bundle as mounted
from kernel.errors import ModelLoadFailed, SpecError, UploadError
from kernel.spec import Attached, Embedding, Ensemble, Manifest, Origin, load_manifest
from tests.helpers.bundles import TINY, built_once, order
from tests.helpers.uploads import NAME, Place, needs_client

COPY = 'local = "plain_{fold}.safetensors"'
DATASET = f'source = {{ dataset = "others/nets", file = "fold_{{fold}}.safetensors", {COPY} }}'
MODEL = 'source = { model = "others/tagger/PyTorch/small/2", local = "tiled_0.safetensors" }'
OWN = NAME + "-weights"
NETS = {"plain.0.safetensors", "plain.1.safetensors", "tiled.0.safetensors"}


def write_toml(folder: Path, plain: str = "", tiled: str = "") -> Path:
    """The tiny ensemble with a line more for each member, beside copies of its weights."""
    text = TINY.read_text(encoding="utf-8")
    text = text.replace('name = "plain"\n', f'name = "plain"\n{plain}\n')
    text = text.replace('name = "tiled"\n', f'name = "tiled"\n{tiled}\n')
    folder.mkdir(exist_ok=True)
    (folder / "tiny.toml").write_text(text, encoding="utf-8")
    for path in (built_once() / "bundle").glob("*.safetensors"):
        shutil.copyfile(path, folder / path.name.replace(".", "_", 1))
    return folder / "tiny.toml"


def build(folder: Path, plain: str = "", tiled: str = "", **more: Any) -> assembly.Built:
    """The tiny ensemble built into folder/out."""
    toml = write_toml(folder, plain, tiled)
    more = {"random_weights": False, **more}
    return assembly.build(order(folder / "out", ensemble=toml, **more), say=lambda _: None)


def read_manifest(out: Path) -> Manifest:
    return load_manifest((out / "bundle" / "manifest.json").read_bytes())


def read_metadata(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "push" / "kernel-metadata.json").read_bytes())
    return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_attached_files_are_hashed_and_named_and_stay_out_of_the_bundle(tmp_path: Path) -> None:
    build(tmp_path, DATASET, MODEL)
    out = tmp_path / "out"
    manifest = read_manifest(out)
    assert sorted(p.suffix for p in (out / "bundle").iterdir()) == [".json", ".json", ".whl"]
    fold = manifest.attached["plain.1.safetensors"]
    assert (fold.dataset, fold.model, fold.file) == ("others/nets", "", "fold_1.safetensors")
    assert fold.sha256 == digest(tmp_path / "plain_1.safetensors")
    assert manifest.attached["tiled.0.safetensors"].model == "others/tagger/PyTorch/small/2"
    assert read_metadata(out)["dataset_sources"] == ["someone/hourglass-tiny", "others/nets"]
    assert read_metadata(out)["model_sources"] == ["others/tagger/PyTorch/small/2"]
    link = out / ATTACHED / "datasets/others/nets/fold_1.safetensors"
    assert Path(os.readlink(link)) == tmp_path / "plain_1.safetensors"
    assert str(tmp_path) not in (out / "bundle" / "manifest.json").read_text(), "no path of this machine"
    source = manifest.ensemble.members[0].source
    assert source is not None and source.local is None


@pytest.mark.parametrize("split", [False, True])
def test_the_kernel_finds_them_on_every_mount(tmp_path: Path, split: bool) -> None:
    build(tmp_path, DATASET, MODEL if not split else "", split=split)
    cases = mounts.simulate(tmp_path / "out", clips=50)
    mounts.check(cases)
    assert len(cases) == 35


def test_a_missing_one_is_lost_on_every_mount(tmp_path: Path) -> None:
    build(tmp_path, DATASET, MODEL)
    shutil.rmtree(tmp_path / "out" / ATTACHED / "models")
    (case,) = mounts.simulate(tmp_path / "out", 5, ["datasets"], ["as uploaded"])
    assert case.lost.startswith("tiled.0: net tiled.0: expected tiled_0.safetensors of")
    assert "out of the model others/tagger/PyTorch/small/2; found nothing of that size" in case.lost


BAD = {
    'source = { dataset = "others/nets", model = "a/b/c/d/1" }': "source: give either dataset",
    "source = {}": "source: give either dataset",
    'source = { dataset = "nets" }': "source.dataset: 'nets'; the form is owner/slug",
    'source = { model = "a/b/c/d" }': "source.model: 'a/b/c/d'; the form is owner/model/framework",
    'source = { dataset = "others/nets", file = "x.safetensors" }': "source.file: .* has no {fold}",
    'source = { dataset = "others/nets", local = "x.safetensors" }': "source.local: .* has no {fold}",
    'source = { dataset = "others/nets", file = "../{fold}" }': "source.file: .* a name inside",
    'source = { dataset = "others/nets", file = "/{fold}" }': "source.file: .* a name inside",
    'source = { dataset = "others/nets", sha256 = "0" }': "source.sha256: one hash for 2 folds",
    'source = { dataset = "others/nets", sha = "0" }': "source.sha: unknown key; did you mean 'sha256'",
}


@pytest.mark.parametrize("line", BAD)
def test_a_source_that_is_none_is_named(line: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=BAD[line]):
        build(tmp_path, line)


def test_the_hash_in_the_toml_must_be_the_copys(tmp_path: Path) -> None:
    right = digest(built_once() / "bundle" / "tiled.0.safetensors")
    line = 'source = {{ dataset = "others/nets", local = "tiled_0.safetensors", sha256 = "{}" }}'
    build(tmp_path, tiled=line.format(right))
    with pytest.raises(SpecError, match=r"tiled.source.sha256: 0{64}, but .*tiled_0.safetensors has .*"
                                        r"kaggle datasets download others/nets -f tiled_0.safetensors"):
        build(tmp_path, tiled=line.format("0" * 64))
    with pytest.raises(SpecError, match="64 hex digits"):
        build(tmp_path, tiled=line.format("0" * 63))


def test_a_missing_copy_says_how_it_is_fetched(tmp_path: Path) -> None:
    line = 'source = { model = "others/tagger/onnx/small/2", file = "perch.onnx", local = "nowhere.onnx" }'
    with pytest.raises(ModelLoadFailed, match=r"tiled.0: a local copy of nowhere.onnx.*kaggle models "
                                              r"instances versions download others/tagger/onnx/small/2"):
        build(tmp_path, tiled=line)


def test_random_weights_stand_in_for_a_missing_copy_and_lie_in_the_bundle(tmp_path: Path) -> None:
    line = 'source = { dataset = "others/nets", local = "nowhere.safetensors" }'
    built = build(tmp_path, tiled=line, random_weights=True)
    assert built.filled == ("tiled.0",) and built.manifest.attached == {}
    assert "tiled.0.safetensors" in built.manifest.files
    assert read_metadata(tmp_path / "out")["dataset_sources"] == ["someone/hourglass-tiny"]


def test_what_the_kernel_could_not_read_as_it_is_is_refused(tmp_path: Path) -> None:
    toml = write_toml(tmp_path, tiled='source = { dataset = "others/nets", local = "best.pth" }')
    state = load((tmp_path / "tiled_0.safetensors").read_bytes())
    torch.save(state, tmp_path / "best.pth")
    with pytest.raises(ModelLoadFailed, match=r"best.pth would have to be converted.*bundle/tiled.0.safet"):
        assembly.build(order(tmp_path / "out", ensemble=toml, random_weights=False), say=lambda _: None)
    (tmp_path / "best.pth").unlink()
    (tmp_path / "wrapped.safetensors").write_bytes(save({f"module.{k}": v for k, v in state.items()}))
    toml.write_text(toml.read_text().replace("best.pth", "wrapped.safetensors"))
    with pytest.raises(ModelLoadFailed, match="wrapped.safetensors would have to be converted"):
        assembly.build(order(tmp_path / "out", ensemble=toml, random_weights=False), say=lambda _: None)
    assert list((tmp_path / "out").iterdir()) == []


def test_two_copies_cannot_be_one_file(tmp_path: Path) -> None:
    one = f'source = {{ dataset = "others/nets", file = "x/{{fold}}.bin", {COPY} }}'
    other = 'source = { dataset = "others/nets", file = "x/0.bin", local = "tiled_0.safetensors" }'
    with pytest.raises(UploadError, match="x/0.bin of the dataset others/nets has two different local"):
        build(tmp_path, one, other)


def test_an_older_manifest_without_attached_files_still_loads() -> None:
    data = json.loads((built_once() / "bundle" / "manifest.json").read_bytes())
    assert data.pop("attached") == {}
    for part in [*data["ensemble"]["members"], *data["ensemble"]["stackers"]]:
        assert part.pop("source") is None
    assert load_manifest(json.dumps(data).encode()).attached == {}


@pytest.mark.parametrize(("key", "value"), [("file", "../x"), ("bytes", 0), ("sha256", "x"), ("model", "a/b"),
                                            ("dataset", "../../etc")])
def test_an_entry_that_leads_out_of_its_dataset_is_refused(key: str, value: object, tmp_path: Path) -> None:
    build(tmp_path, tiled=MODEL)
    data = json.loads((tmp_path / "out/bundle/manifest.json").read_bytes())
    entry = data["attached"]["tiled.0.safetensors"]
    entry["model"] = ""
    entry[key] = value
    with pytest.raises(SpecError, match=r"attached.tiled.0.safetensors: size, hash, name or source is none"):
        load_manifest(json.dumps(data).encode())


# --split


def test_a_split_bundle_is_code_alone(tmp_path: Path) -> None:
    build(tmp_path, split=True)
    out = tmp_path / "out"
    assert sorted(p.name.rpartition(".")[2] for p in (out / "bundle").iterdir()) == ["json", "json", "whl"]
    held = {p.name for p in (out / WEIGHTS).iterdir()}
    assert held == {*NETS, "dataset-metadata.json"}
    assert read_metadata(out)["dataset_sources"] == ["someone/hourglass-tiny", OWN]
    assert json.loads((out / WEIGHTS / "dataset-metadata.json").read_bytes())["id"] == OWN
    first = {p.name: p.read_bytes() for p in (out / WEIGHTS).iterdir()}
    build(tmp_path, split=True, owner="another", slug="another-slug")
    manifest = read_manifest(out)
    assert read_manifest(out).bundle == manifest.bundle, "whose it is is not in it"
    again = {p.name: p.read_bytes() for p in (out / WEIGHTS).iterdir() if p.suffix != ".json"}
    assert again.items() <= first.items()
    build(tmp_path)
    assert not (out / WEIGHTS).exists() and len(read_manifest(out).files) == 3, "a plain build replaces both"


def test_a_slug_must_leave_room_for_the_weights(tmp_path: Path) -> None:
    with pytest.raises(UploadError, match="--split: the slug .* give --slug with at most 42"):
        build(tmp_path, split=True, slug="a" * 43)
    build(tmp_path, split=True, slug="a" * 42)


@pytest.mark.parametrize("name", [WEIGHTS, ATTACHED])
def test_a_folder_of_the_users_of_that_name_is_not_replaced(name: str, tmp_path: Path) -> None:
    mine = tmp_path / "out" / name / "best.pth"
    mine.parent.mkdir(parents=True)
    mine.write_text("years")
    with pytest.raises(Exception, match=f"{name}: is there, and no earlier build wrote it"):
        build(tmp_path, MODEL.replace("tiled_0", "plain_{fold}"), split=True)
    assert mine.read_text() == "years"


def test_the_names_of_the_folders_are_the_kernels() -> None:
    assert (WEIGHTS, ATTACHED) == (mounted.WEIGHTS_FOLDER, mounted.ATTACHED_FOLDER)


def damage(out: Path, what: str) -> None:
    if what == "a weight":
        path = out / WEIGHTS / "tiled.0.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    elif what == "a stranger":
        (out / WEIGHTS / "notes.json").write_text("{}")
    elif what == "no folder":
        shutil.rmtree(out / WEIGHTS)
    elif what == "another id":
        path = out / WEIGHTS / "dataset-metadata.json"
        path.write_text(path.read_text().replace("someone/", "somebody/"))
    else:
        path = out / "push" / "kernel-metadata.json"
        held = json.loads(path.read_bytes())
        held["dataset_sources"].remove(OWN)
        path.write_text(json.dumps(held))


@pytest.mark.parametrize(("what", "words"), [
    ("a weight", "tiled.0.safetensors: its bytes differ"), ("a stranger", "notes.json: not in the manifest"),
    ("no folder", "no such file"), ("another id", f"id 'somebody/.*wants {OWN}"),
    ("not attached", f"dataset_sources: .* would run without {OWN}"),
])
def test_a_damaged_half_is_not_uploaded(what: str, words: str, tmp_path: Path) -> None:
    build(tmp_path, split=True)
    upload.check(tmp_path / "out", say=lambda _: None)
    damage(tmp_path / "out", what)
    with pytest.raises(UploadError, match=words):
        upload.check(tmp_path / "out", say=lambda _: None)


def test_a_source_that_was_taken_out_of_the_metadata_is_named(tmp_path: Path) -> None:
    build(tmp_path, DATASET, MODEL)
    path = tmp_path / "out/push/kernel-metadata.json"
    held = json.loads(path.read_bytes())
    path.write_text(json.dumps({**held, "dataset_sources": ["someone/hourglass-tiny", "others/nets/4"]}))
    upload.check(tmp_path / "out", say=lambda _: None)
    path.write_text(json.dumps({**held, "model_sources": []}))
    with pytest.raises(UploadError, match="model_sources: .* would run without others/tagger/PyTorch/small"):
        upload.check(tmp_path / "out", say=lambda _: None)


def test_a_split_build_goes_by_another_name_as_one(tmp_path: Path) -> None:
    build(tmp_path, DATASET, split=True)
    readdress.readdress(tmp_path / "out", "another", "my-bundle", None, None)
    checked = upload.check(tmp_path / "out", say=lambda _: None)
    assert (checked.dataset, checked.weights) == ("another/my-bundle", "another/my-bundle-weights")
    sources = read_metadata(tmp_path / "out")["dataset_sources"]
    assert sources == ["another/my-bundle", "another/my-bundle-weights", "others/nets"]


def test_the_shell_block_sends_the_weights_first(tmp_path: Path) -> None:
    build(tmp_path, split=True)
    lines = upload.list_commands(upload.check(tmp_path / "out", say=lambda _: None))
    text = "\n".join(lines)
    assert text.index(f"{tmp_path}/out/{WEIGHTS} ") < text.index(f"{tmp_path}/out/bundle ")
    assert text.count("kaggle datasets create") == 2


@needs_client
def test_a_change_of_code_leaves_the_weights_where_they_are(place: Place) -> None:
    shutil.rmtree(place.out)
    build(place.out.parent, split=True)
    done = place.upload()
    assert done.returncode == 0, done.stdout + done.stderr
    weights = place.server.datasets[OWN]
    assert len(weights.versions) == 1 and set(weights.versions[0]) == NETS
    assert place.server.kernels[NAME][0]["saw"] == {NAME: 1, OWN: 1}
    done = place.upload()  # Only the code goes up again
    assert done.returncode == 0 and "version 1 holds these very weights" in done.stdout
    assert len(weights.versions) == 1 and len(place.server.datasets[NAME].versions) == 2
    weights.versions.append(weights.versions[0])  # Somebody else's version: nobody knows what it holds
    assert place.upload().returncode == 0 and len(weights.versions) == 3
    (place.out / "uploaded-weights.json").write_text("[]")
    assert place.upload().returncode == 0 and len(weights.versions) == 4
    assert attached.weights_id(NAME) == OWN


def test_the_graph_of_an_embedding_may_lie_elsewhere(tmp_path: Path) -> None:
    """It stays out of the bundle; the local copy and its hash are checked as those of a member are."""
    def made(**origin: str) -> Ensemble:
        held = Embedding(graph="g.onnx", frontend="w", source=Origin(dataset="others/graphs", **origin))
        return Ensemble(name="e", classes=("a",), members=(), frontends={"w": {"preset": "wave"}},
                        embeddings={"net": held})

    with pytest.raises(ModelLoadFailed, match=r"embeddings.net: a local copy of g.onnx.*kaggle datasets"):
        embeddings.read_graphs(made(), [], tmp_path)
    (tmp_path / "g.onnx").write_bytes(b"graph")
    assert embeddings.read_graphs(made(), [], tmp_path) == {"net": b"graph"}
    (source,) = embeddings.find_attached(made(file="nets/g.onnx"), [], tmp_path)
    assert source.attached == Attached(bytes=5, sha256=digest(tmp_path / "g.onnx"), file="nets/g.onnx",
                                       dataset="others/graphs")
    with pytest.raises(SpecError, match=r"embeddings.net.source.sha256: 0+, but .*g.onnx has"):
        embeddings.find_attached(made(sha256="0" * 64), [], tmp_path)
    shipped = embeddings.ship(made(), made(local="g.onnx"), {"net": b"graph"}, tmp_path / "bundle")
    assert list((tmp_path / "bundle").iterdir()) == []
    assert shipped.embeddings["net"] == replace(made().embeddings["net"], graph="net.embedding.onnx")
