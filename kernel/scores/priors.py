"""Steps that know where and when a recording was made, by its file name.

Owns these steps and the tables of priors behind them. A row whose name tells nothing stays as it is.
"""
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import SpecError
from ..spec.groups import read_csv
from ..spec.strict import require
from .scaling import FG, YM
from .step import Function, Piece, Sheet, Step, logit, pattern_of, sigmoid

HOURS = 24
# Names such as BC2026_Test_0000_S15_20250101_060000: site, date, time of day.
SITE_AND_TIME = r"_(?P<site>S[0-9]+)_[0-9]{8}_(?P<hour>[0-9]{2})[0-9]{4}"
LEAST_PRIOR = 1e-4
WEIGHT_OF = {"hour": 8.0, "site": 8.0, "both": 4.0}  # n rows weigh n / (n + this) against the wider table
SMOOTH_FROM, SMOOTH_SIGMA = 3, 1.5  # hours known from which on their tables are smoothed; hours


@dataclass(frozen=True, kw_only=True)
class PriorTables:
    """Mean labels f64[K] and numbers of rows: of everything, by hour, by site, and by both."""

    everywhere: np.ndarray
    hours: Mapping[int, tuple[np.ndarray, int]]
    sites: Mapping[str, tuple[np.ndarray, int]]
    both: Mapping[tuple[str, int], tuple[np.ndarray, int]]

    def of(self, site: str | None, hour: int | None) -> np.ndarray:
        """f64[K]: how often each class was labelled there and then; unknown ones are skipped."""
        q = self.everywhere
        levels = (
            ("hour", self.hours.get(hour) if hour is not None else None),
            ("site", self.sites.get(site) if site is not None else None),
            ("both", self.both.get((site, hour)) if site is not None and hour is not None else None),
        )
        for name, found in levels:
            if found is not None:
                share = found[1] / (found[1] + WEIGHT_OF[name])
                q = share * found[0] + (1 - share) * q
        return q


def count_priors(labels: np.ndarray, sites: Sequence[str | None], hours: Sequence[int | None]) -> PriorTables:
    """The tables of labels [n, K], true where > 0, of n rows at these sites and hours (0 to 23).

    Source: FlorentinGe/Birdclef2026-2ndplace, ensemble inference script, line 362.
    """
    y = (np.asarray(labels) > 0).astype(np.float64)
    rows: dict[str, dict[Any, list[int]]] = {name: defaultdict(list) for name in WEIGHT_OF}
    for i, (site, hour) in enumerate(zip(sites, hours, strict=True)):
        if hour is not None:
            rows["hour"][hour].append(i)
        if site is not None:
            rows["site"][site].append(i)
        if site is not None and hour is not None:
            rows["both"][site, hour].append(i)
    found = {name: {key: (y[at].mean(axis=0), len(at)) for key, at in table.items()}
             for name, table in rows.items()}
    if len(found["hour"]) >= SMOOTH_FROM:
        smoothed = _smooth_hours(found["hour"], y.shape[1])
        found["hour"] = {hour: (smoothed[hour], count) for hour, (_, count) in found["hour"].items()}
    return PriorTables(everywhere=y.mean(axis=0), hours=found["hour"], sites=found["site"],
                       both=found["both"])


def _smooth_hours(tables: Mapping[int, tuple[np.ndarray, int]], classes: int) -> np.ndarray:
    """f64[24, K] of the hours' tables under a Gaussian round the clock; unseen hours count as 0."""
    day = np.zeros((HOURS, classes))
    for hour, (table, _) in tables.items():
        day[hour] = table
    reach = int(4 * SMOOTH_SIGMA + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SMOOTH_SIGMA) ** 2)
    weights /= weights.sum()
    return np.asarray(sum(w * np.roll(day, -shift, axis=0)
                          for shift, w in enumerate(weights.tolist(), -reach)))


def site_and_hour(name: str, pattern: re.Pattern[str]) -> tuple[str | None, int | None]:
    """What a file name tells; None = nothing."""
    match = pattern.search(name)
    if match is None:
        return None, None
    found = match.groupdict()
    hour = found.get("hour") or ""
    in_day = hour.isdecimal() and int(hour) < HOURS
    return found.get("site"), int(hour) if in_day else None


@dataclass(frozen=True, kw_only=True)
class SiteHourPrior(Step):
    """Adds the log odds of a class at the recording's site and hour.

    labels   CSV file of labelled rows: a column `file` (or row_id, filename) with the name, a column `labels`
             (or primary_label) with classes between blanks, commas or semicolons
    weight   of the prior's log odds
    pattern  regular expression with the groups `site` and `hour`, searched in file names
    """

    formula: ClassVar[str] = (
        "sigmoid(logit(x) + weight * logit(q)), q in 1e-4 .. 1 - 1e-4: q = mean label; then with n rows of "
        "the hour, w = n / (n + 8), q = w * theirs + (1 - w) q; of the site the same; of both "
        "w = n / (n + 4); with 3 hours known and more, those are smoothed round the clock (sigma 1.5)")
    source: ClassVar[str] = f"{FG}, lines 362 and 423 (0.4); {YM} (0.5)"
    goldens: ClassVar[tuple[str, ...]] = ("prior_tables", "prior_apply")
    labels: str
    weight: float = 0.4
    pattern: str = SITE_AND_TIME

    def bind(self, sheet: Sheet) -> Function:
        pattern = pattern_of(self.pattern, ("site", "hour"))
        tables = self._tables(sheet, pattern)
        known: dict[tuple[str | None, int | None], np.ndarray] = {}

        def odds(file: str) -> np.ndarray:
            where = site_and_hour(file, pattern)
            if where not in known:
                known[where] = logit(tables.of(*where), LEAST_PRIOR)
            return known[where]

        def apply(piece: Piece) -> np.ndarray:
            added = np.array([odds(sheet.files[row]) for row in piece.rows.tolist()])
            return sigmoid(logit(piece.values) + self.weight * added.reshape(piece.values.shape))

        return apply

    def _tables(self, sheet: Sheet, pattern: re.Pattern[str]) -> PriorTables:
        require(self.labels.endswith("\n"), f"labels: {self.labels!r}; name a CSV file beside the TOML")
        rows = read_csv(self.labels, "labels")
        columns = set(rows[0]) if rows else set()
        name = next((c for c in ("file", "row_id", "filename") if c in columns), None)
        told = next((c for c in ("labels", "primary_label") if c in columns), None)
        if name is None or told is None:
            raise SpecError("labels: needs rows, and the columns file (or row_id, filename) and labels (or "
                            f"primary_label); it has {', '.join(sorted(columns)) or 'none'}")
        y = np.zeros((len(rows), len(sheet.classes)))
        for i, row in enumerate(rows):
            for label in re.split(r"[\s,;]+", row[told]):
                if label:
                    y[i, sheet.place(label)] = 1
        places = [site_and_hour(row[name], pattern) for row in rows]
        require(any(site is not None for site, _ in places),
                f"labels: the pattern {self.pattern!r} fits no name, such as {rows[0][name]!r}")
        return count_priors(y, [site for site, _ in places], [hour for _, hour in places])


@dataclass(frozen=True, kw_only=True)
class HourPrior(Step):
    """Multiplies the odds of class groups by what the hour of the day makes of them.

    ratios   CSV file with the columns hour (0 to 23), group and ratio (above 0); what it does not name stays
    pattern  regular expression with the group `hour`, searched in file names
    """

    formula: ClassVar[str] = "sigmoid(logit(x) + ln ratio(hour, group of the class)), x in 1e-6 .. 1 - 1e-6"
    source: ClassVar[str] = f"{FG}, line 1542 (switched off there)"
    goldens: ClassVar[tuple[str, ...]] = ("hour_prior_taxon",)
    ratios: str
    pattern: str = SITE_AND_TIME

    def bind(self, sheet: Sheet) -> Function:
        pattern = pattern_of(self.pattern, ("hour",))
        table = self._table(sheet)

        def apply(piece: Piece) -> np.ndarray:
            hours = [site_and_hour(sheet.files[row], pattern)[1] for row in piece.rows.tolist()]
            known = np.array([hour is not None for hour in hours], bool)
            added = table[[hour or 0 for hour in hours]].reshape(piece.values.shape)
            return np.where(known[:, None], sigmoid(logit(piece.values, 1e-6) + added), piece.values)

        return apply

    def _table(self, sheet: Sheet) -> np.ndarray:
        """f64[24, K], logarithms of the ratios."""
        require(self.ratios.endswith("\n"), f"ratios: {self.ratios!r}; name a CSV file beside the TOML")
        table = np.zeros((HOURS, len(sheet.classes)))
        for row in read_csv(self.ratios, "ratios"):
            require({"hour", "group", "ratio"} <= set(row), "ratios: needs the columns hour, group and ratio")
            try:
                hour, ratio = int(row["hour"]), float(row["ratio"])
            except ValueError as error:
                raise SpecError(f"ratios: {row}: {error}") from error
            require(0 <= hour < HOURS and 0 < ratio < float("inf"),
                    f"ratios: hour {hour}, ratio {ratio}; hours are 0 to 23, ratios above 0")
            table[hour, sheet.columns([row["group"]])] = np.log(ratio)
        return table


@dataclass(frozen=True, kw_only=True)
class SiteFloor(Step):
    """Lifts classes that are known to live at a site to a least score.

    sites    site -> its class names
    floor    the least score
    pattern  regular expression with the group `site`, searched in file names
    """

    formula: ClassVar[str] = "max(x, floor) for the classes of the recording's site"
    source: ClassVar[str] = f"{FG}, GATE6_STATION (0.65; switched off there)"
    goldens: ClassVar[tuple[str, ...]] = ("fg_blend",)
    sites: Any
    floor: float = 0.65
    pattern: str = SITE_AND_TIME

    def bind(self, sheet: Sheet) -> Function:
        lists = isinstance(self.sites, Mapping) and all(isinstance(v, (list, tuple))
                                                        for v in self.sites.values())
        require(lists and bool(self.sites),
                f"sites: {self.sites!r}; give a table of site names, each with a list of classes")
        require(0 <= self.floor <= 1, f"floor: {self.floor}; give 0 to 1")
        pattern = pattern_of(self.pattern, ("site",))
        columns = {site: [sheet.place(str(name)) for name in names] for site, names in self.sites.items()}

        def lift(piece: Piece) -> np.ndarray:
            out = piece.values.copy()
            for i, row in enumerate(piece.rows.tolist()):
                at = columns.get(site_and_hour(sheet.files[row], pattern)[0] or "")
                if at:
                    out[i, at] = np.maximum(out[i, at], self.floor)
            return out

        return lift
