"""Labelled clips of every source as one table: adapters of the known layouts.

Owns `Clips` and the table ADAPTERS. Does not read audio (features) and does not split (folds).
"""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kernel.errors import SpecError, did_you_mean

from . import lookup

ADAPTER = "labelled"  # Of a recipe that names none.
MANY_SOUNDS = ("kitchen20",)  # Sources whose unlabelled clips may still hold one of the classes.


@dataclass(frozen=True, kw_only=True)
class Clips:
    """N labelled clips.

    folder   the ids are paths below it
    ids      one per clip, unique
    targets  f32[N, K] in 0..1; a row of zeros is a negative
    groups   recording, speaker or take: clips of one group never stand in two folds
    fixed    fold number prescribed by the source, -1 = free
    source   where each clip comes from; quality: how its label was found ("" = unknown)
    noisy    bool[N], True where nobody checked the label
    extra    further columns for reports, by name
    """

    folder: Path
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    targets: np.ndarray
    groups: tuple[str, ...]
    fixed: np.ndarray
    source: tuple[str, ...]
    quality: tuple[str, ...]
    noisy: np.ndarray
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> "Clips":
        """The clips at the given positions (or of a boolean mask)."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows

        def pick(values: Sequence[str]) -> tuple[str, ...]:
            return tuple(values[int(i)] for i in rows)

        return Clips(
            folder=self.folder,
            classes=self.classes,
            ids=pick(self.ids),
            targets=self.targets[rows],
            groups=pick(self.groups),
            fixed=self.fixed[rows],
            source=pick(self.source),
            quality=pick(self.quality),
            noisy=self.noisy[rows],
            extra={k: pick(v) for k, v in self.extra.items()},
        )


def encode(label_sets: Sequence[Sequence[str]], classes: Sequence[str], where: str) -> np.ndarray:
    """f32[N, K] multi-hot of label names.

    Raises  SpecError naming the first unknown label
    """
    index = {name: k for k, name in enumerate(classes)}
    targets = np.zeros((len(label_sets), len(classes)), np.float32)
    unknown = {name: i for i, names in reversed(list(enumerate(label_sets))) for name in names
               if name not in index}
    if unknown:
        raise SpecError(_explain(unknown, classes, where))
    for i, names in enumerate(label_sets):
        for name in names:
            targets[i, index[name]] = 1.0
    return targets


def _explain(unknown: Mapping[str, int], classes: Sequence[str], where: str) -> str:
    """What is wrong with labels (and their first rows) that are no class, and what helps."""
    name = min(unknown, key=lambda name: unknown[name])
    more = f" (nor are {len(unknown) - 1} others)" if len(unknown) > 1 else ""
    shown = ", ".join(classes[:3])
    joined = next((sign for sign in ",;|/ "
                   if sign in name and {part.strip() for part in name.split(sign)} <= set(classes)), None)
    if joined is not None:
        cure = f"it holds several: write separator = {joined!r} in [data]"
    else:
        cure = (f"{did_you_mean(name, classes) if len(classes) <= 20 else _near(name, classes)} The recipe's "
                f"`classes` names {len(classes)} ({shown} ...)")
    return f"{where}: label {name!r} of row {unknown[name]} is no class{more}; {cure}"


def _near(name: str, classes: Sequence[str]) -> str:
    """The nearest class as a question, or a request: a long list of classes helps nobody."""
    found = did_you_mean(name, classes)
    return found if found.startswith("did you mean") else "correct the label or the list of classes."


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); check --data") from error
    except ValueError as error:  # pandas' own errors and those of the encoding
        raise SpecError(f"{path}: no CSV in UTF-8 ({str(error).strip()}); save it as one") from error


def _columns(table: pd.DataFrame, path: Path, names: Sequence[str]) -> None:
    for name in names:
        if name not in table.columns:
            raise SpecError(f"{path}: no column {name!r}; {did_you_mean(name, table.columns)}")


def _make(
    folder: Path, classes: Sequence[str], ids: Sequence[str], targets: np.ndarray, **more: Any
) -> Clips:
    """Checked clips; where a layout says nothing, each clip is its own group and its fold is free."""
    n = len(ids)
    if len(set(ids)) != n:
        twice = next(i for i in ids if list(ids).count(i) > 1)
        raise SpecError(f"{folder}: the clip {twice!r} is listed twice; keep one row")
    values: dict[str, Any] = {
        "groups": tuple(ids),
        "fixed": np.full(n, -1),
        "source": ("",) * n,
        "quality": ("",) * n,
        "noisy": np.zeros(n, bool),
        **more,
    }
    return Clips(folder=folder, classes=tuple(classes), ids=tuple(ids), targets=targets, **values)


def read_labelled(data: Path, classes: Sequence[str], *, licences: Sequence[str] = ("permissive", "copyleft"),
                  unlabelled_out: Sequence[str] = MANY_SOUNDS, target: str = "labels") -> Clips:
    """Clips of a folder with clips/ and labels.csv (fname, labels, licence_class, group, fold and so on).

    licences        licence classes that are used; empty = all
    unlabelled_out  sources whose clips without a label are left out; those of other sources become negatives
    target          column of the labels: "labels" or "emotion" (then rows without one are left out)
    Raises  SpecError
    """
    path = data / "labels.csv"
    table = _table(path)
    _columns(table, path, ("fname", target, "licence_class", "label_quality", "group", "fold"))
    table["folder"] = table.fname.str.split("/").str[0]
    keep = table.licence_class.isin(licences) if licences else pd.Series(True, table.index)
    empty = table[target] == ""
    keep &= ~empty if target == "emotion" else ~(empty & table.folder.isin(list(unlabelled_out)))
    table = table[keep].reset_index(drop=True)
    targets = encode([[x for x in text.split(",") if x] for text in table[target]], classes, str(path))
    return _make(data / "clips", classes, list(table.fname), targets, groups=tuple(table.group),
                 fixed=np.array([int(x) - 1 if x else -1 for x in table.fold]), source=tuple(table.folder),
                 quality=tuple(table.label_quality), extra={"licence": tuple(table.licence)})


def read_csv(
    data: Path,
    classes: Sequence[str],
    *,
    csv: str = "labels.csv",
    folder: str = "clips",
    id_column: str = "fname",
    label_column: str = "labels",
    group_column: str = "",
    fold_column: str = "",
    separator: str = ",",
) -> Clips:
    """Clips of any CSV with a column of file names and one of labels.

    csv           the table, below --data
    folder        the clips, below --data; the file names are paths below it
    id_column     column of the file names
    label_column  column of the labels; an empty cell is a clip without any class
    group_column  column of recordings, speakers or takes that never stand in two folds; "" = each clip alone
    fold_column   column of prescribed folds, counted from 1 (from 0 if a 0 stands there); an empty cell is
                  free; "" = all are free
    separator     between the labels of one cell, blanks around them do not count; "" = one label a cell
    Raises  SpecError
    """
    path = data / csv
    table = _table(path)
    _columns(table, path, [c for c in (id_column, label_column, group_column, fold_column) if c])
    if table.empty:
        raise SpecError(f"{path}: no row below the header; list at least one clip")
    texts = list(table[label_column])
    sets = [[x for x in map(str.strip, text.split(separator)) if x] if separator else [text] * bool(text)
            for text in texts]
    more: dict[str, Any] = {"groups": tuple(table[group_column])} if group_column else {}
    if fold_column:
        more["fixed"] = _prescribed(list(table[fold_column]), f"{path}: {fold_column}")
    return _make(data / folder, classes, list(table[id_column]), encode(sets, classes, str(path)), **more)


def _prescribed(cells: Sequence[str], where: str) -> np.ndarray:
    """int[N], fold numbers from 0, -1 = free."""
    for i, cell in enumerate(cells):
        if cell and not (cell.isascii() and cell.isdigit()):
            raise SpecError(f"{where}: {cell!r} of row {i}; give whole numbers from 1, or empty cells")
    found = np.array([int(cell) if cell else -1 for cell in cells])
    first = 0 if (found == 0).any() else 1
    return np.where(found < 0, -1, found - first)


def read_fat2019(
    data: Path,
    classes: Sequence[str],
    *,
    noisy: bool = True,
    drop: Sequence[str] = (
        "f76181c4.wav",
        "77b925c2.wav",
        "6a1f682a.wav",
        "c7db12aa.wav",
        "7752cc8a.wav",
        "1d44b0bd.wav",
    ),
) -> Clips:
    """Clips of FSDKaggle2019: train_curated.csv + train_curated/, and, if `noisy`, the same of train_noisy.

    noisy  true: the clips of train_noisy too
    drop   curated clips that are known to be broken or wrongly labelled
    Raises  SpecError
    """
    tables = []
    for part in ("train_curated", "train_noisy") if noisy else ("train_curated",):
        table = _table(data / f"{part}.csv")
        _columns(table, data / f"{part}.csv", ("fname", "labels"))
        table = table[~table.fname.isin(list(drop))]
        tables.append(table.assign(fname=part + "/" + table.fname, part=part))
    table = pd.concat(tables, ignore_index=True)
    targets = encode([text.split(",") for text in table.labels], classes, str(data))
    return _make(data, classes, list(table.fname), targets, source=tuple(table.part),
                 noisy=(table.part == "train_noisy").to_numpy())


def read_folders(
    data: Path, classes: Sequence[str], *, suffixes: Sequence[str] = (".wav", ".flac", ".ogg", ".mp3")
) -> Clips:
    """Clips of one folder per class.

    suffixes  endings of the files that are clips
    Raises  SpecError when a folder is no class or no clip is found
    """
    files = sorted(p for p in data.rglob("*") if p.suffix.lower() in suffixes and p.parent != data)
    if not files:
        raise SpecError(f"{data}: no clip in a sub-folder; expected CLASS/clip.wav")
    names = [p.relative_to(data) for p in files]
    targets = encode([[name.parts[0]] for name in names], classes, str(data))
    return _make(data, classes, [name.as_posix() for name in names], targets)


ADAPTERS: dict[str, Callable[..., Clips]] = {
    "labelled": read_labelled, "csv": read_csv, "fat2019": read_fat2019, "folders": read_folders}


def read_clips(spec: Mapping[str, Any], data: Path, classes: Sequence[str]) -> Clips:
    """Clips of {adapter = "labelled", key = value, ...} below the folder `data`.

    Raises  SpecError naming the unknown adapter or key, or what is wrong with the data
    """
    return lookup.find(ADAPTERS, spec, "data", named_by="adapter", default=ADAPTER)(data, classes)


def subset(clips: Clips, count: int, seed: int) -> Clips:
    """At most `count` clips: whole groups in random order, each group that brings a new class first."""
    groups = sorted(set(clips.groups))
    order = np.random.default_rng(seed).permutation(len(groups))
    rows_of: dict[str, list[int]] = {name: [] for name in groups}
    for i, name in enumerate(clips.groups):
        rows_of[name].append(i)
    seen = np.zeros(clips.targets.shape[1])
    first: list[list[int]] = []
    later: list[list[int]] = []
    for g in order:
        rows = rows_of[groups[g]]
        has = clips.targets[rows].sum(axis=0)
        # Two groups of every class come first: one fold can learn the class and another measure it.
        (first if ((has > 0) & (seen < 2)).any() else later).append(rows)
        seen += has > 0
    chosen = [i for rows in first + later for i in rows][:count]
    return clips.take(np.array(sorted(chosen)))
