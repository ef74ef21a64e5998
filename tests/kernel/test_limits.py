"""Named limits, the clock, and the marks of the deadline; sizes as text and free disk space."""
from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import infer_kernel
from kernel.errors import LimitError
from kernel.files import free_disk
from kernel.limits import PROFILES, Clock, Limits, limits, marks
from kernel.units import parse_bytes

MB = 2**20
GIB = 2**30


# -- limits, bytes, disk -------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "14 bananas", "1,5GB", "nan", "\u0661GB", "1GB2"])
def test_parse_bytes_refuses_what_is_no_amount(text: str) -> None:
    with pytest.raises(LimitError, match="14GB"):
        parse_bytes(text)


def test_profiles_hold_the_competitions_figures_and_are_plain_json() -> None:
    fat = limits("fat2019")
    assert (fat.seconds, fat.ram_bytes, fat.disk_bytes) == (3600, 14 * 10**9, 5 * 10**9)
    assert (fat.cores, fat.gpu) == (2, True)
    assert limits("code-gpu").seconds == limits("code-cpu").seconds == 9 * 3600
    assert limits("code-gpu").ram_bytes == limits("code-cpu").ram_bytes == 29 * 10**9
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


# -- clock and marks -----------------------------------------------------------------------------------------

@dataclass
class FakeTime:
    """The two clocks of the machine, set by hand; it has no wall clock that could be asked."""

    awake: float
    booted: float
    CLOCK_BOOTTIME: int = 7

    def monotonic(self) -> float:
        return self.awake

    def clock_gettime(self, clock: int) -> float:
        assert clock == self.CLOCK_BOOTTIME
        return self.booted


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime(awake=9000.0, booted=19_000.0)
    monkeypatch.setattr("kernel.limits.time", fake)
    return fake


def test_clock_counts_from_its_start_whatever_the_origin_and_adds_the_offset(machine: FakeTime) -> None:
    clock = Clock(started=8990.0, started_boot=18_990.0, offset_s=180.0)
    assert clock.elapsed() == 190.0
    machine.awake += 5
    machine.booted += 5
    assert clock.elapsed() == 195.0


def test_clock_counts_the_time_the_machine_was_suspended(machine: FakeTime) -> None:
    clock = Clock(started=9000.0, started_boot=19_000.0)
    machine.awake += 10
    machine.booted += 40  # 30 s asleep
    assert clock.elapsed() == 40.0


def test_guard_and_engine_have_one_clock() -> None:
    guard = infer_kernel.Run(infer_kernel.make_parser().parse_args([]))
    guard.offset_s = 5.0
    engine = Clock(infer_kernel.STARTED, infer_kernel.STARTED_BOOT, 5.0)
    assert engine.elapsed() == pytest.approx(guard.elapsed(), abs=0.1)


def test_marks_of_the_hour() -> None:
    hour = marks(3600)
    assert (hour.stop_s, hour.term_s, hour.kill_s, hour.exit_s) == (3420, 3465, 3470, 3510)
    assert (hour.hung_least_s, hour.hung_factor, hour.hung_most_s) == (30, 4, 900) and not hour.prior_only


def test_marks_of_twenty_seconds_and_of_nine_hours() -> None:
    short = marks(20)
    assert (short.stop_s, short.term_s, short.exit_s) == (15, 16.25, 18)
    assert short.kill_s == pytest.approx(16.85) and short.hung_most_s == 5
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
    assert vars(infer_kernel.Marks(budget)) == dataclasses.asdict(marks(budget))
