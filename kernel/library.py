"""The kernel as a function: a bundle and clips in, a table of scores out.

Owns `score`, and `listen`, which draws what a score came from: the input folder that a run wants, the
engine's process and what comes of its end. The engine is the bundle's own code, verified, in a process of its
own, so that its numbers are the kernel's to the last digit and a net that ends its process ends no notebook.
Nothing watches for a hang: that is the guard's.
"""
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from . import errors, spec
from . import limits as profiles
from .errors import BundleHashMismatch, BundleMissing, HourglassError, SampleMissing, SpecError
from .rehearsal import fake_kaggle
from .report import drawing, explanations
from .run import EXIT_VERDICT
from .scores import submission

NO_CLOCK_S = 30 * 86400.0  # a month: without `limits` a run takes the time that it takes
BACKENDS = ("auto", "torch", "fp32", "onnxruntime", "openvino")  # the guard's --backend
ATTEMPTS = 4  # a clip is given up after two crashes, so that this many bring a table past one such clip
TICK_S = 0.2
START = """
import ctypes, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the caller
sys.path.insert(0, sys.argv[1])
from kernel.run import main
main(sys.argv[2])
"""


def score(
    bundle: str | os.PathLike[str],
    clips: str | os.PathLike[str],
    *,
    names: Sequence[str] | pd.DataFrame | None = None,
    limits: str | None = None,
    device: str = "auto",
    backend: str = "auto",
    first: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores of clips by a built bundle: index = row id, columns = classes (or the one label column).

    bundle    folder that build_dataset.py wrote, or where it is attached
    clips     folder of the clips
    names     row ids to score, in this order, or a table with the ids in its first column: paths below
              `clips`, or ids of windows; None = every audio file below it, and every window of it
    limits    a named profile whose clock, memory, disk and cores hold; None: the bundle's, without a clock
    device    "auto", "cpu" or "cuda"
    backend   "auto", "torch", "fp32", "onnxruntime" or "openvino", as the kernel's --backend
    first     predict the first rows only, the others hold the prior; None = all
    progress  a bar, in a notebook or a terminal

    The values are those of submission.csv: f64, seven digits. `.attrs["report"]` is the run's report.json;
    its "broken_rows" names rows that hold the prior and why.

    Raises  BundleMissing, BundleHashMismatch, SpecError, SampleMissing, MemoryTooSmall, LimitError, ...: the
            kernel's own sentences; HourglassError when the engine dies again and again
    """
    where = _find_bundle(Path(bundle))
    text = (where / "manifest.json").read_bytes()
    manifest = spec.load_manifest(text)
    _check(device, backend, first, limits)
    allowed = profiles.limits(limits or manifest.ensemble.profile, None if limits else NO_CLOCK_S)
    folder = Path(clips).resolve()
    ids = _list_ids(folder, names, manifest.ensemble)
    with tempfile.TemporaryDirectory(prefix="hourglass-score-") as scratch:
        place = Path(scratch)
        for name in ("input", "state", "working"):
            (place / name).mkdir()
        fake_kaggle.write_sample(place / "input", ids, manifest.ensemble)
        _unpack(where, manifest, place / "code")
        (place / "state" / "manifest.json").write_bytes(text)
        order = _make_order(place, where, folder, allowed, device=device, backend=backend, first=first)
        rows = len(ids) if first is None else min(first, len(ids))
        _run(place, order, rows, len(manifest.nets), progress)
        table = _read(place / "working", manifest.ensemble.output.format == "label")
    _warn(table.attrs["report"])
    return table


def listen(
    bundle: str | os.PathLike[str], path: str | os.PathLike[str], *, device: str = "auto"
) -> pd.DataFrame:
    """What an ensemble hears in one clip, drawn: its spectrogram, its ten best classes over time where the
    nets tell, and what each member says.

    Returns  the ten best classes: the ensemble's scores and each member's (columns), `.attrs["disagree"]` the
             members whose own best class is another one; for a recording the windows are the columns

    Raises  what `score` raises; HourglassError without matplotlib
    """
    drawing.load_pyplot()  # before anything is scored
    clip = Path(path).resolve()
    if not clip.is_file():
        raise SampleMissing(f"{path}: no such file; give one audio file")
    ensemble = spec.load_manifest((_find_bundle(Path(bundle)) / "manifest.json").read_bytes()).ensemble
    names = fake_kaggle.row_ids(clip.name, clip, ensemble)
    table = score(bundle, clip.parent, names=names, device=device, progress=False)
    report = table.attrs["report"]
    if ensemble.windows is not None and ensemble.output.format != "label":
        best = table.max().sort_values(ascending=False).index[: explanations.CLASSES]
        shown = table[best].T
        drawing.draw_windows(clip, names, shown.to_numpy(), list(best), ensemble.windows.seconds)
        return shown
    told = [spec.load(explanations.Explanation, row) for row in report.get("explained", ())]
    if not told:
        reason = report["broken_rows"].get(names[0]) or "its bundle is older than this; build it again"
        raise HourglassError(f"{clip}: nothing was heard: {reason}")
    drawing.draw_told(clip, told[0])
    found = pd.DataFrame({member.name: member.scores for member in told[0].members}, index=told[0].classes)
    found.index.name = told[0].row
    if ensemble.output.format != "label":
        found.insert(0, "ensemble", table.iloc[0][list(told[0].classes)].to_numpy())
    found.attrs["disagree"] = {member.name: member.best for member in told[0].dissenters}
    return found


def _check(device: str, backend: str, first: int | None, limits: str | None = None) -> None:
    """Raises SpecError or HourglassError for what no run can be made of."""
    if not sys.platform.startswith("linux"):
        raise HourglassError("the kernel runs on Linux only, as Kaggle does; use WSL or a container")
    if device not in ("auto", "cpu", "cuda"):
        raise SpecError(f"device: {device!r} is unknown; choose one of: auto, cpu, cuda")
    if backend not in BACKENDS:
        raise SpecError(f"backend: {backend!r} is unknown; choose one of: {', '.join(BACKENDS)}")
    if first is not None and (isinstance(first, bool) or not isinstance(first, int) or first < 1):
        raise SpecError(f"first: {first!r} is no count; give a whole number of at least 1")
    if limits is not None and not isinstance(limits, str):
        raise SpecError(f"limits: {limits!r} is no name; give a profile, for instance 'fat2019'")


def _find_bundle(folder: Path) -> Path:
    """The folder itself, or the one called `bundle` in it."""
    for place in (folder, folder / "bundle"):
        if (place / "manifest.json").is_file():
            return place.resolve()
    raise BundleMissing(f"{folder}: no manifest.json in it; give the folder that build_dataset.py wrote")


def _list_ids(
    folder: Path, names: Sequence[str] | pd.DataFrame | None, ensemble: spec.Ensemble
) -> list[str]:
    """The rows that are wanted."""
    if names is None:
        files = _find_audio(folder)
        return [id for path in files
                for id in fake_kaggle.row_ids(path.relative_to(folder).as_posix(), path, ensemble)]
    if isinstance(names, pd.DataFrame) and not len(names.columns):
        raise SpecError("names: a table without a column; give the row ids in the first one")
    given = names.iloc[:, 0] if isinstance(names, pd.DataFrame) else names
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        what = "one text" if isinstance(given, (str, bytes)) else "no list"
        raise SpecError(f"names: {given!r} is {what}; give a list of row ids")
    wanted = list(given)
    for number, id in enumerate(wanted):
        if pd.api.types.is_scalar(id) and pd.isna(id):
            raise SpecError(f"names: no id at position {number} (counted from 0); drop empty cells first")
    ids = [str(id) for id in wanted]
    if not ids or not folder.is_dir():
        raise SampleMissing("names: no row; give at least one id" if not ids else f"{folder}: no such folder")
    return ids


def _find_audio(folder: Path) -> list[Path]:
    """Audio files below the folder; an empty one is named as the argument, not as a rehearsal's option."""
    try:
        return fake_kaggle.find_audio(folder)
    except SampleMissing as error:
        raise SampleMissing(str(error).removeprefix("--clips ")) from error


def _unpack(bundle: Path, manifest: spec.Manifest, target: Path) -> None:
    """The bundle's own code, once its bytes are those that the manifest names."""
    path = bundle / manifest.wheel.file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleMissing(f"{path}: cannot be read ({error.strerror}); build the bundle again") from error
    if hashlib.sha256(data).hexdigest() != manifest.wheel.entry.sha256:
        raise BundleHashMismatch(f"{path}: not the bytes that manifest.json names; build the bundle again")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(target)


def _make_order(
    place: Path, bundle: Path, clips: Path, allowed: profiles.Limits, *, device: str, backend: str,
    first: int | None
) -> dict[str, Any]:
    """run.json as the guard writes it; kernel.order.Order has the same keys."""
    path = place / "input" / "sample_submission.csv"
    sample = submission.read_sample(path)
    return {
        "bundle": str(bundle),
        "manifest": str(place / "state" / "manifest.json"),
        "input": str(place / "input"),
        "clips": str(clips),
        "working": str(place / "working"),
        "state": str(place / "state"),
        "sample": {"path": str(path), "header": sample.header, "ids": sample.ids},
        "limits": asdict(allowed),
        "marks": asdict(profiles.marks(allowed.seconds)),
        "started": time.monotonic(),
        "started_boot": time.clock_gettime(time.CLOCK_BOOTTIME),
        "offset_s": 0.0,
        "device": device,
        "loaders": None,
        "first": first,
        "attempt": 1,
        **({"backend": backend} if backend != "auto" else {}),  # older bundles know no such key
    }


def _environment(cores: int, state: Path) -> dict[str, str]:
    """What the guard gives the engine: thread counts decide about last digits."""
    threads = str(max(1, min(cores, len(os.sched_getaffinity(0)))))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "KAGGLE"))}
    caches = dict.fromkeys(("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCH_HOME"),
                           str(state / "cache"))
    return kept | caches | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": "1",
        "NUMEXPR_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "THP_MEM_ALLOC_ENABLE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _run(place: Path, order: dict[str, Any], rows: int, nets: int, progress: bool) -> None:
    """Engines until one finishes.

    Raises  what the engine's verdict names, or HourglassError with its last lines
    """
    state = place / "state"
    said = ""
    with _bar(rows, nets, progress) as show:
        for attempt in range(1, ATTEMPTS + 1):
            (state / "run.json").write_text(json.dumps({**order, "attempt": attempt}))
            status, said = _one_life(place, order["limits"]["cores"], show)
            if status == 0:
                return
            if status == EXIT_VERDICT:
                verdict = json.loads((state / "verdict.json").read_bytes())
                kind = getattr(errors, verdict["code"], HourglassError)
                raise kind(verdict["message"])
    raise HourglassError(f"the engine died {ATTEMPTS} times, last with exit code {status}:\n{said}")


def _one_life(place: Path, cores: int, show: Any) -> tuple[int, str]:
    """(exit code, last lines) of one engine; it is ended when the caller is interrupted."""
    with open(place / "said.txt", "w+b") as told:
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", START, str(place / "code"), str(place / "state")],
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=subprocess.STDOUT,
            cwd=place / "state",
            env=_environment(cores, place / "state"),
            start_new_session=True,
        )
        try:
            while True:
                try:
                    status = process.wait(TICK_S)
                    break
                except subprocess.TimeoutExpired:
                    show(_beat(place / "state"))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        show(_beat(place / "state"))
        told.seek(0)
        return status, "\n".join(told.read().decode("utf-8", "replace").splitlines()[-15:])


def _beat(state: Path) -> dict[str, Any]:
    """What the engine's heartbeat says; nothing while it is not written."""
    try:
        beat = json.loads((state / "heartbeat.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return beat if isinstance(beat, dict) else {}


@contextmanager
def _bar(rows: int, nets: int, wanted: bool) -> Iterator[Any]:
    """A function that shows a heartbeat: scores of nets in rows. Silent where there is no tqdm."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without widgets gets the bar as text
            from tqdm.auto import tqdm
    except ImportError:
        wanted = False
    if not wanted:
        yield lambda beat: None
        return
    with tqdm(total=rows * nets, unit="score", desc=f"{rows} rows x {nets} nets", mininterval=1.0) as bar:

        def show(beat: dict[str, Any]) -> None:
            done = int(beat.get("scores", nets * int(beat.get("scored_rows", 0))))  # older bundles count rows
            bar.update(max(0, min(done, bar.total) - bar.n))

        yield show


def _read(working: Path, labels: bool) -> pd.DataFrame:
    """submission.csv as a table; ids and labels stay the text that they are."""
    header, *rows = submission.read_rows(working / "submission.csv")
    table = pd.DataFrame(
        {name: [row[at] if labels else float(row[at]) for row in rows]
         for at, name in enumerate(header) if at},
        index=pd.Index([row[0] for row in rows], name=header[0], dtype=object),
    )
    table.attrs["report"] = json.loads((working / "report.json").read_bytes())
    return table


def _warn(report: dict[str, Any]) -> None:
    """A word on rows that are not what the whole ensemble says: nothing degraded is silent."""
    for key, text in (("prior_rows", "hold only the prior"), ("partial_rows", "were scored by a part of the "
                                                              "ensemble")):
        if report[key]:
            where = 'see "broken_rows" and "faults" in .attrs["report"]'
            warnings.warn(f"{report[key]} of {report['rows']} rows {text}; {where}", stacklevel=3)
