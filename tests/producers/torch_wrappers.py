"""One small net saved by each program that wraps PyTorch nets, and what the net itself answers.

    python torch_wrappers.py WAY FOLDER

Runs in an environment of its own, with the program and without this project.
"""
import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_net import SmallNet
from torch import nn


def _ready_torchvision() -> None:
    """Beside a torch for CPUs of another index torchvision's own operators do not load: they are declared."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _ready_torchvision.library = library  # type: ignore[attr-defined]  # They last as long as it does.


def _randomise(net: nn.Module) -> None:
    """Weights and statistics such as training leaves: nothing at its initial value."""
    torch.manual_seed(5)
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point() and value.dim() < 2:
            value.add_(0.2 * torch.randn_like(value))


def plain(net: nn.Module, folder: Path) -> None:
    torch.save(net.state_dict(), folder / "net.pth")


def data_parallel(net: nn.Module, folder: Path) -> None:
    torch.save(nn.DataParallel(net).state_dict(), folder / "net.pth")


def distributed(net: nn.Module, folder: Path) -> None:
    """DistributedDataParallel of one process, inside torch.compile as its own pages show."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
    wrapped = nn.parallel.DistributedDataParallel(net)
    torch.save({"epoch": 3, "state_dict": torch.compile(wrapped).state_dict()}, folder / "net.pth")
    dist.destroy_process_group()


def compiled(net: nn.Module, folder: Path) -> None:
    torch.save({"net": torch.compile(net).state_dict(), "best_score": torch.tensor(0.8)}, folder / "net.pth")


def averaged(net: nn.Module, folder: Path) -> None:
    """AveragedModel: the average is what is scored, the raw weights lie beside it."""
    from torch.optim.swa_utils import AveragedModel

    ema = AveragedModel(net)
    _randomise(ema)
    net.load_state_dict(ema.module.state_dict())
    torch.save(ema.state_dict(), folder / "net.pth")


def lightning(net: nn.Module, folder: Path) -> None:
    """A LightningModule with the net as `net`, a loss with weights of its own, and hyperparameters."""
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader, TensorDataset

    class System(pl.LightningModule):
        def __init__(self, rate: float, names: list[str]) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = net
            self.loss = nn.BCEWithLogitsLoss(pos_weight=torch.ones(5) * 2)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=1e-4)

    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(4, 1, 16, 16), torch.rand(4, 5)), 2)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
                         enable_checkpointing=True, default_root_dir=folder, enable_model_summary=False)
    trainer.fit(System(0.1, ["a", "b"]), data)
    trainer.save_checkpoint(folder / "net.ckpt")


def argus(net: nn.Module, folder: Path) -> None:
    """argus's own save: nn_state_dict and params."""
    import argus as package

    class Tagger(package.Model):
        nn_module = SmallNet
        optimizer = torch.optim.Adam
        loss = nn.BCEWithLogitsLoss

    model = Tagger({"nn_module": {}, "optimizer": {"lr": 0.001}, "device": "cpu"})
    model.nn_module.load_state_dict(net.state_dict())
    model.save(str(folder / "net.pth"))


def accelerate(net: nn.Module, folder: Path) -> None:
    from accelerate import Accelerator

    helper = Accelerator(cpu=True)
    prepared, optimizer = helper.prepare(net, torch.optim.Adam(net.parameters()))
    helper.save_state(str(folder / "state"))
    (folder / "state" / "model.safetensors").rename(folder / "net.safetensors")


def ignite(net: nn.Module, folder: Path) -> None:
    """ignite's Checkpoint handler, with optimizer and trainer."""
    from ignite.engine import Engine, Events
    from ignite.handlers import Checkpoint, DiskSaver

    trainer = Engine(lambda engine, batch: None)
    keep = {"net": net, "optimizer": torch.optim.Adam(net.parameters()), "trainer": trainer}
    saver = DiskSaver(str(folder / "kept"), create_dir=True, require_empty=False)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, Checkpoint(keep, saver, filename_prefix="best"))
    trainer.run([0], max_epochs=1)
    next((folder / "kept").iterdir()).rename(folder / "net.pt")


def timm_saver(net: nn.Module, folder: Path) -> None:
    """timm's CheckpointSaver: .pth.tar with the average of the weights beside them, which is wanted here."""
    _timm()
    from timm.utils import CheckpointSaver, ModelEmaV3

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ema = ModelEmaV3(net)
    _randomise(ema.module)
    saver = CheckpointSaver(net, optimizer, args=argparse.Namespace(model="small"), model_ema=ema,
                            checkpoint_dir=str(folder), recovery_dir=str(folder))
    saver.save_checkpoint(0, 0.5)
    (folder / "checkpoint-0.pth.tar").rename(folder / "net.pth.tar")
    net.load_state_dict(ema.module.state_dict())


def _timm() -> Any:
    import timm

    return timm


def graph(net: nn.Module, folder: Path, dynamo: bool) -> None:
    """torch.onnx.export; the newer exporter leaves the weights in net.onnx.data."""
    x = torch.randn(2, 1, 128, 90)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            free = {"x": {0: torch.export.Dim("batch"), 3: torch.export.Dim("frames")}}
            torch.onnx.export(net, (x,), folder / "net.onnx", dynamo=True, dynamic_shapes=free,
                              external_data=True, verbose=False)
        else:
            torch.onnx.export(net, (x,), folder / "net.onnx", dynamo=False, input_names=["x"],
                              dynamic_axes={"x": {0: "batch", 3: "frames"}})


WAYS: dict[str, Callable[[nn.Module, Path], None]] = {
    "plain": plain,
    "data_parallel": data_parallel,
    "distributed": distributed,
    "compiled": compiled,
    "averaged": averaged,
    "lightning": lightning,
    "argus": argus,
    "accelerate": accelerate,
    "ignite": ignite,
    "timm_saver": timm_saver,
    "onnx": lambda net, folder: graph(net, folder, dynamo=False),
    "onnx_dynamo": lambda net, folder: graph(net, folder, dynamo=True),
}


def make_timm(classes: int) -> nn.Module:
    return _timm().create_model("resnet10t", num_classes=classes, in_chans=1)


def make_fastai(classes: int) -> Any:
    """A learner of fastai's own (version 1 or 2) around its resnet34 and its default head."""
    import fastai

    if fastai.__version__.startswith("1."):
        from fastai.vision import Learner, create_cnn_model
        from torchvision.models import resnet34

        return Learner(_fastai_data(), create_cnn_model(resnet34, classes, pretrained=False))
    from fastai.vision.all import DataLoaders, resnet34, vision_learner

    pairs = [(torch.randn(3, 32, 32), torch.rand(classes)) for _ in range(4)]
    dls = DataLoaders.from_dsets(pairs, pairs, bs=2, num_workers=0)
    loss = nn.BCEWithLogitsLoss()
    return vision_learner(dls, resnet34, pretrained=False, normalize=False, n_out=classes, loss_func=loss)


def _fastai_data() -> Any:
    from fastai.basic_data import DataBunch
    from torch.utils.data import TensorDataset

    pairs = TensorDataset(torch.randn(4, 3, 32, 32), torch.rand(4, 5))
    return DataBunch.create(pairs, pairs, bs=2, num_workers=0)


def _spread(net: nn.Module, inputs: list[torch.Tensor]) -> None:
    """Scales the last layer so that logits spread about 1: a score of 0 or 1 would hide any difference."""
    last = [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        std = torch.cat([net.eval()(x) for x in inputs]).std()
        for value in last.parameters():
            value.div_(std)


def main(way: str, place: str) -> None:
    """Writes the checkpoint and scores.npy, f64[clips, K]: sigmoids of what the producer's net answers."""
    _ready_torchvision()
    folder = Path(place)
    task = json.loads((folder / "task.json").read_text())
    with np.load(folder / "inputs.npz") as data:
        inputs = [torch.from_numpy(data[f"net/{clip}/x"]) for clip in range(task["clips"])]
    if way == "fastai":
        learner = make_fastai(task["classes"])
        net = learner.model
        _randomise(net)
        _spread(net, inputs)
        # As training does; version 1 wants a learning rate.
        learner.create_opt(*((1e-3,) if hasattr(learner, "data") else ()))
        learner.path, learner.model_dir = folder, "."
        learner.save("net")
    else:
        net = make_timm(task["classes"]) if way == "timm" else SmallNet(task["classes"])
        _randomise(net)
        _spread(net, inputs)
        WAYS["plain" if way == "timm" else way](net.eval(), folder)
    with torch.no_grad():
        scores = torch.cat([torch.sigmoid(net.eval()(x)) for x in inputs])
    np.save(folder / "scores.npy", scores.double().numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
