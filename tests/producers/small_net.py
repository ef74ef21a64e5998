"""A net of a user's own, known to the producers and to the ensemble."""
import torch
from torch import nn


class SmallNet(nn.Module):
    """Logits f32[B, K] of x f32[B, 1, M, T]."""

    def __init__(self, classes: int = 5, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))
