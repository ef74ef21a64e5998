"""A report as the engine and the guard leave it, small and made up: for tests of what reads reports."""
from __future__ import annotations

from typing import Any


def make_report(**changes: Any) -> dict[str, Any]:
    """100 rows of 5 s on one CPU: two nets of 10 s and 20 s, 5 s of loading, 4 s of start, 1 s to read
    headers.
    """
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
        "limits": {
            "name": "fat2019",
            "seconds": 3600.0,
            "ram_bytes": 14 * 10**9,
            "disk_bytes": 5 * 10**9,
            "cores": 2,
            "gpu": True,
        },
        "marks": {"stop_s": 3420.0, "term_s": 3465.0, "kill_s": 3470.0, "exit_s": 3510.0},
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
            "ram_bytes": 0,
            "ram_peak_bytes": 100_000_000,
            "disk_peak_bytes": 20_000_000,
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
            {"t": float(t), "used": 4e8 + 5e6 * t, "store": 2e6 * t, "limit": 14e9, "disk": 5e5 * t}
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
        "faults": [],
        "fault_counts": {},
        "extra_clips": 0,
        "remarks": [],
        "guard": {
            "attempts": 1,
            "prior_s": 0.02,
            "pinned": True,
            "exit_code": 0,
            "finished": True,
            "peak_bytes": 15_000_000,
            "faults": [],
        },
        **changes,
    }
