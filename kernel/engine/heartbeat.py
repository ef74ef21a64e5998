"""What tells the guard that the engine lives, what it is at and how far it is.

Owns the heartbeat file and the thread that writes it. Does not judge: what counts as hung is the guard's.
"""
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files import write_atomically

BEAT_EVERY_S = 0.5


class Heartbeat:
    """Beats every half second until `close`. Thread-safe.

    unit         what is being done ("start", a net id, "publish");  forecast_s: how long it should take
    scored_rows  rows with a score;  quarantined: clips, (net, row) pairs and nets, for the guard's count of
                 what a restart brought;  scores: of nets in rows, for whoever shows how far the run is
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._progress = 0
        self.scored_rows = 0
        self.scores = 0
        self.quarantined = 0
        self.unit = "start"
        self._forecast_s = 0.0
        self._finished = False
        self._stop = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Something was done: the engine does not hang."""
        self._progress += 1

    @contextmanager
    def beating(self, most_s: float) -> Iterator[None]:
        """Beats while the body works, for `most_s` at most: foreign code tells nothing of its progress."""
        ended = threading.Event()
        until = time.monotonic() + most_s

        def go_on() -> None:
            while not ended.wait(BEAT_EVERY_S) and time.monotonic() < until:
                self.beat()

        thread = threading.Thread(target=go_on, name="beating", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def begin(self, unit: str, forecast_s: float = 0.0) -> None:
        """Begin a unit of work; counts as progress.

        The guard hears of it at once: a net that holds the interpreter keeps the next beat, and an engine
        that hangs in a step would look like one that is starting, which has twice the time.
        """
        self.unit = unit
        self._forecast_s = forecast_s
        self.beat()
        self._try_to_write()

    def close(self) -> None:
        """The last beat: all is done. It tells this exit from a library's own `_exit(0)`."""
        self._stop.set()
        self._thread.join()
        self._finished = True
        self._write()

    def _beat_on(self) -> None:
        while not self._stop.wait(BEAT_EVERY_S):
            self._try_to_write()

    def _try_to_write(self) -> None:
        try:
            self._write()
        except OSError:  # a full state disk must not end the beat; the guard sees a stale time if it lasts
            return

    def _write(self) -> None:
        beat = {
            "t": time.monotonic(),
            "progress": self._progress,
            "unit": self.unit,
            "forecast_s": self._forecast_s,
            "scored_rows": self.scored_rows,
            "scores": self.scores,
            "quarantined": self.quarantined,
            "finished": self._finished,
            "pid": os.getpid(),
        }
        write_atomically(self._path, json.dumps(beat).encode())
