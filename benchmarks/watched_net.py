"""The smallest net, in a file of an ensemble's own: it lets `benchmarks.soundscapes` look into the engine.

HOURGLASS_OPENED = a file that gets a line for every recording that is opened: "probe" or "decode", its id,
the thread.
HOURGLASS_SLOW_S = seconds that each opening takes longer, as on a slow mount.
"""
import os
import threading
import time

import torch
from torch import nn

from kernel.sound import decode

OPENED = os.environ.get("HOURGLASS_OPENED", "")
SLOW_S = float(os.environ.get("HOURGLASS_SLOW_S", "0"))
open_audio = decode.open_audio


def watched(id, path, roots, links=False):
    if SLOW_S:
        time.sleep(SLOW_S)
    if OPENED:
        with open(OPENED, "a") as file:
            what = "probe" if links else "decode"
            file.write(f"{what} {id} {threading.current_thread().name}\n")
    return open_audio(id, path, roots, links)


if OPENED or SLOW_S:
    decode.open_audio = watched


class Level(nn.Module):
    """Logits f32[B, K] of the mean of x f32[B, 1, M, T]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(1, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(dim=(2, 3)))
