"""What a net still lacks, counted without looking at every row again."""
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel import spec
from kernel.engine.heartbeat import Heartbeat
from kernel.engine.journal import Journal
from kernel.engine.net_run import NetRun
from kernel.engine.run_rows import open_rows
from kernel.errors import ClipUnreadable
from kernel.limits import Clock
from kernel.report.recorder import Recorder
from kernel.scores.blend import Board
from kernel.sound.decode import Clip
from kernel.sound.rows import Row

ROWS = 12
CLASSES = 2
NETS = ("m.0", "m.1", "m.2")
MEMBER = spec.Member(name="m", family="simple_cnn", frontend="f", folds=(0, 1, 2))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Journal, Heartbeat]:
    place: Path = tmp_path_factory.mktemp("run")
    heartbeat = Heartbeat(place / "heartbeat.json")
    heartbeat.close()
    return Journal(place, 1), heartbeat


def open_nets(parts: tuple[Journal, Heartbeat]) -> dict[str, NetRun]:
    """Three nets over 12 rows, of which the sample repeats the last one and --first leaves two out."""
    journal, heartbeat = parts
    ids = [*(f"r{i}" for i in range(ROWS - 1)), "r8"]
    rows = [Row(id=id, clip=Clip(id=id, path=Path(id), rate=100, samples_claimed=100 * (1 + i)))
            for i, id in enumerate(ids)]
    opened = open_rows(rows, 9, 900.0, False, Recorder(clock=Clock(started=0.0, started_boot=0.0)))
    board = Board(ROWS, CLASSES)
    cells = np.arange(1.0, ROWS + 1)
    return {net_id: NetRun(net_id=net_id, part=MEMBER, rows=opened, board=board, journal=journal,
                           heartbeat=heartbeat, cells=cells) for net_id in NETS}


ACTIONS = st.lists(st.tuples(st.sampled_from(["put", "nan", "skip", "lose", "load", "fail"]),
                             st.sampled_from(NETS), st.integers(0, 8)), max_size=25)


@settings(max_examples=100, deadline=None)
@given(ACTIONS)
def test_counts_follow_whatever_happens_to_nets_and_clips(
    parts: tuple[Journal, Heartbeat], actions: list[tuple[str, str, int]]
) -> None:
    nets = open_nets(parts)
    rows, board = nets["m.0"].rows, nets["m.0"].board
    scored: dict[str, set[int]] = {net_id: set() for net_id in NETS}
    passed: dict[str, set[int]] = {net_id: set() for net_id in NETS}
    lost: set[int] = set()
    for action, net_id, i in actions:
        net = nets[net_id]
        if action == "put":
            net.put(i, np.full(CLASSES, 0.5))
            scored[net_id].add(i)
        elif action == "nan":
            net.put(i, np.full(CLASSES, np.nan))
            passed[net_id].add(i)
        elif action == "skip":
            net.skip(i, ValueError("no"))
            passed[net_id].add(i)
        elif action == "lose":
            rows.lose(rows.all[i], ClipUnreadable("broken"))
            lost.add(i)
        elif action == "load":
            saved = np.full((ROWS, CLASSES), np.nan)
            saved[i] = 0.5
            board.load(net_id, saved)
            scored[net_id] = {i}
        else:
            net.fail(RuntimeError("gone"))
        for name, run in nets.items():
            left = sorted(set(range(9)) - scored[name] - passed[name] - lost)
            assert run.lacking().rows == len(left) and sorted(run.missing()) == left
            assert run.lacking().cells == sum(i + 1 for i in left)
    anyone = set().union(*scored.values())
    assert set(np.flatnonzero(board.scored())) - {ROWS - 1} == anyone
    assert set(np.flatnonzero(rows.tried)) - {ROWS - 1} == set().union(*passed.values())


def test_an_answer_of_another_width_costs_its_row(parts: tuple[Journal, Heartbeat]) -> None:
    net = open_nets(parts)["m.0"]
    net.put(2, np.full(2 * CLASSES, 0.5))
    net.put(3, np.full(CLASSES, 0.5))
    assert list(net.skipped) == ["r2"] and "4 values" in net.skipped["r2"] and net.scored == 1


def test_nets_that_have_not_begun_share_one_look(parts: tuple[Journal, Heartbeat]) -> None:
    """A run of 1,000 nets must not look at 1,000 tables whenever the main thread asks what is left."""
    nets = open_nets(parts)
    assert nets["m.0"].lacking().mask is nets["m.1"].lacking().mask
    nets["m.0"].put(3, np.full(CLASSES, 0.5))
    assert nets["m.0"].lacking().mask is not nets["m.1"].lacking().mask is nets["m.2"].lacking().mask
    assert nets["m.0"].lacking() is nets["m.0"].lacking()
