"""Ensemble TOML + weights + kernel/ -> a Kaggle dataset folder and the kernel to push.

    python build_dataset.py ensembles/default.toml --out out --owner NAME --slug my-bundle
    python build_dataset.py --upload out
    python build_dataset.py --simulate-mount --out out

The work is done in builder/; this file reads the command line.
"""
from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from kernel.errors import HourglassError


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """Parsed command line; ends the process with exit code 2 for bad arguments."""
    parser = argparse.ArgumentParser(
        prog="build_dataset.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("ensemble", type=Path, nargs="?", help="ensemble TOML")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="results: OUT/bundle and OUT/push (default: out)"
    )
    parser.add_argument("--owner", default="your-kaggle-name", help="Kaggle user name")
    parser.add_argument("--slug", help="dataset and kernel slug (default: from the title)")
    parser.add_argument("--title", help="title of both (default: from the slug or the ensemble's name)")
    parser.add_argument(
        "--licence", "--license", default="other", help="licence of the dataset (default: other)"
    )
    parser.add_argument("--competition", help="competition slug to attach (default: by the profile)")
    parser.add_argument("--machine", help="accelerator, e.g. NvidiaTeslaT4, or cpu (default: by the profile)")
    parser.add_argument(
        "--weights", type=Path, help="folder of checkpoints (.safetensors, .pt, .pth, .bin, .onnx)"
    )
    parser.add_argument(
        "--random-weights", action="store_true", help="fill members without weights, to time an ensemble"
    )
    parser.add_argument(
        "--costs", type=Path, help="report.json of a rehearsal: its seconds enter the manifest"
    )
    parser.add_argument("--wheels", choices=("openvino", "onnxruntime"), help="ship this back end's wheels")
    parser.add_argument("--export", choices=("onnx",), help="export every net as a graph for that back end")
    parser.add_argument("--notebook", action="store_true", help="push the kernel as a notebook")
    parser.add_argument(
        "--simulate-mount", action="store_true", help="prove that the kernel finds OUT/bundle on every mount"
    )
    parser.add_argument(
        "--upload",
        type=Path,
        metavar="OUT",
        help="upload OUT/bundle and push OUT/push with the kaggle client",
    )
    chosen = parser.parse_args(arguments)
    if chosen.ensemble is None and not (chosen.simulate_mount or chosen.upload):
        parser.error("give an ensemble TOML, --simulate-mount or --upload OUT")
    return chosen


def build(chosen: argparse.Namespace) -> None:
    """Build, then say what was built and how to upload it."""
    from builder import assembly, upload

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
        )
    )
    size = sum(path.stat().st_size for path in (chosen.out / "bundle").iterdir())
    print(
        f"{chosen.out / 'bundle'}: bundle {built.manifest.bundle}, "
        f"{len(built.manifest.files) + assembly.OTHER_FILES} files, {size / 1e6:.1f} MB"
    )
    if built.filled:
        print(
            f"RANDOM WEIGHTS in {len(built.filled)} nets ({', '.join(built.filled[:5])}...): "
            "for timing only, the scores mean nothing"
        )
    commands = upload.list_commands(chosen.out, chosen.owner, built.papers.slug, built.papers.competition)
    print("\n".join(["\nTo upload, wait, run and submit:\n", *commands]))
    if chosen.owner == assembly.PLACEHOLDER_OWNER:
        print("\nBuild again with --owner YOUR_KAGGLE_NAME before you upload.")


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 1 refused with the reason on stderr."""
    chosen = read_arguments(arguments)
    try:
        if chosen.ensemble is not None:
            build(chosen)
        if chosen.simulate_mount:
            from builder import mounts

            cases = mounts.simulate(chosen.out)
            print(mounts.table(cases))
            mounts.check(cases)
        if chosen.upload:
            from builder import upload

            upload.upload(chosen.upload, os.environ, home=Path.home())
    except HourglassError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # What the system refused, with the file in question.
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
