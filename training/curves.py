"""Training curves: log.csv of a net as a picture. Without matplotlib there is no picture, and no fault."""
from pathlib import Path

import pandas as pd


def draw(log: Path, picture: Path) -> bool:
    """Writes loss (and the metric, where measured) over epochs as PNG; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    table = pd.read_csv(log)
    metric = table.columns[2]
    measured = table.dropna(subset=metric)
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.add_subplot(xlabel="epoch", ylabel="loss", title=log.parent.name)
    left.plot(table.epoch, table.loss, color="tab:blue")
    if len(measured):
        right = left.twinx()
        right.set_ylabel(f"held-out {metric}")
        right.plot(measured.epoch, measured[metric], color="tab:orange")
    figure.savefig(picture)
    return True
