"""The command `hourglass`: the scripts under one name, from any folder.

    hourglass build ensembles/mine.toml --weights my_checkpoints --owner YOUR_NAME
    hourglass rehearse --bundle out/bundle --clips my_clips
    hourglass score out/bundle my_clips
    hourglass train my_recipe.toml --data my_clips
    hourglass upload out --owner YOUR_NAME

`pip install .` brings it. Owns the choice of the script and the options of `score`, which has none; every
other option is the script's own, and so is what it does.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

HERE = Path(__file__).resolve().parent
PACKAGED = ("ensembles", "training/recipes")  # TOMLs that come with it, named as they are in the repository
SCORE_EXAMPLES = """examples:
  %(prog)s out/bundle my_clips
  %(prog)s out/bundle my_clips --names sample_submission.csv --out scores.csv --limits fat2019
"""


def make_score_parser(prog: str = "hourglass score") -> argparse.ArgumentParser:
    """The options of `score`, each with its default and unit in its help."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Score clips by a built bundle: the kernel's own numbers, as a CSV.",
        epilog=SCORE_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", type=Path, help="folder that the build wrote (required)")
    add("clips", type=Path, help="folder of clips (required)")
    add("--names", type=Path, metavar="CSV",
        help="table with a header and the row ids in its first column (default: every clip below the folder)")
    add("--out", type=Path, default=Path("scores.csv"), metavar="CSV",
        help="where the scores are written (default: scores.csv)")
    add("--limits", metavar="PROFILE",
        help="a profile whose clock, memory, disk and cores hold (default: the bundle's, without a clock)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"),
        help="where the nets run (default: auto, what works)")
    add("--first", type=int, metavar="N",
        help="predict the first N rows only; the others keep the prior (default: all)")
    return parser


def build(arguments: list[str]) -> int:
    """`build_dataset.py`."""
    import build_dataset

    return build_dataset.run(find_packaged(arguments), "hourglass build")


def rehearse(arguments: list[str]) -> int:
    """`infer_kernel.py --rehearse`: the pushed kernel beside the bundle, or the one that comes with this."""
    from kernel.rehearsal import options

    chosen = options.make_parser("hourglass rehearse").parse_args(arguments)
    pushed = chosen.bundle.absolute().parent / "push" / "infer_kernel.py"
    script = pushed if pushed.is_file() else HERE / "infer_kernel.py"
    print(f"hourglass: rehearsing {script}", flush=True)
    os.execv(sys.executable, [sys.executable, str(script), "--rehearse", *arguments])


def score(arguments: list[str]) -> int:
    """`kernel.score`, written as submission.csv is."""
    chosen = make_score_parser().parse_args(arguments)
    from kernel import score as score_clips
    from kernel.errors import HourglassError
    from kernel.files import write_atomically
    from kernel.scores import submission

    try:
        names = None
        if chosen.names is not None:
            names = [row[0] for row in submission.read_rows(chosen.names)][1:]
        table = score_clips(chosen.bundle, chosen.clips, names=names, limits=chosen.limits,
                            device=chosen.device, first=chosen.first)
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(chosen.out, as_csv(table))
    except HourglassError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # what the system refused, with the file in question
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"{chosen.out}: {len(table)} rows, {len(table.columns)} columns")
    return 0


def as_csv(table: pd.DataFrame) -> bytes:
    """The table of `kernel.score` as submission.csv has it, to the byte."""
    from kernel.scores.submission import NUMBER, quote

    lines = [",".join(map(quote, [str(table.index.name), *table.columns]))]
    for id, values in zip(table.index, table.itertuples(index=False), strict=True):
        cells = (quote(value) if isinstance(value, str) else NUMBER % value for value in values)
        lines.append(",".join([quote(id), *cells]))
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def train(arguments: list[str]) -> int:
    """`train.py`."""
    import train as script

    return script.main(find_packaged(arguments), "hourglass train")


def upload(arguments: list[str]) -> int:
    """`build_dataset.py --upload`: its first word is the folder that was built, `out` without one."""
    import build_dataset

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--upload", *arguments]
    elif not {"-h", "--help"}.intersection(arguments):
        arguments = ["--upload", "out", *arguments]
    return build_dataset.run(arguments, "hourglass upload")


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "build": ("ensemble and weights become a dataset and the kernel to push", build),
    "rehearse": ("run the pushed kernel under the competition's limits", rehearse),
    "score": ("score a folder of clips by a built bundle", score),
    "train": ("labelled clips become weights", train),
    "upload": ("send a build to Kaggle", upload),
}


def find_packaged(arguments: Sequence[str]) -> list[str]:
    """The arguments; a TOML that is not here and comes with Hourglass under that name is taken from there."""
    found = []
    for word in arguments:
        path = HERE / word
        packaged = any(path.is_relative_to(HERE / folder) for folder in PACKAGED) and ".." not in path.parts
        if word.endswith(".toml") and packaged and not Path(word).exists() and path.is_file():
            print(f"hourglass: no {word} here; taking the one that comes with Hourglass, {path}", flush=True)
            word = str(path)
        found.append(word)
    return found


def make_parser() -> argparse.ArgumentParser:
    """The command itself: which script, and nothing else."""
    about = "\n".join(f"  {name:<10}{words}" for name, (words, _) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="hourglass", formatter_class=argparse.RawDescriptionHelpFormatter, usage="hourglass COMMAND ...",
        description="Trained audio taggers to a scored submission inside one Kaggle kernel hour.\n\n" + about,
        epilog="`hourglass COMMAND --help` has the options of each, with examples.",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of the chosen script; 2 for a command that there is not."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = make_parser().parse_args(given[:1])
    _, run = COMMANDS[chosen.command]
    return run(given[1:])


if __name__ == "__main__":
    sys.exit(main())
