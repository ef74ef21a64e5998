"""The end of a run: the file that is there decides the exit code, and the report says what is in it."""
from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest

import infer_kernel
from tests.helpers.guard_runs import KERNEL, run_guard
from tests.helpers.injectors import in_mounts, needs_namespaces
from tests.helpers.stub_bundle import GOOD, PRIOR, STUB_CELLS, check, is_prior, make_bundle, make_input, pin


@pytest.mark.fault(
    row=61,
    injection="the output folder removed by the engine",
    outcome="made again with the prior submission and a report, exit 0",
)
def test_a_removed_output_folder_is_made_again(where: Path) -> None:
    engine = "import shutil\ndef run():\n    publish()\n    shutil.rmtree(RUN['working'])\n"
    run = run_guard(where, make_bundle(where / "bundle", engine).folder)
    check(run, "CandidateRejected")
    assert is_prior(run) and run.report["prior_rows"] == 2


@needs_namespaces
@pytest.mark.fault(
    row=61,
    injection="the output folder read-only, or /proc gone, once the engine has published",
    outcome="exit 0 with that submission, no private folder left, no traceback of the guard",
)
@pytest.mark.parametrize(
    "harm", ["mount -o remount,ro {0}/out", "mount -t tmpfs none /proc", "mount -t tmpfs none /dev"]
)
def test_a_system_that_is_taken_away_costs_the_report_at_most(where: Path, harm: str) -> None:
    engine = f"def run():\n    publish()\n    report()\n    os.system({harm.format(where)!r})\n"
    (where / "out").mkdir()
    prefix = in_mounts(f"mount -t tmpfs none {where}/out")
    bundle = make_bundle(where / "bundle", engine)
    places = [f"--bundle={bundle.folder}", f"--input={where / 'in'}", f"--working={where / 'out'}"]
    (where / "scratch").mkdir()
    words = [*prefix, "sh", "-c", 'out=$0; "$@"; code=$?; cat $out/submission.csv; exit $code', where / "out"]
    done = subprocess.run(
        [*words, sys.executable, "-I", KERNEL, *places, "--seconds=12"], capture_output=True, text=True,
        env={**os.environ, "TMPDIR": str(where / "scratch")},
    )
    assert done.returncode == 0 and done.stdout.count(STUB_CELLS) == 2, done.stdout + done.stderr
    assert "2 rows, 2 predicted, 0 prior" in done.stdout and "Traceback" not in done.stderr
    assert list((where / "scratch").iterdir()) == []


@needs_namespaces
def test_a_system_without_dev_null_runs(where: Path) -> None:
    prefix = in_mounts("mount -t tmpfs none /dev")
    check(run_guard(where, make_bundle(where / "bundle").folder, "--strict", prefix=prefix))


def test_a_current_folder_that_is_gone_is_named(where: Path) -> None:
    script = f"mkdir {where}/gone && cd {where}/gone && rmdir {where}/gone && exec \"$@\""
    words = ["sh", "-c", script, "sh", sys.executable, "-I", KERNEL]
    done = subprocess.run([*words, "--seconds=12"], capture_output=True, text=True)
    assert done.returncode == 2 and "FolderGone" in done.stderr and "Traceback" not in done.stderr
    bundle = make_bundle(where / "bundle")
    places = [f"--bundle={bundle.folder}", f"--input={where / 'in'}", f"--working={where / 'out'}"]
    done = subprocess.run([*words, *places, "--seconds=12"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.fault(
    row=58,
    injection="an engine whose report says 2 predicted over the prior or over a spoiled file",
    outcome="report and last line count what lies in the file",
)
@pytest.mark.parametrize("deed", ["", "publish('9')", f"publish('{PRIOR[0]:.6e}')", "os.truncate(path, 40)"])
def test_the_report_counts_what_lies_in_the_file(where: Path, deed: str) -> None:
    lines = ["def run():", "path = Path(RUN['working']) / 'submission.csv'", deed or "pass", "report()"]
    engine = "\n    ".join(lines) + "\n"
    bundle = make_bundle(where / "bundle", engine, prior=[PRIOR[0]] * 3)
    run = run_guard(where, bundle.folder, "--strict")
    check(run, "ReportCorrected", codes=(1,))
    assert run.report["prior_rows"] == 2 and "2 rows, 0 predicted, 2 prior" in run.out


@pytest.mark.fault(
    row=58,
    injection="a net replaces the submission by an older one, or by one of its own",
    outcome="counted as the engine announced those bytes; bytes that it never announced are named",
)
@pytest.mark.parametrize(("kept", "fault"), [("older", "ReportCorrected"), ("foreign", "SubmissionChanged")])
def test_a_file_that_the_engine_did_not_publish_last_is_told(where: Path, kept: str, fault: str) -> None:
    engine = f"""
import zlib
def run():
    path = Path(RUN["working"]) / "submission.csv"
    told = []
    for value in ("3.000000e-01", "4.000000e-01"):
        publish(value)
        told.insert(0, {{"crc": zlib.crc32(path.read_bytes()), "prior": 0, "partial": 2 - 2 * len(told)}})
    (Path(RUN["state"]) / "published.json").write_text(json.dumps(told))
    publish("3.000000e-01" if {kept!r} == "older" else "5.000000e-01")
    report()
"""
    run = run_guard(where, make_bundle(where / "bundle", engine).folder)
    check(run, fault)
    assert run.report["partial_rows"] == (2 if kept == "older" else 0) and run.report["prior_rows"] == 0


def loop(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "sample_submission.csv")


def bomb(folder: Path) -> None:
    with gzip.open(folder / "sample_submission.csv.gz", "wb", compresslevel=9) as file:
        for _ in range(64):
            file.write(bytes(1 << 20))


def lines(folder: Path) -> None:
    with gzip.open(folder / "sample_submission.csv.gz", "wb", compresslevel=1) as file:
        file.write(b"fname,Bark\n")
        for _ in range(60):
            file.write(b"a,0\n" * 100_000)


def archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / "sample_submission.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("sample_submission.csv", b"0" * (1 << 25))


@pytest.mark.fault(
    row=60,
    injection="beside the good sample: a link to itself, a FIFO or compression bombs called like a sample",
    outcome="the good one is read first and used, the others are named",
)
@pytest.mark.parametrize("harm", [loop, fifo, bomb, lines, archive])
@pytest.mark.parametrize("place", ["", "aaa"])
def test_what_lies_beside_the_sample_hides_nothing(tmp_path: Path, harm: object, place: str) -> None:
    make_input(tmp_path / "in" / "data" if place else tmp_path / "in")
    folder = tmp_path / "in" / place
    folder.mkdir(exist_ok=True)
    if harm is fifo and not place:
        folder = tmp_path / "in" / "zzz"
        folder.mkdir()
    harm(folder)  # type: ignore[operator]
    if harm is loop:
        loop(tmp_path)
    bundle = make_bundle(tmp_path / "in" / "bundle" if harm is loop else tmp_path / "bundle")
    run = run_guard(tmp_path, bundle.folder, seconds=20.0)
    named = {"SampleMissing"} if harm is not loop else set()
    assert run.code == 0 and set(run.faults) == named, run.out
    assert run.submission.count(STUB_CELLS) == 2 and run.submission.count("a.wav") == 1


@pytest.mark.fault(
    row=60,
    injection="no sample at all, clips only",
    outcome="made up from the clips, and said in a line of its own",
)
def test_a_sample_that_was_made_up_is_said_loudly(tmp_path: Path) -> None:
    (tmp_path / "in" / "test").mkdir(parents=True)
    (tmp_path / "in" / "test" / "a.wav").touch()
    bundle = make_bundle(tmp_path / "bundle")
    run = run_guard(tmp_path, bundle.folder, "--strict", kernel=pin(bundle, tmp_path / "kernel.py"))
    assert run.code == 1 and "SAMPLE MADE UP" in run.out and "SampleMissing" in run.faults


@pytest.mark.fault(
    row=12,
    injection="the first temporary folder full, down to its last block",
    outcome="the next one is taken: everything scored",
)
@needs_namespaces
def test_a_full_temporary_folder_is_passed_over(where: Path) -> None:
    (where / "scratch").mkdir()
    prefix = in_mounts(f"mount -t tmpfs -o size=8k none {where}/scratch && head -c 8192 /dev/zero > "
                       f"{where}/scratch/full || true; mount -t tmpfs -o size=8k none /var/tmp; true")
    run = run_guard(where, make_bundle(where / "bundle", GOOD).folder, prefix=prefix)
    assert run.code == 0 and run.submission.count(STUB_CELLS) == 2, run.out
    shutil.rmtree(where / "scratch")


@pytest.mark.fault(
    row=21,
    injection="the private folder's disk turns read-only between two lives of the engine",
    outcome="the next engine gets another folder with what was scored",
)
@needs_namespaces
def test_a_private_folder_that_turns_read_only_is_changed(where: Path) -> None:
    engine = f"""
def run():
    scores = Path(RUN["state"]) / "scores"
    if RUN["attempt"] == 1:
        scores.mkdir()
        (scores / "net.npy").write_text("kept")
        os.system("mount -o remount,bind,ro {where / 'scratch'}")
        os._exit(9)
    print((scores / "net.npy").read_text(), "in", RUN["state"])
    publish()
    report()
"""
    (where / "scratch").mkdir()
    prefix = in_mounts(f"mount --bind {where / 'scratch'} {where / 'scratch'}")
    run = run_guard(where, make_bundle(where / "bundle", engine).folder, prefix=prefix)
    assert run.code == 0 and run.submission.count(STUB_CELLS) == 2 and "kept in " in run.out, run.out
    assert run.faults == ["EngineDied", "StoreError"]


@pytest.mark.fault(
    row=72,
    injection="a manifest that the guard takes and the engine refuses",
    outcome="named with the engine's own sentence, no restart, the prior submission",
)
def test_a_manifest_that_the_engine_refuses_is_named_once(where: Path) -> None:
    engine = """
def run():
    verdict = {"code": "SpecError", "message": "manifest.json: nets: missing"}
    (Path(RUN["state"]) / "verdict.json").write_text(json.dumps(verdict))
    sys.exit(3)
"""
    run = run_guard(where, make_bundle(where / "bundle", engine).folder)
    check(run, "SpecError")
    assert run.report["guard"]["attempts"] == 1 and "nets: missing" in run.out


def test_an_end_at_once_leaves_no_private_folder(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "making").mkdir()
    code = f"""
import os, signal, sys, time
sys.path.insert(0, {str(KERNEL.parent)!r})
import infer_kernel as guard
run = guard.Run(guard.make_parser().parse_args(["--working", {str(tmp_path)!r}]), guard.Line(os.pipe()[1]))
run.state, run.making = {str(tmp_path / "state")!r}, {str(tmp_path / "making")!r}
guard.catch_signals(run, 0.01)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "OutOfTime guard: SIGTERM while starting" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_private_folder_goes_before_the_submission_is_read(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--input", str(where / "in"), "--working", str(where / "out"), "--seconds", "20"]
    run = infer_kernel.Run(infer_kernel.make_parser().parse_args(words))
    prior = infer_kernel.settle_sample(_with_sample(run))
    state = where / "state"
    state.mkdir()
    run.state = str(state)
    crc = zlib.crc32(b"".join(prior.lines()))
    (state / "published.json").write_text(json.dumps([{"crc": crc, "prior": 1, "partial": 1}]))
    valid = infer_kernel.find_invalid

    def look(path: str, prior: infer_kernel.Prior) -> str | None:
        assert not state.exists()
        return valid(path, prior)

    monkeypatch.setattr(infer_kernel, "find_invalid", look)
    monkeypatch.setattr(infer_kernel, "end_children", lambda: None)
    assert infer_kernel.finish(run, prior) == 0 and run.faults == [], run.faults
    report = json.loads((where / "out" / "report.json").read_text())
    assert (report["prior_rows"], report["partial_rows"]) == (1, 1), "what the engine said is not lost"


def _with_sample(run: infer_kernel.Run) -> infer_kernel.Run:
    sample = infer_kernel.find_sample(run)
    assert sample is not None
    infer_kernel.publish_prior(run, sample)
    return run
