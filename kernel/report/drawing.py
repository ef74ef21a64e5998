"""Pictures for people who look, in a notebook or a script: a file's spectrogram, and what an ensemble hears.

Owns the drawing with matplotlib, which is optional and imported here alone. Scores nothing: `library.listen`
asks the engine. report.html draws without it.
"""
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import HourglassError, SpecError
from ..sound import own
from ..sound.decode import decode, probe, resample
from ..sound.frontends import FrontEnd
from ..sound.source import Source
from .explanations import Explanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST_S = 600.0  # of a file that is drawn; a picture of more shows nothing
STRIP_INCHES = 0.28  # height of a class in a picture


def spectrogram(
    path: str | os.PathLike[str],
    frontend: str | Mapping[str, object] = "argus",
    *,
    axes: "Axes | None" = None,
) -> "Axes":
    """The array that a front end makes of an audio file, drawn; first channel, low bins below.

    frontend  a preset by name (`python -m kernel.sound` lists them), or the keys of a TOML's [frontends.NAME]
    axes      where to draw; None: a new figure

    Raises  ClipUnreadable, ClipEmpty, SpecError; HourglassError without matplotlib
    """
    source = _open(frontend)
    wave = resample(decode(_probe(Path(path)), LONGEST_S), source.rate).samples
    array = np.asarray(source.of_row(wave, Path(path).name), np.float32)
    plt = load_pyplot()
    axes = axes or plt.subplots(figsize=(9, 3), layout="constrained")[1]
    return draw_array(axes, source, array, len(wave) / source.rate, Path(path).name)


def _open(frontend: str | Mapping[str, object]) -> Source:
    """The front end itself. Raises SpecError."""
    keys = {"preset": frontend} if isinstance(frontend, str) else dict(frontend)
    if not keys:
        raise SpecError('frontend: no key; give a preset by name, for instance "argus"')
    return own.open_front_end(keys, "drawn")


def _probe(path: Path) -> Any:
    """The clip of a path. Raises ClipUnreadable."""
    clip = probe(path.name, path.resolve(), [path.resolve().parent])
    if clip.error is not None:
        raise clip.error
    return clip


def draw_array(axes: "Axes", source: Source, array: np.ndarray, seconds: float, title: str) -> "Axes":
    """array[C, M, T] of a front end over the seconds of its file."""
    trimmed = isinstance(source, FrontEnd) and source.trim_db is not None and source.spectrum != "wave"
    if trimmed and isinstance(source, FrontEnd):
        seconds = array.shape[-1] * source.hop / source.rate
    if array.shape[1] == 1:
        axes.plot(np.arange(array.shape[-1]) * seconds / array.shape[-1], array[0, 0], linewidth=0.5)
    else:
        low, high = np.percentile(array[0], [2.0, 99.8])
        axes.imshow(array[0], origin="lower", aspect="auto", interpolation="nearest", cmap="inferno",
                    vmin=low, vmax=max(high, low + 1e-6), extent=(0, seconds, 0, array.shape[1]))
    words = [title, f"front end {source.name}", "x".join(map(str, array.shape))]
    if array.shape[0] > 1:
        words.append(f"channel 1 of {array.shape[0]}")
    if trimmed:
        words.append("silent ends cut")
    axes.set_title(", ".join(words), fontsize=9)
    axes.set_xlabel("seconds")
    axes.set_ylabel("value" if array.shape[1] == 1 else "bin")
    return axes


def draw_told(path: Path, told: Explanation) -> None:
    """A figure of one clip: its spectrogram, what nets say over time, and what each member says at all."""
    plt = load_pyplot()
    heights = [2.2, *(STRIP_INCHES * len(heard.scores) + 0.5 for heard in told.moments)]
    heights.append(STRIP_INCHES * len(told.classes) + 0.9)
    figure, all_axes = plt.subplots(
        len(heights), 1, figsize=(9, sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
    )
    spectrogram(path, {"preset": "argus", "trim_db": "none"}, axes=all_axes[0, 0])
    for axes, heard in zip(all_axes[1:, 0], told.moments, strict=False):
        scores = np.array([[np.nan if v is None else v for v in row] for row in heard.scores], float)
        _heat(axes, scores, told.classes[: len(scores)], (0.0, told.seconds))
        axes.set_title(f"{heard.net}: score of each part, by its {heard.kind}", fontsize=9)
        axes.set_xlabel("seconds" if heard.aligned else "share of an array that was laid out anew")
    _draw_members(all_axes[-1, 0], told)
    figure.suptitle(title_of(told), fontsize=10)


def title_of(told: Explanation) -> str:
    """Who disagrees, in words."""
    if not told.members:
        return f"{told.row}: no member has a say; it holds the prior"
    if not told.dissenters:
        return f"{told.row}: {told.classes[0]}; every member says so"
    others = ", ".join(f"{member.name} says {member.best}" for member in told.dissenters)
    return f"{told.row}: {told.classes[0]}; disagreeing: {others}"


def _draw_members(axes: "Axes", told: Explanation) -> None:
    """A column per member, the disagreeing ones marked."""
    scores = np.full((max(1, len(told.members)), len(told.classes)), np.nan)
    for column, member in enumerate(told.members):
        scores[column] = [np.nan if score is None else score for score in member.scores]
    _heat(axes, scores.T, told.classes, None)
    marks = set(told.dissenters)
    names = [f"{member.name} (!)" if member in marks else member.name for member in told.members]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_title("what each member says; (!): its best class is another one", fontsize=9)
    most = np.nanmax(scores, initial=0.0)
    for column, row in np.argwhere(np.isfinite(scores)):
        score = scores[column, row]
        colour = "black" if score > 0.6 * most else "white"
        axes.text(column, row, f"{score:.2g}", ha="center", va="center", fontsize=7, color=colour)


def _heat(
    axes: "Axes", scores: np.ndarray, classes: tuple[str, ...], span: tuple[float, float] | None
) -> None:
    """Scores [classes, columns] as colours, the first class on top."""
    extent = None if span is None else (*span, len(scores) - 0.5, -0.5)
    axes.imshow(scores, aspect="auto", interpolation="nearest", cmap="inferno", vmin=0, extent=extent)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)


def draw_windows(path: Path, ids: list[str], scores: np.ndarray, classes: list[str], seconds: float) -> None:
    """A figure of one recording: its spectrogram, and the best classes f64[K, N] of its windows over time."""
    plt = load_pyplot()
    heights = [2.2, STRIP_INCHES * len(classes) + 0.7]
    figure, (top, below) = plt.subplots(
        2, 1, figsize=(9, sum(heights)), height_ratios=heights, layout="constrained"
    )
    spectrogram(path, {"preset": "argus", "trim_db": "none"}, axes=top)
    _heat(below, scores, tuple(classes), (0.0, seconds * len(ids)))
    below.set_xlabel("seconds")
    below.set_title(f"score of each of {len(ids)} windows of {seconds:g} s", fontsize=9)


def load_pyplot() -> Any:
    """matplotlib.pyplot. Raises HourglassError where it is not installed."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise HourglassError("drawing needs matplotlib: pip install matplotlib") from error
    return plt
