"""The memory meter against made-up /proc and /sys trees, in a real control group, and on this machine."""
from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel.cache.ram import return_memory
from kernel.memory import RAM_MARK, Meter, peak_resident
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


# -- which bound, which figures ------------------------------------------------------------------------------

def test_without_cgroups_the_host_is_the_bound(tmp_path: Path) -> None:
    reading = Meter(host(tmp_path)).read()
    assert (reading.limit_bytes, reading.used_bytes, reading.degraded) == (30 * GIB, 10 * GIB, ())
    assert "meminfo" in reading.source


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


def test_a_parent_may_be_the_bound(tmp_path: Path) -> None:
    write(host(tmp_path), "proc/self/cgroup", "0::/outer/inner\n")
    v2(tmp_path, "outer", 200 * MB, 190 * MB)
    v2(tmp_path, "outer/inner", 1000 * MB, 20 * MB)
    reading = Meter(tmp_path).read()
    assert (reading.limit_bytes, reading.used_bytes) == (200 * MB, 190 * MB)


def test_the_bound_reported_is_the_one_with_least_room_not_the_fullest(tmp_path: Path) -> None:
    write(host(tmp_path, available=12 * GIB), "proc/self/cgroup", "0::/a\n")  # host 60 % full, 12 GiB left
    v2(tmp_path, "a", 1 * GIB, 400 * MB)  # 40 % full, 0.6 GiB left
    assert Meter(tmp_path).read().limit_bytes == 1 * GIB


def test_room_is_counted_up_to_the_mark(tmp_path: Path) -> None:
    assert RAM_MARK == 0.95
    write(host(tmp_path, total=20 * GIB, available=int(0.9 * GIB)), "proc/self/cgroup", "0::/a\n")
    v2(tmp_path, "a", 2 * GIB, int(1.2 * GIB))  # 0.8 GiB left, but the host is above its mark
    assert Meter(tmp_path).read().limit_bytes == 20 * GIB


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


def test_the_guard_counts_against_a_configured_cap(tmp_path: Path) -> None:
    host(tmp_path)
    alone = Meter(tmp_path, cap_bytes=200 * MB).read().used_bytes
    assert Meter(tmp_path, cap_bytes=200 * MB, beside_bytes=30 * MB).read().used_bytes == alone + 30 * MB


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


# -- sources that fail in mid-run ----------------------------------------------------------------------------

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


# -- this machine --------------------------------------------------------------------------------------------

def test_this_machine_answers_and_the_command_prints_it() -> None:
    reading = Meter().read()
    assert 0 < reading.used_bytes < reading.limit_bytes
    shown = subprocess.run(
        [sys.executable, "-m", "kernel.limits"], capture_output=True, text=True, check=True, cwd=REPOSITORY
    ).stdout
    assert "first bound" in shown and "/proc/meminfo" in shown


# Cgroup v1; a v2 tree cannot be made from inside a container that has processes
GROUPS = Path("/sys/fs/cgroup/memory")
FLOOD = """
import os, sys
from kernel.memory import Meter
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
    gc.collect()
    return_memory()  # else what other tests have freed may be given back meanwhile
    before = meter.own_bytes()
    ballast = bytearray(b"x") * (64 * MB)
    assert meter.own_bytes() - before > 60 * MB
    assert meter.peak_bytes >= before + 60 * MB and len(ballast) == 64 * MB


def test_neither_torch_nor_numpy_nor_librosa_is_imported() -> None:
    code = (
        "import sys, kernel.limits; "
        "print([m for m in ('torch', 'numpy', 'librosa', 'psutil') if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    ).stdout
    assert shown.strip() == "[]"


# -- figures one by one --------------------------------------------------------------------------------------

def test_the_largest_memory_of_a_process_is_in_kilobytes_and_0_where_nobody_says(tmp_path: Path) -> None:
    write(tmp_path, "42/status", "Name: x\nVmPeak: 9 kB\nVmHWM:\t  300 kB\nVmRSS: 7 kB\n")
    assert peak_resident(42, str(tmp_path)) == 300 * 1024
    for text in ("Name: x\n", "VmHWM:\n", "VmHWM: many kB\n"):
        write(tmp_path, "42/status", text)
        assert peak_resident(42, str(tmp_path)) == 0
    assert peak_resident(43, str(tmp_path)) == 0 < peak_resident(os.getpid())


def test_a_limit_of_one_byte_is_one_and_of_none_is_no_limit(tmp_path: Path) -> None:
    write(host(tmp_path), "proc/self/cgroup", "0::/a\n")
    for limit, seen in ((0, 30 * GIB), (1, 1), (-1, 30 * GIB)):
        v2(tmp_path, "a", limit, 0)
        assert Meter(tmp_path).limit().limit_bytes == seen


def test_a_cgroup_just_as_tight_as_the_cap_and_as_large_as_the_host_counts(tmp_path: Path) -> None:
    write(host(tmp_path), "proc/self/cgroup", "0::/a\n")
    v2(tmp_path, "a", 200 * MB, 120 * MB)
    bounds, _ = Meter(tmp_path, cap_bytes=200 * MB).bounds()
    assert [bound.limit for bound in bounds] == [200 * MB, 30 * GIB]
    v2(tmp_path, "a", 30 * GIB, 120 * MB)
    assert [bound.limit for bound in Meter(tmp_path).bounds()[0]] == [30 * GIB] * 2


def test_page_cache_beyond_what_is_used_leaves_nothing_and_not_less(tmp_path: Path) -> None:
    write(host(tmp_path), "proc/self/cgroup", "0::/a\n")
    v2(tmp_path, "a", 300 * MB, 10 * MB, inactive_file=40 * MB)
    assert [b.used for b in Meter(tmp_path).bounds()[0]] == [0, 10 * GIB]


def test_before_anything_has_answered_the_cap_stands_and_nobody_is_asked_twice(tmp_path: Path) -> None:
    meter = Meter(tmp_path, host=no_host)
    reading = meter.read()
    assert (reading.limit_bytes, reading.used_bytes, reading.source) == (2**60, 0, "nothing")
    assert meter.limit().source == "nothing" and meter.peak_bytes == 0 and meter.beside_bytes == 0


def test_children_are_listed_anew_after_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("kernel.memory.time.monotonic", lambda: now[0])
    write(host(tmp_path), "proc/self/task/7/children", "")
    meter = Meter(tmp_path)
    assert meter.own_bytes() == 100 * MB
    write(tmp_path, "proc/self/task/7/children", "42")
    write(tmp_path, "proc/42/statm", "9000 5120 2560 1 0 1 0\n")
    write(tmp_path, "proc/42/task/42/children", "43\n")
    write(tmp_path, "proc/43/statm", "9000 256 0 1 0 1 0\n")
    now[0] += 1.0
    assert meter.own_bytes() == 100 * MB
    now[0] += 0.01
    assert meter.own_bytes() == 111 * MB == meter.peak_bytes
    (tmp_path / "proc/42/statm").unlink()
    assert meter.own_bytes() == 101 * MB and meter.peak_bytes == 111 * MB


def test_a_mount_without_a_mount_point_is_passed_over(tmp_path: Path) -> None:
    write(host(tmp_path), "proc/self/cgroup", "4:memory:/\n")
    write(tmp_path, "proc/self/mountinfo", "30 20 0:26 /a - cgroup cgroup rw,memory\n1 2 - \n")
    v1(tmp_path, "", 900 * MB, 50 * MB)
    assert Meter(tmp_path).limit().limit_bytes == 900 * MB
