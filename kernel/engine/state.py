"""Everything one attempt at a run works with, opened once from the guard's run.json.

Owns the set-up: manifest, bundle, devices, rows, recipes, board and store. After this a run is a list of nets
and a list of rows. Does not run anything (steps) or decide what runs (engine, plan).
"""
from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import spec
from ..bundle import Bundle, open_bundle
from ..cache.store import Store, StoreLimits
from ..errors import ClipError, ClipQuarantined, HourglassError
from ..inference import backends
from ..inference import net as predict
from ..limits import Limits
from ..memory import Meter
from ..report.recorder import Recorder
from ..scores import blend
from ..sound import decode
from ..sound.clips import find_clips
from . import plan
from .journal import Heartbeat, Journal

MAX_SECONDS, MAX_SECONDS_WINDOWED = 60.0, 900.0  # DESIGN 5
# per second of audio, decode + front end with two loaders, before anything is measured: performance.md 1
LOADING_S = 0.004
LEAST_RESERVE_SHARE = 4  # a batch may reserve at most a quarter of the RAM
SIDE_SHARE = 0.1  # of the RAM that forwards side by side may take together; a larger one runs alone


@dataclass
class Timing:
    """Least-squares fit of seconds = a x rows + b x frames over everything a net was timed on."""

    rows_rows: float = 0.0
    rows_frames: float = 0.0
    frames_frames: float = 0.0
    rows_s: float = 0.0
    frames_s: float = 0.0
    rows: int = 0
    frames: float = 0.0
    seconds: float = 0.0

    def add(self, rows: int, frames: float, seconds: float) -> None:
        """One timed piece of work."""
        self.rows_rows += rows * rows
        self.rows_frames += rows * frames
        self.frames_frames += frames * frames
        self.rows_s += rows * seconds
        self.frames_s += frames * seconds
        self.rows, self.frames, self.seconds = self.rows + rows, self.frames + frames, self.seconds + seconds

    def solve(self) -> tuple[float, float]:
        """(a, b), both >= 0; scaled so that the measured work itself comes out exactly."""
        det = self.rows_rows * self.frames_frames - self.rows_frames ** 2
        a = b = 0.0
        if det > 1e-9 * self.rows_rows * self.frames_frames:
            a = max(0.0, (self.rows_s * self.frames_frames - self.frames_s * self.rows_frames) / det)
            b = max(0.0, (self.frames_s * self.rows_rows - self.rows_s * self.rows_frames) / det)
        if a + b == 0.0:
            b = self.seconds / max(1.0, self.frames)
        scale = self.seconds / max(1e-12, a * self.rows + b * self.frames)
        return a * scale, b * scale

    def merge(self, other: Timing) -> None:
        """Take another net's work in."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(kw_only=True)
class NetState:
    """How far one net is.

    widths   frames of a forward -> [cells, padded cells, forwards] in all
    fresh    as timing, of rows in a width that the net met first: torch prepares its kernels for each width
             once
    skipped  row id -> why this net cannot do that row
    failed   why the net was dropped, or None
    """

    net_id: str
    part: spec.Member | spec.Stacker
    rows: int = 0
    seconds: float = 0.0
    loading_s: float = 0.0
    batches: int = 0
    cells: int = 0
    padded_cells: int = 0
    widths: dict[int, list[int]] = field(default_factory=dict)
    tiled_rows: int = 0
    setup_s: float = 0.0
    timing: Timing = field(default_factory=Timing)
    fresh: Timing = field(default_factory=Timing)
    path: str = ""
    failed: str | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def stacker(self) -> bool:
        return isinstance(self.part, spec.Stacker)


@dataclass(kw_only=True)
class Scene:
    """The run's parts.

    wanted   row numbers to predict (not broken, not beyond --first), in running order
    frames   member name -> f64[N], frames a net of that member works through per row (upper bound)
    broken   row id -> code of the error that leaves it with the prior
    stored   front end key -> i64[N], bytes of each row's array, 0 = not produced yet
    loading  front end key -> [wall seconds waited, seconds of audio] of first-time loading
    side     threads for rows side by side on a CPU, `workers` of them with one core each; they live as long
             as the run; side_bytes: most that their forwards may need together
    """

    run: dict[str, Any]
    limits: Limits
    manifest: spec.Manifest
    bundle: Bundle
    meter: Meter
    journal: Journal
    recorder: Recorder
    heartbeat: Heartbeat
    devices: list[backends.Device]
    rows: list[decode.Row]
    wanted: list[int]
    seconds: np.ndarray
    max_seconds: float
    extra_clips: int
    recipes: dict[str, predict.Recipe]
    frames: dict[str, np.ndarray]
    nets: dict[str, NetState]
    board: blend.Board
    broken: dict[str, str]
    stored: dict[str, np.ndarray] = field(default_factory=dict)
    loading: dict[str, list[float]] = field(default_factory=dict)
    workers: int = 1
    side: ThreadPoolExecutor = field(init=False, repr=False)
    side_bytes: int = field(init=False)
    store: Store = field(init=False)
    numbers: dict[str, int] = field(init=False, repr=False)
    lost: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.numbers = {row.id: i for i, row in enumerate(self.rows)}
        self.lost = np.zeros(len(self.rows), bool)
        self.side_bytes = int(SIDE_SHARE * self.meter.limit().limit_bytes)  # of the wall that is really there
        self.side = ThreadPoolExecutor(self.workers, "rows", initializer=torch.set_num_threads, initargs=(1,))

    @property
    def ensemble(self) -> spec.Ensemble:
        return self.manifest.ensemble

    def lose(self, row: decode.Row, error: ClipError) -> None:
        """Give a row up: it keeps the prior and is named once."""
        if row.id not in self.broken:
            self.broken[row.id] = error.code
            self.lost[self.numbers[row.id]] = True
            self.recorder.error(row.id, error)

    def skip(self, net_id: str, row: decode.Row, error: BaseException) -> None:
        """One net cannot do one row; the other nets still do."""
        self.nets[net_id].skipped[row.id] = str(error)
        self.recorder.error(f"{net_id} {row.id}", error)

    def missing(self, net_id: str) -> list[int]:
        """Rows the net still lacks, in running order."""
        done = self.board.covered(net_id) | self.lost
        done[[self.numbers[row_id] for row_id in list(self.nets[net_id].skipped)]] = True
        done[
            [
                self.numbers[row_id]
                for name, row_id in self.journal.dropped
                if name == net_id and row_id in self.numbers
            ]
        ] = True
        order = np.asarray(self.wanted, np.intp)
        rows: list[int] = order[~done[order]].tolist()
        return rows

    def untried(self) -> np.ndarray:
        """bool[N]: wanted rows that no net has scored or had to pass over."""
        tried = np.logical_or.reduce([self.board.covered(net_id) for net_id in self.nets]) | self.lost
        passed = {row_id for net in self.nets.values() for row_id in list(net.skipped)} | {
            row for _, row in self.journal.dropped
        }
        tried[[self.numbers[row_id] for row_id in passed if row_id in self.numbers]] = True
        wanted = np.zeros(len(self.rows), bool)
        wanted[self.wanted] = True
        return wanted & ~tried

    def fresh(self, member: str, rows: Sequence[int]) -> np.ndarray:
        """int[n]: those of `rows` that lack an array of some front end of the member, which nobody has
        produced yet.
        """
        none = np.zeros(len(self.rows), np.int64)
        index = np.asarray(rows, np.intp)
        new = [
            self.stored.get(stage.fe.key, none)[index] == 0 for stage in self.recipes[member].stages.values()
        ]
        return index[np.logical_or.reduce(new)]

    def produce(
        self, fe: Any, rows: Sequence[decode.Row]
    ) -> Iterator[tuple[decode.Row, np.ndarray | ClipError]]:
        """What a loader thread does for the rows of one clip; a crash in here leaves the clip's mark
        behind.
        """
        with self.journal.flight("clip", [rows[0].clip.id]):
            for row, array in predict.produce(fe, rows, self.max_seconds, self.recorder.note):
                if isinstance(array, np.ndarray):
                    sizes = self.stored.get(fe.key)
                    if sizes is None:  # set once: two loaders may come here at the same time
                        sizes = self.stored.setdefault(fe.key, np.zeros(len(self.rows), np.int64))
                    sizes[self.numbers[row.id]] = array.nbytes
                yield row, array
        self.heartbeat.progress += 1


def open_scene(run: dict[str, Any], heartbeat: Heartbeat) -> Scene:
    """A scene ready to run.

    Raises  SpecError or BundleError when the bundle cannot be used at all
    """
    limits = Limits(**run["limits"])
    torch.set_num_threads(max(1, limits.cores))
    manifest = spec.load_manifest(Path(run["manifest"]).read_bytes(), "manifest.json")
    recorder = Recorder(started=run["started"] - run["offset_s"])
    journal = Journal(Path(run["state"]), run["attempt"], recorder.fault)
    for net_id, row_id in sorted(journal.dropped):
        recorder.fault(
            "BatchQuarantined",
            f"{net_id} {row_id}",
            "in flight in two crashes; the other nets decide this row",
        )
    recorder.stages.append(
        {"name": "start", "device": "main", "start_s": 0.0, "end_s": round(recorder.now(), 3)}
    )
    heartbeat.step("devices")
    with recorder.stage("devices", device="main"):
        devices, notes = backends.find_devices(run["device"])
    for text in notes:
        recorder.fault("DeviceError", run["device"], text)
    ensemble = manifest.ensemble
    heartbeat.step("clips")
    with recorder.stage("clips", device="main", rows=len(run["sample"]["ids"])):
        rows, extra = _list_rows(run, ensemble, journal, heartbeat)
    scene = Scene(
        run=run,
        limits=limits,
        manifest=manifest,
        bundle=open_bundle(Path(run["bundle"]), manifest),
        meter=Meter(cap_bytes=limits.ram_bytes),
        journal=journal,
        recorder=recorder,
        heartbeat=heartbeat,
        devices=devices,
        rows=rows,
        wanted=[],
        seconds=np.zeros(len(rows)),
        extra_clips=extra,
        max_seconds=ensemble.max_seconds or (MAX_SECONDS_WINDOWED if ensemble.windows else MAX_SECONDS),
        workers=max(1, min(limits.cores, len(os.sched_getaffinity(0)))),
        recipes={},
        frames={},
        nets={},
        board=blend.Board(len(rows), len(ensemble.classes)),
        broken={},
    )
    _choose_rows(scene)
    _build_recipes(scene)
    scene.store = _open_store(scene)
    _load_scores(scene)
    return scene


def _list_rows(run: dict[str, Any], ensemble: spec.Ensemble, journal: Journal,
               heartbeat: Heartbeat) -> tuple[list[decode.Row], int]:
    """Rows of the sample, headers read under an in-flight mark: a header can kill a decoder too."""
    ids = run["sample"]["ids"]
    index = find_clips(Path(run["clips"] or run["input"]), decode.clip_ids(ids, ensemble.windows))

    def probe(id: str, path: Path, roots: Sequence[Path]) -> decode.Clip:
        heartbeat.progress += 1
        if id in journal.quarantined:
            return decode.Clip(
                id=id, error=ClipQuarantined(f"{id!r}: in flight in two crashes; its row keeps the prior")
            )
        with journal.flight("clip", [id]):
            return decode.probe(id, path, roots)

    return decode.list_rows(ids, index, ensemble.windows, prober=probe), index.extra


def _choose_rows(scene: Scene) -> None:
    """Fill `wanted`, `seconds` and `broken`."""
    for row in scene.rows:
        if row.clip.error is not None:
            scene.lose(row, row.clip.error)
    scene.seconds = np.array([_claimed_seconds(row, scene.max_seconds) for row in scene.rows])
    first = scene.run["first"]
    asked = len(scene.rows) if first is None else min(first, len(scene.rows))
    good = [i for i in range(asked) if scene.rows[i].id not in scene.broken]
    if scene.ensemble.windows:  # windows of one recording stay together: it is decoded once
        scene.wanted = sorted(good, key=lambda i: (scene.rows[i].clip.id, scene.rows[i].start or 0))
    else:
        scene.wanted = [good[i] for i in plan.order_rows([float(scene.seconds[i]) for i in good])]


def _claimed_seconds(row: decode.Row, most: float) -> float:
    """Length of a row by its header, capped: for planning only."""
    if not row.clip.rate:
        return 0.0
    if row.start is not None and row.stop is not None:
        return (row.stop - row.start) / row.clip.rate
    return min(most, row.clip.samples_claimed / row.clip.rate)


def _build_recipes(scene: Scene) -> None:
    parts: list[spec.Member | spec.Stacker] = [*scene.ensemble.members, *scene.ensemble.stackers]
    for part in parts:
        for fold in part.folds:
            scene.nets[f"{part.name}.{fold}"] = NetState(net_id=f"{part.name}.{fold}", part=part)
        if isinstance(part, spec.Member):
            try:
                recipe = predict.build_recipe(scene.ensemble, part)
            except HourglassError as error:
                for fold in part.folds:
                    drop(scene, f"{part.name}.{fold}", error)
                continue
            scene.recipes[part.name] = recipe
            scene.frames[part.name] = np.array([recipe.cells(seconds) for seconds in scene.seconds])


def drop(scene: Scene, net_id: str, error: BaseException) -> None:
    """Give a net up; the others go on."""
    scene.nets[net_id].failed = f"{type(error).__name__}: {error}"
    scene.recorder.error(net_id, error)


def _open_store(scene: Scene) -> Store:
    longest = float(scene.seconds.max(initial=1.0))
    stages = [stage for recipe in scene.recipes.values() for stage in recipe.stages.values()]
    clip = max((stage.fe.max_bytes(int(longest * stage.fe.rate) + 1) for stage in stages), default=0)
    batch = max(
        (
            int(
                c.bytes_a
                + c.bytes_b * scene.recipes[name].cells_at_once(float(scene.frames[name].max(initial=0.0)))
            )
            for name, c in scene.manifest.costs.items()
            if name in scene.frames
        ),
        default=0,
    )
    batch = max(batch, min(scene.workers * batch, scene.side_bytes))
    return Store(
        produce=scene.produce,
        meter=scene.meter,
        scratch=Path(scene.run["state"]) / "spill",
        loaders=scene.run["loaders"] or max(1, scene.limits.cores),
        enter_loader=lambda: torch.set_num_threads(1),
        limits=StoreLimits(
            ram_bytes=scene.limits.ram_bytes,
            disk_bytes=scene.limits.disk_bytes,
            clip_bytes=clip,
            batch_bytes=min(batch, scene.limits.ram_bytes // LEAST_RESERVE_SHARE),
        ),
    )


def _load_scores(scene: Scene) -> None:
    shape = (len(scene.rows), len(scene.ensemble.classes))
    for net_id in scene.nets:
        saved = scene.journal.load_scores(net_id, shape)
        if saved is not None:
            scene.board.load(net_id, saved)
