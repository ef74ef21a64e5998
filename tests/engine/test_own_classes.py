"""A net with classes of its own in shared batches: each row as it is alone, also where passes fail."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kernel import models, spec
from kernel.inference.devices import Device
from kernel.inference.member import LoadedNet, load_net, predict_alone
from kernel.inference.recipe import build_recipe
from tests.engine.test_gpu import Stored, rows_of, run_groups, watch

MAP = {"outputs": 6, "takes": [5, 0, 3], "gives": [0, 2, 2], "weights": [1.0, 0.5, 1.0]}


def build_net(**more: Any) -> LoadedNet:
    """A tiny net of six outputs for three classes, of which it knows the first and the last."""
    torch.manual_seed(0)
    module = models.build("simple_cnn", {"base": 4, "channels": 1}, 6).eval()
    member = spec.load(spec.Member, {
        "name": "m", "family": "simple_cnn", "params": {"base": 4, "channels": 1}, "frontend": "f",
        "classes_map": MAP, **more})
    ensemble = spec.check(spec.Ensemble(
        name="e", classes=("a", "b", "c"), members=(member,), frontends={"f": {"preset": "argus"}}))
    device = Device(name="cpu", about="test")
    return load_net(build_recipe(ensemble, member), module.state_dict(), 3, device, spec.Cost())


KEYS: list[dict[str, Any]] = [
    {}, {"proxy_scores": "logits"}, {"proxies": "mean"}, {"proxies": "mean", "activation": "softmax"},
    {"proxy_scores": "logits", "view": {"kind": "tiles", "frames": 64, "step": 32, "merge": "logit_mean"}},
    {"view": {"kind": "tiles", "frames": 64, "step": 32, "merge": "max"}},
]


@pytest.mark.parametrize("keys", KEYS)
def test_groups_give_what_each_row_gets_alone(keys: dict[str, Any]) -> None:
    net = build_net(**keys)
    frames = {f"r{i}": 60 + 31 * i for i in range(6)}
    store = Stored(frames)
    found = run_groups(net, store, frames)
    for row in rows_of(frames):
        alone = predict_alone(net, store, row)
        assert alone.shape == found[row.id].shape == (3,) and alone[1] == found[row.id][1] == 0.0
        np.testing.assert_allclose(found[row.id], alone, atol=1e-5)
        assert 0 < alone[0] < 1 and 0 < alone[2] < 1


@pytest.mark.parametrize("keys", [{}, {"proxy_scores": "logits"}])
def test_a_row_that_fails_alone_costs_itself_only(keys: dict[str, Any]) -> None:
    net = build_net(**keys)

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    watch(net, fail)
    found = run_groups(net, Stored({"r": 100}), {"r": 100})
    assert found["r"].shape == (3,) and np.isnan(found["r"][[0, 2]]).all()
