"""Why a row is uncertain: what members say, in which order, within which bounds; and what it may cost."""
from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from builder import assembly
from kernel import spec
from kernel.engine import explain
from kernel.report import page_rows
from kernel.report.contents import load_report
from kernel.report.explanations import BINS, MEMBERS, Explanation
from kernel.scores.blend import Board
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from tests.helpers.bundles import built_once, order
from tests.helpers.guard_runs import run_guard
from tests.runs.test_run_paths import make_place

CLASSES = tuple("abcdefghijkl")


def run_of(members: int, weights: list[float] | None = None, fold_mean: str = "geometric") -> Any:
    """The parts of a run that are asked: two rows of 2 s, members of two folds each."""
    made = spec.check(spec.load(spec.Ensemble, {
        "name": "mine", "classes": CLASSES, "frontends": {"fe": {"preset": "argus"}},
        "row_independent": fold_mean != "rank",
        "members": [{"name": f"m{i}", "family": "simple_cnn", "frontend": "fe", "folds": [0, 1],
                     "weight": (weights or [1.0] * members)[i], "fold_mean": fold_mean}
                    for i in range(members)]}))
    rows = [Row(id=f"r{i}", clip=Clip(id=f"r{i}", rate=100, samples_claimed=200)) for i in range(2)]
    return SimpleNamespace(ensemble=made, board=Board(2, len(CLASSES)), rows=SimpleNamespace(all=rows))


def test_members_say_their_folds_mean_of_the_rows_best_classes() -> None:
    run = run_of(2, [1.0, 3.0])
    values = np.linspace(0.1, 0.9, 24).reshape(2, 12)
    for net_id, score in (("m0.0", 0.1), ("m0.1", 0.4), ("m1.0", 0.3)):
        run.board.add(net_id, np.array([1]), np.full((1, 12), score) + np.eye(12)[3] * 0.2)
    (told,) = explain.explain_rows(run, [1], values)
    assert told.row == "r1" and told.seconds == 2.0
    assert told.classes == tuple(reversed(CLASSES))[:10], "the ten best, the best first"
    assert [member.name for member in told.members] == ["m1", "m0"], "the weightiest first"
    assert told.members[1].scores[0] == pytest.approx(0.2), "geometric, as the ensemble says"
    assert told.members[1].best == "d"
    assert told.members[1].score == pytest.approx((0.3 * 0.6) ** 0.5, rel=1e-3)
    assert told.dissenters == told.members
    (nothing,) = explain.explain_rows(run, [0], values)
    assert nothing.members == (), "who has no say in a row is not told of"


@pytest.mark.parametrize("missing", ["renormalise", "0.9"])
@pytest.mark.parametrize("fold_mean", ["geometric", "rank"])
def test_who_does_not_know_a_class_says_nothing_of_it(missing: str, fold_mean: str) -> None:
    run = run_of(2, fold_mean=fold_mean)
    known = spec.ClassMap(outputs=2, takes=(0, 1), gives=(2, 5), weights=(1.0, 1.0))
    given = "renormalise" if missing == "renormalise" else 0.9
    theirs = replace(run.ensemble.members[1], classes_map=known, missing=given)
    run.ensemble = replace(run.ensemble, members=(run.ensemble.members[0], theirs))
    values = np.linspace(0.1, 0.9, 24).reshape(2, 12)
    run.board.add("m0.0", np.array([0]), values[:1])
    run.board.add("m1.0", np.array([0]), np.eye(12)[[5]] * 0.4 + np.eye(12)[[2]] * 0.3)
    (told,) = explain.explain_rows(run, [0], values)
    said = {member.name: member for member in told.members}["m1"]
    assert (said.best, said.score) == ("f", 0.4), "the best of those that it knows"
    heard = dict(zip(told.classes, said.scores, strict=True))
    assert heard.pop("f") == 0.4 and heard.pop("c") == 0.3 and set(heard.values()) == {None}
    assert told.dissenters == (), "it does not know the ensemble's best class"
    assert "m1: l unknown, k unknown" in page_rows._member(said, told)
    assert spec.load(Explanation, json.loads(spec.dumps_json(told))) == told


def test_ranks_of_a_few_rows_say_nothing() -> None:
    run = run_of(1, fold_mean="rank")
    for net_id, score in (("m0.0", 0.1), ("m0.1", 0.3)):
        run.board.add(net_id, np.array([0]), np.full((1, 12), score))
    (told,) = explain.explain_rows(run, [0], np.ones((2, 12)))
    assert told.members[0].score == pytest.approx(0.2), "the folds' plain mean"


def test_a_crowd_of_members_is_counted() -> None:
    run = run_of(MEMBERS + 3)
    for part in run.ensemble.members:
        run.board.add(f"{part.name}.0", np.array([0]), np.full((1, 12), 0.5))
    (told,) = explain.explain_rows(run, [0], np.ones((2, 12)))
    assert len(told.members) == MEMBERS and told.others == 3


def test_asking_again_is_bounded() -> None:
    assert explain.seconds_for(0) == 1.0 and explain.seconds_for(100) == 2.0
    assert explain.seconds_for(1e6) == explain.MOST_S
    net = spec.Net(member="m", fold=0, file="f", offset=0, length=1, sha256="")
    heavy = spec.Cost(gmac_a=1.0, gmac_b=0.1)
    assert explain._may_begin(net, heavy, 10, 0.3) and not explain._may_begin(net, heavy, 30, 0.3)
    assert not explain._may_begin(net, spec.Cost(), 1, 0.0), "no time is left"


def test_a_net_that_hangs_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was told before is kept, and the page goes on; told to stop, it does not wait."""
    run = run_of(1)
    clock = [0.0]

    def now() -> float:
        clock[0] += 0.5  # so that nothing here waits
        return clock[0]

    run.recorder = SimpleNamespace(now=now)
    ended = threading.Event()

    def hang(run: Any, told: Any, numbers: Any, found: list[list[Any]], left_s: Any) -> None:
        found[0].append("heard")
        ended.wait()

    monkeypatch.setattr(explain, "_ask_all", hang)
    monkeypatch.setattr(explain, "TICK_S", 0.02)
    told = explain.explain_rows(run, [0, 1], np.ones((2, 12)))
    for stop in (lambda: False, lambda: True):
        heard = explain.add_moments(run, told, [0, 1], stop)
        assert [row.moments for row in heard] == [("heard",), ()]
        assert "did not answer in time" in capsys.readouterr().out
    ended.set()


ASKED = """
import os, signal, sys, time
import torch


class Net(torch.nn.Module):
    channels = 1
    min_frames = 4

    def __init__(self, classes):
        super().__init__()
        self.head = torch.nn.Linear(1, classes)

    def forward(self, x):
        if not torch.jit.is_tracing() and not torch.jit.is_scripting():
            frame = sys._getframe()
            while frame is not None:
                if frame.f_code.co_name == "_ask_all":
                    DEED
                frame = frame.f_back
        return self.head(x.mean((1, 2, 3))[:, None])
"""


@pytest.mark.faults
@pytest.mark.parametrize(("deed", "attempt"), [
    ("time.sleep(1000)", 1), ("os.kill(os.getpid(), signal.SIGSEGV)", 2), ("raise KeyboardInterrupt", 1)])
def test_a_net_that_fails_when_asked_again_costs_no_score_and_no_page(
    tmp_path: Path, deed: str, attempt: int
) -> None:
    (tmp_path / "net.py").write_text(ASKED.replace("DEED", deed))
    (tmp_path / "mine.toml").write_text("""
name = "asked"
classes = ["bark", "meow", "hiss"]
[frontends.mel]
preset = "argus"
[[members]]
name = "bad"
family = "net.py:Net"
frontend = "mel"
""")
    place = make_place(tmp_path / "place")
    assembly.build(order(tmp_path / "build", ensemble=tmp_path / "mine.toml"), say=lambda _: None)
    run = run_guard(place, tmp_path / "build" / "bundle", "--device", "cpu", seconds=100)
    report = load_report((run.working / "report.json").read_bytes())
    assert run.code == 0 and report.attempt == attempt and report.prior_rows == report.partial_rows == 0
    assert report.page == "report.html" and (run.working / "report.html").is_file()
    assert not any(row.moments for row in report.explained)
    assert ("EngineDied" in run.faults, bool(report.remarks)) == ((attempt == 2,) * 2), "said, if it died"


def test_a_whole_run_explains_its_rows_and_scores_the_same(tmp_path: Path) -> None:
    run = run_guard(make_place(tmp_path), built_once() / "bundle", "--device", "cpu", seconds=100)
    report = load_report((run.working / "report.json").read_bytes())
    assert [row.row for row in report.explained] == [row.row for row in report.uncertain]
    for shown, told in zip(report.uncertain, report.explained, strict=True):
        assert told.classes[0] == shown.best[0] and {m.name for m in told.members} == {"plain", "tiled"}
        assert {m.net: m.kind for m in told.moments}.keys() <= {"plain.0", "tiled.0"}
        for heard in told.moments:
            assert all(len(line) == BINS for line in heard.scores)
    kinds = {m.net: m.kind for told in report.explained for m in told.moments}
    wanted = {"plain.0": "pieces", "tiled.0": "passes"}
    assert kinds and kinds.items() <= wanted.items(), "as far as time allows"
    page = (run.working / "report.html").read_text()
    assert ".0, by " in page and report.fault_counts == {}
    assert len(json.dumps(run.report["explained"])) < 20_000
