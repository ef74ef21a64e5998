"""A whole run of nets with classes of their own: from TOML, CSV files and weights to submission.csv."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from builder import assembly
from kernel import spec
from kernel.errors import ModelLoadFailed
from kernel.sound import frontends
from tests.helpers import small_ensembles
from tests.helpers.bundles import order
from tests.helpers.ensemble_runs import make_input, read_scores, run_clean
from tests.helpers.guard_runs import run_guard

LABELS = [f"species {i}" for i in range(9)]
TOML = """
name = "mine"
classes = ["frog", "tit", "thrush", "cricket"]
mean = "arithmetic"
weights_by = "groups.csv"
[frontends.fe]
preset = "argus"
[[members]]
name = "own"
family = "simple_cnn"
params = {base = 4, channels = 1}
frontend = "fe"
[[members]]
name = "theirs"
family = "simple_cnn"
params = {base = 4, channels = 1}
frontend = "fe"
folds = [0, 1]
classes_from = "labels.txt"
classes_map = "map.csv"
proxies = "max"
proxy_scores = "logits"
"""
MAP = "label,class,weight\nspecies 3,frog,1\nspecies 7,frog,0.5\nspecies 1,tit,\nspecies 1,thrush,1\n"
GROUPS = "class,group,own,theirs\n,birds,1,3\ntit,birds,,\nthrush,birds,2,\n"


def write(folder: Path, toml: str = TOML) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "labels.txt").write_text("\n".join(LABELS))
    (folder / "map.csv").write_text(MAP)
    (folder / "groups.csv").write_text(GROUPS)
    (folder / "mine.toml").write_text(toml)
    return folder / "mine.toml"


def build(toml: Path, out: Path, weights: Path | None) -> list[str]:
    """What the build says; the bundle lies in `out`."""
    said: list[str] = []
    wanted = order(out, ensemble=toml, weights=weights, random_weights=weights is None)
    assembly.build(wanted, say=said.append)
    return said


@torch.inference_mode()
def by_hand(nets: dict[str, torch.nn.Module], x: torch.Tensor) -> np.ndarray:
    """f64[4]: a member with our classes, two folds of nine labels each, and the weights of groups.csv."""
    own = nets["own.0"](x)[0].double().sigmoid().numpy()
    folds = []
    for fold in (0, 1):
        logits = nets[f"theirs.{fold}"](x)[0].double().numpy()
        frog = max(logits[3], logits[7] + np.log(0.5))
        folds.append(1 / (1 + np.exp(-np.array([frog, logits[1], logits[1]]))))
    frog, tit, thrush = np.sqrt(folds[0] * folds[1])
    return np.array([(own[0] + frog) / 2, (own[1] + 3 * tit) / 4, (2 * own[2] + 3 * thrush) / 5, own[3]])


def test_from_csv_files_to_a_submission_by_hand(tmp_path: Path) -> None:
    toml = write(tmp_path / "toml")
    ensemble = spec.load_ensemble(toml)
    nets = small_ensembles.write_weights(ensemble, tmp_path / "weights")
    said = build(toml, tmp_path / "built", tmp_path / "weights")
    assert "member theirs: 3 of its 9 labels speak for 3 of 4 classes; the others decide the rest" in said
    ids = make_input(tmp_path, ensemble, [0.4, 1.5, 3.1])
    run = run_clean(tmp_path, tmp_path / "built" / "bundle")
    found = read_scores(run)
    front = frontends.build({"preset": "argus"})
    for id in ids:
        wave, _ = soundfile.read(tmp_path / "in" / "test" / id, dtype="float32")
        x = torch.from_numpy(front(wave)[None])
        np.testing.assert_allclose(found[id], by_hand(nets, x), atol=1e-5)
    own, theirs = run.report["members"]
    assert "knows" not in own and own["weights"] == [1.0, 2.0]
    assert theirs["knows"] == [3, 4] and theirs["weights"] == [1.0, 3.0] and "missing" not in theirs
    assert "knows 3 of 4 classes" in run.out
    page = (run.working / "report.html").read_text()
    assert "knows 3 of 4 classes, others decide the rest" in page and "1 to 3" in page


def test_the_files_are_part_of_the_bundles_hash(tmp_path: Path) -> None:
    toml = write(tmp_path / "toml")
    build(toml, tmp_path / "one", None)
    first = (tmp_path / "one" / "bundle" / "manifest.json").read_bytes()
    for name, text in (("map.csv", MAP.replace("0.5", "0.25")), ("groups.csv", GROUPS.replace(",3", ",2"))):
        write(tmp_path / "toml")
        (toml.parent / name).write_text(text)
        build(toml, tmp_path / "two", None)
        assert (tmp_path / "two" / "bundle" / "manifest.json").read_bytes() != first, name


@pytest.mark.fault(
    row=104,
    injection="a class map under which no member knows one of the classes",
    outcome="the build names it; the prior stands there, and the run is degraded (exit code 1 with --strict)",
)
def test_a_class_that_nobody_knows_holds_the_prior_and_the_run_is_degraded(tmp_path: Path) -> None:
    text = TOML.replace('weights_by = "groups.csv"\n', "prior = [0.4, 0.3, 0.2, 0.125]\n")
    before, _, rest = text.partition("[[members]]")
    toml = write(tmp_path / "toml", before + "[[members]]" + rest.partition("[[members]]")[2])
    said = build(toml, tmp_path / "built", None)
    assert any(line.startswith("NO MEMBER KNOWS 1 of 4 classes: cricket; the prior") for line in said)
    ids = make_input(tmp_path, spec.load_ensemble(toml), [0.4, 1.5])
    run = run_guard(tmp_path, tmp_path / "built" / "bundle", "--device", "cpu", "--strict", seconds=100.0)
    assert run.code == 1 and run.report["fault_counts"] == {"ClassesUnknown": 1}
    assert "no member knows 1 of 4 classes (cricket): the prior stands there" in run.out
    assert run.report["partial_rows"] == run.report["prior_rows"] == 0
    for id in ids:
        assert read_scores(run)[id][3] == 0.125 and (read_scores(run)[id][:3] != [0.4, 0.3, 0.2]).all()


def test_a_net_with_another_number_of_outputs_is_refused_by_the_build(tmp_path: Path) -> None:
    toml = write(tmp_path / "toml")
    small_ensembles.write_weights(spec.load_ensemble(toml), tmp_path / "weights")
    (toml.parent / "labels.txt").write_text("\n".join(["label", *LABELS]))
    with pytest.raises(ModelLoadFailed, match=r"theirs") as raised:
        build(toml, tmp_path / "built", tmp_path / "weights")
    assert "fc.5.weight is [9, 8], the net has [10, 8]" in str(raised.value)
    assert not (tmp_path / "built").exists()
