"""Faults of weights, nets and devices: damaged bundles, spoilt answers, exhausted memory, a slow model."""
from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from kernel import models, spec
from kernel.engine.batches import BatchedNets
from kernel.engine.gpu import open_block
from kernel.engine.seats import seat_of
from kernel.inference import backends
from kernel.inference.devices import Device
from kernel.inference.member import LoadedNet, load_net
from kernel.inference.recipe import build_recipe
from kernel.inference.staging import Lane
from kernel.sound.decode import Clip
from kernel.sound.rows import Row
from tests.helpers import TESTS
from tests.helpers.guard_runs import GuardRun
from tests.helpers.whole_runs import check, faulty_build, flip_bit, make_place, prior_rows, run_whole

ALL = {f"c{i:02d}.wav" for i in range(12)}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the bundle, free to be broken."""
    return Path(shutil.copytree(faulty_build() / "bundle", tmp_path / "bundle"))


def weights_of(bundle: Path, member: str) -> Path:
    nets = json.loads((bundle / "manifest.json").read_bytes())["nets"]
    return bundle / next(net["file"] for net in nets if net["member"] == member)


def rewrite(
    bundle: Path, member: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    """Other tensors in a weights file, under a manifest that has their hash."""
    path = weights_of(bundle, member)
    data = save(change(load(path.read_bytes())))
    path.write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["files"][path.name].update(entry)
    for net in manifest["nets"]:
        if net["file"] == path.name:
            net.update(length=len(data), sha256=entry["sha256"])
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.fault(row=71, injection="one bit of one weights file flipped",
                   outcome="that net fails and is named (BundleHashMismatch); the others predict every row")
def test_a_flipped_bit_costs_its_net(tmp_path: Path, bundle: Path) -> None:
    flip_bit(weights_of(bundle, "sound"), -5)
    run = run_whole(make_place(tmp_path), bundle)
    check(run, "BundleHashMismatch")
    assert not prior_rows(run) and run.report["partial_rows"] == 12


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = next(iter(state))
    return {("x." + k if k == first else k): v for k, v in state.items()}


def reshaped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = next(k for k, v in state.items() if v.dim() > 0)
    return {k: torch.cat([v, v]) if k == first else v for k, v in state.items()}


def poisoned(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = next(k for k, v in state.items() if v.is_floating_point())
    return {k: torch.full_like(v, float("nan")) if k == first else v for k, v in state.items()}


@pytest.mark.faults
@pytest.mark.fault(
    row=71,
    injection="a renamed tensor, a wrong shape, a NaN weight, under a manifest that has their hash",
    outcome="that net fails and is named (ModelLoadFailed); the others predict every row",
)
@pytest.mark.parametrize("change", [renamed, reshaped, poisoned])
def test_weights_that_do_not_fit_cost_their_net(tmp_path: Path, bundle: Path, change: Callable) -> None:
    rewrite(bundle, "struck", change)
    run = run_whole(make_place(tmp_path), bundle)
    check(run, "ModelLoadFailed")
    assert not prior_rows(run) and run.report["partial_rows"] == 12


@pytest.mark.faults
@pytest.mark.fault(row=71, injection="a weights file cut short, deleted, replaced by a folder",
                   outcome="that net fails and is named; the others predict every row")
@pytest.mark.parametrize("harm", ["cut", "deleted", "folder"])
def test_a_lost_weights_file_costs_its_net(tmp_path: Path, bundle: Path, harm: str) -> None:
    path = weights_of(bundle, "sound")
    data = path.read_bytes()
    path.unlink()
    if harm == "cut":
        path.write_bytes(data[:-100])
    elif harm == "folder":
        path.mkdir()
    run = run_whole(make_place(tmp_path), bundle)
    check(run, "BundleMissing" if harm == "deleted" else "BundleHashMismatch")
    assert not prior_rows(run) and run.report["partial_rows"] == 12


@pytest.mark.faults
@pytest.mark.fault(
    row=72, injection="every weights file damaged", outcome="the prior submission, exit 0, each net named"
)
def test_without_any_good_net_the_prior_stays(tmp_path: Path, bundle: Path) -> None:
    for member in ("sound", "struck"):
        flip_bit(weights_of(bundle, member), -5)
    run = run_whole(make_place(tmp_path), bundle)
    check(run, "BundleHashMismatch")
    assert prior_rows(run) == ALL and run.report["prior_rows"] == 12 and "DEGRADED" in run.out


@pytest.mark.fault(
    row=73,
    injection="a net answers NaN, infinity, or raises, each for one clip; logits of -1e30 for another",
    outcome="that net has no say in these rows, the others decide them; extreme logits are clipped",
)
def test_spoilt_answers_cost_their_rows_in_that_net(tmp_path: Path, unharmed: GuardRun) -> None:
    spoilt = {
        "c01.wav": "nan",
        "c02.wav": "inf",
        "c03.wav": "raise",
        "c04.wav": "strange",
        "c05.wav": "memory_error",
    }
    deeds = {**spoilt, "c06.wav": "huge", "c07.wav": "zeros"}
    plan = [{"at": "forward", "id": id, "do": deed} for id, deed in deeds.items()]
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", plan=plan)
    check(run, "ValueError", reference=unharmed, affected={*spoilt, "c06.wav", "c07.wav"})
    assert not prior_rows(run) and run.report["partial_rows"] == len(spoilt)


@pytest.mark.faults
@pytest.mark.fault(
    row=73,
    injection="a net raises KeyboardInterrupt, CancelledError, GeneratorExit, each for one clip",
    outcome="that net has no say in these rows and goes on; the others decide them",
)
def test_exceptions_that_no_handler_expects_cost_their_rows(tmp_path: Path, unharmed: GuardRun) -> None:
    deeds = {"c01.wav": "interrupt", "c02.wav": "cancel", "c03.wav": "generator_exit"}
    plan = [{"at": "forward", "id": id, "do": deed} for id, deed in deeds.items()]
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", plan=plan)
    check(run, "KeyboardInterrupt", reference=unharmed, affected={*deeds})
    assert not prior_rows(run) and run.report["partial_rows"] == 3


@pytest.mark.faults
@pytest.mark.fault(
    row=91,
    injection="a net kills the engine each time it is opened",
    outcome="it is dropped after two deaths and named; the other nets predict every row",
)
def test_a_net_that_cannot_be_opened_alive_is_dropped(tmp_path: Path) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", plan=[{"at": "open", "do": "kill"}])
    check(run, "NetQuarantined")
    assert not prior_rows(run) and run.report["partial_rows"] == 12
    assert run.report["guard"]["attempts"] == 3


@pytest.mark.faults
@pytest.mark.fault(
    row=91,
    injection="a net hangs for ever, or raises KeyboardInterrupt, while it is opened",
    outcome="it is dropped and named; the other nets predict every row",
)
@pytest.mark.parametrize("deed", ["hang", "interrupt"])
def test_a_net_that_never_opens_is_dropped(tmp_path: Path, deed: str) -> None:
    plan = [{"at": "open", "do": deed}]
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", seconds=90, plan=plan)
    check(run, "NetQuarantined" if deed == "hang" else "KeyboardInterrupt")
    assert not prior_rows(run) and run.report["partial_rows"] == 12


@pytest.mark.faults
@pytest.mark.fault(
    row=91,
    injection="a net kills the engine at every row",
    outcome="it is dropped after three quarantined rows and named; the other nets predict every row",
)
def test_a_net_that_dies_on_every_row_is_dropped(tmp_path: Path) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", seconds=170,
                    plan=[{"at": "forward", "do": "kill"}])
    check(run, "NetQuarantined")
    assert not prior_rows(run) and run.report["partial_rows"] == 12
    assert run.report["guard"]["attempts"] <= 8 and "quarantined" not in run.report["broken_rows"]


@pytest.mark.faults
@pytest.mark.fault(row=73, injection="a net answers with twice as many classes, for every clip",
                   outcome="the net has no say and is named; the others predict every row")
def test_answers_of_another_width_cost_that_net(tmp_path: Path) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", plan=[{"at": "forward", "do": "wide"}])
    check(run, "ValueError")
    assert not prior_rows(run) and run.report["partial_rows"] == 12


@pytest.mark.faults
@pytest.mark.fault(
    row=84,
    injection="of three folds below a stacker one has NaN weights and one answers NaN for one clip",
    outcome="the stacker reads the folds that are there in every row; its notes name them; rows are partial",
)
def test_a_lost_fold_does_not_silence_the_stacker(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(faulty_build("stacked") / "bundle", tmp_path / "bundle"))
    rewrite(bundle, "struck", poisoned)
    plan = [{"at": "forward", "id": "c05.wav", "do": "nan", "times": 1}]
    run = run_whole(make_place(tmp_path), bundle, plan=plan)
    check(run, "ModelLoadFailed")
    (stacker,) = [part for part in run.report["members"] if part["name"] == "stacker"]
    assert stacker["rows"] == 12 and run.report["partial_rows"] == 12
    (net,) = stacker["nets"]
    notes = sorted(note.removeprefix("read without struck.") for note in net["notes"])
    assert notes == ["0 in 12 rows, where it has no say", "1 in 1 rows, where it has no say"]


@pytest.mark.faults
@pytest.mark.fault(
    row=77,
    injection="RLIMIT_AS 8 GB, and a net that asks torch for 16 GB for one clip: the allocator fails",
    outcome="that net has no say in this row, the others decide it; no restart",
)
def test_host_memory_refused_to_torch(tmp_path: Path, unharmed: GuardRun) -> None:
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", prefix=("prlimit", f"--as={8 * 10**9}"),
                    plan=[{"at": "forward", "id": "c05.wav", "do": "torch_memory", "bytes": 16 * 10**9}])
    check(run, "RuntimeError", reference=unharmed, affected={"c05.wav"})
    assert run.report["partial_rows"] == 1 and run.report["guard"]["attempts"] == 1


@pytest.mark.faults
@pytest.mark.fault(
    row=46,
    injection="a net that needs 1 s per clip, far above its forecast; 40 s in all for 60 clips",
    outcome="stopped at the mark; every clip has at least the other net; exit before the limit",
)
def test_a_slow_net_does_not_cost_coverage(tmp_path: Path) -> None:
    run = run_whole(make_place(tmp_path, 60), faulty_build() / "bundle", seconds=40,
                    plan=[{"at": "forward", "do": "sleep", "seconds": 1}])
    check(run)
    assert not prior_rows(run) and 0 < run.report["partial_rows"] <= 60


# -- nets alone


class Stored:
    """A store that holds one array per row."""

    def __init__(self, frames: dict[str, int]) -> None:
        self.arrays = {}
        for id, count in frames.items():
            self.arrays[id] = np.random.default_rng(count).random((1, 128, count), dtype=np.float32)

    def get(self, fe: object, row: Row) -> np.ndarray:
        return self.arrays[row.id]


def grouped(
    frames: dict[str, int], fail: Callable[[torch.Tensor], None]
) -> tuple[dict[str, np.ndarray], LoadedNet]:
    """Probabilities of all rows in length groups, with a runner that may fail first."""
    ensemble = spec.load_ensemble(TESTS / "ensembles" / "tiny.toml")
    recipe = build_recipe(ensemble, ensemble.members[0])
    torch.manual_seed(0)
    module = models.build("simple_cnn", {"base": 4, "channels": 1}, 3).eval()
    device = Device(name="cpu", about="")
    net = load_net(recipe, module.state_dict(), 3, device, spec.Cost())

    def plain(inputs: backends.Inputs, lengths: torch.Tensor | None) -> torch.Tensor:
        fail(inputs["x"])
        return backends.call_net(module, inputs, lengths)

    net.runner = backends.Runner(device=device, path="test", run=plain, exact=plain)
    rows = [Row(id=id, clip=Clip(id=id)) for id in frames]
    block = open_block(net, Stored(frames), rows, lambda row, error: pytest.fail(str(error)), Lane(device))
    (done,) = BatchedNets([seat_of(net)], Lane(device), print).predict(iter([block]))
    return dict(zip([row.id for row in done.rows], done.probs[0], strict=True)), net


FRAMES = {f"r{i}": 200 + i for i in range(24)}


@pytest.mark.fault(
    row=74,
    injection="torch.OutOfMemoryError for every batch of more than 3 rows, and for every third call",
    outcome="the batch is halved until it fits; the same numbers; each halving is a note",
)
def test_batches_that_do_not_fit_are_halved() -> None:
    calls = 0

    def fail(x: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        if len(x) > 3 or (calls % 3 == 0 and len(x) > 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    wanted, _ = grouped(FRAMES, lambda x: None)
    found, net = grouped(FRAMES, fail)
    assert set(found) == set(FRAMES)
    for id in FRAMES:
        np.testing.assert_allclose(found[id], wanted[id], atol=1e-5)
    assert any("halved" in note for note in net.runner.notes)


@pytest.mark.fault(
    row=74,
    injection="torch.OutOfMemoryError at batch 1 for the longest row",
    outcome="this net has no say in that row (NaN, counted as skipped); every other row has its numbers",
)
def test_a_row_that_does_not_fit_even_alone_costs_itself() -> None:
    def fail(x: torch.Tensor) -> None:
        if x.shape[-1] > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")

    frames = {**FRAMES, "r24": 400}
    frames.pop("r23")
    wanted, _ = grouped(frames, lambda x: None)
    found, _ = grouped(frames, fail)
    assert [id for id in frames if not np.isfinite(found[id]).all()] == ["r24"]
    np.testing.assert_allclose(found["r5"], wanted["r5"], atol=1e-5)


@pytest.mark.fault(row=76, injection="a half-precision path that overflows to infinity after its check",
                   outcome="that batch is computed again in fp32; no NaN, the rerun counted")
def test_half_precision_that_overflows_is_run_again_in_fp32() -> None:
    device = Device(name="cpu", about="")
    runner = backends.Runner(
        device=device,
        path="test",
        half=True,
        run=lambda x, f: torch.exp(x["x"].half() * 12).float(),
        exact=lambda x, f: torch.exp(x["x"] * 12),
    )
    calm = torch.full((2, 3), 0.1)
    loud = torch.full((2, 3), 1.2)
    assert np.isfinite(runner({"x": calm})).all() and runner.half and runner.reruns == 0
    np.testing.assert_allclose(runner({"x": loud}), np.exp(14.4), rtol=1e-4)
    assert runner.reruns == 2


@pytest.mark.fault(row=76, injection="a half-precision path that disagrees with fp32 on the first batch",
                   outcome="fp32 for good, and a note")
def test_half_precision_that_disagrees_is_given_up() -> None:
    device = Device(name="cpu", about="")
    runner = backends.Runner(
        device=device, path="test", half=True, run=lambda x, f: x["x"] + 1, exact=lambda x, f: x["x"]
    )
    assert (runner({"x": torch.zeros(2, 3)}) == 0).all() and not runner.half and "differed" in runner.notes[0]
