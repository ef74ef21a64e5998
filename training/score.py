"""Score many clips offline with a built bundle: pseudo-labels, an archive, someone else's data.

    python -m training.score out/bundle --clips FOLDER --out scores.npz [--jobs 4] [--dask tcp://HOST:8786]

Owns the sharding. Each shard is one run of the very same kernel over its own clips (a sample submission and
the clip folder); the rows of all shards are merged by id. With a bundle of [windows] the rows are the windows
of every recording, and a shard holds whole recordings. On several machines joblib hands the shards to Dask
(extra `dask`); bundle and clips must then have the same path everywhere. A finished shard is kept beside
--out until all are: the same command again goes on where it stopped.
"""
import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed, parallel_config

from kernel.errors import HourglassError, SpecError
from kernel.files import write_atomically
from kernel.sound.clips import SUFFIXES
from kernel.sound.decode import probe
from kernel.sound.rows import clip_ids, window_ids
from kernel.spec import Windows, load_manifest

from .data import read_csv

RETRIES = 2  # of a shard whose kernel run was killed
KERNEL = Path(__file__).resolve().parents[1] / "infer_kernel.py"


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What every shard needs.

    clips    folder of the clips; ids are paths below it
    command  starts one kernel run; --bundle, --input, --working, --seconds and --device are added
    seconds  limit of one shard; device: auto, cpu or cuda
    windows  the bundle's [windows]: rows are windows of recordings; None = clips
    """

    bundle: Path
    clips: Path
    classes: tuple[str, ...]
    command: tuple[str, ...] = (sys.executable, str(KERNEL))
    seconds: float = 3600.0
    device: str = "auto"
    windows: Windows | None = None


def list_ids(clips: Path) -> list[str]:
    """Paths of all audio files below a folder, sorted.

    Raises  SpecError when there is none
    """
    ids = sorted(p.relative_to(clips).as_posix() for p in clips.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not ids:
        raise SpecError(f"{clips}: no audio file below it; check --clips")
    return ids


def list_windows(clips: Path, windows: Windows) -> list[str]:
    """Row ids of all windows of all recordings below a folder, by recording; unreadable ones are named.

    Raises  SpecError when there is none, or two recordings have one stem
    """
    known: dict[str, str] = {}
    ids: list[str] = []
    for name in list_ids(clips):
        stem = Path(name).stem
        if stem in known:
            raise SpecError(f"{clips}: {known[stem]!r} and {name!r} would give the same row ids; rename one")
        known[stem] = name
        clip = probe(stem, clips / name, [clips])
        if clip.error is not None or not clip.rate:
            print(f"training.score: left out: {name}: {clip.error or 'no header'}", file=sys.stderr)
            continue
        ids += window_ids(stem, clip.samples_claimed / clip.rate, windows)
    if not ids:
        raise SpecError(f"{clips}: no recording below it can be read; check --clips")
    return ids


def score_shard(scoring: Scoring, ids: Sequence[str]) -> np.ndarray:
    """f64[n, K] of the given rows, by one kernel run; NaN rows for clips that the run could not predict.

    A kernel run that something killed is started again.

    Raises  SpecError when the run fails
    """
    for retry in range(RETRIES + 1):
        try:
            return _run_shard(scoring, ids)
        except KernelKilled as error:
            if retry == RETRIES:
                raise
            print(f"training.score: {error}; started again", file=sys.stderr)
    raise AssertionError("the last retry returns or raises")


class KernelKilled(SpecError):
    """A signal ended a kernel run: its rows can be had by another run."""


def _run_shard(scoring: Scoring, ids: Sequence[str]) -> np.ndarray:
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
        if done.returncode < 0:
            raise KernelKilled(f"{where}: the kernel run was killed by signal {-done.returncode}")
        if done.returncode or not (working / "report.json").exists():
            raise SpecError(f"{where}: exit {done.returncode}; {(done.stderr or done.stdout)[-500:].strip()}")
        table = pd.read_csv(working / "submission.csv", dtype={"fname": str}).set_index("fname")
        report = json.loads((working / "report.json").read_text(encoding="utf-8"))
    values = table.loc[list(ids), list(scoring.classes)].to_numpy(np.float64)
    lost = unpredicted(report, ids)
    if report.get("partial_rows"):
        told = f"{report['partial_rows']} rows were scored by a part of the ensemble"
        print(f"training.score: {where}: {told}", file=sys.stderr)
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
              and fault["code"] != "ClipTooLong"} | set(report.get("broken_rows", {}))
    return [i for i, id in enumerate(ids) if id in broken]


def split(scoring: Scoring, ids: Sequence[str], shards: int) -> list[list[str]]:
    """At most `shards` parts of the rows, in their order; the windows of a recording stay together."""
    whole: dict[str, list[str]] = {}
    for id in ids:
        names = clip_ids([id], scoring.windows)
        if not names:
            raise SpecError(f"row {id!r} is no window of the bundle's pattern; give ids that are")
        whole.setdefault(names[0], []).append(id)
    parts = np.array_split(np.arange(len(whole)), min(shards, len(whole)))
    listed = list(whole.values())
    return [[id for place in part for id in listed[int(place)]] for part in parts]


def score(
    scoring: Scoring,
    ids: Sequence[str],
    shards: int,
    jobs: int,
    backend: AbstractContextManager[Any] | None = None,
    keep: Path | None = None,
) -> np.ndarray:
    """f64[N, K] of all ids in their order: `shards` kernel runs, `jobs` at a time.

    backend  a joblib.parallel_config(...) in whose context the shards run (Dask); None = local processes
    keep     folder of the shards that are done: each is written there when it is, and read instead of run
    Raises  SpecError when a shard fails
    """
    parts = split(scoring, ids, shards)
    files = [keep / f"{_name_part(scoring, part)}.npy" if keep else None for part in parts]
    found = [np.load(file) if file and file.exists() else None for file in files]
    open_parts = [i for i, values in enumerate(found) if values is None]
    # Each shard is a process of its own already: threads wait for them.
    with backend or parallel_config(backend="threading"):
        run = Parallel(n_jobs=jobs, return_as="generator_unordered")
        for i, values in run(delayed(_numbered)(scoring, parts[i], i) for i in open_parts):
            found[i] = values
            file = files[i]
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, _npy(values))
    places = {id: i for i, id in enumerate(id for part in parts for id in part)}
    return np.concatenate([values for values in found if values is not None])[[places[id] for id in ids]]


def _npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def _numbered(scoring: Scoring, ids: Sequence[str], number: int) -> tuple[int, np.ndarray]:
    return number, score_shard(scoring, ids)


def _name_part(scoring: Scoring, ids: Sequence[str]) -> str:
    """Name of a shard's file: another bundle, folder or list of rows has another one."""
    manifest = scoring.bundle / "manifest.json"
    built = manifest.read_bytes() if manifest.exists() else b""
    told = json.dumps([str(scoring.clips.resolve()), hashlib.sha256(built).hexdigest(), *ids])
    return hashlib.sha256(told.encode()).hexdigest()[:24]


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


def _list_rows(scoring: Scoring, labels: Path | None) -> tuple[list[str], np.ndarray]:
    """Row ids, and their targets f32[N, K], all zero without a table of labels. Raises SpecError."""
    if labels is None:
        folder, windows = scoring.clips, scoring.windows
        ids = list_ids(folder) if windows is None else list_windows(folder, windows)
        return ids, np.zeros((len(ids), len(scoring.classes)), np.float32)
    clips = read_csv(labels.parent, scoring.classes, csv=labels.name)
    return list(clips.ids), clips.targets


def _write(out: Path, scoring: Scoring, ids: np.ndarray, targets: np.ndarray, values: np.ndarray) -> None:
    """The rows that have scores, as `training.relabel` and `train.py --pseudo` read them."""
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        ids=ids,
        classes=np.array(scoring.classes),
        targets=targets,
        scores=values.astype(np.float32),
        windows=np.array(json.dumps(scoring.windows and asdict(scoring.windows))),
    )
    write_atomically(out, stream.getvalue())


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
        ensemble = load_manifest((options.bundle / "manifest.json").read_bytes()).ensemble
        classes = ensemble.classes
        scoring = Scoring(
            bundle=options.bundle,
            clips=options.clips,
            classes=classes,
            seconds=options.seconds,
            device=options.device,
            windows=ensemble.windows,
        )
        ids, targets = _list_rows(scoring, options.labels)
        backend = dask_backend(options.dask) if options.dask is not None else None
        out = options.out if options.out.suffix == ".npz" else Path(f"{options.out}.npz")
        keep = out.with_name(f"{out.name}.parts")
        values = score(scoring, ids, options.shards, options.jobs, backend, keep)
    except (HourglassError, OSError) as error:
        print(f"training.score: {error}", file=sys.stderr)
        return 2
    good = np.isfinite(values).all(axis=1)
    _write(out, scoring, np.array(ids)[good], targets[good], values[good])
    shutil.rmtree(keep, ignore_errors=True)
    kind = "clips" if scoring.windows is None else "windows"
    print(f"{int(good.sum())} of {len(ids)} {kind} scored; written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
