"""What is done with predictions: stackers, the choice of members, relabelling, intervals, sharded scoring."""
from __future__ import annotations

import itertools
import sys
from dataclasses import replace

import distributed
import numpy as np
import pytest
import soundfile

from kernel.errors import SpecError
from kernel.scores import means
from kernel.scores.metrics import lwlrap, macro_auc
from kernel.spec import Ensemble, Member, Stacker, Windows, load_ensemble
from training import choose, evaluation, recipe, relabel, score, stackers

CLASSES = ("high", "low", "noise")


def made_scores(seed=0, members=3, rows=120, classes=4):
    rng = np.random.default_rng(seed)
    truth = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, rows)]
    scores = {
        f"m{i}": 1 / (1 + np.exp(-(2.0 * truth - 1 + (0.8 + i) * rng.normal(size=truth.shape))))
        for i in range(members)
    }
    return scores, truth, np.arange(rows) % 3


def test_stacker_learns_from_out_of_fold_scores(tmp_path):
    scores, truth, fold = made_scores()
    members = tuple(Member(name=name, family="simple_cnn", frontend="f") for name in scores)
    stacker = Stacker(name="mlp", family="gated_mlp", inputs=tuple(scores), folds=(0, 1, 2),
                      params={"features": 12, "hidden": 8, "width": 16})
    ensemble = Ensemble(
        name="e", classes=tuple("abcd"), members=members, frontends={"f": {}}, stackers=(stacker,)
    )
    table = stackers.make_table(stacker, ensemble, scores, truth, fold)
    assert table.features.shape == (120, 12) and np.allclose(table.features[:, 4:8], scores["m1"], atol=1e-6)
    settings = recipe.Train(epochs=40, batch=16, optimiser={"kind": "adam", "lr": 3e-3})
    nets = stackers.train_stacker(stacker, table, settings, 1, tmp_path)
    held = np.zeros_like(truth)
    for net in nets:
        assert set(fold[net.hold]) == {net.fold}
        held[net.hold] = net.held
    assert lwlrap(truth, held) > lwlrap(truth, scores["m1"])
    again = stackers.train_stacker(stacker, table, settings, 1, tmp_path)
    assert all(np.array_equal(a.held, b.held) for a, b in zip(nets, again, strict=True))


def write_oof(path, scores, truth, fold):
    np.savez(
        path,
        ids=np.arange(len(truth)).astype(str),
        classes=np.array(list("abcd")),
        folds=fold,
        targets=truth,
        **{f"member/{name}": value.astype(np.float32) for name, value in scores.items()},
    )


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


def test_a_choice_by_area_counts_clips_without_a_label_as_negatives(tmp_path):
    scores, truth, fold = made_scores()
    truth[::5] = 0
    write_oof(tmp_path / "oof.npz", scores, truth, fold)
    table = choose.read_scores([tmp_path / "oof.npz"], negatives=True)
    assert len(table.targets) == 120 and len(choose.read_scores([tmp_path / "oof.npz"]).targets) == 96
    best = choose.choose(table, metric=macro_auc)
    blend = means.mean("geometric", np.stack([table.members[name] for name in best.weights]))
    assert best.score == pytest.approx(macro_auc(truth, blend)) and best.honest <= best.score + 0.05
    table = choose.OutOfFold(members=table.members, targets=np.ones_like(truth), folds=fold)
    with pytest.raises(SpecError, match="the metric is undefined"):
        choose.choose(table, metric=macro_auc)


def test_a_choice_keeps_groups_and_steps_of_what_is_left(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "groups.csv").write_text("class,group\na,x\nb,x\nc,y\nd,y\n")
    (tmp_path / "kernels.csv").write_text("group,weights\ndefault,1 2 1\n")
    member = '[[members]]\nname = "{}"\nfamily = "simple_cnn"\nfrontend = "fe"\n'
    (tmp_path / "all.toml").write_text(
        'name = "e"\nclasses = ["a", "b", "c", "d"]\nclass_groups = "groups.csv"\n[frontends.fe]\n'
        'preset = "argus"\n' + member.format("m0") + 'steps = [{kind = "smooth", kernels = "kernels.csv"}]\n'
        + member.format("m1") + member.format("m2")
        + '[[groups]]\nname = "g"\nmembers = ["m0", "m1"]\n[[groups]]\nname = "h"\nmembers = ["m2"]\n'
        '[output]\nsteps = [{kind = "gate_sustained", gate = "m1"}]\n')
    chosen = choose.Choice(weights={"m0": 1.0, "m1": 2.0}, score=0.5)
    choose.write_choice(tmp_path / "all.toml", chosen, tmp_path / "far" / "best.toml")
    left = load_ensemble(tmp_path / "far" / "best.toml")
    assert [group.name for group in left.groups] == ["g"] and left.class_groups["y"] == ("c", "d")
    assert left.members[0].steps[0]["kernels"] == "group,weights\ndefault,1 2 1\n"
    gone = choose.Choice(weights={"m0": 1.0}, score=0.5)
    with pytest.raises(SpecError, match=r"output.steps\[0\]: reads 'm1', which was not chosen"):
        choose.write_choice(tmp_path / "all.toml", gone, tmp_path / "far" / "other.toml")
    assert not (tmp_path / "far" / "other.toml").exists()


def test_greedy_choice_beats_the_best_member_and_gives_weights():
    scores, truth, fold = made_scores(members=14)
    table = choose.OutOfFold(members=scores, targets=truth, folds=fold)
    best = choose.choose(table)
    single = max(lwlrap(truth, s) for s in scores.values())
    assert best.score >= single and all(w == int(w) and w >= 1 for w in best.weights.values())
    assert best.score == pytest.approx(
        choose.score_of(table, best.weights, "geometric", lwlrap, np.arange(120))
    )


def test_interval_holds_the_value_and_follows_groups():
    rng = np.random.default_rng(0)
    truth = np.eye(4)[rng.integers(0, 4, 60)]
    scores = truth + rng.normal(size=truth.shape)
    apart = evaluation.measure(truth, scores, [str(i) for i in range(60)])
    together = evaluation.measure(truth, scores, [str(i // 20) for i in range(60)])
    assert apart.low < apart.value < apart.high and apart.value == lwlrap(truth, scores)
    assert apart.clips == 60 and together.value == apart.value


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


def test_written_labels_leave_out_clips_without_one(tmp_path):
    relabel.write_labels(tmp_path / "l.csv", ["a", "b"], np.array([[1, 0, 1], [0, 0, 0]]), CLASSES)
    assert (tmp_path / "l.csv").read_text() == 'fname,labels\na,"high,noise"\n'


STUB = """
import csv, json, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
rows = list(csv.reader(open(given["--input"] + "/sample_submission.csv")))
out = pathlib.Path(given["--working"])
broken = [r[0] for r in rows[1:] if not (pathlib.Path(given["--clips"]) / r[0]).stat().st_size]
with open(out / "submission.csv", "w", newline="") as file:
    csv.writer(file).writerows([rows[0]] + [[r[0], int(r[0][:-4]) / 100, 0.5, 0.5] for r in rows[1:]])
faults = [{"code": "ClipEmpty", "where": b, "message": ""} for b in broken]
(out / "report.json").write_text(json.dumps({"prior_rows": len(broken), "faults": faults}))
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
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster):
            check_scores(score.score(scoring, score.list_ids(scoring.clips), shards=4, jobs=-1,
                                     backend=score.dask_backend(None)))


KILLED = """
import os, pathlib, signal, sys
mark = pathlib.Path(__file__).with_name("killed")
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "4.wav" in open(given["--input"] + "/sample_submission.csv").read() and not mark.exists():
    mark.write_text(str(os.getppid()))
    os.kill(WHOM, signal.SIGKILL)
    sys.exit("its worker is gone")
"""


@pytest.mark.filterwarnings("ignore")  # of a cluster that misses a worker
def test_a_worker_that_is_killed_in_the_middle_of_a_shard_loses_nothing(scoring, tmp_path):
    (tmp_path / "kernel.py").write_text(KILLED.replace("WHOM", "os.getppid()") + STUB)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        workers = {worker.pid for worker in cluster.workers.values()}
        with distributed.Client(cluster):
            check_scores(score.score(scoring, score.list_ids(scoring.clips), shards=4, jobs=-1,
                                     backend=score.dask_backend(None)))
    assert len(workers) == 2 and int((tmp_path / "killed").read_text()) in workers


def test_a_kernel_run_that_is_killed_is_started_again(scoring, tmp_path, capsys):
    (tmp_path / "kernel.py").write_text(KILLED.replace("WHOM", "os.getpid()") + STUB)
    check_scores(score.score(scoring, score.list_ids(scoring.clips), shards=2, jobs=2))
    assert (tmp_path / "killed").exists() and "killed by signal 9; started again" in capsys.readouterr().err


def test_shards_that_are_done_are_not_run_again(scoring, tmp_path):
    ids = score.list_ids(scoring.clips)
    kernel = tmp_path / "kernel.py"
    kernel.write_text(STUB.replace("broken = ", "'6.wav' in str(rows) and sys.exit('later')\nbroken = "))
    with pytest.raises(SpecError, match="later"):
        score.score(scoring, ids, shards=7, jobs=1, keep=tmp_path / "parts")
    kept = {path.name for path in (tmp_path / "parts").iterdir()}
    assert len(kept) == 6
    kernel.write_text(STUB.replace("broken = ", "assert len(rows) == 2 and rows[1][0] == '6.wav'\nbroken = "))
    check_scores(score.score(scoring, ids, shards=7, jobs=1, keep=tmp_path / "parts"))
    (tmp_path / "parts" / min(kept)).write_bytes(b"no array")
    kernel.write_text(STUB)
    check_scores(score.score(scoring, ids, shards=7, jobs=1, keep=tmp_path / "parts"))


def test_a_shard_holds_whole_recordings(scoring):
    windowed = replace(scoring, windows=Windows())
    ids = [f"r{i}_{5 * (j + 1)}" for j in range(3) for i in range(4)]
    parts = score.split(windowed, ids, 3)
    assert sorted(id for part in parts for id in part) == sorted(ids)
    assert [sorted({id[:2] for id in part}) for part in parts] == [["r0", "r1"], ["r2"], ["r3"]]
    with pytest.raises(SpecError, match="'x' is no window"):
        score.split(windowed, ["x"], 1)


def test_windows_of_a_folder_of_soundscapes(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    for name, seconds in (("a/x.wav", 12), ("y.wav", 5)):
        soundfile.write(tmp_path / name, np.zeros(seconds * 8000), 8000)
    (tmp_path / "z.ogg").write_bytes(b"nothing")
    assert score.list_windows(tmp_path, Windows()) == ["x_5", "x_10", "x_15", "y_5"]
    assert "left out: z.ogg" in capsys.readouterr().err
    soundfile.write(tmp_path / "x.flac", np.zeros(8000), 8000)
    with pytest.raises(SpecError, match="would give the same row ids"):
        score.list_windows(tmp_path, Windows())


def test_a_failed_shard_is_no_result(scoring, tmp_path):
    (tmp_path / "kernel.py").write_text("import sys; sys.exit('no bundle here')")
    with pytest.raises(SpecError, match="no bundle here"):
        score.score(scoring, ["0.wav"], shards=1, jobs=1)


CHOSEN_FROM = """
name = "e"
classes = ["a", "b"]
[frontends.fe]
preset = "argus"
[[members]]
name = "m0"
family = "simple_cnn"
frontend = "fe"
classes_from = "labels.txt"
classes_map = "map.csv"
[[members]]
name = "m1"
family = "simple_cnn"
frontend = "fe"
classes_from = "other.txt"
"""


def test_a_choice_written_elsewhere_finds_the_files_of_its_members(tmp_path):
    folder = tmp_path / "before"
    folder.mkdir()
    (folder / "labels.txt").write_text("x\ny\nz")
    (folder / "other.txt").write_text("b\na")
    (folder / "map.csv").write_text("label,class\nz,a\n")
    (folder / "e.toml").write_text(CHOSEN_FROM)
    best = choose.Choice(weights={"m0": 1.0, "m1": 0.5}, score=0.5, honest=0.5)
    (tmp_path / "now" / "deep").mkdir(parents=True)
    choose.write_choice(folder / "e.toml", best, tmp_path / "now" / "deep" / "chosen.toml")
    chosen = load_ensemble(tmp_path / "now" / "deep" / "chosen.toml")
    assert [member.weight for member in chosen.members] == [1.0, 0.5]
    assert chosen.members[0].classes_map.takes == (2,) and chosen.members[1].classes_from == ("b", "a")
    (folder / "groups.csv").write_text("class,m0\na,2\n")
    (folder / "e.toml").write_text('weights_by = "groups.csv"\n' + CHOSEN_FROM)
    with pytest.raises(SpecError, match="weights_by: what is chosen is one weight per member"):
        choose.write_choice(folder / "e.toml", best, tmp_path / "now" / "chosen.toml")
