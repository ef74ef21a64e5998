"""A net over raw waveforms that costs next to nothing: three averages and a linear layer."""
import torch
from torch import nn


class Averages(nn.Module):
    bins = 1

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = x.flatten(1)[:, ::64]
        return self.head(torch.stack([part.mean(1), part.abs().mean(1), part.amax(1)], dim=1))
