"""docs/training.md: its tables are those of the code, and its example runs as it is printed."""
from __future__ import annotations

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import build_dataset
import train as train_command
from builder import training_docs
from kernel.errors import SpecError
from kernel.spec import load_ensemble
from tests.helpers import REPOSITORY
from training import class_list, data, defaults, folds, recipe

PAGE = training_docs.PAGE.read_text(encoding="utf-8")
EXAMPLE = PAGE.partition("## Your own table")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```\w*\n(.*?)```", EXAMPLE, re.DOTALL)
RECIPE = 'name = "own"\nclasses = "classes.txt"\nmembers = []\n'


def lay_example(folder: Path) -> list[str]:
    """The files of the page, a clip for each row of its table; the page's commands."""
    _, table, classes, toml, commands = BLOCKS
    (folder / "my_data" / "audio").mkdir(parents=True)
    for name, text in (("train.csv", table), ("classes.txt", classes), ("recipe.toml", toml)):
        (folder / "my_data" / name).write_text(text, encoding="utf-8")
    for number, row in enumerate(csv.DictReader(table.splitlines())):
        wave = 0.1 * np.random.default_rng(number).standard_normal(11_025)
        soundfile.write(folder / "my_data" / "audio" / row["file"], wave, 22_050)
    return commands.splitlines()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the page's first two commands were given."""
    folder = tmp_path_factory.mktemp("example")
    training, building, _ = lay_example(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.stdout", open(folder / "said.txt", "w", encoding="utf-8"))
        assert train_command.main(shlex.split(training)[2:]) == 0
        assert build_dataset.main(shlex.split(building)[2:]) == 0
        sys.stdout.close()
    return folder


def test_the_page_on_training_is_up_to_date() -> None:
    assert training_docs.fill(PAGE) == PAGE, "run: python -m builder.training_docs"


def test_the_printed_example_trains_and_builds(trained: Path) -> None:
    ensemble = load_ensemble(trained / "out/my_sounds/ensembles/my_sounds.toml")
    assert ensemble.classes == ("dog", "rain", "bell") and ensemble.profile == "code-cpu"
    assert ensemble.members[0].folds == (0, 1)
    assert (trained / "out/bundle/manifest.json").is_file()
    with np.load(trained / "out/my_sounds/oof.npz") as arrays:
        numbers, targets = arrays["folds"], arrays["targets"]
    assert numbers.tolist() == [0] * 6 + [1] * 6
    assert targets[:4].tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_the_run_names_its_defaults_and_the_next_command(trained: Path) -> None:
    said = (trained / "said.txt").read_text(encoding="utf-8").splitlines()
    assert BLOCKS[-1].splitlines()[1] in said
    named = "\n".join(line for line in said if line.startswith("default "))
    assert 'loss = { kind = "bce" }' in named and 'mean = "geometric"' in named
    assert "classes" not in named and "[data]" not in named and "profile" not in named
    assert any(line.startswith("12 clips of 3 classes below") for line in said)


@pytest.mark.faults
def test_the_printed_rehearsal_passes(trained: Path) -> None:
    words = shlex.split(BLOCKS[-1].splitlines()[2])
    done = subprocess.run(
        [sys.executable, *words[1:]], capture_output=True, text=True, timeout=110, cwd=trained, check=False
    )
    assert done.returncode == 0 and "\nPASS: submission.csv" in done.stdout, done.stdout + done.stderr


def test_defaults_that_are_not_the_users_are_named(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('name = "own"\n[[members]]\nname = "a"\nfamily = "simple_cnn"\n'
                                       '[[members]]\nname = "b"\nfamily = "simple_cnn"\ntrain.epochs = 2\n')
    plan = recipe.load_recipe(tmp_path / "own.toml")
    lines = defaults.name_defaults(plan)
    assert "80 of FAT2019" in lines[0] and "classes =" in lines[0]
    assert any(line.startswith('default [data]: adapter = "labelled"') for line in lines)
    assert "default [folds]: count = 5" in lines
    assert any(line.startswith("default [train] of a: epochs = 30") for line in lines)
    assert any(line.startswith("default [train] of b: batch = 32") for line in lines)
    assert not any("balance = " in line for line in lines)
    assert len(class_list.read_classes(plan, tmp_path / "own.toml")) == 80


def test_every_recipe_of_the_repository_can_name_its_defaults() -> None:
    for path in (REPOSITORY / "training" / "recipes").glob("*.toml"):
        for plan in (recipe.load_recipe(path), recipe.load_recipe(path).scaled_small()):
            assert all(line.startswith("default ") for line in defaults.name_defaults(plan)), path


@pytest.mark.parametrize(
    "content, reason",
    [("dog\n", "1 names"), ("dog\ncat\ndog\n", "'dog' stands there twice"), (None, "cannot be read")],
)
def test_a_class_file_that_is_none_is_named(tmp_path: Path, content: str | None, reason: str) -> None:
    (tmp_path / "own.toml").write_text(RECIPE)
    if content is not None:
        (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(SpecError, match=f"classes.*{reason}"):
        class_list.read_classes(recipe.load_recipe(tmp_path / "own.toml"), tmp_path / "own.toml")


def test_a_class_file_of_another_editor_is_read(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(RECIPE)
    (tmp_path / "classes.txt").write_bytes("\ufeffdog\r\ncat\r\n".encode())
    plan = recipe.load_recipe(tmp_path / "own.toml")
    assert class_list.read_classes(plan, tmp_path / "own.toml") == ("dog", "cat")


def write_table(folder: Path, *rows: str) -> Path:
    (folder / "labels.csv").write_text("fname,labels,part\n" + "".join(row + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    "rows, reason",
    [
        (["a.wav,dog;cat,1"], r"'dog;cat' of row 0 is no class; it holds several: write separator = ';'"),
        (["a.wav,cat,1", "b.wav,dgo,1", "c.wav,bird,1"],
         r"'dgo' of row 1 is no class \(nor are 1 others\); did you mean 'dog'\?.*names 2 \(dog, cat"),
        ([], "no row below the header"),
    ],
)
def test_wrong_labels_get_a_sentence(tmp_path: Path, rows: list[str], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        data.read_clips({"adapter": "csv"}, write_table(tmp_path, *rows), ("dog", "cat"))


def test_a_long_list_of_classes_is_not_printed(tmp_path: Path) -> None:
    many = tuple(f"class{i}" for i in range(80))
    with pytest.raises(SpecError) as caught:
        data.read_clips({"adapter": "csv"}, write_table(tmp_path, "a.wav,zebra,1"), many)
    assert len(str(caught.value)) < 300 and "names 80" in str(caught.value)


@pytest.mark.parametrize("parts, fixed", [(("1", "2", ""), [0, 1, -1]), (("0", "1", ""), [0, 1, -1])])
def test_folds_of_a_column_count_from_its_first(
    tmp_path: Path, parts: tuple[str, ...], fixed: list[int]
) -> None:
    rows = [f"{i}.wav,dog,{part}" for i, part in enumerate(parts)]
    given = {"adapter": "csv", "fold_column": "part"}
    assert data.read_clips(given, write_table(tmp_path, *rows), ("dog", "cat")).fixed.tolist() == fixed
    with pytest.raises(SpecError, match="part: '-1' of row 0"):
        data.read_clips(given, write_table(tmp_path, "0.wav,dog,-1"), ("dog", "cat"))


def test_a_table_without_its_clips_is_refused_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_example(tmp_path)
    own = tmp_path / "my_data"
    (own / "recipe.toml").write_text(BLOCKS[3].replace('"audio"', '"nowhere"'))
    words = [str(own / "recipe.toml"), "--data", str(own), "--out", str(tmp_path / "run")]
    assert train_command.main(words) == 2
    assert "none of the 12 clips of the table is there, e.g. 'a1.wav'" in capsys.readouterr().err
    (own / "recipe.toml").write_text(BLOCKS[3].replace("count = 2", "count = 2\nrun = [5]"))
    assert train_command.main(words) == 2
    assert "fold 5: no clip to measure it on" in capsys.readouterr().err


@pytest.mark.parametrize(
    "old, new, reason",
    [
        ('separator = ";"', "separator = 3", "data.separator: expected text, got 3"),
        ("count = 2", 'count = "two"', "folds.count: expected a whole number, got 'two'"),
        ("count = 2", "count = 2\nrun = 1", "folds.run: expected a list of whole numbers from 0, got 1"),
        ('kind = "mixup", ', 'kind = "mixup", alpha = "much", ', "alpha: expected a number, got 'much'"),
        ('fold_column = "part"', 'fold_column = "file"', "file: 'a1.wav' of row 0; give whole numbers"),
    ],
)
def test_a_value_of_another_kind_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, reason: str
) -> None:
    lay_example(tmp_path)
    own = tmp_path / "my_data"
    assert old in BLOCKS[3]
    (own / "recipe.toml").write_text(BLOCKS[3].replace(old, new, 1))
    words = [str(own / "recipe.toml"), "--data", str(own), "--out", str(tmp_path / "o")]
    assert train_command.main(words) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"", b"fname,labels\na.wav,\xff\n", b"fname,labels\na.wav,dog\na,b,c,d\n"]
)
def test_a_table_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(SpecError, match=r"labels.csv: no CSV in UTF-8 \(.+\); save it as one"):
        data.read_clips({"adapter": "csv"}, tmp_path, ("dog", "cat"))


def test_a_group_in_two_prescribed_folds_is_named(tmp_path: Path) -> None:
    given = {"adapter": "csv", "fold_column": "part", "group_column": "labels"}
    clips = data.read_clips(given, write_table(tmp_path, "a.wav,dog,1", "b.wav,dog,2", "c.wav,cat,1"),
                            ("dog", "cat"))
    with pytest.raises(SpecError, match="'dog' are prescribed to two folds"):
        folds.split(clips, 2, 1)
