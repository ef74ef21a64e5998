"""What the engine leaves on disk so that a restart goes on where a crash stopped.

Owns the files of the private state folder that the engine writes: heartbeat, in-flight marks, crash counts,
quarantine and scores. Everything is either replaced atomically or a mark whose mere presence is the message.
Does not decide anything: the engine asks for suspects and quarantined ids and acts on them.
"""
from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_atomically

QUARANTINE_AFTER = 2  # crashes with the same clip or batch in flight (DESIGN 2)
HEARTBEAT_S = 0.5


class Journal:
    """The engine's files below `state`.

    suspects     clip ids in flight at an earlier crash, to be run first and alone
    quarantined  clip ids in flight at two crashes: their rows keep the prior
    dropped      (net id, row id) pairs in flight at two crashes

    A state disk that refuses a mark or scores costs the restart, never the run: `report` hears of it once.
    """

    def __init__(self, state: Path, attempt: int, report: Callable[[str, str, str], None] = lambda *_: None):
        self.state, self.attempt, self._report = state, attempt, report
        self._refused = False
        self.scores, self.inflight = state / "scores", state / "inflight"
        for folder in (self.scores, self.inflight):
            folder.mkdir(parents=True, exist_ok=True)
        self._local = threading.local()
        self._crashes: list[dict[str, Any]] = self._load("crashes.json", [])
        self._take_leftovers()
        clips = Counter(i for crash in self._crashes if crash["kind"] == "clip" for i in set(crash["ids"]))
        pairs = Counter(
            (crash["net"], i)
            for crash in self._crashes
            if crash["kind"] == "batch"
            for i in set(crash["ids"])
        )
        self.quarantined = {i for i, n in clips.items() if n >= QUARANTINE_AFTER}
        self.suspects = set(clips) - self.quarantined
        self.dropped = {pair for pair, n in pairs.items() if n >= QUARANTINE_AFTER}
        self.suspect_rows = {pair for pair in pairs if pair not in self.dropped}
        self._keep("quarantine.json", {"clips": sorted(self.quarantined), "batches": sorted(self.dropped)})

    def suspects_with(self, net_id: str) -> set[str]:
        """Row ids in flight with this net at an earlier crash, to be run first and alone."""
        return {row for name, row in self.suspect_rows if name == net_id}

    def _load(self, name: str, default: Any) -> Any:
        path = self.state / name
        return json.loads(path.read_bytes()) if path.exists() else default

    def _take_leftovers(self) -> None:
        """Turn in-flight marks of a dead engine into crash records."""
        for mark in sorted(self.inflight.iterdir()):
            text = mark.read_bytes()
            if text and not mark.name.startswith("."):
                try:
                    self._crashes.append({"attempt": self.attempt - 1, **json.loads(text)})
                except ValueError:  # killed while the mark itself was written: nothing was in flight yet
                    self._crashes.append({"attempt": self.attempt - 1, "kind": "unknown", "ids": []})
        if any(self.inflight.iterdir()):
            self._keep("crashes.json", self._crashes)
            for mark in self.inflight.iterdir():
                mark.unlink()

    def _keep(self, name: str, value: Any) -> None:
        try:
            write_atomically(self.state / name, json.dumps(value).encode())
        except OSError as error:
            self._refuse(name, error)

    def _refuse(self, what: str, error: OSError) -> None:
        """Name a state disk that takes nothing more, once."""
        if not self._refused:
            self._refused = True
            self._report(
                "JournalUnwritable",
                str(self.state),
                f"{what}: {error.strerror}; the run goes on, but after a crash it "
                "would begin again from what was saved before",
            )

    @property
    def crashes(self) -> list[dict[str, Any]]:
        return list(self._crashes)

    @contextmanager
    def flight(self, kind: str, ids: Sequence[str], net: str = "") -> Iterator[None]:
        """Name what this thread touches while it touches it; a crash inside leaves the mark behind."""
        descriptor = self._mark(json.dumps({"kind": kind, "ids": list(ids), "net": net}).encode())
        try:
            yield
        finally:  # an exception is handled by the caller: only a dead process leaves its mark
            if descriptor is not None:
                os.ftruncate(descriptor, 0)

    def _mark(self, text: bytes) -> int | None:
        """Descriptor of this thread's mark, written; None when the state disk takes nothing more."""
        try:
            descriptor: int | None = getattr(self._local, "descriptor", None)
            if descriptor is None:
                path = self.inflight / f"{threading.get_ident()}.json"
                descriptor = self._local.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            os.pwrite(descriptor, text, 0)
            return descriptor
        except OSError as error:
            self._refuse("in-flight mark", error)
            return getattr(self._local, "descriptor", None)

    def save_scores(self, net_id: str, scores: np.ndarray) -> None:
        """Keep f32[N, K] of one net (NaN = not yet) over a crash."""
        path = self.scores / f"{net_id}.npy"
        # the main thread and a worker may both save
        temporary = path.with_suffix(f".{threading.get_ident()}.tmp")
        try:
            with open(temporary, "wb") as file:
                np.save(file, scores, allow_pickle=False)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self._refuse(path.name, error)

    def load_scores(self, net_id: str, shape: tuple[int, int]) -> np.ndarray | None:
        """Scores saved before a crash, or None; a damaged file counts as none."""
        path = self.scores / f"{net_id}.npy"
        try:
            scores = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return scores if scores.shape == shape and scores.dtype == np.float32 else None


class Heartbeat:
    """A thread that tells the guard every half second that the engine lives and how far it is.

    progress  any change means progress; `unit` what is being done; `forecast_s` how long that unit should
              take
    """

    def __init__(self, path: Path):
        self.path = path
        self.progress, self.scored_rows, self.quarantined = 0, 0, 0
        self.unit, self.forecast_s = "start", 0.0
        self.finished = False
        self._stop = threading.Event()
        self.write()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def write(self) -> None:
        write_atomically(
            self.path,
            json.dumps(
                {
                    "t": time.monotonic(),
                    "progress": self.progress,
                    "unit": self.unit,
                    "forecast_s": self.forecast_s,
                    "scored_rows": self.scored_rows,
                    "quarantined": self.quarantined,
                    "finished": self.finished,
                    "pid": os.getpid(),
                }
            ).encode(),
        )

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            self._try_to_write()

    def _try_to_write(self) -> None:
        try:
            self.write()
        except OSError:  # a full state disk must not end the beat; the guard sees a stale time if it lasts
            return

    def step(self, unit: str, forecast_s: float = 0.0) -> None:
        """Begin a unit of work; counts as progress. The guard hears of it at once: a net that holds the
        interpreter keeps the next beat, and an engine that hangs in a step would look like one that is
        starting, which has twice the time."""
        self.unit, self.forecast_s = unit, forecast_s
        self.progress += 1
        self._try_to_write()

    def close(self) -> None:
        """The last beat: everything is done, so that the guard can tell this exit from a library's own
        `_exit(0)`.
        """
        self._stop.set()
        self._thread.join()
        self.finished = True
        self.write()
