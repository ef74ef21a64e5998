"""docs/soundscapes.md: its files build and its commands run as they are printed, from another folder."""
from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import build_dataset
from builder import backend_wheels, random_weights
from kernel import models
from kernel.spec import load_ensemble
from kernel.spec.ensemble import Ensemble
from tests.helpers import REPOSITORY
from tests.helpers.graphs import wave_graph

PAGE = (REPOSITORY / "docs" / "soundscapes.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`(my_birds/[\w.]+)`[^\n]*\n\n```\w*\n(.*?)```", PAGE, re.DOTALL))
SEVEN = re.findall(r"```toml\n(.*?)```", PAGE.partition("## Seven lines")[2], re.DOTALL)[0]
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("python ") and "out" in line]
SMALL = "test_efficientnet"  # in place of the B0, so that the test takes seconds


def lay(folder: Path) -> Ensemble:
    """The page's files, checkpoints as PyTorch writes them, a graph of Perch's form, two recordings."""
    (folder / "my_birds" / "weights").mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text.replace("tf_efficientnet_b0.ns_jft_in1k", SMALL), encoding="utf-8")
    ensemble = load_ensemble(folder / "my_birds" / "birds.toml")
    member = ensemble.members[0]
    for fold in member.folds:
        torch.manual_seed(fold)
        net = models.build(member.family, dict(member.params), len(ensemble.classes))
        state = random_weights.draw_state(net, member.family, member.params)
        torch.save({key: value.clone() for key, value in state.items()},
                   folder / "my_birds" / "weights" / member.weights_file(fold))
    (folder / "my_birds" / "weights" / "perch.onnx").write_bytes(wave_graph(5, samples=160_000))
    (folder / "my_soundscapes").mkdir()
    for name, seconds in (("a_1", 20), ("b_2", 12)):
        noise = 0.1 * np.random.default_rng(seconds).standard_normal(seconds * 32_000)
        soundfile.write(folder / "my_soundscapes" / f"{name}.ogg", noise, 32_000)
    return ensemble


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the page's first command was given; wheels are not fetched."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("birds")
    lay(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(backend_wheels, "collect", lambda back_end, folder: [])
        assert build_dataset.main(shlex.split(COMMANDS[0])[2:]) == 0
    return folder


def test_the_seven_lines_stand_in_the_example() -> None:
    assert len(SEVEN.splitlines()) == 7
    seven, whole = tomllib.loads(SEVEN), tomllib.loads(FILES["my_birds/birds.toml"])
    assert {key: whole[key] for key in seven} == seven


def test_the_printed_ensemble_builds(built: Path) -> None:
    assert len(COMMANDS) == 2
    ensemble = load_ensemble(built / "my_birds" / "birds.toml")
    assert [member.name for member in ensemble.members] == ["b0", "perch"]
    assert (built / "out/bundle/manifest.json").is_file() and (built / "out/push/infer_kernel.py").is_file()


@pytest.mark.faults
def test_the_printed_rehearsal_passes(built: Path) -> None:
    done = subprocess.run(
        [sys.executable, *shlex.split(COMMANDS[1])[1:]], capture_output=True, text=True, timeout=250,
        check=False, cwd=built,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "forecast for 7200 rows, 10.00 h of audio" in done.stdout
    rows = (built / "out/rehearsal/submission.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 + 3 and rows[1].startswith("a_1_5,")
