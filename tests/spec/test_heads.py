"""[embeddings.NAME] and [[heads]]: a head is a member; what is wrong with either is named by its own key."""
from __future__ import annotations

from pathlib import Path

import pytest

from kernel import spec
from kernel.errors import SpecError
from kernel.inference.embedded import Embedded
from kernel.inference.recipe import build_recipe

TOML = """
name = "e"
classes = ["a", "b"]
[frontends.wave]
preset = "wave"
rate = 16000
[embeddings.net]
graph = "net.onnx"
frontend = "wave"
output = "embeddings"
{embedding}
[[heads]]
name = "h"
family = "linear_head"
embedding = "net"
folds = [0, 1]
{head}
"""


def load(folder: Path, embedding: str = "values = 8", head: str = "", text: str = TOML) -> spec.Ensemble:
    (folder / "e.toml").write_text(text.format(embedding=embedding, head=head))
    return spec.load_ensemble(folder / "e.toml")


def test_a_head_is_a_member_that_reads_the_embedding(tmp_path: Path) -> None:
    ensemble = load(tmp_path)
    (head,) = ensemble.members
    assert (head.name, head.frontend, head.folds) == ("h", "net", (0, 1))
    assert ensemble.embeddings["net"].output == ("embeddings",)
    recipe = build_recipe(ensemble, head)
    source = recipe.stages["x"].fe
    assert isinstance(source, Embedded) and source.bins == 8 and source.rate == 16000


def test_heads_travel_in_the_manifest_as_members(tmp_path: Path) -> None:
    ensemble = load(tmp_path)
    again = spec.load(spec.Ensemble, spec.loads_json(spec.dumps_json(ensemble), "x"))
    assert again == ensemble


@pytest.mark.parametrize(("embedding", "head", "said"), [
    ("", 'frontend = "wave"', r"heads\[0\].frontend: a head reads an embedding"),
    ("", 'frames = "average"', r"heads\[0\].frames"),
    ("", "wieght = 2.0", r"heads\[0\].wieght: unknown key; did you mean 'weight'"),
    ('stored = "float8"', "", r"embeddings.net.stored: 'float8'"),
    ("values = 0", "", r"embeddings.net: values"),
    ("per_second = -1.0", "", r"embeddings.net: values, per_second"),
    ("size = 3", "", r"embeddings.net.size: unknown key"),
])
def test_what_is_wrong_is_named(tmp_path: Path, embedding: str, head: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        load(tmp_path, embedding, head)


@pytest.mark.parametrize(("old", "new", "said"), [
    ('embedding = "net"', 'embedding = "nett"', r"heads\[0\].embedding: 'nett' is not in .*; did you"),
    ('embedding = "net"', "", r"heads\[0\].embedding: missing"),
    ('frontend = "wave"', 'frontend = "wavv"', r"embeddings.net.frontend: 'wavv' is not in \[frontends\]"),
    ("[embeddings.net]", "[embeddings.wave]", r"embeddings.wave: \[frontends\] has this name"),
    ('output = "embeddings"', 'output = ["a", "a"]', r"embeddings.net.output: \['a'\] stands twice"),
])
def test_names_that_do_not_meet(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = TOML.replace(old, new)
    if new == "[embeddings.wave]":
        text = text.replace('embedding = "net"', 'embedding = "wave"')
    with pytest.raises(SpecError, match=said):
        load(tmp_path, text=text)


def test_a_head_cannot_be_built_before_somebody_has_tried_the_graph(tmp_path: Path) -> None:
    ensemble = load(tmp_path, embedding="")
    with pytest.raises(SpecError, match="embeddings.net.values: not known yet"):
        build_recipe(ensemble, ensemble.members[0])


def test_a_head_may_have_classes_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("label,class\ny,b\n")
    (tmp_path / "labels.txt").write_text("x\ny")
    for labels in ('"labels.txt"', '["x", "y"]'):
        (head,) = load(tmp_path, head=f'classes_from = {labels}\nclasses_map = "map.csv"').members
        assert head.classes_map == spec.ClassMap(outputs=2, takes=(1,), gives=(1,), weights=(1.0,))
    with pytest.raises(SpecError, match=r"members\[0\].classes_map = 'gone.csv': .*gone.csv cannot be read"):
        load(tmp_path, head='classes_from = ["x", "y"]\nclasses_map = "gone.csv"')
    with pytest.raises(SpecError, match=r"heads\[0\].classes_map: expected a table, got 3"):
        load(tmp_path, head="classes_map = 3")
