"""What a run has done so far, as the parts of report.json.

Owns what the engine says of itself: the figures of nets and front ends, the measured costs (what `--costs`
and a rehearsal read) and the choice of uncertain rows. Why they are so is
`explain`'s. Does not write, print or draw (publication, report).
"""
import os
import resource
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..inference.embeddings import sources_of
from ..memory import Meter, peak_resident
from ..report.contents import (
    Costs,
    DeviceReport,
    LengthGroups,
    Lengths,
    MemberCost,
    MemberReport,
    NetReport,
    Report,
    ShownRow,
    StoreReport,
)
from ..report.embedding_work import EmbeddingReport
from ..scores import blend
from ..scores.class_weights import known_classes
from ..sound.rows import Row
from ..spec import Ensemble, Member, Part
from . import explain, plan
from .feed import LOADING_S, Feed
from .net_run import NetRun, Timing
from .state import Run

BINS = 20  # of the length histograms
UNCERTAIN = 12  # rows shown
BLOCK_ROWS = 1024  # whose scores are sorted at once
LEAST_REPEATS = 10  # rows in widths met before, to tell the cost of a width from that of a row
NO_CLIPS = (
    "no clip of the sample is there, as at 'Save Version' of many code competitions: the submission holds "
    "the prior in every row. The hidden clips come in the rerun; "
    "`infer_kernel.py --rehearse --simulate-commit` shows both."
)


def describe(run: Run, merged: blend.Blend, outcomes: Sequence[plan.Outcome], peak_ram: int) -> Report:
    """The report so far."""
    recorder = run.recorder
    rows = run.rows
    nets = list(run.nets.values())
    uncertain = _find_uncertain(merged)
    return Report(
        wall_s=round(recorder.now(), 2),
        peak_ram_bytes=peak_ram,
        peak_own_bytes=_peak_own(run.meter),
        limits=run.order.limits,
        marks=run.order.marks,
        rows=len(rows.all),
        prior_rows=int(merged.prior_rows.sum()),
        partial_rows=int((~merged.prior_rows & ~merged.full).sum()),
        broken_rows=dict(rows.reasons),
        extra_clips=run.extra_clips,
        bundle=run.manifest.bundle,
        ensemble=run.ensemble.name,
        random_weights=run.manifest.random_weights,
        attempt=run.order.attempt,
        crashes=run.journal.crashes,
        quarantined=tuple(sorted(run.journal.quarantined_clips)),
        device=_describe_devices(run),
        members=tuple(_describe_part(part, run) for part in run.ensemble.parts),
        store=_describe_store(run.feed),
        embeddings=_describe_embeddings(run) or None,
        meter=run.meter.read().source,
        forecast=plan.accuracy(outcomes),
        costs=Costs(members=_member_costs(run), frontends=_frontend_costs(run)),
        seconds_of_audio=round(float(rows.seconds.sum()), 1),
        longest_s=round(float(rows.seconds.max(initial=0.0)), 2),
        lengths_s=_lengths(rows.seconds),
        groups=_groups(run.ensemble.members, nets),
        remarks=(NO_CLIPS,) if lacks_clips(rows.all) else (),
        uncertain=tuple(_show(rows.all[i], merged.values[i], run.ensemble.classes) for i in uncertain),
        explained=explain.explain_rows(run, uncertain, merged.values),
        **recorder.snapshot(),
    )


def lacks_clips(rows: Sequence[Row]) -> bool:
    """True when not one row of the sample has a file."""
    return bool(rows) and all(row.clip.path is None for row in rows)


def _peak_own(meter: Meter) -> int:
    """Most resident bytes so far of the engine (as sampled, or the system's own high-water mark) and of the
    guard, which started it.
    """
    own = max(meter.peak_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return own + peak_resident(os.getppid())


def _describe_devices(run: Run) -> DeviceReport:
    paths = {net.path for net in run.nets.values() if net.path}
    return DeviceReport(
        names=tuple(device.name for device in run.devices),
        about=", ".join(device.about for device in run.devices),
        path=", ".join(sorted(paths)),
    )


def _describe_part(part: Part, run: Run) -> MemberReport:
    nets = [net for net in run.nets.values() if net.part is part]
    scored = blend.begun_rows(part, run.board)
    return MemberReport(
        name=part.name, family=part.family, weight=part.weight, rows=int(scored.sum()),
        seconds=round(sum(net.seconds for net in nets), 3),
        nets_done=sum(not net.failed and not net.lacking().rows for net in nets),
        nets=tuple(_describe_net(net) for net in nets),
        weights=_span_of_weights(part, run.ensemble),
        knows=_count_known(part, len(run.ensemble.classes)),
        missing=part.missing_score if isinstance(part, Member) else None)


def _span_of_weights(part: Part, ensemble: Ensemble) -> tuple[float, float] | None:
    """Smallest and largest weight of a part that weighs differently by class; None where it does not."""
    by_class = ensemble.weights_by.get(part.name)
    return (min(by_class), max(by_class)) if by_class else None


def _count_known(part: Part, classes: int) -> tuple[int, int] | None:
    """How many classes a member with classes of its own knows, and how many there are; None for others."""
    if not isinstance(part, Member) or part.classes_map is None:
        return None
    return int(known_classes(part, classes).sum()), classes


def _describe_net(net: NetRun) -> NetReport:
    cells, padded, forwards = _sum_widths([net]).sum(axis=1)[1:].tolist()
    return NetReport(
        id=net.net_id,
        rows=net.scored,
        seconds=round(net.seconds, 3),
        loading_s=round(net.loading_s, 3),
        setup_s=round(net.setup_s, 3),
        batches=forwards,
        cells=cells,
        padded_cells=padded,
        tiled_rows=net.tiled_rows,
        skipped_rows=len(net.skipped),
        path=net.path,
        failed=net.failed,
        notes=tuple(net.notes),
    )


def _describe_store(feed: Feed) -> StoreReport:
    stored = sum(int(sizes.sum()) for sizes in list(feed.sizes.values()))
    return StoreReport(**vars(feed.store.stats()), stored_bytes=stored)


def _describe_embeddings(run: Run) -> dict[str, EmbeddingReport]:
    """What each graph did, and how many nets read what it made."""
    readers = Counter(source.name for net in run.nets.values() if net.recipe is not None
                      for source in sources_of(net.recipe))
    return {
        name: EmbeddingReport(rows=work.rows, passes=work.passes, vectors=work.vectors, failed=work.failed,
                              seconds=round(work.seconds, 3), path=work.path, nets=readers[name])
        for name, work in run.embeddings.work.items()
    }


def _member_costs(run: Run) -> dict[str, MemberCost]:
    """Costs of every member of which a net was timed."""
    costs = {}
    for member in run.ensemble.members:
        nets = [net for net in run.nets.values() if net.part is member and net.timing.rows + net.fresh.rows]
        if nets:
            costs[member.name] = _measure_cost(nets, float(nets[0].cells[run.rows.wanted].mean()))
    return costs


def _measure_cost(nets: Sequence[NetRun], frames_per_row: float) -> MemberCost:
    """Seconds of a row, of a frame, of a new width and of the set-up; and how many widths came.

    A net's seconds are all of its step but loading and set-up, so that what lies between the forwards is in
    them too.
    """
    timing = Timing()
    fresh = Timing()
    for net in nets:
        timing.merge(net.timing)
        fresh.merge(net.fresh)
    spent = sum(net.seconds - net.loading_s - net.setup_s for net in nets)
    scale = max(1.0, spent / (timing.seconds + fresh.seconds))
    if timing.rows < LEAST_REPEATS:
        timing.merge(fresh)
        fresh = Timing()
    a, b = timing.solve()
    shape = max(0.0, fresh.seconds - a * fresh.rows - b * fresh.cells) / max(1, fresh.rows)
    forwards = max((_sum_widths([net])[3] for net in nets), key=len).tolist()
    return MemberCost(
        seconds_a=a * scale,
        seconds_b=b * scale,
        shape_s=shape * scale,
        setup_s=float(np.mean([net.setup_s for net in nets])),
        shapes=len(forwards),
        shapes_once=forwards.count(1),
        shapes_twice=forwards.count(2),
        frames_per_row=frames_per_row,
    )


def _frontend_costs(run: Run) -> dict[str, float]:
    """Seconds per second of audio of each front end; one that is cut in several ways is several, added up."""
    names: dict[str, str] = {}
    for net in run.nets.values():
        if isinstance(net.part, Member) and net.recipe is not None:
            for key, entry in net.part.named_inputs().items():
                names[net.recipe.stages[key].fe.key] = entry.frontend
    costs: dict[str, float] = {}
    for key, name in names.items():
        if key in run.feed.waited:
            seconds, audio = run.feed.waited[key]
            costs[name] = costs.get(name, 0.0) + (seconds / audio if audio > 0 else LOADING_S)
    return costs


def _lengths(seconds: np.ndarray) -> Lengths:
    counts, edges = np.histogram(seconds, bins=BINS)
    return Lengths(counts=tuple(counts.tolist()), edges_s=tuple(round(float(edge), 2) for edge in edges))


def _groups(members: Sequence[Member], nets: Sequence[NetRun]) -> dict[str, LengthGroups]:
    """Per member: cells computed and cells of padding by the width of the forward pass."""
    found = {}
    for member in members:
        widths, cells, padding, forwards = _sum_widths([net for net in nets if net.part is member])
        if len(widths):
            edges = np.histogram_bin_edges(widths, bins=min(BINS, len(widths)))
            found[member.name] = LengthGroups(
                edges=tuple(round(float(edge), 1) for edge in edges),
                widths=len(widths),
                forwards=int(forwards.sum()),
                cells=_sum_by_bin(widths, cells, edges),
                padding=_sum_by_bin(widths, padding, edges),
            )
    return found


def _sum_widths(nets: Sequence[NetRun]) -> np.ndarray:
    """i64[4, W]: widths of the nets' forwards, rising, and the cells, padded cells and forwards of each."""
    items = [item for net in nets for item in list(net.widths.items())]  # a copy: a worker may add one
    widths = sorted({width for width, _ in items})
    table = np.zeros((4, len(widths)), np.int64)
    table[0] = widths
    column = {width: i for i, width in enumerate(widths)}
    for width, totals in items:
        table[1:, column[width]] += totals
    return table


def _sum_by_bin(widths: np.ndarray, values: np.ndarray, edges: np.ndarray) -> tuple[int, ...]:
    sums, _ = np.histogram(widths, bins=edges, weights=values)
    return tuple(sums.astype(int).tolist())


def _find_uncertain(merged: blend.Blend) -> list[int]:
    """Numbers of the predicted rows whose best two classes are closest, in the log domain."""
    predicted = np.flatnonzero(~merged.prior_rows)
    gaps = np.empty(len(predicted))
    for start in range(0, len(predicted), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        top = np.sort(np.log(merged.values[predicted[block]]), axis=1)[:, -2:]
        gaps[block] = top[:, -1] - top[:, 0]
    found: list[int] = predicted[np.argsort(gaps, kind="stable")[:UNCERTAIN]].tolist()
    return found


def _show(row: Row, scores: np.ndarray, classes: Sequence[str]) -> ShownRow:
    """A row with its three best classes."""
    best = np.argsort(-scores)[:3]
    return ShownRow(
        row=row.id,
        best=tuple(classes[k] for k in best),
        scores=tuple(round(float(scores[k]), 4) for k in best),
    )
