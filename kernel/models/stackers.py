"""Second-level nets: class probabilities of the first level in, class scores out.

Owns the gated MLP (FAT2019, 1st place) and the per-class stacker (2nd place). Does not choose or average
members: `kernel.scores` does.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Tagger


class Gate(nn.Module):
    """x[B, F] times its own gate sigmoid(fc2(relu(fc1(x))))."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, features)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x))))


class GatedMLP(Tagger):
    """Logits f32[B, K] of f32[B, features] probabilities, member after member.

    features  members x classes (560 = 7 x 80 in the original)
    hidden    units of the gate: 35, 280 or 560 in the original
    width     units of the second layer; the first has twice as many
    dropout   training only: 0.0514, 0.4836, 0.1663 in the original
    Source: lRomul/argus-freesound src/stacking/models.py (FCNet), train_stacking.py.
    """

    maskable = False

    def __init__(
        self, classes: int, features: int = 560, hidden: int = 35, width: int = 512, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.scale = Gate(features, hidden)
        self.linear1 = nn.Linear(features, 2 * width)
        self.relu1 = nn.PReLU()
        self.linear2 = nn.Linear(2 * width, width)
        self.relu2 = nn.PReLU()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, classes)

    def example(self, frames: int) -> Tensor:
        """An input of one clip, all zeros."""
        return torch.zeros(1, self.linear1.in_features)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        x = self.dropout(self.relu1(self.linear1(self.scale(x))))
        return self.fc(self.dropout(self.relu2(self.linear2(x))))


class ClassWeights(nn.Module):
    """Each class's own mean f32[B, K] of f32[B, K, n]: unit-length weights, no bias."""

    def __init__(self, classes: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((classes, inputs), inputs ** -0.5))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).sum(2)


class PerClassStacker(Tagger):
    """Scores in (0, 1), f32[B, K], of f32[B, K, inputs] probabilities; the last input is their average.

    Own weights per class, then one linear layer that mixes classes, then (tanh(x - 1.6) + 1) / 2.
    Source: qrfaction/1st-Freesound-Audio-Tagging-2019 code/models.py, formula only.
    """

    output = "probabilities"
    maskable = False

    def __init__(self, classes: int, inputs: int = 7) -> None:
        super().__init__()
        self.local = ClassWeights(classes, inputs)
        self.dense = nn.Linear(classes, classes, bias=False)
        nn.init.eye_(self.dense.weight)

    def example(self, frames: int) -> Tensor:
        """An input of one clip, all zeros."""
        return torch.zeros(1, *self.local.weight.shape)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        return (torch.tanh(self.dense(self.local(x)) - 1.6) + 1) / 2
