"""The same bytes whatever the cores, loaders and the order of files; the same scores by either schedule."""
from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernel import spec
from kernel.engine import gpu
from kernel.engine.batches import BatchedNets
from kernel.engine.seats import seat_of
from kernel.errors import ClipError
from kernel.inference.devices import Device
from kernel.inference.member import load_net, predict_alone
from kernel.inference.recipe import build_recipe
from kernel.inference.staging import Lane
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from tests.helpers import small_ensembles
from tests.helpers.ensemble_runs import make_input, run_clean, write_sample
from tests.helpers.recipe import make_wave
from tests.helpers.small_ensembles import published, shrink


def everything() -> spec.Ensemble:
    """One small ensemble: a member of every 80-class solution, every view, a stacker, a mean over rows."""
    picked = {
        "argus": [0],
        "qrfaction": [2],
        "ex4sperans": [0, 9],
        "viel": [0],
        "shirogane": [0],
        "filipmu": [1],
        "simongrest": [0],
    }
    members = []
    fronts = {}
    for name, chosen in picked.items():
        ensemble = shrink(published(name), folds=1)
        fronts |= {f"{name}_{key}": value for key, value in ensemble.frontends.items()}
        for i in chosen:
            member = ensemble.members[i]
            inputs = {}
            for key, given in member.inputs.items():
                inputs[key] = replace(given, frontend=f"{name}_{given.frontend}")
            members.append(replace(member, name=f"{name}.{member.name}", inputs=inputs, weight=1.0,
                                   frontend=member.frontend and f"{name}_{member.frontend}"))
    stacker = spec.Stacker(name="stacker", family="per_class_stacker", features="per_class",
                           inputs=tuple(m.name for m in members), params={"inputs": len(members)})
    return spec.check(replace(published("viel"), name="everything", members=tuple(members), frontends=fronts,
                              stackers=(stacker,)))


def test_same_bytes_for_one_core_and_two_one_and_four_loaders_and_shuffled_files(tmp_path: Path) -> None:
    ensemble = everything()
    bundle = small_ensembles.build(ensemble, tmp_path / "built")
    ids = make_input(tmp_path / "first", ensemble, [0.2, 1.0, 4.1, 6.3])
    one_core = ("taskset", "-c", str(min(os.sched_getaffinity(0))))
    first = run_clean(tmp_path / "first", bundle, "--loaders", "1", prefix=one_core)
    shuffled = random.Random(0).sample(ids, len(ids))
    (tmp_path / "second" / "in" / "test").mkdir(parents=True)
    for id in shuffled:  # another order in the folder as well as in the sample
        shutil.copy(tmp_path / "first" / "in" / "test" / id, tmp_path / "second" / "in" / "test" / id)
    write_sample(tmp_path / "second" / "in", ["fname", *ensemble.classes], shuffled)
    second = run_clean(tmp_path / "second", bundle, "--loaders", "4")
    lines = [run.submission.splitlines() for run in (first, second)]
    assert sorted(lines[0]) == sorted(lines[1]) and [line.split(",")[0] for line in lines[1][1:]] == shuffled
    assert len(set(lines[0])) == len(ids) + 1


class Waves:
    """A store without memory: the array of a seeded wave for each row id."""

    def get(self, fe: Any, row: Row) -> np.ndarray:
        return fe(make_wave(row.id, float(row.id), fe.rate))


def test_the_gpu_schedule_of_every_solution_gives_what_each_row_gets_alone() -> None:
    """Run on the CPU: tiles, crops and several inputs of many rows share batches."""
    ensemble = everything()
    device = Device(name="cpu", about="test")
    rows = [Row(id=seconds, clip=Clip(id=seconds)) for seconds in ("0.6", "3", "6.5")]
    for member in ensemble.members:
        state = small_ensembles.random_net(member, 0, 80).state_dict()
        net = load_net(build_recipe(ensemble, member), state, 80, device, spec.Cost())
        lane = Lane(device)

        def lose(row: Row, error: ClipError) -> None:
            pytest.fail(f"{row.id}: {error}")

        block = gpu.open_block(net, Waves(), rows, lose, lane)
        (done,) = BatchedNets([seat_of(net)], lane, print).predict(iter([block]))
        found = dict(zip([row.id for row in done.rows], done.probs[0], strict=True))
        for row in rows:
            alone = predict_alone(net, Waves(), row)
            np.testing.assert_allclose(found[row.id], alone, atol=1e-5, err_msg=member.name)
