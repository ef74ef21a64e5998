"""python train.py RECIPE.toml --data FOLDER [--out FOLDER]: labelled clips become weights, out-of-fold scores and a model card.

A killed run started again with the same --out goes on where it stopped.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from kernel.errors import HourglassError
from training import data, recipe, run


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 wrong recipe or data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled clips")
    parser.add_argument("--out", type=Path, help="run folder (default out/train/NAME)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads; results depend on it in the last digits")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        plan = recipe.load_recipe(options.recipe)
        classes = recipe.read_classes(plan, options.recipe)
        clips = data.read_clips(plan.data, options.data, classes)
        out = options.out or Path("out/train") / plan.name
        device = "cuda" if torch.cuda.is_available() else "cpu"
        started = time.monotonic()
        work = run.Run(plan, clips, out, device, options.threads,
                       lambda text: print(f"{time.monotonic() - started:7.0f} s  {text}", flush=True))
        for net in work.train():
            print(f"{net.member}.{net.fold} done", flush=True)
    except HourglassError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
