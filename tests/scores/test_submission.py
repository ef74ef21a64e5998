"""The submission as text, the publisher and its validator."""
from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import infer_kernel
from kernel.errors import CandidateRejected, OutputUnwritable, SampleMissing
from kernel.scores.submission import Publisher, Sample, quote, read_sample, validate
from kernel.spec import LEAST_PROBABILITY, Output

CLASSES = ("Bark", "Meow", "Run, water")
TRICKY = (
    "nan",
    "null",
    "007",
    "1e5",
    "=cmd",
    " a ",
    "a,b",
    'say "hi"',
    "two\nlines",
    "cr\rhere",
    "Ünï/ç.wav",
    "-x",
    "%s",
    "#1",
    "''",
)
ids_of = st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12), max_size=8)


def make_sample(ids: tuple[str, ...] = ("a", "b"), header: tuple[str, ...] = ("fname", *CLASSES)) -> Sample:
    return Sample(header=header, ids=ids)


def write_sample(
    path: Path, ids: Sequence[str], *, newline: str = "\n", start: str = "", quote_all: bool = False
) -> Path:
    """A sample written by hand: the csv module of Python 3.11 leaves a lone carriage return unquoted."""
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if quote_all or any(c in text for c in ',"\r\n') else text

    rows = [("fname", *CLASSES), *((i, "0", "0", "0") for i in ids)]
    path.write_bytes((start + "".join(",".join(map(cell, row)) + newline for row in rows)).encode())
    return path


def ones(rows: int, value: float = 0.5) -> np.ndarray:
    return np.full((rows, len(CLASSES)), value)


def read_back(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8", "surrogateescape"), newline="")))


@pytest.mark.parametrize("form", [{}, {"newline": "\r\n"}, {"start": "\ufeff"}, {"quote_all": True},
                                  {"newline": "\r\n", "start": "\ufeff", "quote_all": True}])
def test_ids_leave_as_the_text_they_came_as(tmp_path: Path, form: dict) -> None:
    sample = read_sample(write_sample(tmp_path / "s.csv", TRICKY, **form))
    assert sample.ids == TRICKY and sample.header == ("fname", *CLASSES)
    Publisher(tmp_path / "submission.csv", sample, Output(), CLASSES).publish(ones(len(TRICKY)))
    assert [row[0] for row in read_back(tmp_path / "submission.csv")[1:]] == list(TRICKY)


@pytest.mark.fault(
    row=87,
    injection="a file of 1,500 rows x 264 columns",
    outcome="written a few hundred rows at a time, with the bytes that one piece would have",
)
def test_a_publication_takes_little_memory(tmp_path: Path) -> None:
    classes = tuple(f"c{i}" for i in range(264))
    sample = make_sample(tuple(f"{i:06d}.wav" for i in range(1500)), ("fname", *classes))
    values = np.random.default_rng(0).random((1500, 264))
    publisher = Publisher(tmp_path / "submission.csv", sample, Output(), classes)
    tracemalloc.start()
    publisher.publish(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    written = (tmp_path / "submission.csv").read_bytes()
    assert len(written) > 5e6 and peak < 7e6
    assert written == "".join(publisher.lines(values)).encode()


def test_ids_that_are_no_utf8_keep_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes(b"fname,Bark\nc\xe9.wav,0\n")
    Publisher(tmp_path / "o.csv", read_sample(tmp_path / "s.csv"), Output(), ("Bark",)).publish(
        np.array([[0.25]])
    )
    assert (tmp_path / "o.csv").read_bytes() == b"fname,Bark\nc\xe9.wav,2.500000e-01\n"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=ids_of, data=st.data())
def test_any_ids_and_scores_round_trip_in_exactly_the_reserved_size(
    tmp_path: Path, ids: list[str], data: st.DataObject
) -> None:
    sample = read_sample(write_sample(tmp_path / "s.csv", ids, quote_all=True))
    assert sample.ids == tuple(ids)
    row = st.lists(st.floats(0, 1), min_size=3, max_size=3)
    values = np.array(data.draw(st.lists(row, min_size=len(ids), max_size=len(ids))))
    publisher = Publisher(tmp_path / "o.csv", sample, Output(), CLASSES)
    publisher.publish(values.reshape(len(ids), 3))
    assert (tmp_path / "o.csv").stat().st_size == publisher.size
    publisher.close()
    rows = read_back(tmp_path / "o.csv")
    assert [row[0] for row in rows[1:]] == ids
    written = np.array([[float(x) for x in row[1:]] for row in rows[1:]]).reshape(len(ids), 3)
    np.testing.assert_allclose(written, np.maximum(values.reshape(len(ids), 3), 1e-30), rtol=6e-7)


def test_the_guard_writes_the_same_smallest_value(tmp_path: Path) -> None:
    assert infer_kernel.LEAST == LEAST_PROBABILITY
    publisher = Publisher(tmp_path / "o.csv", make_sample(), Output(), CLASSES)
    publisher.publish(ones(2, 0.0))
    cells = {float(cell) for row in read_back(tmp_path / "o.csv")[1:] for cell in row[1:]}
    assert cells == {LEAST_PROBABILITY}


@pytest.mark.parametrize("content", [b"", b"\n\n", b"fname\na\n", b"\xef\xbb\xbf"])
def test_a_file_without_header_is_no_sample(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.csv").write_bytes(content)
    with pytest.raises(SampleMissing, match="s.csv"):
        read_sample(tmp_path / "s.csv")


def test_a_missing_sample_is_named(tmp_path: Path) -> None:
    with pytest.raises(SampleMissing, match="nowhere"):
        read_sample(tmp_path / "nowhere.csv")


def test_columns_follow_the_samples_header_by_name(tmp_path: Path) -> None:
    sample = make_sample(header=("fname", "Meow", "Quack", "Bark"))
    publisher = Publisher(tmp_path / "o.csv", sample, Output(), CLASSES)
    publisher.publish(np.array([[0.1, 0.2, 0.3]] * 2))
    assert [float(x) for x in read_back(tmp_path / "o.csv")[1][1:]] == [
        0.2,
        pytest.approx(1 / 3, rel=1e-6),
        0.1,
    ]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.0000011, -1e-6])
def test_a_bad_value_is_refused_and_the_old_file_stays(tmp_path: Path, bad: float) -> None:
    publisher = Publisher(tmp_path / "o.csv", make_sample(), Output(), CLASSES)
    publisher.publish(ones(2))
    before = (tmp_path / "o.csv").read_bytes()
    values = ones(2)
    values[1, 2] = bad
    with pytest.raises(CandidateRejected):
        publisher.publish(values)
    assert (tmp_path / "o.csv").read_bytes() == before
    publisher.publish(ones(2, 0.75))
    assert b"7.500000e-01" in (tmp_path / "o.csv").read_bytes()
    publisher.close()
    assert os.listdir(tmp_path) == ["o.csv"]


def test_values_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CandidateRejected, match="3 classes"):
        Publisher(tmp_path / "o.csv", make_sample(), Output(), CLASSES).publish(ones(3))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty"),
        ("\ufefffname,A\nx,0\n", "byte order"),
        ("fname,B\nx,0\ny,0\n", "header"),
        ("fname,A\nx,0\n", "1 rows"),
        ("fname,A\nx,0\ny,0\nz,0\n", "more than"),
        ("fname,A\ny,0\nx,0\n", "row 1"),
        ("fname,A\nx,0\nx,0\n", "row 2"),
        ("fname,A\nx,0\ny\n", "1 cells"),
        ("fname,A\nx,0\ny,0,0\n", "3 cells"),
        ("fname,A\nx,0\ny,\n", "row 2"),
        ("fname,A\nx,0\ny,nan\n", "outside"),
        ("fname,A\nx,0\ny,1.5\n", "outside"),
        ("fname,A\nx,0\ny,Bark\n", "row 2"),
    ],
)
def test_the_validator_names_the_first_broken_rule(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "o.csv").write_text(content, encoding="utf-8")
    with pytest.raises(CandidateRejected, match=reason):
        validate(tmp_path / "o.csv", Sample(header=("fname", "A"), ids=("x", "y")))


def test_the_validator_accepts_a_submission_it_did_not_see_written(tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text('fname,A\n"x",0\ny,1\n', encoding="utf-8")
    validate(tmp_path / "o.csv", Sample(header=("fname", "A"), ids=("x", "y")))


def test_a_label_submission_holds_the_best_class_and_reserves_the_longest(tmp_path: Path) -> None:
    output = Output(format="label", label_column="label", labels={"Meow": "cat, of some kind"})
    publisher = Publisher(tmp_path / "o.csv", make_sample(header=("id", "label")), output, CLASSES)
    publisher.publish(np.array([[0.1, 0.9, 0.2], [0.8, 0.1, 0.8]]))
    assert read_back(tmp_path / "o.csv") == [["id", "label"], ["a", "cat, of some kind"], ["b", "Bark"]]
    publisher.publish(np.array([[0.1, 0.9, 0.2]] * 2))
    assert (tmp_path / "o.csv").stat().st_size == publisher.size
    with pytest.raises(CandidateRejected):
        publisher.publish(np.full((2, 3), np.nan))


def test_a_wrong_label_is_refused(tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text("id,label\na,Bark\nb,Dog\n", encoding="utf-8")
    with pytest.raises(CandidateRejected, match="'Dog'"):
        validate(tmp_path / "o.csv", make_sample(header=("id", "label")), CLASSES)


def test_the_bytes_are_reserved_before_they_are_needed(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "o.csv", make_sample(tuple(map(str, range(500)))), Output(), CLASSES)
    spare = next(p for p in tmp_path.iterdir() if p.name.startswith(".o.csv."))
    assert spare.stat().st_size == publisher.size and spare.stat().st_blocks * 512 >= publisher.size
    publisher.publish(ones(500))
    assert any(p.name.startswith(".o.csv.") for p in tmp_path.iterdir())


def test_a_folder_that_refuses_files_is_named_at_publication(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lost = Publisher(tmp_path / "file" / "o.csv", make_sample(), Output(), CLASSES)
    with pytest.raises(OutputUnwritable, match="last published"):
        lost.publish(ones(2))
    lost.close()


@pytest.mark.fault(
    row=61,
    injection="the output folder removed; a folder in the place of the submission, or of its next bytes",
    outcome="made again, moved aside whole, passed by: published all the same",
)
@pytest.mark.parametrize("harm", ["remove", "submission", "bytes"])
def test_a_folder_that_was_moved_or_taken_is_published_to(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "out" / "o.csv"
    path.parent.mkdir()
    publisher = Publisher(path, make_sample(), Output(), CLASSES)
    for spare in path.parent.iterdir():
        spare.unlink()
        if harm == "bytes":
            (spare / "kept").mkdir(parents=True)
    if harm == "remove":
        path.parent.rmdir()
    if harm == "submission":
        (path / "kept").mkdir(parents=True)
    heard: list[int] = []
    publisher.publish(ones(2), heard.append)
    publisher.close()
    assert heard == [zlib.crc32(path.read_bytes())]
    assert len(list(path.parent.rglob("kept"))) == (harm != "remove")


def test_a_reserved_file_that_was_tidied_away_is_made_again(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "o.csv", make_sample(), Output(), CLASSES)
    for value in (0.5, 0.25):
        next(p for p in tmp_path.iterdir() if p.name.startswith(".o.csv.")).unlink()
        publisher.publish(ones(2) * 2 * value)
        assert f"{value:.6e}".encode() in (tmp_path / "o.csv").read_bytes()
    publisher.close()
    assert [p.name for p in tmp_path.iterdir()] == ["o.csv"]


def test_a_file_size_limit_leaves_the_old_submission(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from kernel.errors import OutputUnwritable
from kernel.spec import Output
from kernel.scores.submission import Publisher, Sample
sample = Sample(header=("fname", "A"), ids=tuple(map(str, range(5000))))
out = Path(sys.argv[1]) / "o.csv"
publisher = Publisher(out, sample, Output(), ("A",))
publisher.publish(np.full((5000, 1), 0.5))
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    publisher.publish(np.full((5000, 1), 0.25))
except OutputUnwritable:
    print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "refused\n"
    validate(tmp_path / "o.csv", Sample(header=("fname", "A"), ids=tuple(map(str, range(5000)))))
    assert b"2.5" not in (tmp_path / "o.csv").read_bytes()


def test_a_reader_never_sees_a_torn_file(tmp_path: Path) -> None:
    sample = make_sample(tuple(map(str, range(50))))
    publisher = Publisher(tmp_path / "o.csv", sample, Output(), CLASSES)
    publisher.publish(ones(50))
    seen: list[bytes] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append((tmp_path / "o.csv").read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(150):
        publisher.publish(ones(50, (i % 10) / 10))
    done.set()
    reader.join()
    assert len(seen) > 10
    for text in set(seen):
        rows = list(csv.reader(io.StringIO(text.decode())))
        assert len(rows) == 51 and len({cell for row in rows[1:] for cell in row[1:]}) == 1


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_a_quoted_cell_reads_back_as_itself(text: str) -> None:
    line = (
        (quote(text) + "," + quote("x") + "\n")
        .encode("utf-8", "surrogatepass")
        .decode("utf-8", "surrogatepass")
    )
    assert next(csv.reader(io.StringIO(line, newline=""))) == [text, "x"]


PUBLISH_TWICE = """
import sys
from pathlib import Path
import numpy as np
from kernel.spec import Output
from kernel.scores.submission import Publisher, Sample
publisher = Publisher(Path(sys.argv[1]), Sample(header=("fname", "A"), ids=("x", "y")), Output(), ("A",))
publisher.publish(np.full((2, 1), 0.25))
publisher.publish(np.full((2, 1), 0.75))
"""


NEITHER = None
OLD = b"fname,A\nx,2.500000e-01\ny,2.500000e-01\n"
NEW = b"fname,A\nx,7.500000e-01\ny,7.500000e-01\n"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    ("call", "harm", "left"),
    [
        ("pwrite64", "signal=KILL:when=2", OLD),
        ("fsync", "signal=KILL:when=3", OLD),
        ("rename", "signal=KILL:when=1", NEITHER),
        ("rename", "signal=KILL:when=2", OLD),
        ("fsync", "signal=KILL:when=4", NEW),
        ("pwrite64", "error=ENOSPC:when=2", OLD),
        ("fsync", "error=EIO:when=3", OLD),
        ("rename", "error=EDQUOT:when=2", OLD),
        ("fallocate", "error=ENOSPC:when=1", NEW),
        # The last: a write that lied
        ("fallocate", "error=ENOSPC:when=2+", OLD),
        ("pwrite64", "retval=10:when=2", OLD),
    ],
)
def test_a_crash_or_error_at_any_step_leaves_a_whole_file(
    tmp_path: Path, call: str, harm: str, left: bytes | None
) -> None:
    trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{harm}"]
    if subprocess.run([*trace, "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here")
    subprocess.run(
        [*trace, sys.executable, "-B", "-c", PUBLISH_TWICE, str(tmp_path / "o.csv")], capture_output=True
    )
    assert ((tmp_path / "o.csv").read_bytes() if (tmp_path / "o.csv").exists() else None) == left
