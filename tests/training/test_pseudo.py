"""Pseudo-labels of soundscapes: from a bundle's scores of windows to a pupil that trains on them."""
from __future__ import annotations

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import train as train_command
from kernel import spec
from kernel.errors import SpecError
from kernel.spec import Windows
from tests.helpers import small_ensembles
from training import batching, pseudo, recipe, score

CLASSES = ("high", "low", "noise")
RATE = 8000

RECIPE = """
name = "tiny"
classes = "classes.txt"
[data]
adapter = "csv"
[folds]
count = 2
run = [0]
[frontends.mel]
rate = 8000
n_fft = 512
hop = 128
mels = 16
fmin = 50.0
[train]
epochs = 2
batch = 2
crop = 64
[[members]]
name = "cnn"
family = "simple_cnn"
params = { base = 4, channels = 1 }
frontend = "mel"
[[pseudo]]
soften = [{ kind = "power", exponent = 0.5 }]
share = 0.4
[[pseudo]]
soften = [{ kind = "confident", least = 2.0 }]
"""


def probs(name: str, *shape: int) -> np.ndarray:
    """The input of a golden: f32 of ["probs", name, *shape]."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    return (rng.uniform(0.001, 0.999, shape) ** 3).astype(np.float32).astype(np.float64)


def turn(*soften, **keys) -> recipe.PseudoRound:
    return recipe.PseudoRound(soften=tuple(soften), **keys)


def test_goldens_of_the_winners():
    """Outputs of the original functions; the sources stand beside each rule."""
    p = probs("dev-tomthr", 30, 4)
    scaled = p**4 * np.linspace(0.05, 1.2, 4)
    found = pseudo.percentiles(scaled, 95.0, 0.05, 0.5)
    np.testing.assert_allclose(found, [0.05, 0.08712352, 0.4575344, 0.3583403], atol=2e-6)
    quartic = pseudo.soften(p, [slice(0, 30)], turn({"kind": "power", "exponent": 4.0}))
    np.testing.assert_allclose(quartic[0], [1.270694e-12, 0.005476299, 2.28412e-07, 0.0003384331], atol=2e-6)
    merged = pseudo.merge(probs("dev-tommerge", 6, 2), [slice(0, 6)], 4)
    expected = [[0.6734421, 0.6050236]] * 2 + [[0.6734421, 0.1313028], [0.2406092, 0.1313028]]
    np.testing.assert_allclose(merged[:4], expected, atol=2e-6)
    boosted = pseudo.boost(probs("dev-plblend", 4, 5), [slice(0, 4)])
    rng = np.random.RandomState(zlib.crc32(b"dev-plorig"))
    given = (rng.uniform(0, 1, (4, 5)) < 0.25).astype(float)
    np.testing.assert_allclose((0.7 * boosted + 0.3 * given)[:2], [
        [1.112828e-10, 0.6771764, 0.3964848, 0.3000142, 0.02000208],
        [0.5785107, 0.3, 5.283124e-10, 0.0001416448, 0.001331777],
    ], atol=2e-6)
    mixed = pseudo.file_max(probs("dev-theo-pp", 8, 4), [slice(0, 4), slice(4, 8)])
    np.testing.assert_allclose(mixed[[0, 7]], [[0.009552836, 0.008268488, 0.03397703, 0.001732018],
                                               [0.01065732, 0.04572321, 0.04955235, 0.1920488]], atol=1e-5)


def test_rules_that_take_labels_away():
    p = np.array([[0.6, 0.05, 0.2], [0.3, 0.4, 0.0]])
    rules = turn({"kind": "confident", "least": 0.5}, {"kind": "threshold", "least": 0.1})
    assert pseudo.soften(p, [slice(0, 2)], rules).tolist() == [[0.6, 0.0, 0.2], [0.0, 0.0, 0.0]]
    assert (pseudo.percentile(p, [], of=100.0, floor=0.0, ceiling=1.0) > 0).sum(axis=0).tolist() == [1, 1, 1]
    assert pseudo.file_sum(p, [slice(0, 2)]).tolist() == [1.0, 1.0]
    assert pseudo.row_max(p, []).tolist() == [0.6, 0.4]


@pytest.mark.parametrize(("keys", "words"), [
    ({"sampling": "row_maks"}, "did you mean 'row_max'"),
    ({"share": 1.0}, "share: 1.0; give a share above 0"),
    ({"seconds": -1.0}, "seconds: -1.0"),
    ({"soften": ({"kind": "powr"},)}, r"soften\[0\].kind: 'powr' is unknown; did you mean 'power'"),
])
def test_a_round_that_cannot_be_is_named(keys, words):
    with pytest.raises(SpecError, match=words):
        pseudo.check_round(recipe.PseudoRound(**keys), "pseudo[0]")


def write_scores(path, ids, scores, told={"seconds": 5.0, "pattern": "{stem}_{end}"}):  # noqa: B006
    np.savez(path, ids=np.array(ids), classes=np.array(CLASSES), scores=scores.astype(np.float32),
             targets=np.zeros_like(scores), windows=np.array(json.dumps(told)))


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Two recordings of 20 s and 12 s, and scores of their windows, the second's first."""
    top = tmp_path_factory.mktemp("pseudo")
    (top / "scapes").mkdir()
    for name, seconds in (("a", 20), ("b", 12)):
        noise = np.random.default_rng(0).normal(size=seconds * RATE) / 9
        soundfile.write(top / "scapes" / f"{name}.wav", noise, RATE)
    ids = ["b_10", "b_5", "b_15", "a_20", "a_5", "a_10", "a_15"]
    scores = np.array([[i / 10, 0.0, 0.0] for i in (1, 2, 3, 4, 5, 6, 0)])
    write_scores(top / "scores.npz", ids, scores)
    return top


def read(top, **keys):
    return pseudo.read(top / "scores.npz", top / "scapes", CLASSES, turn(**keys))


def test_rows_stand_in_time_order_and_those_without_a_label_are_left_out(scored):
    found = read(scored, sampling="row_max")
    assert [row.id for row in found.rows] == ["a_5", "a_10", "a_20", "b_5", "b_10", "b_15"]
    np.testing.assert_allclose(found.labels[:, 0], [0.5, 0.6, 0.4, 0.2, 0.1, 0.3])
    np.testing.assert_allclose(found.worth, np.array([5, 6, 4, 2, 1, 3]) / 21)


def test_chunks_of_rows_have_the_largest_labels_and_end_where_the_recording_does(scored):
    found = read(scored, seconds=10.0)
    np.testing.assert_allclose(found.labels[:, 0], [0.6, 0.6, 0.4, 0.4, 0.2, 0.3, 0.3])
    assert [(row.start, row.stop) for row in found.rows][-3:] == [
        (0, 80_000), (40_000, 96_000), (80_000, 120_000)]  # the last one is a window, with zeros behind


def test_classes_in_another_order_are_put_right_and_others_refused(scored):
    found = pseudo.read(scored / "scores.npz", scored / "scapes", ("low", "high", "noise"), turn())
    assert found.labels[:, 1].max() == pytest.approx(0.6) and not found.labels[:, 0].any()
    with pytest.raises(SpecError, match=r"other classes than the recipe's \(e.g. \['owl'\]"):
        pseudo.read(scored / "scores.npz", scored / "scapes", ("low", "high", "owl"), turn())


def test_files_that_are_no_scores_of_windows_are_named(scored, tmp_path):
    write_scores(tmp_path / "clips.npz", ["a"], np.ones((1, 3)), None)
    (tmp_path / "text.npz").write_text("no")
    for name, words in (("none.npz", "training.score. writes such files"), ("text.npz", "writes such"),
                        ("clips.npz", "scores of whole clips")):
        with pytest.raises(SpecError, match=words):
            pseudo.read(tmp_path / name, scored / "scapes", CLASSES, turn())
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="no window keeps a label, of 7"):
        pseudo.read(scored / "scores.npz", tmp_path / "empty", CLASSES, turn())


def test_draws_are_shared_between_clips_and_pseudo_labelled_rows():
    job = batching.Job(
        recipe=None, train=recipe.Train(epochs=1, batch=1, crop=1), fold=0, seed=0, classes=2, rows=(),
        targets=np.array([[1, 0], [0, 1], [0.5, 0], [0, 0.25], [0, 0.1]], np.float32),
        noisy=np.zeros(5, bool), learn=np.array([0, 1, 2, 4]), hold=np.array([]), folder=None,
        worth=np.array([0, 0, 3.0, 5.0, 1.0]), share=0.4,
    )
    np.testing.assert_allclose(batching.draw_shares(job), [0.3, 0.3, 0.3, 0.1])
    np.testing.assert_allclose(batching.draw_shares(replace(job, learn=np.array([0, 1]))), [0.5, 0.5])


def test_two_rounds_from_a_bundle_with_windows(scored, tmp_path, capsys, monkeypatch):
    """A teacher's bundle scores the windows in two kernel runs; a pupil trains on clips and soft labels."""
    threads = torch.get_num_threads()
    member = spec.Member(name="cnn", family="simple_cnn", params={"base": 4, "channels": 1}, frontend="mel")
    front = {"rate": 8000, "n_fft": 512, "hop": 128, "mels": 16, "fmin": 50.0}
    ensemble = spec.Ensemble(name="t", classes=CLASSES, members=(member,), frontends={"mel": front},
                             windows=Windows())
    bundle = small_ensembles.build(ensemble, tmp_path / "built")
    out = tmp_path / "round1.npz"
    (scored / "scapes" / "broken.ogg").write_bytes(b"nothing")
    assert score.main([str(bundle), "--clips", str(scored / "scapes"), "--out", str(out), "--shards", "2",
                       "--device", "cpu"]) == 0
    (scored / "scapes" / "broken.ogg").unlink()
    told = capsys.readouterr()
    assert "7 of 7 windows scored" in told.out and "left out: broken.ogg" in told.err
    assert not (tmp_path / "round1.npz.parts").exists()
    with np.load(out) as arrays:
        assert arrays["ids"].tolist() == ["a_5", "a_10", "a_15", "a_20", "b_5", "b_10", "b_15"]
        assert np.ptp(arrays["scores"], axis=0).max() > 0
    (tmp_path / "clips").mkdir()
    for i in range(6):
        soundfile.write(tmp_path / "clips" / f"{i}.wav", np.random.default_rng(i).normal(size=RATE) / 9, RATE)
    # The recording `a` is a labelled clip too, in the fold that is held out
    soundfile.write(tmp_path / "clips" / "a.wav", np.random.default_rng(9).normal(size=RATE) / 9, RATE)
    rows = [(f"{i}.wav", CLASSES[i % 3]) for i in range(6)] + [("a.wav", "high")]
    lines = [f"{name},{label},{1 if name == 'a.wav' else 2 - i % 2}" for i, (name, label) in enumerate(rows)]
    (tmp_path / "labels.csv").write_text("\n".join(["fname,labels,fold", *lines]) + "\n")
    (tmp_path / "classes.txt").write_text("".join(name + "\n" for name in CLASSES))
    (tmp_path / "r.toml").write_text(RECIPE.replace('"csv"', '"csv"\nfold_column = "fold"'))
    command = [str(tmp_path / "r.toml"), "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--pseudo",
               str(out), "--soundscapes", str(scored / "scapes"), "--threads", "1", "--device", "cpu"]
    seen: list[batching.Job] = []
    made = batching.Batches.__init__
    monkeypatch.setattr(batching.Batches, "__init__",
                        lambda self, job, features: (seen.append(job), made(self, job, features))[1])
    try:
        assert train_command.main(command) == 0
        told = capsys.readouterr().out
        assert "pseudo-labels: 7 windows of 2 recordings, 40% of the draws" in told
        learnt = [seen[0].rows[i].id for i in seen[0].learn]
        assert [id for id in learnt if "_" in id] == ["b_5", "b_10", "b_15"]
        assert train_command.main([*command, "--round", "2"]) == 2
        assert "no window keeps a label, of 7" in capsys.readouterr().err
        assert train_command.main([*command, "--round", "3"]) == 2
        assert "--round: 3; the recipe has 2 rounds" in capsys.readouterr().err
        assert train_command.main(command[:5] + ["--round", "2"]) == 2
        assert "go with --pseudo" in capsys.readouterr().err
    finally:
        torch.set_num_threads(threads)
