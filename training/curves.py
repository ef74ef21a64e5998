"""Training curves: log.csv of a net as a picture. matplotlib is optional; without it there is no picture and
no fault.
"""
from __future__ import annotations

import csv
from pathlib import Path


def draw(log: Path, picture: Path) -> bool:
    """Writes loss (and lwlrap, where measured) over epochs as PNG; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    with log.open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.add_subplot(xlabel="epoch", ylabel="loss", title=log.parent.name)
    left.plot([r["epoch"] for r in rows], [r["loss"] for r in rows], color="tab:blue")
    measured = [r for r in rows if r["lwlrap"] == r["lwlrap"]]
    if measured:
        right = left.twinx()
        right.set_ylabel("held-out lwlrap")
        right.plot([r["epoch"] for r in measured], [r["lwlrap"] for r in measured], color="tab:orange")
    figure.savefig(picture)
    return True
