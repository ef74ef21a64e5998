"""What the device cuts and finishes is what the host does for each row alone.

Every view, every operation, every stored dtype, rows of many lengths in one batch.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kernel import spec
from kernel.engine import length_groups
from kernel.errors import ClipEmpty, ClipError
from kernel.inference.answers import ACTIVATIONS, MERGES, merge_passes
from kernel.inference.finish import OPERATIONS
from kernel.inference.packing import stage_block
from kernel.inference.recipe import Recipe, build_recipe
from kernel.inference.staging import Intake, Lane, StagedBlock
from kernel.inference.views import VIEWS, keys
from kernel.sound import frontends
from kernel.sound.decode import Clip
from kernel.sound.presets import PRESETS
from kernel.sound.rows import Row
from tests.helpers.devices import EVERYWHERE, device_of

LENGTHS = (1, 3, 8, 9, 31, 63, 64, 65, 100, 127, 200, 200, 333)
everywhere = pytest.mark.parametrize("where", EVERYWHERE)


def build(view: dict[str, Any], finish: Sequence[Any] = (), **frontend: Any) -> Recipe:
    """The recipe of a member with one input."""
    given = {"name": "m", "family": "simple_cnn", "frontend": "f", "view": view, "finish": list(finish)}
    member = spec.load(spec.Member, given, "test")
    ensemble = spec.Ensemble(name="e", classes=("a",), members=(member,), frontends={"f": frontend})
    return build_recipe(ensemble, member)


def draw_arrays(recipe: Recipe, lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """Row -> a stored array of that many frames, loud and quiet, far from zero."""
    fe = recipe.stages["x"].fe
    arrays = {}
    for number, frames in enumerate(lengths):
        shape = (fe.channels, fe.bins, frames if fe.time else fe.fixed or 1)
        values = np.random.default_rng(number).uniform(0, 255, shape)
        arrays[f"row{number}"] = (values if fe.dtype == np.uint8 else values / 64 - 1).astype(fe.dtype)
    return arrays


def stage(
    recipe: Recipe, arrays: dict[str, np.ndarray], where: str, least: int = 1, maskable: bool = True
) -> StagedBlock:
    intake = Intake(recipe=recipe, least=least, min_frames=least, maskable=maskable)

    def group(frames: Sequence[int]) -> list[tuple[Sequence[int], int]]:
        batches = length_groups.group(
            frames, max_cells=9000, max_rows=64, padding=0.4, exact=intake.exact, min_frames=least
        )
        return [(batch.rows, batch.width) for batch in batches]

    rows = [Row(id=id, clip=Clip(id=id)) for id in arrays]
    lane = Lane(device_of(where))
    block = stage_block(intake, lambda fe, row: arrays[row.id], rows, lambda row, error: None, lane, group)
    assert block is not None
    lane.accept(block.held, block.ready)
    return block


def check(
    recipe: Recipe, arrays: dict[str, np.ndarray], where: str, least: int = 1, exact: bool = False
) -> int:
    """Every pass of every row equals what the host makes of it alone; gives how many batches were padded."""
    block = stage(recipe, arrays, where, least)
    stage_of = recipe.stages["x"]
    wanted: dict[int, np.ndarray] = {}
    for number, (id, array) in enumerate(arrays.items()):
        missing = least - array.shape[2]
        if missing > 0 and recipe.view.fixed is None and stage_of.fe.time:
            fill = array.min() if stage_of.fe.pad == "clip_min" else stage_of.fe.pad
            array = np.pad(array, ((0, 0), (0, 0), (0, missing)), constant_values=fill)
        cuts = np.ascontiguousarray(stage_of.cut(array, id))
        wanted[number] = stage_of.finish(torch.from_numpy(cuts)).numpy()
    met = dict.fromkeys(wanted, 0)
    padded = 0
    for places, width in block.batches:
        drawn, own = block.draw(places, width)
        x = drawn["x"].cpu().numpy()
        padded += own is not None
        for got, row, length in zip(x, block.row_of[places], block.lengths[places], strict=True):
            want = wanted[int(row)][met[int(row)]]
            met[int(row)] += 1
            if not stage_of.finish.ragged:
                length = want.shape[-1]  # what stands last is no time, and nothing is padded
            else:
                assert want.shape[-1] == length
            atol = 0.0 if exact else 1e-5 * max(1.0, float(np.abs(want).max()))
            np.testing.assert_allclose(got[..., :length], want, rtol=0, atol=atol)
            assert not got[..., length:].any()
    assert [met[n] for n in wanted] == [len(values) for values in wanted.values()]
    return padded


@everywhere
@pytest.mark.parametrize("flip", [0.0, 0.5])
@pytest.mark.parametrize("preset", ["argus", "daisukelab", "simongrest", "ex4_mel"])
@pytest.mark.parametrize("kind", VIEWS)
def test_every_view_cuts_alike_on_both(kind: str, preset: str, flip: float, where: str) -> None:
    """float32, uint8 and float16, padded by the clip's least value, by 0 and by other numbers."""
    view: dict[str, Any] = {"kind": kind, "flip": flip}
    view |= {"frames": 64} if "frames" in keys(kind) else {}
    view |= {"step": 33} if "step" in keys(kind) else {}
    recipe = build(view, preset=preset)
    check(recipe, draw_arrays(recipe, LENGTHS), where, exact=kind != "zoom")


@everywhere
@pytest.mark.parametrize("short", ["centre", "left", "right", "random"])
@pytest.mark.parametrize("kind", ["crops", "chunks", "zoom", "strength_crops"])
def test_short_clips_and_masks(kind: str, short: str, where: str) -> None:
    view = {"kind": kind, "frames": 64, "short": short, "flip": 0.5}
    if kind != "chunks":
        view |= {"passes": 5, "mask_bins": 7, "mask_frames": 11}
    recipe = build(view, preset="argus")
    check(recipe, draw_arrays(recipe, LENGTHS), where)


FINISHES: dict[str, tuple[list[Any], str]] = {
    **{kind: ([kind], "argus") for kind in OPERATIONS},
    "scale": ([{"kind": "scale", "divide": 100}], "argus"),
    "normalise": ([{"kind": "normalise", "mean": [0.3], "std": [0.5]}], "argus"),
    "imagenet": ([{"kind": "repeat", "channels": 3}, "imagenet"], "daisukelab"),
    "log": ([{"kind": "log", "offset": 3.0}], "argus"),
    "flatten": (["squeeze", "flatten"], "wave"),
    "mel_in_net": ([{"kind": "mel_in_net", "rate": 44100, "n_fft": 64, "hop": 32, "mels": 8}], "wave"),
    "frequency_map": ([{"kind": "frequency_map", "low": 0.0, "high": 3.0}], "argus"),
    "fold": ([{"kind": "fold", "frames": 64}], "argus"),
    "time_first": (["delta", "standardise", "time_first"], "argus"),
    "many": (["delta", {"kind": "scale", "divide": 7}, "standardise", "frequency_map"], "argus"),
    "sqrt": (
        [{"kind": "mel_in_net", "rate": 44100, "n_fft": 64, "hop": 30, "mels": 8, "mel_power": 1,
          "transform": "convolution"}, "delta"],
        "wave",
    ),
}


@everywhere
@pytest.mark.parametrize("kind", FINISHES)
def test_every_operation_ends_each_row_at_its_own_length(kind: str, where: str) -> None:
    steps, preset = FINISHES[kind]
    recipe = build({"kind": "full"}, steps, preset=preset)
    lengths = tuple(40 * n for n in LENGTHS) if preset == "wave" else LENGTHS
    if kind == "fold":
        lengths = (64, 128, 64, 256, 128)
    padded = check(recipe, draw_arrays(recipe, lengths), where)
    assert (padded > 0) is (kind not in ("flatten", "fold", "time_first"))


@everywhere
@pytest.mark.parametrize("preset", [name for name in PRESETS if frontends.build({"preset": name}).time])
def test_arrays_of_every_front_end_are_cut_as_the_host_does(preset: str, where: str) -> None:
    """Real arrays of three waves, since shapes and dtypes of a preset are what its code gives."""
    recipe = build({"kind": "full"}, preset=preset)
    fe = recipe.stages["x"].fe
    seconds = (1.0, 1.0, 1.7)
    arrays = {
        f"row{n}": fe.of_row(
            np.random.default_rng(n).standard_normal(int(s * fe.rate)).astype(np.float32) / 8, f"row{n}"
        )
        for n, s in enumerate(seconds)
    }
    check(recipe, arrays, where, exact=True)


@everywhere
@pytest.mark.parametrize("kind", ["chunks", "positions"])
def test_cuts_of_the_wave_before_a_function_of_ones_own(kind: str, where: str, tmp_path: Path) -> None:
    """Its arrays have whatever length it gives; short ones are padded up to what a net takes, as alone."""
    (tmp_path / "own.py").write_text("import numpy as np\n\n\ndef mel(wave):\n"
                                     "    return np.stack([wave[:len(wave) // 200 * 200].reshape(-1, 200)"
                                     ".mean(1) + i for i in range(4)])\n")
    view = {"kind": kind, "domain": "wave", "frames": 4000, "passes": 3}
    recipe = build(view, ["delta"], file=f"{tmp_path}/own.py:mel", rate=8000, bins=4)
    fe = recipe.stages["x"].fe
    arrays = {
        f"row{n}": fe.of_row(np.random.default_rng(n).standard_normal(n).astype(np.float32), f"row{n}")
        for n in (2000, 4000, 9000, 20000)
    }
    for least in (1, 33):
        check(recipe, arrays, where, least=least)


def test_rows_whose_other_inputs_differ_in_length_do_not_share_a_batch() -> None:
    inputs = {"x": {"frontend": "f"}, "y": {"frontend": "g", "finish": ["time_first"]}}
    member = spec.load(
        spec.Member,
        {"name": "m", "family": "simple_cnn", "inputs": inputs, "view": {"kind": "full"}},
        "test",
    )
    ensemble = spec.Ensemble(
        name="e",
        classes=("a",),
        members=(member,),
        frontends={"f": {"preset": "argus"}, "g": {"preset": "daisukelab"}},
    )
    recipe = build_recipe(ensemble, member)
    intake = Intake(recipe=recipe, least=1, min_frames=1, maskable=True)
    lengths = {"a": (50, 30), "b": (51, 31), "c": (50, 31), "d": (50, 30)}
    draw = np.random.default_rng(0)
    arrays = {
        (fe.key, id): (draw.uniform(0, 255, (fe.channels, fe.bins, given[n]))).astype(fe.dtype)
        for n, fe in enumerate(stage.fe for stage in recipe.stages.values())
        for id, given in lengths.items()
    }

    def group(frames: Sequence[int]) -> list[tuple[Sequence[int], int]]:
        return [(range(len(frames)), max(frames))]

    rows = [Row(id=id, clip=Clip(id=id)) for id in lengths]
    lane = Lane(device_of("cpu"))
    block = stage_block(intake, lambda fe, row: arrays[fe.key, row.id], rows, print, lane, group)
    assert block is not None and len(block.batches) == 2
    for places, width in block.batches:
        drawn, own = block.draw(places, width)
        for place, row in enumerate(block.row_of[places]):
            for name, stage in recipe.stages.items():
                id = rows[int(row)].id
                want = stage.finish(torch.from_numpy(stage.cut(arrays[stage.fe.key, id], id)))[0]
                got = drawn[name][place]
                np.testing.assert_array_equal(got[..., :want.shape[-1]], want)
                assert not got[..., want.shape[-1]:].any()


@everywhere
def test_rows_shorter_than_the_net_takes_are_padded_as_alone(where: str) -> None:
    recipe = build({"kind": "full", "flip": 0.5}, ["delta"], preset="argus")
    check(recipe, draw_arrays(recipe, LENGTHS), where, least=70)


@everywhere
def test_cuts_of_the_wave_are_passes_of_the_stored_array(where: str) -> None:
    view = {"kind": "chunks", "domain": "wave", "frames": 4410, "passes": 3}
    recipe = build(view, ["delta"], preset="ex4_mel")
    fe = recipe.stages["x"].fe
    arrays = {
        f"row{n}": fe.of_row(np.random.default_rng(n).standard_normal(n).astype(np.float32), f"row{n}")
        for n in (2000, 4410, 9000, 20000)
    }
    check(recipe, arrays, where)


def test_stored_bytes_are_sent_once_in_their_own_dtype() -> None:
    """Nine warped passes of a row cost its stored bytes once, and some numbers per pass."""
    recipe = build({"kind": "zoom", "frames": 64}, preset="simongrest")
    arrays = draw_arrays(recipe, (100, 300))
    block = stage(recipe, arrays, "cpu")
    stored = sum(array.nbytes for array in arrays.values())
    sent = sum(value.nbytes for value in block.held.values())
    assert stored <= sent <= stored + 9 * 2 * 8 * 24
    assert block.inputs["x"].data.dtype == torch.from_numpy(arrays["row0"]).dtype


def test_broken_rows_are_lost_and_the_others_staged() -> None:
    recipe = build({"kind": "tiles", "frames": 64, "step": 32}, preset="argus")
    arrays = draw_arrays(recipe, (50, 90, 200))
    lost: list[str] = []

    def get(fe: object, row: Row) -> np.ndarray:
        if row.id == "row1":
            raise ClipEmpty("row1: no samples")
        return arrays[row.id]

    def lose(row: Row, error: ClipError) -> None:
        lost.append(row.id)

    intake = Intake(recipe=recipe, least=1, min_frames=1, maskable=True)
    rows = [Row(id=id, clip=Clip(id=id)) for id in arrays]
    lane = Lane(device_of("cpu"))
    one = stage_block(intake, get, rows, lose, lane, lambda frames: [(range(len(frames)), 64)])
    assert one is not None and [row.id for row in one.rows] == ["row0", "row2"] and lost == ["row1"]
    assert stage_block(intake, get, rows[1:2], lose, lane, lambda frames: []) is None


@everywhere
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rule", MERGES)
def test_activation_and_merge_on_a_device_are_the_hosts(rule: str, activation: str, where: str) -> None:
    generator = np.random.default_rng(0)
    counts = [1, 4, 2, 9]
    answers = generator.normal(0, 12, (sum(counts), 6)).astype(np.float32)
    shares = [generator.random(count) for count in counts]
    rows = np.repeat(np.arange(4), counts)
    order = generator.permutation(len(rows))
    answers[5] = np.inf  # a pass of the third row
    got = merge_passes(
        rule,
        ACTIVATIONS[activation],
        torch.from_numpy(answers[order]).to(where),
        torch.from_numpy(rows[order]).to(where),
        torch.from_numpy(np.concatenate([s / s.sum() for s in shares])[order]).to(where),
        4,
    ).cpu().numpy()
    for row, share in enumerate(shares):
        if row == 2:
            assert np.isnan(got[row]).all()
        else:
            want = MERGES[rule](answers[rows == row].astype(np.float64), share, ACTIVATIONS[activation])
            np.testing.assert_allclose(got[row], want, rtol=1e-9, atol=1e-300)
