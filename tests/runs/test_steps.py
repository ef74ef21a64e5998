"""A whole run of a windowed ensemble with steps on members, a group and the output, from TOML and CSV."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from builder import assembly
from kernel import spec
from kernel.errors import SpecError
from kernel.sound import frontends
from tests import soundscapes
from tests.helpers import small_ensembles
from tests.helpers.bundles import order
from tests.helpers.ensemble_runs import read_scores, run_clean, write_sample
from tests.helpers.guard_runs import run_guard

FRONT = frontends.build({"preset": "argus"})
RATE = FRONT.rate  # Hz
FILES = {"scape_S01_20250101_050000": 40.0, "scape_S02_20250101_230000": 25.0, "other": 5.0}
NET = 'family = "simple_cnn"\nparams = {base = 4, channels = 1}\nfrontend = "fe"\n'
PLAIN = f"""
name = "stepped"
classes = ["frog", "toad", "tit", "cricket"]
[windows]
[frontends.fe]
preset = "argus"
[[members]]
name = "perch"
{NET}
[[members]]
name = "b0"
{NET}
[[members]]
name = "b1"
{NET}
"""
HEAD = 'class_groups = "taxonomy.csv"\nmean = "arithmetic"\n'
PERCH = """steps = [
    {kind = "temperature", temperature = {Amphibia = 0.95, default = 1.1}},
    {kind = "site_hour_prior", labels = "labelled.csv", weight = 0.4},
    {kind = "file_top", top = 2, power = 0.4},
]
"""
REST = """
[[groups]]
name = "cnns"
members = ["b0", "b1"]
mean = "arithmetic"
steps = [{kind = "smooth", kernels = "kernels.csv", ends = "repeat"}]
[output]
steps = [
    {kind = "damp_rare", groups = ["Aves", "Insecta"], margin = 0.001, factor = 0.5},
    {file = "my_post.py:halve", scope = "recording"},
]
smoothing = [0.1, 0.8, 0.1]
"""
BESIDE = {
    "taxonomy.csv": "primary_label,scientific_name,class_name\nfrog,F,Amphibia\ntoad,T,Amphibia\ntit,P,Aves\n"
                    "cricket,C,Insecta\nunknown,U,Aves\n",
    "kernels.csv": "group,weights\nAves,0.2 0.6 0.2\ndefault,1 2 1\n",
    "labelled.csv": "file,labels\na_S01_20250101_050000_5,frog tit\na_S01_20250101_050000_10,\n"
                    "b_S02_20250101_230000_5,cricket\n",
    "my_post.py": "import my_shares\n\ndef halve(scores, about):\n    assert len(set(about.files)) == 1\n"
                  "    return scores * my_shares.HALF\n",
    "my_shares.py": "HALF = 0.5\n",
}


def write(folder: Path) -> Path:
    folder.mkdir()
    for file, text in BESIDE.items():
        (folder / file).write_text(text)
    head, *members = PLAIN.split("[[members]]")
    members[0] += PERCH
    stepped = "[[members]]".join([head.replace("[windows]", HEAD + "[windows]"), *members]) + REST
    (folder / "stepped.toml").write_text(stepped)
    return folder / "stepped.toml"


def cut(folder: Path, id: str) -> torch.Tensor:
    """What a net hears of a row, f32[1, C, M, T]."""
    name, _, end = id.rpartition("_")
    wave, _ = soundfile.read(folder / f"{name}.wav", dtype="float32")
    return torch.from_numpy(FRONT(wave[(int(end) - 5) * RATE : int(end) * RATE])[None])


def make_recordings(folder: Path) -> list[str]:
    """Ids of the rows of rendered recordings; those of one file do not stand in time order."""
    ids = []
    (folder / "in" / "test_soundscapes").mkdir(parents=True)
    for i, (name, seconds) in enumerate(FILES.items()):
        noise = np.random.default_rng(i).standard_normal(int(seconds * RATE))
        tone = np.sin(np.cumsum(np.linspace(0.02 + i / 9, 0.8, len(noise))))
        soundfile.write(folder / "in" / "test_soundscapes" / f"{name}.wav", 0.3 * tone + 0.02 * noise, RATE)
        ids += [f"{name}_{5 * (k + 1)}" for k in range(int(-(-seconds // 5)))][::-1]
    write_sample(folder / "in", ["row_id", "frog", "toad", "tit", "cricket"], ids)
    return ids


def by_hand(raw: dict[str, np.ndarray], ids: list[str]) -> np.ndarray:
    """The finished table of the members' raw ones, whose rows are in time order."""
    groups = {"Amphibia": ["frog", "toad"], "Aves": ["tit"], "Insecta": ["cricket"]}
    about = soundscapes.sheet(len(ids), 4, names=["frog", "toad", "tit", "cricket"], groups=groups,
                              files=[id.rpartition("_")[0] for id in ids])
    perch = soundscapes.run(raw["perch"], [
        {"kind": "temperature", "temperature": [0.95, 0.95, 1.1, 1.1]},
        {"kind": "site_hour_prior", "labels": BESIDE["labelled.csv"]},
        {"kind": "file_top", "top": 2, "power": 0.4}], about)
    cnns = soundscapes.run((raw["b0"] + raw["b1"]) / 2, [
        {"kind": "smooth", "weights": [0.2, 0.6, 0.2], "ends": "repeat", "groups": ["Aves"]},
        {"kind": "smooth", "weights": [1.0, 2.0, 1.0], "ends": "repeat", "groups": ["Amphibia", "Insecta"]},
    ], about)
    damped = soundscapes.run((perch + cnns) / 2, [
        {"kind": "damp_rare", "groups": ["Aves", "Insecta"], "margin": 0.001, "factor": 0.5}], about)
    return soundscapes.run(damped / 2, [{"kind": "smooth", "weights": [0.1, 0.8, 0.1]}], about)


def test_a_run_with_steps_everywhere_equals_the_steps_by_hand(tmp_path: Path) -> None:
    toml = write(tmp_path / "toml")
    ensemble = spec.load_ensemble(toml)
    nets = small_ensembles.write_weights(ensemble, tmp_path / "weights")
    said: list[str] = []
    assembly.build(order(tmp_path / "built", ensemble=toml, weights=tmp_path / "weights"), say=said.append)
    assert "7 steps on scores fit; complete members only, because of output.steps[0]" in said
    ids = make_recordings(tmp_path)
    run = run_clean(tmp_path, tmp_path / "built" / "bundle")
    ordered = sorted(ids, key=lambda id: (id.rpartition("_")[0], int(id.rpartition("_")[2])))
    cuts = [cut(tmp_path / "in" / "test_soundscapes", id) for id in ordered]
    with torch.inference_mode():
        tables = {name: np.concatenate([nets[f"{name}.0"](x).double().sigmoid().numpy() for x in cuts])
                  for name in ("perch", "b0", "b1")}
    wanted = by_hand(tables, ordered)
    np.testing.assert_allclose(np.stack([read_scores(run)[id] for id in ordered]), wanted, atol=2e-6)
    assert list(read_scores(run)) == ids and np.ptp(wanted, axis=0).max() > 1e-3


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("my_post.py", "def halve(x, about):\n    return x[:1]\n", r"output.steps\[1\]: .*gave float64"),
        ("my_post.py", "def halve(x, about):\n    return x * 2\n", r"steps\[1\]: gave 0 to .*no scores"),
        ("my_post.py", "def half(x, about):\n    return x\n", "no function 'halve'; did you mean 'half'"),
        ("my_post.py", "import nothing_here\n", "imports 'nothing_here', which Kaggle's notebooks lack"),
        ("my_post.py", "import random\ndef halve(scores, about):\n    return scores * random.random()\n",
         r"output.steps\[1\]: gives other scores a second time"),
        ("taxonomy.csv", "class,group\nfrog,Aves\n", "class_groups = 'taxonomy.csv': no line for 3 classes"),
        ("taxonomy.csv", "name,taxon\nfrog,Aves\n", "needs the columns class and group"),
        ("kernels.csv", "group,weights\nAves,0.2 0.6\n", r"cnns.steps\[0\].kernels.Aves: .*give an odd"),
        ("kernels.csv", "group,weights\nFish,1 2 1\n", r"cnns.steps\[0\]..*'Fish' is none of class_group"),
        ("labelled.csv", "file,labels\na_S01_20250101_050000_5,wolf\n", r"perch.steps\[1\]..*'wolf' is no"),
        ("labelled.csv", "file,labels\nsomewhere,frog\n", "fits no name, such as 'somewhere'"),
        ("labelled.csv", "file,labels\na,b,c\n", "labels: line 2 has 3 cells, the header 2"),
    ],
)
def test_the_build_refuses_steps_and_files_that_do_not_fit(
    tmp_path: Path, file: str, text: str, message: str
) -> None:
    toml = write(tmp_path / "toml")
    (tmp_path / "toml" / file).write_text(text)
    with pytest.raises(SpecError, match=message):
        assembly.build(order(tmp_path / "built", ensemble=toml, random_weights=True), say=lambda text: None)
    assert not (tmp_path / "built").exists()


@pytest.mark.faults
@pytest.mark.fault(
    row=101,
    injection="a step of the user's own that ends the process in a run, not at the build",
    outcome="after two deaths it is left out and named; every row is scored",
)
def test_a_step_that_ends_two_engines_is_left_out(tmp_path: Path) -> None:
    toml = write(tmp_path / "toml")
    (tmp_path / "toml" / "my_post.py").write_text(
        "import os\ndef halve(scores, about):\n    return os.abort() if 'other' in about.files else scores\n")
    assembly.build(order(tmp_path / "built", ensemble=toml, random_weights=True), say=lambda text: None)
    make_recordings(tmp_path)
    run = run_guard(tmp_path, tmp_path / "built" / "bundle", "--device", "cpu", seconds=150.0)
    told = {fault["where"]: fault["message"] for fault in run.report["faults"]
            if fault["code"] == "StepFailed"}
    assert told == {"output.steps[1]": "the engine died or hung in it twice; the step is left out"}
    assert run.report["prior_rows"] == 0 and run.report["partial_rows"] == run.report["rows"]


def test_a_csv_file_that_is_missing_is_named(tmp_path: Path) -> None:
    toml = write(tmp_path / "toml")
    (tmp_path / "toml" / "kernels.csv").unlink()
    with pytest.raises(SpecError, match=r"groups\[0\].steps\[0\].kernels = 'kernels.csv': .* cannot be read"):
        spec.load_ensemble(toml)
