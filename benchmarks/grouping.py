"""Length groups against the usual schedules, on one net: real frames per second, padding, shapes and errors.

    python -m benchmarks.grouping [--clips 24] [--rounds 5] [--device cpu|cuda] [--family simple_cnn]
                                  [--cells 16384] [--plan-only] [--quick]

Clips have the FAT2019 kind of lengths (log-normal, 0.3 to 30 s, median 5 s); the net has seeded random
weights. "error" is the largest difference of a logit from the clip run alone, relative to the largest logit:
what a schedule without masks costs. Rounds are interleaved; medians and ratios to one clip at a time are
printed. `--plan-only` shows the groups without a net.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from benchmarks.rounds import describe_machine, draw_seconds, median, race, ratio

import numpy as np  # isort: skip
import torch  # isort: skip
from torch import nn  # isort: skip

from kernel import models  # isort: skip
from kernel.engine.length_groups import Batch, group  # isort: skip

FRAMES_PER_SECOND = 64  # Of the argus front end, and so the bins.
BINS = 128
CLASSES = 80
PADDING = 0.02  # As the engine sets it, and so the rows.
MAX_ROWS = 512
Schedule = Callable[[Sequence[int]], list[Batch]]


def draw_lengths(clips: int, seed: int = 0) -> list[int]:
    return [max(32, int(s * FRAMES_PER_SECOND)) for s in draw_seconds(clips, seed)]


def singles(frames: Sequence[int]) -> list[Batch]:
    """One batch per row, in the given order, nothing padded."""
    return [Batch(rows=(i,), frames=(f,), width=f) for i, f in enumerate(frames)]


def chunks(order: Sequence[int], frames: Sequence[int], size: int) -> list[Batch]:
    """Consecutive rows of `order`, padded to the longest of each chunk."""
    parts = [tuple(order[i:i + size]) for i in range(0, len(order), size)]
    return [Batch(rows=p, frames=tuple(frames[i] for i in p), width=max(frames[i] for i in p)) for p in parts]


def schedules(cells: int) -> dict[str, tuple[Schedule, bool]]:
    """Name -> (schedule, whether the net is told the true lengths)."""
    def grouped(padding: float, exact: bool = False) -> Schedule:
        return lambda f: group(f, max_cells=cells, max_rows=MAX_ROWS, padding=padding, exact=exact)

    return {
        "one at a time": (singles, False),
        "arrival order, 16, padded": (lambda f: chunks(range(len(f)), f, 16), False),
        "sorted buckets of 16, padded": (
            lambda f: chunks(sorted(range(len(f)), key=lambda i: f[i]), f, 16),
            False,
        ),
        "equal lengths only": (grouped(0.0, exact=True), False),
        "length groups <= 2 %, masked": (grouped(PADDING), True),
        "length groups <= 10 %, masked": (grouped(0.10), True),
    }


@torch.inference_mode()
def run(
    net: nn.Module, clips: Sequence[torch.Tensor], batches: Sequence[Batch], masked: bool, classes: int
) -> np.ndarray:
    """f32[N, K] logits in the order of the clips."""
    device = clips[0].device
    out = torch.empty(len(clips), classes, device=device)
    for batch in batches:
        x = clips[0].new_zeros(len(batch.rows), *clips[0].shape[:2], batch.width)
        for place, (i, frames) in enumerate(zip(batch.rows, batch.frames, strict=True)):
            x[place, :, :, :frames] = clips[i]
        told = (
            torch.tensor(batch.frames, device=device) if masked and min(batch.frames) < batch.width else None
        )
        out[list(batch.rows)] = net(x) if told is None else net(x, told)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return out.cpu().numpy()


def build_net(family: str, device: torch.device, classes: int) -> nn.Module:
    """The family's net with Kaiming-normal convolutions: default weights would hide what padding does."""
    torch.manual_seed(0)
    net = models.build(family, {}, classes)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return net.eval().to(device)


def describe(name: str, frames: Sequence[int], batches: Sequence[Batch]) -> str:
    computed = sum(b.cells for b in batches)
    shapes = {(len(b.rows), b.width) for b in batches}
    widths = {b.width for b in batches}
    return (
        f"{name:<32}{len(batches):>8}{len(shapes):>8}{len(widths):>8}"
        f"{1 - sum(frames) / computed:>9.2%}{computed / len(batches):>12.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--family", default="simple_cnn")
    parser.add_argument("--cells", type=int, default=16384, help="frames of one batch at most")
    parser.add_argument("--plan-only", action="store_true")
    parser.add_argument("--quick", action="store_true", help="24 clips, 2 rounds")
    given = parser.parse_args()
    if given.quick:
        given.clips = 24
        given.rounds = 2
    print(describe_machine("torch", "numpy"))
    frames = draw_lengths(given.clips)
    plans = {name: (schedule(frames), masked) for name, (schedule, masked) in schedules(given.cells).items()}
    print(f"{given.clips} clips, {sum(frames)} frames, at most {given.cells} frames a batch")
    print(f"{'':32}{'batches':>8}{'shapes':>8}{'widths':>8}{'padding':>9}{'cells/batch':>12}")
    for name, (batches, _) in plans.items():
        print(describe(name, frames, batches))
    if given.plan_only:
        return
    device = torch.device(given.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    net = build_net(given.family, device, CLASSES)
    generator = np.random.default_rng(1)
    clips = [
        torch.from_numpy(generator.standard_normal((net.channels, BINS, n), dtype=np.float32)).to(device)
        for n in frames
    ]
    alone = run(net, clips, plans["one at a time"][0], False, CLASSES)
    error = {name: float(np.abs(run(net, clips, b, m, CLASSES) - alone).max() / np.abs(alone).max())
             for name, (b, m) in plans.items()}
    times = race(
        {
            name: lambda b=batches, m=masked: run(net, clips, b, m, CLASSES)
            for name, (batches, masked) in plans.items()
        },
        given.rounds,
    )
    print(
        f"\n{given.family} on {device}, {torch.get_num_threads()} threads, "
        f"medians of {given.rounds} interleaved rounds"
    )
    print(f"{'':32}{'frames/s':>10}{'wall x':>8}{'CPU x':>8}{'error':>10}")
    for name in plans:
        wall, cpu = (ratio(times["one at a time"], times[name], kind) for kind in (0, 1))
        print(
            f"{name:<32}{sum(frames) / median(times[name]):>10.0f}{wall:>8.2f}{cpu:>8.2f}{error[name]:>10.1e}"
        )


if __name__ == "__main__":
    main()
