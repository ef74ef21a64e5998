"""How far a run is: a line per step or every 15 s in a log, a live bar on a terminal.

Owns the current rate (over the last half minute, not since the start) and when something is printed.
Does not measure memory or forecast: the engine hands the figures in.
"""
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from ..units import seconds_text
from .terminal import say

LINE_EVERY_S = 15.0
RATE_OVER_S = 30.0  # the rate shown is that of the last half minute


@dataclass(frozen=True, kw_only=True)
class State:
    """Figures of one moment.

    t                    seconds since the start
    step, nets           what is being done; how many nets are done, "3/35"
    done, total          rows of that step
    scored, to_score     (row, net) pairs of the whole run
    ram, ram_limit, disk bytes
    left_s               forecast of everything not yet done
    deadline_s           seconds to the stop mark
    """

    t: float
    step: str
    nets: str
    done: int
    total: int
    scored: int
    to_score: int
    ram: float
    ram_limit: float
    disk: float
    left_s: float
    deadline_s: float


class Pace:
    """(row, net) pairs per second over the last RATE_OVER_S."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, t: float, count: int) -> None:
        """Take the number of pairs scored until `t`."""
        self._seen.append((t, count))
        while len(self._seen) > 2 and self._seen[1][0] <= t - RATE_OVER_S:
            self._seen.popleft()

    def per_s(self) -> float:
        """0.0 before there are two points in time."""
        if not self._seen or self._seen[-1][0] <= self._seen[0][0]:
            return 0.0
        began, before = self._seen[0]
        ended, after = self._seen[-1]
        return (after - before) / (ended - began)


def line(state: State, rate: float) -> str:
    """One line: what, how far, how fast, what it holds, and whether it will be done before the deadline."""
    late = state.left_s > state.deadline_s
    return (
        f"[hourglass] {state.step} ({state.nets} nets done) | {state.done}/{state.total} clips"
        f", {state.scored}/{state.to_score} by all nets | {rate:.1f} clips/s"
        f" | RAM {state.ram / 1e9:.2f}/{state.ram_limit / 1e9:.1f} GB"
        f" | disk {state.disk / 1e9:.2f} GB"
        f" | ETA {seconds_text(state.left_s)}, deadline in {seconds_text(state.deadline_s)}"
        + (": not everything will fit" if late else "")
    )


class Progress:
    """Prints progress; `update` as often as you like.

    stream  a terminal gets a bar (if tqdm is there); for anything else lines go to `write`
    """

    def __init__(self, stream: TextIO | None = None, write: Callable[[str], None] = say) -> None:
        self._write = write
        self._pace = Pace()
        self._last: tuple[float, str] = (0.0, "")
        self._bar = _open_bar(stream or sys.stdout)

    def update(self, state: State) -> None:
        """Take the figures; print a line when the step is new or 15 s have passed, or move the bar."""
        self._pace.add(state.t, state.scored)
        if self._bar is not None:
            self._bar.total = state.to_score
            self._bar.n = state.scored
            self._bar.set_description_str(f"{state.step} ({state.nets} nets)", refresh=False)
            self._bar.set_postfix_str(
                f"RAM {state.ram / 1e9:.2f}/{state.ram_limit / 1e9:.1f} GB, disk {state.disk / 1e9:.2f} GB, "
                f"ETA {seconds_text(state.left_s)} of {seconds_text(state.deadline_s)}"
            )
            return
        then, step = self._last
        if state.step != step or state.t - then >= LINE_EVERY_S:
            self._print(state)

    def _print(self, state: State) -> None:
        self._last = (state.t, state.step)
        self._write(line(state, self._pace.per_s()))

    def close(self, state: State) -> None:
        """End with the final counts in a log; end the bar, so that what follows has a line of its own."""
        if self._bar is not None:
            self._bar.close()
            return
        self._pace.add(state.t, state.scored)
        self._print(state)


def _open_bar(stream: TextIO) -> Any:
    """A tqdm bar on a terminal, else None."""
    if not stream.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(
        file=stream,
        unit="clip",
        dynamic_ncols=True,
        mininterval=0.5,
        leave=False,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {rate_fmt} {postfix}",
    )
