"""The guard's order to the engine: run.json as a real guard writes it, and kernel.order, which reads it."""
from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernel.errors import SpecError
from kernel.limits import limits, marks
from kernel.order import Order, Sample, load_order
from tests.helpers.guard_runs import GuardRun, run_guard
from tests.helpers.stub_bundle import CLASSES, make_bundle, pin

# An engine that tells in its report what it was told, and where it found itself
TELLS = """
def run():
    told = (Path(RUN["state"]) / "run.json").read_text()
    publish()
    report(told=told, env=dict(os.environ), path=sys.path)
    if len(RUN["sample"]["ids"]) > RUN["attempt"]:
        beat(1, scored=RUN["attempt"])
        os._exit(9)
"""


def order_of(run: GuardRun) -> Order:
    """The order that the last engine of a run was given, as the engine itself loads it."""
    return load_order(run.report["told"].encode())


def test_the_engine_is_told_everything_that_was_asked_for(where: Path) -> None:
    bundle = make_bundle(where / "bundle", TELLS)
    asked = "--ram 1.5GB --disk 2GiB --first 1 --loaders 3 --device cpu --offset 1 --limits code-cpu "
    asked += "--backend torch"
    began = (time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))
    run = run_guard(where, bundle.folder, *asked.split(), "--clips", str(where))
    order = order_of(run)
    assert order.state.parent == where / "scratch"
    assert began[0] < order.started < began[0] + run.wall_s
    assert began[1] < order.started_boot < began[1] + run.wall_s
    assert order == Order(
        bundle=where / "bundle",
        manifest=order.state / "manifest.json",
        input=where / "in",
        clips=where,
        working=where / "out",
        state=order.state,
        sample=Sample(
            path=order.state / "sample_submission.csv", header=("fname", *CLASSES), ids=("a.wav", "b.wav")
        ),
        limits=replace(limits("code-cpu"), seconds=12.0, ram_bytes=15 * 10**8, disk_bytes=2 << 30),
        marks=marks(12.0),
        started=order.started,
        started_boot=order.started_boot,
        offset_s=1.0,
        device="cpu",
        loaders=3,
        first=1,
        attempt=2,  # the first engine ended with one row scored
        backend="torch",
    )


def test_the_pushed_kernel_leaves_to_the_engine_what_nobody_asked_for(where: Path) -> None:
    bundle = make_bundle(where / "in" / "datasets" / "me" / "stub-data", TELLS)
    order = order_of(run_guard(where, None, "--limits=fat2019", kernel=pin(bundle, where / "kernel.py")))
    assert (order.clips, order.loaders, order.first, order.device) == (None, None, None, "auto")
    assert order.bundle == bundle.folder and order.offset_s == 0.0
    assert order.limits == replace(limits("fat2019"), seconds=12.0)


def test_what_nobody_asked_for_is_no_new_key_to_the_engine_of_an_older_bundle(where: Path) -> None:
    run = run_guard(where, make_bundle(where / "bundle", TELLS).folder)
    assert json.loads(run.report["told"]).keys() == told().keys()


def test_the_engine_finds_neither_secrets_nor_foreign_modules(where: Path) -> None:
    secrets = {"KAGGLE_USER_SECRETS_TOKEN": "secret", "PYTHONPATH": str(where)}
    run = run_guard(where, make_bundle(where / "bundle", TELLS).folder, **secrets)
    env = run.report["env"]
    assert env["OMP_WAIT_POLICY"] == "PASSIVE" and env["OPENBLAS_NUM_THREADS"] == "1"
    assert int(env["OMP_NUM_THREADS"]) >= 1
    assert not set(secrets) & set(env)
    assert str(where) not in run.report["path"] and "" not in run.report["path"]


def told() -> dict[str, Any]:
    """An order as plain data."""
    return {
        "bundle": "/b", "manifest": "/s/manifest.json", "input": "/in", "clips": None, "working": "/out",
        "state": "/s", "sample": {"path": "/s/sample.csv", "header": ["fname", "a"], "ids": ["\udcff.wav"]},
        "limits": vars(limits("fat2019")), "marks": vars(marks(3600.0)), "started": 1.5, "started_boot": 2.5,
        "offset_s": 0, "device": "auto", "loaders": None, "first": None, "attempt": 1,
    }


def test_an_order_comes_back_with_paths_and_typed_parts() -> None:
    order = load_order(json.dumps(told()).encode())
    assert (order.input, order.clips, order.sample.path) == (Path("/in"), None, Path("/s/sample.csv"))
    assert order.sample.ids == ("\udcff.wav",)  # bytes that are no UTF-8
    assert order.limits == limits("fat2019") and order.marks == marks(3600.0) and order.offset_s == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strict": True}, "run.json: strict: unknown key"),
        ({"started_boot": ...}, "run.json: started_boot: missing"),
        ({"attempt": "1"}, "run.json: attempt: expected int"),
        ({"input": None}, "run.json: input: expected Path"),
        ({"limits": {"name": "fat2019"}}, "run.json: limits.seconds: missing"),
        ({"marks": {**vars(marks(60.0)), "hung_s": 1.0}}, "run.json: marks.hung_s: unknown key"),
        ({"sample": {"path": "/s", "header": [], "ids": [1]}}, r"run.json: sample.ids\[0\]: expected str"),
    ],
)
def test_an_order_with_a_wrong_key_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    data = {key: value for key, value in {**told(), **changes}.items() if value is not ...}
    with pytest.raises(SpecError, match=message):
        load_order(json.dumps(data).encode())


def test_half_an_order_is_refused() -> None:
    with pytest.raises(SpecError, match="run.json"):
        load_order(json.dumps(told()).encode()[:-9])
