"""Faults of the machine around the run: descriptors, threads, network, read-only packages, other clocks."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.guard_runs import GuardRun
from tests.helpers.injectors import (
    TIME_NAMESPACE,
    control_group,
    in_mounts,
    inject,
    inside,
    needs_namespaces,
    needs_strace,
    needs_time,
)
from tests.helpers.whole_runs import check, faulty_build, make_place, prior_rows, run_whole

SITE = Path(sys.prefix)


@needs_namespaces
@pytest.mark.fault(row=78, injection="no network at all (own namespace); the decoder tries to connect",
                   outcome="the run is unaffected; the clip that tried is named")
def test_without_network_and_with_planted_modules(tmp_path: Path, unharmed: GuardRun) -> None:
    """Also: modules that lie in the input, the working folder and beside the clips are not imported."""
    place = make_place(tmp_path)
    planted = "import pathlib; pathlib.Path({!r}).touch(); raise SystemExit(7)\n"
    (tmp_path / "out").mkdir()
    for name in ("torch", "numpy", "sitecustomize", "json", "kernel", "soundfile"):
        for folder in (place.folder, place.folder / "in", place.clips):
            (folder / f"{name}.py").write_text(planted.format(str(tmp_path / f"{name}-was-imported")))
    run = run_whole(
        place,
        faulty_build() / "bundle",
        prefix=("unshare", "-Urn"),
        PYTHONPATH=str(tmp_path / "in"),
        plan=[{"at": "decode", "id": "c05.wav", "do": "connect"}],
    )
    check(run, "ClipUnreadable", reference=unharmed, affected={"c05.wav"})
    assert prior_rows(run) == {"c05.wav"} and not list(tmp_path.glob("*-was-imported"))


@needs_strace
@pytest.mark.faults
@pytest.mark.fault(
    row=78, injection="every connect() of the run counted (strace)", outcome="there is none to the network"
)
def test_no_connection_is_even_tried(tmp_path: Path, unharmed: GuardRun) -> None:
    log = tmp_path / "connects"
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", seconds=60,
                    prefix=("strace", "-f", "-qq", "-o", str(log), "-e", "trace=connect,sendto"))
    check(run, reference=unharmed)
    assert "AF_INET" not in log.read_text()


@pytest.mark.faults
@pytest.mark.fault(row=26, injection="RLIMIT_NOFILE 64",
                   outcome="the same bytes: one spill file per front end, clips closed after use")
def test_few_file_descriptors(tmp_path: Path, unharmed: GuardRun) -> None:
    limit = ("prlimit", "--nofile=64:64")
    check(run_whole(make_place(tmp_path), faulty_build() / "bundle", prefix=limit), reference=unharmed)


@pytest.mark.faults
@pytest.mark.fault(
    row=36,
    injection="a limit on processes and threads (pids cgroup) so low that threads cannot be started",
    outcome="fewer threads, or the prior submission with the death named; always valid, exit 0",
)
@pytest.mark.parametrize("most", [4, 8, 14])
def test_few_threads(tmp_path: Path, most: int) -> None:
    with control_group("pids", "pids.max", most) as group:
        run = run_whole(make_place(tmp_path), faulty_build() / "bundle", prefix=inside(group), seconds=30)
    named = run.report["faults"]
    check(run, named[0]["code"] if named else None)
    assert not prior_rows(run) or named


@needs_namespaces
@pytest.mark.faults
@pytest.mark.fault(row=9, injection="/dev/shm of 1 MB; /dev/shm empty and read-only",
                   outcome="the same bytes: it is never needed")
@pytest.mark.parametrize(
    "mount", ["mount -t tmpfs -o size=1m none /dev/shm", "mount -t tmpfs -o ro,size=4k none /dev/shm"]
)
def test_without_shared_memory(tmp_path: Path, unharmed: GuardRun, mount: str) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", prefix=in_mounts(mount))
    check(run, reference=unharmed)


@needs_namespaces
@pytest.mark.faults
@pytest.mark.fault(
    row=54,
    injection="the Python installation mounted read-only, HOME unwritable, an empty numba cache",
    outcome="the same bytes: caches lie in the private folder",
)
def test_read_only_packages(tmp_path: Path, unharmed: GuardRun) -> None:
    mount = f"mount --bind {SITE} {SITE} && mount -o remount,bind,ro {SITE}"
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", prefix=in_mounts(mount), HOME="/nowhere",
                    NUMBA_CACHE_DIR="/nowhere/numba")
    check(run, reference=unharmed)


@needs_time
@pytest.mark.faults
@pytest.mark.fault(
    row=50, injection="the monotonic clock starts at 9,000 s (time namespace)", outcome="the same bytes"
)
def test_another_origin_of_the_clock(tmp_path: Path, unharmed: GuardRun) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", "--strict", prefix=TIME_NAMESPACE)
    check(run, reference=unharmed)


@pytest.mark.faults
@pytest.mark.fault(row=49, injection="another time zone, locale and date format in the environment",
                   outcome="no change: realtime is only logged, numbers are written by format, not by locale")
def test_another_locale_and_time_zone(tmp_path: Path, unharmed: GuardRun) -> None:
    other = {"TZ": "Pacific/Kiritimati", "LC_ALL": "de_DE.UTF-8", "LANG": "C"}
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", **other)
    check(run, reference=unharmed)


@pytest.mark.faults
@pytest.mark.fault(row=18, injection="every pwrite of the run takes 20 ms (strace)", outcome="the same bytes")
@needs_strace
def test_a_slow_private_folder(tmp_path: Path, unharmed: GuardRun) -> None:
    prefix = inject("pwrite64:delay_enter=20000")
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", prefix=prefix)
    check(run, reference=unharmed)
