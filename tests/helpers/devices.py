"""The devices that a test runs on: the CPU always, a GPU where there is one (marker `cuda`)."""
from __future__ import annotations

import pytest
import torch

from kernel.inference.devices import Device

# The GPU's code on CPU tensors everywhere; the same tests on a GPU where one is
EVERYWHERE = ["cpu", pytest.param("cuda:0", marks=pytest.mark.cuda)]


def device_of(name: str) -> Device:
    """A device by its name, fp32 as on the host."""
    if name.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        memory = torch.cuda.get_device_properties(name).total_memory
        return Device(name=name, about="test", memory_bytes=memory)
    return Device(name=name, about="test")
