"""`hierarchical_cnn`: 1-D or 2-D residual CNN, every depth feeds the classifier (FAT2019's 3rd place)."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Tagger, max_time, pooled, run_recurrent, zero_tail

CONV = {1: nn.Conv1d, 2: nn.Conv2d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d}


class Bottleneck(nn.Module):
    """1 x 1, 3, 1 x 1 convolutions of equal width with batch norm and PReLU, plus the input."""

    def __init__(self, dims: int, depth: int) -> None:
        super().__init__()
        self.conv1 = CONV[dims](depth, depth, 1)
        self.bn1 = NORM[dims](depth)
        self.conv2 = CONV[dims](depth, depth, 3, padding=1)
        self.bn2 = NORM[dims](depth)
        self.conv3 = CONV[dims](depth, depth, 1)
        self.bn3 = NORM[dims](depth)
        self.prelu1, self.prelu2, self.prelu3 = (nn.PReLU(depth) for _ in range(3))

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        y = self.prelu1(self.bn1(self.conv1(x)))
        y = self.prelu2(self.bn2(self.conv2(zero_tail(y, frames))))
        return self.prelu3(self.bn3(self.conv3(y)) + x)


class PoolingBlock(nn.ModuleDict):
    """Batch norm, convolution 3, max pool 2, batch norm, PReLU, bottleneck. Lengths: `pooled(frames, 2)`.

    Keys 0, 1, 3, 4 and 5: place 2 is the pool.
    """

    def __init__(self, dims: int, inputs: int, depth: int) -> None:
        super().__init__({"0": NORM[dims](inputs), "1": CONV[dims](inputs, depth, 3, padding=1),
                          "3": NORM[dims](depth), "4": nn.PReLU(depth), "5": Bottleneck(dims, depth)})
        self.dims = dims

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        x = self["1"](zero_tail(self["0"](x), frames))
        x = MAX_POOL[self.dims](x, 2)
        return self["5"](self["4"](self["3"](x)), pooled(frames, 2))


class RecurrentSummary(nn.Sequential):
    """Final states [B, 2 x units] of a bidirectional GRU over layer-normed [B, T, depth]; keys 0 and 1."""

    def __init__(self, depth: int, units: int) -> None:
        super().__init__(nn.LayerNorm(depth), nn.GRU(depth, units, batch_first=True, bidirectional=True))

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        _, final = run_recurrent(self[1], self[0](x), frames)
        return torch.cat([final[0], final[1]], 1)


class HierarchicalCNN(Tagger):
    """Logits f32[B, K] of log spectra x f32[B, 1, M, T], T >= 2 ** blocks (in the 2-D net, M as well).

    1-D: the M bins are channels. 2-D: a second channel tells each bin's height, -1 (lowest) to 1, unless
    `frequency_map` is off. Block k has int(base * growth ** k) maps. From block `first` on each block's
    output is summarised, by its global maximum or by a bidirectional GRU's two final states (after the mean
    over frequency and layer norm); the summaries are joined: batch norm, linear, batch norm, PReLU, dropout,
    linear.

    bins   1-D only: input bins (129 = STFT window of 256 samples)
    units  of the GRU, a side
    Source: ex4sperans/freesound-classification networks/classifiers.py.
    """

    def __init__(
        self,
        classes: int,
        dims: int = 2,
        aggregation: str = "max",
        base: int = 100,
        blocks: int = 5,
        growth: float = 1.5,
        first: int = 1,
        units: int = 128,
        dropout: float = 0.5,
        bins: int = 129,
        frequency_map: bool = True,
    ) -> None:
        super().__init__()
        if dims not in CONV or aggregation not in ("max", "rnn"):
            raise ValueError(f'dims = {dims} must be 1 or 2 and aggregation = {aggregation!r} "max" or "rnn"')
        self.dims = dims
        self.first = first
        self.frequency_map = frequency_map and dims == 2
        self.bins = bins if dims == 1 else None
        self.min_frames = 2 ** blocks
        depths = [
            bins if dims == 1 else 1 + self.frequency_map,
            *(int(base * growth**k) for k in range(blocks)),
        ]
        self.conv_modules = nn.ModuleList(
            PoolingBlock(dims, i, o) for i, o in zip(depths, depths[1:], strict=False)
        )
        summarised = depths[1 + first:]
        self.rnns = None
        if aggregation == "rnn":
            self.rnns = nn.ModuleList(RecurrentSummary(depth, units) for depth in summarised)
        joined = sum(summarised) if self.rnns is None else 2 * units * len(summarised)
        self.output_transform = linear_head(joined, classes, dropout)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        x = x[:, 0] if self.dims == 1 else add_frequency_map(x) if self.frequency_map else x
        summaries = []
        for k, block in enumerate(self.conv_modules):
            x, frames = block(x, frames), pooled(frames, 2)
            if k >= self.first:
                summaries.append(self._summary(x, frames, k - self.first))
        return self.output_transform(torch.cat(summaries, 1))

    def _summary(self, x: Tensor, frames: Tensor | None, k: int) -> Tensor:
        if self.rnns is None:
            highest = max_time(x, frames)
            return highest if self.dims == 1 else highest.amax(-1)
        rows = x if self.dims == 1 else x.mean(2)
        return self.rnns[k](rows.transpose(1, 2), frames)


def add_frequency_map(x: Tensor) -> Tensor:
    """[B, 1, M, T] -> [B, 2, M, T]: the second channel rises from -1 (lowest bin) to 1 (highest)."""
    height = torch.linspace(-1, 1, x.shape[2], dtype=x.dtype, device=x.device)[:, None]
    return torch.cat([x, height.expand_as(x)], 1)


def linear_head(joined: int, classes: int, dropout: float) -> nn.Sequential:
    """Batch norm, linear, batch norm, PReLU per channel, dropout, linear: keys 0, 1, 2, 3 and 5."""
    return nn.Sequential(
        nn.BatchNorm1d(joined),
        nn.Linear(joined, joined),
        nn.BatchNorm1d(joined),
        nn.PReLU(joined),
        nn.Dropout(dropout),
        nn.Linear(joined, classes),
    )
