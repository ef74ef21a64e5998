"""What report.json holds: the account of a run, gathered from its scene.

Owns the report's fields, the measured costs (what `--costs` and a rehearsal read) and the choice of uncertain
rows. Does not write, print or draw (engine, report, report_page).
"""
from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..scores import blend
from . import plan
from .state import LOADING_S, NetState, Scene, Timing

BINS = 20  # of the length histograms
UNCERTAIN = 12  # rows shown
LEAST_REPEATS = 10  # rows in widths met before, to tell the cost of a width from that of a row
NO_CLIPS = (
    "no clip of the sample is there, as at 'Save Version' of many code competitions: the submission holds the prior in "
    "every row. The hidden clips come in the rerun; `infer_kernel.py --rehearse --simulate-commit` shows both."
)


def describe(
    scene: Scene, merged: blend.Blend, outcomes: Sequence[plan.Outcome], peak_ram: int
) -> dict[str, Any]:
    """The report so far; everything in it is JSON."""
    recorder, store = scene.recorder, scene.store.stats()
    store.pop("timeline")  # the recorder has the same figures beside the limit
    return {
        "wall_s": round(recorder.now(), 2),
        "peak_ram_bytes": peak_ram,
        "peak_own_bytes": _peak_own(scene),
        "limits": asdict(scene.limits),
        "marks": scene.run["marks"],
        "rows": len(scene.rows),
        "prior_rows": int(merged.prior_rows.sum()),
        "partial_rows": int((~merged.prior_rows & ~merged.full).sum()),
        "broken_rows": dict(scene.broken),
        "extra_clips": scene.extra_clips,
        "bundle": scene.manifest.bundle,
        "ensemble": scene.ensemble.name,
        "random_weights": scene.manifest.random_weights,
        "attempt": scene.run["attempt"],
        "crashes": scene.journal.crashes,
        "quarantined": sorted(scene.journal.quarantined),
        "device": {
            "names": [d.name for d in scene.devices],
            "about": ", ".join(d.about for d in scene.devices),
            "path": ", ".join(sorted({n.path for n in scene.nets.values() if n.path})),
        },
        "members": [
            _describe_part(scene, part) for part in (*scene.ensemble.members, *scene.ensemble.stackers)
        ],
        "store": {**store, "stored_bytes": sum(int(sizes.sum()) for sizes in list(scene.stored.values()))},
        "meter": scene.meter.read().source,
        "forecast": plan.accuracy(outcomes),
        "costs": measured_costs(scene),
        "seconds_of_audio": round(float(scene.seconds.sum()), 1),
        "longest_s": round(float(scene.seconds.max(initial=0.0)), 2),
        "lengths_s": _lengths(scene),
        "groups": _groups(scene),
        "remarks": [NO_CLIPS] if lacks_clips(scene) else [],
        "uncertain": _uncertain(scene, merged),
        **recorder.snapshot(),
    }


def lacks_clips(scene: Scene) -> bool:
    """True when not one row of the sample has a file."""
    return bool(scene.rows) and all(row.clip.path is None for row in scene.rows)


def _peak_own(scene: Scene) -> int:
    """Most resident bytes of the engine so far: as sampled, and the system's own high-water mark."""
    return max(scene.meter.peak_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _describe_part(scene: Scene, part: Any) -> dict[str, Any]:
    nets = [n for n in scene.nets.values() if n.part.name == part.name]
    return {"name": part.name, "family": part.family, "weight": part.weight,
            "rows": int(np.isfinite(blend.merge_folds(part, scene.board)).all(axis=1).sum()),
            "seconds": round(sum(n.seconds for n in nets), 3),
            "nets_done": sum(not n.failed and not scene.missing(n.net_id) for n in nets),
            "nets": [_describe_net(n) for n in nets]}


def _describe_net(n: NetState) -> dict[str, Any]:
    return {
        "id": n.net_id,
        "rows": n.rows,
        "seconds": round(n.seconds, 3),
        "loading_s": round(n.loading_s, 3),
        "setup_s": round(n.setup_s, 3),
        "batches": n.batches,
        "cells": n.cells,
        "padded_cells": n.padded_cells,
        "tiled_rows": n.tiled_rows,
        "skipped_rows": len(n.skipped),
        "path": n.path,
        "failed": n.failed,
        "notes": list(n.notes),
    }


def measured_costs(scene: Scene) -> dict[str, Any]:
    """Seconds per row and per frame by member, and per second of audio by front end.

    A net's seconds are all of its step but loading and set-up, so that what lies between the forwards is in
    them too.
    """
    members = {}
    for member in scene.ensemble.members:
        nets = [n for n in scene.nets.values() if n.part is member and n.timing.rows + n.fresh.rows]
        if nets:
            frames = float(scene.frames[member.name][scene.wanted].mean())
            members[member.name] = _member_costs(nets) | {"frames_per_row": frames}
    frontends: dict[str, float] = {}
    for key, name in _frontend_names(scene).items():
        seconds, audio = scene.loading.get(key, (0.0, 0.0))
        if key in scene.loading:
            frontends[name] = frontends.get(name, 0.0) + (seconds / audio if audio > 0 else LOADING_S)
    return {"members": members, "frontends": frontends}


def _member_costs(nets: Sequence[NetState]) -> dict[str, float]:
    """Seconds of a row, of a frame, of a new width and of the set-up; and in how many widths the rows came
    (once, twice).
    """
    timing, fresh = Timing(), Timing()
    for net in nets:
        timing.merge(net.timing)
        fresh.merge(net.fresh)
    spent = sum(net.seconds - net.loading_s - net.setup_s for net in nets)
    scale = max(1.0, spent / (timing.seconds + fresh.seconds))
    if timing.rows < LEAST_REPEATS:
        timing.merge(fresh)
        fresh = Timing()
    a, b = timing.solve()
    shape = max(0.0, fresh.seconds - a * fresh.rows - b * fresh.frames) / max(1, fresh.rows)
    forwards = [count for _, _, count in max((dict(n.widths) for n in nets), key=len).values()]
    return {"seconds_a": a * scale, "seconds_b": b * scale, "shape_s": shape * scale,
            "setup_s": float(np.mean([net.setup_s for net in nets])), "shapes": len(forwards),
            "shapes_once": forwards.count(1), "shapes_twice": forwards.count(2)}


def _frontend_names(scene: Scene) -> dict[str, str]:
    """Store key -> name of its front end; several keys can have one name (views that cut the waveform)."""
    return {scene.recipes[member.name].stages[key].fe.key: entry.frontend for member in scene.ensemble.members
            if member.name in scene.recipes for key, entry in member.named_inputs().items()}


def _lengths(scene: Scene) -> dict[str, list[float]]:
    counts, edges = np.histogram(scene.seconds, bins=BINS)
    return {"counts": counts.tolist(), "edges_s": [round(float(e), 2) for e in edges]}


def _groups(scene: Scene) -> dict[str, dict[str, Any]]:
    """Per member: frames computed and frames of padding by the width of the forward pass."""
    found = {}
    for member in scene.ensemble.members:
        nets = [n for n in scene.nets.values() if n.part is member]
        widths = [item for n in nets for item in dict(n.widths).items()]  # a copy: a worker may add one
        if not widths:
            continue
        different = sorted({width for width, _ in widths})
        edges = np.histogram_bin_edges(different, bins=min(BINS, len(different)))
        cells, padding = (
            np.histogram([w for w, _ in widths], bins=edges, weights=[counts[i] for _, counts in widths])[0]
            for i in (0, 1)
        )
        found[member.name] = {
            "edges": [round(float(e), 1) for e in edges],
            "cells": cells.astype(int).tolist(),
            "padding": padding.astype(int).tolist(),
            "widths": len(different),
            "forwards": sum(n.batches for n in nets),
        }
    return found


def _uncertain(scene: Scene, merged: blend.Blend) -> list[dict[str, Any]]:
    """The predicted rows whose best two classes are closest, in the log domain."""
    rows = np.flatnonzero(~merged.prior_rows)
    if not len(rows) or merged.values.shape[1] < 2:
        return []
    top = np.sort(np.log(merged.values[rows]), axis=1)[:, -2:]
    order = rows[np.argsort(top[:, 1] - top[:, 0], kind="stable")[:UNCERTAIN]]
    classes = scene.ensemble.classes
    return [{"row": scene.rows[i].id, "best": [classes[k] for k in np.argsort(-merged.values[i])[:3]],
             "scores": [round(float(v), 4) for v in np.sort(merged.values[i])[::-1][:3]]} for i in order]
