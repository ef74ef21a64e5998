"""Progress of a training run: a bar with the time left on a terminal, plain lines with it elsewhere.

Owns the estimate from the epochs done. Does not log (trainer writes the CSV).
"""
import sys
import time
from collections.abc import Callable, Mapping

from tqdm import tqdm

from kernel.units import seconds_text


class Progress:
    """Counts epochs over all nets of a run.

    quiet  True: says nothing; now: monotonic seconds
    """

    def __init__(self, quiet: bool = False, now: Callable[[], float] = time.monotonic) -> None:
        self._quiet = quiet
        self._now = now
        self._started = self._since = now()
        self._expected: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._worked = 0
        self._bar = tqdm(disable=True)

    def expect(self, epochs: Mapping[str, int]) -> None:
        """Tells how many epochs every net will have."""
        self._expected = dict(epochs)
        self._since = self._now()
        hidden = self._quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=sum(epochs.values()), unit="epoch", dynamic_ncols=True, disable=hidden)

    def advance(self, net: str, epoch: int, text: str) -> None:
        """One more epoch of `net` was trained; `text` says how."""
        self._worked += 1
        self._count(net, epoch)
        self._bar.set_postfix_str(f"{net}: {text}")
        if self._bar.disable:
            total = self._expected.get(net, epoch)
            self.say(f"{net} epoch {epoch}/{total}: {text}, {seconds_text(self.seconds_left())} left")

    def finish(self, net: str) -> None:
        """`net` is finished, with fewer epochs than expected perhaps."""
        self._count(net, self._expected.get(net, 0))

    def _count(self, net: str, epochs: int) -> None:
        self._bar.update(epochs - self._done.get(net, 0))
        self._done[net] = epochs

    def seconds_left(self) -> float:
        """Estimate from the epochs that this process really trained."""
        left = sum(total - self._done.get(net, 0) for net, total in self._expected.items())
        return left * (self._now() - self._since) / max(1, self._worked)

    def say(self, text: str) -> None:
        """One line, above the bar if there is one."""
        if not self._bar.disable:
            self._bar.write(text)
        elif not self._quiet:
            print(f"{self._now() - self._started:7.0f} s  {text}", flush=True)

    def close(self) -> None:
        """Ends the bar, so that what follows starts on a line of its own."""
        self._bar.close()
