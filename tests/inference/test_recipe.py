"""What TOML and blob say beside the weights: another order of classes, numbers for a finish."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kernel import models, spec
from kernel.errors import ModelLoadFailed
from kernel.inference.devices import Device
from kernel.inference.finish import InNetMel
from kernel.inference.member import LoadedNet, load_net, merge
from kernel.inference.recipe import build_recipe, constant_key, fill_constants

CLASSES = ("bark", "meow", "hiss")
MEL = {"kind": "mel_in_net", "rate": 16000, "hop": 128, "mel_power": 1.0}


def ensemble(family: str, params: dict[str, Any], preset: str, **more: Any) -> spec.Ensemble:
    member = {"name": "net", "family": family, "params": params, "frontend": "fe", **more}
    return spec.check(spec.load(spec.Ensemble, {
        "name": "mine", "classes": CLASSES, "frontends": {"fe": {"preset": preset}}, "members": [member]}))


def loaded(made: spec.Ensemble, extra: dict[str, torch.Tensor] | None = None) -> LoadedNet:
    member = made.members[0]
    torch.manual_seed(0)
    state = models.build(member.family, member.params, len(CLASSES)).state_dict() | (extra or {})
    device = Device(name="cpu", about="")
    return load_net(build_recipe(made, member), state, len(CLASSES), device, spec.Cost())


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_classes_in_another_order(activation: str) -> None:
    keys = {"family": "simple_cnn", "params": {"base": 4, "channels": 1}, "preset": "argus",
            "activation": activation}
    plain = loaded(ensemble(**keys))
    other = loaded(ensemble(**keys, classes_from=["hiss", "bark", "meow"]))
    answers = np.array([[0.1, 2.0, -1.0], [0.3, 1.0, -2.0]], np.float32)
    hiss, bark, meow = merge(plain, answers)
    assert merge(other, answers).tolist() == [bark, meow, hiss]


def test_a_blobs_numbers_reach_the_finish_of_its_net_alone() -> None:
    made = ensemble("mel_densenet", {"growth": 2}, "jeong_16000", finish=[MEL])
    numbers = {constant_key("x", 0, "wave_scale"): torch.tensor(1.25),
               constant_key("x", 0, "wave_offset"): torch.tensor(-0.5)}
    plain, filled = loaded(made), loaded(made, numbers)
    held = [net.recipe.stages["x"].finish.operations[0] for net in (plain, filled)]
    assert all(isinstance(entry, InNetMel) for entry in held)
    assert [(entry.wave_scale, entry.wave_offset) for entry in held] == [(1.0, 0.0), (1.25, -0.5)]


@pytest.mark.parametrize("key", ["finish.x.0.gain", "finish.y.0.wave_scale"])
def test_a_number_that_no_operation_takes_is_an_error(key: str) -> None:
    made = ensemble("mel_densenet", {"growth": 2}, "jeong_16000", finish=[MEL])
    with pytest.raises(ModelLoadFailed, match="build it again"):
        fill_constants(build_recipe(made, made.members[0]), {key: torch.tensor(1.0)})
