"""The parts of a run, opened once from the guard's order: after this it is a list of nets over rows.

Owns `Run` and the set-up: devices, rows, recipes, board, store. Runs nothing (step) and decides nothing
(plan).
"""
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .. import spec
from ..bundle import Bundle, open_bundle
from ..cache.ram import StoreLimits
from ..errors import BundleError, HourglassError, NetQuarantined, StepFailed
from ..inference import devices, onnx
from ..inference.embeddings import Embeddings
from ..inference.graph_net import GraphNet, GraphUse
from ..inference.graph_net import load_net as load_graph_net
from ..inference.recipe import Recipe, build_recipe
from ..memory import Meter, peak_resident
from ..order import Order
from ..report.recorder import Recorder
from ..scores.blend import Board, open_board
from ..scores.class_weights import unknown_classes
from ..scores.frames import Merging
from ..scores.levels import Levels, count_tables, open_levels
from ..scores.own_step import OwnStep
from ..scores.step import Piece
from ..scores.steps import Bound
from ..sound.clips import find_clips
from ..sound.loading import LONGEST_WHOLE_S, count_graph_bytes, count_work_bytes
from ..sound.recording import count_idle_bytes
from ..sound.rows import Row, clip_ids, list_rows
from ..sound.scopes import OfRecording
from ..sound.source import Source
from . import headers
from .cpu import Cores
from .feed import Feed
from .heartbeat import Heartbeat
from .journal import Journal
from .net_run import NetRun
from .run_rows import RunRows, open_rows
from .window_rows import WindowRows

LEAST_RESERVE_SHARE = 4  # a batch may reserve at most a quarter of the RAM


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of a run. None is replaced while it lasts; what changes in a part, that part changes.

    extra_clips  audio files in the clip folder that no row means
    nets         net id -> the net's run, in the order of the ensemble
    """

    order: Order
    manifest: spec.Manifest
    bundle: Bundle
    meter: Meter
    journal: Journal
    recorder: Recorder
    heartbeat: Heartbeat
    devices: Sequence[devices.Device]
    rows: RunRows
    extra_clips: int
    board: Board
    levels: Levels
    nets: dict[str, NetRun]
    embeddings: Embeddings
    feed: Feed
    cores: Cores

    @property
    def ensemble(self) -> spec.Ensemble:
        return self.manifest.ensemble

    def recipes(self) -> dict[str, Recipe]:
        """Member name -> its stages, for the members that can be built."""
        return {run.part.name: run.recipe for run in self.nets.values() if run.recipe is not None}


def open_run(order: Order, heartbeat: Heartbeat, recorder: Recorder) -> Run:
    """A run ready to begin.

    Raises  SpecError or BundleError when the bundle cannot be used at all
    """
    torch.set_num_threads(max(1, order.limits.cores))
    manifest = spec.load_manifest(order.manifest.read_bytes(), "manifest.json")
    ensemble = manifest.ensemble
    journal = _open_journal(order, recorder)
    recorder.end_span("start", 0.0, device="main")
    found = _open_devices(order.device, recorder, heartbeat)
    heartbeat.begin("clips")
    with recorder.span("clips", device="main", rows=len(order.sample.ids)):
        listed, extra = _list_rows(order, ensemble, journal, heartbeat, recorder)
    rows = open_rows(listed, order.first, ensemble.longest_s, ensemble.windows is not None, recorder)
    _name_unknown_classes(ensemble, recorder)
    board = open_board(ensemble, len(listed))
    nets = _open_nets(ensemble, rows, board, journal, heartbeat)
    meter = Meter(cap_bytes=order.limits.ram_bytes, beside_bytes=peak_resident(os.getppid()))
    cores = Cores(max(1, min(order.limits.cores, len(os.sched_getaffinity(0)))), meter)
    feed = Feed(
        rows=rows,
        longest_s=ensemble.longest_s,
        journal=journal,
        heartbeat=heartbeat,
        meter=meter,
        limits=_store_limits(order, manifest, nets, rows, cores),
        scratch=order.state / "spill",
        loaders=order.loaders or max(1, order.limits.cores),
    )
    embeddings = _open_embeddings(order, manifest, nets, feed.loaders)
    return Run(
        order=order,
        manifest=manifest,
        bundle=_open_bundle(order, manifest, nets, heartbeat),
        meter=meter,
        journal=journal,
        recorder=recorder,
        heartbeat=heartbeat,
        devices=found,
        rows=rows,
        extra_clips=extra,
        board=board,
        levels=_open_levels(ensemble, listed, journal, recorder),
        nets=nets,
        embeddings=embeddings,
        feed=feed,
        cores=cores,
    )


def _open_levels(
    ensemble: spec.Ensemble, listed: Sequence[Row], journal: Journal, recorder: Recorder
) -> Levels:
    """The steps over these rows; each of the user's own is named while it is called."""
    levels = open_levels(ensemble, listed, recorder.error)
    levels.steps = {name: tuple(_watch(bound, journal) for bound in several)
                    for name, several in levels.steps.items()}
    return levels


def _watch(bound: Bound, journal: Journal) -> Bound:
    """A step that leaves a mark when the engine dies in it; after two such deaths it is left out."""
    if not isinstance(bound.step, OwnStep):
        return bound

    def change(piece: Piece) -> np.ndarray:
        if bound.where in journal.quarantined_steps:
            raise StepFailed("the engine died or hung in it twice; the step is left out")
        with journal.flight("step", [bound.where]):
            return bound.change(piece)

    return replace(bound, change=change)


def _open_journal(order: Order, recorder: Recorder) -> Journal:
    """The journal; what it has quarantined is named."""
    journal = Journal(order.state, order.attempt, recorder.fault)
    for net_id, row_id in sorted(journal.quarantined_pairs):
        message = "in flight in two crashes; the other nets decide this row"
        recorder.fault("BatchQuarantined", f"{net_id} {row_id}", message)
    return journal


def _open_embeddings(order: Order, manifest: spec.Manifest, nets: dict[str, NetRun],
                     loaders: int) -> Embeddings:
    """The embeddings of all nets, whose graphs are opened when a net wants one."""
    bundle = open_bundle(order.bundle, manifest, order.input)

    def open_graph(file: str, use: GraphUse) -> GraphNet:
        runtime = onnx.find_runtime(onnx.ONNX, bundle, order.runtimes)
        return load_graph_net(bundle.read_file(file), runtime, callers=loaders, use=use)

    made = Embeddings(manifest.ensemble, open_graph)
    for recipe in {id(run.recipe): run.recipe for run in nets.values() if run.recipe is not None}.values():
        made.connect(recipe)
    return made


def _name_unknown_classes(ensemble: spec.Ensemble, recorder: Recorder) -> None:
    """A fault for classes in which no member has a say: they hold the prior in every row."""
    names = unknown_classes(ensemble)
    if names:
        recorder.fault(
            "ClassesUnknown",
            "classes_map",
            f"no member knows {len(names)} of {len(ensemble.classes)} classes ({', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}): the prior stands there in every row; map labels onto "
            "them, or give a member `missing` as a number",
        )


def _open_devices(wanted: str, recorder: Recorder, heartbeat: Heartbeat) -> list[devices.Device]:
    """The devices that work; what is wrong with the others is named."""
    heartbeat.begin("devices")
    with recorder.span("devices", device="main"):
        found, notes = devices.find_devices(wanted)
    for text in notes:
        recorder.fault("DeviceError", wanted, text)
    return found


def _list_rows(
    order: Order, ensemble: spec.Ensemble, journal: Journal, heartbeat: Heartbeat, recorder: Recorder
) -> tuple[list[Row], int]:
    """Rows of the sample and the number of extra clips."""
    wanted = clip_ids(order.sample.ids, ensemble.windows)
    index = find_clips(order.clips or order.input, wanted, heartbeat.beat)
    share = headers.SHARE if ensemble.windows is None else headers.WINDOWED_SHARE
    until = recorder.now() + share * order.marks.stop_s
    clips = headers.read_headers(
        wanted, index, journal, heartbeat.beat, lambda: recorder.now() > min(until, order.marks.stop_s))
    unread = sum(clip.unread for clip in clips.values())
    if unread:
        message = f"{unread} of {len(clips)} headers were not read within {share:.0%} of the time; the plan "
        recorder.fault("SlowMount", str(index.folder), message + "takes the others' median for their lengths")
    if ensemble.windows is not None:
        clips = headers.refuse_unread(clips)
    return list_rows(order.sample.ids, index, ensemble.windows, prober=lambda id, *_: clips[id]), index.extra


def _open_nets(ensemble: spec.Ensemble, rows: RunRows, board: Board, journal: Journal,
               heartbeat: Heartbeat) -> dict[str, NetRun]:
    """Every net of every part, with the scores of an earlier engine; what cannot be built has failed."""
    nets: dict[str, NetRun] = {}
    for part in ensemble.parts:
        recipe: Recipe | None = None
        broken: HourglassError | None = None
        if isinstance(part, spec.Member):
            try:
                recipe = build_recipe(ensemble, part)
            except HourglassError as error:
                broken = error
        cells = np.array([recipe.cells(seconds) for seconds in rows.heard_s] if recipe is not None else [])
        for net_id in spec.net_ids(part):
            run = NetRun(net_id=net_id, part=part, rows=rows, board=board, journal=journal,
                         heartbeat=heartbeat, recipe=recipe, cells=cells)
            if isinstance(part, spec.Member) and part.frames and ensemble.windows is not None:
                run.windows = WindowRows(Merging.of(part, ensemble.windows), rows, run.is_gone)
            nets[net_id] = run
            if passed := journal.quarantined_with(net_id):
                run.give_up(sorted(passed))
            if why := journal.why_dropped(net_id):
                run.fail(NetQuarantined(f"{why}; the other nets decide the rows it has not scored"))
            elif broken is not None:
                run.fail(broken)
            saved = journal.load_scores(net_id, board.shape)
            if saved is not None:
                board.load(net_id, saved)
    return nets


def _open_bundle(order: Order, manifest: spec.Manifest, nets: dict[str, NetRun],
                 heartbeat: Heartbeat) -> Bundle:
    """The bundle; nets whose files nobody attached have failed from the start, even where no row asks."""
    bundle = open_bundle(order.bundle, manifest, order.input)
    for net in bundle.manifest.nets:
        if net.file in bundle.manifest.attached and nets[net.id].failed is None:
            heartbeat.beat()
            try:
                bundle.find_attached(net.file)
            except BundleError as error:
                nets[net.id].fail(error)
    return bundle


def _store_limits(order: Order, manifest: spec.Manifest, nets: dict[str, NetRun], rows: RunRows,
                  cores: Cores) -> StoreLimits:
    """What the store may use, and what it leaves to the largest clip and the largest forwards."""
    longest_s = float(rows.heard_s.max(initial=1.0))
    if any(row.clip.unread for row in rows.all):
        longest_s = manifest.ensemble.longest_s
    kinds = {row.clip.id: row for row in rows.all}.values()  # windows of one recording are alike
    rates = {row.clip.rate for row in kinds}
    clip = 0
    batch = 0
    work = 0
    fes: dict[str, Source] = {}  # each once: nets by the hundred share a few
    for run in nets.values():
        if run.recipe is None:
            continue
        fes |= {stage.fe.key: stage.fe for stage in run.recipe.stages.values()}
        cost = manifest.costs.get(run.part.name, spec.Cost())
        cells = run.recipe.cells_at_once(float(run.cells.max(initial=0.0)))
        batch = max(batch, int(cost.bytes_a + cost.bytes_b * cells))
    batch = max(batch, min(cores.count * batch, cores.side_bytes))
    for fe in fes.values():
        stored = [fe.entry(row) if isinstance(fe, OfRecording) else row for row in kinds]
        stored_s = longest_s
        if isinstance(fe, OfRecording):
            stored_s = max(row.heard / max(1, row.clip.rate) for row in stored)
            stored_s = min(stored_s, manifest.ensemble.longest_s, LONGEST_WHOLE_S)
        clip = max(clip, fe.max_bytes(int(stored_s * fe.rate) + 1))
        for row in stored:
            rate = max(fe.rate, *rates) if row.clip.unread else fe.rate
            graph = count_graph_bytes(fe, min(stored_s, manifest.ensemble.longest_s))
            work = max(work, count_work_bytes(row, rate, manifest.ensemble.longest_s) + graph)
    return StoreLimits(
        ram_bytes=order.limits.ram_bytes, disk_bytes=order.limits.disk_bytes, clip_bytes=clip,
        batch_bytes=min(batch, order.limits.ram_bytes // LEAST_RESERVE_SHARE),
        work_bytes=work,
        open_bytes=count_idle_bytes(kinds),
        table_bytes=8 * count_tables(manifest.ensemble) * len(rows.all) * len(manifest.ensemble.classes))
