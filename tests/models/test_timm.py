"""Families `timm` and `sed` on real timm models: heads, widths, keys, and timm where it is absent or half
installed.
"""
from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kernel import models
from kernel.errors import SpecError
from tests.helpers import recipe

CLASSES = 6


def picture(channels: int, bins: int, frames: int, rows: int = 1) -> torch.Tensor:
    return torch.stack(
        [torch.from_numpy(recipe.make_input(f"row-{i}", channels, bins, frames)) for i in range(rows)]
    )


def run(name: str, params: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return models.build(name, params, CLASSES).eval()(x)


@pytest.mark.parametrize(
    "model, head, in_chans",
    [
        ("resnet18", "linear", 1),
        ("resnet18", "concat", 3),
        ("efficientnet_b0", "linear", 3),
        ("efficientnet_b0", "concat", 1),
        ("densenet121", "concat", 3),
    ],
)
def test_a_real_model_runs_at_its_narrowest_and_wider(model: str, head: str, in_chans: int) -> None:
    net = models.build("timm", {"model": model, "head": head, "in_chans": in_chans}, CLASSES).eval()
    assert net.channels == in_chans and not net.maskable and net.max_frames is None
    for frames in (net.min_frames, net.min_frames + 50):
        with torch.no_grad():
            y = net(picture(in_chans, 64, frames, rows=2))
        assert y.shape == (2, CLASSES) and torch.isfinite(y).all()


@pytest.mark.parametrize("model, parameters, min_frames", [
    ("inception_v3", 21_797_862, 75), ("tf_efficientnetv2_s", 20_185_174, 1), ("eca_nfnet_l0", 21_852_754, 1),
    ("resnest50d", 25_446_534, 1), ("densenet121", 6_960_006, 29)])
def test_larger_models_are_built_and_know_their_narrowest_input(
    model: str, parameters: int, min_frames: int
) -> None:
    with torch.device("meta"):
        net = models.build("timm", {"model": model}, CLASSES)
    assert net.min_frames == min_frames
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_narrower_than_min_frames_does_not_run() -> None:
    net = models.build("timm", {"model": "convnext_atto", "in_chans": 1}, CLASSES).eval()
    assert net.min_frames == 32
    with pytest.raises(RuntimeError):
        net(picture(1, 64, net.min_frames - 1))


def test_a_net_of_one_picture_size_says_so() -> None:
    options = {"img_size": [32, 64], "patch_size": 16, "depth": 1}
    net = models.build(
        "timm", {"model": "vit_tiny_patch16_224", "pool": "token", "options": options}, CLASSES
    )
    assert (net.bins, net.fixed_frames, net.min_frames, net.max_frames) == (32, 64, 64, 64)
    with pytest.raises(SpecError, match="use head = 'linear'"):
        models.build("timm", {"model": "vit_tiny_patch16_224", "head": "concat"}, CLASSES)


def test_the_concat_head_takes_the_maximum_first() -> None:
    net = models.build("timm", {"model": "resnet10t", "head": "concat"}, CLASSES).eval()
    x = picture(3, 32, 40)
    with torch.no_grad():
        maps = net.backbone.forward_features(x)
        assert torch.equal(net.pools(maps), torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], dim=1))
        assert torch.equal(net(x), net.concat_head(net.pools(maps)))
    assert list(net.concat_head.state_dict())[-1] == "8.bias" and net.concat_head[8].out_features == CLASSES


@pytest.mark.parametrize(
    "params, theirs",
    [
        ({"model": "test_efficientnet"}, lambda k: k.removeprefix("backbone.")),
        (
            {"model": "test_efficientnet", "head": "concat"},
            lambda k: (
                k.replace("backbone.", "0.model.", 1)
                if k.startswith("backbone.")
                else k.replace("concat_head.", "1.", 1)
            ),
        ),
    ],
)
def test_timm_and_fastai_keys_are_accepted(params: dict[str, Any], theirs: Any) -> None:
    own = list(models.build("timm", params, CLASSES).state_dict())
    assert list(models.rename("timm", params, {theirs(k): 0 for k in own})) == own
    assert theirs(own[0]) != own[0]


def test_fastai_2_heads_have_no_linear_bias() -> None:
    net = models.build("timm", {"model": "test_efficientnet", "head": "concat", "bias": False}, CLASSES)
    assert [k for k in net.state_dict() if k.startswith("concat_head") and k.endswith("bias")] == [
        "concat_head.2.bias", "concat_head.6.bias"]  # the batch norms


# Sed

def test_clip_and_frame_wise_outputs() -> None:
    net = models.build("sed", {"model": "resnet10t", "bins": 64}, CLASSES).eval()
    x = picture(1, 64, 200, rows=2)
    with torch.no_grad():
        clip, frames = net.clip_and_frames(x)
        assert torch.equal(net(x), clip)
    assert clip.shape == (2, CLASSES) and frames.shape == (2, CLASSES, 200)
    # A weighted mean of its frames
    assert (frames.amin(-1) <= clip).all() and (clip <= frames.amax(-1)).all()
    assert len(frames[0, 0].unique()) == 7  # 200 frames at stride 32, rounded up


def test_sed_scores_of_one_net_agree() -> None:
    nets = {s: models.build("sed", {"model": "test_efficientnet", "bins": 32, "score": s}, CLASSES).eval()
            for s in ("clip", "frame_max", "mean", "frames")}
    for net in nets.values():
        net.load_state_dict(nets["clip"].state_dict())
    x = picture(1, 32, 100, rows=3)
    with torch.no_grad():
        got = {s: net(x) for s, net in nets.items()}
        _, frames = nets["clip"].clip_and_frames(x)
    assert torch.equal(got["frame_max"], frames.amax(-1))
    assert torch.allclose(got["mean"], (got["clip"] + frames.amax(-1)) / 2)
    assert got["frames"].shape == (3, 4, CLASSES) and torch.equal(got["frames"].amax(1), got["frame_max"])


def test_the_attention_head_follows_its_formula() -> None:
    net = models.build("sed", {"model": "test_efficientnet", "bins": 32}, CLASSES).eval()
    x = torch.randn(2, net.fc1.in_features, 9)
    head = net.att_block
    with torch.no_grad():
        clip, frames = head(x)
        scores = F.conv1d(x, head.att.weight, head.att.bias).tanh().exp()
    assert torch.allclose(clip, (scores * frames).sum(-1) / scores.sum(-1), atol=1e-6)


@pytest.mark.parametrize("name, params, message", [
    ("timm", {"model": "resnet1"}, "nearest: resnet"),
    ("timm", {"model": "qqqqqqqq"}, "list_models"),
    ("timm", {}, "params.model is missing"),
    ("timm", {"model": "resnet10t", "head": "conat"}, "did you mean 'concat'"),
    ("timm", {"model": "resnet10t", "options": {"no_such": 1}}, "no_such"),
    ("sed", {"model": "resnet10t", "score": "max"}, "frame_max"),
    ("sed", {"model": "vit_tiny_patch16_224"}, "convolutional"),
])
def test_wrong_parameters_are_named(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        models.build(name, params, CLASSES)


# Timm where it is absent or half installed

def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_registry_does_not_import_timm() -> None:
    assert (
        python("import sys, kernel.models; print([m for m in ('timm', 'torchvision') if m in sys.modules])")
        == "[]"
    )


def test_a_torchvision_without_its_operators_is_enough() -> None:
    code = """
import sys, types
class Half:  # a torchvision whose first import fails as it does beside a torch of another build
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and not self.failed:
            self.failed = True
            raise RuntimeError("operator torchvision::nms does not exist")
    failed = False
sys.meta_path.insert(0, Half())
from kernel import models
print(type(models.build("timm", {"model": "resnet10t"}, 3)).__name__, sys.meta_path[0].failed)
"""
    assert python(code) == "TimmTagger True"


def test_a_missing_timm_is_named() -> None:
    code = """
import sys
sys.modules["timm"] = None
from kernel import models
from kernel.errors import SpecError
try:
    models.build("timm", {"model": "resnet18"}, 3)
except SpecError as error:
    print(error)
from kernel.models.__main__ import row
print(row("sed", models.FAMILIES["sed"])[-1])
"""
    lines = python(code).splitlines()
    assert len(lines) == 2 and all("pip install timm" in line for line in lines)
