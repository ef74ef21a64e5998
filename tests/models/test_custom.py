"""Nets from a user's own file: built, given what they do not declare, and refused by name."""
from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from kernel import models
from kernel.errors import SpecError
from kernel.models import measure
from tests.helpers import REPOSITORY

CLASSES = 6
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
    assert not module.maskable and module.output == "logits"
    assert module.min_frames == 1 and module.fixed_frames is None
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


def test_an_own_file_that_imports_timm_works_where_torchvision_came_without_operators(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(textwrap.dedent("""
        import timm
        from torch import nn
        class MyNet(nn.Module):
            def __init__(self, classes):
                super().__init__()
                self.net = timm.create_model("resnet10t", num_classes=classes, in_chans=1)
            def forward(self, x):
                return self.net(x)
    """))
    code = f"""
import sys
class Half:  # a torchvision whose first import fails as it does beside a torch of another build
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and not self.failed:
            self.failed = True
            raise RuntimeError("operator torchvision::nms does not exist")
    failed = False
sys.meta_path.insert(0, Half())
from kernel import models
print(type(models.build({str(tmp_path / "mine.py")!r} + ":MyNet", {{}}, 3)).__name__, sys.meta_path[0].failed)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "MyNet True", done.stderr


def test_an_own_net_brings_what_it_imports_from_beside_it(tmp_path: Path) -> None:
    (tmp_path / "widths.py").write_text("WIDTH = 5\n")
    path = tmp_path / "my_model.py"
    path.write_text("from widths import WIDTH\n" + textwrap.dedent(OWN).replace("width=3", "width=WIDTH"))
    assert models.build(f"{path}:MyNet", {}, CLASSES).fc.in_features == 5


def test_the_spectrogram_transformer_of_the_examples_runs() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    path = REPOSITORY / "ensembles" / "examples" / "ast_net.py"
    net = models.build(f"{path}:AST", {"layers": 1, "width": 48, "heads": 4}, CLASSES).eval()
    assert net(torch.zeros(1, 1, 1024, 128)).shape == (1, CLASSES) and net.fixed_frames == 1024
