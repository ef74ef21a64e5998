"""The published ensembles: what their files hold, and each of them at full size.

`make whole` (marker `whole`) builds and runs them at full size; the other tests build small nets in the
published structure.
"""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from builder import ensemble_docs
from kernel import limits, models, spec
from kernel.errors import SpecError
from kernel.inference import views
from kernel.inference.recipe import build_recipe
from tests.helpers import small_ensembles
from tests.helpers.ensemble_runs import need_timm, run_clean, sample_columns, write_sample
from tests.helpers.invariants import read_table
from tests.helpers.small_ensembles import FOLDER, published, shrink
from training import demo_clips

ID_COLUMNS = {"hackerearth": "filename", "erc2019": "File"}
# Classes, nets of members, nets of stackers, mean, mean over folds. Source: the authors' repositories.
COUNTS = {
    "argus": (80, 35, 15, "geometric", "geometric"), "qrfaction": (80, 60, 10, "arithmetic", "arithmetic"),
    "ex4sperans": (80, 55, 0, "arithmetic", "arithmetic"), "erc2019": (6, 4, 0, "arithmetic", "geometric"),
    "viel": (80, 75, 0, "minmax", "arithmetic"), "shirogane": (80, 15, 0, "arithmetic", "arithmetic"),
    "hackerearth": (7, 30, 0, "vote", "arithmetic"), "filipmu": (80, 3, 0, "arithmetic", "geometric"),
    "simongrest": (80, 12, 0, "arithmetic", "arithmetic"), "jeong2018": (41, 15, 0, "geometric", "geometric"),
}
SOLUTIONS = tuple(COUNTS)
# Trainable parameters of each member and stacker in order. Source: counted in the authors' nets
# (tests/goldens/state_dicts).
PARAMETERS = {
    "argus": [17_326_950, 17_326_950, 22_054_246, 17_326_950, 17_326_950, 16_793_587, 16_793_507,
              1_180_101, 1_454_746, 1_768_626],
    "qrfaction": [5_226_168, 5_226_168, 5_616_448, 21_143_600, 12_100_536, 5_584_056, 6_960],
    "erc2019": [4_754_759, 6_701_575, 26_110_471, 8_857_791],
    "simongrest": [20_898_247, 20_898_247],
    "filipmu": [21_853_584, 11_745_424, 21_853_584],
}


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
    ensemble = published(name)
    counts = []
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
        if part.features == "concat":
            return torch.zeros(2, n * classes)
        return torch.zeros(2, classes, n + bool(part.average_weights))
    inputs = {}
    for key, stage in build_recipe(ensemble, part).stages.items():
        frames = (stage.view.fixed or 320) if stage.fe.time else stage.fe.fixed
        inputs[key] = torch.zeros(2, *stage.finish.shape(frames))
    return inputs["x"] if set(inputs) == {"x"} else inputs


def test_weights_and_orders_of_the_stacked_solutions() -> None:
    argus = published("argus")
    qrfaction = published("qrfaction")
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


@pytest.mark.whole
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_published_solution_runs_at_full_size(name: str, tmp_path: Path) -> None:
    """Random weights (up to 1.3 GB), 24 rendered clips of all formats, up to 20 s, one of them silent."""
    ensemble = published(name)
    folder = tmp_path / "clips"
    for made in (folder, tmp_path / "in" / "test"):
        made.mkdir(parents=True)
    demo_clips.write_rendered(folder)
    ids = sorted(path.name for path in folder.iterdir())[-24:]
    for id in ids:
        shutil.move(folder / id, tmp_path / "in" / "test" / id)
    columns, cell = sample_columns(ensemble)
    write_sample(tmp_path / "in", [ID_COLUMNS.get(name, "fname"), *columns], ids, cell)
    bundle = small_ensembles.build(ensemble, tmp_path / "built")
    run = run_clean(tmp_path, bundle, seconds=3 * 3600.0)
    shutil.rmtree(tmp_path / "built")
    header, *rows = read_table(run.working / "submission.csv")
    assert [row[0] for row in rows] == ids and header[1:] == columns and run.report["random_weights"]
    assert sum(len(m["nets"]) for m in run.report["members"]) == sum(COUNTS[name][1:3])
    if ensemble.output.format != "label":
        assert all(0 < float(cell) <= 1 for row in rows for cell in row[1:])
