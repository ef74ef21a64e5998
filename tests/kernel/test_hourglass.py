"""The command `hourglass`: the scripts' own options under one name, from the repository and from a wheel."""
from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import build_dataset
import hourglass
import train
from builder import code_wheel
from kernel.rehearsal import options
from tests.helpers import REPOSITORY
from tests.helpers.bundles import built_once
from tests.helpers.guard_runs import run_guard

PARSERS: dict[str, Any] = {
    "build": build_dataset.make_parser,
    "rehearse": options.make_parser,
    "score": hourglass.make_score_parser,
    "train": train.make_parser,
    "upload": build_dataset.make_parser,
}


def lay_clips(folder: Path, names: tuple[str, ...] = ("007.wav", "b,c.wav")) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        wave = 0.1 * np.random.default_rng(number).standard_normal(22_050)
        soundfile.write(folder / name, wave, 22_050)
    return folder


@pytest.mark.parametrize("command", hourglass.COMMANDS)
def test_every_command_has_its_scripts_options_and_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        hourglass.main([command, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and text.startswith(f"usage: hourglass {command}")
    parser = PARSERS[command](f"hourglass {command}")
    shown = set(re.findall(r"(?<![\w-])--[a-z-]+", text.partition("examples:")[0]))
    assert shown >= {name for action in parser._actions for name in action.option_strings
                     if name.startswith("--") and action.help != "==SUPPRESS=="}
    examples = [line.split() for line in text.partition("examples:\n")[2].splitlines()]
    assert examples and all(words[:2] == ["hourglass", command] for words in examples)
    for words in examples:
        given = words[2:]
        if command == "upload" and given[0] == "out":
            given = ["--upload", *given]
        parser.parse_args(given)


def test_the_command_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        hourglass.main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", told, re.MULTILINE) for name in hourglass.COMMANDS)
    for words, reason in (([], "required: COMMAND"), (["biuld"], "invalid choice: 'biuld'")):
        with pytest.raises(SystemExit) as ended:
            hourglass.main(words)
        assert ended.value.code == 2 and reason in capsys.readouterr().err


@pytest.mark.parametrize("command", ["build", "train", "rehearse", "score"])
def test_a_wrong_option_is_told_under_the_name_that_was_typed(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        hourglass.main([command, "x.toml", "--nope"])
    assert ended.value.code == 2 and f"hourglass {command}: error:" in capsys.readouterr().err


def test_a_toml_that_comes_with_it_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["ensembles/default.toml", "--out", "o", "ensembles/none.toml", "build_dataset.py", "x.toml"]
    found = hourglass.find_packaged(words)
    assert found == [str(REPOSITORY / "ensembles/default.toml"), *words[1:]]
    assert "taking the one that comes with Hourglass" in capsys.readouterr().out
    (tmp_path / "ensembles").mkdir()
    (tmp_path / "ensembles" / "default.toml").write_text("mine")
    assert hourglass.find_packaged(words) == words, "one's own comes first"
    assert hourglass.find_packaged(["ensembles/../constraints.toml"]) == ["ensembles/../constraints.toml"]


def test_uploading_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(build_dataset, "run", lambda words, prog: given.append(words) or 0)
    for words in (["out2", "--owner", "me"], [], ["--owner", "me"]):
        assert hourglass.main(["upload", *words]) == 0
    assert given == [["--upload", "out2", "--owner", "me"], ["--upload", "out"],
                     ["--upload", "out", "--owner", "me"]]


def test_the_scores_are_the_kernels_bytes(tmp_path: Path) -> None:
    """hourglass score and the guarded kernel write the same file."""
    (tmp_path / "in").mkdir()
    clips = lay_clips(tmp_path / "in" / "test")
    names = sorted(path.name for path in clips.iterdir())
    with open(tmp_path / "in" / "sample_submission.csv", "w", newline="") as file:
        csv.writer(file).writerows([["fname", "bark", "meow", "hiss"], *([name, 0, 0, 0] for name in names)])
    run = run_guard(tmp_path, built_once() / "bundle", "--device", "cpu", seconds=100)
    scores = tmp_path / "new" / "scores.csv"
    sample = str(tmp_path / "in" / "sample_submission.csv")
    words = [str(built_once()), str(clips), "--names", sample, "--out", str(scores), "--device", "cpu"]
    assert hourglass.main(["score", *words]) == 0
    assert scores.read_text(encoding="utf-8") == run.submission


def test_what_cannot_be_scored_ends_with_its_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = str(tmp_path / "scores.csv")
    assert hourglass.main(["score", str(tmp_path), str(tmp_path), "--out", scores]) == 1
    assert "BundleMissing: " in capsys.readouterr().err and not Path(scores).exists()
    words = [str(built_once()), str(tmp_path), "--names", str(tmp_path / "none.csv"), "--out", scores]
    assert hourglass.main(["score", *words]) == 1 and "none.csv" in capsys.readouterr().err


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of `pip install .`, laid out as pip does it; built from what git knows."""
    place = tmp_path_factory.mktemp("installed")
    names = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                           capture_output=True, text=True, cwd=REPOSITORY, check=False)
    if names.returncode:
        pytest.skip("not a git repository")
    for name in filter(None, names.stdout.split("\0")):
        if (REPOSITORY / name).is_file() and not name.startswith(("docs/", "tests/")):
            (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, place / "source" / name)
    words = "--quiet --no-deps --no-index --no-build-isolation --no-compile --disable-pip-version-check"
    pip = [sys.executable, "-m", "pip", "install", *words.split(), "--target", str(place / "site"), "."]
    done = subprocess.run(pip, cwd=place / "source", capture_output=True, text=True, check=False)
    if "No module named 'setuptools'" in done.stderr + done.stdout or "BackendUnavailable" in done.stderr:
        pytest.skip("no setuptools in this environment, and no network to fetch it")
    assert done.returncode == 0, done.stderr
    return place / "site"


def call(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`hourglass` of the installation, in a folder that has nothing to do with the repository."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    return subprocess.run([sys.executable, str(installed / "bin" / "hourglass"), *words], cwd=folder,
                          env=environment, capture_output=True, text=True, timeout=250, check=False)


@pytest.mark.faults
def test_a_wheel_carries_what_every_command_needs(installed: Path, tmp_path: Path) -> None:
    """Build, score and rehearse from a wheel alone: its bundle holds the repository's own code."""
    lay_clips(tmp_path / "my_clips")
    done = call(installed, tmp_path, "build", "ensembles/default.toml", "--out", "out")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next((tmp_path / "out" / "bundle").glob("*.whl"))) as wheel:
        ours = code_wheel.kernel_files(REPOSITORY)
        assert {name: wheel.read(name) for name in wheel.namelist() if name.endswith(".py")} == ours
    done = call(installed, tmp_path, "score", "out/bundle", "my_clips", "--first", "1", "--device", "cpu")
    assert done.returncode == 0 and "scores.csv: 2 rows, 80 columns" in done.stdout, done.stderr
    done = call(installed, tmp_path, "rehearse", "--bundle", "out/bundle", "--clips", "my_clips",
                "--limits", "fat2019", "--device", "cpu")
    assert done.returncode == 0 and "PASS" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "out" / "rehearsal" / "report.html").is_file()


@pytest.mark.faults
def test_a_packaged_recipe_writes_nothing_into_the_installation(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    before = sorted(installed.rglob("*.toml"))
    done = call(installed, tmp_path, "train", "training/recipes/default.toml", "--data", "clips")
    assert done.returncode == 2 and "train.py: " in done.stderr, "an empty folder is no data"
    assert sorted(installed.rglob("*.toml")) == before
