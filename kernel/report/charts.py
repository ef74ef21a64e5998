"""Charts as SVG text: what report.html draws with, without matplotlib.

Owns axes, lines, bars and lanes. Colours are CSS variables (`--c0` ... `--c7`, `--ink`, `--faint`), so that a
page decides about light and dark. Does not know what a report is (page_outcome and page_costs do).
"""
import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..units import seconds_text

WIDTH = 1100  # SVG units; pages scale it to their own width
LEFT, RIGHT, TOP, BOTTOM = 76, 28, 12, 30  # margins around the plot
TITLE = 20  # height above a histogram for its label, which would lie over its bars
LANE = 34  # height of a lane
SERIES = 8  # colours before they repeat
WIDE = frozenset("mwMWGOQ%@")  # letters wider than 0.65 of the font's size; the others are narrower
BROKEN = 0.74  # share of the height below the break of a broken axis


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: `points` (x, y) in rising x; `fill` also colours the area below it."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    fill: bool = False


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line over the whole chart."""

    name: str
    y: float
    colour: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar in a lane, from `start` to `stop`; `label` inside if it fits, `title` on hover."""

    lane: str
    start: float
    stop: float
    colour: str
    label: str
    title: str


def text(x: float, y: float, words: str, anchor: str = "start", css: str = "") -> str:
    """An SVG text element, escaped."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{html.escape(words)}</text>'


def text_width(words: str) -> float:
    """Units that a label may take at most: DejaVu Sans at 11.5, the widest of the page's fonts."""
    return sum(11.5 if letter in WIDE else 7.5 for letter in words)


def ticks(top: float, most: int = 6) -> list[float]:
    """Round numbers from 0 up to `top`, at most `most` steps."""
    if not top > 0 or not math.isfinite(top):
        return [0.0]
    raw = top / most
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 5, 10) if size * k >= raw * (1 - 1e-9))
    return [i * step for i in range(int(top / step + 1e-9) + 1)]


def clock_ticks(top: float, most: int = 8) -> list[float]:
    """Round times in seconds from 0 up to `top`."""
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
    step = next((s for s in steps if top / s <= most), 28800)
    return [i * step for i in range(int(top / step + 1e-9) + 1)] if top > 0 else [0.0]


def seconds_label(seconds: float) -> str:
    """12 s, 0.5 s, 3:20 or 1:02:00."""
    return f"{seconds:g} s" if seconds < 60 else seconds_text(seconds)


def svg(height: float, parts: Sequence[str], about: str) -> str:
    """The SVG element; `about` is read by screen readers."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html.escape(about, quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )


def time_axis(end: float, height: float) -> tuple[Callable[[float], float], list[str]]:
    """The map from seconds to x, and the axis below the chart."""
    span = max(end, 1e-9)

    def at(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, seconds / span))

    base = height - BOTTOM
    parts = [f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}" class="axis"/>']
    for place in clock_ticks(end):
        parts.append(
            f'<line x1="{at(place):.1f}" y1="{base}" x2="{at(place):.1f}" y2="{base + 4}" class="axis"/>'
        )
        parts.append(text(at(place), base + 18, seconds_label(place), "middle"))
    return at, parts


def y_axis(
    peak: float, top: float, height: float, show: Callable[[float], str]
) -> tuple[Callable[[float], float], list[str]]:
    """The map from value to y, and the axis at the left; it is broken where everything lies far below `top`.

    peak  largest value of the lines; top  largest level to show
    """
    high = height - BOTTOM
    room = high - TOP
    broken = 0 < peak < 0.5 * top
    knee = 1.15 * peak if broken else max(top, 1e-9)
    share = BROKEN if broken else 1.0

    def at(value: float) -> float:
        if value <= knee or not broken:
            return high - share * room * min(1.0, value / knee)
        return high - room * (share + (1 - share) * (0.45 + 0.5 * (value - 0.9 * top) / (0.1 * top)))

    parts = [f'<line x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{high}" class="axis"/>']
    for place in ticks(knee, 4):
        parts.append(
            f'<line x1="{LEFT}" y1="{at(place):.1f}" x2="{WIDTH - RIGHT}" y2="{at(place):.1f}" class="grid"/>'
        )
        parts.append(text(LEFT - 8, at(place) + 4, show(place), "end"))
    if broken:
        y = high - room * (share + 0.06)
        parts.append(
            f'<path d="M{LEFT - 7},{y + 8:.1f} l14,-7 M{LEFT - 7},{y + 1:.1f} l14,-7" class="axis"/>'
        )
        parts.append(text(WIDTH - RIGHT, y + 2, "axis broken: the limit lies far above", "end", "dim"))
    return at, parts


def line_chart(
    series: Sequence[Series],
    levels: Sequence[Level],
    show: Callable[[float], str],
    about: str,
    height: float = 250,
) -> str:
    """Lines over seconds, with levels across; y from 0."""
    end = max((x for s in series for x, _ in s.points), default=1.0)
    peak = max((y for s in series for _, y in s.points), default=0.0)
    at_x, parts = time_axis(end, height)
    at_y, more = y_axis(peak, max([peak, *(level.y for level in levels)]), height, show)
    parts += more
    for s in series:
        if not s.points:
            continue
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in thin(s.points))
        if s.fill:
            base = at_y(0)
            first, last = at_x(s.points[0][0]), at_x(s.points[-1][0])
            parts.append(
                f'<polygon points="{first:.1f},{base:.1f} {path} {last:.1f},{base:.1f}" '
                f'fill="var({s.colour})" opacity="0.35"/>'
            )
        parts.append(f'<polyline points="{path}" fill="none" stroke="var({s.colour})" stroke-width="2"/>')
    for i, level in enumerate(sorted(levels, key=lambda v: -v.y)):
        y = at_y(level.y)
        parts.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="var({level.colour})" '
            'stroke-width="1.5" stroke-dasharray="7 4"/>'
        )
        parts.append(text(LEFT + 8, y + (-4 if i % 2 == 0 else 13), level.name, css="dim"))
    return svg(height, parts, about)


def thin(points: Sequence[tuple[float, float]], most: int = 500) -> list[tuple[float, float]]:
    """At most about `most` points: of each group the first and the highest, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    out: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        group = points[start:start + size]
        out += sorted({group[0], max(group, key=lambda p: p[1])})
    return out if out[-1] == points[-1] else [*out, points[-1]]


def lanes(bars: Sequence[Bar], end: float, about: str) -> str:
    """Bars over seconds, one lane per name in order of appearance."""
    names = list(dict.fromkeys(bar.lane for bar in bars))
    height = TOP + LANE * max(1, len(names)) + BOTTOM
    at_x, parts = time_axis(end, height)
    for number, name in enumerate(names):
        y = TOP + LANE * number
        parts.append(text(LEFT - 8, y + 17, name[:9], "end"))
        for bar in (b for b in bars if b.lane == name):
            x = at_x(bar.start)
            wide = max(1.2, at_x(bar.stop) - x - 0.8)
            parts.append(
                f'<g><title>{html.escape(bar.title)}</title><rect x="{x:.1f}" y="{y + 2}" '
                f'width="{wide:.1f}" height="24" rx="2" fill="var({bar.colour})"/>'
            )
            if wide > text_width(bar.label) + 12:
                parts.append(text(x + 6, y + 18, bar.label, css="onbar"))
            parts.append("</g>")
    return svg(height, parts, about)


def histogram(
    counts: Sequence[float],
    overlay: Sequence[float],
    edges: Sequence[float],
    labels: tuple[str, str],
    about: str,
    height: float = 190,
) -> str:
    """Bars per bin, an overlay on top of each in the warning colour; labels = (x axis, y axis)."""
    low, high = edges[0], edges[-1]
    peak = max([*(a + b for a, b in zip(counts, overlay, strict=True)), 1e-9])
    space = height - BOTTOM - TOP
    most = peak * space / (space - TITLE)
    at_y, parts = y_axis(peak, most, height, lambda v: f"{v:,.0f}" if peak >= 10 else f"{v:g}")
    room = WIDTH - LEFT - RIGHT

    def at_x(value: float) -> float:
        return LEFT + room * (value - low) / max(high - low, 1e-9)

    base = at_y(0)
    parts.append(f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}" class="axis"/>')
    for place in (t for t in ticks(high, 10) if t >= low):
        parts.append(text(at_x(place), base + 17, f"{place:g}", "middle"))
    for count, extra, left, right in zip(counts, overlay, edges[:-1], edges[1:], strict=True):
        x = at_x(left) + 1
        wide = max(1.0, at_x(right) - at_x(left) - 2)
        y = at_y(count)
        title = f"{left:g} to {right:g} {labels[0]}: {count:g} {labels[1]}"
        if extra:
            title += f", {extra:g} padding"
        parts.append(
            f'<g><title>{html.escape(title)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" '
            f'height="{base - y:.1f}" fill="var(--c0)"/>'
        )
        if extra:
            top = at_y(count + extra)
            parts.append(
                f'<rect x="{x:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{y - top:.1f}" '
                'fill="var(--bad)"/>'
            )
        parts.append("</g>")
    parts.append(text(WIDTH - RIGHT, TOP + 8, f"{labels[1]} by {labels[0]}", "end", "dim"))
    return svg(height, parts, about)


def share_bar(parts: Sequence[tuple[float, str, str]]) -> str:
    """One thin bar split by (value, colour variable, title)."""
    total = sum(value for value, _, _ in parts) or 1.0
    cells = "".join(
        f'<i style="width:{100 * value / total:.2f}%;background:var({colour})" '
        f'title="{html.escape(title)}"></i>'
        for value, colour, title in parts
        if value
    )
    return f'<span class="share">{cells}</span>'
