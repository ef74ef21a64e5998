"""Whole runs with embeddings: the graph runs once per row whatever reads its vectors, and what is wrong with
it costs its heads alone.
"""
from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file

from builder import assembly, backend_wheels
from builder.staging import WEIGHTS
from kernel import models, spec
from tests.helpers import graphs
from tests.helpers.guard_runs import GuardRun, run_guard
from tests.helpers.whole_runs import CLASSES, write_sample

RATE = 8000
HEADS = """
[[heads]]
name = "linear"
family = "linear_head"
params = { values = 400 }
embedding = "patches"
folds = [0, 1, 2]

[[heads]]
name = "attention"
family = "attention_head"
params = { values = 400, hidden = 4 }
embedding = "patches"
"""
TOML = """
name = "embedded"
classes = ["bark", "meow", "hiss"]
profile = "birdclef-cpu90"

[frontends.wave]
preset = "wave"
rate = 8000

[frontends.mel]
preset = "argus"

[embeddings.patches]
graph = "patches.onnx"
frontend = "wave"
output = "embeddings"
"""
PLAIN = """
[[members]]
name = "plain"
family = "simple_cnn"
params = { base = 4, channels = 1 }
frontend = "mel"
"""


def net_of(part: spec.Member, fold: int) -> torch.nn.Module:
    """The net of one fold, its weights drawn by the fold."""
    torch.manual_seed(fold)
    return models.build(part.family, dict(part.params), len(CLASSES)).eval()


def build(place: Path, parts: str = PLAIN + HEADS, graph: bytes | None = None,
          split: bool = False) -> spec.Manifest:
    """`place`/build with the ensemble, its weights drawn by fold."""
    folder = place / "weights"
    folder.mkdir(parents=True)
    (folder / "patches.onnx").write_bytes(graph or graphs.patches_graph())
    toml = place / "embedded.toml"
    toml.write_text(TOML + parts)
    for member in spec.load_ensemble(toml).members:
        for fold in member.folds:
            save_file(net_of(member, fold).state_dict(), folder / member.weights_file(fold))
    request = assembly.BuildRequest(ensemble=toml, out=place / "build", owner="someone", weights=folder,
                                    back_end="onnxruntime", split=split)
    with mock.patch.object(backend_wheels, "collect", lambda *_: []):
        return assembly.build(request, say=lambda _: None).manifest


def make_clips(place: Path, lengths: Sequence[float] = (0.3, 0.8, 1.1, 0.5, 0.65)) -> list[str]:
    ids = [f"c{i}.wav" for i in range(len(lengths))]
    (place / "in" / "test").mkdir(parents=True)
    for i, (name, seconds) in enumerate(zip(ids, lengths, strict=True)):
        wave = 0.1 * np.random.default_rng(i).standard_normal(int(RATE * seconds))
        soundfile.write(place / "in" / "test" / name, wave, RATE, subtype="PCM_16")
    write_sample(place / "in", ids)
    return ids


def run(place: Path, *options: str, build: str = "build") -> GuardRun:
    return run_guard(place, place / build / "bundle", "--device", "cpu", *options, seconds=100)


def test_one_pass_of_the_graph_serves_all_heads_and_folds(tmp_path: Path) -> None:
    built = build(tmp_path)
    assert built.ensemble.embeddings["patches"].values == 400
    ids = make_clips(tmp_path)
    done = run(tmp_path)
    assert done.code == 0 and not done.report["partial_rows"] and not done.report["fault_counts"], done.out
    work = done.report["embeddings"]["patches"]
    assert (work["rows"], work["passes"], work["failed"], work["nets"]) == (len(ids), len(ids), 0, 4)
    assert work["vectors"] == sum(-(-int(RATE * s) // 400) for s in (0.3, 0.8, 1.1, 0.5, 0.65))
    assert "embedding patches: 5 rows, 5 passes" in done.out


def test_what_the_heads_give_is_what_they_make_of_the_graphs_own_vectors(tmp_path: Path) -> None:
    """Heads and graph lie in a dataset of their own, far from the code."""
    build(tmp_path, HEADS, split=True)
    ids = make_clips(tmp_path, (0.3, 0.8))
    (tmp_path / "build" / WEIGHTS).rename(tmp_path / "in" / "renamed")
    (tmp_path / "alone").mkdir()
    (tmp_path / "build" / "bundle").rename(tmp_path / "alone" / "bundle")
    done = run(tmp_path, "--clips", str(tmp_path / "in" / "test"), build="alone")
    assert done.code == 0 and not done.report["fault_counts"], done.out
    _, *rows = csv.reader(done.submission.splitlines())
    told = spec.load_ensemble(tmp_path / "embedded.toml")
    for name, row in zip(ids, rows, strict=True):
        wave, _ = soundfile.read(tmp_path / "in" / "test" / name, dtype="float32")
        vectors = graphs.run_patches_graph(wave)[1]
        x = torch.from_numpy(np.ascontiguousarray(vectors.T[None, None], dtype=np.float32))
        logs = []
        for member in told.members:
            folds = []
            for fold in member.folds:
                with torch.no_grad():
                    folds.append(torch.log(torch.sigmoid(net_of(member, fold)(x)))[0].numpy())
            logs.append(np.mean(folds, axis=0))
        assert np.abs(np.exp(np.mean(logs, axis=0)) - np.array(row[1:], float)).max() <= 1e-5


def test_a_damaged_graph_costs_its_heads_and_no_row(tmp_path: Path) -> None:
    build(tmp_path)
    ids = make_clips(tmp_path)
    file = tmp_path / "build" / "bundle" / "patches.embedding.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    done = run(tmp_path)
    report = done.report
    assert done.code == 0 and not report["prior_rows"] and report["partial_rows"] == len(ids)
    failed = {net["id"] for member in report["members"] for net in member["nets"] if net["failed"]}
    assert failed == {"linear.0", "linear.1", "linear.2", "attention.0"}
    assert "BundleHashMismatch" in report["fault_counts"]
