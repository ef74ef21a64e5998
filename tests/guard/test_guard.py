"""The guard, alone: every test runs the real file in its own process, with a stub in place of the engine."""
from __future__ import annotations

import ast
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import infer_kernel
from kernel import limits, units
from tests.helpers.guard_runs import KERNEL, GuardRun, run_guard, start_guard, wait_for
from tests.helpers.invariants import find_broken, find_processes
from tests.helpers.stub_bundle import CLASSES, EMPTY, GOOD, PRIOR, Bundle, make_bundle, make_input, pin

PRIOR_CELLS = ",".join(f"{p:.6e}" for p in PRIOR)
STUB_CELLS = ",".join(["7.000000e-01"] * 3)


def check(run: GuardRun, fault: str | None = None, **more: object) -> None:
    assert find_broken(run, fault=fault, **more) == [], run.out  # type: ignore[arg-type]
    if fault is None:
        assert run.faults == [], run.out


def is_prior(run: GuardRun) -> bool:
    return all(line.endswith(PRIOR_CELLS) for line in run.submission.splitlines()[1:])


@pytest.fixture
def where(tmp_path: Path) -> Path:
    make_input(tmp_path / "in")
    return tmp_path


# -- a run without faults
# -------------------------------------------------------------------------------------------------


def test_the_engine_publishes_and_the_guard_adds_its_section(where: Path) -> None:
    bundle = make_bundle(where / "bundle", GOOD)
    run = run_guard(where, bundle.folder, "--strict")
    check(run)
    assert STUB_CELLS in run.submission and "UNPINNED" in run.out and "DEGRADED" not in run.out
    guard = run.report["guard"]
    assert guard["attempts"] == 1 and guard["finished"] and not guard["pinned"] and guard["exit_code"] == 0


def test_the_pushed_form_is_pinned_and_needs_no_bundle_argument(where: Path) -> None:
    bundle = make_bundle(where / "in" / "datasets" / "me" / "stub-data")
    run = run_guard(where, None, "--strict", kernel=pin(bundle, where / "kernel.py"))
    check(run)
    assert STUB_CELLS in run.submission and "UNPINNED" not in run.out and run.report["guard"]["pinned"]


def test_the_engine_is_told_everything_it_needs(where: Path) -> None:
    bundle = make_bundle(
        where / "bundle", GOOD + "    report(told=RUN, env=dict(os.environ), path=sys.path)\n"
    )
    run = run_guard(
        where,
        bundle.folder,
        "--ram",
        "1.5GB",
        "--disk",
        "2GiB",
        "--first",
        "1",
        "--loaders",
        "3",
        "--device",
        "cpu",
        "--offset",
        "1",
        "--limits",
        "code-cpu",
        KAGGLE_USER_SECRETS_TOKEN="secret",
        PYTHONPATH=str(where),
    )
    told = run.report["told"]
    assert told["limits"] == {
        "name": "code-cpu",
        "seconds": 12.0,
        "ram_bytes": 15 * 10**8,
        "disk_bytes": 2 << 30,
        "cores": 4,
        "gpu": False,
    }
    assert told["sample"]["ids"] == ["a.wav", "b.wav"] and told["sample"]["header"] == ["fname", *CLASSES]
    assert (told["first"], told["loaders"], told["device"], told["offset_s"], told["attempt"]) == (
        1,
        3,
        "cpu",
        1.0,
        1,
    )
    assert told["input"] == str(where / "in") and told["working"] == str(where / "out")
    assert limits.Limits(**told["limits"]).ram_bytes == 15 * 10**8
    env = run.report["env"]
    assert (
        env["OMP_WAIT_POLICY"] == "PASSIVE"
        and env["OPENBLAS_NUM_THREADS"] == "1"
        and int(env["OMP_NUM_THREADS"]) >= 1
    )
    assert "KAGGLE_USER_SECRETS_TOKEN" not in env and "PYTHONPATH" not in env
    assert str(where) not in run.report["path"] and "" not in run.report["path"]


def test_modules_planted_in_the_input_are_not_imported(where: Path) -> None:
    bundle = make_bundle(where / "bundle", "import json, zipfile, ctypes\n" + GOOD)
    for folder in (where, where / "in", where / "bundle"):
        for name in ("json", "torch", "numpy", "sitecustomize", "csv", "argparse", "zipfile", "ctypes"):
            (folder / f"{name}.py").write_text("raise SystemExit('planted')\n")
    run = run_guard(where, bundle.folder)
    check(run)
    assert not list(where.rglob("__pycache__"))


# -- the sample and the prior
# ---------------------------------------------------------------------------------------------


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


# -- exit code 2
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seconds", "soon"],
        ["--seconds", "nan"],
        ["--ram", "14 apples"],
        ["--first", "0"],
        ["--device", "tpu"],
        ["--unknown"],
        ["--loaders", "-1"],
        ["--work", "short"],
    ],
)
def test_bad_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        infer_kernel.make_parser().parse_args(arguments)
    assert ended.value.code == 2


def test_an_unknown_profile_is_refused_with_the_known_ones(where: Path) -> None:
    run = run_guard(where, make_bundle(where / "bundle").folder, "--limits", "no-such")
    assert run.code == 2 and "choose one of: code-cpu, fat2019" in run.out


def test_an_unwritable_output_is_refused(where: Path) -> None:
    (where / "file").touch()
    (where / "taken" / "submission.csv").mkdir(parents=True)
    for folder in ("file", "taken", "/proc/nowhere"):
        run = run_guard(where, None, f"--working={where / folder}")
        assert run.code == 2 and "OutputUnwritable" in run.out, run.out


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
        f"mount -t tmpfs -o size={size} tmpfs {where}/out && {sys.executable} -I {KERNEL} --bundle {bundle.folder} "
        f"--input {where}/in --working {where}/out --seconds 12; code=$?; cat {where}/out/submission.csv; exit $code"
    )
    done = subprocess.run(["unshare", "-Urm", "bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr
    if code == 0:
        rows = done.stdout[done.stdout.index("fname,"):].splitlines()
        assert len(rows) == 1001 and all(row.endswith(PRIOR_CELLS) for row in rows[1:])


# -- the bundle
# -----------------------------------------------------------------------------------------------------------


def unpack_wheel(bundle: Bundle, name: str) -> None:
    wheel = next(bundle.folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(bundle.folder / "unpacked")
    wheel.unlink()
    (bundle.folder / "unpacked").rename(bundle.folder / name)


def wrap(bundle: Bundle) -> None:
    inner = bundle.folder / "stub-data"
    inner.mkdir()
    for path in list(bundle.folder.iterdir()):
        if path != inner:
            path.rename(inner / path.name)


CHANGES = {
    "unpacked": lambda b: unpack_wheel(b, "hourglass-0-py3-none-any"),
    "unpacked_named": lambda b: unpack_wheel(b, "hourglass-0-py3-none-any.whl"),
    "unpacked_deeper": lambda b: (
        unpack_wheel(b, "x"),
        (b.folder / "y").mkdir(),
        (b.folder / "x").rename(b.folder / "y" / "x"),
    ),
    "renamed": lambda b: next(b.folder.glob("*.whl")).rename(b.folder / "hourglass.zip"),
    "wrapped": wrap,
    "wrapped_unpacked": lambda b: (unpack_wheel(b, "code"), wrap(b)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_bundle_that_kaggle_changed_is_found_and_verified(where: Path, change: str) -> None:
    place = "stub-data" if change in ("unpacked", "wrapped") else "datasets/me/stub-data"
    bundle = make_bundle(where / "in" / place)
    kernel = pin(bundle, where / "kernel.py")
    CHANGES[change](bundle)
    run = run_guard(where, None, kernel=kernel)
    check(run)
    assert STUB_CELLS in run.submission


def test_every_mount_layout_is_searched_beside_a_large_competition(where: Path) -> None:
    crowd = where / "in" / "competitions" / "big" / "test"
    crowd.mkdir(parents=True)
    for i in range(infer_kernel.MAX_ENTRIES + 10):
        os.close(os.open(crowd / f"{i}.wav", os.O_CREAT | os.O_WRONLY))
    bundle = make_bundle(where / "bundle")
    kernel = pin(bundle, where / "kernel.py")
    for place in ("models/me/stub-data/other/default/1", "notebooks/me/stub-data", "a/b/c/d/renamed"):
        (where / "in" / place).parent.mkdir(parents=True)
        shutil.copytree(bundle.folder, where / "in" / place)
        check(run_guard(where, None, kernel=kernel))
        shutil.rmtree(where / "in" / place)


def test_the_right_one_of_two_bundles_is_chosen_by_its_hash(where: Path) -> None:
    make_bundle(
        where / "in" / "datasets" / "me" / "stub-data", "def run():\n    raise SystemExit('the wrong one')\n"
    )
    right = make_bundle(where / "in" / "old-version")
    check(run_guard(where, None, kernel=pin(right, where / "kernel.py")))


def flip(path: Path, at: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def swap_code(bundle: Bundle) -> None:
    unpack_wheel(bundle, "code")
    (bundle.folder / "code" / "kernel" / "run.py").write_text("raise SystemExit('poisoned')\n")


@pytest.mark.parametrize(("harm", "fault"), [
    (lambda b: flip(b.folder / "manifest.json"), "BundleHashMismatch"),
    (lambda b: flip(next(b.folder.glob("*.whl"))), "BundleHashMismatch"),
    (lambda b: next(b.folder.glob("*.whl")).unlink(), "BundleMissing"),
    (lambda b: (b.folder / "manifest.json").unlink(), "BundleMissing"),
    (swap_code, "BundleHashMismatch"),
])
def test_a_damaged_bundle_is_never_run(where: Path, harm: object, fault: str) -> None:
    bundle = make_bundle(where / "bundle")
    kernel = pin(bundle, where / "kernel.py")
    harm(bundle)  # type: ignore[operator]
    run = run_guard(where, bundle.folder, kernel=kernel)
    check(run, fault)
    assert is_prior(run) and run.report["guard"]["attempts"] == 0


@pytest.mark.parametrize("manifest", [b"", b"[]", b"{}", b'{"wheel": {"entry": 3}}', b"[" * 100_000])
def test_a_manifest_that_is_none_is_named(where: Path, manifest: bytes) -> None:
    (where / "bundle").mkdir()
    (where / "bundle" / "manifest.json").write_bytes(manifest)
    check(run_guard(where, where / "bundle"), "BundleInvalid")


@pytest.mark.parametrize(
    "name",
    ["", "../evil.py", "/tmp/evil.py", "kernel/../../evil.py", "kernel\\evil.py", "a\nb.py", "./a", "a//b"],
)
def test_a_name_that_leads_elsewhere_is_not_safe(name: str) -> None:
    assert not infer_kernel.is_safe(name) and infer_kernel.is_safe("kernel/models/__init__.py")


def test_a_wheel_with_files_elsewhere_is_refused(where: Path) -> None:
    check(run_guard(where, make_bundle(where / "bundle", extra={"../evil.py": "1"}).folder), "BundleInvalid")
    assert not list(where.rglob("evil.py"))


# -- the life of the engine
# -----------------------------------------------------------------------------------------------


def test_a_crash_without_progress_is_given_up_after_two_barren_restarts(where: Path) -> None:
    run = run_guard(
        where, make_bundle(where / "bundle", "def run():\n    beat(1)\n    os.kill(os.getpid(), 11)\n").folder
    )
    check(run, "EngineGivenUp")
    assert run.faults.count("EngineDied") == 3 and "SIGSEGV" in run.out and is_prior(run)


def test_an_engine_that_cannot_even_be_imported_leaves_the_prior(where: Path) -> None:
    run = run_guard(where, make_bundle(where / "bundle", "raise ImportError('no such module')\n").folder)
    check(run, "EngineDied")
    assert is_prior(run) and "no such module" in run.out


def test_restarts_go_on_while_each_scores_a_new_row(where: Path) -> None:
    engine = """
def run():
    lives = count("lives")
    beat(1, scored=lives)
    publish(f"{lives / 100:.6e}")
    report()
    os._exit(0 if lives == 6 else 9)
"""
    run = run_guard(where, make_bundle(where / "bundle", engine).folder)
    check(run, "EngineDied")
    assert run.report["guard"]["attempts"] == 6 and "6.000000e-02" in run.submission
    assert [death["scored_rows"] for death in run.report["guard"]["deaths"]] == [1, 2, 3, 4, 5]


def up_to_eight_lives(where: Path, deed: str) -> GuardRun:
    """An engine that does `deed` in each of its `lives` and is killed in all but the eighth."""
    engine = f"""
def run():
    lives, state = count("lives"), Path(RUN["state"])
    {deed}
    beat(1)
    if lives < 8:
        os.kill(os.getpid(), 9)
    publish()
    report()
"""
    return run_guard(where, make_bundle(where / "bundle", engine).folder)


def crashes(clip: str) -> str:
    """The deed of naming a suspect of every life before this one, as the engine does at its start."""
    return f"""(state / "crashes.json").write_text(json.dumps(
        [{{"kind": "clip", "net": "", "ids": [{clip}]}} for life in range(1, lives)]))"""


@pytest.mark.parametrize(
    ("clip", "attempts", "fault"), [("f'c{life}.wav'", 8, "EngineDied"), ("'c1.wav'", 4, "EngineGivenUp")]
)
def test_a_new_suspect_counts_as_progress_the_same_one_does_not(
    where: Path, clip: str, attempts: int, fault: str
) -> None:
    run = up_to_eight_lives(where, crashes(clip))
    check(run, fault)
    assert run.report["guard"]["attempts"] == attempts and run.report["guard"]["finished"] == (attempts == 8)


def test_a_new_quarantine_counts_as_progress(where: Path) -> None:
    run = up_to_eight_lives(
        where,
        '(state / "quarantine.json").write_text(json.dumps({"clips": ["a"] * (lives // 2), "batches": []}))',
    )
    check(run, "EngineDied")
    assert run.report["guard"]["attempts"] == 8 and run.report["guard"]["finished"]


def test_a_verdict_of_the_engine_is_final(where: Path) -> None:
    engine = """
def run():
    (Path(RUN["state"]) / "verdict.json").write_text(json.dumps({"code": "MemoryTooSmall", "message": "give --ram 600MB"}))
    sys.exit(3)
"""
    run = run_guard(where, make_bundle(where / "bundle", engine).folder, "--ram", "150MB")
    check(run, "MemoryTooSmall")
    assert run.report["guard"]["attempts"] == 1 and "give --ram 600MB" in run.out and is_prior(run)


def test_a_hung_engine_is_asked_where_it_is_and_ended(where: Path) -> None:
    engine = """
import faulthandler
def run():
    faulthandler.register(signal.SIGUSR1, file=open(Path(RUN["state"]) / "stacks.txt", "a"))
    publish()
    report()
    if count("lives") == 2:
        return
    stuck_in_here()
def stuck_in_here():
    while True:
        beat(1, "net", 0.1)
        time.sleep(0.2)
"""
    run = run_guard(where, make_bundle(where / "bundle", engine).folder, seconds=8)
    check(run, "EngineHung")
    assert "stuck_in_here" in run.report["guard"]["stacks"] and run.report["guard"]["finished"]


def test_a_stopped_engine_and_one_deaf_to_sigterm_are_ended_in_time(where: Path) -> None:
    deaf = """
def run():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    publish()
    while True:
        beat(time.monotonic_ns(), scored=1)
        time.sleep(0.1)
"""
    run = run_guard(where, make_bundle(where / "deaf", deaf).folder, seconds=3.2)
    check(run, "DeadlineKilled")
    assert "DeadlineTerminated" in run.faults and STUB_CELLS in run.submission
    stopped = "def run():\n    publish()\n    beat(1)\n    time.sleep(0.5)\n    os.kill(os.getpid(), signal.SIGSTOP)\n"
    check(run_guard(where, make_bundle(where / "stopped", stopped).folder, seconds=3.2), "EngineHung")


def test_an_engine_that_obeys_sigterm_publishes_once_more(where: Path) -> None:
    engine = """
def run():
    signal.signal(signal.SIGTERM, leave)
    while True:
        beat(time.monotonic_ns())
        time.sleep(0.05)
def leave(*_):
    publish("2.000000e-01")
    report()
    os._exit(0)
"""
    run = run_guard(where, make_bundle(where / "bundle", engine).folder, seconds=3.2)
    check(run, "DeadlineTerminated")
    assert "2.000000e-01" in run.submission and "DeadlineKilled" not in run.faults


def test_nothing_of_a_double_forked_grandchild_is_left(where: Path) -> None:
    engine = """
def run():
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork():
            os._exit(0)
        time.sleep(60)
    time.sleep(0.2)
    publish()
    report()
"""
    check(run_guard(where, make_bundle(where / "bundle", engine).folder))


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


def test_half_written_files_and_an_old_report_do_not_survive(where: Path) -> None:
    (where / "out").mkdir()
    (where / "out" / "report.json").write_text('{"rows": 99, "prior_rows": 0}')
    (where / "out" / ".submission.csv.12.tmp").touch()
    engine = "def run():\n    (Path(RUN['working']) / '.report.json.9.9.tmp').touch()\n    os._exit(1)\n"
    run = run_guard(where, make_bundle(where / "bundle", engine).folder)
    check(run, "EngineDied")
    assert run.report["rows"] == 2 and run.report["prior_rows"] == 2


@pytest.mark.parametrize("seconds", [-5, 2.9])
def test_a_budget_too_small_leaves_the_prior(where: Path, seconds: float) -> None:
    run = run_guard(where, make_bundle(where / "bundle").folder, f"--seconds={seconds}")
    check(run, "BudgetTooSmall")
    assert is_prior(run) and run.report["guard"]["attempts"] == 0


def test_time_that_passed_before_the_start_counts(where: Path) -> None:
    run = run_guard(where, make_bundle(where / "bundle").folder, "--offset", "11")
    check(run, "BudgetTooSmall")
    assert is_prior(run)


# -- signals
# --------------------------------------------------------------------------------------------------------------

ENDLESS = """
def run():
    publish()
    while True:
        beat(time.monotonic_ns(), scored=1)
        time.sleep(0.05)
"""


def has_published(working: Path) -> bool:
    path = working / "submission.csv"
    return path.exists() and STUB_CELLS in path.read_text()


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGHUP], [signal.SIGTERM] * 2]
)
def test_a_signal_ends_the_run_in_order(where: Path, numbers: list[signal.Signals]) -> None:
    def send(process: subprocess.Popen[str], working: Path) -> None:
        wait_for(lambda: has_published(working))
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.05)

    run = run_guard(where, make_bundle(where / "bundle", ENDLESS).folder, during=send)
    check(run, "Interrupted")
    assert has_published(run.working)


def test_a_signal_to_a_guard_with_a_stopped_engine_still_ends_it(where: Path) -> None:
    engine = "def run():\n    publish()\n    os.kill(os.getpid(), signal.SIGSTOP)\n"

    def send(process: subprocess.Popen[str], working: Path) -> None:
        wait_for(lambda: has_published(working))
        process.send_signal(signal.SIGTERM)

    check(run_guard(where, make_bundle(where / "bundle", engine).folder, during=send), "Interrupted")


def test_the_engine_dies_with_a_killed_guard_and_the_next_run_sweeps_up(where: Path) -> None:
    deaf = """
import re
def run():
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    publish()
    re.match("(a+)+$", "a" * 40 + "b")  # holds the interpreter's lock for ever: no thread of the engine can see the end
"""
    bundle = make_bundle(where / "bundle", deaf)
    process, mark = start_guard(
        KERNEL,
        where,
        "--bundle",
        str(bundle.folder),
        "--input",
        str(where / "in"),
        "--working",
        str(where / "out"),
        "--seconds",
        "60",
    )
    wait_for(lambda: has_published(where / "out"))
    assert len(find_processes(mark)) == 3  # guard, engine, its child
    process.kill()
    process.communicate()
    wait_for(lambda: not find_processes(mark), 3)
    assert has_published(where / "out") and len(list((where / "scratch").iterdir())) == 1
    check(run_guard(where, make_bundle(where / "good").folder))


def test_private_folders_of_living_runs_stay(where: Path) -> None:
    alive = where / "scratch" / "hourglass-alive"
    alive.mkdir(parents=True)
    owner = {"pid": os.getpid(), "process": infer_kernel.describe_process(os.getpid())}
    (alive / "owner.json").write_text(json.dumps(owner))
    reused = where / "scratch" / "hourglass-reused"
    reused.mkdir()
    (reused / "owner.json").write_text(json.dumps({"pid": os.getpid(), "process": [owner["process"][0], 1]}))
    run_guard(where, make_bundle(where / "bundle").folder)
    assert [p.name for p in (where / "scratch").iterdir()] == ["hourglass-alive"]


def test_a_closed_stdout_costs_nothing(where: Path) -> None:
    bundle = make_bundle(where / "bundle")
    for stream in ("/dev/full", "closed"):
        shell = ">&-" if stream == "closed" else f"> {stream}"
        done = subprocess.run(
            f"{sys.executable} -I {KERNEL} --bundle {bundle.folder} --input {where}/in --working {where}/out "
            f"--seconds 12 {shell}",
            shell=True,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert has_published(where / "out")


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    make_input(tmp_path / "in", header=("fname", "\x1b[31mred", "Bark"))
    run = run_guard(tmp_path, make_bundle(tmp_path / "bundle").folder)
    assert "\x1b" not in run.out and "red" in run.out


# -- the rehearsal
# --------------------------------------------------------------------------------------------------------


def test_a_rehearsal_runs_the_bundles_own_code_with_the_other_arguments(where: Path) -> None:
    rehearsal = """
import json, os, sys
def main(arguments, kernel):
    print(json.dumps([arguments, kernel, os.getcwd()]))
    return 1
"""
    bundle = make_bundle(where / "bundle", extra={"kernel/rehearsal/__init__.py": "", "kernel/rehearsal/command.py": rehearsal})
    command = [
        sys.executable,
        str(KERNEL),
        "--rehearse",
        "--bundle",
        "bundle",
        "--clips=clips",
        "--expect-clips",
        "5",
    ]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    arguments, kernel, folder = json.loads(done.stdout)
    assert done.returncode == 1 and kernel == str(KERNEL)
    assert arguments == ["--bundle", str(bundle.folder), f"--clips={where / 'clips'}", "--expect-clips", "5"]
    assert not os.path.exists(folder)


def test_a_rehearsal_without_bundle_is_refused(where: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(KERNEL), "--rehearse", "--clips", "x"], cwd=where, capture_output=True, text=True
    )
    assert done.returncode == 2 and "BundleMissing" in done.stderr


# -- parts
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget_s", [-1.0, 0.0, 2.9, 3.0, 20.0, 60.0, 720.0, 3600.0, 43200.0])
def test_the_marks_are_those_of_the_engine(budget_s: float) -> None:
    assert infer_kernel.find_marks(budget_s) == pytest.approx(vars(limits.marks(budget_s)))


@pytest.mark.parametrize(
    ("text", "size"), [("14GB", 14 * 10**9), ("512MiB", 512 << 20), ("1.5g", 15 * 10**8), ("4096", 4096)]
)
def test_amounts_are_read_as_the_engine_reads_them(text: str, size: int) -> None:
    assert infer_kernel.parse_bytes(text) == size == units.parse_bytes(text)


def test_a_pause_of_the_whole_machine_is_no_hang() -> None:
    watch = infer_kernel.Watch(infer_kernel.find_marks(3600), 100.0)
    assert not watch.see({"progress": 1, "unit": "net", "forecast_s": 1.0}, 101.0)
    assert not watch.see({"progress": 1, "unit": "net", "forecast_s": 1.0}, 141.0)
    assert watch.paused_s == 40.0
    assert any(watch.see({"progress": 1, "unit": "net", "forecast_s": 1.0}, 141.0 + i) for i in range(1, 32))


@pytest.mark.parametrize(
    ("unit", "forecast_s", "patience_s"),
    [("start", 0.0, 120), ("net", 0.0, 30), ("net", 20.0, 80), ("net", 1e9, 900)],
)
def test_patience_follows_the_forecast(unit: str, forecast_s: float, patience_s: float) -> None:
    watch = infer_kernel.Watch(infer_kernel.find_marks(3600), 0.0)
    beat = {"progress": 1, "unit": unit, "forecast_s": forecast_s}
    hung = next(t for t in range(2000) if watch.see(beat, float(t)))
    assert hung == patience_s + 1


def test_the_clock_ignores_the_wall_clock_and_counts_suspension() -> None:
    clock = infer_kernel.Clock(
        5.0, now=lambda: infer_kernel.STARTED + 10, boot=lambda: infer_kernel.STARTED_BOOT + 70
    )
    assert clock.elapsed() == pytest.approx(75.0)


@pytest.mark.parametrize(("age_s", "offset_s"), [(180.0, 180.0), (5000.0, 0.0)])
def test_the_age_of_the_oldest_ancestor_is_the_offset(tmp_path: Path, age_s: float, offset_s: float) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    (tmp_path / "uptime").write_text("10000.00 5.0\n")
    for pid, parent, age in (("self", 7, 3.0), ("7", 1, age_s), ("1", 0, 60.0)):
        (tmp_path / pid).mkdir()
        fields = ["S", str(parent), *["0"] * 17, str(int((10000 - age) * ticks))]
        (tmp_path / pid / "stat").write_text(f"9 (python (3)) {' '.join(fields)} 0 0\n")
    assert infer_kernel.find_offset(3600, str(tmp_path)) == pytest.approx(offset_s, abs=0.02)
    assert infer_kernel.find_offset(3600, str(tmp_path / "none")) == 0.0


def test_the_pushed_file_is_small_and_needs_the_standard_library_only() -> None:
    source = KERNEL.read_text(encoding="utf-8")
    assert len(source.encode()) < 100_000 and source.count(EMPTY) == 1
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    assert names <= sys.stdlib_module_names | {"_sha2"}, names


def test_other_systems_are_told_to_use_linux(tmp_path: Path) -> None:
    code = (
        "import sys, time; del time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC, time.clock_gettime; sys.platform = 'win32'; "
        f"sys.path.insert(0, {str(KERNEL.parent)!r}); import infer_kernel; infer_kernel.main([])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "Linux only" in done.stderr and list(tmp_path.iterdir()) == []
