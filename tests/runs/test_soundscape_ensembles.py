"""Two published solutions for soundscapes: what their files hold, and whole runs of them with small nets."""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from builder import assembly, backend_wheels
from kernel import spec
from kernel.inference.recipe import build_recipe
from tests.helpers.bundles import order
from tests.helpers.ensemble_runs import read_scores, run_clean, write_sample
from tests.helpers.graphs import wave_graph
from tests.helpers.small_ensembles import FOLDER, published

SOLUTIONS = ("birdclef2024_1st", "birdclef2026_2nd")
SMALL = re.compile(r'model = "[\w.]+"')


@pytest.mark.parametrize("name", SOLUTIONS)
def test_every_member_takes_what_its_front_end_and_view_give(name: str) -> None:
    ensemble = published(name)
    assert ensemble.profile == "birdclef-cpu90" and ensemble.windows is not None
    frames = {member.name: build_recipe(ensemble, member).cells(20.0) for member in ensemble.members}
    if name == "birdclef2024_1st":
        assert frames == {"b0": 640} and ensemble.members[0].folds == (0, 1, 2, 3, 4, 5)
        assert len(ensemble.classes) == 182 and ensemble.mean == "arithmetic"
    else:
        cnns = dict.fromkeys(("sed", "exp53", "exp72e", "exp79b", "exp88"), 313)
        assert frames == {"perch": 160_000, **cnns, "exp85": 512}
        assert len(ensemble.classes) == 234 and ensemble.mean == "rank"


def test_weights_of_the_second_place_by_class_group() -> None:
    """FlorentinGe/Birdclef2026-2ndplace, ensemble inference script, from line 2797."""
    ensemble = published("birdclef2026_2nd")
    weights = {name: set(column) for name, column in ensemble.weights_by.items()}
    assert weights["perch"] == weights["sed"] == weights["exp53"] == {0.25}
    assert weights["exp72e"] == weights["exp79b"] == {0.20, 0.17} and weights["exp88"] == {0.20, 0.16}
    assert weights["exp85"] == {0.0, 1.25}


def lay(folder: Path, name: str) -> Path:
    """The solution's files with small nets; a stand-in graph of Perch's form lies beside, not attached."""
    for path in FOLDER.glob(f"{name.rpartition('_')[0]}*"):
        (folder / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "classes").mkdir()
    for path in (FOLDER / "classes").iterdir():
        (folder / "classes" / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    toml = folder / f"{name}.toml"
    text = SMALL.sub('model = "test_efficientnet"', toml.read_text(encoding="utf-8"))
    toml.write_text("\n".join(line for line in text.splitlines() if not line.startswith("source = ")))
    (folder / "perch_v2.onnx").write_bytes(wave_graph(300, samples=160_000))
    return toml


@pytest.mark.faults
@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_whole_run_with_small_nets(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_wheels, "collect", lambda back_end, folder: [])
    (tmp_path / "ensemble").mkdir()
    toml = lay(tmp_path / "ensemble", name)
    built = tmp_path / "built"
    request = order(built, ensemble=toml, weights=None, random_weights=True, back_end="onnxruntime")
    assembly.build(request, say=lambda _: None)
    folder = tmp_path / "in" / "test_soundscapes"
    folder.mkdir(parents=True)
    ids = []
    for stem, seconds in (("a_1", 30), ("b_2", 17)):
        noise = 0.1 * np.random.default_rng(seconds).standard_normal(seconds * 32_000)
        soundfile.write(folder / f"{stem}.ogg", noise, 32_000)
        ids += [f"{stem}_{end}" for end in range(5, seconds + 5, 5)]
    classes = spec.load_ensemble(toml).classes
    write_sample(tmp_path / "in", ["row_id", *classes], ids)
    scores = read_scores(run_clean(tmp_path, built / "bundle", seconds=250.0))
    assert list(scores) == ids
    table = np.stack(list(scores.values()))
    assert ((table > 0) & (table <= 1)).all() and np.ptp(table, axis=0).max() > 1e-6
