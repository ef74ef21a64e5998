"""Families keep their contracts: shapes, batches, masks, gradients, and the originals' keys and numbers."""
from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from kernel import models
from kernel.errors import SpecError
from kernel.models.__main__ import main as print_table
from kernel.models.blocks import mean_time
from kernel.models.cost import measure
from tests import contracts
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


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On busy cores a second OpenMP thread costs these small nets far more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    return (
        list(value.values())
        if isinstance(value, dict)
        else list(value)
        if isinstance(value, tuple)
        else [value]
    )


def deviation(a: Tensor, b: Tensor) -> float:
    """max|a - b| over max(1, max|a|), the measure of DESIGN 1.2."""
    return float((a - b).abs().max() / max(1.0, float(a.abs().max())))


@small_nets
def test_one_row_per_clip_and_the_same_row_alone_as_in_a_batch(name: str, params: dict[str, Any]) -> None:
    module = small(name, params)
    clips = [example(module, width(module), seed) for seed in range(3)]
    with torch.no_grad():
        batch, alone = module(join(clips)), [module(c) for c in clips]
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
    module, twin = small(name, params), models.build(name, params, CLASSES).eval()
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


# the original authors' checkpoints

def spec_of(contract: str) -> dict[str, Any]:
    return json.loads((contracts.GOLDENS / "state_dicts" / f"{contract}.json").read_text())


def golden_of(contract: str) -> dict[str, Any]:
    return json.loads((contracts.GOLDENS / "models" / f"{contract}.json").read_text())


def original(contract: str, classes: int) -> dict[str, Tensor]:
    """The authors' checkpoint with recipe weights; fewer classes shorten the entries that end in the
    classes.
    """
    spec = spec_of(contract)
    shapes = spec["state_dict"]
    if classes != spec["classes"]:
        family, params = contracts.MODELS[contract]
        sizes = {k: list(v.shape) for k, v in models.build(family, params, classes).state_dict().items()}
        inverse = contracts.RENAME.get(contract, {})
        shapes = {k: sizes.get(inverse.get(k, k), v) for k, v in shapes.items()}
    return recipe.fill_state_dict(shapes, spec["gain"])


def ours(contract: str, classes: int) -> nn.Module:
    family, params = contracts.MODELS[contract]
    module = models.build(family, params, classes)
    module.load_state_dict(models.rename(family, params, original(contract, classes)))
    return module.eval()


def golden_input(case: dict[str, Any]) -> Any:
    i = case["input"]
    if "statistics" in i:
        mels, statistics = ([recipe.make_input(n, 1, *size)[0] for n in names] for names, size in (
            (i["names"], (64, i["frames"])), ([n + "-stats" for n in i["names"]], (128, 12))))
        return {
            "mel": torch.from_numpy(np.stack(mels))[:, None],
            "statistics": torch.from_numpy(np.stack(statistics)),
            "length": torch.tensor(i["length"], dtype=torch.float32)[:, None],
        }
    if "samples" in i:
        return torch.from_numpy(
            np.stack([recipe.make_wave(n, i["samples"] / 44100, 44100) for n in i["names"]])
        )[:, None, None]
    if "rows" in i:
        probs = torch.from_numpy(recipe.make_probs(i["names"][0], i["rows"], 560))
        return probs.reshape(-1, 80, 7) if "reshape" in i["call"] else probs
    return torch.from_numpy(
        np.stack(
            [recipe.make_input(n, i.get("channels", 1), i.get("bins", 64), i["frames"]) for n in i["names"]]
        )
    )


def test_every_contract_has_a_family() -> None:
    assert set(contracts.MODELS) == {p.stem for p in (contracts.GOLDENS / "state_dicts").glob("*.json")}


@pytest.mark.parametrize("contract", contracts.MODELS)
def test_original_checkpoint_gives_the_original_numbers(contract: str) -> None:
    spec, golden = spec_of(contract), golden_of(contract)
    nets: dict[int, nn.Module] = {}
    for case in golden["cases"]:
        classes = case.get("classes", spec["classes"])
        module = nets.setdefault(classes, nets.get(classes) or ours(contract, classes))
        want = torch.tensor(next(case[k] for k in ("logits", "probabilities", "output") if k in case))
        with torch.no_grad():
            got = module(golden_input(case))
        assert got.shape == want.shape
        assert float((got - want).abs().max()) <= golden["tolerance"], case["input"]
        if "aux" in case:
            with torch.no_grad():
                heads = module.heads(golden_input(case))
            want_aux = torch.tensor(case["aux"])
            assert torch.equal(heads[0], got)
            assert float((torch.cat(heads[1:]) - want_aux).abs().max()) <= 2e-6 * float(want_aux.abs().max())


@pytest.mark.parametrize("contract", contracts.MODELS)
def test_state_dict_has_the_original_layout(contract: str) -> None:
    spec, (family, params) = spec_of(contract), contracts.MODELS[contract]
    rename, drop = contracts.RENAME.get(contract, {}), contracts.DROP.get(contract, set())
    assert drop <= set(spec["state_dict"]) and set(rename) <= set(spec["state_dict"])
    with torch.device("meta"):
        module = models.build(family, params, spec["classes"])
    layout = {k: list(v.shape) for k, v in module.state_dict().items()}
    assert layout == {rename.get(k, k): v for k, v in spec["state_dict"].items() if k not in drop}
    assert models.rename(family, params, {k: k for k in spec["state_dict"]}) == {
        rename.get(k, k): k for k in spec["state_dict"] if k not in drop}
    aliases = {k for k in drop if k.startswith("base_model.") and k.removeprefix("base_model.") in layout
               and layout[k.removeprefix("base_model.")] == spec["state_dict"][k]}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    unused = sum(int(np.prod(spec["state_dict"][k])) for k in drop - aliases if not k.endswith(statistics))
    assert sum(p.numel() for p in module.parameters()) == spec["parameters"] - unused
    assert not {"min_frames", "max_frames"} & set(spec) or module.min_frames == spec["min_frames"]
    assert module.max_frames == spec.get("max_frames") or module.fixed_frames


def test_two_keys_that_become_one_are_refused() -> None:
    with pytest.raises(SpecError, match="conv1.conv1.0.weight"):
        models.rename("dense_pyramid", {}, {"conv.0.conv1.0.weight": 0, "conv1.conv1.0.weight": 1})


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


# the registry

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


def test_a_registered_family_appears_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = models.Family(build=models.FAMILIES["simple_cnn"].build, about="toy", tiny={"base": 2})
    for name in [n for n in models.FAMILIES if n not in ("simple_cnn", "scse_cnn")]:
        monkeypatch.delitem(models.FAMILIES, name)
    monkeypatch.setitem(models.FAMILIES, "toy_cnn", toy)
    print_table()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["family", "simple_cnn", "scse_cnn", "toy_cnn"]
    assert "4,765,457" in lines[1] and "16+" in lines[1] and "126-161" in lines[2]


# costs

def test_cost_of_the_published_tile() -> None:
    """Source: seed-systems 2.3, about 8.2 GMAC per 128 x 256 tile; three 64-map tensors of the first block
    are alive at most.
    """
    cost = measure(models.build("aux_skip_attention", {}, 80), 128, 3)
    assert cost.parameters == 17_326_950
    assert cost.gmac_a + 256 * cost.gmac_b == pytest.approx(8.2, abs=0.05)
    assert cost.bytes_a + 256 * cost.bytes_b == pytest.approx(4 * 128 * 256 * (3 + 3 * 64), rel=0.01)


def test_recurrent_layers_are_counted() -> None:
    plain, recurrent = (
        measure(models.build("aux_skip_attention", {"rnn": r}, 80), 128, 3) for r in (False, True)
    )
    # two LSTM directions and the linear layer, one step per 16 frames
    per_step = 2 * 4 * 512 * (512 + 512) + 1024 * 512
    assert recurrent.gmac_b - plain.gmac_b == pytest.approx(per_step / 16 / 1e9, rel=1e-6)


def test_a_bounded_net_is_measured_at_its_bounds() -> None:
    module = models.build("scse_cnn", {"base": 4}, CLASSES)
    cost, multiply_adds = measure(module, 128, 1), 0

    def count(layer: nn.Conv2d, _: Any, y: Tensor) -> None:
        nonlocal multiply_adds
        multiply_adds += y.numel() * layer.weight[0].numel()

    for layer in module.eval().modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    module(torch.zeros(1, 1, 128, module.max_frames))
    multiply_adds += module.fc1.weight.numel() + module.fc2.weight.numel()
    assert cost.gmac_a + cost.gmac_b * module.max_frames == pytest.approx(multiply_adds / 1e9, rel=1e-6)


# bring your own

OWN = """
    import torch
    from torch import nn

    class MyNet(nn.Module):
        def __init__(self, classes, width=3):
            super().__init__()
            self.fc = nn.Linear(width, classes)

        def forward(self, x):
            return self.fc(x.mean((2, 3)).repeat(1, self.fc.in_features))

    class Masked(MyNet):
        min_frames = 5

        def forward(self, x, frames=None):
            return super().forward(x)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "my_model.py"
    path.write_text(textwrap.dedent(OWN))
    return path


def test_own_net_is_built_and_knows_its_contract(own: Path) -> None:
    module = models.build(f"{own}:MyNet", {"width": 4}, CLASSES)
    assert module(torch.randn(2, 1, 8, 9)).shape == (2, CLASSES)
    assert (
        not module.maskable
        and module.output == "logits"
        and module.min_frames == 1
        and module.fixed_frames is None
    )
    masked = models.build(f"{own}:Masked", {}, CLASSES)
    assert masked.maskable and masked.min_frames == 5
    assert models.rename(f"{own}:MyNet", {}, module.state_dict()).keys() == module.state_dict().keys()
    assert measure(module, 8, 1).parameters == 5 * CLASSES
    assert models.load_custom(own, "MyNet")(classes=2).fc.out_features == 2


@pytest.mark.parametrize("text, cls, message", [
    (OWN, "MyNett", "did you mean 'MyNet'"),
    ("import nothing_of_that_name", "MyNet", "ModuleNotFoundError"),
    ("MyNet = 3", "MyNet", "no nn.Module class"),
    (OWN, "nn", "no nn.Module class"),
])
def test_own_file_errors_are_named(tmp_path: Path, text: str, cls: str, message: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(textwrap.dedent(text))
    with pytest.raises(SpecError, match=message):
        models.load_custom(path, cls)


def test_bare_name_means_the_verified_copy_first(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "kernel" / "custom"
    shipped.mkdir(parents=True)
    (shipped / "my_model.py").write_text(textwrap.dedent(OWN).replace("width=3", "width=7"))
    monkeypatch.setattr("kernel.models.custom.FOLDER", shipped)
    monkeypatch.chdir(own.parent)
    assert models.build("my_model.py:MyNet", {}, CLASSES).fc.in_features == 7
    assert models.build("./my_model.py:MyNet", {}, CLASSES).fc.in_features == 7
    assert models.build(f"{own}:MyNet", {}, CLASSES).fc.in_features == 3


def test_own_file_that_is_missing_or_gets_wrong_parameters(own: Path) -> None:
    with pytest.raises(SpecError, match="no file"):
        models.build("absent.py:MyNet", {}, CLASSES)
    with pytest.raises(SpecError, match="widht"):
        models.build(f"{own}:MyNet", {"widht": 4}, CLASSES)
