"""What a net costs: multiply-adds, bytes and parameters, counted and not timed."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernel import models
from kernel.models import measure

CLASSES = 6


def test_cost_of_the_published_tile() -> None:
    """About 8.2 GMAC per 128 x 256 tile, from the layer list of lRomul/argus-freesound src/models.

    Three tensors of 64 maps of the first block are alive at most.
    """
    cost = measure(models.build("aux_skip_attention", {}, 80), 128, 3)
    assert cost.parameters == 17_326_950
    assert cost.gmac_a + 256 * cost.gmac_b == pytest.approx(8.2, abs=0.05)
    assert cost.bytes_a + 256 * cost.bytes_b == pytest.approx(4 * 128 * 256 * (3 + 3 * 64), rel=0.01)


def test_recurrent_layers_are_counted() -> None:
    plain, recurrent = (
        measure(models.build("aux_skip_attention", {"rnn": r}, 80), 128, 3) for r in (False, True)
    )
    # Two LSTM directions and the linear layer, one step per 16 frames
    per_step = 2 * 4 * 512 * (512 + 512) + 1024 * 512
    assert recurrent.gmac_b - plain.gmac_b == pytest.approx(per_step / 16 / 1e9, rel=1e-6)


def test_a_bounded_net_is_measured_at_its_bounds() -> None:
    module = models.build("scse_cnn", {"base": 4}, CLASSES)
    cost = measure(module, 128, 1)
    multiply_adds = 0

    def count(layer: nn.Conv2d, _: Any, y: Tensor) -> None:
        nonlocal multiply_adds
        multiply_adds += y.numel() * layer.weight[0].numel()

    for layer in module.eval().modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    module(torch.zeros(1, 1, 128, module.max_frames))
    multiply_adds += module.fc1.weight.numel() + module.fc2.weight.numel()
    assert cost.gmac_a + cost.gmac_b * module.max_frames == pytest.approx(multiply_adds / 1e9, rel=1e-6)
