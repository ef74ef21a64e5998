"""The original authors' checkpoints load unchanged and give the original numbers."""
from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kernel import models
from kernel.errors import SpecError
from tests import contracts
from tests.helpers import recipe


def spec_of(contract: str) -> dict[str, Any]:
    return json.loads((contracts.GOLDENS / "state_dicts" / f"{contract}.json").read_text())


def golden_of(contract: str) -> dict[str, Any]:
    return json.loads((contracts.GOLDENS / "models" / f"{contract}.json").read_text())


def original(contract: str, classes: int) -> dict[str, Tensor]:
    """The authors' checkpoint with recipe weights; fewer classes shorten the entries that end in them."""
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
    spec = spec_of(contract)
    golden = golden_of(contract)
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
    spec = spec_of(contract)
    family, params = contracts.MODELS[contract]
    rename = contracts.RENAME.get(contract, {})
    drop = contracts.DROP.get(contract, set())
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
