"""Ensemble TOML + weights + kernel/ -> a Kaggle dataset folder and the kernel to push.

    python build_dataset.py ensembles/default.toml --out out --owner NAME --slug my-bundle
    python build_dataset.py --upload out
    python build_dataset.py --simulate-mount --out out

The work is done in builder/; this file reads the command line. `hourglass build` and `hourglass upload` are
the same.
"""
from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from builder import staging, watched
from kernel.errors import HourglassError

if TYPE_CHECKING:
    from builder import assembly

PROG = "build_dataset.py"
EXAMPLES = """examples:
  %(prog)s ensembles/default.toml --out out --owner NAME --slug my-bundle
  %(prog)s ensembles/mine.toml --weights my_checkpoints --owner NAME --competition birdclef-2025
  %(prog)s --simulate-mount --out out
  %(prog)s --upload out
"""
UPLOAD_EXAMPLES = """examples:
  %(prog)s out
  %(prog)s out --owner NAME --slug my-bundle --competition birdclef-2025
"""


def make_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The options, each with its default and unit in its help.

    prog  the command as it was typed
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(__doc__ or "").splitlines()[0],
        epilog=UPLOAD_EXAMPLES if prog.endswith(" upload") else EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("ensemble", type=Path, nargs="?", help="ensemble TOML (default: nothing is built)")
    add("--out", type=Path, default=Path("out"), metavar="DIR",
        help="results: DIR/bundle and DIR/push (default: out)")
    add("--owner", default="your-kaggle-name", help="Kaggle user name (default: a placeholder)")
    add("--slug", help="dataset and kernel slug (default: from the title)")
    add("--title", help="title of both (default: from the slug or the ensemble's name)")
    add("--licence", "--license", default="other", help="licence of the dataset (default: other)")
    add("--competition", help="competition slug to attach (default: FAT2019's, or none)")
    add("--machine", help="accelerator, e.g. NvidiaTeslaT4, or cpu (default: by the profile)")
    add("--weights", type=Path, metavar="DIR",
        help="folder of checkpoints: .safetensors, .pt, .pth, .bin, .onnx (default: weights/ beside the TOML,"
        " its folder, weights/ beside that one, weights/ of the repository)")
    add("--random-weights", action="store_true", help="fill members without weights, to time an ensemble")
    add("--costs", type=Path, metavar="JSON",
        help="report.json of a rehearsal: its seconds enter the manifest (default: estimated from the nets)")
    add("--wheels", choices=("openvino", "onnxruntime"),
        help="ship this back end's wheels (default: none, plain torch)")
    add("--export", choices=("onnx",), help="ship every net as a graph too (default: none)")
    add("--compare", type=Path, metavar="PAIRS.npz",
        help="clips and what your training code gave for them (default: nothing is compared)")
    add("--compare-tolerance", type=float, metavar="SHARE",
        help="largest difference, of an array's spread or of a score (default: 1e-3 and 1e-4)")
    add("--compare-allow", action="store_true", help="build although --compare differs")
    add("--sample", type=Path, metavar="CSV",
        help="the competition's sample submission; an ensemble that writes another form is refused (default: "
        "not checked)")
    add("--split", action="store_true",
        help="make two datasets, code and weights, so that a change of code uploads kilobytes (default: one)")
    add("--notebook", action="store_true", help="push a notebook, for competitions that take no script")
    add("--simulate-mount", action="store_true",
        help="prove that the kernel finds the bundle of --out on every mount")
    add("--upload", type=Path, metavar="OUT",
        help="upload OUT/bundle and push OUT/push with the kaggle client, as they are, or under --owner, "
        "--slug, --title and --competition (default: nothing is uploaded)")
    return parser


def read_arguments(arguments: list[str], prog: str = PROG) -> argparse.Namespace:
    """Parsed command line; ends the process with exit code 2 for bad arguments."""
    parser = make_parser(prog)
    chosen = parser.parse_args(arguments)
    if chosen.ensemble is None and not (chosen.simulate_mount or chosen.upload):
        parser.error("give an ensemble TOML, --simulate-mount or --upload OUT")
    return chosen


def build(chosen: argparse.Namespace) -> None:
    """Build, then say what was built and how to upload it."""
    from builder import assembly

    built = assembly.build(
        assembly.BuildRequest(
            ensemble=chosen.ensemble,
            out=chosen.out,
            owner=chosen.owner,
            slug=chosen.slug,
            title=chosen.title,
            licence=chosen.licence,
            competition=chosen.competition,
            machine=chosen.machine,
            weights=chosen.weights,
            random_weights=chosen.random_weights,
            costs=chosen.costs,
            back_end=chosen.wheels,
            export_onnx=chosen.export == "onnx",
            notebook=chosen.notebook,
            compare=chosen.compare,
            compare_tolerance=chosen.compare_tolerance,
            compare_allow=chosen.compare_allow,
            sample=chosen.sample,
            split=chosen.split,
        )
    )
    tell(built, chosen)


def tell(built: assembly.Built, chosen: argparse.Namespace) -> None:
    """What was built, and how to upload it."""
    from builder import assembly, attached, machines, metadata, upload
    from builder.kaggle_client import name_client

    size = sum(path.stat().st_size for path in (chosen.out / "bundle").iterdir())
    print(
        f"{chosen.out / 'bundle'}: bundle {built.manifest.bundle}, "
        f"{len(built.manifest.files) + assembly.OTHER_FILES} files, {size / 1e6:.1f} MB"
    )
    for line in attached.tell(chosen.out, built.manifest):
        print(line)
    if built.filled:
        print(
            f"RANDOM WEIGHTS in {len(built.filled)} nets ({', '.join(built.filled[:5])}...): "
            "for timing only, the scores mean nothing"
        )
    checked = upload.Checked(
        out=chosen.out,
        dataset=built.papers.dataset["id"],
        kernel=built.papers.kernel["id"],
        competition=built.papers.competition,
        weights=built.papers.weights["id"] if built.papers.weights else None,
    )
    commands = upload.list_commands(checked, name_client(os.environ))
    print("\n".join(["\nTo upload, wait, run and submit, pasted as one block:\n", *commands]))
    profile = built.manifest.ensemble.profile
    for note in (
        metadata.explain_competition(built.papers.competition, chosen.competition, profile),
        machines.explain_machine(built.papers.kernel.get("machine_shape")),
    ):
        if note:
            print(f"\n{note}.")
    if chosen.owner == assembly.PLACEHOLDER_OWNER:
        print("\nBuild again with --owner YOUR_KAGGLE_NAME before you upload.")


def send(chosen: argparse.Namespace) -> None:
    """Upload what lies in the folder, under the owner, slug, title and competition that are given."""
    from builder import metadata, readdress, upload

    owner = None if chosen.owner == metadata.PLACEHOLDER_OWNER else chosen.owner
    given = (owner, chosen.slug, chosen.title, chosen.competition)
    if any(given):
        for line in readdress.readdress(chosen.upload, *given):
            print(line)
    upload.upload(chosen.upload, os.environ)


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 1 refused with the reason on stderr, 128 + n ended by signal n."""
    chosen = read_arguments(arguments)
    before = staging.stamp(chosen.out)
    try:
        if chosen.ensemble is not None:
            build(chosen)
        if chosen.simulate_mount:
            from builder import mounts

            cases = mounts.simulate(chosen.out)
            print(mounts.table(cases))
            mounts.check(cases)
        if chosen.upload:
            send(chosen)
    except HourglassError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # What the system refused, with the file in question.
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        line, code = watched.tell_interrupt(error)
        print(f"{line}{tell_state(chosen, before)}", file=sys.stderr)
        return code
    return 0


def tell_state(chosen: argparse.Namespace, before: list[int]) -> str:
    """What an interrupted command leaves, in words.

    before  stamp of the results when it began
    """
    if chosen.ensemble is None:
        return "; what was uploaded until then is on Kaggle: run it again" if chosen.upload else ""
    if staging.stamp(chosen.out) == before:
        return f"; nothing was built, and what was in {chosen.out} before is untouched"
    return f"; the build in {chosen.out} is complete"


def run(arguments: list[str], prog: str = PROG) -> int:
    """Exit code of `main` in a process of its own, which a user's own file cannot end unnoticed."""
    chosen = read_arguments(arguments, prog)
    return watched.run(lambda: main(arguments), lambda: staging.sweep(chosen.out))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
