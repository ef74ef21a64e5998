"""The sample submission as text, and a submission.csv that is always whole.

Owns `Sample` (header and ids exactly as the sample writes them), the `Publisher` and the validator. A
candidate is written beside the old file into bytes reserved beforehand, read back by the validator, flushed
and put in place in one step: a reader, a crash or a full disk sees the old file or the new one. Does not
blend and does not write the prior (the guard does).
"""
import csv
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ..errors import CandidateRejected, OutputUnwritable, SampleMissing, SpecError
from ..files import hold, name_temporary, put_in_place, sync_folder
from ..spec import LEAST_PROBABILITY, Output

NUMBER = "%.6e"  # 12 characters for every value in [1e-30, 1], so that the file's size is known beforehand
NUMBER_BYTES = 12
BLOCK_ROWS = 256  # whose text is in memory at once
# Ids that are no UTF-8 leave with the bytes they came with
ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the submission must look like: the header (id column first) and the ids in order, as raw text."""

    header: tuple[str, ...]
    ids: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The header without the id column."""
        return self.header[1:]


def read_rows(path: Path) -> Iterator[list[str]]:
    """Rows of a CSV file as raw text: nothing is guessed to be a number or a date.

    A byte order mark is dropped, empty lines are skipped.
    """
    with open(path, newline="", **ENCODING) as file:  # type: ignore[call-overload]
        if file.read(1) != "\ufeff":
            file.seek(0)
        yield from (row for row in csv.reader(file) if row)


def read_sample(path: Path) -> Sample:
    """Sample of a plain CSV file; LF or CRLF, with or without BOM, quoted or not.

    Raises  SampleMissing when there is no such file, no header or no column beside the id
    """
    try:
        rows = read_rows(path)
        header = next(rows, None)
        ids = tuple(row[0] for row in rows)
    except (OSError, csv.Error) as error:
        raise SampleMissing(
            f"{path}: cannot be read ({error}); give the competition's sample_submission.csv"
        ) from error
    if header is None or len(header) < 2:
        raise SampleMissing(f"{path}: header {header!r}; expected an id column and at least one more")
    return Sample(header=tuple(header), ids=ids)


def read_header(path: Path) -> tuple[str, ...]:
    """Header of a sample submission alone, however many rows it has.

    Raises  SampleMissing as read_sample does
    """
    try:
        header = tuple(next(read_rows(path), ()))
    except (OSError, csv.Error) as error:
        raise SampleMissing(
            f"{path}: cannot be read ({error}); give the competition's sample_submission.csv"
        ) from error
    if len(header) < 2:
        raise SampleMissing(f"{path}: header {header!r}; expected an id column and at least one more")
    return header


def find_label_column(columns: Sequence[str], output: Output, classes: Sequence[str]) -> int:
    """Place of the column that gets the best class, for `format = "label"`.

    Raises  SpecError when no column is named for it and the columns are classes: the sample then wants one
            probability per class, and a label would stand under the first of them
    """
    if output.label_column in columns:
        return columns.index(output.label_column)
    told = {*classes, *output.labels.values()}
    found = [name for name in columns if name in told]
    if found:
        shown = ", ".join(map(repr, found[:5])) + (" ..." if len(found) > 5 else "")
        raise SpecError(
            f'output.format: "label" writes one text per row, but the sample submission has a column for '
            f'{len(found)} classes ({shown}); use format = "probabilities", or name the column of the label '
            f"in output.label_column (it is {output.label_column!r})"
        )
    return 0


def check_form(path: Path, output: Output, classes: Sequence[str]) -> None:
    """Nothing, when what the ensemble writes fits the columns of this sample submission.

    Raises  SampleMissing, SpecError for a label under a sample whose columns are classes
    """
    columns = read_header(path)[1:]
    if output.format != "label":
        return
    try:
        find_label_column(columns, output, classes)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def quote(text: str) -> str:
    """One CSV cell: quoted only where a reader would otherwise see something else."""
    return '"' + text.replace('"', '""') + '"' if text == "" or any(c in text for c in ',"\r\n') else text


def validate(path: Path, sample: Sample, labels: Sequence[str] | None = None, label_column: int = 0) -> None:
    """Nothing, when `path` is a submission for `sample`. It shares no code with the writer.

    labels  texts allowed in the label column; None: every column is a number in [0, 1]

    Raises  CandidateRejected with the first rule that is broken
    """
    allowed = None if labels is None else frozenset(labels)
    with open(path, "rb") as file:
        start = file.read(3)
    if not start or start == b"\xef\xbb\xbf":
        raise CandidateRejected(f"{path}: " + ("starts with a byte order mark" if start else "empty"))
    rows = read_rows(path)
    count = 0
    try:
        if tuple(next(rows, ())) != sample.header:
            raise CandidateRejected(f"{path}: the header differs from the sample's")
        for count, row in enumerate(rows, 1):
            if count > len(sample.ids):
                raise CandidateRejected(f"{path}: more than {len(sample.ids)} rows")
            if row[0] != sample.ids[count - 1]:
                raise CandidateRejected(
                    f"{path}: row {count} has id {row[0]!r}, the sample {sample.ids[count - 1]!r}"
                )
            if len(row) != len(sample.header):
                raise CandidateRejected(f"{path}: row {count} has {len(row)} cells, not {len(sample.header)}")
            numbers = row[1:]
            if allowed is not None and numbers.pop(label_column) not in allowed:
                raise CandidateRejected(f"{path}: row {count} has an unknown label {row[1 + label_column]!r}")
            if not all(0.0 <= value <= 1.0 for value in map(float, numbers)):  # NaN fails both comparisons
                raise CandidateRejected(f"{path}: row {count} ({row[0]!r}) has a value outside 0..1")
    except (ValueError, csv.Error) as error:
        raise CandidateRejected(f"{path}: row {count}: {error}") from error
    if count != len(sample.ids):
        raise CandidateRejected(f"{path}: {count} rows, the sample has {len(sample.ids)}")


class Publisher:
    """Writes submission.csv again and again, each time whole.

    path     the file to publish; its folder must allow new files
    classes  meaning of the columns of the values; columns of the sample are found by name

    A column of the sample that is no class holds 1 / number of columns; a class without a column is not
    written.

    Raises  SpecError for a label under a sample whose columns are classes
    """

    def __init__(self, path: Path, sample: Sample, output: Output, classes: Sequence[str]) -> None:
        self.path = path
        self.sample = sample
        self.classes = len(classes)
        self.label_column = 0
        self.labels: list[str] | None = None
        position = {name: i for i, name in enumerate(classes)}
        if output.format == "label":
            self.label_column = find_label_column(sample.columns, output, classes)
            self.labels = [output.labels.get(name, name) for name in classes]
            position = {}
        self.columns = [position.get(name, -1) for name in sample.columns]
        self.size = self._largest_size()
        self._spare = path
        self._handle: int | None = None
        self._try_reserve()

    def _largest_size(self) -> int:
        """Bytes of the longest file that can come: exact for numbers, with the longest label otherwise."""
        cells = len(self.sample.columns) * (1 + NUMBER_BYTES)
        if self.labels is not None:
            cells += max(len(_encode(quote(text))) for text in self.labels) - NUMBER_BYTES
        header = len(_encode(",".join(map(quote, self.sample.header)))) + 1
        return header + sum(len(_encode(quote(row_id))) + cells + 1 for row_id in self.sample.ids)

    def _reserve(self) -> int:
        """Descriptor of the next temporary file.

        Its bytes are allocated: a disk that fills up later cannot stop a publication.
        """
        if self._handle is not None and os.fstat(self._handle).st_nlink == 0:
            self.close()  # somebody has tidied the folder: take new bytes
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have tidied more
            self._spare = name_temporary(self.path)
            self._handle = os.open(
                self._spare, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644
            )
            hold(self._handle)
            try:
                os.posix_fallocate(self._handle, 0, self.size)
            except OSError:
                self.close()
                raise
        return self._handle

    def _try_reserve(self) -> None:
        try:
            self._reserve()
        except OSError:  # nothing is lost yet: the next publication asks again and then says so
            self._handle = None

    def lines(self, values: np.ndarray) -> Iterator[str]:
        """Text of the file for values f64[N, K] in [0, 1]; values below 1e-30 are written as 1e-30."""
        yield ",".join(map(quote, self.sample.header)) + "\n"
        cells = [NUMBER] * len(self.columns)
        if self.labels is not None:
            cells[self.label_column] = "%s"
        pattern = "%s," + ",".join(cells) + "\n"
        for start in range(0, len(values), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            table = self._table(values[block])
            for row_id, numbers in zip(self.sample.ids[block], table, strict=True):
                yield pattern % (quote(row_id), *numbers)

    def _table(self, values: np.ndarray) -> list[list[float | str]]:
        """Cells of some rows: what stands after each id."""
        table = np.full((len(values), len(self.columns)), 1.0 / len(self.columns))
        for at, index in enumerate(self.columns):
            if index >= 0:
                table[:, at] = values[:, index]
        table[(table >= 0) & (table < LEAST_PROBABILITY)] = LEAST_PROBABILITY
        rows: list[list[float | str]] = table.tolist()
        if self.labels is not None:
            for row, best in zip(rows, values.argmax(axis=1), strict=True):
                row[self.label_column] = quote(self.labels[best])
        return rows

    def publish(self, values: np.ndarray, announce: Callable[[int], None] | None = None) -> None:
        """Replace the submission by one with these values f64[N, K], or leave the old file alone.

        announce  hears the CRC-32 of the bytes that are about to be put in place

        Raises  CandidateRejected when the validator refuses it, OutputUnwritable when the disk does
        """
        if values.shape != (len(self.sample.ids), self.classes):
            raise CandidateRejected(
                f"values of shape {values.shape} for {len(self.sample.ids)} rows and {self.classes} classes"
            )
        if self.labels is not None and not np.isfinite(values).all():
            raise CandidateRejected("values that are not finite have no best class")
        try:
            handle = self._reserve()
            crc = _write(handle, self.lines(values))
            validate(self._spare, self.sample, self.labels, self.label_column)
            if announce is not None:
                announce(crc)
            put_in_place(self._spare, self.path)
            os.close(handle)
            self._handle = None
            sync_folder(self.path.parent)
        except CandidateRejected:
            self.close()  # it may have been cut short: reserve whole bytes again
            self._try_reserve()
            raise
        except OSError as error:
            raise OutputUnwritable(
                f"{self.path}: {error}; the last published file stays. Free the disk or choose another "
                "--working folder"
            ) from error
        self._try_reserve()

    def close(self) -> None:
        """Give the reserved bytes back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
            try:
                self._spare.unlink(missing_ok=True)
            except OSError:
                return  # something else lies there now; the guard sweeps it


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _write(handle: int, lines: Iterator[str]) -> int:
    """Put the lines into the reserved file from its start, some at a time, and flush it to the disk; gives
    their CRC-32.
    """
    at = crc = 0
    while block := _encode("".join(islice(lines, BLOCK_ROWS))):
        crc = zlib.crc32(block, crc)
        view = memoryview(block)
        while view:
            written = os.pwrite(handle, view, at)
            at += written
            view = view[written:]
    os.ftruncate(handle, at)
    os.fsync(handle)
    return crc
