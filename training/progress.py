"""Progress of a training run: a bar with the time left on a terminal, plain lines with it elsewhere.

Owns the estimate. Does not log (loop writes the CSV).
"""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any


class Progress:
    """Counts epochs over all nets of a run.

    quiet  True: says nothing; now: monotonic seconds
    """

    def __init__(self, quiet: bool = False, now: Callable[[], float] = time.monotonic) -> None:
        self._quiet, self._now = quiet, now
        self._started = self._since = now()
        self._expected: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._worked = 0
        self._bar: Any = None

    def expect(self, epochs: Mapping[str, int]) -> None:
        """Tells how many epochs every net will have."""
        self._expected = dict(epochs)
        self._since = self._now()
        if not self._quiet and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return  # plain lines do as well
            self._bar = tqdm(total=sum(self._expected.values()), unit="epoch", dynamic_ncols=True)

    def advance(self, net: str, epoch: int, text: str) -> None:
        """One more epoch of `net` was trained; `text` says how."""
        self._worked += 1
        self._count(net, epoch)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{net}: {text}")
        else:
            self.say(
                f"{net} epoch {epoch}/{self._expected.get(net, epoch)}: {text}, {format_time(self.seconds_left())} left"
            )

    def finish(self, net: str) -> None:
        """`net` is finished, with fewer epochs than expected perhaps."""
        self._count(net, self._expected.get(net, 0))

    def _count(self, net: str, epochs: int) -> None:
        if self._bar is not None:
            self._bar.update(epochs - self._done.get(net, 0))
        self._done[net] = epochs

    def seconds_left(self) -> float:
        """Estimate from the epochs that this process really trained."""
        left = sum(total - self._done.get(net, 0) for net, total in self._expected.items())
        return left * (self._now() - self._since) / max(1, self._worked)

    def say(self, text: str) -> None:
        """One line, above the bar if there is one."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(f"{self._now() - self._started:7.0f} s  {text}", flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def format_time(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
