"""The pieces that the sections of report.html are made of: cards, tables, tiles, legends, figures as text.

Owns their HTML; page_style owns their look. Does not know a report but for the colours of its members.
"""
from collections.abc import Mapping, Sequence
from html import escape

from ..units import GB, seconds_text
from . import charts
from .contents import MemberReport

MB = 1e6


def section(title: str, note: str, body: str) -> str:
    """One card; nothing when it would be empty."""
    if not body:
        return ""
    return f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{body}</section>'


def rows_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Sequence[int] = (),
    long: Sequence[int] = (),
) -> str:
    """A table that scrolls where the page is too narrow; cells are HTML already.

    numeric  columns that are right-aligned; long: columns whose words may be broken, so they are kept wide
    """
    if not rows:
        return ""
    styles = {**dict.fromkeys(numeric, " class=n"), **dict.fromkeys(long, " class=l")}
    lines = [_row(header, "th", styles), *(_row(row, "td", styles) for row in rows)]
    return scroll(f"<table>{''.join(lines)}</table>")


def _row(row: Sequence[str], tag: str, styles: Mapping[int, str]) -> str:
    cells = (f"<{tag}{styles.get(i, '')}>{cell}</{tag}>" for i, cell in enumerate(row))
    return f"<tr>{''.join(cells)}</tr>"


def scroll(wide: str) -> str:
    """Something wide in a box of its own, so that it scrolls and not the page."""
    return f'<div class="scroll">{wide}</div>' if wide else ""


def key(entries: Sequence[tuple[str, str]]) -> str:
    """Legend of (name, colour variable)."""
    return "".join(
        f'<span class="key"><i style="background:var({colour})"></i>{escape(name)}</span>'
        for name, colour in entries
    )


def square(colour: str) -> str:
    """A small square in a colour, before a name."""
    return f'<i style="color:var({colour})">&#9632;</i>'


def small(text: str) -> str:
    """A remark below a chart or a table; the text is HTML already."""
    return f'<p class="note">{text}</p>'


def bytes_text(size: float) -> str:
    """12.34 GB, 45 MB or 6 kB."""
    if abs(size) >= 0.1 * GB:
        return f"{size / GB:.2f} GB"
    if size >= MB or size == 0:
        return f"{size / MB:.0f} MB"
    return f"{size / 1e3:.0f} kB"


def tile(value: str, words: str, share: float | None = None) -> str:
    """One big number, with a bar of how much of the limit it is."""
    bar = ""
    if share is not None:
        colour = "--good" if share <= 0.85 else "--warn" if share <= 1.0 else "--bad"
        width = 100 * min(1.0, share)
        bar = f'<span class="meter"><i style="width:{width:.1f}%;background:var({colour})"></i></span>'
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(words)}</span>{bar}</div>'


def show(value: float, unit: str) -> str:
    """A figure of the verdict: seconds, bytes or a count."""
    if unit == "s":
        return seconds_text(value)
    return bytes_text(value) if unit == "B" else f"{value:.0f}"


def member_colours(members: Sequence[MemberReport]) -> dict[str, str]:
    """Member name -> colour variable."""
    return {member.name: f"--c{i % (charts.SERIES - 1)}" for i, member in enumerate(members)}


def net_colour(net_id: str, known: Mapping[str, str]) -> str:
    """Colour of a net by its member; grey for spans that are no net."""
    return known.get(net_id.rpartition(".")[0], "--c7")
