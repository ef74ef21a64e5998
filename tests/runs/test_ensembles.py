"""The published ensembles: what they hold, whole runs against computations by hand, windows, labels, and the
same bytes always.

`make whole` (marker `whole`) builds and runs each of them at full size; the rest uses small nets in the
published structure.
"""
from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile
import torch

from builder import ensemble_docs
from kernel import limits, models, spec
from kernel.engine import gpu
from kernel.errors import SpecError
from kernel.inference import backends, views
from kernel.inference.net import build_recipe, load_net, predict_alone
from kernel.models.timm_backbone import import_timm
from kernel.sound import decode, frontends
from tests.helpers import small_ensembles
from tests.helpers.guard_runs import GuardRun, run_guard
from tests.helpers.invariants import read_table
from tests.helpers.recipe import make_wave
from tests.helpers.small_ensembles import FOLDER, published, shrink
from tests.helpers.whole_runs import render_clip
from training import demo_clips

RATE = 44_100
ID_COLUMNS = {"hackerearth": "filename", "erc2019": "File"}
# classes, nets of members, nets of stackers, mean, mean over folds. Source: the authors' repositories.
COUNTS = {
    "argus": (80, 35, 15, "geometric", "geometric"), "qrfaction": (80, 60, 10, "arithmetic", "arithmetic"),
    "ex4sperans": (80, 55, 0, "arithmetic", "arithmetic"), "erc2019": (6, 4, 0, "arithmetic", "geometric"),
    "viel": (80, 75, 0, "minmax", "arithmetic"), "shirogane": (80, 15, 0, "arithmetic", "arithmetic"),
    "hackerearth": (7, 30, 0, "vote", "arithmetic"), "filipmu": (80, 3, 0, "arithmetic", "geometric"),
    "simongrest": (80, 12, 0, "arithmetic", "arithmetic"), "jeong2018": (41, 15, 0, "geometric", "geometric"),
}
SOLUTIONS = tuple(COUNTS)
# Trainable parameters of each member and stacker in order. Source: counted in the authors' nets
# (goldens/state_dicts).
PARAMETERS = {
    "argus": [17_326_950, 17_326_950, 22_054_246, 17_326_950, 17_326_950, 16_793_587, 16_793_507,
              1_180_101, 1_454_746, 1_768_626],
    "qrfaction": [5_226_168, 5_226_168, 5_616_448, 21_143_600, 12_100_536, 5_584_056, 6_960],
    "erc2019": [4_754_759, 6_701_575, 26_110_471, 8_857_791],
    "simongrest": [20_898_247, 20_898_247],
    "filipmu": [21_853_584, 11_745_424, 21_853_584],
}


def write_sample(folder: Path, header: list[str], ids: list[str], cell: str = "0") -> None:
    lines = [",".join(header), *(",".join([id, *[cell] * (len(header) - 1)]) for id in ids)]
    (folder / "sample_submission.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_input(
    folder: Path, ensemble: spec.Ensemble, seconds: list[float], id_column: str = "fname"
) -> list[str]:
    """Ids of rendered clips of these lengths below folder/in, with a sample in the ensemble's output form."""
    ids = [f"c{i}.wav" for i in range(len(seconds))]
    for i, (id, length) in enumerate(zip(ids, seconds, strict=True)):
        render_clip(folder / "in" / "test" / id, length, i, RATE)
    label = ensemble.output.format == "label"
    columns = [str(ensemble.output.label_column)] if label else list(ensemble.classes)
    write_sample(folder / "in", [id_column, *columns], ids, ensemble.classes[0] if label else "0")
    return ids


def run_clean(
    folder: Path, bundle: Path, *arguments: str, seconds: float = 100.0, prefix: tuple[str, ...] = ()
) -> GuardRun:
    """A run without any fault in which every net scored every row."""
    run = run_guard(
        folder,
        bundle,
        "--device",
        "cpu",
        *arguments,
        seconds=seconds,
        prefix=prefix,
        OMP_WAIT_POLICY="PASSIVE",
    )
    assert run.code == 0 and run.report["faults"] == [], run.out[-3000:]
    assert run.report["prior_rows"] == run.report["partial_rows"] == 0
    for member in run.report["members"]:
        assert member["nets_done"] == len(member["nets"]) and member["rows"] == run.report["rows"], member[
            "name"
        ]
    return run


def scores(run: GuardRun) -> dict[str, np.ndarray]:
    """Row id -> f64[K]."""
    return {row[0]: np.array(row[1:], float) for row in read_table(run.working / "submission.csv")[1:]}


def need_timm() -> Any:
    try:
        return import_timm()
    except SpecError:
        pytest.skip("timm is not installed")


def geometric(stack: list[np.ndarray]) -> np.ndarray:
    return np.exp(np.mean(np.log(np.stack(stack).astype(np.float64)), axis=0))


# -- what the files hold
# ------------------------------------------------------------------------------------------------------


def test_the_ten_solutions_are_there() -> None:
    assert set(SOLUTIONS) <= {path.stem for path in FOLDER.glob("*.toml")}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_counts_and_means_are_the_published_ones(name: str) -> None:
    ensemble = published(name)
    nets = [sum(len(part.folds) for part in group) for group in (ensemble.members, ensemble.stackers)]
    assert (len(ensemble.classes), *nets, ensemble.mean) == COUNTS[name][:4]
    assert {part.fold_mean for part in small_ensembles.parts(ensemble)} == {COUNTS[name][4]}
    assert ensemble.profile in limits.PROFILES and ensemble.about
    assert ensemble.row_independent == (name != "viel")
    assert not ensemble.prior or len(ensemble.prior) == len(ensemble.classes)


@pytest.mark.parametrize("name", PARAMETERS)
def test_nets_have_the_published_sizes(name: str) -> None:
    ensemble, counts = published(name), []
    with torch.device("meta"):
        for part in small_ensembles.parts(ensemble):
            module = models.build(part.family, dict(part.params), len(ensemble.classes))
            counts.append(sum(p.numel() for p in module.parameters() if p.requires_grad))
    assert counts == PARAMETERS[name]


@pytest.mark.parametrize("name", SOLUTIONS)
def test_every_part_takes_what_its_front_ends_views_and_finishes_give(name: str) -> None:
    ensemble = shrink(published(name))
    if any(part.family == "timm" for part in ensemble.members):
        timm = need_timm()
        assert all(timm.is_model(m.params["model"]) for m in published(name).members if m.family == "timm")
    for part in small_ensembles.parts(ensemble):
        module = models.build(part.family, dict(part.params), len(ensemble.classes)).eval()
        with torch.inference_mode():
            assert tuple(module(example(ensemble, part)).shape) == (2, len(ensemble.classes)), part.name


def example(ensemble: spec.Ensemble, part: spec.Member | spec.Stacker) -> Any:
    """Two rows of the shape that the part gets in a run, all zeros."""
    classes = len(ensemble.classes)
    if isinstance(part, spec.Stacker):
        n = len(part.inputs)
        return torch.zeros(
            (2, n * classes) if part.features == "concat" else (2, classes, n + bool(part.average_weights))
        )
    recipe = build_recipe(ensemble, part)
    inputs = {
        key: torch.zeros(
            2, *stage.finish.shape((stage.view.fixed or 320) if stage.fe.time else stage.fe.fixed)
        )
        for key, stage in recipe.stages.items()
    }
    return inputs["x"] if set(inputs) == {"x"} else inputs


def test_weights_and_orders_of_the_stacked_solutions() -> None:
    argus, qrfaction = published("argus"), published("qrfaction")
    names = [
        "auxiliary_016",
        "auxiliary_019",
        "corr_noisy_003",
        "corr_noisy_004",
        "corr_noisy_007",
        "corrections_002",
        "corrections_003",
    ]
    assert [m.name for m in argus.members] == names and {m.weight for m in argus.members} == {1.0}
    assert [(s.name, s.params["hidden"], list(s.inputs), s.weight) for s in argus.stackers] == [
        ("fcnet_43040", 35, names, 1.0), ("fcnet_45041", 280, names, 1.0), ("fcnet_50013", 560, names, 1.0)]
    (stacker,) = qrfaction.stackers
    assert stacker.features == "per_class" and stacker.inputs == tuple(m.name for m in qrfaction.members)
    assert stacker.average_weights == (2.1, 1.9, 1.0, 1.0, 1.0, 0.0)
    assert {m.weight for m in qrfaction.members} == {0.0} and stacker.weight == 1.0


def test_views_are_the_published_ones() -> None:
    expected = {
        "argus": ("tiles", {"frames": 256, "step": 128}),
        "viel": ("chunks", {"frames": 256, "passes": 8}),
        "qrfaction": ("positions", {"frames": 220_500, "passes": 3}),
        "ex4sperans": ("full", {}),
        "jeong2018": ("full", {}),
        "hackerearth": ("full", {}),
        "shirogane": ("strength_crops", {"frames": 128, "passes": 20, "bins": 84, "flip": 0.5}),
        "erc2019": (
            "crops",
            {
                "frames": 128,
                "passes": 12,
                "flip": 0.5,
                "mask_bins": 12,
                "mask_frames": 12,
                "merge": "logit_mean",
            },
        ),
        "filipmu": ("crops", {"frames": 224, "passes": 5, "merge": "logit_mean"}),
        "simongrest": (
            "zoom",
            {
                "frames": 256,
                "passes": 9,
                "zoom": 1.1,
                "warp": 0.05,
                "warp_chance": 0.9,
                "plain": 0.4,
                "short": "random",
            },
        ),
    }
    for name, (kind, keys) in expected.items():
        for member in published(name).members:
            assert member.view == {"kind": kind, **keys}, (name, member.name)


def test_the_page_on_ensembles_is_up_to_date() -> None:
    page = ensemble_docs.PAGE.read_text(encoding="utf-8")
    assert ensemble_docs.fill(page) == page, "run: python -m builder.ensemble_docs"
    for name in SOLUTIONS:
        assert f"`{name}.toml`" in page
    for kind in views.VIEWS:
        assert all(f"`{key}" in page for key in views.keys(kind)), kind


def test_a_key_without_a_description_cannot_be_added() -> None:
    class Secret(spec.Windows):
        """Nothing is said here."""

    with pytest.raises(SpecError, match="no line in the docstring"):
        ensemble_docs.key_table(Secret)


# -- whole runs against computations by hand
# ----------------------------------------------------------------------------------


def argus_tiles(spectrogram: np.ndarray) -> torch.Tensor:
    """f32[P, 3, 128, 256] of dB f32[128, W]: padded with its minimum, cut every 128 frames, deltas per tile,
    / 100.
    """
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
    """f64[80]: tiles -> sigmoid -> mean -> geometric over folds -> stackers -> geometric over folds ->
    geometric over all ten.
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
    front, found, widths = frontends.build({"preset": "argus"}), scores(run), []
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
    """HackerEarth: / 255, three channels, ImageNet statistics, softmax, mean over folds; six votes, ties by
    mean probability.
    """
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = torch.from_numpy(canvas.astype(np.float32) / 255)[None].expand(1, 3, 128, 455)
    x = (x - mean[:, None, None]) / std[:, None, None]
    members = [
        np.mean([nets[f"{m.name}.{fold}"](x).softmax(1)[0].numpy() for fold in m.folds], axis=0)
        for m in ensemble.members
    ]
    votes, usual = np.bincount([int(p.argmax()) for p in members], minlength=7), np.mean(members, axis=0)
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
    assert (
        header == ["File", "Label"]
        and [row[0] for row in rows] == ids
        and all(row[1] in set("012345") for row in rows)
    )
    assert run.report["random_weights"] and "\n[hourglass] RANDOM WEIGHTS" in run.out
    assert (
        json.loads((tmp_path / "built" / "bundle" / "manifest.json").read_bytes())["random_weights"] is True
    )


# -- the same bytes
# -----------------------------------------------------------------------------------------------------------


def everything() -> spec.Ensemble:
    """One small ensemble with a member of every 80-class solution: every view, several inputs, a stacker, a
    mean over rows.
    """
    picked = {
        "argus": [0],
        "qrfaction": [2],
        "ex4sperans": [0, 9],
        "viel": [0],
        "shirogane": [0],
        "filipmu": [1],
        "simongrest": [0],
    }
    members, fronts = [], {}
    for name, chosen in picked.items():
        ensemble = shrink(published(name), folds=1)
        fronts |= {f"{name}_{key}": value for key, value in ensemble.frontends.items()}
        for i in chosen:
            member = ensemble.members[i]
            inputs = {
                key: replace(entry, frontend=f"{name}_{entry.frontend}")
                for key, entry in member.inputs.items()
            }
            members.append(replace(member, name=f"{name}.{member.name}", inputs=inputs, weight=1.0,
                                   frontend=member.frontend and f"{name}_{member.frontend}"))
    stacker = spec.Stacker(name="stacker", family="per_class_stacker", features="per_class",
                           inputs=tuple(m.name for m in members), params={"inputs": len(members)})
    return spec.check(replace(published("viel"), name="everything", members=tuple(members), frontends=fronts,
                              stackers=(stacker,)))


def test_same_bytes_for_one_core_and_two_one_and_four_loaders_and_shuffled_files(tmp_path: Path) -> None:
    ensemble = everything()
    bundle = small_ensembles.build(ensemble, tmp_path / "built")
    ids = make_input(tmp_path / "first", ensemble, [0.2, 1.0, 4.1, 6.3])
    one_core = ("taskset", "-c", str(min(os.sched_getaffinity(0))))
    first = run_clean(tmp_path / "first", bundle, "--loaders", "1", prefix=one_core)
    shuffled = random.Random(0).sample(ids, len(ids))
    (tmp_path / "second" / "in" / "test").mkdir(parents=True)
    for id in shuffled:  # another order in the folder as well as in the sample
        shutil.copy(tmp_path / "first" / "in" / "test" / id, tmp_path / "second" / "in" / "test" / id)
    write_sample(tmp_path / "second" / "in", ["fname", *ensemble.classes], shuffled)
    second = run_clean(tmp_path / "second", bundle, "--loaders", "4")
    lines = [run.submission.splitlines() for run in (first, second)]
    assert sorted(lines[0]) == sorted(lines[1]) and [line.split(",")[0] for line in lines[1][1:]] == shuffled
    assert len(set(lines[0])) == len(ids) + 1


class Waves:
    """A store without memory: the array of a seeded wave for each row id."""

    def get(self, fe: Any, row: decode.Row) -> np.ndarray:
        return fe(make_wave(row.id, float(row.id), fe.rate))


def test_the_gpu_schedule_of_every_solution_gives_what_each_row_gets_alone() -> None:
    """Run on the CPU: tiles, crops and several inputs of many rows share batches."""
    ensemble, device = everything(), backends.Device(name="cpu", about="test")
    rows = [decode.Row(id=seconds, clip=decode.Clip(id=seconds)) for seconds in ("0.6", "3", "6.5")]
    for member in ensemble.members:
        state = small_ensembles.random_net(member, 0, 80).state_dict()
        net = load_net(build_recipe(ensemble, member), state, 80, device, spec.Cost())
        window = gpu.open_window(net, Waves(), rows, lambda row, error: pytest.fail(f"{row.id}: {error}"))
        found = {
            row.id: probs for done in gpu.predict_grouped(net, iter([window])) for row, probs in done.answers
        }
        for row in rows:
            np.testing.assert_allclose(
                found[row.id], predict_alone(net, Waves(), row), atol=1e-5, err_msg=member.name
            )


# -- windows
# ------------------------------------------------------------------------------------------------------------------

SMOOTHING = (0.1, 0.8, 0.1)
SOUNDSCAPE_SECONDS, WINDOW_SECONDS, WINDOW_RATE = 600, 5, 8_000


def test_windows_of_a_ten_minute_soundscape_score_like_clips(tmp_path: Path) -> None:
    argus = shrink(published("argus"), folds=1)
    plain = replace(argus, members=argus.members[:1], stackers=())
    windowed = replace(plain, windows=spec.Windows(), output=spec.Output(smoothing=SMOOTHING))
    wave = np.sin(np.cumsum(np.linspace(0.05, 2.5, SOUNDSCAPE_SECONDS * WINDOW_RATE))) * 0.3
    samples = ((wave + 0.02 * np.random.default_rng(0).standard_normal(len(wave))) * 32767).astype(np.int16)
    step = WINDOW_SECONDS * WINDOW_RATE
    cuts = [samples[start:start + step] for start in range(0, len(samples), step)]
    for where in ("long", "short"):
        (tmp_path / where / "in" / "test_soundscapes").mkdir(parents=True)
    soundfile.write(tmp_path / "long" / "in" / "test_soundscapes" / "scape_1.wav", samples, WINDOW_RATE)
    ids = [f"scape_1_{WINDOW_SECONDS * (i + 1)}" for i in range(len(cuts))]
    for id, cut in zip(ids, cuts, strict=True):
        soundfile.write(tmp_path / "short" / "in" / "test_soundscapes" / f"{id}.wav", cut, WINDOW_RATE)
    write_sample(tmp_path / "long" / "in", ["row_id", *plain.classes], ids)
    write_sample(tmp_path / "short" / "in", ["row_id", *plain.classes], ids)
    long = run_clean(tmp_path / "long", small_ensembles.build(windowed, tmp_path / "built_long"))
    short = scores(run_clean(tmp_path / "short", small_ensembles.build(plain, tmp_path / "built_short")))
    assert len(ids) == 120 and ids[-1] == "scape_1_600" and list(scores(long)) == ids
    clips = np.stack([short[id] for id in ids])
    padded = np.pad(clips, ((1, 1), (0, 0)))
    weights = np.convolve(np.ones(len(ids)), SMOOTHING, "same")[:, None]
    expected = sum(w * padded[i:i + len(ids)] for i, w in enumerate(SMOOTHING)) / weights
    np.testing.assert_allclose(np.stack(list(scores(long).values())), expected, rtol=2e-6)
    assert np.abs(np.diff(clips, axis=0)).max() > 1e-3


def test_a_window_is_the_same_sound_as_the_cut_saved_as_a_clip(tmp_path: Path) -> None:
    samples = (np.random.default_rng(0).standard_normal(20 * 22_050) * 3000).astype(np.int16)
    soundfile.write(tmp_path / "scape.wav", samples, 22_050)
    soundfile.write(tmp_path / "cut.wav", samples[10 * 22_050:15 * 22_050], 22_050)
    long, cut = (decode.probe(name, tmp_path / f"{name}.wav", [tmp_path]) for name in ("scape", "cut"))
    window = decode.Row(id="scape_15", clip=long, start=10 * 22_050, stop=15 * 22_050)
    front = frontends.build({"preset": "daisukelab"})
    arrays = [front(decode.load(row, front.rate, 900).samples)
              for row in (window, decode.Row(id="cut", clip=cut, start=None, stop=None))]
    assert np.array_equal(*arrays)


# -- at full size
# -------------------------------------------------------------------------------------------------------------


@pytest.mark.whole
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_published_solution_runs_at_full_size(name: str, tmp_path: Path) -> None:
    """Built with random weights (up to 1.3 GB) and run on 24 rendered clips of all formats, up to 20 s, one
    of them silent.
    """
    ensemble = published(name)
    folder = tmp_path / "clips"
    for made in (folder, tmp_path / "in" / "test"):
        made.mkdir(parents=True)
    demo_clips.write_rendered(folder)
    ids = sorted(path.name for path in folder.iterdir())[-24:]
    for id in ids:
        shutil.move(folder / id, tmp_path / "in" / "test" / id)
    label = ensemble.output.format == "label"
    columns = [str(ensemble.output.label_column)] if label else list(ensemble.classes)
    write_sample(
        tmp_path / "in", [ID_COLUMNS.get(name, "fname"), *columns], ids, ensemble.classes[0] if label else "0"
    )
    bundle = small_ensembles.build(ensemble, tmp_path / "built")
    run = run_clean(tmp_path, bundle, seconds=3 * 3600.0)
    shutil.rmtree(tmp_path / "built")
    header, *rows = read_table(run.working / "submission.csv")
    assert [row[0] for row in rows] == ids and header[1:] == columns and run.report["random_weights"]
    assert sum(len(m["nets"]) for m in run.report["members"]) == sum(COUNTS[name][1:3])
    if not label:
        assert all(0 < float(cell) <= 1 for row in rows for cell in row[1:])
