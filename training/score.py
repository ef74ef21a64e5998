"""Score many clips offline with a built bundle: pseudo-labels, an archive, someone else's data.

    python -m training.score out/bundle --clips FOLDER --out scores.npz [--jobs 4] [--dask tcp://HOST:8786]

Owns the sharding. Each shard is one run of the very same kernel over its own clips (a sample submission and
the clip folder); the rows of all shards are merged by id. On several machines joblib hands the shards to Dask
(extra `dask`); bundle and clips must then have the same path everywhere.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed, parallel_config

from kernel.errors import HourglassError, SpecError
from kernel.sound.clips import SUFFIXES
from kernel.spec import load_manifest

from .data import read_csv

KERNEL = Path(__file__).resolve().parents[1] / "infer_kernel.py"


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What every shard needs.

    clips    folder of the clips; ids are paths below it
    command  starts one kernel run; --bundle, --input, --working, --seconds and --device are added
    seconds  limit of one shard; device: auto, cpu or cuda
    """

    bundle: Path
    clips: Path
    classes: tuple[str, ...]
    command: tuple[str, ...] = (sys.executable, str(KERNEL))
    seconds: float = 3600.0
    device: str = "auto"


def list_ids(clips: Path) -> list[str]:
    """Paths of all audio files below a folder, sorted.

    Raises  SpecError when there is none
    """
    ids = sorted(p.relative_to(clips).as_posix() for p in clips.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not ids:
        raise SpecError(f"{clips}: no audio file below it; check --clips")
    return ids


def score_shard(scoring: Scoring, ids: Sequence[str]) -> np.ndarray:
    """f64[n, K] of the given clips, by one kernel run; NaN rows for clips that the run could not predict.

    Raises  SpecError when the run fails
    """
    with tempfile.TemporaryDirectory(prefix="hourglass-shard-") as folder:
        given = Path(folder, "input")
        working = Path(folder, "working")
        given.mkdir()
        working.mkdir()
        sample = pd.DataFrame(0, index=list(ids), columns=list(scoring.classes))
        sample.to_csv(given / "sample_submission.csv", index_label="fname", lineterminator="\n")
        options = {"--bundle": scoring.bundle.resolve(), "--input": given, "--working": working,
                   "--clips": scoring.clips.resolve(), "--seconds": scoring.seconds,
                   "--device": scoring.device}
        command = [*scoring.command, *(str(part) for option in options.items() for part in option)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        where = f"shard of {len(ids)} clips from {ids[0]!r}"
        if done.returncode or not (working / "report.json").exists():
            raise SpecError(f"{where}: exit {done.returncode}; {(done.stderr or done.stdout)[-500:].strip()}")
        table = pd.read_csv(working / "submission.csv", dtype={"fname": str}).set_index("fname")
        report = json.loads((working / "report.json").read_text(encoding="utf-8"))
    values = table.loc[list(ids), list(scoring.classes)].to_numpy(np.float64)
    lost = unpredicted(report, ids)
    if len(lost) != report["prior_rows"]:
        raise SpecError(
            f"{where}: {report['prior_rows']} rows hold the prior, but only {len(lost)} clips are named as "
            "broken; the time limit was too short: raise --seconds or --shards"
        )
    values[lost] = np.nan
    return values


def unpredicted(report: Mapping[str, Any], ids: Sequence[str]) -> list[int]:
    """Positions of the clips that a kernel report names as broken."""
    broken = {str(fault["where"]) for fault in report["faults"] if fault["code"].startswith("Clip")
              and fault["code"] != "ClipTooLong"}
    return [i for i, id in enumerate(ids) if id in broken]


def score(
    scoring: Scoring,
    ids: Sequence[str],
    shards: int,
    jobs: int,
    backend: AbstractContextManager[Any] | None = None,
) -> np.ndarray:
    """f64[N, K] of all ids in their order: `shards` kernel runs, `jobs` at a time.

    backend  a joblib.parallel_config(...) in whose context the shards run (Dask); None = local processes
    Raises  SpecError when a shard fails
    """
    parts = [list(part) for part in np.array_split(np.asarray(ids, dtype=object), min(shards, len(ids)))]
    with backend or nullcontext():
        found = Parallel(n_jobs=jobs)(delayed(score_shard)(scoring, part) for part in parts)
    return np.concatenate(found)


@contextmanager
def dask_backend(address: str | None) -> Iterator[None]:
    """joblib over the Dask cluster at `address`, or, without an address, over the client that exists.

    Raises  SpecError without dask
    """
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise SpecError("--dask: dask is not installed; pip install 'hourglass[dask]'") from error
    with Client(address) if address else nullcontext(), parallel_config(backend="dask"):
        yield


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 done, 2 a shard failed or files are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m training.score", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument(
        "--labels", type=Path, help="CSV (fname,labels): only these clips, and their labels go into the file"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1, help="kernel runs at a time")
    parser.add_argument("--seconds", type=float, default=3600.0, help="limit of one shard")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dask", help="address of a Dask scheduler")
    options = parser.parse_args(arguments)
    try:
        classes = load_manifest((options.bundle / "manifest.json").read_bytes()).ensemble.classes
        scoring = Scoring(
            bundle=options.bundle,
            clips=options.clips,
            classes=classes,
            seconds=options.seconds,
            device=options.device,
        )
        if options.labels:
            clips = read_csv(options.labels.parent, classes, csv=options.labels.name)
            ids = list(clips.ids)
            targets = clips.targets
        else:
            ids = list_ids(options.clips)
            targets = np.zeros((len(ids), len(classes)), np.float32)
        backend = dask_backend(options.dask) if options.dask is not None else None
        values = score(scoring, ids, options.shards, options.jobs, backend)
    except (HourglassError, OSError) as error:
        print(f"training.score: {error}", file=sys.stderr)
        return 2
    good = np.isfinite(values).all(axis=1)
    np.savez_compressed(
        options.out,
        ids=np.array(ids)[good],
        classes=np.array(classes),
        targets=targets[good],
        scores=values[good].astype(np.float32),
    )
    print(f"{int(good.sum())} of {len(ids)} clips scored; written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
