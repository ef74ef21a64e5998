"""The trainer on tiny rendered clips: whole runs, exact resume, early stopping, export."""
from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import train as train_command
from kernel import models
from kernel.errors import SpecError
from kernel.inference.recipe import build_recipe
from kernel.scores.metrics import lwlrap, macro_auc
from kernel.sound.clips import find_clips
from kernel.sound.loading import load_wave
from kernel.sound.recording import Recordings
from kernel.sound.rows import list_rows
from kernel.spec import load_ensemble
from training import batching, choose, cross_validation, data, features, pipeline, recipe

CLASSES = ("high", "low", "noise")
RATE = 8000

RECIPE = """
name = "tiny"
about = "three kinds of sound"
classes = "classes.txt"
[data]
adapter = "csv"
group_column = "take"
[folds]
count = 2
[frontends.mel]
rate = 8000
n_fft = 512
hop = 128
mels = 16
fmin = 50.0
min_seconds = 0.5
short = "centre"
norm = "clip"
[train]
epochs = 12
batch = 4
crop = 32
optimiser = { kind = "adam", lr = 1e-2 }
schedule = { kind = "one_cycle" }
ema = 0.8
validate = 6
augment = [{ kind = "spec_augment", chance = 0.5 }]
mixers = [{ kind = "mixup", chance = 0.5 }]
[[members]]
name = "cnn"
family = "simple_cnn"
params = { base = 4, channels = 1 }
frontend = "mel"
"""


def render(kind: str, rng: np.random.Generator) -> np.ndarray:
    """0.4 to 0.8 s of a tone or of noise."""
    t = np.arange(int(rng.uniform(0.4, 0.8) * RATE)) / RATE
    if kind == "noise":
        return 0.2 * rng.normal(size=len(t))
    return 0.5 * np.sin(2 * np.pi * (2500 if kind == "high" else 300) * rng.uniform(0.9, 1.1) * t)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe, and 24 clips of three kinds in 12 takes, one of them with an unlabelled clip."""
    top = tmp_path_factory.mktemp("train")
    (top / "clips").mkdir()
    rng = np.random.default_rng(5)
    rows = []
    for i in range(24):
        kind = CLASSES[i % 3]
        soundfile.write(top / "clips" / f"{i}.wav", render(kind, rng), RATE)
        rows.append({"fname": f"{i}.wav", "labels": kind if i != 23 else "", "take": f"t{i // 6}{i % 3}"})
    pd.DataFrame(rows).to_csv(top / "labels.csv", index=False)
    (top / "classes.txt").write_text("".join(c + "\n" for c in CLASSES))
    (top / "tiny.toml").write_text(RECIPE)
    return top


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def facts(folder, tmp_path_factory):
    """The tiny recipe trained and written."""
    out = tmp_path_factory.mktemp("out")
    order = pipeline.TrainRequest(
        recipe=folder / "tiny.toml", data=folder, out=out / "run", into=out, threads=1, device="cpu"
    )
    return pipeline.train(order), out


def clips_of(folder):
    return data.read_clips({"adapter": "csv", "group_column": "take"}, folder, CLASSES)


def test_the_tiny_recipe_learns_and_its_ensemble_loads(facts):
    found, out = facts
    ensemble = load_ensemble(out / "ensembles" / "tiny.toml")
    names = [ensemble.members[0].weights_file(fold) for fold in ensemble.members[0].folds]
    assert all((out / "weights" / name).stat().st_size < 100_000 for name in names)
    weights = load_file(out / "weights" / names[0])
    assert {v.dtype for v in weights.values() if v.is_floating_point()} == {torch.float16}
    scores = found.scores[""]
    labelled = found.clips.targets.any(axis=1)
    value = lwlrap(found.clips.targets[labelled], scores[labelled])
    assert value == pytest.approx(ensemble.members[0].value, abs=1e-4) and value > 0.75  # chance is 0.61
    card = (out / "weights" / "MODEL_CARD.md").read_text()
    assert f"{value:.4f}" in card and "three kinds of sound" in card


def test_held_out_scores_are_what_the_shipped_weights_give_at_full_length(facts, folder):
    """The card's numbers belong to the shipped files: another path to the same scores."""
    found, out = facts
    ensemble = load_ensemble(out / "ensembles" / "tiny.toml")
    member = ensemble.members[0]
    stage = build_recipe(ensemble, member).stages["x"]
    net = models.build(member.family, member.params, 3)
    stored = load_file(out / "weights" / member.weights_file(1))
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in stored.items()})
    net.eval()
    row = int(np.flatnonzero(found.folds == 1)[0])
    ids = [found.clips.ids[row]]
    clip = list_rows(ids, find_clips(folder / "clips", ids), None)[0]
    array = stage.fe(load_wave(clip, stage.fe.rate, Recordings(60.0)).samples)
    with torch.inference_mode():
        alone = torch.sigmoid(net(stage.finish(torch.from_numpy(stage.view.cut(array, clip.id)))))[0]
    assert np.allclose(alone.numpy(), found.scores["cnn"][row], atol=1e-5)


class Killed(Exception):
    pass


def test_a_run_killed_in_mid_epoch_ends_with_the_same_weights(facts, folder, tmp_path, monkeypatch):
    """Killed in epoch 3 of fold 1 and started again: the same bytes as the uninterrupted run."""
    _, out = facts
    order = pipeline.TrainRequest(
        recipe=folder / "tiny.toml", data=folder, out=tmp_path / "run", into=tmp_path, threads=1, device="cpu"
    )
    make = batching.Batches._make
    calls = []

    def make_and_die(self, part, epoch, number, plain):
        calls.append((epoch, number))
        if calls.count((2, 1)) == 2:  # Of the second net.
            raise Killed
        return make(self, part, epoch, number, plain)

    monkeypatch.setattr(batching.Batches, "_make", make_and_die)
    with pytest.raises(Killed):
        pipeline.train(order)
    monkeypatch.setattr(batching.Batches, "_make", make)
    assert (tmp_path / "run" / "cnn_1" / "checkpoint.pt").exists()
    assert not (tmp_path / "run" / "cnn_1" / "done.json").exists()
    pipeline.train(order)
    for fold in (0, 1):
        name = f"tiny_cnn_{fold}.safetensors"
        assert (tmp_path / "weights" / name).read_bytes() == (out / "weights" / name).read_bytes()


def test_early_stopping_keeps_the_best_epoch(folder, tmp_path):
    text = RECIPE.replace("validate = 6", "validate = 1\npatience = 1").replace("lr = 1e-2", "lr = 0.0")
    (folder / "still.toml").write_text(text.replace("ema = 0.8", "ema = 0.0"))
    plan = recipe.load_recipe(folder / "still.toml")
    with cross_validation.CrossValidation(plan, clips_of(folder), tmp_path, jobs=1) as work:
        nets = list(work.train())
    assert all(net.record["epochs"] < 12 and net.record["best_epoch"] < net.record["epochs"] for net in nets)


def test_other_settings_do_not_go_on_in_an_old_run_folder(facts, folder):
    _, out = facts
    (folder / "other.toml").write_text(RECIPE.replace("lr = 1e-2", "lr = 2e-2"))
    other = recipe.load_recipe(folder / "other.toml")
    work = cross_validation.CrossValidation(other, clips_of(folder), out / "run", jobs=1)
    with work, pytest.raises(SpecError, match="other settings"):
        list(work.train())


def test_recipe_errors_name_the_key(folder):
    (folder / "bad.toml").write_text(RECIPE.replace("epochs = 12", "epoch = 12"))
    with pytest.raises(SpecError, match="epochs"):
        recipe.load_recipe(folder / "bad.toml")


def test_altered_copies_train_and_pretraining_comes_first(folder, tmp_path):
    text = RECIPE.replace("epochs = 12", "epochs = 2\nwave_variants = 1\n"
                                         'wave_effects = [{ kind = "noise", snr_db = [10.0, 20.0] }]'
                                         "\npretrain = { epochs = 3 }")
    (folder / "copies.toml").write_text(text)
    plan = recipe.load_recipe(folder / "copies.toml")
    with cross_validation.CrossValidation(plan, clips_of(folder), tmp_path, jobs=1) as work:
        nets = list(work.train())
    assert [net.record["epochs"] for net in nets] == [2, 2]
    assert len((tmp_path / "cnn_0" / "pretrain" / "log.csv").read_text().splitlines()) == 4
    row, copy = work.features.copies(work.features.rows[0], 1)
    assert copy.id != row.id and copy.clip is row.clip


def test_the_metric_of_a_recipe_is_what_a_net_is_measured_by(folder, tmp_path):
    text = RECIPE.replace("validate = 6", 'validate = 1\nmetric = "macro_auc"')
    text = text.replace("epochs = 12", "epochs = 2")
    (folder / "auc.toml").write_text(text)
    plan = recipe.load_recipe(folder / "auc.toml")
    with cross_validation.CrossValidation(plan, clips_of(folder), tmp_path, jobs=1) as work:
        nets = list(work.train())
    for net in nets:
        log = pd.read_csv(tmp_path / f"cnn_{net.fold}" / "log.csv")
        truth = clips_of(folder).targets[net.hold]
        assert log.columns[2] == "macro_auc"
        assert log.macro_auc.iloc[-1] == pytest.approx(macro_auc(truth, net.held), abs=0.02)  # halved weights
    (folder / "auc.toml").write_text(text.replace("macro_auc", "micro_auc"))
    with pytest.raises(SpecError, match="train.metric: 'micro_auc' is unknown; did you mean 'macro_auc'"):
        plan = recipe.load_recipe(folder / "auc.toml")
        plan.settings(plan.members[0])


@pytest.mark.parametrize("metric", [(), ("--metric", "macro_auc"), ("--metric", "padded_cmap")])
def test_choice_writes_an_ensemble_the_kernel_reads(facts, tmp_path, capsys, metric):
    _, out = facts
    done = choose.main([str(out / "run" / "oof.npz"), "--ensemble", str(out / "ensembles" / "tiny.toml"),
                        "--out", str(tmp_path / "best.toml"), *metric])
    assert (metric or ("lwlrap",))[-1] in capsys.readouterr().out
    assert done == 0 and [m.name for m in load_ensemble(tmp_path / "best.toml").members] == ["cnn"]


@pytest.mark.parametrize(
    "old, new, names",
    [
        ("channels = 1", "channels = 3", "member cnn: fails on 3 s of sound .*channels"),
        ('frontend = "mel"', 'frontend = "mel"\nfinish = ["delta"]', "member cnn: fails on 3 s of sound"),
        ("base = 4", "bsae = 4", "bsae"),
    ],
)
def test_a_member_that_does_not_fit_is_named_before_a_clip_is_read(
    old, new, names, folder, tmp_path, capsys, monkeypatch
):
    path = tmp_path / "tiny.toml"
    (tmp_path / "classes.txt").write_bytes((folder / "classes.txt").read_bytes())
    path.write_text(RECIPE.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(features.Features, "warm", None)
    words = [str(path), "--data", str(folder), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert train_command.main([*words, "--threads", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: ") and re.search(names, error)
