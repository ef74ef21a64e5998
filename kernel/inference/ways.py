"""Precision and layout of a net on a GPU: the ways that are tried on its first batch, and the choice.

Owns `Way`, `Precision` (what a member's nets agree on, so that one of them measures for all) and `choose`.
How a net is made ready for a way is `backends`; what runs when it fails later is `runner`.
"""
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from .devices import Device, is_lost, is_out_of_memory

Inputs = Mapping[str, torch.Tensor]
Run = Callable[[Inputs, torch.Tensor | None], torch.Tensor]
AGREEMENT_FP32 = 1e-5  # between back ends, relative to the largest output or 1
AGREEMENT_HALF = 2e-2  # half precision against fp32, relative to the largest output or 1
LEAST_PROBABILITY = 1e-30  # what a mean of scores takes for nothing: a smaller one counts as this
CHECK_ROWS = 256  # rows of the first batch on which ways are checked and timed
ROUNDS = 3  # each way is timed so often, in turn; the best counts
FASTER = 0.95  # another way must take less than this share of the time of fp32
EXACT = "fp32"  # as torch lays it out, and what all others must agree with
HALF = "fp16"
LAST = "channels-last"
NAMES = (f"{HALF}, {LAST}", f"{EXACT}, {LAST}", HALF, EXACT)  # a path ends with one of them


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run a net; `build` makes it ready, which may take memory of the device."""

    name: str
    build: Callable[[], Run]

    @property
    def half(self) -> bool:
        return self.name.startswith(HALF)

    @property
    def tolerance(self) -> float:
        """Largest difference from fp32, relative to the largest output or 1."""
        return AGREEMENT_HALF if self.half else AGREEMENT_FP32


@dataclass(kw_only=True)
class Precision:
    """The way in which a member's nets run: found by the first of them, obeyed by a restart. None = open."""

    way: str | None = None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The way that was taken (None: fp32 as it is), how it runs, and how far it is from fp32."""

    way: Way
    run: Run
    apart: float


def way_of(path: str | None) -> str | None:
    """The name of the way in a report's path of a net on a GPU ("torch cuda, folded, fp16"), or None."""
    if path is None or not path.startswith("torch cuda"):
        return None
    return next((name for name in NAMES if path.endswith(name)), None)


def differ(fast: torch.Tensor, slow: torch.Tensor, probabilities: bool) -> float:
    """Largest difference over the largest value or 1; of logarithms where these are probabilities."""
    if probabilities:
        fast = fast.clamp(min=LEAST_PROBABILITY).log()
        slow = slow.clamp(min=LEAST_PROBABILITY).log()
    return float((fast - slow).abs().max() / slow.abs().max().clamp(min=1.0))


def first_rows(
    inputs: Inputs, frames: torch.Tensor | None
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """The rows of a batch on which ways are tried."""
    return {k: v[:CHECK_ROWS] for k, v in inputs.items()}, None if frames is None else frames[:CHECK_ROWS]


def choose(
    ways: Sequence[Way],
    exact: Run,
    inputs: Inputs,
    frames: torch.Tensor | None,
    probabilities: bool,
    precision: Precision,
    device: Device,
    notes: list[str],
) -> Chosen | None:
    """The fastest way that agrees with fp32 on these rows; None where that is fp32 itself.

    Where a member's way is known, it is checked and not timed.

    Raises  torch.OutOfMemoryError and its like, and the error of a lost device
    """
    wanted = [way for way in ways if precision.way in (None, way.name)]
    inputs, frames = first_rows(inputs, frames)
    slow = exact(inputs, frames).float() if wanted else None
    agreed: list[Chosen] = []
    for way in wanted:
        try:
            run = way.build()
            apart = differ(run(inputs, frames).float(), slow, probabilities)  # type: ignore[arg-type]
        except Exception as error:
            if is_out_of_memory(error) or is_lost(error):
                raise
            notes.append(f"{way.name} failed ({type(error).__name__}: {str(error)[:200]}); it is not used")
            continue
        if apart <= way.tolerance:
            agreed.append(Chosen(way=way, run=run, apart=apart))
        else:
            kind = "log-probabilities" if probabilities else EXACT
            notes.append(f"{way.name} differed from {kind} by {apart:.2g}, above {way.tolerance}; not used")
    chosen = agreed[0] if agreed else None
    if agreed and precision.way is None:
        chosen = _fastest(agreed, exact, inputs, frames, device, notes)
    if precision.way is None:
        precision.way = EXACT if chosen is None else chosen.way.name
    return chosen


def _fastest(
    agreed: Sequence[Chosen],
    exact: Run,
    inputs: Inputs,
    frames: torch.Tensor | None,
    device: Device,
    notes: list[str],
) -> Chosen | None:
    """The fastest of ways that have run before; None where fp32 is about as fast."""
    best = dict.fromkeys([EXACT, *(one.way.name for one in agreed)], float("inf"))
    for _ in range(ROUNDS):
        for name, run in [(EXACT, exact), *((one.way.name, one.run) for one in agreed)]:
            best[name] = min(best[name], _seconds(run, inputs, frames, device))
    told = ", ".join(f"{name} {1000 * seconds:.2f} ms" for name, seconds in best.items())
    rows = len(next(iter(inputs.values())))
    notes.append(f"timed on {rows} passes: {told}")
    fastest = min(agreed, key=lambda one: best[one.way.name])
    return fastest if best[fastest.way.name] < FASTER * best[EXACT] else None


def _seconds(run: Run, inputs: Inputs, frames: torch.Tensor | None, device: Device) -> float:
    """Seconds of one forward, waited for."""
    wait(device)
    began = time.perf_counter()
    run(inputs, frames)
    wait(device)
    return time.perf_counter() - began


def wait(device: Device) -> None:
    """Until a GPU has done all that it was told."""
    if device.cuda and torch.cuda.is_available():
        torch.cuda.synchronize(device.name)
