"""The sample as the guard reads it, and what it leaves in submission.csv when nothing better comes."""
from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.guard_runs import KERNEL, GuardRun, run_guard
from tests.helpers.stub_bundle import (
    CLASSES,
    GOOD,
    PRIOR_CELLS,
    check,
    is_prior,
    make_bundle,
    make_input,
    pin,
)

TRICKY = (
    "nan",
    "null",
    "007",
    "=cmd",
    " a ",
    "a,b",
    'say "hi"',
    "two\nlines",
    "cr\rhere",
    "Ünï/ç.wav",
    "-x",
    "%s",
)


@pytest.mark.parametrize("form", ["lf", "crlf", "bom", "gz", "zip", "zip_folder"])
def test_ids_of_the_prior_are_the_samples_text(tmp_path: Path, form: str) -> None:
    (tmp_path / "in").mkdir()
    newline = "\r\n" if form == "crlf" else "\n"
    lines = ["fname,Bark,Meow"] + ['"' + i.replace('"', '""') + '",0,0' for i in TRICKY]
    text = (("\ufeff" if form == "bom" else "") + newline.join(lines) + newline).encode()
    plain = tmp_path / "sample.csv"
    plain.write_bytes(text)
    if form == "gz":
        (tmp_path / "in" / "sample_submission.csv.gz").write_bytes(gzip.compress(text))
    elif form == "zip":
        with zipfile.ZipFile(tmp_path / "in" / "sample_submission.csv.zip", "w") as archive:
            archive.writestr("sample_submission.csv", text)
    else:
        folder = tmp_path / "in" / "sample_submission.csv" if form == "zip_folder" else tmp_path / "in"
        folder.mkdir(exist_ok=True)
        (folder / "sample_submission.csv").write_bytes(text)
    run = run_guard(tmp_path, make_bundle(tmp_path / "bundle").folder)
    run = GuardRun(**{**vars(run), "sample": plain})
    check(run, "ColumnsUnknown")
    assert not run.submission.startswith("\ufeff") and "\r\n" not in run.submission


def test_without_a_bundle_the_prior_is_uniform_and_said_to_be_degraded(where: Path) -> None:
    run = run_guard(where, None)
    check(run, "BundleMissing")
    assert "3.333333e-01" in run.submission and "DEGRADED" in run.out and "UNPINNED" in run.out
    assert run_guard(where, None, "--strict").code == 1


def test_the_pinned_prior_follows_the_samples_columns(tmp_path: Path) -> None:
    make_input(tmp_path / "in", header=("fname", "Run, water", "Quack", "Bark"))
    run = run_guard(tmp_path, None, kernel=pin(make_bundle(tmp_path / "elsewhere"), tmp_path / "kernel.py"))
    check(run, "ColumnsUnknown")
    assert run.submission.splitlines()[1] == "a.wav,1.250000e-01,3.333333e-01,5.000000e-01"
    messages = [fault["message"] for fault in run.report["faults"] if fault["code"] == "ColumnsUnknown"]
    assert len(messages) == 2 and "'Quack'" in messages[0] and "'Meow'" in messages[1]


def test_the_unpinned_prior_is_the_manifests_once_it_is_verified(where: Path) -> None:
    run = run_guard(where, make_bundle(where / "bundle", "def run():\n    sys.exit(3)\n").folder)
    check(run, "MemoryTooSmall")
    assert is_prior(run)


LABELS = {"name": "stub", "classes": list(CLASSES), "members": [], "profile": "fat2019", "windows": None,
          "output": {"format": "label", "label_column": "label", "labels": {"Bark": "dog, loud"}}}


def test_a_label_submission_gets_the_likeliest_label(tmp_path: Path) -> None:
    make_input(tmp_path / "in", header=("id", "label"))
    bundle = make_bundle(tmp_path / "bundle", "def run():\n    sys.exit(3)\n", ensemble=LABELS)
    for kernel in (KERNEL, pin(bundle, tmp_path / "kernel.py")):
        run = run_guard(tmp_path, bundle.folder, kernel=kernel)
        check(run, "MemoryTooSmall", labels={"dog, loud"})
    publishes = make_bundle(
        tmp_path / "b2", "def run():\n    publish('Parrot')\n    report()\n", ensemble=LABELS
    )
    check(run_guard(tmp_path, publishes.folder), "CandidateRejected", labels={"dog, loud"})


def test_an_unknown_label_format_keeps_the_samples_own_text(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "sample_submission.csv").write_text("id,label\nx,unknown\ny,unknown\n")
    check(run_guard(tmp_path, None), "BundleMissing", labels={"unknown"})


def test_a_sample_is_made_from_the_clips(tmp_path: Path) -> None:
    for name in ("data/test/sub/b.wav", "data/test/a.flac", "data/train/c.wav", "data/test/notes.txt"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    bundle = make_bundle(tmp_path / "bundle", GOOD + "    report(told=RUN)\n")
    for kernel, given in ((KERNEL, bundle.folder), (pin(bundle, tmp_path / "kernel.py"), bundle.folder),
                          (tmp_path / "kernel.py", None)):
        run = run_guard(tmp_path, given, kernel=kernel)
        assert run.code == 0 and "SampleMissing" in run.faults
        assert [line.split(",")[0] for line in run.submission.splitlines()] == [
            "fname",
            "a.flac",
            "sub/b.wav",
        ]
        if given:
            assert run.report["told"]["clips"] == str(tmp_path / "in" / "data" / "test")


def test_the_competitions_sample_wins_over_a_copy(tmp_path: Path) -> None:
    make_input(tmp_path / "in" / "my-data", ids=("copy",))
    make_input(tmp_path / "in" / "competitions" / "tagging", ids=("real",))
    run = run_guard(tmp_path, None)
    assert "real," in run.submission and {"SampleAmbiguous", "BundleMissing"} <= set(run.faults)


@pytest.mark.parametrize(
    "content", [b"", b"fname\na\n", b"\x1f\x8bnot gzip", b"PK\x03\x04junk", b'fname,A\n"' + b"x" * 200_000]
)
def test_a_sample_that_is_none_is_named_and_nothing_can_be_done(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "sample_submission.csv").write_bytes(content)
    run = run_guard(tmp_path, None)
    assert run.code == 2 and "SampleMissing" in run.out and "Traceback" not in run.out


def test_a_sample_without_rows_gives_a_submission_without_rows(tmp_path: Path) -> None:
    make_input(tmp_path / "in", ids=())
    run = run_guard(tmp_path, make_bundle(tmp_path / "bundle").folder)
    check(run)
    assert len(run.submission.splitlines()) == 1


def test_an_unwritable_output_is_refused(where: Path) -> None:
    (where / "file").touch()
    for folder in ("file", "/proc/nowhere"):
        run = run_guard(where, None, f"--working={where / folder}")
        assert run.code == 2 and "OutputUnwritable" in run.out, run.out


@pytest.mark.fault(
    row=61,
    injection="folders called like submission, report, page and temporary files, before and during the run",
    outcome="moved aside whole, or swept; everything scored",
)
@pytest.mark.parametrize("late", [False, True])
def test_folders_in_the_place_of_our_files_are_moved_aside(where: Path, late: bool) -> None:
    names = ("submission.csv", "report.json", "report.html", ".submission.csv.1.tmp", ".report.json.1.tmp")
    if not late:
        for name in names:
            (where / "out" / name / "kept").mkdir(parents=True)
        run = run_guard(where, make_bundle(where / "bundle").folder, "--strict")
    else:
        harm = f"""
def run():
    for name in {names!r}:
        path = Path(RUN["working"]) / name
        path.unlink(missing_ok=True)
        (path / "kept").mkdir(parents=True)
"""
        run = run_guard(where, make_bundle(where / "bundle", harm).folder)
        assert is_prior(run) and "CandidateRejected" in run.faults
    assert run.code == 0 and run.report["rows"] == 2, run.out
    left = {path.name.rpartition(".")[0].rpartition(".")[0]: path for path in run.working.glob("*.folder")}
    assert {"submission.csv", "report.json"} <= set(left) and all((left[n] / "kept").is_dir() for n in left)
    assert not list(run.working.glob(".*.tmp"))


@pytest.mark.parametrize(("size", "code"), [("4k", 2), ("200k", 0)])
def test_a_full_disk_ends_in_a_refusal_or_in_the_prior(where: Path, size: str, code: int) -> None:
    """A tmpfs as output folder: too small for the prior, or filled by the engine, which then tears its own
    submission.
    """
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    shutil.rmtree(where / "in")
    make_input(where / "in", ids=tuple(f"{i:08d}.wav" for i in range(1000)))
    (where / "out").mkdir()
    fill = """
def run():
    out = Path(RUN["working"])
    try:
        (out / ".report.json.1.tmp").write_bytes(bytes(10**6))
    except OSError:
        pass
    with open(out / "submission.csv", "r+b") as file:
        file.write(b"torn")
"""
    bundle = make_bundle(where / "bundle", fill)
    script = (
        f"mount -t tmpfs -o size={size} tmpfs {where}/out && {sys.executable} -I {KERNEL} "
        f"--bundle {bundle.folder} --input {where}/in --working {where}/out --seconds 12; "
        f"code=$?; cat {where}/out/submission.csv; exit $code"
    )
    done = subprocess.run(["unshare", "-Urm", "bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr
    if code == 0:
        rows = done.stdout[done.stdout.index("fname,"):].splitlines()
        assert len(rows) == 1001 and all(row.endswith(PRIOR_CELLS) for row in rows[1:])


@pytest.mark.parametrize("bad", ["'nan'", "'2.0'", "''"])
def test_an_invalid_submission_is_replaced_by_the_prior(where: Path, bad: str) -> None:
    run = run_guard(
        where, make_bundle(where / "bundle", f"def run():\n    publish({bad})\n    report()\n").folder
    )
    check(run, "CandidateRejected")
    assert is_prior(run)


def test_a_deleted_submission_comes_back_as_the_prior(where: Path) -> None:
    engine = "def run():\n    (Path(RUN['working']) / 'submission.csv').unlink()\n    report()\n"
    run = run_guard(where, make_bundle(where / "bundle", engine).folder)
    check(run, "CandidateRejected")
    assert is_prior(run)
