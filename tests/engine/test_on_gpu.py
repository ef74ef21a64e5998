"""What only a GPU can show, with its real memory and errors; the same on a stand-in where that can be.

Nothing here imports what a machine with a GPU need not have: `make gpu` runs this file there.
"""
from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kernel import models, spec
from kernel.engine import gpu
from kernel.engine.batches import BatchedNets
from kernel.engine.seats import seat_of
from kernel.errors import SpecError
from kernel.inference import backends, ways
from kernel.inference.devices import Device
from kernel.inference.member import LoadedNet, load_net, predict_alone
from kernel.inference.recipe import build_recipe
from kernel.inference.staging import Lane
from kernel.models import FAMILIES
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from tests.helpers import REPOSITORY
from tests.helpers.devices import EVERYWHERE, device_of

CPU = Device(name="cpu", about="")
FAMILY_NAMES = [name for name, family in FAMILIES.items()
                if not family.stacker and name not in ("statistics_cnn", "envnet_v2")]  # inputs of their own
POISON = """
import sys, torch
from pathlib import Path
from unittest import mock
from tests.engine import test_on_gpu as here
here.run_poisoned(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
"""


class Stored:
    """A store of seeded noise."""

    def __init__(self, frames: dict[str, int], channels: int, bins: int) -> None:
        self.arrays = {
            id: np.random.default_rng(i).standard_normal((channels, bins, t)).astype(np.float32)
            for i, (id, t) in enumerate(frames.items())
        }

    def get(self, fe: object, row: Row) -> np.ndarray:
        return self.arrays[row.id]


def build(name: str, device: Device, way: str | None = ways.EXACT) -> LoadedNet:
    """A tiny net on a device, in fp32."""
    torch.manual_seed(0)
    try:
        module = models.build(name, dict(FAMILIES[name].tiny), 3).eval()
    except SpecError as error:
        if "not installed" in str(error):
            pytest.skip("timm is not installed")
        raise
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
    member = spec.load(spec.Member, {
        "name": "m", "family": name, "params": dict(FAMILIES[name].tiny), "frontend": "f",
        "view": {"kind": "full"}, "finish": ["repeat"] if module.channels > 1 else []}, "test")
    ensemble = spec.Ensemble(
        name="e", classes=("a", "b", "c"), members=(member,),
        frontends={"f": {"preset": "argus", "mels": module.bins or 128}})
    recipe = build_recipe(ensemble, member)
    return load_net(recipe, module.state_dict(), 3, device, spec.Cost(), (), ways.Precision(way=way))


def run(net: LoadedNet, frames: dict[str, int], store: Any, device: Device) -> dict[str, np.ndarray]:
    """Row -> probabilities, all rows in one block on the device."""
    rows = [Row(id=id, clip=Clip(id=id)) for id in frames]
    lane = Lane(device)

    def stage(some: Any) -> Any:
        return gpu.open_block(net, store, some, lambda row, error: pytest.fail(str(error)), lane)

    found: dict[str, np.ndarray] = {}
    for done in BatchedNets([seat_of(net)], lane, stage).predict(iter([stage(rows)])):
        found |= {row.id: probs for row, probs in zip(done.rows, done.probs[0], strict=True)}
    return found


def draw_frames(net: LoadedNet) -> dict[str, int]:
    """Lengths of which some share batches."""
    least, most = net.module.min_frames, net.module.max_frames or 10**9
    drawn = np.random.default_rng(0).integers(least, least + 120, 10)
    return {f"r{i}": int(min(t, most)) for i, t in enumerate(drawn)}


@pytest.mark.parametrize("where", EVERYWHERE)
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_every_family_gives_in_batches_what_the_cpu_gives_alone(name: str, where: str) -> None:
    device = device_of(where)
    net, alone = build(name, device), build(name, CPU)
    frames = draw_frames(alone)
    store = Stored(frames, 1, alone.module.bins or 128)
    for id, probs in run(net, frames, store, device).items():
        wanted = predict_alone(alone, store, Row(id=id, clip=Clip(id=id)))
        np.testing.assert_allclose(probs, wanted, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_the_chosen_way_is_within_its_agreement(name: str) -> None:
    device = device_of("cuda:0")
    net, alone = build(name, device, None), build(name, CPU)
    frames = draw_frames(alone)
    store = Stored(frames, 1, alone.module.bins or 128)
    found = run(net, frames, store, device)
    assert not net.runner.ways and ways.way_of(net.runner.path) is not None
    for id, probs in found.items():
        wanted = predict_alone(alone, store, Row(id=id, clip=Clip(id=id)))
        np.testing.assert_allclose(probs, wanted, atol=ways.AGREEMENT_HALF)


@pytest.mark.cuda
def test_a_device_whose_memory_is_full_halves_its_batches() -> None:
    """All but 200 MB are taken by somebody else; the batch wants more."""
    device = device_of("cuda:0")
    net, alone = build("resnet_max", device), build("resnet_max", CPU)
    frames = {f"r{i}": 3000 for i in range(64)}
    store = Stored(frames, 1, 128)
    free, _ = torch.cuda.mem_get_info(device.name)
    taken = torch.empty(max(0, free - (200 << 20)), dtype=torch.uint8, device=device.name)
    try:
        found = run(net, frames, store, device)
    finally:
        del taken
        torch.cuda.empty_cache()
    assert net.fitting_cells is not None and any("halved" in note for note in net.runner.notes)
    for id in ("r0", "r63"):
        wanted = predict_alone(alone, store, Row(id=id, clip=Clip(id=id)))
        np.testing.assert_allclose(found[id], wanted, atol=1e-5)


def run_poisoned(place: Path, where: str, attempt: int) -> None:
    """An engine over nine clips, in which one row of one net fails an assert on the device."""
    from tests.helpers.bundles import built_once
    from tests.helpers.stand_ins import open_engine, stand_ins

    if where == "cpu":  # the words of the same error
        def strike(x: torch.Tensor) -> None:
            raise RuntimeError("CUDA error: device-side assert triggered")
    else:
        def strike(x: torch.Tensor) -> None:
            table = torch.zeros(4, device=x.device)
            table[torch.full((8,), 10**6, device=x.device)].sum().item()

    prepare = backends.prepare
    devices = [device_of("cuda:0")] if where != "cpu" else stand_ins("cuda:0")
    opened = open_engine(place, built_once() / "bundle", devices, attempt)
    with opened as engine, pytest.MonkeyPatch.context() as patch:
        def poisoned(module: nn.Module, device: Device, samples: Any, **more: Any) -> backends.Runner:
            if where == "cpu":
                def plain(inputs: Any, frames: Any) -> torch.Tensor:
                    return backends.call_net(module.eval(), inputs, frames)

                runner = backends.Runner(device=CPU, path="stand-in", run=plain, exact=plain)
            else:
                runner = prepare(module, device, samples, **more)
            launch = runner.launch

            def watched(inputs: Any, frames: Any = None) -> torch.Tensor:
                marks = (place / "state" / "inflight").iterdir()
                flown = [json.loads(mark.read_bytes() or b"{}") for mark in marks]
                flown = [mark for mark in flown if "c4.wav" in mark.get("ids", ())]
                if any("plain.0" in mark.get("nets", [mark.get("net")]) for mark in flown):
                    strike(next(iter(inputs.values())))
                return launch(inputs, frames)

            runner.launch = watched  # type: ignore[method-assign]
            return runner

        patch.setattr(backends, "prepare", poisoned)
        engine.execute()
        quarantined = sorted(engine.run.journal.quarantined_pairs)
        scored = {id: np.isfinite(engine.run.board.get(id)).all(axis=1).tolist() for id in engine.run.nets}
        (place / "told.json").write_text(json.dumps([quarantined, scored]))


@pytest.mark.faults
@pytest.mark.parametrize("where", EVERYWHERE)
def test_a_row_that_fails_an_assert_on_the_device_costs_its_pair(where: str, tmp_path: Path) -> None:
    """Each death takes its process with it; the third one goes to the end."""
    codes = []
    for attempt in (1, 2, 3):
        command = [sys.executable, "-c", POISON, str(tmp_path), where, str(attempt)]
        codes.append(subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True).returncode)
    assert codes[0] and codes[1] and not codes[2]
    quarantined, scored = json.loads((tmp_path / "told.json").read_bytes())
    assert quarantined == [["plain.0", "c4.wav"]]
    missing = {id: rows.count(False) for id, rows in scored.items()}
    assert missing == {"plain.0": 1, "plain.1": 0, "tiled.0": 0}


ENSEMBLES = sorted(path.stem for path in (REPOSITORY / "ensembles").glob("*.toml"))


@pytest.mark.cuda
@pytest.mark.parametrize("name", ENSEMBLES)
def test_half_precision_against_fp32_in_every_published_ensemble(name: str) -> None:
    """The first fold of each member at full size, random weights, on the samples of the agreement check."""
    from kernel.inference.member import _draw_samples

    device = device_of("cuda:0")
    ensemble = spec.load_ensemble(REPOSITORY / "ensembles" / f"{name}.toml")
    for member in ensemble.members:
        try:
            outputs = member.outputs(len(ensemble.classes))
            module = models.build(member.family, dict(member.params), outputs).eval()
        except SpecError as error:
            pytest.skip(str(error))
        recipe = replace(build_recipe(ensemble, member))
        runner = backends.prepare(module, device, _draw_samples(recipe, module))
        for sample in _draw_samples(recipe, module):
            there = {k: v.to(device.name) for k, v in sample.items()}
            got = torch.from_numpy(runner(there))
            with torch.inference_mode():
                want = runner.exact(there, None).float().cpu()
            assert ways.differ(got, want, runner.probabilities) <= ways.AGREEMENT_HALF
