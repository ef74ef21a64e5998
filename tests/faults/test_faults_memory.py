"""Faults of memory: real limits by control groups where they can be made, the configured cap elsewhere."""
from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.guard_runs import GuardRun
from tests.helpers.injectors import control_group, inside
from tests.helpers.invariants import find_broken
from tests.helpers.whole_runs import (
    Place,
    bulky_build,
    check,
    faulty_build,
    make_crowd,
    make_place,
    prior_rows,
    run_whole,
)

LIMIT = 10**9
V1 = ("memory", "memory.limit_in_bytes")


def oom_kills(group: Path) -> int:
    """Processes that the kernel killed for memory in a group (v1 or v2)."""
    for name in ("memory.oom_control", "memory.events"):
        if (group / name).exists():
            found = dict(line.split() for line in (group / name).read_text().splitlines())
            return int(found["oom_kill"])
    return 0


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, GuardRun]:
    """90 clips of 60 s, 0.95 GB of stored arrays, and a run of them without limits."""
    folder = tmp_path_factory.mktemp("crowd")
    place = make_crowd(folder, 90, seconds=60.0, different=4, rate=48_000)  # resampled: dearer than a disk
    run = run_whole(place, bulky_build() / "bundle", seconds=100)
    check(run)
    assert run.report["store"]["ram_peak_bytes"] > 0.9e9 and not run.report["store"]["spilled"]
    return place, GuardRun(**{**vars(run), "working": keep(run)})


def keep(run: GuardRun) -> Path:
    """The submission of a run, moved where the next run does not write."""
    kept = run.working.with_name("kept")
    run.working.rename(kept)
    return kept


@pytest.mark.faults
@pytest.mark.fault(
    row=2,
    injection="a memory control group of 1 GB, 0.95 GB of spectrograms beside 0.4 GB of engine",
    outcome="spilled; no OOM kill, peak under the limit, the same bytes as without a limit",
)
def test_a_real_limit_is_obeyed(crowd: tuple[Place, GuardRun]) -> None:
    place, unlimited = crowd
    with control_group(*V1, LIMIT) as group:
        run = run_whole(place, bulky_build() / "bundle", prefix=inside(group), seconds=100)
        kills = oom_kills(group)
    check(run, reference=unlimited)
    assert kills == 0 and run.report["store"]["spilled"] > 0 and run.report["peak_ram_bytes"] <= LIMIT


@pytest.mark.faults
@pytest.mark.fault(
    row=2, injection="the same with the configured cap alone (--ram 1GB)", outcome="as with the real limit"
)
@pytest.mark.fault(row=79, injection="RAM unlimited, RAM 1 GB with the rest on disk, RAM 1 GB and no disk",
                   outcome="the same bytes")
@pytest.mark.parametrize("disk", ["5GB", "0"])
def test_a_configured_limit_is_obeyed(crowd: tuple[Place, GuardRun], disk: str) -> None:
    place, unlimited = crowd
    run = run_whole(place, bulky_build() / "bundle", "--ram", "1GB", "--disk", disk, seconds=100)
    check(run, reference=unlimited)
    store = run.report["store"]
    assert run.report["peak_ram_bytes"] <= LIMIT
    if disk == "0":
        assert store["spilled"] == 0 and store["hits"]["recompute"] > 0
    else:
        assert store["spilled"] > 0


@pytest.mark.faults
@pytest.mark.fault(row=4, injection="200 MB of another process's shared memory charged to the 1 GB group",
                   outcome="counted as used: more is spilled, no OOM kill, the same bytes")
def test_shared_memory_of_others_counts(crowd: tuple[Place, GuardRun]) -> None:
    place, unlimited = crowd
    ballast = Path("/dev/shm") / f"hourglass-ballast-{place.folder.name}"
    try:
        with control_group(*V1, LIMIT) as group:
            before = f"head -c 200000000 /dev/zero > {ballast}"
            run = run_whole(place, bulky_build() / "bundle", prefix=inside(group, before), seconds=100)
            kills = oom_kills(group)
            ballast.unlink()
    finally:
        ballast.unlink(missing_ok=True)
    check(run, reference=unlimited)
    assert kills == 0 and run.report["peak_ram_bytes"] <= LIMIT


@pytest.mark.faults
@pytest.mark.fault(
    row=3,
    injection="a file of 600 MB read into the page cache of the 1 GB group before the run",
    outcome="page cache is no pressure: no OOM kill, the same bytes",
)
def test_page_cache_is_no_pressure(tmp_path: Path, unharmed: GuardRun) -> None:
    flood = tmp_path / "flood"
    with open(flood, "wb") as file:
        file.truncate(600_000_000)
    with control_group(*V1, LIMIT) as group:
        prefix = inside(group, f"cat {flood} > /dev/null")
        run = run_whole(make_place(tmp_path), faulty_build() / "bundle", prefix=prefix)
        kills = oom_kills(group)
    flood.unlink()
    check(run, reference=unharmed)
    assert kills == 0 and not run.report["store"]["spilled"] and run.report["store"]["hits"]["recompute"] == 0


@pytest.mark.faults
@pytest.mark.fault(
    row=29,
    injection="a decoder takes 1.5 GB in a control group of 1 GB, each time: the OOM killer",
    outcome="the engine dies, not the guard; the clip is quarantined after two deaths, the others go on",
)
def test_the_oom_killer_costs_the_clip(tmp_path: Path, unharmed: GuardRun) -> None:
    with control_group(*V1, LIMIT) as group:
        run = run_whole(make_place(tmp_path), faulty_build() / "bundle", prefix=inside(group),
                        plan=[{"at": "decode", "id": "c05.wav", "do": "hold_memory", "bytes": 1_500_000_000}])
        kills = oom_kills(group)
    check(run, "ClipQuarantined", reference=unharmed, affected={"c05.wav"})
    assert prior_rows(run) == {"c05.wav"} and kills >= 2
    assert all(death["oom"] for death in run.report["guard"]["deaths"])


@pytest.mark.faults
@pytest.mark.fault(row=30, injection="memory.oom.group = 1: one OOM kills the whole container",
                   outcome="nothing can be saved but the last submission on disk, which is whole")
def test_an_oom_that_kills_the_whole_group(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    with control_group(*V1, LIMIT) as group:
        if not (group / "memory.oom.group").exists():
            pytest.skip("memory.oom.group needs a cgroup v2 memory controller")
        (group / "memory.oom.group").write_text("1")
        run = run_whole(place, faulty_build() / "bundle", prefix=inside(group),
                        plan=[{"at": "decode", "id": "c05.wav", "do": "hold_memory", "bytes": 1_500_000_000}])
    assert run.torn == () and run.code != 0 and len(run.submission.splitlines()) == 13


@pytest.mark.fault(
    row=2,
    injection="a limit of 150 MB: less than torch itself needs (configured cap)",
    outcome="the prior submission, exit 0, MemoryTooSmall with the bytes that are needed; no restart",
)
def test_a_limit_too_small_for_torch(tmp_path: Path) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", "--ram", "150MB")
    check_too_small(run)


@pytest.mark.faults
@pytest.mark.fault(
    row=2,
    injection="a limit of 150 MB as a real memory control group",
    outcome="as with the cap; no OOM kill",
)
def test_a_real_limit_too_small_for_torch(tmp_path: Path) -> None:
    with control_group(*V1, 150_000_000) as group:
        run = run_whole(make_place(tmp_path), faulty_build() / "bundle", prefix=inside(group))
        assert oom_kills(group) == 0
    check_too_small(run)


@pytest.mark.faults
@pytest.mark.fault(
    row=2,
    injection="RLIMIT_AS 800 MB, RLIMIT_DATA 200 MB: libraries cannot be mapped",
    outcome="the prior submission, exit 0, MemoryTooSmall names the limit and what is needed; no restart",
)
@pytest.mark.parametrize(("limit", "hint"), [("as=800000000", "ulimit -v"), ("data=200000000", "ulimit -d")])
def test_an_address_space_too_small_for_torch(tmp_path: Path, limit: str, hint: str) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", prefix=("prlimit", f"--{limit}"))
    check_too_small(run, hint)


def check_too_small(run: GuardRun, hint: str = "--ram at least") -> None:
    check(run, "MemoryTooSmall")
    message = next(fault["message"] for fault in run.report["faults"] if fault["code"] == "MemoryTooSmall")
    assert len(prior_rows(run)) == 12 and hint in message and run.report["guard"]["attempts"] == 1
    assert find_broken(run) == []


@pytest.mark.faults
@pytest.mark.fault(row=79, injection="1, 3 and 8 loader threads", outcome="the same bytes")
@pytest.mark.parametrize("loaders", [1, 3, 8])
def test_bytes_do_not_depend_on_the_loaders(tmp_path: Path, unharmed: GuardRun, loaders: int) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", "--loaders", str(loaders))
    check(run, reference=unharmed)
