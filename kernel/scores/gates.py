"""Gates: steps that change a blend where another member's table says so.

Owns these steps. They compare ranks over all rows, so their scope is the table. A row that the other member
lacks stays as it is. Where a gate has acted, no later one of the same list does.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..spec.strict import require
from .scaling import FG, YM, ranks
from .smoothing import MOST_REACH, mix
from .step import Function, Piece, Sheet, Step

GATES = f"{FG}, lines 2797-3068; {YM}, inference/scheme_model_5/blend.py 43"


def check_shares(**shares: float) -> None:
    """Raises SpecError naming a key that is not in 0..1."""
    for name, share in shares.items():
        require(0.0 <= share <= 1.0, f"{name}: {share}; give 0 to 1")


def act(piece: Piece, where: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """The piece's values with `changed` where the gate acts, bool[n, K], and none has before; it is noted."""
    where = where & ~piece.acted
    piece.acted[where] = True
    return np.where(where, changed, piece.values)


@dataclass(frozen=True, kw_only=True)
class GateNoise(Step):
    """Where the gate alone hears something, its rank is mixed in.

    gate          name of the member or group that decides
    others        names of those that must hear nothing
    above         its score must be larger
    others_below  the mean of theirs must be smaller
    share         of its rank in the result
    """

    scope: ClassVar[str] = "table"
    formula: ClassVar[str] = (
        "where gate > above and mean of others < others_below: (1 - share) x + share * rank(gate) / N")
    source: ClassVar[str] = f"{GATES}: GATE1_NOISE"
    goldens: ClassVar[tuple[str, ...]] = ("fg_blend", "ym_blend_gates")
    gate: str
    others: tuple[str, ...]
    above: float = 0.5
    others_below: float = 0.05
    share: float = 0.08

    def reads(self) -> tuple[str, ...]:
        return self.gate, *self.others

    def bind(self, sheet: Sheet) -> Function:
        check_shares(share=self.share, above=self.above, others_below=self.others_below)
        require(bool(self.others), "others: none; name the members that must hear nothing")

        def gated(piece: Piece) -> np.ndarray:
            gate = piece.others[self.gate][piece.rows]
            others = np.mean([piece.others[name][piece.rows] for name in self.others], axis=0)
            where = (gate > self.above) & (others < self.others_below)
            return act(piece, where, (1 - self.share) * piece.values + self.share * ranks(gate))

        return gated


@dataclass(frozen=True, kw_only=True)
class GateSustained(Step):
    """Where the gate ranks high for several rows in a row, the rank is mixed in.

    gate         name of the member or group that decides
    reach        rows on each side over which its scores are smoothed
    width        of that kernel, in rows
    above        the rank of the smoothed scores must be larger
    gate_above   its own rank must be larger, too
    share        of the larger of both ranks in the result
    quiet        name of a member whose score must be below quiet_below; left out = none
    quiet_below  see there
    """

    scope: ClassVar[str] = "table"
    formula: ClassVar[str] = (
        "s = gate under the kernel (1 + (shift / width)^2 / 2)^-1.5, ends repeated; where rank(s) / N > "
        "above and rank(gate) / N > gate_above: (1 - share) x + share * the larger of both")
    source: ClassVar[str] = f"{GATES}: GATE2_TEMPORAL (quiet: YM alone, 0.12)"
    goldens: ClassVar[tuple[str, ...]] = ("fg_blend", "ym_blend_gates", "chain_fg")
    gate: str
    reach: int = 3
    width: float = 1.2
    above: float = 0.88
    gate_above: float = 0.75
    share: float = 0.15
    quiet: str | None = None
    quiet_below: float = 0.12

    def reads(self) -> tuple[str, ...]:
        return (self.gate,) if self.quiet is None else (self.gate, self.quiet)

    def bind(self, sheet: Sheet) -> Function:
        check_shares(share=self.share, above=self.above, gate_above=self.gate_above,
                     quiet_below=self.quiet_below)
        require(0 <= self.reach <= MOST_REACH and self.width > 0,
                f"reach: 0 to {MOST_REACH}; width: above 0")
        shifts = np.arange(-self.reach, self.reach + 1)
        weights = ((1 + (shifts / self.width) ** 2 / 2) ** -1.5).tolist()

        def gated(piece: Piece) -> np.ndarray:
            gate = piece.others[self.gate][piece.rows]
            smoothed = ranks(_smoothed(gate, sheet.recordings, weights))
            own = ranks(gate)
            where = (smoothed > self.above) & (own > self.gate_above)
            if self.quiet is not None:
                where &= piece.others[self.quiet][piece.rows] < self.quiet_below
            larger = np.maximum(smoothed, own)
            return act(piece, where, (1 - self.share) * piece.values + self.share * larger)

        return gated


def _smoothed(table: np.ndarray, recordings: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """f64[N, K] with each recording under the kernel, ends repeated."""
    out = table.copy()
    for rows in recordings:
        out[rows] = mix(Piece(values=table[rows], rows=rows), weights, "repeat")
    return out


@dataclass(frozen=True, kw_only=True)
class GateSpike(Step):
    """Where one net ranks very high and the gate does not, that rank is mixed in.

    gate        name of the member or group that must rank lower
    others      names of those of which one must rank high
    above       the largest rank of theirs must be larger
    gate_below  its rank must be smaller
    share       of that largest rank in the result
    """

    scope: ClassVar[str] = "table"
    formula: ClassVar[str] = (
        "r = largest of rank(other) / N; where r > above and rank(gate) / N < gate_below: (1 - share) x + "
        "share * r")
    source: ClassVar[str] = f"{GATES}: GATE3_SPIKE"
    goldens: ClassVar[tuple[str, ...]] = ("fg_blend", "ym_blend_gates")
    gate: str
    others: tuple[str, ...]
    above: float = 0.95
    gate_below: float = 0.80
    share: float = 0.12

    def reads(self) -> tuple[str, ...]:
        return self.gate, *self.others

    def bind(self, sheet: Sheet) -> Function:
        check_shares(share=self.share, above=self.above, gate_below=self.gate_below)
        require(bool(self.others), "others: none; name the members of which one must rank high")

        def gated(piece: Piece) -> np.ndarray:
            gate = ranks(piece.others[self.gate][piece.rows])
            most = np.maximum.reduce([ranks(piece.others[name][piece.rows]) for name in self.others])
            where = (most > self.above) & (gate < self.gate_below)
            return act(piece, where, (1 - self.share) * piece.values + self.share * most)

        return gated


@dataclass(frozen=True, kw_only=True)
class DampRare(Step):
    """Lowers the scores of some groups where they are no higher than usual.

    groups  class groups that are changed
    margin  above the mean over all rows
    factor  of what lies below that
    """

    scope: ClassVar[str] = "table"
    formula: ClassVar[str] = "x < mean over all rows + margin: factor * x"
    source: ClassVar[str] = f"{GATES}: GATE5_RARE (Amphibia, Mammalia, Reptilia)"
    goldens: ClassVar[tuple[str, ...]] = ("fg_blend", "ym_blend_gates")
    groups: tuple[str, ...]
    margin: float = 0.05
    factor: float = 0.9

    def bind(self, sheet: Sheet) -> Function:
        check_shares(factor=self.factor)
        columns = sheet.columns(self.groups)

        def damp(piece: Piece) -> np.ndarray:
            there = np.isfinite(piece.values)
            usual = np.where(there, piece.values, 0.0).sum(axis=0) / np.maximum(1, there.sum(axis=0))
            return np.where(columns & (piece.values < usual + self.margin), piece.values * self.factor,
                            piece.values)

        return damp
