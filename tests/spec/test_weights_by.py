"""Weights by class and group: the CSV file, its mistakes, and what it says where it says nothing."""
from __future__ import annotations

from pathlib import Path

import pytest

from kernel.errors import SpecError
from kernel.spec import Ensemble, dumps_json, load, load_ensemble, loads_json
from kernel.spec.ensemble import check
from kernel.spec.weights_by import read_weights_by

CLASSES = ("tit", "thrush", "cricket", "frog")
USUAL = {"a": 1.0, "b": 2.0, "top": 0.5}
HEAD = "class,group,a,b\n"


def read(folder: Path, text: str) -> dict[str, tuple[float, ...]]:
    (folder / "w.csv").write_text(text)
    return read_weights_by(folder / "w.csv", CLASSES, {}, USUAL, "weights_by = 'w.csv'")


def test_a_class_before_its_group_before_the_usual_weight(tmp_path: Path) -> None:
    groups = ",birds,3,\n,insects,,0\n"
    found = read(tmp_path, HEAD + groups + "tit,birds,,\nthrush,birds,5,7\ncricket,insects,0,\n")
    assert found == {"a": (3.0, 5.0, 0.0, 1.0), "b": (2.0, 7.0, 0.0, 2.0)}


@pytest.mark.parametrize("text", [
    "class,a\ntit,3\n",
    "a,class\n3,tit\n",
    "\ufeffclass, a\r\n\r\ntit, 3\r\n",
    "group,class,a\n,tit,3\nnobody's,frog,\n",
])
def test_other_ways_to_write_it(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == {"a": (3.0, 1.0, 1.0, 1.0)}


def test_lines_may_stand_in_any_order(tmp_path: Path) -> None:
    lines = [",birds,3,", "tit,birds,,", "frog,,,4"]
    found = [read(tmp_path, HEAD + "\n".join(order) + "\n") for order in (lines, lines[::-1])]
    assert found[0] == found[1] == {"a": (3.0, 1.0, 1.0, 1.0), "b": (2.0, 2.0, 2.0, 4.0)}


@pytest.mark.parametrize(("text", "message"), [
    ("", r"w.csv is empty; begin with the header class,group,MEMBER"),
    ("class,group,aa\ntit,,1\n", r"column 'aa' is no member"),
    ("class,tpo\ntit,1\n", r"column 'tpo' is no member; did you mean 'top'"),
    ("class,a,a\ntit,1,1\n", r"a column stands twice"),
    ("group,a\nbirds,1\n", r"no class is of group 'birds'; give lines of its classes, or the key"),
    ("a,b\n1,1\n", r"give `class`, `group` where there are any, and members"),
    ("class,group\ntit,birds\n", r"give `class`, `group` where there are any, and members"),
    (HEAD + "tits,,1,1\n", r"line 2: class 'tits' is not in `classes`; did you mean 'tit'"),
    (HEAD + "tit,,1\n", r"line 2: 3 cells, the header has 4"),
    (HEAD + ",,1,1\n", r"line 2: neither a class nor a group"),
    (HEAD + "tit,,-1,1\n", r"line 2: weight '-1' of a; give a number, 0 or more"),
    (HEAD + "tit,,1,nan\n", r"weight 'nan' of b"),
    (HEAD + "tit,,1,inf\n", r"weight 'inf' of b"),
    (HEAD + "tit,,x,1\n", r"weight 'x' of a"),
    (HEAD + "tit,,1,1\ntit,,1,1\n", r"line 3: class 'tit' has a line already"),
    (HEAD + ",birds,1,1\n,birds,1,1\ntit,birds,,\n", r"line 3: group 'birds' has a line already"),
    (HEAD + ",bird,1,1\ntit,birds,,\n", r"no class is of group 'bird'; did you mean 'birds'"),
])
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match="weights_by = 'w.csv': .*" + message):
        read(tmp_path, text)


def test_groups_of_classes_may_be_known_already(tmp_path: Path) -> None:
    groups = {"tit": "birds", "thrush": "birds", "cricket": "insects", "no class of ours": "fish"}
    (tmp_path / "w.csv").write_text("group,a\nbirds,3\n")
    found = read_weights_by(tmp_path / "w.csv", CLASSES, groups, USUAL, "here")
    assert found == {"a": (3.0, 3.0, 1.0, 1.0)}
    (tmp_path / "w.csv").write_text("class,group,a\n,birds,3\ntit,birds,5\nfrog,insects,\n,insects,7\n")
    found = read_weights_by(tmp_path / "w.csv", CLASSES, groups, USUAL, "here")
    assert found == {"a": (5.0, 3.0, 7.0, 7.0)}
    for text, message in (
        ("class,group,a\ntit,insects,5\n", "class 'tit' is of group 'insects', class_groups says 'birds'"),
        ("group,a\nfish,1\n", "no class is of group 'fish'"),
    ):
        (tmp_path / "w.csv").write_text(text)
        with pytest.raises(SpecError, match=message):
            read_weights_by(tmp_path / "w.csv", CLASSES, groups, USUAL, "here")


TOML = """
name = "mine"
classes = ["tit", "thrush", "cricket", "frog"]
weights_by = "w.csv"
[frontends.fe]
preset = "argus"
[[members]]
name = "a"
family = "simple_cnn"
frontend = "fe"
weight = 2
[[members]]
name = "b"
family = "simple_cnn"
frontend = "fe"
weight = 0
[[stackers]]
name = "top"
family = "gated_mlp"
inputs = ["a", "b"]
weight = 0
"""


def ensemble_of(folder: Path, text: str, toml: str = TOML) -> Ensemble:
    (folder / "w.csv").write_text(text)
    (folder / "e.toml").write_text(toml)
    return load_ensemble(folder / "e.toml")


def test_it_stands_in_the_ensemble_and_travels_in_the_manifest(tmp_path: Path) -> None:
    ensemble = ensemble_of(tmp_path, "class,b,top\ntit,1,0.25\n")
    assert ensemble.weights_by == {"b": (1.0, 0.0, 0.0, 0.0), "top": (0.25, 0.0, 0.0, 0.0)}
    assert check(load(Ensemble, loads_json(dumps_json(ensemble), "manifest"))) == ensemble


def test_a_class_that_nobody_weighs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="weights_by: class 'frog': every member that knows it has weight 0"):
        ensemble_of(tmp_path, "class,a\nfrog,0\n")
    own = 'name = "b"\nclasses_from = ["x"]\nclasses_map = "m.csv"\nmissing = 0\n'
    mapped = TOML.replace('name = "b"\n', own)
    (tmp_path / "m.csv").write_text("label,class\nx,tit\n")
    assert ensemble_of(tmp_path, "class,a,b\nfrog,0,1\n", mapped).weights_by["b"] == (0.0, 0.0, 0.0, 1.0)
    text = mapped.replace("missing = 0\n", "").replace('["a", "b"]', '["a"]').replace("weight = 0\n", "", 1)
    with pytest.raises(SpecError, match="class 'frog': every member that knows it has weight 0"):
        ensemble_of(tmp_path, "class,a,b\nfrog,0,1\n", text)


@pytest.mark.parametrize(("table", "message"), [
    ("{ c = [1, 1, 1, 1] }", r"weights_by: 'c' is no member"),
    ("{ a = [1, 1] }", r"weights_by.a: 2 weights for 4 classes"),
    ("{ a = [1, 1, -1, 1] }", r"weights_by.a: .*one each, 0 or more"),
    ("3", r"weights_by: expected a table, got 3"),
])
def test_numbers_are_checked_too(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ensemble_of(tmp_path, "", TOML.replace('"w.csv"', table))


GROUPED = TOML.partition("[[stackers]]")[0] + """
[[members]]
name = "c"
family = "simple_cnn"
frontend = "fe"
[[groups]]
name = "pair"
members = ["a", "b"]
weight = 3
"""


def test_groups_of_members_may_weigh_by_groups_of_classes(tmp_path: Path) -> None:
    toml = GROUPED.replace("[frontends.fe]", '[class_groups]\nbirds = ["tit", "thrush"]\n[frontends.fe]')
    ensemble = ensemble_of(tmp_path, "group,pair\nbirds,0\n", toml)
    assert ensemble.weights_by == {"pair": (0.0, 0.0, 3.0, 3.0)}


@pytest.mark.parametrize("lines", ["class,c,pair\nfrog,0,0\n", "class,a,b,c\nfrog,0,0,0\n"])
def test_a_class_that_no_group_and_no_other_member_weighs_is_refused(tmp_path: Path, lines: str) -> None:
    with pytest.raises(SpecError, match="class 'frog': every member that knows it has weight 0"):
        ensemble_of(tmp_path, lines, GROUPED)
    assert ensemble_of(tmp_path, lines.replace("0,0", "1,0"), GROUPED).weights_by
