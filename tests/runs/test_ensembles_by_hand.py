"""Whole runs of published ensembles give what a computation by hand gives, in each competition's form."""
from __future__ import annotations

import json
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch

from kernel import spec
from kernel.sound import frontends
from tests.helpers import small_ensembles
from tests.helpers.ensemble_runs import make_input, need_timm, read_scores, run_clean
from tests.helpers.invariants import read_table
from tests.helpers.small_ensembles import published, shrink


def geometric(stack: list[np.ndarray]) -> np.ndarray:
    return np.exp(np.mean(np.log(np.stack(stack).astype(np.float64)), axis=0))


def argus_tiles(spectrogram: np.ndarray) -> torch.Tensor:
    """f32[P, 3, 128, 256] of dB[128, W]: padded by its minimum, cut every 128 frames, deltas, / 100."""
    width = spectrogram.shape[1]
    count = max(1, int(np.ceil((width - 128) / 128)))
    extra = 128 * count + 128 - width
    padded = np.pad(
        spectrogram, ((0, 0), (extra // 2, extra - extra // 2)), constant_values=spectrogram.min()
    )
    tiles = [padded[:, 128 * i:128 * i + 256] for i in range(count)]
    stacked = [
        np.stack([tile, librosa.feature.delta(tile, order=1), librosa.feature.delta(tile, order=2)])
        for tile in tiles
    ]
    return torch.from_numpy(np.stack(stacked).astype(np.float32) / 100)


@torch.inference_mode()
def argus_by_hand(
    ensemble: spec.Ensemble, nets: dict[str, torch.nn.Module], spectrogram: np.ndarray
) -> np.ndarray:
    """f64[80] of dB f32[128, W].

    Tiles, sigmoid, mean over tiles, geometric mean over folds; stackers, geometric mean over folds; geometric
    mean over all ten.
    """
    tiles = argus_tiles(spectrogram)
    first = [
        geometric([nets[f"{m.name}.{fold}"](tiles).double().sigmoid().mean(0).numpy() for fold in m.folds])
        for m in ensemble.members
    ]
    features = torch.from_numpy(np.concatenate(first)).float()[None]
    second = [
        geometric([nets[f"{s.name}.{fold}"](features).double().sigmoid()[0].numpy() for fold in s.folds])
        for s in ensemble.stackers
    ]
    return geometric(first + second)


def test_argus_from_clips_to_submission_by_hand(tmp_path: Path) -> None:
    ensemble = shrink(published("argus"))
    nets = small_ensembles.write_weights(ensemble, tmp_path / "weights")
    ids = make_input(tmp_path, ensemble, [0.3, 2.0, 6.2, 11.0])
    run = run_clean(tmp_path, small_ensembles.build(ensemble, tmp_path / "built", tmp_path / "weights"))
    assert [len(m["nets"]) for m in run.report["members"]] == [2] * 10 and not run.report["random_weights"]
    front = frontends.build({"preset": "argus"})
    found = read_scores(run)
    widths = []
    for id in ids:
        wave, _ = soundfile.read(tmp_path / "in" / "test" / id, dtype="float32")
        spectrogram = front(wave)[0]
        widths.append(len(argus_tiles(spectrogram)))
        expected = argus_by_hand(ensemble, nets, spectrogram)
        np.testing.assert_allclose(found[id], expected, atol=1e-5)
        assert expected.std() > 0.02  # the nets do tell classes apart
    assert widths[0] == 1 and widths[-1] >= 4


@torch.inference_mode()
def vote_by_hand(ensemble: spec.Ensemble, nets: dict[str, torch.nn.Module], canvas: np.ndarray) -> str:
    """HackerEarth's label of a canvas.

    / 255, three channels, ImageNet statistics, softmax, mean over folds; six votes, ties by mean probability.
    """
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = torch.from_numpy(canvas.astype(np.float32) / 255)[None].expand(1, 3, 128, 455)
    x = (x - mean[:, None, None]) / std[:, None, None]
    members = [
        np.mean([nets[f"{m.name}.{fold}"](x).softmax(1)[0].numpy() for fold in m.folds], axis=0)
        for m in ensemble.members
    ]
    votes = np.bincount([int(p.argmax()) for p in members], minlength=7)
    usual = np.mean(members, axis=0)
    return ensemble.classes[max(range(7), key=lambda k: (votes[k], usual[k]))]


def test_hackerearth_votes_and_writes_filename_emotion(tmp_path: Path) -> None:
    need_timm()
    ensemble = shrink(published("hackerearth"))
    nets = small_ensembles.write_weights(ensemble, tmp_path / "weights")
    ids = make_input(tmp_path, ensemble, [0.5, 1.5, 3.0, 7.0], "filename")
    run = run_clean(tmp_path, small_ensembles.build(ensemble, tmp_path / "built", tmp_path / "weights"))
    header, *rows = read_table(run.working / "submission.csv")
    front = frontends.build({"preset": "hackerearth"})
    canvases = [front(soundfile.read(tmp_path / "in" / "test" / id, dtype="float32")[0]) for id in ids]
    assert header == ["filename", "emotion"] and rows == [
        [id, vote_by_hand(ensemble, nets, canvas)] for id, canvas in zip(ids, canvases, strict=True)]


def test_erc2019_writes_integer_labels(tmp_path: Path) -> None:
    ensemble = shrink(published("erc2019"))
    ids = make_input(tmp_path, ensemble, [0.4, 2.0, 2.6], "File")
    run = run_clean(tmp_path, small_ensembles.build(ensemble, tmp_path / "built"))
    header, *rows = read_table(run.working / "submission.csv")
    assert header == ["File", "Label"]
    assert [row[0] for row in rows] == ids and all(row[1] in set("012345") for row in rows)
    assert run.report["random_weights"] and "\n[hourglass] RANDOM WEIGHTS" in run.out
    manifest = json.loads((tmp_path / "built" / "bundle" / "manifest.json").read_bytes())
    assert manifest["random_weights"] is True
