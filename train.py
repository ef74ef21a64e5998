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
from kernel.units import parse_count  # noqa: E402
from training import pipeline  # noqa: E402

PROG = "train.py"
EXAMPLES = """examples:
  %(prog)s training/recipes/default.toml --data my_clips
  %(prog)s my_recipe.toml --data my_clips --out out/train/mine --scale small
"""


def make_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The options, each with its default and unit in its help.

    prog  the command as it was typed
    """
    about = __doc__ or ""
    parser = argparse.ArgumentParser(
        prog=prog, description=about.splitlines()[0], epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("recipe", type=Path, help="training/recipes/NAME.toml or your own (required)")
    add("--data", type=Path, required=True, metavar="DIR", help="folder of the labelled clips (required)")
    add("--out", type=Path, metavar="DIR",
        help="run folder: checkpoints, logs, curves (default: out/train/NAME)")
    add("--into", type=Path, metavar="DIR",
        help="folder for weights/ and ensembles/ (default: the repository's own for a recipe with "
        "ship = true, else the run folder)")
    add("--scale", choices=("published", "small"), default="published",
        help="small: the recipe's [small] values, for a CPU (default: published)")
    add("--threads", type=parse_count, default=2, metavar="N",
        help="torch threads; last digits depend on it (default: 2)")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--pseudo", type=Path, metavar="NPZ",
        help="scores of recordings by training.score: they train as soft labels (default: none)")
    add("--soundscapes", type=Path, metavar="DIR",
        help="folder of those recordings, with --pseudo (default: none)")
    add("--round", type=parse_count, default=1, metavar="N",
        help="which of the recipe's [[pseudo]] tables is meant, from 1 (default: 1)")
    add("--no-write", action="store_true", help="train only; write no TOML, weights or card")
    return parser


def main(arguments: list[str], prog: str = PROG) -> int:
    """Exit code: 0 done, 2 wrong recipe or data."""
    options = make_parser(prog).parse_args(arguments)
    command = shlex.join(["python", "train.py", str(options.recipe), "--data", str(options.data)])
    if options.pseudo:
        command += " " + shlex.join(["--pseudo", str(options.pseudo), "--soundscapes",
                                     str(options.soundscapes), "--round", str(options.round)])
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
                pseudo=options.pseudo,
                soundscapes=options.soundscapes,
                round=options.round,
            )
        )
    except HourglassError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # What the system refused, with the file in question.
        print(f"train.py: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
