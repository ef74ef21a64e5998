"""A store in a process of its own, so that its disk can be made to fail: two passes over rows whose arrays
are known.

`python -m tests.helpers.store_process FOLDER JSON` prints the store's figures as JSON; exit 1 if any array
had a wrong byte. JSON: rows, kilobytes (per row), ram, disk, frontends, seconds (per row to produce),
any_filesystem.
"""
from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from kernel.cache.store import Store, StoreLimits
from kernel.sound.decode import Clip, Row


@dataclass(frozen=True)
class FrontEnd:
    """Arrays f32[1, 64, samples]: a stand-in for kernel.sound.frontends.FrontEnd."""

    key: str
    rate: int = 100
    dtype: np.dtype = np.dtype(np.float32)

    def max_bytes(self, samples: int) -> int:
        return 64 * samples * self.dtype.itemsize


def array_of(fe: FrontEnd, row: Row) -> np.ndarray:
    seed = int.from_bytes(f"{fe.key}/{row.id}".encode(), "big") % 2**32
    return np.random.default_rng(seed).random((1, 64, row.clip.samples_claimed), dtype=np.float32)


def main(folder: str, text: str) -> int:
    chosen: dict[str, Any] = {
        "rows": 24,
        "kilobytes": 256,
        "ram": 0,
        "disk": 10**9,
        "frontends": 1,
        "seconds": 0.0,
        "any_filesystem": True,
        **json.loads(text),
    }

    def produce(fe: Any, rows: Any) -> Any:
        for row in rows:
            time.sleep(chosen["seconds"])
            yield row, array_of(fe, row)

    meter = SimpleNamespace(read=lambda: SimpleNamespace(limit_bytes=10**9, used_bytes=0))
    limits = StoreLimits(ram_bytes=chosen["ram"], disk_bytes=chosen["disk"], keep_free_bytes=0,
                         any_filesystem=chosen["any_filesystem"])
    store = Store(produce=produce, meter=meter, limits=limits, scratch=Path(folder), loaders=2)
    samples = chosen["kilobytes"] * 1024 // 256
    rows = [
        Row(id=f"r{i}", clip=Clip(id=f"c{i}", rate=100, samples_claimed=samples, channels=1))
        for i in range(chosen["rows"])
    ]
    wrong = 0
    for _ in range(2):
        for number in range(chosen["frontends"]):
            fe: Any = FrontEnd(f"mel{number}")
            store.warm(fe, rows)
            wrong += sum(not np.array_equal(store.get(fe, row), array_of(fe, row)) for row in rows)
    stats = store.stats()
    store.close()
    stats["left"] = sorted(p.name for p in Path(folder).rglob("*"))
    print(json.dumps(stats))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
