"""The trainer on tiny rendered clips: data, folds, steps, losses, exact resume, export."""
from __future__ import annotations

import itertools
import pathlib
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from kernel.errors import SpecError
from kernel.metrics import lwlrap
from kernel.spec import Ensemble, Member, Stacker, load_ensemble
from training import (
    augment,
    batching,
    choose,
    data,
    effects,
    folds,
    losses,
    measure,
    mixers,
    optim,
    pipeline,
    recipe,
    relabel,
    run,
    score,
    stack,
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
    order = pipeline.Order(recipe=folder / "tiny.toml", data=folder, out=out / "run", into=out, threads=1, device="cpu")
    return pipeline.train(order), out


def clips_of(folder):
    return data.read_clips({"adapter": "csv", "group_column": "take"}, folder, CLASSES)


# -- data and folds -----------------------------------------------------------------------------------------------------------


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
    clips = data.read_clips({"adapter": "csv", "csv": "train.csv", "id_column": "File", "label_column": "Label", "separator": ""},
                            tmp_path, CLASSES)
    assert clips.targets.tolist() == [[0, 1, 0]]
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "n.wav").write_bytes(b"")
    assert data.read_clips({"adapter": "folders"}, tmp_path, CLASSES).ids == ("noise/n.wav",)


def test_labelled_layout_keeps_licences_and_leaves_out_unsure_negatives(tmp_path):
    (tmp_path / "labels.csv").write_text(
        "fname,labels,licence,licence_class,label_quality,group,fold,emotion\n"
        "a/1.wav,high,CC0,permissive,mapped_class,g1,2,\na/2.wav,,CC0,permissive,out_of_vocabulary,g2,,\n"
        "kitchen20/3.wav,,CC0,permissive,out_of_vocabulary,g3,,\na/4.wav,low,?,unrecorded,mapped_class,g4,,\n")
    clips = data.read_clips({}, tmp_path, CLASSES)
    assert clips.ids == ("a/1.wav", "a/2.wav") and clips.fixed.tolist() == [1, -1]


def made_clips(rng, groups=40, per_group=4):
    names = [f"g{i // per_group}" for i in range(groups * per_group)]
    kinds = rng.integers(0, 5, groups)
    targets = np.zeros((len(names), 5), np.float32)
    targets[np.arange(len(names)), kinds[np.arange(len(names)) // per_group]] = 1
    targets[rng.random(len(names)) < 0.2, 0] = 1
    n = len(names)
    return data.Clips(folder=None, classes=tuple("abcde"), ids=tuple(map(str, range(n))), targets=targets, groups=tuple(names),
                      fixed=np.full(n, -1), source=("",) * n, quality=("",) * n, noisy=np.zeros(n, bool))


@pytest.mark.parametrize("seed", range(5))
def test_folds_keep_groups_together_and_classes_spread(seed):
    clips = made_clips(np.random.default_rng(seed))
    fold = folds.split(clips, 5, seed)
    assert all(len({f for f, g in zip(fold, clips.groups, strict=True) if g == name}) == 1 for name in set(clips.groups))
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


# -- steps, mixers, losses, schedules ------------------------------------------------------------------------------------------

CHANGED = {"spec_augment": {"masks": (2, 2)}, "gain": {}, "equalise": {}, "noise": {}, "zoom": {"most": 2.0}, "warp": {},
           "resized_crop": {"scale": (0.3, 0.5)}, "chunk_shuffle": {"frames": 8}, "flip": {}, "roll_bins": {"most": 4}}


def test_every_step_is_covered():
    assert set(CHANGED) == set(augment.STEPS)


@pytest.mark.parametrize("kind", sorted(augment.STEPS))
def test_step_keeps_shape_changes_values_and_repeats_itself(kind):
    x = np.random.default_rng(0).normal(size=(2, 32, 64)).astype(np.float32)
    step = augment.build([{"kind": kind, **CHANGED[kind]}])
    y, again, before = step(x, np.random.default_rng(3)), step(x, np.random.default_rng(3)), x.copy()
    assert y.shape == x.shape and y.dtype == np.float32 and np.isfinite(y).all()
    assert not np.array_equal(x, y) and np.array_equal(y, again) and np.array_equal(x, before)
    assert np.array_equal(augment.build([{"kind": kind, "chance": 0.0}])(x, np.random.default_rng(3)), x)


@pytest.mark.parametrize("short", augment.SHORT)
@pytest.mark.parametrize("frames", [5, 32, 90])
def test_crop_has_the_wanted_width_and_holds_the_clip(short, frames):
    x = np.arange(32, dtype=np.uint8)[None, None] + 1
    y = augment.crop(x, frames, 0.0, short, np.random.default_rng(1))
    assert y.shape == (1, 1, frames)
    inside = y[0, 0][y[0, 0] > 0]
    assert len(inside) == (frames if short == "wrap" else min(frames, 32))
    if short != "wrap":
        assert (np.diff(inside) == 1).all()


@pytest.mark.parametrize("kind", sorted(mixers.MIXERS))
def test_mixer_keeps_shapes_and_labels_of_both(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 1, 4, 40)).astype(np.float32)
    targets = np.eye(8, dtype=np.float32)
    y, mixed = mixers.build([{"kind": kind}])(x, targets, np.random.default_rng(2))
    assert y.shape == x.shape and y.dtype == x.dtype and np.isfinite(y).all() and not np.array_equal(x, y)
    assert mixed.min() >= 0 and mixed.max() <= 1 + 1e-6 and (mixed.sum(axis=1) >= 1 - 1e-5).all()
    assert ((mixed > 0).sum(axis=1) == 2).any()


def test_power_sum_adds_powers():
    ten = np.full((1, 1, 1, 1), 10.0, np.float32)
    y, _ = mixers.power_sum((ten, np.ones((1, 1))), (ten, np.ones((1, 1))), np.random.default_rng(0), low=0.0, high=1e-9)
    assert y.item() == pytest.approx(13.0103, abs=1e-3)


def test_mixer_chances_above_one_are_refused():
    with pytest.raises(SpecError, match="add up"):
        mixers.build([{"kind": "mixup", "chance": 0.7}, {"kind": "cutmix", "chance": 0.7}])


def test_lsep_equals_the_sum_over_pairs():
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.3]])
    targets = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    pairs = sum(torch.exp(logits[0, n] - logits[0, p]) for p in (0, 2) for n in (1, 3))
    assert losses.lsep(logits, targets).item() == pytest.approx(np.log1p(float(pairs)), rel=1e-5)
    assert losses.lsep(logits, torch.zeros(1, 4)).item() == 0.0


def test_losses_against_their_formulas():
    logits, targets = torch.tensor([[0.7, -0.2]]), torch.tensor([[1.0, 0.0]])
    p = torch.sigmoid(logits)
    plain = losses.bce(logits, targets)
    assert losses.focal(logits, targets, gamma=0.0).item() == pytest.approx(plain.item(), rel=1e-6)
    assert losses.soft_bootstrap(logits, targets, beta=1.0).item() == pytest.approx(plain.item(), rel=1e-6)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    assert losses.soft_bootstrap(logits, targets, beta=0.0).item() == pytest.approx(entropy.item(), rel=1e-5)
    assert losses.probability_bce(p, targets).item() == pytest.approx(plain.item(), rel=1e-5)
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor([0]), label_smoothing=0.1)
    assert losses.cross_entropy(logits, targets, smoothing=0.1).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_noisy_clips_and_extra_heads_have_their_own_weight():
    heads = (torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [2.0]]))
    kinds = (lambda logits, targets: logits[:, 0], lambda logits, targets: 10 * logits[:, 0])
    value = losses.batch_loss(heads, torch.zeros(2, 1), torch.tensor([False, True]), kinds, (1.0, 0.5))
    assert value.item() == pytest.approx((1 + 10) / 2 + 0.5 * (2 + 20) / 2)


def test_schedules():
    one_cycle = optim.build_schedule({"kind": "one_cycle", "warmup": 0.25, "start": 0.1, "end": 0.01})
    assert one_cycle(0, 0, []) == pytest.approx(0.1) and one_cycle(0.25, 0, []) == pytest.approx(1.0)
    assert one_cycle(1, 0, []) == pytest.approx(0.01)
    steps = optim.build_schedule({"kind": "milestones", "epochs": [14, 21], "factor": 0.5})
    assert [steps(0, e, []) for e in (13, 14, 21)] == [1, 0.5, 0.25]
    plateau = optim.build_schedule({"kind": "plateau", "patience": 1, "factor": 0.5})
    assert [plateau(0, 0, s) for s in ([], [1, 0], [1, 0, 0], [1, 0, 0, 2, 1, 1, 1])] == [1, 1, 0.5, 0.25]
    with pytest.raises(SpecError, match="cosine"):
        optim.build_schedule({"kind": "cosin"})


def test_balanced_draws_favour_rare_classes():
    targets = np.eye(2)[[0] * 16 + [1]]
    targets = np.vstack([targets, np.zeros((3, 2))])
    chances = batching.chances(targets, np.zeros(20, bool), recipe.Train(sampling="balanced", balance=0.5, negatives=0.2))
    assert chances[17:].sum() == pytest.approx(0.2) and chances[16] / chances[0] == pytest.approx(4.0)


# -- whole runs ---------------------------------------------------------------------------------------------------------------


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
    from kernel import audio, models, predict
    found, out = facts
    ensemble = load_ensemble(out / "ensembles" / "tiny.toml")
    member = ensemble.members[0]
    stage = predict.build_recipe(ensemble, member).stages["x"]
    net = models.build(member.family, member.params, 3)
    net.load_state_dict({k: v.float() if v.is_floating_point() else v
                         for k, v in load_file(out / "weights" / member.weights_file(1)).items()})
    net.eval()
    row = int(np.flatnonzero(found.folds == 1)[0])
    clip = audio.list_rows([found.clips.ids[row]], audio.find_clips(folder / "clips", [found.clips.ids[row]]), None)[0]
    array = stage.fe(audio.load(clip, stage.fe.rate, 60.0).samples)
    with torch.inference_mode():
        alone = torch.sigmoid(net(stage.finish(torch.from_numpy(stage.view.cut(array, clip.id)))))[0]
    assert np.allclose(alone.numpy(), found.scores["cnn"][row], atol=1e-5)


class Killed(Exception):
    pass


def test_a_run_killed_in_mid_epoch_ends_with_the_same_weights(facts, folder, tmp_path, monkeypatch):
    """Killed in epoch 3 of fold 1 and started again: the same bytes as the uninterrupted run."""
    _, out = facts
    order = pipeline.Order(recipe=folder / "tiny.toml", data=folder, out=tmp_path / "run", into=tmp_path, threads=1, device="cpu")
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
    assert (tmp_path / "run" / "cnn_1" / "checkpoint.pt").exists() and not (tmp_path / "run" / "cnn_1" / "done.json").exists()
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


def test_recipe_errors_name_the_key(folder):
    (folder / "bad.toml").write_text(RECIPE.replace("epochs = 12", "epoch = 12"))
    with pytest.raises(SpecError, match="epochs"):
        recipe.load_recipe(folder / "bad.toml")


def test_interval_holds_the_value_and_follows_groups():
    rng = np.random.default_rng(0)
    truth = np.eye(4)[rng.integers(0, 4, 60)]
    scores = truth + rng.normal(size=truth.shape)
    apart = measure.measure(truth, scores, [str(i) for i in range(60)])
    together = measure.measure(truth, scores, [str(i // 20) for i in range(60)])
    assert apart.low < apart.value < apart.high and apart.value == lwlrap(truth, scores)
    assert apart.clips == 60 and together.value == apart.value


# -- recipes, stackers, choice, relabelling, scoring


RECIPES = sorted((pathlib.Path(__file__).parents[1] / "training" / "recipes").glob("*.toml"))
SEEDS = {"argus", "qrfaction", "ex4sperans", "erc2019", "viel", "shirogane", "hackerearth", "filipmu", "simongrest"}


def test_every_seed_solution_has_a_recipe():
    assert SEEDS | {"default", "emotion"} == {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_is_complete_at_both_scales(path):
    """Every step, mixer, loss, optimiser and schedule a recipe names exists, in the first training and the last."""
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
    (tmp_path / "r.toml").write_text(f'name = "x"\nbase = "{base}"\n[member_train]\nm0_z = {{ epochs = 1 }}\n')
    with pytest.raises(SpecError, match="m0_z"):
        recipe.load_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize("kind", sorted(set(effects.EFFECTS) - {"pitch", "tempo"}))
def test_effect_changes_the_wave_and_repeats_itself(kind):
    wave = (0.3 * np.sin(np.arange(4000) / 9)).astype(np.float32) * np.hanning(4000).astype(np.float32)
    effect = effects.build([{"kind": kind}])
    one, two = (effect(wave.copy(), 8000, np.random.default_rng(4)) for _ in range(2))
    assert one.dtype == np.float32 and np.isfinite(one).all() and np.array_equal(one, two)
    assert len(one) != len(wave) if kind == "speed" else not np.allclose(one, wave, atol=1e-4)


def test_pitch_without_audiomentations_says_what_to_install():
    try:
        import audiomentations  # noqa: F401
    except ImportError:
        with pytest.raises(SpecError, match="pip install"):
            effects.build([{"kind": "pitch"}])(np.zeros(100, np.float32), 8000, np.random.default_rng(0))
        return
    wave = np.sin(2 * np.pi * 440 * np.arange(22050) / 22050).astype(np.float32)
    moved = effects.build([{"kind": "pitch", "cents": 300.0}])(wave, 22050, np.random.default_rng(1))
    assert np.abs(np.fft.rfft(moved)).argmax() != np.abs(np.fft.rfft(wave)).argmax()


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


def made_scores(seed=0, members=3, rows=120, classes=4):
    rng = np.random.default_rng(seed)
    truth = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, rows)]
    scores = {f"m{i}": 1 / (1 + np.exp(-(2.0 * truth - 1 + (0.8 + i) * rng.normal(size=truth.shape)))) for i in range(members)}
    return scores, truth, np.arange(rows) % 3


def test_stacker_learns_from_out_of_fold_scores(tmp_path):
    scores, truth, fold = made_scores()
    members = tuple(Member(name=name, family="simple_cnn", frontend="f") for name in scores)
    stacker = Stacker(name="mlp", family="gated_mlp", inputs=tuple(scores), folds=(0, 1, 2),
                      params={"features": 12, "hidden": 8, "width": 16})
    ensemble = Ensemble(name="e", classes=tuple("abcd"), members=members, frontends={"f": {}}, stackers=(stacker,))
    table = stack.make_table(stacker, ensemble, scores, truth, fold)
    assert table.features.shape == (120, 12) and np.allclose(table.features[:, 4:8], scores["m1"], atol=1e-6)
    settings = recipe.Train(epochs=40, batch=16, optimiser={"kind": "adam", "lr": 3e-3})
    nets = stack.train_stacker(stacker, table, settings, 1, tmp_path)
    held = np.zeros_like(truth)
    for net in nets:
        assert set(fold[net.hold]) == {net.fold}
        held[net.hold] = net.held
    assert lwlrap(truth, held) > lwlrap(truth, scores["m1"])
    again = stack.train_stacker(stacker, table, settings, 1, tmp_path)
    assert all(np.array_equal(a.held, b.held) for a, b in zip(nets, again, strict=True))


def write_oof(path, scores, truth, fold):
    np.savez(path, ids=np.arange(len(truth)).astype(str), classes=np.array(list("abcd")), folds=fold, targets=truth,
             **{f"member/{name}": value.astype(np.float32) for name, value in scores.items()})


def test_choice_by_enumeration_is_the_best_subset(tmp_path):
    scores, truth, fold = made_scores()
    scores["bad"] = 1 - scores["m0"]
    write_oof(tmp_path / "oof.npz", scores, truth, fold)
    table = choose.read_scores([tmp_path / "oof.npz"])
    best = choose.choose(table)
    every = [choose.score_of(table, dict.fromkeys(names, 1.0), "geometric", lwlrap, np.arange(120))
             for size in (1, 2, 3, 4) for names in itertools.combinations(table.members, size)]
    assert best.score == pytest.approx(max(every)) and "bad" not in best.weights
    assert best.honest <= best.score + 1e-9


def test_greedy_choice_beats_the_best_member_and_gives_weights():
    scores, truth, fold = made_scores(members=14)
    table = choose.OutOfFold(members=scores, targets=truth, folds=fold)
    best = choose.choose(table)
    single = max(lwlrap(truth, s) for s in scores.values())
    assert best.score >= single and all(w == int(w) and w >= 1 for w in best.weights.values())
    assert best.score == pytest.approx(choose.score_of(table, best.weights, "geometric", lwlrap, np.arange(120)))


def test_choice_writes_an_ensemble_the_kernel_reads(facts, tmp_path):
    _, out = facts
    done = choose.main([str(out / "run" / "oof.npz"), "--ensemble", str(out / "ensembles" / "tiny.toml"),
                        "--out", str(tmp_path / "best.toml")])
    assert done == 0 and [m.name for m in load_ensemble(tmp_path / "best.toml").members] == ["cnn"]


def test_class_balanced_selection_keeps_the_best_of_each_class():
    labels = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    scores = np.full((12, 3), 0.5)
    scores[[0, 4, 8], [0, 1, 2]] = 0.9
    scores[[1, 5, 9], [0, 1, 2]] = 0.8
    scores[[2, 6, 10], [0, 1, 2]] = 0.1
    assert relabel.select_class_balanced(labels, scores, per_class=1, least=0.9).tolist() == [0, 4, 8]
    assert relabel.select_class_balanced(labels, scores, per_class=9, least=0.9).tolist()[:2] == [0, 1]
    assert not {2, 6, 10} & set(relabel.select_class_balanced(labels, scores, least=0.34))
    assert set(relabel.select_top(labels, scores, count=3)) == {0, 4, 8}


def test_relabelling_adds_removes_and_never_empties():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], np.float32)
    scores = np.array([[0.01, 0.9, 0.3], [0.01, 0.015, 0.2], [0.1, 0.2, 0.85]])
    assert relabel.relabel(labels, scores).tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 1]]


STUB = """
import csv, json, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
rows = list(csv.reader(open(given["--input"] + "/sample_submission.csv")))
out = pathlib.Path(given["--working"])
broken = [r[0] for r in rows[1:] if not (pathlib.Path(given["--clips"]) / r[0]).stat().st_size]
with open(out / "submission.csv", "w", newline="") as file:
    csv.writer(file).writerows([rows[0]] + [[r[0], int(r[0][:-4]) / 100, 0.5, 0.5] for r in rows[1:]])
(out / "report.json").write_text(json.dumps(
    {"prior_rows": len(broken), "faults": [{"code": "ClipEmpty", "where": b, "message": ""} for b in broken]}))
"""


@pytest.fixture
def scoring(tmp_path):
    (tmp_path / "kernel.py").write_text(STUB)
    (tmp_path / "clips").mkdir()
    for i in range(7):
        (tmp_path / "clips" / f"{i}.wav").write_bytes(b"x" if i != 3 else b"")
    return score.Scoring(bundle=tmp_path, clips=tmp_path / "clips", classes=CLASSES,
                         command=(sys.executable, str(tmp_path / "kernel.py")))


def check_scores(values):
    assert np.isnan(values[3]).all()
    assert np.delete(values[:, 0], 3).tolist() == [0.0, 0.01, 0.02, 0.04, 0.05, 0.06]


def test_shards_are_merged_in_order_and_broken_clips_are_named(scoring):
    check_scores(score.score(scoring, score.list_ids(scoring.clips), shards=3, jobs=2))


def test_shards_on_a_local_dask_cluster(scoring):
    distributed = pytest.importorskip("distributed", reason="dask is not installed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster):
            check_scores(score.score(scoring, score.list_ids(scoring.clips), shards=4, jobs=-1,
                                     backend=score.dask_backend(None)))


def test_a_failed_shard_is_no_result(scoring, tmp_path):
    (tmp_path / "kernel.py").write_text("import sys; sys.exit('no bundle here')")
    with pytest.raises(SpecError, match="no bundle here"):
        score.score(scoring, ["0.wav"], shards=1, jobs=1)
