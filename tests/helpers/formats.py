"""Checkpoints written by the programs that people train with, through build and kernel: `make formats`.

    python -m tests.helpers.formats [--only NAME ...] [--work DIR] [--environments DIR] [--write]

Owns the table of formats. For each: an environment with the producing package, random weights from the
producer, its own answers on three clips, then a bundle of its checkpoint, the kernel on the same clips,
and the largest difference of a score. `--write` puts the table into docs/formats.md. What cannot be
installed is said. Producers are in tests/producers and know nothing of this project.
"""
from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from builder import assembly
from kernel import spec
from kernel.errors import HourglassError
from kernel.inference.recipe import build_recipe
from kernel.sound.decode import probe
from kernel.sound.filter_banks import mel_weights
from kernel.sound.loading import load_wave
from kernel.sound.recording import Recordings
from kernel.sound.rows import Row
from tests.helpers import REPOSITORY, TESTS
from tests.helpers.ensemble_runs import make_input, read_scores, run_clean
from training.text_formats import markdown_table

PRODUCERS = TESTS / "producers"
PAGE = REPOSITORY / "docs" / "formats.md"
PLACE = re.compile(r"<!-- table formats -->\n.*?<!-- end -->", re.DOTALL)
SECONDS = [1.3, 5.4, 7.9]
LARGEST = 2e-5  # A larger difference of a score is a failure.
TORCH = "torch==2.13.0"
GAIN = 1.3
ENVIRONMENTS: dict[str, tuple[str, ...]] = {  # name -> what is installed into it
    "torch": (TORCH, "numpy", "pytorch-lightning", "timm", "accelerate", "pytorch-ignite", "onnx",
              "onnxscript"),
    "argus02": (TORCH, "numpy", "pytorch-argus==0.2.0"),
    "argus11": (TORCH, "numpy", "pytorch-argus==1.1.0"),
    "fastai1": (TORCH, "numpy", "fastai==1.0.61", "setuptools<81"),  # It imports pkg_resources.
    "fastai2": (TORCH, "numpy", "fastai"),
    "tf": ("tensorflow-cpu", "tf-keras"),
    "keras3": ("tensorflow-cpu", "keras"),
}


@dataclass(frozen=True, kw_only=True)
class Format:
    """One row of the table.

    environment  key of ENVIRONMENTS
    script       file of tests/producers, and `way`, its first argument
    package      whose version is shown
    writes       how the producer saves, in its own words
    member       lines of the member in the ensemble TOML; None = `ensemble`
    ensemble     a published ensemble, one fold of it
    wheels       back end whose wheels the bundle needs
    notes        file that a published ensemble's one member takes instead
    """

    environment: str
    script: str
    way: str
    package: str
    writes: str
    member: str | None = None
    ensemble: str | None = None
    wheels: str | None = None
    notes: str = ""


OWN_NET = 'family = "small_net.py:SmallNet"\n'
TORCH_FORMATS = {
    "plain": ("torch", "`torch.save(net.state_dict())`", 'weights = "net.pth"'),
    "data_parallel": ("torch", "DataParallel", 'weights = "net.pth"'),
    "distributed": ("torch", "DistributedDataParallel in torch.compile, `state_dict`", 'weights = "net.pth"'),
    "compiled": ("torch", "torch.compile, as `net` beside a score", 'weights = "net.pth"'),
    "averaged": ("torch", "AveragedModel (EMA, SWA)", 'weights = "net.pth"\ndrop = ["n_averaged"]'),
    "lightning": ("pytorch-lightning", "`Trainer.save_checkpoint`",
                  'weights = "net.ckpt"\ndrop = ["loss.*"]'),
    "accelerate": ("accelerate", "`save_state`", 'weights = "net.safetensors"'),
    "ignite": ("pytorch-ignite", "`Checkpoint` with optimizer and trainer", 'weights = "net.pt"'),
    "timm_saver": ("timm", "`CheckpointSaver`, `.pth.tar`, the averaged weights",
                   'weights = "net.pth.tar"\nweights_key = "state_dict_ema"'),
}
FORMATS: dict[str, Format] = {
    **{name: Format(environment="torch", script="torch_wrappers.py", way=name, package=package, writes=writes,
                    member=OWN_NET + lines) for name, (package, writes, lines) in TORCH_FORMATS.items()},
    **{f"argus{version}": Format(environment=f"argus{version}", script="torch_wrappers.py", way="argus",
                                 package="pytorch-argus", writes="`model.save`",
                                 member=OWN_NET + 'weights = "net.pth"') for version in ("02", "11")},
    **{f"fastai{version}": Format(
        environment=f"fastai{version}", script="torch_wrappers.py", way="fastai", package="fastai",
        writes="`learn.save` with the optimizer, resnet34 and its default head", member=(
            f'family = "resnet_concat"\nparams = {{ depth = 34{bias} }}\nweights = "net.pth"\n'
            'finish = ["repeat"]')) for version, bias in (("1", ""), ("2", ", bias = false"))},
    "timm": Format(
        environment="torch", script="torch_wrappers.py", way="timm", package="timm", writes="`create_model`",
        member='family = "timm"\nparams = { model = "resnet10t", in_chans = 1 }\nweights = "net.pth"'),
    **{name: Format(environment="torch", script="torch_wrappers.py", way=name, package="torch", writes=writes,
                    member='family = "onnx"\nweights = "net.onnx"', wheels="onnxruntime")
       for name, writes in (("onnx", "`torch.onnx.export(dynamo=False)`"),
                            ("onnx_dynamo", "`torch.onnx.export(dynamo=True)`, weights in `net.onnx.data`"))},
    "qrfaction": Format(
        environment="tf", script="keras_originals.py", way="qrfaction", package="tf-keras",
        ensemble="qrfaction",
        writes="six nets with CuDNNGRU and mel layers, and their stacker, `save_weights`, `.h5`"),
    "jeong": Format(
        environment="tf", script="keras_originals.py", way="jeong", package="tf-keras", ensemble="jeong2018",
        writes="nets at three rates, batch norm over the wave, `save_weights`, `.h5`"),
    **{name: Format(
        environment="keras3", script="keras_originals.py", way="keras3", package="keras", writes=writes,
        ensemble="qrfaction_plain", notes=file) for name, writes, file in (
            ("keras3_weights", "`save_weights`, `.weights.h5`", "net.weights.h5"),
            ("keras3_whole", "`model.save`, `.h5`", "net.h5"))},
}


@dataclass
class Outcome:
    """What came of one format."""

    name: str
    versions: str = ""
    difference: float | None = None
    said: list[str] = field(default_factory=list)
    problem: str = ""
    rounding: float | None = None  # Largest distance of the producer's single from its own double precision

    @property
    def fine(self) -> bool:
        return self.difference is not None and self.difference <= LARGEST


def ready_environment(name: str, root: Path) -> Path:
    """Python of an environment with the packages, made where it is missing.

    Raises  subprocess.CalledProcessError when pip cannot install them
    """
    folder = root / name
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *ENVIRONMENTS[name]], check=True,
                       capture_output=True, text=True)
        (folder / ".ready").touch()
    return python


def write_ensemble(form: Format, folder: Path) -> spec.Ensemble:
    """The ensemble of a format as folder/mine.toml, with scores as columns and one fold of each net."""
    if form.ensemble == "qrfaction_plain":
        body = (REPOSITORY / "ensembles" / "qrfaction.toml").read_text(encoding="utf-8")
        head, first = body.split("[[members]]")[:2]
        first = re.sub(r'weights = ".*"', f'weights = "{form.notes}"', first).replace("weight = 0.0", "")
        text = head + "[[members]]" + first.replace("params = {", "params = { width = 0.25,")
    elif form.ensemble:
        text = (REPOSITORY / "ensembles" / f"{form.ensemble}.toml").read_text(encoding="utf-8")
        text = re.sub(r"\[output\]\n(?:.+\n)+", "", text)
    else:
        shutil.copy(PRODUCERS / "small_net.py", folder)
        text = ('name = "mine"\nclasses = ["a", "b", "c", "d", "e"]\n[frontends.mel]\npreset = "argus"\n'
                f'[[members]]\nname = "net"\nfrontend = "mel"\n{form.member}\n')
        finish = '{ kind = "scale", divide = 100 }'
        text = (text.replace('finish = ["repeat"]', f'finish = ["repeat", {finish}]') if "finish" in text
                else text + f"finish = [{finish}]\n")
    text = re.sub(r"folds = \[.*\]", "folds = [0]", text)
    text = text.replace('"classes/', f'"{REPOSITORY}/ensembles/classes/')
    text = text.replace('"prior_', f'"{REPOSITORY}/ensembles/prior_')
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    return spec.load_ensemble(folder / "mine.toml")


def write_task(form: Format, ensemble: spec.Ensemble, folder: Path, clips: Sequence[Path]) -> None:
    """inputs.npz and task.json for the producer: what each net is given of each clip.

    A net that carries its mel layer gets the wave, as its original did; any other what the finish makes.
    """
    arrays: dict[str, np.ndarray] = {}
    members = []
    carries_mel = form.environment == "tf"
    for member in ensemble.members:
        recipe = build_recipe(ensemble, member)
        for number, path in enumerate(clips):
            row = Row(id=path.name, clip=probe(path.name, path, path.parent))
            for name, stage in recipe.stages.items():
                wave = load_wave(row, stage.fe.rate, Recordings(ensemble.longest_s)).samples
                cut = np.asarray(stage.cut(stage.fe.of_row(wave, row.id), row.id), np.float32)
                key = f"{member.name}/{number}/{name}"
                arrays[key] = cut if carries_mel else stage.finish(torch.from_numpy(cut)).numpy()
        rate = recipe.stages[recipe.timed].fe.rate
        arrays[f"{member.name}/bank"] = mel_weights(rate, 1024, 64, 0.0, rate / 2)
        members.append({"name": member.name, "params": member.params, "weights": member.weights_file(0),
                        "inputs": list(recipe.stages), "gain": GAIN})
    task: dict[str, Any] = {"clips": len(clips), "classes": len(ensemble.classes), "members": members}
    for stacker in ensemble.stackers:
        task |= {"average_weights": stacker.average_weights, "stacker": stacker.weights_file(0)}
    np.savez(folder / "inputs.npz", **arrays)
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")


def try_format(name: str, work: Path, environments: Path) -> Outcome:
    """A format from its producer to the kernel's submission, in a fresh folder."""
    form = FORMATS[name]
    outcome = Outcome(name=name)
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        python = ready_environment(form.environment, environments)
        shown = f"import importlib.metadata as m; print(m.version({form.package!r}))"
        outcome.versions = subprocess.run(
            [python, "-c", shown], check=True, capture_output=True, text=True
        ).stdout.strip()
        ensemble = write_ensemble(form, folder)
        ids = make_input(folder, ensemble, SECONDS)
        write_task(form, ensemble, folder, [folder / "in" / "test" / id for id in ids])
        subprocess.run([python, PRODUCERS / form.script, form.way, folder], check=True, capture_output=True,
                       text=True, cwd=PRODUCERS)
    except subprocess.CalledProcessError as error:
        outcome.problem = f"not made here: {(error.stderr.strip().splitlines() or ['no message'])[-1][:300]}"
        return outcome
    try:
        built = assembly.build(
            assembly.BuildRequest(ensemble=folder / "mine.toml", out=folder / "built", owner="someone",
                                  weights=folder, back_end=form.wheels), say=lambda _: None)
    except HourglassError as error:
        outcome.problem = f"refused: {error}"
        return outcome
    outcome.said = list(dict.fromkeys(sentence for net in built.manifest.nets for sentence in net.said))
    if (rounding := folder / "rounding.json").exists():
        outcome.rounding = max(json.loads(rounding.read_text(encoding="utf-8")).values())
    scores = read_scores(run_clean(folder, folder / "built" / "bundle", seconds=400.0))
    wanted = np.load(folder / "scores.npy")
    outcome.difference = float(np.abs(np.stack([scores[id] for id in ids]) - wanted).max())
    return outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    rows = []
    for outcome in outcomes:
        form = FORMATS[outcome.name]
        came = f"{outcome.difference:.1e}" if outcome.difference is not None else outcome.problem
        came += f" ({outcome.rounding:.1e})" if outcome.rounding is not None else ""
        # One net of qrfaction, a quarter as wide, stands for the nets of Keras 3.
        member = form.member or f"ensembles/{str(form.ensemble).removesuffix('_plain')}.toml"
        keys = [line for line in member.splitlines() if not line.startswith(("family = \"small", "finish"))]
        said = "; ".join(outcome.said) or "-"
        shown = "; ".join(f"`{key}`" for key in keys)
        rows.append((f"{form.package} {outcome.versions}", form.writes, shown, came, said))
    header = ("written by", "how", "in the TOML", "largest difference", "what the build says")
    return markdown_table(header, rows)


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 when every format that could be made agrees."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--work", type=Path, default=REPOSITORY / "out" / "formats")
    parser.add_argument("--environments", type=Path, default=REPOSITORY / "out" / "formats" / "environments")
    parser.add_argument("--write", action="store_true", help="put the table into docs/formats.md")
    chosen = parser.parse_args(arguments)
    outcomes = []
    for name in chosen.only:
        outcome = try_format(name, chosen.work.resolve(), chosen.environments.resolve())
        came = f"{outcome.difference:.1e}" if outcome.difference is not None else outcome.problem
        came += f" ({outcome.rounding:.1e})" if outcome.rounding is not None else ""
        print(f"{'agrees ' if outcome.fine else 'DIFFERS'} {name:16} {came}", flush=True)
        for sentence in outcome.said:
            print(f"        {sentence}")
        outcomes.append(outcome)
    print("\n" + table(outcomes))
    if chosen.write:
        page = PAGE.read_text(encoding="utf-8")
        filled = f"<!-- table formats -->\n{table(outcomes)}\n<!-- end -->"
        PAGE.write_text(PLACE.sub(lambda _: filled, page), encoding="utf-8")
    return 0 if all(outcome.fine for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
