"""The trainer on tiny rendered clips: data, folds, whole runs, exact resume, export; and the recipes that
ship with it.
"""
from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from kernel.errors import SpecError
from kernel.scores.metrics import lwlrap
from kernel.spec import load_ensemble
from tests.helpers import REPOSITORY
from training import (
    augment,
    batching,
    choose,
    data,
    effects,
    folds,
    losses,
    mixers,
    optim,
    pipeline,
    recipe,
    run,
)

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
    order = pipeline.Order(
        recipe=folder / "tiny.toml", data=folder, out=out / "run", into=out, threads=1, device="cpu"
    )
    return pipeline.train(order), out


def clips_of(folder):
    return data.read_clips({"adapter": "csv", "group_column": "take"}, folder, CLASSES)


def test_csv_adapter_reads_labels_groups_and_negatives(folder):
    clips = clips_of(folder)
    assert len(clips) == 24 and clips.targets.sum() == 23 and not clips.targets[23].any()
    assert clips.groups[0] == "t00"


def test_unknown_label_is_named(folder):
    with pytest.raises(SpecError, match="nois"):
        data.read_clips({"adapter": "csv"}, folder, ("high", "low", "nois"))


def test_unknown_adapter_key_is_named(folder):
    with pytest.raises(SpecError, match="group_column"):
        data.read_clips({"adapter": "csv", "group_colum": "take"}, folder, CLASSES)


def test_fat2019_layout_marks_noisy_clips_and_drops_known_bad_ones(tmp_path):
    (tmp_path / "train_curated.csv").write_text('fname,labels\na.wav,"high,low"\nf76181c4.wav,low\n')
    (tmp_path / "train_noisy.csv").write_text("fname,labels\nb.wav,noise\n")
    clips = data.read_clips({"adapter": "fat2019"}, tmp_path, CLASSES)
    assert clips.ids == ("train_curated/a.wav", "train_noisy/b.wav")
    assert clips.noisy.tolist() == [False, True] and clips.targets.tolist() == [[1, 1, 0], [0, 0, 1]]


def test_single_label_csv_and_folder_layouts(tmp_path):
    (tmp_path / "train.csv").write_text("File,Label\nx.wav,low\n")
    clips = data.read_clips(
        {"adapter": "csv", "csv": "train.csv", "id_column": "File", "label_column": "Label", "separator": ""},
        tmp_path,
        CLASSES,
    )
    assert clips.targets.tolist() == [[0, 1, 0]]
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "n.wav").write_bytes(b"")
    assert data.read_clips({"adapter": "folders"}, tmp_path, CLASSES).ids == ("noise/n.wav",)


def test_labelled_layout_keeps_licences_and_leaves_out_unsure_negatives(tmp_path):
    (tmp_path / "labels.csv").write_text(
        "fname,labels,licence,licence_class,label_quality,group,fold,emotion\n"
        "a/1.wav,high,CC0,permissive,mapped_class,g1,2,\na/2.wav,,CC0,permissive,out_of_vocabulary,g2,,\n"
        "kitchen20/3.wav,,CC0,permissive,out_of_vocabulary,g3,,\na/4.wav,low,?,unrecorded,mapped_class,g4,,\n"
    )
    clips = data.read_clips({}, tmp_path, CLASSES)
    assert clips.ids == ("a/1.wav", "a/2.wav") and clips.fixed.tolist() == [1, -1]


def made_clips(rng, groups=40, per_group=4):
    names = [f"g{i // per_group}" for i in range(groups * per_group)]
    kinds = rng.integers(0, 5, groups)
    targets = np.zeros((len(names), 5), np.float32)
    targets[np.arange(len(names)), kinds[np.arange(len(names)) // per_group]] = 1
    targets[rng.random(len(names)) < 0.2, 0] = 1
    n = len(names)
    return data.Clips(
        folder=None,
        classes=tuple("abcde"),
        ids=tuple(map(str, range(n))),
        targets=targets,
        groups=tuple(names),
        fixed=np.full(n, -1),
        source=("",) * n,
        quality=("",) * n,
        noisy=np.zeros(n, bool),
    )


@pytest.mark.parametrize("seed", range(5))
def test_folds_keep_groups_together_and_classes_spread(seed):
    clips = made_clips(np.random.default_rng(seed))
    fold = folds.split(clips, 5, seed)
    assert all(
        len({f for f, g in zip(fold, clips.groups, strict=True) if g == name}) == 1
        for name in set(clips.groups)
    )
    share = np.array([clips.targets[fold == f].sum(axis=0) for f in range(5)])
    ideal = clips.targets.sum(axis=0) / 5
    assert (np.abs(share - ideal) <= 8).all()  # two groups of four clips
    assert np.bincount(fold, minlength=5).min() >= 16


def test_folds_do_not_depend_on_the_order_and_follow_the_source():
    clips = made_clips(np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(len(clips))
    assert (folds.split(clips.take(order), 5, 3) == folds.split(clips, 5, 3)[order]).all()
    clips.fixed[:4] = 4
    assert set(folds.split(clips, 5, 3)[:4]) == {4}


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
    from kernel import models
    from kernel.inference.net import build_recipe
    from kernel.sound import decode
    found, out = facts
    ensemble = load_ensemble(out / "ensembles" / "tiny.toml")
    member = ensemble.members[0]
    stage = build_recipe(ensemble, member).stages["x"]
    net = models.build(member.family, member.params, 3)
    net.load_state_dict({k: v.float() if v.is_floating_point() else v
                         for k, v in load_file(out / "weights" / member.weights_file(1)).items()})
    net.eval()
    row = int(np.flatnonzero(found.folds == 1)[0])
    clip = decode.list_rows(
        [found.clips.ids[row]], decode.find_clips(folder / "clips", [found.clips.ids[row]]), None
    )[0]
    array = stage.fe(decode.load(clip, stage.fe.rate, 60.0).samples)
    with torch.inference_mode():
        alone = torch.sigmoid(net(stage.finish(torch.from_numpy(stage.view.cut(array, clip.id)))))[0]
    assert np.allclose(alone.numpy(), found.scores["cnn"][row], atol=1e-5)


class Killed(Exception):
    pass


def test_a_run_killed_in_mid_epoch_ends_with_the_same_weights(facts, folder, tmp_path, monkeypatch):
    """Killed in epoch 3 of fold 1 and started again: the same bytes as the uninterrupted run."""
    _, out = facts
    order = pipeline.Order(
        recipe=folder / "tiny.toml", data=folder, out=tmp_path / "run", into=tmp_path, threads=1, device="cpu"
    )
    make, calls = batching.Batches._make, []

    def make_and_die(self, part, epoch, step, plain):
        calls.append((epoch, step))
        if calls.count((2, 1)) == 2:  # the second net's
            raise Killed
        return make(self, part, epoch, step, plain)

    monkeypatch.setattr(batching.Batches, "_make", make_and_die)
    with pytest.raises(Killed):
        pipeline.train(order)
    monkeypatch.setattr(batching.Batches, "_make", make)
    assert (tmp_path / "run" / "cnn_1" / "checkpoint.pt").exists() and not (
        tmp_path / "run" / "cnn_1" / "done.json"
    ).exists()
    pipeline.train(order)
    for fold in (0, 1):
        name = f"tiny_cnn_{fold}.safetensors"
        assert (tmp_path / "weights" / name).read_bytes() == (out / "weights" / name).read_bytes()


def test_early_stopping_keeps_the_best_epoch(folder, tmp_path):
    text = RECIPE.replace("validate = 6", "validate = 1\npatience = 1").replace("lr = 1e-2", "lr = 0.0")
    (folder / "still.toml").write_text(text.replace("ema = 0.8", "ema = 0.0"))
    plan = recipe.load_recipe(folder / "still.toml")
    work = run.Run(plan, clips_of(folder), tmp_path, jobs=1)
    nets = list(work.train())
    assert all(net.record["epochs"] < 12 and net.record["best_epoch"] < net.record["epochs"] for net in nets)


def test_other_settings_do_not_go_on_in_an_old_run_folder(facts, folder):
    _, out = facts
    (folder / "other.toml").write_text(RECIPE.replace("lr = 1e-2", "lr = 2e-2"))
    with pytest.raises(SpecError, match="other settings"):
        list(
            run.Run(recipe.load_recipe(folder / "other.toml"), clips_of(folder), out / "run", jobs=1).train()
        )


def test_recipe_errors_name_the_key(folder):
    (folder / "bad.toml").write_text(RECIPE.replace("epochs = 12", "epoch = 12"))
    with pytest.raises(SpecError, match="epochs"):
        recipe.load_recipe(folder / "bad.toml")


def test_altered_copies_train_and_pretraining_comes_first(folder, tmp_path):
    text = RECIPE.replace("epochs = 12", "epochs = 2\nwave_variants = 1\n"
                                         'wave_effects = [{ kind = "noise", snr_db = [10.0, 20.0] }]'
                                         "\npretrain = { epochs = 3 }")
    (folder / "copies.toml").write_text(text)
    work = run.Run(recipe.load_recipe(folder / "copies.toml"), clips_of(folder), tmp_path, jobs=1)
    nets = list(work.train())
    work.features.close()
    assert [net.record["epochs"] for net in nets] == [2, 2]
    assert len((tmp_path / "cnn_0" / "pretrain" / "log.csv").read_text().splitlines()) == 4
    row, copy = work.features.copies(work.features.rows[0], 1)
    assert copy.id != row.id and copy.clip is row.clip


def test_choice_writes_an_ensemble_the_kernel_reads(facts, tmp_path):
    _, out = facts
    done = choose.main([str(out / "run" / "oof.npz"), "--ensemble", str(out / "ensembles" / "tiny.toml"),
                        "--out", str(tmp_path / "best.toml")])
    assert done == 0 and [m.name for m in load_ensemble(tmp_path / "best.toml").members] == ["cnn"]


RECIPES = sorted((REPOSITORY / "training" / "recipes").glob("*.toml"))
SEEDS = {
    "argus",
    "qrfaction",
    "ex4sperans",
    "erc2019",
    "viel",
    "shirogane",
    "hackerearth",
    "filipmu",
    "simongrest",
}


def test_every_seed_solution_has_a_recipe():
    assert SEEDS | {"default", "emotion"} == {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_is_complete_at_both_scales(path):
    """Every step, mixer, loss, optimiser and schedule a recipe names exists, in the first training and the
    last.
    """
    plan = recipe.load_recipe(path)
    for scaled in (plan, plan.scaled_small()):
        assert len(recipe.read_classes(scaled, path)) > 1 and scaled.members
        for member in scaled.members:
            for train in filter(None, (scaled.settings(member), scaled.pretraining(member))):
                augment.build(train.augment)
                mixers.build(train.mixers)
                effects.build(train.wave_effects)
                losses.build(train.loss)
                losses.build(train.noisy_loss or train.loss)
                optim.build_schedule(train.schedule)
                optim.build_optimiser(train.optimiser, [torch.nn.Parameter(torch.zeros(1))])
        if path.stem in SEEDS:
            assert plan.source and plan.scaled_small().settings(scaled.members[0]) is not None


def test_recipe_of_a_base_names_unknown_members(tmp_path):
    base = RECIPES[0].parents[2] / "ensembles" / "viel.toml"
    (tmp_path / "r.toml").write_text(
        f'name = "x"\nbase = "{base}"\n[member_train]\nm0_z = {{ epochs = 1 }}\n'
    )
    with pytest.raises(SpecError, match="m0_z"):
        recipe.load_recipe(tmp_path / "r.toml")
