"""Faults of the disk: the store's scratch folder in its own process, the output folder of whole runs."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import REPOSITORY
from tests.helpers.guard_runs import GuardRun
from tests.helpers.injectors import in_mounts, inject, needs_namespaces, needs_strace
from tests.helpers.whole_runs import bulky_build, check, faulty_build, make_crowd, make_place, run_whole


def run_store(folder: Path, *prefix: str, **chosen: Any) -> dict[str, Any]:
    """Figures of a store whose every array was right, run behind command words."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "tests.helpers.store_process", str(folder), json.dumps(chosen)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def run_store_on_tmpfs(scratch: Path, options: str, **chosen: Any) -> dict[str, Any]:
    """Figures of a store whose scratch folder is a disk of its own, made with these mount options."""
    mount = f"mkdir -p {scratch}; mount -t tmpfs -o {options} none {scratch}"
    return run_store(scratch, *in_mounts(mount), **chosen)


@needs_namespaces
@pytest.mark.fault(
    row=12,
    injection="a scratch disk of 2 MB for 6 MB of arrays (tmpfs): ENOSPC within an entry",
    outcome="what fits is read back, the rest computed again; the half-written entry is cut off",
)
def test_a_scratch_disk_that_is_too_small(tmp_path: Path) -> None:
    stats = run_store_on_tmpfs(tmp_path / "scratch", "size=2m", seconds=0.01)
    assert 0 < stats["disk_bytes"] <= 2 << 20 and stats["hits"]["recompute"] > 0 and not stats["left"]


@needs_namespaces
@pytest.mark.faults
@pytest.mark.fault(
    row=13,
    injection="a scratch disk without a free inode for the second front end's file (tmpfs nr_inodes)",
    outcome="the first front end is spilled, the second computed again",
)
def test_no_inodes_left(tmp_path: Path) -> None:
    # Computing an array takes longer than writing it, so that the disk is used.
    stats = run_store_on_tmpfs(tmp_path / "scratch", "size=64m,nr_inodes=3", frontends=2, seconds=0.02)
    assert stats["rows_disk"] == 24 and stats["disk_errors"].get("ENOSPC")


@needs_strace
@pytest.mark.faults
@pytest.mark.fault(row=14, injection="EDQUOT from the 6th pwrite on (strace)",
                   outcome="tier off after 3 failures, rows computed again")
@pytest.mark.fault(row=17, injection="EIO at write, at flush, at read (strace)",
                   outcome="a failed write is cut off, a failed read computed again once; every array right")
@pytest.mark.parametrize(("what", "code"), [
    ("pwrite64:error=EDQUOT:when=6+", "EDQUOT"), ("pwrite64:error=EIO:when=4+3", "EIO"),
    ("preadv,preadv2:error=EIO:when=2+2", "EIO"), ("fdatasync:error=EIO", "EIO")])
def test_errors_of_the_scratch_disk(tmp_path: Path, what: str, code: str) -> None:
    # Computing an array takes longer than reading it back, so that the disk is used.
    stats = run_store(tmp_path / "scratch", *inject(what), kilobytes=2048, seconds=0.02)
    assert stats["disk_errors"].get(code) and not stats["left"]


@needs_strace
@pytest.mark.faults
@pytest.mark.fault(
    row=16,
    injection="EINTR; writes and reads that tell too much: success without a byte moved (strace)",
    outcome="the checksum notices; computed again; every array right",
)
@pytest.mark.parametrize("what", ["pwrite64:error=EINTR:when=3+4", "pwrite64:retval=262144:when=5+5",
                                  "preadv,preadv2:retval=262144:when=3+3"])
def test_calls_that_lie(tmp_path: Path, what: str) -> None:
    stats = run_store(tmp_path / "scratch", *inject(what), seconds=0.02)
    assert stats["corrupt"] > 0 or "EINTR" in what


@needs_strace
@pytest.mark.faults
@pytest.mark.fault(row=11, injection="fallocate: EOPNOTSUPP, ENOSPC (strace, a store that spills)",
                   outcome="no effect: spill files do not use it")
@pytest.mark.parametrize("code", ["EOPNOTSUPP", "ENOSPC"])
def test_spilling_does_not_need_fallocate(tmp_path: Path, code: str) -> None:
    assert run_store(tmp_path / "scratch", *inject(f"fallocate:error={code}"))["disk_errors"] == {}


@needs_strace
@pytest.mark.faults
@pytest.mark.fault(row=8, injection="arrays come at once, every write takes 200 ms (strace)",
                   outcome="after the first writes the disk is left alone: computed again; no deadlock")
@pytest.mark.fault(row=18, injection="a disk of 1 MB/s for writing and for reading (strace delay)",
                   outcome="recompute is preferred by the cost rule")
@pytest.mark.parametrize("what", ["pwrite64:delay_enter=200000", "preadv,preadv2:delay_enter=200000"])
def test_a_disk_slower_than_computing(tmp_path: Path, what: str) -> None:
    stats = run_store(tmp_path / "scratch", *inject(what), rows=60)
    assert stats["hits"]["recompute"] > stats["hits"]["disk"]


@needs_namespaces
@pytest.mark.faults
@pytest.mark.fault(row=15, injection="no RAM for the store and a scratch disk of 64 KB",
                   outcome="every array computed on each use")
def test_both_tiers_full(tmp_path: Path) -> None:
    stats = run_store_on_tmpfs(tmp_path / "scratch", "size=64k")
    assert stats["disk_bytes"] == stats["ram_bytes"] == 0 and stats["hits"]["recompute"] == 48


@needs_namespaces
@pytest.mark.faults
@pytest.mark.fault(row=21, injection="scratch on a read-only bind mount; scratch in memory (tmpfs)",
                   outcome="ScratchRejected in the report; rows are computed again")
@pytest.mark.parametrize(
    "mount", ["mount --bind {0} {0} && mount -o remount,bind,ro {0}", "mount -t tmpfs none {0}"]
)
def test_a_scratch_folder_that_cannot_serve(tmp_path: Path, mount: str) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    stats = run_store(scratch, *in_mounts(mount.format(scratch)), any_filesystem=False)
    assert stats["disk_rejected"] and stats["disk_bytes"] == 0
    assert any("ScratchRejected" in note for note in stats["notes"])


# -- whole runs


def copied_out(place_out: Path, kept: Path) -> str:
    """Shell words that keep what a run left in a mount of its own, and its exit code."""
    return f'"$@"; code=$?; cp -a {place_out}/. {kept}/; exit $code'


@needs_namespaces
@pytest.mark.fault(
    row=56,
    injection="the output disk is filled to its last byte once the prior is there (tmpfs)",
    outcome="still published: the bytes of the next submission were reserved",
)
def test_the_output_disk_is_full(tmp_path: Path, unharmed: GuardRun) -> None:
    place = make_place(tmp_path)
    kept = tmp_path / "kept"
    kept.mkdir()
    out = tmp_path / "out"
    mount = f"mkdir -p {out}; mount -t tmpfs -o size=200k none {out}; "
    wait_for_report = f"while [ ! -s {out}/report.json ]; do sleep 0.05; done; "
    fill = f"{mount}({wait_for_report}head -c 1m /dev/zero > {out}/ballast 2>/dev/null) & "
    wait = [{"at": "row", "id": "c11.wav", "do": "sleep", "seconds": 0.5}]
    run = run_whole(place, faulty_build() / "bundle", plan=wait,
                    prefix=("unshare", "-Urm", "sh", "-c", fill + copied_out(out, kept), "sh"))
    (kept / "ballast").unlink()
    shutil.copytree(kept, out, dirs_exist_ok=True)
    run = GuardRun(**{**vars(run), "report": json.loads((out / "report.json").read_bytes())})
    names = {fault["code"] for fault in run.report["faults"]}
    check(run, "OutputUnwritable" if names else None, reference=unharmed)


@pytest.mark.faults
@pytest.mark.fault(row=14, injection="RLIMIT_FSIZE 6 MB in a whole run that spills: EFBIG",
                   outcome="what fits is spilled, the rest computed again; the same bytes")
def test_spill_files_may_not_grow(tmp_path: Path) -> None:
    place = make_crowd(tmp_path, 110, seconds=10.0, rate=48_000)  # resampled: dearer than a disk
    plain = run_whole(place, bulky_build() / "bundle")
    check(plain)
    rows = plain.submission
    limit = ("prlimit", f"--fsize={6 << 20}")
    run = run_whole(place, bulky_build() / "bundle", "--ram", "490MB", prefix=limit)
    check(run)
    assert run.submission == rows and run.report["store"]["disk_errors"].get("EFBIG")


@needs_namespaces
@pytest.mark.fault(row=61, injection="the working folder is read-only (bind mount)",
                   outcome="exit 2 within seconds, OutputUnwritable: the one fault without a submission")
def test_a_read_only_output(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    run = run_whole(place, faulty_build() / "bundle",
                    prefix=in_mounts(f"mount --bind {out} {out} && mount -o remount,bind,ro {out}"))
    assert run.code == 2 and "OutputUnwritable" in run.out and "Traceback" not in run.out


@needs_namespaces
@pytest.mark.faults
@pytest.mark.fault(
    row=21,
    injection="every folder but the output is read-only (bind mounts over TMPDIR, /tmp and /var/tmp)",
    outcome="ScratchRejected; private files go to the output folder, nothing is spilled; the same bytes",
)
def test_no_scratch_folder_at_all(tmp_path: Path, unharmed: GuardRun) -> None:
    place = make_place(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    mounts = [f"mount --bind {out} {out}"]
    for folder in {tmp_path.parents[-2], Path("/tmp"), Path("/var/tmp")}:
        mounts += [f"mount --rbind {folder} {folder}", f"mount -o remount,bind,ro {folder}"]
    run = run_whole(place, faulty_build() / "bundle", prefix=in_mounts(" && ".join(mounts)))
    check(run, "ScratchRejected", reference=unharmed)
    assert run.report["limits"]["disk_bytes"] == 0
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "submission.csv"]


@needs_strace
@pytest.mark.faults
@pytest.mark.fault(row=11, injection="fallocate: EOPNOTSUPP for every file of a whole run (strace)",
                   outcome="the submission is reserved by writing zeros; the same bytes")
def test_publishing_without_fallocate(tmp_path: Path, unharmed: GuardRun) -> None:
    prefix = inject("fallocate:error=EOPNOTSUPP")
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", prefix=prefix, seconds=60)
    check(run, reference=unharmed)


@needs_strace
@pytest.mark.faults
@pytest.mark.fault(
    row=55,
    injection="SIGKILL of the engine at its 1st, 2nd, 3rd fsync and rename of a submission (strace)",
    outcome="the old or the new submission, never a torn one; the restart gives the same bytes",
)
@pytest.mark.parametrize("what", ["fsync:signal=SIGKILL:when=2", "rename:signal=SIGKILL:when=40",
                                  "rename:signal=SIGKILL:when=80"])
def test_killed_inside_a_publication(tmp_path: Path, unharmed: GuardRun, what: str) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", prefix=inject(what), seconds=60)
    assert run.torn == ()
    if run.code >= 0 and run.report:  # strace counts per process: the guard itself may be the one that is hit
        check(run, "EngineDied" if run.report["guard"]["deaths"] else None, reference=unharmed)
