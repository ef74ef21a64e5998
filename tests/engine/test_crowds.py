"""Nets of several members on the same batches of a GPU: which may, which leave, and what stays apart."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from kernel import spec
from kernel.engine import batches, choice, gpu, step
from kernel.engine.dispatch import Dispatcher
from kernel.models import custom
from tests.helpers import TESTS, small_ensembles
from tests.helpers.stand_ins import CLASSES, CLIPS, computing_on_cpu, open_engine, scores, stand_ins

SMALL = {"base": 4, "channels": 1}


def member(name: str, family: str = "simple_cnn", **more: Any) -> spec.Member:
    return spec.Member(name=name, family=family, params=more.pop("params", SMALL), frontend="mel", **more)


def build(folder: Path, *members: spec.Member, **more: Any) -> Path:
    ensemble = spec.Ensemble(
        name="crowds", classes=CLASSES, members=members, frontends={"mel": {"preset": "argus", "mels": 32}},
        **more,
    )
    return small_ensembles.build(spec.check(ensemble), folder)


@contextmanager
def seen_crowds() -> Iterator[list[list[str]]]:
    """The nets of each crowd that runs on a GPU, in its order."""
    crowds: list[list[str]] = []
    predict = step.StepRunner._predict_on_gpu

    def watch(self: Any, runs: Any, *rest: Any) -> None:
        crowds.append([run.net_id for run in runs])
        predict(self, runs, *rest)

    with mock.patch.object(step.StepRunner, "_predict_on_gpu", watch):
        yield crowds


def on(place: Path, bundle: Path, *devices: str, own: Path = TESTS / "ensembles") -> dict[str, np.ndarray]:
    """Every net's scores by these devices; own: the folder of users' files, since no wheel is unpacked."""
    with (
        mock.patch.object(custom, "FOLDER", own),
        open_engine(place, bundle, stand_ins(*devices)) as opened,
        computing_on_cpu(lambda device: None),
    ):
        opened.execute()
        assert not any(net.failed for net in opened.run.nets.values())
        return scores(opened)


def check_alike(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for net_id, values in found.items():
        assert np.isfinite(values).all()
        np.testing.assert_allclose(values, wanted[net_id], atol=1e-5)


def test_members_with_equal_inputs_share_batches(tmp_path: Path) -> None:
    """After the first net everything runs at once, members with other finishes apart."""
    bundle = build(
        tmp_path / "b",
        member("a", folds=(0, 1)),
        member("b", folds=(0, 1)),
        member("other", finish=("standardise",)),
    )
    with seen_crowds() as crowds:
        found = on(tmp_path / "gpu", bundle, "cuda:0")
    assert [len(crowd) for crowd in crowds if "other.0" in crowd] == [1]
    assert sorted(len(crowd) for crowd in crowds) == [1, 1, 3]
    assert {net_id[0] for crowd in crowds if len(crowd) == 3 for net_id in crowd} == {"a", "b"}
    check_alike(found, on(tmp_path / "cpu", bundle, "cpu"))


def test_a_net_that_takes_its_inputs_otherwise_leaves_and_runs_later(tmp_path: Path) -> None:
    """Both members hear equal arrays, but one net wants longer ones: found out when it is opened."""
    pyramid = {"base": 4, "hidden": 8}
    bundle = build(
        tmp_path / "b", member("a", folds=(0, 1)), member("b", "dense_pyramid", params=pyramid, folds=(0, 1))
    )
    # What is opened ahead tells it before
    with seen_crowds() as crowds, mock.patch.object(Dispatcher, "guess_next", lambda self: None):
        found = on(tmp_path / "gpu", bundle, "cuda:0")
    mixed = [crowd for crowd in crowds if len({net_id[0] for net_id in crowd}) > 1]
    assert len(mixed) == 1 and crowds[-1] != mixed[0]
    assert {net_id[0] for net_id in crowds[-1]} != {net_id[0] for net_id in mixed[0]}
    check_alike(found, on(tmp_path / "cpu", bundle, "cpu"))


def test_the_crowd_shrinks_where_it_would_not_end_in_time(tmp_path: Path) -> None:
    """No time is left for three nets after two blocks: the last ones leave, keep their rows, run later."""
    bundle = build(tmp_path / "b", member("a", folds=(0, 1, 2, 3)))
    sizes: list[int] = []
    answer = batches.BatchedNets._answer

    def watch(self: Any, launched: Any) -> Any:
        answered = answer(self, launched)
        sizes.append(len(answered.probs))
        return answered

    with (
        seen_crowds() as crowds,
        mock.patch.object(batches.BatchedNets, "_answer", watch),
        mock.patch.object(Dispatcher, "left_of", lambda self, step: lambda: 0.0),
    ):
        found = on(tmp_path / "gpu", bundle, "cuda:0")
    assert sizes[:CLIPS] == [1] * CLIPS and sizes[CLIPS] == 3 and 1 in sizes[CLIPS:]
    later = sizes[CLIPS:2 * CLIPS]
    assert later == sorted(later, reverse=True)
    assert [len(crowd) for crowd in crowds] == [1, 3, 2, 1]
    check_alike(found, on(tmp_path / "cpu", bundle, "cpu"))


def test_seconds_are_split_by_the_work_of_each_net(tmp_path: Path) -> None:
    bundle = build(tmp_path / "b", member("thin"), member("wide", params={"base": 16, "channels": 1}))
    with (
        open_engine(tmp_path / "gpu", bundle, stand_ins("cuda:0")) as opened,
        computing_on_cpu(lambda device: None),
        mock.patch.object(choice, "_cover", lambda ready, todo, speeds, left_s: choice._step(
            ready, todo, speeds)),
    ):
        opened.execute()
        thin, wide = (opened.run.nets[net_id] for net_id in ("thin.0", "wide.0"))
        costs = [opened.run.manifest.costs[run.part.name] for run in (thin, wide)]
    work = [cost.gmac_a * run.timing.rows + cost.gmac_b * run.timing.cells
            for cost, run in zip(costs, (thin, wide), strict=True)]
    assert thin.timing.rows == wide.timing.rows > 0
    assert wide.timing.seconds / thin.timing.seconds == pytest.approx(work[1] / work[0])


def test_a_user_s_file_that_changes_the_default_dtype_meets_no_other_net(tmp_path: Path) -> None:
    """Its net is not opened beside others, nor others beside it; torch's default is float32 again after."""
    file = tmp_path / "rude.py"
    file.write_text(
        "import torch\nfrom torch import nn\n\n\nclass Rude(nn.Module):\n"
        "    def __init__(self, classes: int) -> None:\n        super().__init__()\n"
        "        self.head = nn.Linear(1, classes)\n        torch.set_default_dtype(torch.float64)\n\n"
        "    def forward(self, x: torch.Tensor) -> torch.Tensor:\n"
        "        torch.set_default_dtype(torch.float64)\n"
        "        return self.head(x.mean(dim=(2, 3)))\n"
    )
    bundle = build(tmp_path / "b", member("a", folds=(0, 1)), member("rude", f"{file}:Rude", params={}))
    torch.set_default_dtype(torch.float32)
    opened: list[tuple[str, torch.dtype, torch.dtype]] = []
    load_net = step.load_net

    def watch(recipe: Any, *given: Any) -> Any:
        before = torch.get_default_dtype()
        net = load_net(recipe, *given)
        opened.append((recipe.member.name, before, torch.get_default_dtype()))
        return net

    try:
        with mock.patch.object(step, "load_net", watch):
            found = on(tmp_path / "gpu", bundle, "cuda:0", own=tmp_path)
        assert sorted(name for name, _, _ in opened) == ["a", "a", "rude"]
        assert all(before is torch.float32 for _, before, _ in opened)
        assert all(after is torch.float32 for name, _, after in opened if name == "a")
    finally:
        torch.set_default_dtype(torch.float32)
    check_alike(found, on(tmp_path / "cpu", bundle, "cpu", own=tmp_path))
    torch.set_default_dtype(torch.float32)


def test_where_only_whole_members_count_the_best_ones_share_batches(tmp_path: Path) -> None:
    bundle = build(tmp_path / "b", member("a", folds=(0, 1)), member("b", folds=(0, 1)), mean="rank",
                   row_independent=False)
    with seen_crowds() as crowds:
        found = on(tmp_path / "gpu", bundle, "cuda:0")
    assert [len(crowd) for crowd in crowds] == [1, 3]
    check_alike(found, on(tmp_path / "cpu", bundle, "cpu"))


def test_the_pace_is_that_of_the_blocks_after_the_first() -> None:
    pace = gpu._Pace(left=100.0)
    pace.add(10.0, 50.0)
    assert pace.needed_s() == 0.0
    pace.add(10.0, 2.0)
    assert pace.needed_s() == pytest.approx(80 * 0.2)
