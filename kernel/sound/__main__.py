"""`python -m kernel.sound`: the front-end presets as a table."""
import time

import numpy as np

from .frontends import build
from .presets import PRESETS


def table() -> str:
    """The presets as text: shape, frames of 10 s, bytes per second, milliseconds per second of audio here."""
    head = f"{'preset':28}{'Hz':>7}{'C x M':>9}{'T of 10 s':>10}{'dtype':>9}{'bytes/s':>10}{'ms/s':>8}  pad"
    lines = [head]
    for name in PRESETS:
        fe = build({"preset": name})
        wave = np.sin(np.arange(10 * fe.rate, dtype=np.float32) ** 1.5 / fe.rate).astype(np.float32)
        fe(wave)
        costs = []
        for _ in range(3):
            started = time.perf_counter()
            array = fe(wave)
            costs.append(time.perf_counter() - started)
        lines.append(f"{name:28}{fe.rate:7}{f'{fe.channels} x {fe.bins}':>9}{array.shape[2]:10}{fe.stored:>9}"
                     f"{array.nbytes / 10:10.0f}{sorted(costs)[1] * 100:8.2f}  {fe.pad}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
