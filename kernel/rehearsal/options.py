"""The command line of a rehearsal.

Owns its options, their defaults and units. What they do is command's.
"""
import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from ..units import parse_bytes, parse_count, parse_seconds
from .forecast import SLOWDOWN


def _factor(text: str) -> float:
    """A finite number above 0."""
    value = parse_seconds(text)  # the same grammar: a plain number
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0")
    return value


EXAMPLES = """examples:
  %(prog)s --bundle out/bundle --clips my_clips
  %(prog)s --bundle out/bundle --clips my_clips --expect-clips 3361 --expect-hours 9.7 --limits fat2019
  %(prog)s --bundle out/bundle --clips my_clips --repeat-to 3361 --labels my_labels.csv
"""


def make_parser(prog: str = "infer_kernel.py --rehearse") -> argparse.ArgumentParser:
    """The options, each with its default and unit in its help; `prog` is the command as it was typed."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Run the pushed kernel under its limits.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--bundle", type=Path, required=True, metavar="DIR", help="the bundle, as it was built (required)")
    add("--attached", type=Path, metavar="DIR",
        help="files of other datasets and models, as Kaggle mounts them: datasets/OWNER/SLUG/FILE (default: "
        "bundle-attached beside the bundle, links that the build left)")
    add("--clips", type=Path, required=True, metavar="DIR",
        help="folder of clips; they become the test folder (required)")
    add("--working", type=Path, default=Path("out/rehearsal"), metavar="DIR",
        help="folder for submission.csv, report.json and report.html (default: out/rehearsal)")
    add("--folder", type=Path, default=Path(), help=argparse.SUPPRESS)  # the caller's, where paths begin
    add("--limits", metavar="PROFILE",
        help="fat2019, code-gpu, code-cpu or birdclef-cpu90 (default: the bundle's)")
    add("--seconds", type=parse_seconds, help="time budget in seconds (default: the profile's)")
    add("--ram", type=parse_bytes, metavar="14GB", help="memory limit (default: the profile's)")
    add("--disk", type=parse_bytes, metavar="5GB", help="disk limit (default: the profile's)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"),
        help="where the nets run (default: auto, what works)")
    add("--backend", default="auto", choices=("auto", "torch", "fp32", "onnxruntime", "openvino"),
        help="how nets run (default: auto, the fastest that agrees)")
    add("--loaders", type=parse_count, metavar="N", help="loader threads (default: one per core)")
    add("--first", type=parse_count, metavar="N",
        help="predict the first N rows only; the others keep the prior (default: all)")
    add("--strict", action="store_true", help="exit 1 when anything was degraded")
    _add_expected(add)
    add("--labels", type=Path, metavar="CSV",
        help="fname (or row_id) and labels of clips or windows: lwlrap, macro ROC-AUC, padded cMAP, and the "
        "worst predictions (default: no score)")
    add("--sample", type=Path, metavar="CSV",
        help="the competition's sample submission: refuse an ensemble that writes another form (default: "
        "sample_submission.csv in --clips or beside it, if there is one)")
    add("--simulate-commit", action="store_true",
        help="first run with an empty test folder, as at 'Save Version', then rehearse on --clips")
    return parser


def _add_expected(add: Callable[..., object]) -> None:
    """The options of the forecast: what the hidden test set holds, and on what machine."""
    add("--expect-clips", type=parse_count, metavar="N",
        help="rows of the hidden test set, FAT2019: 3361 (default: as many as --clips gives)")
    add("--expect-hours", type=_factor, metavar="HOURS",
        help="hours of audio in the hidden test set, FAT2019: 9.7 (default: by the clips' mean length)")
    add("--repeat-to", type=parse_count, metavar="N",
        help="repeat the clips up to this number, cut or repeated to --expect-hours if that is given: a "
        "full-size run from few clips (default: each clip once)")
    add("--slowdown", type=_factor, default=SLOWDOWN, metavar="FACTOR",
        help=f"how many times slower the other machine is (default: {SLOWDOWN:g})")


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The rehearsal's command line; a size, time or count that is none ends the process with exit code 2."""
    chosen = make_parser().parse_args(list(arguments))
    for name in ("bundle", "attached", "clips", "working", "labels", "sample"):
        if getattr(chosen, name) is not None:
            setattr(chosen, name, (chosen.folder / getattr(chosen, name)).absolute())
    return chosen
