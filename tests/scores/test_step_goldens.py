"""Every step, mean and metric of published solutions gives what the authors' own functions gave."""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernel.scores.steps import STEPS
from tests import soundscapes

GOLDENS = "HOURGLASS_GOLDENS"  # a folder with soundscapes.json; its numbers are no part of this repository
# Windows, class maps and pseudo labels: no steps on a table of scores.
ELSEWHERE = {
    "overlap_average_max", "class_map_missing_uniform", "class_map_proxy_max", "chain_fg",
    "pseudo_blend_focal", "y_windows_to_rows", "pseudo_threshold", "pseudo_merge_max", "windows",
    "window_starts", "context_frames",
}


def farthest(got: Any, wanted: Any) -> float:
    """The largest difference of numbers that are nested alike; infinite where one is missing."""
    if isinstance(wanted, Mapping):
        return max(farthest(got[key], value) for key, value in wanted.items())
    ours, theirs = np.array(got, np.float64), np.array(wanted, np.float64)
    if ours.shape != theirs.shape or (np.isnan(ours) != np.isnan(theirs)).any():
        return float("inf")
    return float(np.nanmax(np.abs(ours - theirs), initial=0.0))


def test_every_golden_of_a_step_within_its_tolerance() -> None:
    if GOLDENS not in os.environ:
        pytest.skip(f"the golden numbers of soundscapes are not at hand: set {GOLDENS} to their folder")
    golden = json.loads((Path(os.environ[GOLDENS]) / "soundscapes.json").read_text())
    names = {case["step"] for case in golden["cases"]}
    assert names - ELSEWHERE == set(soundscapes.CASES)
    failed, first = [], {}
    for case in golden["cases"]:
        name = case["step"]
        if name in ELSEWHERE:
            continue
        told, arguments = dict(case["input"]), dict(case.get("args") or {})
        held = first.setdefault(name, (told, arguments))
        if "as in" in str(told.get("p", "")):
            told, arguments = held[0], {**held[1], **arguments}
        if "as in" in str(arguments.get("row_ids", "")):
            arguments["row_ids"] = first["fg_blend"][1]["row_ids"]
        inputs = {key: soundscapes.draw(value) for key, value in told.items()}
        away = farthest(soundscapes.CASES[name](inputs, arguments), case["output"])
        if not away <= case["tolerance"]:
            failed.append(f"{name} {arguments}: {away:.1e}")
    assert not failed


def test_every_golden_that_a_step_names_is_compared() -> None:
    named = {golden for step in STEPS.values() for golden in step.goldens}
    assert named - ELSEWHERE <= set(soundscapes.CASES)
    assert all(step.formula and step.source for step in STEPS.values())
