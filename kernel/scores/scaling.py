"""Steps that scale scores: by a file's largest ones, by powers, temperatures, thresholds and ranks.

Owns these steps. Each changes a score by others of its own class, or of its own row (`group_max`,
`softmax_share`).
"""
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import SpecError
from .means import ranks_of_column
from .step import Function, Piece, Sheet, Step, logit, only, per_class, sigmoid

FG = "FlorentinGe/Birdclef2026-2ndplace, ensemble inference script"
Y = "yannan90/birdclef-2026-private-9th-public-2nd-solution, infer_kernel_folds.py"
YM = "yamayana1974-lab/birdclef-2026-silver"


def ranks(scores: np.ndarray) -> np.ndarray:
    """f64[N, K]: within each class the rank of each score / their number, in (0, 1]; ties share their mean
    rank, missing scores stay NaN.
    """
    out = np.full(scores.shape, np.nan)
    for k in range(scores.shape[1]):
        there = np.isfinite(scores[:, k])
        out[there, k] = ranks_of_column(scores[there, k])
    return out


def check_positive(value: float, what: str) -> None:
    """Raises SpecError for a number that is not above 0."""
    if not value > 0:
        raise SpecError(f"{what}: {value}; give a number above 0")


@dataclass(frozen=True, kw_only=True)
class FileTop(Step):
    """Scales a recording by its largest scores: what is heard nowhere for sure is heard nowhere.

    top           the mean of so many largest rows counts; of fewer, where the recording has fewer
    power         exponent of that mean
    only_rows_of  the step runs only where the number of rows is a multiple of this
    """

    scope: ClassVar[str] = "recording"
    formula: ClassVar[str] = "x * m^power, m = mean of the top largest x of the recording and class"
    source: ClassVar[str] = f"{FG}, lines 459 and 467, and CONF_SCALE (2661); {Y}; {YM}"
    goldens: ClassVar[tuple[str, ...]] = ("file_topk_power", "file_max_power", "member_post", "chain_y")
    top: int = 1
    power: float = 1.0
    only_rows_of: int = 1

    def bind(self, sheet: Sheet) -> Function:
        if self.top < 1 or self.only_rows_of < 1:
            raise SpecError(f"top = {self.top}, only_rows_of = {self.only_rows_of}; both are 1 or more")
        check_positive(self.power, "power")
        return self._scale

    def _scale(self, piece: Piece) -> np.ndarray:
        if len(piece.values) % self.only_rows_of:
            return piece.values
        ordered = np.sort(piece.values, axis=0)  # NaN comes last
        count = np.isfinite(ordered).sum(axis=0)
        place = np.arange(len(ordered))[:, None]
        counted = (place < count) & (place >= count - self.top)
        top = np.where(counted, ordered, 0.0).sum(axis=0) / np.maximum(1, counted.sum(axis=0))
        return np.asarray(piece.values * np.clip(top, 0.0, 1.0) ** self.power)


@dataclass(frozen=True, kw_only=True)
class Power(Step):
    """A power of each score.

    power  exponent: a number, one per class, a table by class group, or a CSV file
    """

    formula: ClassVar[str] = "x^power"
    source: ClassVar[str] = f"pseudo labels of {FG} (1.54, 1.82, 1.67)"
    power: Any

    def bind(self, sheet: Sheet) -> Function:
        power = per_class(self.power, sheet, "power", least=1e-9)
        return lambda piece: np.asarray(np.maximum(piece.values, 0.0) ** power)


@dataclass(frozen=True, kw_only=True)
class Temperature(Step):
    """Divides the logit.

    temperature  a number, one per class, a table by class group, or a CSV file; above 1 = less sure
    """

    formula: ClassVar[str] = "sigmoid(logit(x) / temperature)"
    source: ClassVar[str] = f"{FG}, line 263 (0.95 for Amphibia and Insecta, 1.10 for others)"
    goldens: ClassVar[tuple[str, ...]] = ("chain_fg",)
    temperature: Any

    def bind(self, sheet: Sheet) -> Function:
        temperature = per_class(self.temperature, sheet, "temperature", least=1e-9)
        return lambda piece: sigmoid(logit(piece.values) / temperature)


@dataclass(frozen=True, kw_only=True)
class Cut(Step):
    """Keeps scores within bounds; below the lower one they become equal, and share a rank later on.

    low, high  the bounds
    """

    formula: ClassVar[str] = "min(max(x, low), high)"
    source: ClassVar[str] = f"{FG}, lines 2797-3068 (1e-5 and 1 - 1e-5 before ranks)"
    goldens: ClassVar[tuple[str, ...]] = ("fg_blend", "ym_blend_gates")
    low: float = 0.0
    high: float = 1.0

    def bind(self, sheet: Sheet) -> Function:
        if not 0.0 <= self.low < self.high <= 1.0:
            raise SpecError(f"low = {self.low}, high = {self.high}; 0 <= low < high <= 1")
        return lambda piece: np.clip(piece.values, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class ThresholdRemap(Step):
    """Moves the threshold of each class to 0.5, linear on both sides.

    threshold  a number, one per class, a table by class group, or a CSV file; in 0..1
    """

    formula: ClassVar[str] = "x > t: 0.5 + 0.5 (x - t) / (1 - t + 1e-8); else 0.5 x / (t + 1e-8)"
    source: ClassVar[str] = f"{FG}, line 492"
    goldens: ClassVar[tuple[str, ...]] = ("threshold_remap",)
    threshold: Any

    def bind(self, sheet: Sheet) -> Function:
        t = per_class(self.threshold, sheet, "threshold")
        if (t > 1).any():
            raise SpecError(f"threshold: {t.max():g} for {sheet.classes[int(t.argmax())]}; give 0 to 1")
        return lambda piece: np.asarray(np.where(
            piece.values > t, 0.5 + 0.5 * (piece.values - t) / (1 - t + 1e-8), 0.5 * piece.values / (t + 1e-8)
        ))


@dataclass(frozen=True, kw_only=True)
class GroupMax(Step):
    """Classes that nobody can tell apart get the largest of their scores, row by row.

    groups  lists of class names, or names of class_groups
    """

    formula: ClassVar[str] = "x[row, class] = max over the classes of its group"
    source: ClassVar[str] = f"{Y}, line 353; {FG}, GATE4_MIRROR (groups of sonotypes)"
    goldens: ClassVar[tuple[str, ...]] = ("group_max", "fg_blend", "ym_blend_gates")
    groups: tuple[Any, ...]

    def bind(self, sheet: Sheet) -> Function:
        found = [np.flatnonzero(sheet.columns([group])) if isinstance(group, str)
                 else np.array([sheet.place(str(name)) for name in group], int) for group in self.groups]
        if not found or min(len(set(columns.tolist())) for columns in found) < 2:
            raise SpecError(f"groups: {list(self.groups)!r}; give groups of at least two classes")

        def spread(piece: Piece) -> np.ndarray:
            out = piece.values.copy()
            for columns in found:
                out[:, columns] = np.fmax.reduce(piece.values[:, columns], axis=1, keepdims=True)
            return out

        return spread


@dataclass(frozen=True, kw_only=True)
class SoftmaxShare(Step):
    """Scales each score by its share of its row: rows in which much is heard lose.

    temperature  of the softmax
    """

    formula: ClassVar[str] = "x * softmax over classes of (x / temperature)"
    source: ClassVar[str] = f"{FG}, GATE_SR (0.15; switched off there)"
    goldens: ClassVar[tuple[str, ...]] = ("fg_blend",)
    temperature: float = 0.15

    def bind(self, sheet: Sheet) -> Function:
        check_positive(self.temperature, "temperature")

        def scale(piece: Piece) -> np.ndarray:
            z = np.where(np.isnan(piece.values), -np.inf, piece.values / self.temperature)
            e = np.exp(z - z.max(axis=1, keepdims=True))
            return np.asarray(piece.values * e / e.sum(axis=1, keepdims=True))

        return scale


@dataclass(frozen=True, kw_only=True)
class Rank(Step):
    """Ranks within each class, over all rows of all files; ties share their mean rank.

    from_zero  false: rank / rows, 1/N to 1; true: (rank - 1) / (rows - 1), 0 to 1
    groups     class groups that are ranked; left out = all classes
    """

    scope: ClassVar[str] = "table"
    formula: ClassVar[str] = "rank(x) / N, or (rank(x) - 1) / (N - 1)"
    source: ClassVar[str] = f"{FG}, lines 2797-3068; blend_sc_pl, line 93 (from zero)"
    goldens: ClassVar[tuple[str, ...]] = ("fg_blend", "rank_normalise_0_1", "pseudo_rank_gate")
    from_zero: bool = False
    groups: tuple[str, ...] | None = None

    def bind(self, sheet: Sheet) -> Function:
        columns = sheet.columns(self.groups)

        def rank(piece: Piece) -> np.ndarray:
            found = ranks(piece.values)
            if self.from_zero:
                count = np.isfinite(piece.values).sum(axis=0)
                found = np.where(count > 1, (found * count - 1) / np.maximum(1, count - 1), 0.5 * found)
            return only(piece.values, columns, found)

        return rank
