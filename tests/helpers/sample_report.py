"""A report as the engine and the guard leave it, small and made up: for tests of what reads reports."""
from __future__ import annotations

import json
from typing import Any

from kernel.limits import limits, marks
from kernel.report.contents import Report, load_report
from kernel.report.explanations import BINS


def make_report(**changes: Any) -> Report:
    """100 rows of 5 s on one CPU: nets of 10 s and 20 s, 5 s of loading, 4 s of start, 1 s to read headers.

    changes  keys of report.json with other values
    """
    report = load_report(json.dumps(make_json() | changes, default=vars).encode())
    assert isinstance(report, Report)
    return report


def make_json() -> dict[str, Any]:
    """The same as plain values, as they stand in report.json."""
    nets = [
        {
            "id": f"cnn.{i}",
            "rows": 100,
            "seconds": s,
            "loading_s": load,
            "setup_s": 1.0,
            "batches": 100,
            "cells": 36_000,
            "padded_cells": 0,
            "tiled_rows": 0,
            "skipped_rows": 0,
            "path": "torch cpu",
            "failed": None,
            "notes": [],
        }
        for i, (s, load) in enumerate(((16.0, 5.0), (21.0, 0.0)))
    ]
    return {
        "rows": 100,
        "prior_rows": 0,
        "partial_rows": 0,
        "wall_s": 43.0,
        "peak_ram_bytes": 600_000_000,
        "peak_own_bytes": 500_000_000,
        "ensemble": "small",
        "random_weights": False,
        "bundle": "abc",
        "attempt": 1,
        "crashes": [],
        "quarantined": [],
        "limits": vars(limits("fat2019")),
        "marks": vars(marks(3600.0)),
        "device": {"names": ["cpu"], "about": "2 CPU threads", "path": "torch cpu"},
        "meter": "/proc/meminfo",
        "members": [
            {
                "name": "cnn",
                "family": "simple_cnn",
                "weight": 1.0,
                "rows": 100,
                "seconds": 37.0,
                "nets_done": 2,
                "nets": nets,
            }
        ],
        "store": {
            "hits": {"ram": 150, "disk": 40, "recompute": 10},
            "produced": 110,
            "recomputes": 10,
            "spilled": 40,
            "moved": 0,
            "dropped": 0,
            "corrupt": 0,
            "lost": 0,
            "rows_ram": 0,
            "rows_disk": 0,
            "ram_bytes": 0,
            "ram_peak_bytes": 100_000_000,
            "reserved_bytes": 0,
            "hand_bytes": 0,
            "mark_bytes": 13_300_000_000,
            "used_peak_bytes": 600_000_000,
            "disk_bytes": 0,
            "disk_peak_bytes": 20_000_000,
            "disk_rejected": None,
            "disk_errors": {},
            "first_spill_s": 3.5,
            "stored_bytes": 120_000_000,
            "notes": [],
        },
        "costs": {
            "members": {
                "cnn": {
                    "seconds_a": 0.05,
                    "seconds_b": 0.0005,
                    "setup_s": 1.0,
                    "frames_per_row": 200.0,
                    "shape_s": 0.0,
                    "shapes": 10,
                    "shapes_once": 4,
                    "shapes_twice": 2,
                }
            },
            "frontends": {"mel": 0.01},
        },
        "stages": [
            {"name": "start", "device": "main", "start_s": 0.0, "end_s": 4.0},
            {"name": "clips", "device": "main", "rows": 100, "start_s": 4.0, "end_s": 5.0},
            {"name": "cnn.0", "device": "cpu", "rows": 100, "start_s": 5.0, "end_s": 21.0},
            {"name": "publish", "device": "main", "start_s": 21.0, "end_s": 21.2},
            {"name": "cnn.1", "device": "cpu", "rows": 100, "start_s": 21.0, "end_s": 42.0},
            {"name": "publish", "device": "main", "start_s": 42.0, "end_s": 43.0},
        ],
        "timeline": [
            {
                "t": float(t),
                "used": 400_000_000 + 5_000_000 * t,
                "store": 2_000_000 * t,
                "limit": 14_000_000_000,
                "disk": 500_000 * t,
            }
            for t in range(43)
        ],
        "publications": [21.2, 43.0],
        "seconds_of_audio": 500.0,
        "longest_s": 9.0,
        "clip_notes": {},
        "broken_rows": {},
        "lengths_s": {"counts": [10, 80, 10], "edges_s": [1.0, 4.0, 6.0, 9.0]},
        "groups": {
            "cnn": {
                "edges": [100.0, 200.0, 300.0],
                "cells": [20_000, 52_000],
                "padding": [0, 700],
                "widths": 12,
                "forwards": 200,
            }
        },
        "forecast": {
            "steps": [
                {
                    "net": "cnn.0",
                    "kind": "cover",
                    "forecast_s": 12.0,
                    "seconds": 16.0,
                    "loading_s": 5.0,
                    "rows": 100,
                    "done": 100,
                }
            ],
            "median_ratio": 1.33,
            "worst_ratio": 1.33,
        },
        "uncertain": [{"row": "a<b>.wav", "best": ["bark", "meow", "hiss"], "scores": [0.41, 0.4, 0.1]}],
        "explained": [explain_row("a<b>.wav", ["bark", "meow", "hiss"], ["cnn", "sed<"])],
        "faults": [],
        "fault_counts": {},
        "extra_clips": 0,
        "remarks": [],
        "guard": {
            "prior_s": 0.02,
            "attempts": 1,
            "deaths": [],
            "faults": [],
            "finished": True,
            "pinned": True,
            "bundle": "/kaggle/input/datasets/owner/bundle",
            "offset_s": 0.0,
            "peak_bytes": 15_000_000,
            "sample": "/kaggle/input/competitions/rehearsal/sample_submission.csv",
            "stacks": "",
            "signal": 0,
            "exit_code": 0,
        },
    }


def explain_row(row: str, classes: list[str], names: list[str], others: int = 0) -> dict[str, Any]:
    """A row of 4 s: the first member agrees with the ensemble, the others say the last class; one strip."""
    rising = [round(0.01 * (1 + bin), 4) for bin in range(BINS)]
    return {
        "row": row,
        "seconds": 4.0,
        "classes": classes,
        "members": [
            {"name": name, "scores": [0.41, 0.4, 0.1], "best": classes[-1 if i else 0], "score": 0.5}
            for i, name in enumerate(names)
        ],
        "others": others,
        "moments": [
            {
                "net": f"{names[0]}.0",
                "kind": "passes",
                "scores": [rising, [None, *rising[:0:-1]]],
                "aligned": True,
            }
        ],
    }
