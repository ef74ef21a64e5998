"""The sections of report.html on single rows: the worst, and the most uncertain with the reasons for them.

Owns their cards: a spectrogram, strips below it that say where a net heard the best two classes, and what
each member says. Computes nothing: all of it is in report.json.
"""
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from .contents import ShownRow
from .explanations import Explanation, MemberSays, MomentsReport
from .page_pieces import section
from .pictures import LEVELS, data_uri, encode_png

WORST = (
    "Predicted rows whose true labels rank lowest, by the labels given to the rehearsal. A row of the same "
    "wrong class again and again points at a class; single rows point at labels."
)
UNCERTAIN = (
    "Predicted rows whose best two classes have nearly the same score. Pictures: log-mel spectrograms, low "
    "frequencies at the bottom, time to the right. The strips, on the same time axis: the score of the best "
    "two classes in each part of the row, dark 0, light the highest of both. Then what each member says; "
    "marked: its own best class is another one than the ensemble's."
)
HEARD = {
    "passes": "its passes, as they were scored",
    "frames": "its frames",
    "pieces": "pieces that it heard alone",
}
STRIPS = 2  # classes shown
SAID = 6  # members shown on a card; the rest is in report.json


def draw_worst(rows: Sequence[ShownRow], pictures: Mapping[str, str]) -> str:
    """A card per row, with its labels."""
    cards = "".join(_card(row, pictures.get(row.row), _labels(row) + _best(row)) for row in rows)
    return section("Worst predictions", WORST, f'<div class="clips">{cards}</div>' if cards else "")


def draw_uncertain(
    rows: Sequence[ShownRow], explained: Sequence[Explanation], pictures: Mapping[str, str]
) -> str:
    """A card per row, with what is told of it."""
    told = {row.row: row for row in explained}
    cards = "".join(_card(row, pictures.get(row.row), _best(row), told.get(row.row)) for row in rows)
    body = f'<div class="clips why">{cards}</div>' if cards else ""
    return section("Most uncertain clips", UNCERTAIN, body)


def _card(row: ShownRow, picture: str | None, words: str, told: Explanation | None = None) -> str:
    """One row: its picture, what belongs below it, its name and words."""
    image = f'<img src="{picture}" alt="log-mel spectrogram">' if picture else ""
    name = escape(row.row)
    strips = "".join(_strips(moments, told) for moments in told.moments) if told else ""
    said = _members(told) if told else ""
    return f'<div class="clip">{image}<b title="{name}">{name}</b>{words}{strips}{said}</div>'


def _labels(row: ShownRow) -> str:
    if not row.truth:
        return ""
    return f'<span class="good">rank {row.rank}, true: {escape(", ".join(row.truth))}</span>'


def _best(row: ShownRow) -> str:
    best = [f"{label} {score:.3g}" for label, score in zip(row.best, row.scores, strict=False)]
    return f'<span class="soft">{escape(", ".join(best[:2]))}</span>'


def _strips(moments: MomentsReport, told: Explanation) -> str:
    """What one net says over time: a strip per class, and in words where each is highest."""
    scores = np.array([[np.nan if v is None else v for v in row] for row in moments.scores[:STRIPS]], float)
    if not np.isfinite(scores).any():
        return ""
    levels = np.nan_to_num(scores / max(1e-9, float(np.nanmax(scores)))) * (LEVELS - 1)
    strip = data_uri(encode_png(levels.round().astype(np.uint8)))
    peaks = [
        f"{name} most at {_peak_s(row, told.seconds):.1f} s"
        for name, row in zip(told.classes, scores, strict=False)
        if np.isfinite(row).any()
    ]
    words = f"{moments.net}, by {HEARD.get(moments.kind, moments.kind)}: {', '.join(peaks)}"
    if not moments.aligned:
        words += " (of an array laid out anew: not the clip's own seconds)"
    return (
        f'<img class="time" src="{strip}" alt="{escape(words, quote=True)}">'
        f'<span class="said">{escape(words)}</span>'
    )


def _peak_s(scores: np.ndarray, seconds: float) -> float:
    """Seconds at the middle of the highest bin; of several that are highest, at the middle of the first."""
    return (int(np.nanargmax(scores)) + 0.5) * seconds / len(scores)


def _members(told: Explanation) -> str:
    """What each member says of the best two classes, and which of them prefer another one."""
    lines = "".join(_member(member, told) for member in told.members[:SAID])
    more = told.others + max(0, len(told.members) - SAID)
    if more:
        lines += f'<span class="said soft">and {more} more members in report.json</span>'
    return lines


def _member(member: MemberSays, told: Explanation) -> str:
    scores = ", ".join(
        f"{name} unknown" if score is None else f"{name} {score:.3g}"
        for name, score in zip(told.classes[:2], member.scores, strict=False)
    )
    style = "said"
    words = f"{member.name}: {scores}"
    if member in told.dissenters:
        style = "said warn"
        if member.best not in told.classes[:2]:
            words += f"; says {member.best} {member.score:.3g}"
    return f'<span class="{style}">{escape(words)}</span>'
