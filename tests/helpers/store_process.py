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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kernel.cache.ram import StoreLimits
from kernel.cache.store import Store
from kernel.sound.rows import Row
from tests.helpers.stores import BINS, FakeFrontEnd, FakeMeter, array_of, row_of

DEFAULTS: dict[str, Any] = {
    "rows": 24,
    "kilobytes": 256,
    "ram": 0,
    "disk": 10**9,
    "frontends": 1,
    "seconds": 0.0,
    "any_filesystem": True,
}


def main(folder: str, text: str) -> int:
    chosen = DEFAULTS | json.loads(text)

    def produce(fe: Any, rows: Sequence[Row]) -> Iterator[tuple[Row, np.ndarray]]:
        for row in rows:
            time.sleep(chosen["seconds"])
            yield row, array_of(fe, row)

    limits = StoreLimits(
        ram_bytes=chosen["ram"],
        disk_bytes=chosen["disk"],
        keep_free_bytes=0,
        any_filesystem=chosen["any_filesystem"],
    )
    meter: Any = FakeMeter()
    store = Store(produce=produce, meter=meter, limits=limits, scratch=Path(folder), loaders=2)
    rows = [row_of(i, samples=chosen["kilobytes"] * 1024 // (4 * BINS)) for i in range(chosen["rows"])]
    wrong = 0
    for _ in range(2):
        for number in range(chosen["frontends"]):
            fe = FakeFrontEnd(f"mel{number}")
            store.warm(fe, rows)
            wrong += sum(not np.array_equal(store.get(fe, row), array_of(fe, row)) for row in rows)
    stats = store.stats()
    store.close()
    left = sorted(path.name for path in Path(folder).rglob("*"))
    print(json.dumps({**vars(stats), "left": left}))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
