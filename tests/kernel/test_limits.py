"""Limits, clock, marks, and the memory meter against made-up /proc and /sys trees."""
from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import infer_kernel
from kernel.errors import LimitError
from kernel.files import free_disk
from kernel.limits import PROFILES, Clock, Limits, Meter, limits, marks
from kernel.units import parse_bytes
from tests.helpers import REPOSITORY

MB = 2**20
GIB = 2**30


def host(root: Path, total: int = 30 * GIB, available: int = 20 * GIB) -> Path:
    write(
        root,
        "proc/meminfo",
        f"MemTotal: {total // 1024} kB\nMemFree: 5 kB\nMemAvailable: {available // 1024} kB\n",
    )
    write(root, "proc/self/statm", "100000 25600 2560 1 0 30000 0\n")  # 100 MB resident
    return root


def write(root: Path, name: str, text: str | int) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(text))


def v2(root: Path, folder: str, limit: str | int, current: int, high: str | int = "max", **stat: int) -> None:
    at = f"sys/fs/cgroup/{folder}".rstrip("/")
    write(root, f"{at}/memory.max", f"{limit}\n")
    write(root, f"{at}/memory.high", f"{high}\n")
    write(root, f"{at}/memory.current", f"{current}\n")
    values = {"anon": 1, "inactive_file": 0, "active_file": 0, "file_dirty": 0, "file_writeback": 0} | stat
    write(root, f"{at}/memory.stat", "".join(f"{key} {value}\n" for key, value in values.items()))


def v1(root: Path, folder: str, limit: int, usage: int, **stat: int) -> None:
    at = f"sys/fs/cgroup/memory/{folder}".rstrip("/")
    write(root, f"{at}/memory.limit_in_bytes", f"{limit}\n")
    write(root, f"{at}/memory.usage_in_bytes", f"{usage}\n")
    values = {"total_inactive_file": 0, "total_active_file": 0, "total_dirty": 0, "total_writeback": 0} | stat
    write(root, f"{at}/memory.stat", "inactive_file 777\n" + "".join(f"{k} {v}\n" for k, v in values.items()))


def no_host() -> tuple[int, int]:
    raise OSError("no psutil here")


# -- limits, bytes, disk
# ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("14GB", 14 * 10**9),
        ("14 gb", 14 * 10**9),
        ("1.5g", 1_500_000_000),
        ("512MiB", 512 * MB),
        ("16GiB", 16 * GIB),
        ("4096", 4096),
        ("100kB", 100_000),
        ("2T", 2 * 10**12),
        ("0", 0),
    ],
)
def test_parse_bytes_reads_decimal_and_binary_units(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e9", "14 bananas", "1,5GB", "nan", "\u0661GB", "1GB2"])
def test_parse_bytes_refuses_what_is_no_amount(text: str) -> None:
    with pytest.raises(LimitError, match="14GB"):
        parse_bytes(text)


def test_profiles_hold_the_competitions_figures_and_are_plain_json() -> None:
    fat = limits("fat2019")
    assert (fat.seconds, fat.ram_bytes, fat.disk_bytes, fat.cores, fat.gpu) == (
        3600,
        14 * 10**9,
        5 * 10**9,
        2,
        True,
    )
    assert limits("code-gpu").seconds == 9 * 3600 and limits("code-cpu").seconds == 12 * 3600
    birds = limits("birdclef-cpu90")
    assert (birds.seconds, birds.cores, birds.gpu) == (5400, 4, False)
    assert json.loads(json.dumps(PROFILES)) == PROFILES
    for name in PROFILES:
        assert Limits(**dataclasses.asdict(limits(name))) == limits(name)


def test_single_values_replace_those_of_a_profile_and_zero_is_a_value() -> None:
    found = limits("fat2019", seconds=0, ram_bytes=10**9, disk_bytes=0)
    assert (found.seconds, found.ram_bytes, found.disk_bytes, found.cores) == (0, 10**9, 0, 2)
    assert limits("fat2019", seconds=-5).seconds == -5


def test_bad_limits_are_named() -> None:
    with pytest.raises(LimitError, match="did you mean 'fat2019'"):
        limits("fat2018")
    with pytest.raises(LimitError, match="seconds"):
        limits("fat2019", seconds=float("nan"))
    with pytest.raises(LimitError, match="RAM"):
        limits("fat2019", ram_bytes=0)


def test_free_disk_of_a_folder_to_be_made_is_that_of_its_parent(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "not" / "yet") > 0
    (tmp_path / "file").write_text("x")
    with pytest.raises(LimitError, match="give another folder"):
        free_disk(tmp_path / "file" / "below")


# -- clock and marks
# --------------------------------------------------------------------------------------------------

class Hand:
    """A clock set by hand."""

    def __init__(self, at: float):
        self.at = at

    def __call__(self) -> float:
        return self.at


def test_clock_counts_from_its_start_whatever_the_origin_and_adds_the_offset() -> None:
    hand = Hand(9000.0)
    clock = Clock(started=8990.0, offset_s=180.0, now=hand)
    assert clock.elapsed() == 190.0
    hand.at += 5
    assert clock.elapsed() == 195.0 and clock.remaining(200.0) == 5.0


def test_clock_counts_the_time_the_machine_was_suspended() -> None:
    steady, boot = Hand(100.0), Hand(5000.0)
    clock = Clock(now=steady, boot=boot)
    steady.at, boot.at = 110.0, 5040.0  # 30 s asleep
    assert clock.elapsed() == 40.0


def test_exactly_nothing_left_is_expired() -> None:
    hand = Hand(0.0)
    clock = Clock(now=hand)
    assert not clock.expired(10.0)
    hand.at = 10.0
    assert clock.remaining(10.0) == 0.0 and clock.expired(10.0)


def test_marks_of_the_hour() -> None:
    hour = marks(3600)
    assert (hour.stop_s, hour.term_s, hour.kill_s, hour.exit_s) == (3420, 3465, 3470, 3510)
    assert (
        hour.hung_s(1.0) == 30 and hour.hung_s(20) == 80 and hour.hung_s(1e9) == 900 and not hour.prior_only
    )


def test_marks_of_twenty_seconds_and_of_nine_hours() -> None:
    short = marks(20)
    assert (short.stop_s, short.term_s, short.exit_s) == (15, 16.25, 18) and short.kill_s == pytest.approx(
        16.85
    )
    assert short.hung_s(1.0) == 5
    assert marks(9 * 3600).stop_s == 9 * 3600 * 0.95


@pytest.mark.parametrize("budget", [2.99, 0.0, -1.0, float("nan"), float("inf")])
def test_budgets_too_small_or_absurd_leave_the_prior_only(budget: float) -> None:
    assert marks(budget).prior_only
    assert not marks(3.0).prior_only


@given(st.floats(3.0, 1e6))
def test_marks_keep_their_order_inside_the_budget(budget: float) -> None:
    at = marks(budget)
    assert 0 < at.stop_s < at.term_s < at.kill_s <= at.exit_s < budget
    assert json.loads(json.dumps(dataclasses.asdict(at))) == dataclasses.asdict(at)


@pytest.mark.parametrize("budget", [-1.0, 0.0, 2.999, 3.0, 20.0, 90.0, 720.0, 3600.0, 5400.0, 43_200.0])
def test_the_guard_has_the_same_marks(budget: float) -> None:
    assert infer_kernel.find_marks(budget) == dataclasses.asdict(marks(budget))


# -- meter: which wall, which figures
# ---------------------------------------------------------------------------------

def test_without_cgroups_the_host_is_the_wall(tmp_path: Path) -> None:
    reading = Meter(host(tmp_path)).read()
    assert (reading.limit_bytes, reading.used_bytes, reading.degraded) == (30 * GIB, 10 * GIB, ())
    assert "meminfo" in reading.source and reading.pressure == pytest.approx(1 / 3)


def test_cgroup_v2_leaves_page_cache_out_and_adds_dirty_pages_back(tmp_path: Path) -> None:
    write(host(tmp_path), "proc/self/cgroup", "0::/kube/pod\n")
    v2(tmp_path, "", "max", 0)
    v2(
        tmp_path,
        "kube/pod",
        300 * MB,
        299 * MB,
        inactive_file=200 * MB,
        active_file=60 * MB,
        file_dirty=20 * MB,
        file_writeback=5 * MB,
    )
    reading = Meter(tmp_path).read()
    assert reading.limit_bytes == 300 * MB and reading.used_bytes == (299 - 260 + 25) * MB
    assert "v2" in reading.source and "kube/pod" in reading.source


def test_cgroup_v2_used_never_exceeds_current(tmp_path: Path) -> None:
    write(host(tmp_path), "proc/self/cgroup", "0::/a\n")
    v2(tmp_path, "a", 300 * MB, 100 * MB, file_dirty=50 * MB)
    assert Meter(tmp_path).read().used_bytes == 100 * MB


def test_memory_high_is_a_limit_too(tmp_path: Path) -> None:
    write(host(tmp_path), "proc/self/cgroup", "0::/a\n")
    v2(tmp_path, "a", 300 * MB, 100 * MB, high=200 * MB)
    assert Meter(tmp_path).limit().limit_bytes == 200 * MB


def test_a_parent_may_be_the_wall(tmp_path: Path) -> None:
    write(host(tmp_path), "proc/self/cgroup", "0::/outer/inner\n")
    v2(tmp_path, "outer", 200 * MB, 190 * MB)
    v2(tmp_path, "outer/inner", 1000 * MB, 20 * MB)
    reading = Meter(tmp_path).read()
    assert (reading.limit_bytes, reading.used_bytes) == (200 * MB, 190 * MB)
    assert reading.pressure == pytest.approx(0.95)


def test_the_wall_reported_is_the_one_with_least_room_not_the_fullest(tmp_path: Path) -> None:
    write(host(tmp_path, available=12 * GIB), "proc/self/cgroup", "0::/a\n")  # host 60 % full, 12 GiB left
    v2(tmp_path, "a", 1 * GIB, 400 * MB)  # 40 % full, 0.6 GiB left
    meter = Meter(tmp_path)
    assert meter.read().limit_bytes == 1 * GIB
    assert meter.fraction() == pytest.approx(0.6)


def test_cgroup_v1_in_a_container_that_shows_only_its_own_branch(tmp_path: Path) -> None:
    write(host(tmp_path), "proc/self/cgroup", "5:devices:/docker/abc\n4:cpu,memory:/docker/abc\n")
    v1(
        tmp_path,
        "",
        2**33,
        6 * GIB,
        total_inactive_file=2 * GIB,
        total_active_file=1 * GIB,
        total_dirty=64 * MB,
    )
    reading = Meter(tmp_path).read()
    assert (reading.limit_bytes, reading.used_bytes) == (2**33, 3 * GIB + 64 * MB)
    assert "v1" in reading.source


def test_mountinfo_names_another_mount_point_and_branch(tmp_path: Path) -> None:
    write(host(tmp_path), "proc/self/cgroup", "4:memory:/docker/abc/child\n")
    write(
        tmp_path,
        "proc/self/mountinfo",
        "30 20 0:26 /docker/abc /cg/mem ro,nosuid shared:9 - cgroup cgroup rw,memory\n",
    )
    for folder, limit in (("", 900 * MB), ("child", 500 * MB)):
        v1(tmp_path, f"../../../../cg/mem/{folder}", limit, 50 * MB)
    assert Meter(tmp_path).limit().limit_bytes == 500 * MB


@pytest.mark.parametrize("limit", [2**63 - 4096, 2**60, 64 * GIB])
def test_no_limit_and_limits_above_the_machine_are_ignored(tmp_path: Path, limit: int) -> None:
    write(host(tmp_path), "proc/self/cgroup", "4:memory:/\n")
    v1(tmp_path, "", limit, 29 * GIB)
    reading = Meter(tmp_path).read()
    assert "meminfo" in reading.source and reading.degraded == ()


def test_a_configured_cap_counts_our_own_processes(tmp_path: Path) -> None:
    reading = Meter(host(tmp_path), cap_bytes=200 * MB).read()
    assert (reading.limit_bytes, reading.used_bytes) == (200 * MB, 100 * MB) and "cap" in reading.source


def test_a_child_counts_against_the_cap_without_what_it_maps(tmp_path: Path) -> None:
    host(tmp_path)
    write(tmp_path, "proc/self/task/7/children", "42 ")
    write(tmp_path, "proc/42/statm", "9000 5120 2560 1 0 1 0\n")  # 20 MB resident, 10 MB of it mapped files
    write(tmp_path, "proc/42/task/42/children", "")
    meter = Meter(tmp_path, cap_bytes=200 * MB)
    assert meter.read().used_bytes == 110 * MB and meter.peak_bytes == 110 * MB


def test_a_cgroup_tighter_than_the_cap_replaces_it(tmp_path: Path) -> None:
    write(host(tmp_path), "proc/self/cgroup", "0::/a\n")
    v2(tmp_path, "a", 150 * MB, 120 * MB)
    reading = Meter(tmp_path, cap_bytes=200 * MB).read()
    assert (reading.limit_bytes, reading.used_bytes) == (150 * MB, 120 * MB)


# -- meter: sources that fail in mid-run
# ------------------------------------------------------------------------------

@pytest.fixture
def caged(tmp_path: Path) -> tuple[Path, Path, Meter]:
    write(host(tmp_path), "proc/self/cgroup", "0::/a\n")
    v2(tmp_path, "a", 1000 * MB, 500 * MB)
    meter = Meter(tmp_path, host=no_host)
    assert meter.read().degraded == ()
    return tmp_path, tmp_path / "sys/fs/cgroup/a", meter


@pytest.mark.parametrize("text", [None, "", "garbage\n", "\xff\xfe"])
def test_lost_usage_falls_to_our_own_memory_under_a_lowered_limit(
    caged: tuple[Path, Path, Meter], text: str | None
) -> None:
    _, folder, meter = caged
    (folder / "memory.current").unlink() if text is None else (folder / "memory.current").write_text(text)
    reading = meter.read()
    assert reading.limit_bytes == 900 * MB and reading.used_bytes == 100 * MB
    assert len(reading.degraded) == 1 and "memory.current" in reading.degraded[0]


@pytest.mark.parametrize("text", [None, "a lot\n"])
def test_a_lost_limit_stays_in_force(caged: tuple[Path, Path, Meter], text: str | None) -> None:
    _, folder, meter = caged
    (folder / "memory.max").unlink() if text is None else (folder / "memory.max").write_text(text)
    (folder / "memory.high").unlink()
    reading = meter.read()
    assert reading.limit_bytes == 900 * MB and "memory.max" in reading.degraded[0]


def test_a_lost_statistic_counts_all_page_cache_as_used(caged: tuple[Path, Path, Meter]) -> None:
    _, folder, meter = caged
    (folder / "memory.stat").write_text("nothing of use\n")
    reading = meter.read()
    assert reading.used_bytes == 500 * MB and "memory.stat" in reading.degraded[0]


def test_a_limit_changed_in_mid_run_is_seen(caged: tuple[Path, Path, Meter]) -> None:
    _, folder, meter = caged
    (folder / "memory.max").write_text(f"{600 * MB}\n")
    assert meter.read().limit_bytes == 600 * MB


def test_lost_meminfo_falls_to_the_second_source(tmp_path: Path) -> None:
    meter = Meter(host(tmp_path), host=lambda: (20 * GIB, 5 * GIB))
    (tmp_path / "proc/meminfo").write_text("MemTotal: many kB\n")
    reading = meter.read()
    assert (reading.limit_bytes, reading.used_bytes, reading.source) == (18 * GIB, 5 * GIB, "psutil")
    assert "meminfo" in reading.degraded[0]


def test_when_all_fails_the_last_good_reading_stays_named(tmp_path: Path) -> None:
    meter = Meter(host(tmp_path), host=no_host)
    good = meter.read()
    (tmp_path / "proc/meminfo").unlink()
    reading = meter.read()
    assert reading.used_bytes == good.used_bytes
    assert {text.split(":")[0] for text in reading.degraded} == {"/proc/meminfo", "psutil"}
    host(tmp_path)
    assert meter.read() == good


# -- this machine
# -----------------------------------------------------------------------------------------------------

def test_this_machine_answers_and_the_command_prints_it() -> None:
    reading = Meter().read()
    assert 0 < reading.used_bytes < reading.limit_bytes
    shown = subprocess.run(
        [sys.executable, "-m", "kernel.limits"], capture_output=True, text=True, check=True, cwd=REPOSITORY
    ).stdout
    assert "first wall" in shown and "/proc/meminfo" in shown


# cgroup v1; a v2 tree cannot be made from inside a container that has processes
GROUPS = Path("/sys/fs/cgroup/memory")
FLOOD = """
import os, sys
from kernel.limits import Meter
meter = Meter()
seen = [meter.read()]
with open(sys.argv[1], "wb") as file:
    file.write(bytes(120_000_000))
    file.flush()
    os.fsync(file.fileno())
seen.append(meter.read())
ballast = bytearray(b"x") * 60_000_000
seen.append(meter.read())
print(*(value for reading in seen for value in (reading.limit_bytes, reading.used_bytes)))
"""


def lies_in_memory(folder: Path) -> bool:
    """True for a folder on tmpfs, whose files are no page cache."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    around = [(len(fields[1]), fields[2]) for fields in mounts if folder.is_relative_to(fields[1])]
    return max(around)[1] in ("tmpfs", "ramfs")


@pytest.mark.skipif(
    not os.access(GROUPS / "cgroup.procs", os.W_OK), reason="no memory cgroup may be made here"
)
def test_in_a_real_cgroup_page_cache_is_no_pressure_and_private_memory_is(tmp_path: Path) -> None:
    if lies_in_memory(tmp_path):
        pytest.skip("temporary files lie in memory here")
    group = GROUPS / f"hourglass-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("200000000")
    except OSError as error:
        pytest.skip(f"no memory cgroup may be made here ({error.strerror})")
    try:
        command = [
            "sh",
            "-c",
            'echo $$ > "$1" && exec "$2" -c "$3" "$4"',
            "sh",
            str(group / "cgroup.procs"),
            sys.executable,
            FLOOD,
            str(tmp_path / "flood"),
        ]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    finally:
        group.rmdir()
    limit, before, _, flooded, _, loaded = (int(value) for value in shown.split())
    assert limit == pytest.approx(200_000_000, rel=0.001)
    assert flooded - before < 30_000_000 and 50_000_000 < loaded - flooded < 90_000_000


def test_our_own_memory_follows_an_allocation() -> None:
    meter = Meter(cap_bytes=10**9)
    before = meter.own_bytes()
    ballast = bytearray(b"x") * (64 * MB)
    assert meter.own_bytes() - before > 60 * MB
    assert meter.peak_bytes >= before + 60 * MB and len(ballast) == 64 * MB


def test_neither_torch_nor_numpy_nor_librosa_is_imported() -> None:
    code = "import sys, kernel.limits; print([m for m in ('torch', 'numpy', 'librosa', 'psutil') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=REPOSITORY).stdout.strip() == "[]"
