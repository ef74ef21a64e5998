"""What every test shares: one intra-op thread, the tiny bundle, the fault markers, a count of skips."""
from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch loads: tests of several workers share few cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest  # noqa: E402
import torch  # noqa: E402

from kernel.sound import recording  # noqa: E402
from tests.helpers import injectors  # noqa: E402
from tests.helpers.bundles import built_once  # noqa: E402
from tests.helpers.fault_rows import ELSEWHERE  # noqa: E402
from tests.helpers.guard_runs import GuardRun  # noqa: E402
from tests.helpers.whole_runs import check, faulty_build, make_place, run_whole  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    config.addinivalue_line("markers", "faults: a slower test of the fault matrix; `make faults` runs these")
    config.addinivalue_line("markers", "whole: a published solution at full size; `make whole` runs these")
    config.addinivalue_line("markers", "cuda: needs a GPU; `make gpu` runs these, elsewhere they are skipped")
    config.addinivalue_line("markers", "fault(row, injection, outcome): a row of docs/faults.md")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that live with their module the marker of the row they cover; without a GPU skip its tests.
    """
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no GPU"))
    found = {
        (entry.file, entry.test): (row, entry) for row, entries in ELSEWHERE.items() for entry in entries
    }
    for item in items:
        row, entry = found.get((item.path.name, getattr(item, "originalname", item.name)), (None, None))
        if row is not None and entry is not None:
            item.add_marker(pytest.mark.fault(row=row, injection=entry.injection, outcome=entry.outcome))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Skipped tests, counted by reason, and what this machine lets the fault matrix do."""
    given = [report for reports in terminalreporter.stats.values() for report in reports]
    if any(isinstance(report, pytest.TestReport) and "fault" in report.keywords for report in given):
        terminalreporter.write_line(f"injectors: {injectors.describe()}")
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        told = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        reasons[str(told).removeprefix("Skipped: ")] += 1
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"skipped {count}: {reason}")


@pytest.fixture(scope="session")
def tiny_bundle() -> Path:
    """OUT of a build of tests/ensembles/tiny.toml: read only; `bundles.copy_of_build` gives a copy."""
    return built_once()


@pytest.fixture(scope="session")
def unharmed(tmp_path_factory: pytest.TempPathFactory) -> GuardRun:
    """A whole run of the faulty bundle that nothing strikes: what every other run of it is compared with."""
    run = run_whole(make_place(tmp_path_factory.mktemp("unharmed")), faulty_build() / "bundle")
    check(run)
    return run


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the recordings in the order in which they were opened: each opening is one decoding."""
    ids: list[str] = []
    plain = recording.open_clip

    def counting(clip: Any) -> Any:
        ids.append(clip.id)
        return plain(clip)

    monkeypatch.setattr(recording, "open_clip", counting)
    return ids
