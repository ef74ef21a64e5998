"""Why the most uncertain rows got their scores: what each member says, and where in time a net hears it.

Owns the choice of what is told, and its bounds in rows, nets and seconds. How a net is asked is
inference.moments, which rows are uncertain is summary's, drawing is the report's. Changes no score.
"""
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from ..inference import moments
from ..inference.member import load_plain
from ..inference.recipe import Recipe
from ..report import terminal
from ..report.explanations import (
    BINS,
    CLASSES,
    MEMBERS,
    MOMENT_ROWS,
    NETS,
    Explanation,
    MemberSays,
    MomentsReport,
)
from ..scores import blend
from ..scores.class_weights import known_classes
from ..scores.means import mean
from ..sound.loading import load_wave
from ..sound.recording import Recordings
from ..sound.rows import Row
from ..spec import ROW_DEPENDENT_MEANS, Cost, Member, Net, Part, net_ids
from .net_run import NetRun
from .state import Run

# Seconds that asking nets again may take: a second and a hundredth of the run, four at most
LEAST_S, SHARE, MOST_S = 1.0, 0.01, 4.0
# Multiply-adds / 1e9 that are taken for a second of a CPU, where a net may have run on a GPU: a low choice of
# ours, so that no row is begun that outlasts the time
GMAC_PER_S = 10.0
# Seconds beyond that time until a row under way is left to itself: a net may hang here, too
GRACE_S, TICK_S = 2.0, 0.1


def seconds_for(elapsed_s: float) -> float:
    """How long the nets may be asked again after a run that took so long."""
    return min(MOST_S, LEAST_S + SHARE * elapsed_s)


def explain_rows(run: Run, numbers: Sequence[int], values: np.ndarray) -> tuple[Explanation, ...]:
    """What each member says of these rows; `values` f64[N, K] is the blend."""
    parts = sorted(run.ensemble.parts, key=lambda part: -part.weight)
    said = {part.name: _say(part, run.board, numbers) for part in parts}
    names = run.ensemble.classes
    told = []
    for at, i in enumerate(numbers):
        order = np.argsort(-values[i], kind="stable")[:CLASSES]
        members = [
            MemberSays(
                name=name,
                scores=tuple(_short(scores[at, k]) if np.isfinite(scores[at, k]) else None for k in order),
                best=names[int(np.nanargmax(scores[at]))],
                score=_short(np.nanmax(scores[at])),
            )
            for name, scores in said.items()
            if np.isfinite(scores[at]).any()
        ]
        row = run.rows.all[i]
        told.append(
            Explanation(
                row=row.id,
                seconds=round(moments.row_seconds(row), 3),
                classes=tuple(names[k] for k in order),
                members=tuple(members[:MEMBERS]),
                others=max(0, len(members) - MEMBERS),
            )
        )
    return tuple(told)


def _say(part: Part, board: blend.Board, numbers: Sequence[int]) -> np.ndarray:
    """f64[n, K] of a part in these rows; NaN where it has no say, and in classes that it does not know.

    Means that compare rows would rank these few among themselves: there it is the folds' plain mean.
    """
    block = (np.asarray(numbers, np.intp), slice(None))
    if part.fold_mean not in ROW_DEPENDENT_MEANS:
        scores = blend.merge_folds(part, board, block)
    else:
        stack = np.stack([board.get(net_id)[block] for net_id in net_ids(part)]).astype(np.float64)
        scores = mean("arithmetic", stack, part.fold_weights if isinstance(part, Member) else ())
    return np.where(known_classes(part, board.shape[1]), scores, np.nan)


def add_moments(
    run: Run, told: Sequence[Explanation], numbers: Sequence[int], stop: Callable[[], bool]
) -> tuple[Explanation, ...]:
    """The same rows with what nets say of their parts: net by net, as far as time allows.

    A net that fails here has said what it had to say: nothing comes of it but that it is not told of.
    One that hangs is left behind in its thread, which ends with the process.
    """
    found: list[list[MomentsReport]] = [[] for _ in told]
    now = run.recorder.now
    until = now() + seconds_for(now())

    def left_s() -> float:
        return 0.0 if stop() else until - now()

    asking = threading.Thread(target=_ask_all, args=(run, told, numbers, found, left_s), name="asking",
                              daemon=True)
    asking.start()
    while asking.is_alive() and now() < until + GRACE_S:
        if stop():
            until = min(until, now())
        asking.join(TICK_S)
    if asking.is_alive():
        terminal.say("[hourglass] report: a net that was asked again for the page did not answer in time; "
                     "the submission is not touched by this")
    return tuple(replace(row, moments=tuple(some)) for row, some in zip(told, found, strict=True))


def _ask_all(
    run: Run,
    told: Sequence[Explanation],
    numbers: Sequence[int],
    found: list[list[MomentsReport]],
    left_s: Callable[[], float],
) -> None:
    """Every chosen net over the rows, each within its share of the time."""
    torch.set_num_threads(max(1, run.order.limits.cores))
    now = run.recorder.now
    nets = _choose_nets(run, numbers)
    recordings = Recordings(run.ensemble.longest_s, run.heartbeat.beat)
    for number, net in enumerate(nets):
        fair = now() + left_s() / (len(nets) - number)
        try:
            _ask(run, net, told, numbers, found, partial(_least, left_s, now, fair), recordings)
        except BaseException:  # a net's own code may raise anything; its scores are in the submission
            continue
    recordings.close()


def _least(left_s: Callable[[], float], now: Callable[[], float], until: float) -> float:
    """Seconds that are left to one net: of all the time, and of its share."""
    return min(left_s(), until - now())


def _choose_nets(run: Run, numbers: Sequence[int]) -> list[NetRun]:
    """The first net of each member that has a say in one of the rows, the weightiest members first.

    A net that has ended an engine is left alone.
    """
    chosen: dict[str, NetRun] = {}
    fatal = {crash.net for crash in run.journal.crashes}
    for net in sorted(run.nets.values(), key=lambda net: -net.part.weight):
        if isinstance(net.part, Member) and net.recipe is not None and net.failed is None:
            if net.net_id not in fatal and run.board.covered(net.net_id)[list(numbers)].any():
                chosen.setdefault(net.part.name, net)
    return list(chosen.values())[:NETS]


def _ask(
    run: Run,
    net: NetRun,
    told: Sequence[Explanation],
    numbers: Sequence[int],
    found: list[list[MomentsReport]],
    left_s: Callable[[], float],
    recordings: Recordings,
) -> None:
    """One net over the rows, opened once; `found` gets what it says of each."""
    entry = next(entry for entry in run.manifest.nets if entry.id == net.net_id)
    cost = run.manifest.costs.get(entry.member, Cost())
    recipe = net.recipe
    if recipe is None or not _may_begin(entry, cost, float(net.cells[list(numbers)].min()), left_s()):
        return
    cells = recipe.cells_at_once(float(net.cells[list(numbers)].max()))
    need = 2 * entry.length + cost.bytes_a + cost.bytes_b * cells  # the weights as bytes and as a net
    if not run.cores.make_room(need, run.feed.store):
        return
    loaded = load_plain(recipe, run.bundle.load_state(entry), len(run.ensemble.classes))
    covered = run.board.covered(net.net_id)
    for at, i in enumerate(numbers):
        if not covered[i] or not _may_begin(entry, cost, float(net.cells[i]), left_s()):
            continue
        heard = moments.find_moments(loaded, run.feed.store, run.rows.all[i])
        run.heartbeat.beat()
        if heard is not None:
            shown = told[at].classes[: max(2, MOMENT_ROWS // len(told))]
            order = [run.ensemble.classes.index(name) for name in shown]
            row = run.rows.all[i]
            begin_s = moments.trimmed_seconds(recipe, partial(_wave_of, row, recordings))
            bins = heard.in_bins(told[at].seconds, BINS, begin_s)
            bins = np.where(known_classes(net.part, bins.shape[1]), bins, np.nan)[:, order].T
            found[at].append(_describe(net.net_id, recipe, heard.kind, bins))


def _may_begin(entry: Net, cost: Cost, cells: float, left_s: float) -> bool:
    """True where a row of so many frames should be over in time; graphs have no plain net."""
    return entry.kind != "onnx" and (cost.gmac_a + cost.gmac_b * cells) / GMAC_PER_S < left_s


def _wave_of(row: Row, recordings: Recordings, rate: int) -> np.ndarray:
    """f32[S] of a row itself."""
    return load_wave(replace(row, before=0, after=0), rate, recordings).samples


def _describe(net_id: str, recipe: Recipe, kind: str, bins: np.ndarray) -> MomentsReport:
    """Scores f64[classes, BINS] of a net."""
    return MomentsReport(
        net=net_id,
        kind=kind,
        scores=tuple(tuple(_short(v) if np.isfinite(v) else None for v in row) for row in bins),
        aligned=moments.keeps_time(recipe),
    )


def _short(value: float) -> float:
    """Four digits: what a page shows."""
    return float(f"{value:.4g}")
