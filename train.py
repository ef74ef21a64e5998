"""Train one recipe: labelled clips become weights, out-of-fold scores, an ensemble TOML and a model card.

    python train.py training/recipes/default.toml --data my_clips

A killed run started again with the same --out goes on where it stopped. `--scale small` shrinks a published
recipe for a CPU.
"""
from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

# Threads that wait must sleep: on a shared machine spinning ones cost more than they win. Read when torch
# loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from kernel.errors import HourglassError  # noqa: E402
from training import pipeline  # noqa: E402


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 wrong recipe or data."""
    about = __doc__ or ""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="training/recipes/NAME.toml")
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled clips")
    parser.add_argument(
        "--out", type=Path, help="run folder: checkpoints, logs, curves (default out/train/NAME)"
    )
    parser.add_argument(
        "--into",
        type=Path,
        help="folder for weights/ and ensembles/ (default: the repository's own for a "
        "recipe with ship = true, else the run folder)",
    )
    parser.add_argument(
        "--scale",
        choices=("published", "small"),
        default="published",
        help="small: the recipe's [small] values",
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="torch threads (default 2); last digits depend on it"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--no-write", action="store_true", help="train only; write no TOML, weights or card")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "train.py", str(options.recipe), "--data", str(options.data)])
    try:
        pipeline.train(
            pipeline.TrainRequest(
                recipe=options.recipe,
                data=options.data,
                out=options.out,
                into=options.into,
                small=options.scale == "small",
                threads=options.threads,
                device=options.device,
                write=not options.no_write,
                command=command,
            )
        )
    except HourglassError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
