"""A net that says what its weights hold: for a window of the level n / 32, answer n - 1."""
import torch
from torch import nn


class Told(nn.Module):
    """Logits f32[B, F, K] of x f32[B, 1, 1, S]; the level is that of sample `at`."""

    def __init__(self, classes: int, windows: int, frames: int, at: int = 0) -> None:
        super().__init__()
        self.at = at
        self.answers = nn.Parameter(torch.zeros(windows, frames, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        place = (x[:, 0, 0, min(self.at, x.shape[-1] - 1)] * 32).round().long() - 1
        return self.answers[place.clamp(0, len(self.answers) - 1)]
