"""Heads out of a recipe: trained on a graph's vectors, beside nets that are taken as they are."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file, save_file

from kernel import models, spec
from kernel.errors import SpecError
from tests.helpers import graphs
from training import pipeline
from training.recipe import load_recipe

RATE = 8000
CLASSES = ("low", "mid", "high")
RECIPE = """
name = "small"
about = "heads on a made-up graph"
classes = "classes.txt"
against = ["old"]
card = "CARD.md"

[data]
adapter = "csv"

[folds]
count = 2

[frontends.wave]
preset = "wave"
rate = 8000

[embeddings.patches]
graph = "patches.onnx"
frontend = "wave"
output = "embeddings"

[train]
epochs = 12
batch = 8
crop = 6
crop_short = ["wrap"]
optimiser = { kind = "adamw", lr = 1e-2 }

[[heads]]
name = "linear"
family = "linear_head"
params = { values = 400 }
embedding = "patches"

[[heads]]
name = "old"
family = "linear_head"
params = { values = 400, pool = "mean_scores" }
embedding = "patches"
taken = "old_{fold}.safetensors"

[[heads]]
name = "foreign"
family = "linear_head"
params = { values = 400, pool = "max_scores" }
embedding = "patches"
taken = "foreign.safetensors"
"""


def make_place(where: Path) -> Path:
    """24 clips whose class is where in a patch of 400 samples they are loud, a recipe, and old nets."""
    (where / "clips").mkdir(parents=True)
    lines = ["fname,labels"]
    for i in range(24):
        kind = i % 3
        wave = np.random.default_rng(i).normal(0, 0.01, RATE // 2 + 200 * i)
        loud = (np.arange(len(wave)) % 400) // 134 == kind
        wave[loud] *= 20
        soundfile.write(where / "clips" / f"c{i}.wav", wave, RATE, subtype="PCM_16")
        lines.append(f"c{i}.wav,{CLASSES[kind]}")
    (where / "labels.csv").write_text("\n".join(lines) + "\n")
    (where / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (where / "patches.onnx").write_bytes(graphs.patches_graph())
    for name, pool in (("old_0", "mean_scores"), ("old_1", "mean_scores"), ("foreign", "max_scores")):
        net = models.build("linear_head", {"values": 400, "pool": pool}, 3)
        save_file(net.state_dict(), where / f"{name}.safetensors")
    (where / "small.toml").write_text(RECIPE)
    return where


def test_heads_learn_and_taken_nets_score_what_they_did_not_see(tmp_path: Path) -> None:
    place = make_place(tmp_path / "data")
    request = pipeline.TrainRequest(recipe=place / "small.toml", data=place, out=tmp_path / "run",
                                    into=tmp_path / "into", threads=1)
    facts = pipeline.train(request)
    assert facts is not None
    written = spec.load_ensemble(tmp_path / "into" / "ensembles" / "small.toml")
    linear, old, foreign = written.members
    assert (linear.frontend, linear.folds, old.folds, foreign.folds) == ("patches", (0, 1), (0, 1), (0,))
    assert linear.value is not None and linear.value > 0.95
    assert "[[heads]]" in (tmp_path / "into" / "ensembles" / "small.toml").read_text()
    with np.load(tmp_path / "run" / "oof.npz") as oof:
        assert all(np.isfinite(oof[f"member/{name}"]).all() for name in ("linear", "old", "foreign", ""))
    weights = tmp_path / "into" / "weights"
    assert (weights / "patches.onnx").read_bytes() == graphs.patches_graph()
    for name in ("old_0.safetensors", "foreign.safetensors"):  # the very bytes
        assert (weights / name).read_bytes() == (place / name).read_bytes()
    assert load_file(weights / "small_linear_0.safetensors")["fc.weight"].shape == (3, 400)
    card = (weights / "CARD.md").read_text()
    assert "Against the blend of old alone" in card and "taken as it is: `foreign.safetensors`" in card


@pytest.mark.parametrize(("old", "new", "said"), [
    ('taken = "foreign.safetensors"', 'taken = "none.safetensors"', "foreign.taken: no none.safetensors in"),
    ('graph = "patches.onnx"', 'graph = "none.onnx"', "embeddings.patches.graph: no none.onnx in"),
    ('against = ["old"]', 'against = ["olt"]', "against: 'olt' is no member; did you mean 'old'"),
    ("{ values = 400 }", "{ values = 12 }", "member linear"),
])
def test_what_does_not_fit_is_named_before_anything_is_trained(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    place = make_place(tmp_path / "data")
    (place / "small.toml").write_text(RECIPE.replace(old, new))
    request = pipeline.TrainRequest(recipe=place / "small.toml", data=place, out=tmp_path / "run", threads=1)
    with pytest.raises(SpecError.__mro__[1], match=said):
        pipeline.train(request)
    assert not (tmp_path / "run" / "linear_0").exists()


def test_a_recipe_based_on_an_ensemble_keeps_its_heads(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (tmp_path / "base.toml").write_text("\n".join(
        line for line in RECIPE.split("[train]")[0].splitlines()
        if not line.startswith(("against", "card", "[data]", "adapter", "[folds]", "count"))
    ) + '\n[[heads]]\nname = "h"\nfamily = "linear_head"\nembedding = "patches"\n')
    (tmp_path / "r.toml").write_text('name = "r"\nbase = "base.toml"\n')
    recipe = load_recipe(tmp_path / "r.toml")
    assert recipe.members[0].frontend == "patches" and recipe.embeddings["patches"].graph == "patches.onnx"
