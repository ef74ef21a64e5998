"""What the engine leaves on disk so that a restart goes on where a crash stopped.

Owns the files of the private folder that outlive an engine: in-flight marks, crashes, quarantine and scores.
Each is either replaced atomically or a mark whose mere presence is the message. Decides nothing: the engine
asks for suspects and for what is quarantined, and acts on it.
"""
import itertools
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import SpecError
from ..files import write_atomically
from ..inference.devices import is_lost
from ..report.contents import Crash
from ..spec import load

QUARANTINE_AFTER = 2  # crashes with the same clip, the same row and net, or the same net being opened
PAIRS_OF_NET = 3  # quarantined rows of one net: it is the net then, our choice
FOLDS_OF_MEMBER = 2  # folds that are dropped, or skip a row: then all are, since each costs two more engines


def member_of(net_id: str) -> str:
    """Member of a net id MEMBER.FOLD."""
    return net_id.rpartition(".")[0]


class Journal:
    """The engine's files below `state`.

    crashes            what was in flight whenever an engine died
    suspects           clip ids in flight at an earlier crash, to be run first and alone
    quarantined_clips  clip ids in flight at two crashes: their rows keep the prior
    quarantined_pairs  (net id, row id) in flight at two crashes: that net skips that row, and where two folds
                       of a member do, all its folds
    quarantined_steps  keys of the user's own steps in flight at two crashes: they are left out

    A state disk that refuses a mark or scores costs the restart, never the run: `report` hears of it once.
    """

    def __init__(
        self, state: Path, attempt: int, report: Callable[[str, str, str], None] = lambda *_: None
    ) -> None:
        self._state = state
        self._report = report
        self._refused = False
        self._scores = state / "scores"
        self._inflight = state / "inflight"
        for folder in (self._scores, self._inflight):
            folder.mkdir(parents=True, exist_ok=True)
        self._choices = self._load_choices()
        self._choosing = threading.Lock()
        self._local = threading.local()
        self._names = itertools.count()
        self.crashes = (*self._load_crashes(), *self._find_marks(attempt - 1))
        self._keep("crashes.json", [vars(crash) for crash in self.crashes])
        for mark in self._inflight.iterdir():  # not before their crashes are kept
            mark.unlink()
        clips = Counter(id for crash in self.crashes if crash.kind == "clip" for id in set(crash.ids))
        pairs = Counter(
            (str(crash.net), id) for crash in self.crashes if crash.kind == "batch" for id in set(crash.ids)
        )
        steps = Counter(id for crash in self.crashes if crash.kind == "step" for id in set(crash.ids))
        self.quarantined_steps = {key for key, count in steps.items() if count >= QUARANTINE_AFTER}
        self.quarantined_clips = {id for id, count in clips.items() if count >= QUARANTINE_AFTER}
        self.suspects = set(clips) - self.quarantined_clips
        self.quarantined_pairs = {pair for pair, count in pairs.items() if count >= QUARANTINE_AFTER}
        self.suspect_pairs = set(pairs) - self.quarantined_pairs
        self._member_rows = Counter((member_of(net_id), row_id) for net_id, row_id in self.quarantined_pairs)
        self._drops = self._judge_nets()
        self._dropped_folds = Counter(map(member_of, self._drops))
        self._crashed_nets = {crash.net for crash in self.crashes if crash.net}
        self._crashed_folds = Counter(map(member_of, self._crashed_nets))
        kept = {
            "clips": sorted(self.quarantined_clips),
            "batches": sorted(self.quarantined_pairs),
            "nets": sorted(self._drops),
            "steps": sorted(self.quarantined_steps),
        }
        self._keep("quarantine.json", kept)

    def _judge_nets(self) -> dict[str, str]:
        """Net id -> why it is quarantined: opened at two crashes, or at two crashes at each of three rows."""
        openings = Counter(crash.net for crash in self.crashes if crash.kind == "net" and crash.net)
        pairs = Counter(net_id for net_id, _ in self.quarantined_pairs)
        at_rows = {net_id: f"in flight in two crashes at each of {count} rows"
                   for net_id, count in pairs.items() if count >= PAIRS_OF_NET}
        opened = {net_id: f"in flight in {count} crashes while it was opened"
                  for net_id, count in openings.items() if count >= QUARANTINE_AFTER}
        return at_rows | opened

    def choice(self, net_id: str) -> str | None:
        """The way in which an engine of this run has begun to run a net; None = none has."""
        return self._choices.get(net_id)

    def choose(self, net_id: str, way: str) -> None:
        """Keep the way in which a net runs, before its first score: a restart goes on in it."""
        with self._choosing:
            if self._choices.get(net_id) != way:
                self._choices[net_id] = way
                self._keep("choices.json", self._choices)

    def _load_choices(self) -> dict[str, str]:
        try:
            found = json.loads((self._state / "choices.json").read_bytes())
        except (OSError, ValueError):  # none yet, or cut short: the choice is made anew
            return {}
        return {str(key): str(way) for key, way in found.items()} if isinstance(found, dict) else {}

    def why_dropped(self, net_id: str) -> str | None:
        """Why a net is not opened again: its own deeds, or those of two other folds of its member."""
        folds = self._dropped_folds[member_of(net_id)]
        others = f"{folds} other folds of its member were dropped" if folds >= FOLDS_OF_MEMBER else None
        return self._drops.get(net_id, others)

    def count_quarantined(self) -> int:
        """Clips, pairs, nets and steps that are not tried again."""
        things = (self.quarantined_clips, self.quarantined_pairs, self._drops, self.quarantined_steps)
        return sum(len(several) for several in things)

    def rank_trouble(self, net_id: str) -> int:
        """0 for the nets of a member of which none was in flight at a crash; 1 where one other fold was, once
        or more often; else 2: with two folds it is the member or a row, which two crashes each will tell.
        """
        crashed = self._crashed_folds[member_of(net_id)]
        if not crashed:
            return 0
        return 2 if crashed > 1 or net_id in self._crashed_nets else 1

    @property
    def nets_in_doubt(self) -> bool:
        """True once an engine has died with a net in flight: then nets run and open one at a time."""
        return any(crash.kind not in ("clip", "step") for crash in self.crashes)

    def suspects_with(self, net_id: str) -> set[str]:
        """Row ids in flight with this net at an earlier crash, to be run first and alone."""
        return {row_id for name, row_id in self.suspect_pairs if name == net_id}

    def quarantined_with(self, net_id: str) -> set[str]:
        """Row ids that this net skips: in flight with it at two crashes, or with two folds of its member."""
        member = member_of(net_id)
        rows = {row_id for (name, row_id), folds in self._member_rows.items()
                if name == member and folds >= FOLDS_OF_MEMBER}
        return rows | {row_id for name, row_id in self.quarantined_pairs if name == net_id}

    def _load_crashes(self) -> list[Crash]:
        path = self._state / "crashes.json"
        return [load(Crash, crash) for crash in json.loads(path.read_bytes())] if path.exists() else []

    def _find_marks(self, attempt: int) -> list[Crash]:
        """What the engine of that attempt had in flight when it died."""
        crashes = []
        for mark in sorted(self._inflight.iterdir()):
            text = mark.read_bytes()
            if text:
                try:
                    named = json.loads(text)
                    for net in named.pop("nets", [named.get("net")]):  # folds that shared batches
                        crashes.append(load(Crash, {"attempt": attempt, **named, "net": net}))
                except (ValueError, SpecError):
                    # Killed while the mark itself was written: nothing was in flight yet
                    crashes.append(Crash(attempt=attempt, kind="unknown", ids=()))
        return crashes

    def _keep(self, name: str, value: object) -> None:
        try:
            write_atomically(self._state / name, json.dumps(value).encode())
        except OSError as error:
            self._refuse(name, error)

    def _refuse(self, what: str, error: OSError) -> None:
        """Name a state disk that takes nothing more, once."""
        if not self._refused:
            self._refused = True
            self._report(
                "JournalUnwritable",
                str(self._state),
                f"{what}: {error.strerror}; the run goes on, but after a "
                "crash it would begin again from what was saved before",
            )

    @contextmanager
    def flight(self, kind: str, ids: Sequence[str], *nets: str) -> Iterator[None]:
        """Name what this thread touches while it touches it; a crash inside leaves the mark behind.

        A lost device does so too, since it ends the process. The caller handles every other exception.

        kind  "clip": ids are clip ids; "batch": ids are row ids, and `nets` are on their way over them;
              "net": it is being opened, and the one id is its own; "step": the one id is its key
        """
        named: dict[str, object] = {"nets": list(nets)} if len(nets) > 1 else {"net": "".join(nets)}
        descriptor = self._mark(json.dumps({"kind": kind, "ids": list(ids), **named}).encode())
        lost = False
        try:
            yield
        except BaseException as error:
            lost = is_lost(error)
            raise
        finally:
            if descriptor is not None:
                if lost:
                    self._leave_mark(descriptor)
                else:
                    os.ftruncate(descriptor, 0)

    def _leave_mark(self, descriptor: int) -> None:
        """Keep this thread's mark: what the thread names from now on goes into another file."""
        os.close(descriptor)
        del self._local.descriptor

    def _mark(self, text: bytes) -> int | None:
        """Descriptor of this thread's mark, written; None when the state disk takes nothing more."""
        try:
            if not hasattr(self._local, "descriptor"):
                path = self._inflight / f"{next(self._names)}.json"
                self._local.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            os.pwrite(self._local.descriptor, text, 0)
        except OSError as error:
            self._refuse("in-flight mark", error)
        return getattr(self._local, "descriptor", None)

    def note_published(self, scores: int) -> None:
        """Keep how many scores of nets in rows the submission holds."""
        self._keep("holds.json", scores)

    def published(self) -> int:
        """How many the last published submission holds; 0 where that is not known."""
        try:
            return int(json.loads((self._state / "holds.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return 0

    def save_scores(self, net_id: str, scores: np.ndarray) -> None:
        """Keep f[N, K] of one net (NaN = not yet) over a crash."""
        path = self._scores / f"{net_id}.npy"
        # The main thread and a worker may both save
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
        try:
            scores = np.load(self._scores / f"{net_id}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return scores if scores.shape == shape and scores.dtype.kind == "f" else None
