"""What members with classes of their own are worth to the plan."""
from __future__ import annotations

import pytest

from kernel import spec
from kernel.engine.plan import net_costs, share_of_classes

ENTRY = spec.FileEntry(bytes=1, sha256="0")
WHEEL = spec.Wheel(file="w.whl", entry=ENTRY, files={})


def member(name: str, *known: int, **more: object) -> spec.Member:
    own = spec.ClassMap(outputs=9, takes=known, gives=known, weights=(1.0,) * len(known)) if known else None
    return spec.Member(name=name, family="f", frontend="x", classes_map=own, **more)  # type: ignore[arg-type]


def values(*members: spec.Member) -> dict[str, float]:
    whole = spec.Ensemble(name="e", classes=tuple("abcd"), members=members)
    keys = {"format": 1, "bundle": "b", "version": "1", "wheel": WHEEL, "files": {}, "nets": ()}
    manifest = spec.Manifest(ensemble=whole, **keys)  # type: ignore[arg-type]
    return {cost.member: cost.value for cost in net_costs(manifest, gpu=False)}


def test_a_class_counts_once_and_is_shared_by_those_who_know_it() -> None:
    found = values(member("all"), member("half", 0, 1))
    assert found == {"all": pytest.approx(2 * (0.5 + 0.5 + 1 + 1) / 4), "half": pytest.approx(2 * 1 / 4)}


def test_classes_that_nobody_knows_make_nobody_worth_less() -> None:
    assert values(member("a", 0, 1), member("b", 2)) == {"a": pytest.approx(4 / 3), "b": pytest.approx(2 / 3)}


def test_a_value_that_is_given_stays_and_sets_the_scale_of_the_others() -> None:
    found = values(member("a", 0, 1, value=0.8), member("b", 2, 3))
    assert found == {"a": 0.8, "b": pytest.approx(0.8)}


def test_without_maps_everybody_is_worth_the_same() -> None:
    assert values(member("a"), member("b")) == {"a": 1.0, "b": 1.0}
    assert share_of_classes(spec.Ensemble(name="e", classes=("x", "y"), members=(member("a"),))) == {}
