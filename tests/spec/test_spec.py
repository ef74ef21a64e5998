"""What people write about an ensemble: rules between its keys."""
from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernel.errors import SpecError
from kernel.spec import Ensemble, Member, Output, Windows, check, load_ensemble

PLAIN = Ensemble(
    name="e",
    classes=("a", "b"),
    members=(Member(name="m", family="f", frontend="mel"),),
    frontends={"mel": {}},
)


def test_a_clip_is_read_up_to_its_own_limit_else_a_minute_and_a_recording_to_its_end() -> None:
    assert PLAIN.longest_s == 60.0
    assert replace(PLAIN, windows=Windows()).longest_s == math.inf
    assert replace(PLAIN, windows=Windows(), max_seconds=120.0).longest_s == 120.0


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0, 1.0), (-1.0, 3.0, 1.0)])
def test_weights_that_cannot_smooth_are_refused_before_a_run(weights: tuple[float, ...]) -> None:
    check(replace(PLAIN, output=Output(smoothing=(0.1, 0.8, 0.1))))
    with pytest.raises(SpecError, match="output.smoothing: .* odd number"):
        check(replace(PLAIN, output=Output(smoothing=weights)))


def test_a_power_without_a_root_is_refused_before_a_run() -> None:
    check(replace(PLAIN, mean="power", mean_power=-1.0))
    with pytest.raises(SpecError, match="mean_power: 0 has no root"):
        check(replace(PLAIN, mean="power", mean_power=0.0))


WRITTEN = """
name = "written"
classes = ["a", "b"]
KEY
[frontends.mel]
FMIN
[[members]]
name = "m"
family = "f"
frontend = "mel"
"""


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("KEY", "deep = " + "[" * 5000 + "]" * 5000, "inside each other"),
        ("KEY", "mean_power = " + "1" * 5000, "not TOML"),
        ("KEY", "mean_power = 1" + "0" * 400, "mean_power: this number is too large"),
        ("KEY", 'about = "\xff"', "not TOML"),
        ("FMIN", "fmin = " + "[" * 40 + "]" * 40, "frontends: more than 32"),
        ("FMIN", "fmin = nan", r"frontends\.mel\.fmin: expected a finite number, got nan"),
        ("FMIN", "fmin = 2019-05-31", r"frontends\.mel\.fmin: expected text, a number"),
        ("FMIN", '[windows]\npattern = "{stem}_{ende}"', r"windows\.pattern: '{stem}_{ende}'.*once each"),
        ("FMIN", "[windows]\nseconds = 0", r"windows\.seconds: 0\.0; .*above 0"),
    ],
)
def test_odd_toml_is_one_sentence(key: str, value: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    text = WRITTEN.replace(key, value).replace("KEY", "").replace("FMIN", "")
    path.write_text(text, encoding="latin-1")
    with pytest.raises(SpecError, match=message) as caught:
        load_ensemble(path)
    assert str(path) in str(caught.value)


def test_a_name_that_is_no_path_is_one_sentence() -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        load_ensemble(Path("absent.toml"))
    with pytest.raises(SpecError, match="null"):
        load_ensemble(Path("a\0b.toml"))


@pytest.mark.parametrize(("keys", "message"), [
    ({"context_seconds": 4.0}, "windows.context_seconds: 4.0 is shorter than a window"),
    ({"context_seconds": 20.0, "context_before": 16.0}, "windows.context_before: 16.0; give 0 to 15"),
    ({"context_before": 1.0}, "windows.context_before: 1.0; give 0 to 0"),
    ({"context_seconds": 20.0, "context_before": -1.0}, "windows.context_before"),
    ({"edges": "zero"}, "windows.edges"),
    ({"edges": "front", "context_seconds": 20.0}, "windows.edges"),
])
def test_a_context_that_cannot_be_is_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check(replace(PLAIN, windows=Windows(**keys)))


@pytest.mark.parametrize(("member", "windows", "message"), [
    ({"frames": "average_max"}, None, "members.0..frames: rows are made of frames only with .windows."),
    ({"frames": "average_min"}, Windows(), "members.0..frames"),
    ({"frames": "average", "view": {"kind": "full", "flip": 0.5}}, Windows(), "members.0..view.flip"),
    ({"frames": "average", "view": {"kind": "tiles"}}, Windows(), "members.0..view: with frames .* 'tiles'"),
])
def test_frames_that_cannot_become_rows_are_named(
    member: dict[str, Any], windows: Windows | None, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        check(replace(PLAIN, members=(replace(PLAIN.members[0], **member),), windows=windows))
