"""Steps that mix a row with its neighbours in the same recording.

Owns these steps. None looks beyond its recording, and a missing row goes into no other: with ends = "cut" the
weights of those that remain sum to 1; with "repeat" the nearest row on the way there takes its place.
"""
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import SpecError
from ..spec.groups import read_csv
from ..spec.strict import require, require_choice
from .scaling import FG, YM, Y, check_positive
from .step import DEFAULT, Function, Piece, Sheet, Step, logit, only, per_class, sigmoid

ENDS = ("cut", "repeat")
MOST_REACH = 200  # rows on each side: a quarter of an hour of windows of 5 s; our choice
TRUNCATE = 4.0  # standard deviations of a Gaussian kernel, as in scipy.ndimage.gaussian_filter1d


def smooth(
    values: np.ndarray,
    recordings: Iterable[Sequence[int] | np.ndarray],
    weights: Sequence[float],
    left_out: np.ndarray | None = None,
) -> np.ndarray:
    """f64[N, K] with each row mixed with its neighbours in the same recording.

    recordings  row numbers of each recording in time order
    weights     an odd number of weights >= 0, the middle one, for the row itself, above 0; at the ends of a
                recording, and beside a row that is left out, those that remain sum to 1
    left_out    bool[N], or [N, K]: rows, or scores, that stay as they are and go into no other; None: none
    """
    if left_out is not None and left_out.ndim == 2:
        return _smooth_cells(values, recordings, weights, ~left_out)
    reach = len(weights) // 2
    counts = np.ones(len(values), bool) if left_out is None else ~left_out
    out = np.array(values, np.float64)
    for rows in recordings:
        index = np.asarray(rows, np.intp)
        total = np.zeros((len(index), values.shape[1]))
        mass = np.zeros(len(index))
        for shift, weight in enumerate(weights, -reach):
            here = np.arange(max(0, -shift), min(len(index), len(index) - shift))
            here = here[counts[index[here + shift]]]
            total[here] += weight * values[index[here + shift]]
            mass[here] += weight
        mixed = counts[index]
        out[index[mixed]] = total[mixed] / mass[mixed, None]
    return out


def _smooth_cells(
    values: np.ndarray, recordings: Iterable[Sequence[int] | np.ndarray], weights: Sequence[float],
    counts: np.ndarray,
) -> np.ndarray:
    """As `smooth`, where each score counts or not for itself, bool[N, K]."""
    reach = len(weights) // 2
    out = np.array(values, np.float64)
    held = np.where(counts, values, 0.0)
    for rows in recordings:
        index = np.asarray(rows, np.intp)
        total, mass = np.zeros((2, len(index), values.shape[1]))
        for shift, weight in enumerate(weights, -reach):
            here = np.arange(max(0, -shift), min(len(index), len(index) - shift))
            share = weight * counts[index[here + shift]]
            total[here] += share * held[index[here + shift]]
            mass[here] += share
        np.divide(total, mass, out=total, where=counts[index])
        out[index] = np.where(counts[index], total, out[index])
    return out


def mix(piece: Piece, weights: Sequence[float], ends: str) -> np.ndarray:
    """f64[n, K] of a recording under one kernel."""
    if ends == "cut":
        lacking = np.isnan(piece.values)
        whole = lacking.all(axis=1)
        left_out = whole if (lacking == whole[:, None]).all() else lacking
        return smooth(piece.values, [np.arange(len(piece.values))], weights, left_out)
    reach = len(weights) // 2
    total = np.zeros(piece.values.shape)
    for shift, weight in enumerate(weights, -reach):
        total += weight * piece.beside(shift)
    return total / sum(weights)


def check_kernel(weights: Sequence[float], what: str) -> None:
    """Raises SpecError, unless these are the weights of a kernel."""
    require(
        len(weights) % 2 == 1 and min(weights) >= 0 and weights[len(weights) // 2] > 0,
        f"{what}: {list(weights)}; give an odd number of weights >= 0, the middle one, for the row itself, "
        "above 0",
    )


@dataclass(frozen=True, kw_only=True)
class Smooth(Step):
    """A weighted mean of neighbouring rows.

    weights  kernel, odd length, the row's own weight in the middle; divided by its sum
    kernels  instead, one kernel per class group (`default` for the others): a table, or a CSV file with the
             columns group and weights (numbers with blanks between)
    ends     where neighbours are missing: "cut" = the weights of those that remain sum to 1; "repeat" = the
             nearest row stands for them
    groups   class groups that are smoothed; left out = all classes
    """

    scope: ClassVar[str] = "recording"
    formula: ClassVar[str] = "sum over shifts of weight * x[t + shift], per kernel / sum of weights"
    source: ClassVar[str] = (
        f"arpoyda/BirdCLEF_2024 src/inference.py 104 (five ones); {Y}, lines 262 and 314; {FG}, "
        f"TEMPORAL_SMOOTHING; {YM}, prior_fusion 28"
    )
    goldens: ClassVar[tuple[str, ...]] = (
        "smooth_box5_cut", "smooth_three_clamped", "smooth_texture_mean", "y_time_smooth", "member_post")
    weights: tuple[float, ...] = ()
    kernels: Any = None
    ends: str = "cut"
    groups: tuple[str, ...] | None = None

    def bind(self, sheet: Sheet) -> Function:
        require_choice(self.ends, ENDS, "ends")
        require(bool(self.weights) != bool(self.kernels), "give either weights or kernels")
        columns = sheet.columns(self.groups)
        if self.weights:
            check_kernel(self.weights, "weights")
            return lambda piece: only(piece.values, columns, mix(piece, self.weights, self.ends))
        kernels = [(weights, sheet.columns([group]) & columns) for group, weights in self._table(sheet)]

        def each(piece: Piece) -> np.ndarray:
            out = piece.values
            for weights, chosen in kernels:
                if chosen.any():
                    out = only(out, chosen, mix(piece, weights, self.ends))
            return out

        return each

    def _table(self, sheet: Sheet) -> list[tuple[str, tuple[float, ...]]]:
        """(group, kernel) of every group that has one, with `default` written out."""
        table: Any = self.kernels
        if isinstance(table, str):
            rows = read_csv(table, "kernels")
            require(bool(rows) and {"group", "weights"} <= set(rows[0]),
                    "kernels: needs a CSV file with the columns group and weights")
            table = {row["group"]: row["weights"].split() for row in rows}
        require(isinstance(table, Mapping), f"kernels: {table!r}; give a table by class group, or a CSV file")
        found = {}
        for group, weights in table.items():
            try:
                found[group] = tuple(float(weight) for weight in weights)
            except (TypeError, ValueError) as error:
                raise SpecError(f"kernels.{group}: {weights!r}; give numbers") from error
            check_kernel(found[group], f"kernels.{group}")
        other = found.pop(DEFAULT, None)
        if other is not None:
            found |= {group: other for group in sheet.groups if group not in found}
        sheet.columns(found)
        return list(found.items())


@dataclass(frozen=True, kw_only=True)
class SmoothGaussian(Step):
    """A Gaussian over neighbouring rows; a recording of one row stays as it is.

    sigma   standard deviation in rows; the kernel ends at 4 of them, rounded
    ends    as for `smooth`
    groups  class groups that are smoothed; left out = all classes
    """

    scope: ClassVar[str] = "recording"
    formula: ClassVar[str] = "smooth with weights exp(-shift^2 / (2 sigma^2)), up to 4 sigma"
    source: ClassVar[str] = f"{FG}, lines 1117-1135 (0.65, ends repeated)"
    goldens: ClassVar[tuple[str, ...]] = ("clip_frame_half_gauss", "chain_fg")
    sigma: float
    ends: str = "repeat"
    groups: tuple[str, ...] | None = None

    def bind(self, sheet: Sheet) -> Function:
        check_positive(self.sigma, "sigma")
        most = MOST_REACH / TRUNCATE
        require(self.sigma <= most, f"sigma: {self.sigma:g} rows; at most {most:g}")
        require_choice(self.ends, ENDS, "ends")
        columns = sheet.columns(self.groups)
        reach = int(TRUNCATE * self.sigma + 0.5)
        weights = [float(np.exp(-0.5 * (shift / self.sigma) ** 2)) for shift in range(-reach, reach + 1)]
        return lambda piece: only(piece.values, columns, mix(piece, weights, self.ends))


@dataclass(frozen=True, kw_only=True)
class SmoothLocalMax(Step):
    """Lifts a row towards the largest of itself and its two neighbours.

    share   of the maximum, 0 to 1: a number, one per class, a table by class group, or a CSV file
    groups  class groups that are changed; left out = all classes
    """

    scope: ClassVar[str] = "recording"
    formula: ClassVar[str] = "(1 - share) x + share * max(before, x, behind)"
    source: ClassVar[str] = f"{Y}, line 277 (0.15, all but Insecta and Amphibia)"
    goldens: ClassVar[tuple[str, ...]] = ("smooth_event_localmax", "y_time_smooth", "chain_y")
    share: Any = 0.15
    groups: tuple[str, ...] | None = None

    def bind(self, sheet: Sheet) -> Function:
        share = _share(self.share, sheet)
        columns = sheet.columns(self.groups)

        def lift(piece: Piece) -> np.ndarray:
            x = piece.values
            most = np.maximum(np.maximum(piece.beside(-1), x), piece.beside(1))
            return only(x, columns, (1 - share) * x + share * most)

        return lift


@dataclass(frozen=True, kw_only=True)
class SmoothAdaptive(Step):
    """Mixes a row with its neighbours the more, the less sure it is.

    share   of the neighbours in a row that hears nothing, 0 to 1: a number, one per class, a table by class
            group, or a CSV file
    ends    the first and last row: "repeat" = the row itself stands for the missing neighbour; "keep" = the
            row stays as it is
    """

    scope: ClassVar[str] = "recording"
    formula: ClassVar[str] = (
        "(1 - a) x + a (before + behind) / 2, a = share (1 - max over classes of the row)")
    source: ClassVar[str] = f"{FG}, line 474, and {YM} (repeat); {Y}, line 294 (keep)"
    goldens: ClassVar[tuple[str, ...]] = ("adaptive_delta_clamped", "adaptive_delta_open", "y_time_smooth")
    share: Any = 0.2
    ends: str = "repeat"

    def bind(self, sheet: Sheet) -> Function:
        share = _share(self.share, sheet)
        require_choice(self.ends, ("repeat", "keep"), "ends")

        def mixed(piece: Piece) -> np.ndarray:
            x = piece.values
            a = share * (1.0 - np.clip(np.fmax.reduce(x, axis=1, keepdims=True), 0.0, 1.0))
            out = (1 - a) * x + a * (piece.beside(-1) + piece.beside(1)) / 2
            if self.ends == "keep":
                there = np.pad(np.isfinite(x), ((1, 1), (0, 0)))
                out = np.where(there[:-2] & there[2:], out, x)
            return np.asarray(out)

        return mixed


def _share(value: Any, sheet: Sheet) -> np.ndarray:
    """f64[K] in 0..1. Raises SpecError."""
    share = per_class(value, sheet, "share")
    if (share > 1).any():
        raise SpecError(f"share: {share.max():g}; give 0 to 1")
    return share


@dataclass(frozen=True, kw_only=True)
class SmoothEvents(Step):
    """Spreads events over their neighbours, pulls towards the file's mean, and flattens where scores jump.

    beta       sharpness of the soft maximum of logits
    reach      rows on each side that it hears
    file_mean  share of the mean over the recording
    threshold  a step to the next row above this one is a jump
    keep       share of the row itself there
    segment    rows on each side whose mean is the rest
    """

    scope: ClassVar[str] = "recording"
    formula: ClassVar[str] = (
        "l = logsumexp(beta * logit) / beta over 2 reach + 1 rows, ends repeated; "
        "y = (1 - file_mean) sigmoid(l) + file_mean * mean over the recording; "
        "where |y[t + 1] - y[t]| > threshold: keep * y + (1 - keep) * mean of y over t -/+ segment")
    source: ClassVar[str] = "tom99763/BirdClef-2026-Codebase event_smooth/best_postproc.py, line 20"
    goldens: ClassVar[tuple[str, ...]] = ("lse_globalmean_changepoint",)
    beta: float = 4.5
    reach: int = 1
    file_mean: float = 0.175
    threshold: float = 0.06
    keep: float = 0.6
    segment: int = 2

    def bind(self, sheet: Sheet) -> Function:
        check_positive(self.beta, "beta")
        require(0 <= self.reach <= MOST_REACH and self.segment >= 0,
                f"reach and segment: whole numbers of at least 0, reach at most {MOST_REACH}")
        require(0 <= self.file_mean <= 1 and 0 <= self.keep <= 1, "file_mean and keep: 0 to 1")
        return self._flatten

    def _flatten(self, piece: Piece) -> np.ndarray:
        x = piece.values
        there = np.isfinite(x)
        if (there == there.any(axis=1, keepdims=True)).all():
            return self._of_columns(x, there.any(axis=1))
        columns = [self._of_columns(x[:, [k]], there[:, k]) for k in range(x.shape[1])]
        return np.concatenate(columns, axis=1)

    def _of_columns(self, x: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Classes that lack the same rows; rows beside a missing one are neighbours here."""
        out = np.full(x.shape, np.nan)
        if there.any():
            out[there] = self._of_rows(x[there])
        return out

    def _of_rows(self, x: np.ndarray) -> np.ndarray:
        rows = np.arange(len(x))
        z = self.beta * logit(x, 1e-9)
        parts = [z[np.clip(rows + s, 0, len(x) - 1)] for s in range(-self.reach, self.reach + 1)]
        soft = sigmoid(np.logaddexp.reduce(parts, axis=0) / self.beta)
        y = (1 - self.file_mean) * soft + self.file_mean * soft.mean(axis=0)
        jumps = np.zeros(y.shape, bool)
        jumps[:-1] = np.abs(np.diff(y, axis=0)) > self.threshold
        means = np.array([y[max(0, t - self.segment) : t + self.segment + 1].mean(axis=0) for t in rows])
        return np.asarray(np.where(jumps, self.keep * y + (1 - self.keep) * means, y))


@dataclass(frozen=True, kw_only=True)
class FileLogitMix(Step):
    """Pulls each row towards its recording's largest score, in logits; recordings in which little is heard
    lose.
    """

    scope: ClassVar[str] = "recording"
    formula: ClassVar[str] = (
        "sigmoid((L + M) / 2), L = logit(x), M = max over the recording + mean over classes of (mean - max "
        "over the recording)")
    source: ClassVar[str] = "TheoViel/kaggle_birdclef2024 src/data/dataset.py, line 300"
    goldens: ClassVar[tuple[str, ...]] = ("file_max_logit_mix",)

    def bind(self, sheet: Sheet) -> Function:
        return self._mix

    @staticmethod
    def _mix(piece: Piece) -> np.ndarray:
        z = logit(piece.values)
        there = np.isfinite(z)
        known = there.any(axis=0)
        if not known.any():
            return piece.values
        most = np.fmax.reduce(z, axis=0)
        usual = np.where(there, z, 0.0).sum(axis=0) / np.maximum(1, there.sum(axis=0))
        return sigmoid((z + most + (usual - most)[known].mean()) / 2)
