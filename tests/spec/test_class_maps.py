"""Class maps as people write them: the CSV file, its mistakes, and the rules of the keys beside it."""
from __future__ import annotations

from pathlib import Path

import pytest

from kernel.errors import SpecError
from kernel.spec import ClassMap, Ensemble, dumps_json, load, load_ensemble, loads_json
from kernel.spec.class_maps import read_class_map, read_missing
from kernel.spec.ensemble import check
from tests.helpers import REPOSITORY

LABELS = ("Hyla arborea", "Hyla savignyi", "Parus major", "Turdus merula", "dog, bark")
CLASSES = ("frog", "tit", "thrush", "cricket")
TOML = """
name = "mine"
classes = ["frog", "tit", "thrush", "cricket"]
[frontends.fe]
preset = "argus"
[[members]]
name = "own"
family = "simple_cnn"
frontend = "fe"
[[members]]
name = "theirs"
family = "simple_cnn"
frontend = "fe"
classes_from = "labels.txt"
classes_map = "map.csv"
"""
MAP = """label,class,weight
Hyla savignyi,frog,0.5
Hyla arborea,frog,
"dog, bark",tit,0
Parus major,tit,1
"""


def write(folder: Path, text: str = MAP, toml: str = TOML) -> Path:
    (folder / "labels.txt").write_text("\n".join(LABELS))
    (folder / "map.csv").write_text(text)
    (folder / "mine.toml").write_text(toml)
    return folder / "mine.toml"


def test_a_map_is_read_into_numbers(tmp_path: Path) -> None:
    member = load_ensemble(write(tmp_path)).members[1]
    numbers = {"takes": (0, 1, 2), "gives": (0, 0, 1), "weights": (1.0, 0.5, 1.0)}
    assert member.classes_map == ClassMap(outputs=5, **numbers)  # type: ignore[arg-type]
    assert member.classes_map.knows(4) == (True, True, False, False)
    assert member.classes_from == ()  # 14,795 labels would fill a manifest, and nothing reads them any more
    assert (member.outputs(4), load_ensemble(write(tmp_path)).members[0].outputs(4)) == (5, 4)


def test_the_numbers_travel_in_a_manifest(tmp_path: Path) -> None:
    ensemble = load_ensemble(write(tmp_path))
    again = check(load(Ensemble, loads_json(dumps_json(ensemble), "manifest")))
    assert again == ensemble


@pytest.mark.parametrize("text", [
    MAP.replace("\n", "\r\n"),
    "\ufeff" + MAP,
    MAP.replace("label,class,weight", "label, class, weight").replace(",frog", ", frog"),
    "class,weight,label\ntit,1,Parus major\nfrog,,Hyla arborea\n\n,,\nfrog,0.5,Hyla savignyi\n",
    MAP.partition("\n")[2],
])
def test_other_ways_to_write_the_same_map(tmp_path: Path, text: str) -> None:
    (tmp_path / "plain.csv").write_text(MAP)
    (tmp_path / "map.csv").write_text(text, newline="")
    wanted = read_class_map(tmp_path / "plain.csv", LABELS, CLASSES, "here")
    assert read_class_map(tmp_path / "map.csv", LABELS, CLASSES, "here") == wanted


def test_a_label_may_speak_for_two_classes_and_weights_may_be_absent(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("label,class\nParus major,tit\nParus major,thrush\n")
    found = read_class_map(tmp_path / "map.csv", LABELS, CLASSES, "here")
    assert (found.takes, found.gives, found.weights) == ((2, 2), (1, 2), (1.0, 1.0))


@pytest.mark.parametrize(("text", "message"), [
    ("label,class\nParus mayor,tit\n", r"line 2: label 'Parus mayor' is none of the 5.*mean 'Parus major'"),
    ("label,class\nZZZ,tit\n", r"label 'ZZZ' is none of the 5 .*; they begin with Hyla arborea"),
    ("label,class\nParus major,tits\n", r"line 2: class 'tits' is not in `classes`; did you mean 'tit'"),
    ("label,class\nParus major,tit\nParus major,tit\n", r"line 3: 'Parus major' stands for 'tit' in line 2"),
    ("label,class,weight\nParus major,tit,-1\n", r"line 2: weight '-1'; give a number, 0 or more"),
    ("label,class,weight\nParus major,tit,nan\n", r"weight 'nan'"),
    ("label,class,weight\nParus major,tit,inf\n", r"weight 'inf'"),
    ("label,class,weight\nParus major,tit,heavy\n", r"weight 'heavy'"),
    ("label,class,weight\nParus major,tit,0\n", r"names none of the ensemble's classes"),
    ("label,class,weight\n", r"names none of the ensemble's classes"),
    ("", r"map.csv is empty; give lines of label,class,weight"),
    ("theirs,ours\nParus major,tit\n", r"line 1: \['theirs', 'ours'\]; begin with the header label,class"),
    ("label,class,wieght\nParus major,tit,1\n", r"column 'wieght'; did you mean 'weight'"),
    ("label,class,class\nParus major,tit,tit\n", r"a column stands twice"),
    ("label,class\nParus major,tit,1\n", r"line 2: 3 cells, the first line has 2.*double quotes"),
    ("label,class\n" + "".join(f"x{i},tit\n" for i in range(9)), r"line 6: .*\(and 4 lines more\)"),
    ('label,class\n"Parus major,tit\n', r"no CSV file in UTF-8"),
])
def test_mistakes_in_a_map_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_ensemble(write(tmp_path, text))


def test_a_label_that_two_outputs_share_is_refused_where_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("label,class\nParus major,tit\n")
    assert read_class_map(tmp_path / "map.csv", ("a", "a", "Parus major"), CLASSES, "here").takes == (2,)
    with pytest.raises(SpecError, match=r"'Parus major' stands twice in `classes_from` \(outputs 0, 2\)"):
        read_class_map(tmp_path / "map.csv", ("Parus major", "a", "Parus major"), CLASSES, "here")


@pytest.mark.parametrize(("old", "new", "message"), [
    ('classes_from = "labels.txt"\n', "", r"members\[1\].classes_from: None; with `classes_map` list"),
    ('"labels.txt"', '"label.txt"', r"label.txt cannot be read"),
    ('"map.csv"', '"mop.csv"', r"classes_map = 'mop.csv': .*cannot be read.*the TOML's own folder"),
    ("classes_map = ", 'proxies = "sum"\nclasses_map = ', r"members\[1\].proxies: 'sum' is unknown"),
    ("classes_map = ", 'proxy_scores = "logit"\nclasses_map = ', r"proxy_scores: 'logit' is.*mean 'logits'"),
    ("classes_map = ", 'missing = "nothing"\nclasses_map = ', r"members\[1\].missing: 'nothing'; give"),
    ("classes_map = ", "missing = 1.5\nclasses_map = ", r"members\[1\].missing: 1.5; give"),
    ("classes_map = ", "missing = [1]\nclasses_map = ", r"members\[1\].missing: expected"),
    ("classes_map = ", 'activation = "none"\nproxy_scores = "logits"\nclasses_map = ', "gives probabilities"),
    ('name = "own"', 'name = "own"\nmissing = 0.5', r"members\[0\].missing: 0.5 without `classes_map`"),
    ('name = "own"', 'name = "own"\nproxies = "mean"', r"members\[0\].proxies: 'mean' without"),
])
def test_keys_that_do_not_go_together(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TOML
    with pytest.raises(SpecError, match=message):
        load_ensemble(write(tmp_path, toml=TOML.replace(old, new)))


def test_a_heavy_weight_times_a_probability_is_refused(tmp_path: Path) -> None:
    heavy = MAP.replace("0.5", "2")
    with pytest.raises(SpecError, match="weight 2 x a probability may leave 0..1"):
        load_ensemble(write(tmp_path, heavy))
    for key in ('proxies = "mean"', 'proxy_scores = "logits"'):
        load_ensemble(write(tmp_path, heavy, TOML.replace("classes_map = ", f"{key}\nclasses_map = ")))


STACKER = '\n[[stackers]]\nname = "top"\nfamily = "gated_mlp"\ninputs = ["own", "theirs"]\n'


def test_a_stacker_wants_a_number_where_a_member_does_not_know_a_class(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"stackers\[0\].inputs: 'theirs' does not know every class"):
        load_ensemble(write(tmp_path, toml=TOML + STACKER))
    with_number = TOML.replace("classes_map = ", 'missing = "1/234"\nclasses_map = ') + STACKER
    assert load_ensemble(write(tmp_path, toml=with_number)).members[1].missing_score == 1 / 234
    whole = MAP + "Parus major,thrush,1\nParus major,cricket,1\n"
    assert load_ensemble(write(tmp_path, whole, TOML + STACKER)).members[1].missing_score is None


@pytest.mark.parametrize(("missing", "number"), [
    ("renormalise", None), (0, 0.0), (1, 1.0), (0.25, 0.25), ("1/234", 1 / 234), (" 1 / 2 ", 0.5),
])
def test_what_missing_may_say(missing: float | str, number: float | None) -> None:
    assert read_missing(missing, "here") == number


@pytest.mark.parametrize("missing", [-0.1, 1.01, float("nan"), "1/0", "3/2", "-1/2", "0.5", "1/", "", "None"])
def test_what_missing_may_not_say(missing: float | str) -> None:
    with pytest.raises(SpecError, match="here: .*renormalise"):
        read_missing(missing, "here")


def test_the_files_in_the_docs_are_right(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "ensembles.md").read_text(encoding="utf-8")
    section = page[page.index("### Nets with other classes"):page.index("### `[[members.inputs") if
                   "### `[[members.inputs" in page else len(page)]
    member, map_text, weights = [block.partition("\n")[2] for block in section.split("```")[1:6:2]]
    classes = ["barswa", "eutfro1", "medtfr1", "ciccad1"]
    labels = ["Hyla arborea", "Hyla savignyi", "Hyla orientalis", "Hirundo rustica"]
    (tmp_path / "perch_labels.txt").write_text("\n".join(labels))
    (tmp_path / "perch_map.csv").write_text(map_text)
    (tmp_path / "groups.csv").write_text(weights)
    others = "".join(f'[[members]]\nname = "{name}"\nfamily = "onnx"\nfrontend = "wave"\n'
                     for name in ("sed", "exp85"))
    toml = f'name = "e"\nclasses = {classes}\nweights_by = "groups.csv"\n[frontends.wave]\npreset = "wave"\n'
    (tmp_path / "e.toml").write_text(toml + member + others)
    ensemble = load_ensemble(tmp_path / "e.toml")
    assert ensemble.members[0].classes_map is not None
    assert ensemble.members[0].classes_map.weights == (1.0, 1.0, 0.5)
    assert ensemble.weights_by == {
        "perch": (0.25, 0.5, 1.0, 0.25), "sed": (0.2, 1.0, 1.0, 0.3), "exp85": (0.0, 1.0, 1.0, 1.25)}
