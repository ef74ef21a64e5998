"""Families keep their contract: one row per clip, batches, masks, gradients, saved weights, and the table."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from kernel import models
from kernel.errors import SpecError
from kernel.models.__main__ import main as print_table
from kernel.models.blocks import mean_time
from tests.helpers import recipe

CLASSES = 6
TAIL = 1e6  # what lies beyond a row's own length: anything but zero
SMALL = [
    (name, dict(params))
    for name, family in models.FAMILIES.items()
    for params in (family.tiny, *family.variants)
]
MASKABLE = [(name, params) for name, params in SMALL if models.build(name, params, CLASSES).maskable]
small_nets = pytest.mark.parametrize(
    "name, params", SMALL, ids=[f"{n}-{i}" for i, (n, _) in enumerate(SMALL)]
)


def small(name: str, params: dict[str, Any]) -> nn.Module:
    """The small net with recipe weights (running statistics other than 0 and 1), evaluation mode."""
    module = models.build(name, params, CLASSES)
    module.load_state_dict(recipe.fill_state_dict(module.state_dict(), 1.4))
    return module.eval()


def noise(seed: int, like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def example(module: nn.Module, frames: int, seed: int = 0) -> Any:
    """Noise shaped as one clip of `frames` frames."""
    if hasattr(module, "example"):
        x = module.example(frames)
        return (
            {k: noise(seed + i, v) for i, (k, v) in enumerate(x.items())}
            if isinstance(x, dict)
            else noise(seed, x)
        )
    return noise(seed, torch.empty(1, module.channels, module.bins or 64, frames))


def join(clips: list[Any]) -> Any:
    if isinstance(clips[0], dict):
        return {k: torch.cat([c[k] for c in clips]) for k in clips[0]}
    return torch.cat(clips)


def width(module: nn.Module) -> int:
    """A width the net takes, odd where it may choose."""
    return module.fixed_frames or (module.min_frames if module.max_frames else module.min_frames + 37)


def outputs(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, tuple) else [value]


def deviation(a: Tensor, b: Tensor) -> float:
    """max|a - b| over max(1, max|a|), the measure in which promises are given."""
    return float((a - b).abs().max() / max(1.0, float(a.abs().max())))


@small_nets
def test_one_row_per_clip_and_the_same_row_alone_as_in_a_batch(name: str, params: dict[str, Any]) -> None:
    module = small(name, params)
    clips = [example(module, width(module), seed) for seed in range(3)]
    with torch.no_grad():
        batch = module(join(clips))
        alone = [module(c) for c in clips]
    assert batch.shape == (3, CLASSES) and batch.dtype == torch.float32
    assert torch.isfinite(batch).all() and len({tuple(r.tolist()) for r in batch}) == 3
    assert alone[0].shape == (1, CLASSES)
    assert deviation(torch.cat(alone), batch) <= 1e-5


@pytest.mark.parametrize("name, params", MASKABLE, ids=[f"{n}-{i}" for i, (n, _) in enumerate(MASKABLE)])
def test_rows_of_mixed_lengths_equal_the_clips_alone(name: str, params: dict[str, Any]) -> None:
    module = small(name, params)
    least = module.min_frames
    widths = (
        [[least, *range(least + 1, least + 34, 3)], [least, 431, 1000, 3000]]
        if least < 1000
        else [[least, least + 4099]]
    )
    for lengths in widths:
        lengths = [max(least, n) for n in lengths]
        clips = [example(module, n, seed) for seed, n in enumerate(lengths)]
        x = torch.full((len(clips), *clips[0].shape[1:3], max(lengths) + 21), TAIL)
        for row, clip in zip(x, clips, strict=True):
            row[..., : clip.shape[-1]] = clip[0]
        with torch.no_grad():
            batch = module(x, torch.tensor(lengths))
            worst = {n: deviation(module(c)[0], row) for n, c, row in zip(lengths, clips, batch, strict=True)}
        assert max(worst.values()) <= 1e-5, worst


@small_nets
def test_saved_weights_give_the_same_bits(name: str, params: dict[str, Any]) -> None:
    module = small(name, params)
    twin = models.build(name, params, CLASSES).eval()
    twin.load_state_dict(load(save({k: v.contiguous() for k, v in module.state_dict().items()})))
    x = example(module, width(module))
    with torch.no_grad():
        assert torch.equal(module(x), twin(x))


@small_nets
def test_training_reaches_every_parameter(name: str, params: dict[str, Any]) -> None:
    module = small(name, params).train()
    x = join([example(module, width(module), seed) for seed in range(4)])
    sum((noise(i, y) * y).sum() for i, y in enumerate(outputs(module(x)))).backward()
    without = [k for k, p in module.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without


@small_nets
def test_our_own_keys_pass_the_rename_step(name: str, params: dict[str, Any]) -> None:
    keys = dict.fromkeys(models.build(name, params, CLASSES).state_dict(), 0)
    assert list(models.rename(name, params, keys)) == list(keys)


def test_half_precision_average_of_a_long_row_stays_finite() -> None:
    x = torch.full((1, 2, 3000), 300.0, dtype=torch.float16)
    assert torch.equal(mean_time(x, torch.tensor([2999])), torch.full((1, 2), 300.0, dtype=torch.float16))


def test_auxiliary_heads_come_with_training_only() -> None:
    module = models.build("aux_skip_attention", {"base": 4}, CLASSES)
    x = torch.randn(2, 3, 64, 40)
    main, *aux = module(x)
    assert [a.shape for a in aux] == [(2, CLASSES)] * 3 and main.shape == (2, CLASSES)
    assert module.eval()(x).shape == (2, CLASSES)
    single = models.build("aux_skip_attention", {"base": 4, "aux": False}, CLASSES)
    assert single(x).shape == (2, CLASSES)


@pytest.mark.parametrize("name, params, message", [
    ("simple_cn", {}, "did you mean 'simple_cnn'"),
    ("simple_cnn", {"bass": 16}, "did you mean 'base'"),
    ("simple_cnn", {"base": "wide"}, "cannot be built"),
    ("dense_pyramid", {"levels": 9}, "levels = 9"),
    ("hierarchical_cnn", {"aggregation": "mean"}, "aggregation"),
    ("resnet_max", {"depth": 50}, r"\[18, 34\]"),
])
def test_wrong_parameters_are_named(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        models.build(name, params, CLASSES)


def test_a_registered_family_appears_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    everything = dict(models.FAMILIES)
    toy = models.Family(build=everything["simple_cnn"].build, about="toy", tiny={"base": 2})
    try:
        models.FAMILIES.clear()
        models.FAMILIES |= {name: everything[name] for name in ("simple_cnn", "scse_cnn")} | {"toy_cnn": toy}
        print_table()
    finally:  # in its own order, which the page on ensembles has too
        models.FAMILIES.clear()
        models.FAMILIES |= everything
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["family", "simple_cnn", "scse_cnn", "toy_cnn"]
    assert "4,765,457" in lines[1] and "16+" in lines[1] and "126-161" in lines[2]
