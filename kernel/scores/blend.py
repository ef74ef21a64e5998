"""From the nets' probabilities to one score per row and class: folds -> members -> stackers -> ensemble.

Owns the `Board` (what every net has said so far), the blend with everything that may be missing, and what a
stacker is fed. Compares and merges numbers only: it runs no net, plans nothing and writes no file.

A row is missing in a net as a whole: one NaN in a row makes the row missing there. Tables are merged block by
block, so that beside the result only a few MB are needed.
"""
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..spec import LEAST_PROBABILITY, ROW_DEPENDENT_MEANS, Ensemble, Group, Member, Part, Stacker, net_ids
from .class_weights import ALL, equal_weights, fill_prior, fill_unknown, part_weights
from .means import mean, present

BLOCK_VALUES = 1 << 17  # of each part's table that are merged at once: 1 MB, which stays in a core's cache
WHOLE = (slice(None), slice(None))


class Board:
    """Probabilities of every net, [N, K] of one type (f32 unless told otherwise).

    NaN = not yet, or never where the net has given the row up. Several devices' threads may add at once, each
    for nets of its own.
    """

    def __init__(self, rows: int, classes: int, dtype: type[np.floating] = np.float32) -> None:
        self.shape = (rows, classes)
        self.dtype = dtype
        self._scores: dict[str, np.ndarray] = {}
        self._covered: dict[str, np.ndarray] = {}
        self._given_up: dict[str, np.ndarray] = {}
        self._voices = np.zeros(rows, np.int32)  # nets that cover each row
        self._changes = Counter[str]()
        self._lock = threading.Lock()

    def add(self, net_id: str, rows: np.ndarray, probs: np.ndarray) -> None:
        """Put `probs` f[n, K] of the row numbers `rows` int[n] on the board, over what stood there.

        Raises  ValueError when the shapes do not fit the board
        """
        rows = np.asarray(rows, dtype=np.intp)
        if probs.shape != (len(rows), self.shape[1]):
            raise ValueError(
                f"{net_id}: scores of shape {probs.shape} for {len(rows)} rows x {self.shape[1]} classes"
            )
        if net_id not in self._scores:
            self._covered[net_id] = np.zeros(self.shape[0], bool)
            self._scores[net_id] = np.full(self.shape, np.nan, self.dtype)
        said = present(np.asarray(probs))
        self._scores[net_id][rows] = np.where(said[:, None], probs, np.nan)
        self._cover(net_id, rows, said)

    def load(self, net_id: str, scores: np.ndarray) -> None:
        """Put saved scores f[N, K] of a whole net on the board.

        Raises  ValueError when the shape does not fit the board
        """
        if scores.shape != self.shape:
            raise ValueError(
                f"{net_id}: saved scores of shape {scores.shape}, this run has {self.shape}; delete the file"
            )
        said = present(scores)
        self._scores[net_id] = scores.astype(self.dtype)
        self._scores[net_id][~said] = np.nan
        self._covered.setdefault(net_id, np.zeros(self.shape[0], bool))
        self._cover(net_id, np.arange(self.shape[0]), said)

    def _cover(self, net_id: str, rows: np.ndarray, said: np.ndarray) -> None:
        """Note in which of these rows int[n], each there once, the net has said something usable."""
        covered = self._covered[net_id]
        with self._lock:
            self._voices[rows] += said.astype(np.int32) - covered[rows]
            covered[rows] = said
            self._changes[net_id] += 1

    def changes(self, net_id: str) -> int:
        """How often the net's rows on the board have changed: what is known of them holds until it grows."""
        return self._changes[net_id]

    def count(self) -> int:
        """Scores of nets in rows, in all."""
        return int(self._voices.sum())

    def scored(self) -> np.ndarray:
        """bool[N]: rows that any net covers."""
        return self._voices > 0

    def give_up(self, net_id: str, rows: Sequence[int] | None = None) -> None:
        """Nothing more comes from the net in these row numbers; None = in any row."""
        given_up = self._given_up.setdefault(net_id, np.zeros(self.shape[0], bool))
        given_up[slice(None) if rows is None else list(rows)] = True
        with self._lock:
            self._changes[net_id] += 1

    def settled(self, net_id: str) -> np.ndarray:
        """bool[N]: rows on which the net has spoken or never will."""
        return self.covered(net_id) | self._given_up.get(net_id, np.zeros(self.shape[0], bool))

    def get(self, net_id: str) -> np.ndarray:
        """f[N, K] of one net, whole rows of NaN where it has not said anything; read-only."""
        if net_id not in self._scores:
            return np.broadcast_to(self.dtype(np.nan), self.shape)
        view = self._scores[net_id].view()
        view.flags.writeable = False
        return view

    def covered(self, net_id: str) -> np.ndarray:
        """bool[N]: rows on which the net has said something usable."""
        if net_id not in self._scores:
            return np.zeros(self.shape[0], bool)
        return self._covered[net_id].copy()


def open_board(ensemble: Ensemble, rows: int) -> Board:
    """An empty board for the ensemble's nets.

    It is f64 where a mean works on logits: in f32 every probability of a logit above 17.3 is exactly 1.
    """
    fine = "logit" in _means(ensemble)
    return Board(rows, len(ensemble.classes), np.float64 if fine else np.float32)


@dataclass(frozen=True, kw_only=True)
class Blend:
    """What the submission is written from.

    values      f64[N, K], finite, in [1e-30, 1]
    full        bool[N]: every net of every part with weight > 0 went into the row, and every fold that its
                stackers read
    prior_rows  bool[N]: rows without any part; they hold the prior
    prior_cells bool[N, K]: scores that are the prior in other rows, where no part that is there has a say in
                the class; None where there are none
    """

    values: np.ndarray
    full: np.ndarray
    prior_rows: np.ndarray
    prior_cells: np.ndarray | None = None


def blend(
    ensemble: Ensemble, board: Board, prior: np.ndarray, finished: Collection[str] | None = None
) -> Blend:
    """The ensemble's scores from whatever is on the board.

    Weighted mean over members and stackers; in each row the weights of those present sum to 1. Where weights
    depend on the class (`weights_by`, members that do not know it), in each row and class. There are two
    fallbacks. A row that has no part with weight > 0 takes the present members equally: an ensemble whose
    stackers decide and whose members have weight 0, before the stackers have run. A row that has no part at
    all takes `prior` f[K]. Both hold for single classes, too: until a member that knows a class has run, the
    class's prior stands there, as it is, and goes into no mean.

    With `row_independent = false` a part counts only when it is complete: all its nets are in `finished` (net
    ids), or, without that list, cover every row that any net covers. While no part is complete, what is there
    counts as it is. Whether rows are compared at all is `levels`' to know.
    """
    parts = ensemble.parts
    keep = [True] * len(parts)
    if not ensemble.row_independent:
        complete = [is_complete(part, board, finished, parts) for part in parts]
        keep = complete if any(complete) else keep
    by_part = zip(parts, part_weights(ensemble, parts), strict=True)
    deciding = [part for part, weights in by_part if (weights > 0).any()] or parts
    full = full_rows(deciding, ensemble, board)  # before the scores are read: nets may go on meanwhile
    lone = np.zeros(board.shape[0], bool)
    values = np.empty(board.shape)
    for block in _blocks(ensemble, board.shape):
        merged = np.stack([merge_folds(part, board, block) for part in parts])
        merged[[not kept for kept in keep]] = np.nan
        found, alone = blend_block(ensemble, parts, merged, block[1])
        lone[block[0]] |= alone
        values[block] = found
    prior_rows, prior_cells = fill_prior(values, prior)
    return Blend(
        values=np.clip(values, LEAST_PROBABILITY, 1.0, out=values),
        full=full & ~prior_rows & ~lone,
        prior_rows=prior_rows,
        prior_cells=prior_cells,
    )


def full_rows(deciding: Iterable[Part], ensemble: Ensemble, board: Board) -> np.ndarray:
    """bool[N]: rows that every fold of these parts covers, and of the members that their stackers read."""
    parts = list(deciding)
    read = [member for part in parts if isinstance(part, Stacker) for member in _inputs(part, ensemble)]
    return _all(complete_rows(part, board) for part in [*parts, *read])


def _means(ensemble: Ensemble) -> set[str]:
    """Every mean that the ensemble uses."""
    groups = (group.mean for group in ensemble.groups)
    return {ensemble.mean, *(part.fold_mean for part in ensemble.parts), *groups}


def count_tables(ensemble: Ensemble) -> int:
    """Tables f64[N, K] that a blend holds at once beside the board: its result, and what smooths it.

    Where one mean compares rows and another compares classes, nothing can be merged piece by piece: every
    part's table, sorted and ranked, is there too (measured on 3 parts of 24,000 x 264: 11.5 tables).
    """
    means = _means(ensemble)
    whole = "vote" in means and bool(means.intersection(ROW_DEPENDENT_MEANS))
    by_class = part_weights(ensemble, ensemble.parts).ndim == 2  # which cells are prior, and more weights
    if not whole:
        return 3 if by_class else 2
    return 4 + 5 * len(ensemble.parts) if by_class else 2 + 4 * len(ensemble.parts)


def _blocks(ensemble: Ensemble, shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Pieces of the table that can be merged each for itself: rows, or classes where a mean compares rows."""
    rows, classes = shape
    means = _means(ensemble)
    if not means.intersection(ROW_DEPENDENT_MEANS):
        count = max(1, BLOCK_VALUES // max(1, classes))
        yield from ((slice(start, start + count), slice(None)) for start in range(0, rows, count))
    elif "vote" in means:  # it compares classes
        yield WHOLE
    else:
        count = max(1, BLOCK_VALUES // max(1, rows))
        yield from ((slice(None), slice(start, start + count)) for start in range(0, classes, count))


def blend_block(
    ensemble: Ensemble, parts: Sequence[Part | Group], merged: np.ndarray, columns: slice = ALL
) -> tuple[np.ndarray, np.ndarray]:
    """f64[n, k] of the parts' f64[parts, n, k], and bool[n]: rows that only parts of weight 0 decide, all of
    them or some class; NaN where no part has a say.

    columns  the classes that the block holds
    """
    weights = part_weights(ensemble, parts)
    alike = equal_weights(ensemble, parts)
    if weights.ndim == 2:
        weights, alike = weights[:, columns], alike[:, columns]
    values = mean(ensemble.mean, merged, weights, ensemble.mean_power)
    nobody = np.isnan(values) & np.asarray(present(merged).any(axis=0))[:, None]
    if not nobody.any():
        return values, np.zeros(len(values), bool)
    alone = mean(ensemble.mean, merged, alike, ensemble.mean_power)
    lone = nobody & ~np.isnan(alone)
    return np.where(lone, alone, values), lone.any(axis=1)


def is_complete(
    part: Part, board: Board, finished: Collection[str] | None, parts: Iterable[Part]
) -> bool:
    """True when nothing of the part is still to come (see `blend`)."""
    if finished is not None:
        spoken = any(board.covered(net_id).any() for net_id in net_ids(part))
        return spoken and all(net_id in finished for net_id in net_ids(part))
    seen = _any(begun_rows(p, board) for p in parts)
    return bool(seen.any() and not (seen & ~complete_rows(part, board)).any())


def merge_folds(
    part: Part, board: Board, block: tuple[slice | np.ndarray, slice] = WHOLE
) -> np.ndarray:
    """f64[n, k] mean over the folds that are present in each row of a block; NaN rows where none is.

    block  a slice of the rows or their numbers int[n], and a slice of the classes
    """
    stack = np.stack([board.get(net_id)[block] for net_id in net_ids(part)])
    if len(stack) == 1:
        merged = stack[0].astype(np.float64)
    else:
        merged = mean(part.fold_mean, stack, part.fold_weights if isinstance(part, Member) else ())
    return fill_unknown(part, merged, board.shape[1], block[1])


def complete_rows(part: Part, board: Board) -> np.ndarray:
    """bool[N]: rows that every fold of the part covers."""
    return _all(board.covered(net_id) for net_id in net_ids(part))


def begun_rows(part: Part, board: Board) -> np.ndarray:
    """bool[N]: rows that any fold of the part covers."""
    return _any(board.covered(net_id) for net_id in net_ids(part))


def _all(masks: Iterable[np.ndarray]) -> np.ndarray:
    """bool[N]: rows that are True in every mask bool[N]."""
    return np.asarray(np.logical_and.reduce(list(masks)))


def _any(masks: Iterable[np.ndarray]) -> np.ndarray:
    """bool[N]: rows that are True in at least one mask bool[N]."""
    return np.asarray(np.logical_or.reduce(list(masks)))


def stacker_rows(stacker: Stacker, ensemble: Ensemble, board: Board) -> np.ndarray:
    """int[n]: row numbers on which no input waits for a fold, and each has at least one."""
    ready = []
    for member in _inputs(stacker, ensemble):
        ready.append(_all(board.settled(net_id) for net_id in net_ids(member)))
        ready.append(begun_rows(member, board))
    return np.flatnonzero(_all(ready))


def hopeless_rows(stacker: Stacker, ensemble: Ensemble, board: Board) -> np.ndarray:
    """int[n]: row numbers that the stacker can never have: an input has no fold there, and none will come."""
    lonely = []
    for member in _inputs(stacker, ensemble):
        settled = _all(board.settled(net_id) for net_id in net_ids(member))
        lonely.append(settled & ~begun_rows(member, board))
    return np.flatnonzero(_any(lonely))


def count_lacking(stacker: Stacker, ensemble: Ensemble, board: Board, rows: Sequence[int]) -> dict[str, int]:
    """Net id -> on how many of these row numbers a stacker reads its input without this fold."""
    nets = input_nets(stacker, ensemble)
    counts = {net_id: int((~board.covered(net_id)[list(rows)]).sum()) for net_id in nets}
    return {net_id: count for net_id, count in counts.items() if count}


def stacker_features(stacker: Stacker, ensemble: Ensemble, board: Board) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of `stacker_rows` and the stacker's input for them, from the folds that are there.

    Returns  rows int[n]; "concat": f32[n, inputs * K] in the order of stacker.inputs (argus);
             "per_class": f32[n, K, inputs] and, when average_weights are given, their weighted average last
             (qrfaction)
    """
    rows = stacker_rows(stacker, ensemble, board)
    stack = np.stack([merge_folds(member, board)[rows] for member in _inputs(stacker, ensemble)])
    if stacker.features == "concat":
        width = len(stacker.inputs) * board.shape[1]
        return rows, stack.transpose(1, 0, 2).reshape(len(rows), width).astype(np.float32)
    if stacker.average_weights:
        stack = np.concatenate([stack, mean("arithmetic", stack, stacker.average_weights)[None]])
    return rows, np.ascontiguousarray(stack.transpose(1, 2, 0), dtype=np.float32)


def input_nets(stacker: Stacker, ensemble: Ensemble) -> list[str]:
    """Net ids of the members that a stacker reads."""
    return [net_id for member in _inputs(stacker, ensemble) for net_id in net_ids(member)]


def _inputs(stacker: Stacker, ensemble: Ensemble) -> list[Member]:
    by_name = {member.name: member for member in ensemble.members}
    return [by_name[name] for name in stacker.inputs]
