"""Every tensor of a checkpoint is taken, dropped by name, or an error; what was done to it is said."""
from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from builder import assembly
from builder.weights import Blob, find_weights, load_blob
from kernel import models
from kernel.errors import ModelLoadFailed, SpecError
from kernel.spec import Member
from kernel.spec import load as load_spec
from tests.helpers import recipe
from tests.helpers.bundles import TINY, order
from training.checkpoints import read_checkpoint

CLASSES = 5
PARAMS = {"base": 2, "hidden": 8}
State = dict[str, Tensor]


def filled(seed: float = 1.2) -> nn.Module:
    module = models.build("dense_pyramid", PARAMS, CLASSES)
    module.load_state_dict(recipe.fill_state_dict(module.state_dict(), seed))
    return module.eval()


@pytest.fixture(scope="module")
def state() -> State:
    return filled().state_dict()


@pytest.fixture(scope="module")
def other() -> State:
    return filled(0.7).state_dict()


def below(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def take(path: Path, content: Any, **keys: Any) -> Blob:
    """What the builder ships of a checkpoint that holds `content`; plain tensors need no process to read."""
    if all(isinstance(value, Tensor) and not value.is_quantized for value in content.values()):
        path = path.with_suffix(".safetensors")
        save_file(content, path)
    else:
        torch.save(content, path)
    member = load_spec(
        Member, {"name": "net", "family": "dense_pyramid", "params": PARAMS, "frontend": "mel", **keys}
    )
    return load_blob(path, member.family, PARAMS, models.build(member.family, PARAMS, CLASSES), member)


def same(blob: Blob, state: State) -> bool:
    held = load(blob)
    return held.keys() == state.keys() and all(torch.equal(held[key], state[key]) for key in state)


def test_a_tensor_that_the_net_does_not_take_is_an_error(state: State, tmp_path: Path) -> None:
    content = {"state_dict": below("model.", state) | {"loss.pos_weight": torch.ones(3)}}
    with pytest.raises(ModelLoadFailed, match=r'(?s)1 extra.*extra loss\.pos_weight.*drop = \["loss\.\*"\]'):
        take(tmp_path / "net.ckpt", content)
    blob = take(tmp_path / "net.ckpt", content, drop=["loss.*"])
    assert same(blob, state)
    assert blob.said == (f"prefix 'model.' taken off {len(state)} keys", "left out by drop: loss.pos_weight")


@pytest.mark.parametrize("pattern", ["aux.*", "net.aux.*", "*aux*"])
def test_patterns_meet_keys_with_and_without_their_prefix(
    pattern: str, state: State, tmp_path: Path
) -> None:
    content = below("net.", state | {"aux.fc.weight": torch.ones(3, 3), "aux.fc.bias": torch.ones(3)})
    blob = take(tmp_path / "net.pth", content, drop=[pattern])
    assert same(blob, state) and "left out by drop: net.aux.fc.bias, net.aux.fc.weight" in blob.said


def test_what_the_net_needs_cannot_be_dropped(state: State, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="1 missing"):
        take(tmp_path / "net.pth", state, drop=["conv1.conv1.0.weight"])


def test_a_family_says_what_its_authors_never_used(tmp_path: Path) -> None:
    params = {"base": 4, "depth": 18, "hidden": 8}
    module = models.build("resnet_max", params, CLASSES)
    torch.save(module.state_dict() | {"last_linear2.weight": torch.ones(2, 2)}, tmp_path / "net.pth")
    blob = load_blob(tmp_path / "net.pth", "resnet_max", params, module)
    assert blob.said == ("never used by resnet_max, left out: last_linear2.weight",)


def test_averages_beside_the_weights_are_said_and_chosen(state: State, other: State, tmp_path: Path) -> None:
    content = {"epoch": 3, "state_dict": state, "state_dict_ema": other, "metric": 0.5}
    plain = take(tmp_path / "net.pth.tar", content)
    assert same(plain, state)
    assert plain.said == (
        "weights taken from state_dict",
        f"left aside: state_dict_ema ({len(other)} tensors); weights_key = 'state_dict_ema' takes it",
    )
    assert same(take(tmp_path / "net.pth.tar", content, weights_key="state_dict_ema"), other)


def test_two_whole_nets_in_one_state_dict_are_chosen_by_prefix(
    state: State, other: State, tmp_path: Path
) -> None:
    content = {"state_dict": below("model.", state) | below("ema.module.", other)}
    with pytest.raises(ModelLoadFailed, match=r"2 whole nets, below 'model', 'ema\.module'.*weights_key"):
        take(tmp_path / "net.ckpt", content)
    assert same(take(tmp_path / "net.ckpt", content, weights_key="model"), state)
    blob = take(tmp_path / "net.ckpt", content, weights_key="ema")
    assert same(blob, other)
    assert any("model." in sentence and "left out" in sentence for sentence in blob.said)


def test_two_unknown_names_are_not_guessed(state: State, other: State, tmp_path: Path) -> None:
    content = {"first": state, "second": other}
    with pytest.raises(ModelLoadFailed, match=r"several sets of tensors: first \(\d+ .*second.*weights_key"):
        take(tmp_path / "net.pth", content)
    assert same(take(tmp_path / "net.pth", content, weights_key="second"), other)


@pytest.mark.parametrize("wrong, wrapped", [("mod", False), ("ema", False), ("ema", True)])
def test_a_weights_key_that_is_not_there_is_an_error(
    wrong: str, wrapped: bool, state: State, tmp_path: Path
) -> None:
    """Part of a key's first word is no prefix."""
    content: Any = below("model.", state)
    if wrapped:
        content = {"state_dict": content}
    with pytest.raises(ModelLoadFailed, match=rf"weights_key = '{wrong}' is neither.*begin with model"):
        take(tmp_path / "net.pth", content, weights_key=wrong)


def test_quantised_tensors_are_refused(state: State, tmp_path: Path) -> None:
    with pytest.warns():
        odd = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    with pytest.raises(ModelLoadFailed, match=r"odd is quantised.*float32"):
        take(tmp_path / "net.pth", state | {"odd": odd})


def test_the_same_net_compiled_and_not_is_an_error(state: State, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="with and without _orig_mod"):
        take(tmp_path / "net.pth", state | below("_orig_mod.", {k: v.clone() for k, v in state.items()}))


def test_whole_numbers_are_no_weights(state: State, tmp_path: Path) -> None:
    """A quantised net has the shapes of the net it came from."""
    content = state | {"conv1.conv1.0.weight": state["conv1.conv1.0.weight"].to(torch.int8)}
    with pytest.raises(ModelLoadFailed, match=r"conv1\.conv1\.0\.weight holds torch\.int8.*float32"):
        take(tmp_path / "net.pth", content)


@pytest.mark.parametrize("written, asked", [("net.pth.tar", "net.safetensors"), ("net.weights.h5", "net.h5"),
                                            ("net.pth.tar", "net.pth.tar"), ("net.pth", "net.pth.tar")])
def test_long_suffixes_are_found(written: str, asked: str, tmp_path: Path) -> None:
    (tmp_path / written).write_bytes(b"")
    assert find_weights(asked, [tmp_path]) == tmp_path / written


def test_a_layer_without_bias_leads_to_the_parameter(tmp_path: Path) -> None:
    params = {"depth": 18, "base": 4, "hidden": 8}
    module = models.build("resnet_concat", params, CLASSES)
    headless = {k: v for k, v in module.state_dict().items() if k not in ("head.4.bias", "head.8.bias")}
    torch.save(headless, tmp_path / "net.pth")
    with pytest.raises(ModelLoadFailed, match=r"(?s)head\.4\.bias.*params = \{ bias = false \}"):
        load_blob(tmp_path / "net.pth", "resnet_concat", params, module)
    params["bias"] = False
    module = models.build("resnet_concat", params, CLASSES)
    blob = load_blob(tmp_path / "net.pth", "resnet_concat", params, module)
    assert load(blob).keys() == headless.keys()


# Classes of other packages beside the weights

def foreign(name: str, **members: Any) -> type:
    """A class that pickles as `name` of a package that is not installed."""
    module, _, cls = name.rpartition(".")
    made = type(cls, (), {"__module__": module, **members})
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:depth]), types.ModuleType(".".join(parts[:depth])))
    setattr(sys.modules[module], cls, made)
    return made


@pytest.fixture
def clean_modules() -> Any:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.usefixtures("clean_modules")
def test_lists_and_settings_of_known_packages_are_passed_over(state: State, tmp_path: Path) -> None:
    held = foreign("fastcore.foundation.L")()
    held.items = [1, 2]
    bag = foreign("lightning_fabric.utilities.data.AttributeDict")()
    content = {"model": state, "opt": {"hypers": held}, "hyper_parameters": bag}
    assert same(take(tmp_path / "net.pth", content), state)


@pytest.mark.usefixtures("clean_modules")
def test_a_known_package_runs_nothing(state: State, tmp_path: Path) -> None:
    """A function of such a package is replaced too: what it is given stays untouched."""
    marker = tmp_path / "it ran"
    module = types.ModuleType("fastcore.basics")
    sys.modules.setdefault("fastcore", types.ModuleType("fastcore"))
    sys.modules["fastcore.basics"] = module

    def act(path: str) -> None:
        Path(path).mkdir()

    act.__module__, act.__qualname__, act.__name__ = "fastcore.basics", "act", "act"
    module.act = act  # type: ignore[attr-defined]

    class Runs:
        def __reduce__(self) -> Any:
            return act, (str(marker),)

    assert same(take(tmp_path / "net.pth", {"model": state, "opt": Runs()}), state)
    assert not marker.exists()


@pytest.mark.usefixtures("clean_modules")
def test_a_class_of_an_unknown_package_refuses_the_file(state: State, tmp_path: Path) -> None:
    content = {"model": state, "opt": foreign("fastcore_evil.L")()}
    with pytest.raises(ModelLoadFailed, match=r"names fastcore_evil\.L, so opening it could run code"):
        take(tmp_path / "net.pth", content)


def test_metrics_as_numpy_arrays_are_passed_over(state: State, tmp_path: Path) -> None:
    content = {"state_dict": state, "history": np.arange(4.0), "best": np.float32(0.5)}
    assert same(take(tmp_path / "net.pth", content), state)


# What the build says

def test_the_manifest_and_the_output_name_what_was_done(tmp_path: Path) -> None:
    said: list[str] = []
    assembly.build(order(tmp_path / "first"), say=lambda _: None)
    built = assembly.build(order(tmp_path / "first"), say=lambda _: None)
    weights = tmp_path / "weights"
    weights.mkdir()
    for net in built.manifest.nets:
        data = (tmp_path / "first" / "bundle" / net.file).read_bytes()[net.offset:][:net.length]
        torch.save({"net": below("_orig_mod.", load(data))}, weights / f"{net.member}_{net.fold}.pth")
    again = assembly.build(
        order(tmp_path / "second", ensemble=TINY, weights=weights, random_weights=True), say=said.append
    )
    done = [net for net in again.manifest.nets if net.said]
    assert done and all("prefix '_orig_mod.'" in " ".join(net.said) for net in done)
    assert any("prefix '_orig_mod.'" in line and line.startswith(done[0].member) for line in said)


def test_a_class_order_that_is_not_ours_is_an_error(tmp_path: Path) -> None:
    from kernel.spec import load_ensemble

    member = '[[members]]\nclasses_from = "their.txt"\n'
    text = TINY.read_text(encoding="utf-8").replace("[[members]]\n", member, 1)
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=r"classes_from = 'their.txt'.*cannot be read"):
        load_ensemble(tmp_path / "mine.toml")
    (tmp_path / "their.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"members\[0\]\.classes_from: not the classes in another order"):
        load_ensemble(tmp_path / "mine.toml")


def test_read_checkpoint_keeps_the_stored_keys(state: State, tmp_path: Path) -> None:
    torch.save({"net": below("module.", state)}, tmp_path / "net.pth")
    assert read_checkpoint(tmp_path / "net.pth").tensors.keys() == below("module.", state).keys()
