"""Charts as SVG text and pictures as PNG bytes: what report.html draws with, without matplotlib.

Owns axes, lines, bars, lanes and the spectrogram picture. Colours are CSS variables (`--c0` ... `--c7`,
`--ink`, `--faint`), so that a page decides about light and dark. Does not know what a report is
(report_page).
"""
from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WIDTH = 1100  # SVG units; pages scale it to their own width
LEFT, RIGHT, TOP, BOTTOM = 76, 16, 12, 30
SERIES = 8  # colours before they repeat
PICTURE_WIDTH, PICTURE_HEIGHT = 240, 56
LEVELS = 32  # colours of a picture: enough for a spectrogram, and half the bytes of 256
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
class Span:
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
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def svg(height: float, parts: Sequence[str], about: str) -> str:
    """The SVG element; `about` is read by screen readers."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html.escape(about, quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )


def x_axis(
    top: float, height: float, places: Sequence[float], show: Callable[[float], str]
) -> tuple[Callable[[float], float], list[str]]:
    """The map from value to x, and the axis below the chart."""
    span = max(top, 1e-9)

    def at(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, value / span))

    base = height - BOTTOM
    parts = [f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}" class="axis"/>']
    for place in places:
        parts.append(
            f'<line x1="{at(place):.1f}" y1="{base}" x2="{at(place):.1f}" y2="{base + 4}" class="axis"/>'
        )
        parts.append(text(at(place), base + 18, show(place), "middle"))
    return at, parts


def y_axis(
    peak: float, top: float, height: float, show: Callable[[float], str]
) -> tuple[Callable[[float], float], list[str]]:
    """The map from value to y, and the axis at the left; it is broken where everything lies far below `top`.

    peak  largest value of the lines; top  largest level to show
    """
    low, high = TOP, height - BOTTOM
    room = high - low
    broken = 0 < peak < 0.5 * top
    knee = 1.15 * peak if broken else max(top, 1e-9)
    share = BROKEN if broken else 1.0

    def at(value: float) -> float:
        if value <= knee or not broken:
            return high - share * room * min(1.0, value / knee)
        return high - room * (share + (1 - share) * (0.45 + 0.5 * (value - 0.9 * top) / (0.1 * top)))

    parts = [f'<line x1="{LEFT}" y1="{low}" x2="{LEFT}" y2="{high}" class="axis"/>']
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


def line_chart(series: Sequence[Series], levels: Sequence[Level], show: Callable[[float], str], about: str,
               height: float = 250) -> str:
    """Lines over seconds, with levels across; y from 0."""
    end = max((x for s in series for x, _ in s.points), default=1.0)
    peak = max((y for s in series for _, y in s.points), default=0.0)
    at_x, parts = x_axis(end, height, clock_ticks(end), seconds_label)
    at_y, more = y_axis(peak, max([peak, *(level.y for level in levels)]), height, show)
    parts += more
    for s in series:
        if not s.points:
            continue
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in thin(s.points))
        if s.fill:
            base = at_y(0)
            parts.append(
                f'<polygon points="{at_x(s.points[0][0]):.1f},{base:.1f} {path} {at_x(s.points[-1][0]):.1f},{base:.1f}" '
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


def lanes(spans: Sequence[Span], end: float, about: str) -> str:
    """Bars over seconds, one lane per name in order of appearance."""
    names = list(dict.fromkeys(s.lane for s in spans))
    height = TOP + 34 * max(1, len(names)) + BOTTOM
    at_x, parts = x_axis(end, height, clock_ticks(end), seconds_label)
    for number, name in enumerate(names):
        y = TOP + 34 * number
        parts.append(text(LEFT - 8, y + 17, name[:11], "end"))
        for span in (s for s in spans if s.lane == name):
            x, wide = at_x(span.start), max(1.2, at_x(span.stop) - at_x(span.start) - 0.8)
            parts.append(
                f'<g><title>{html.escape(span.title)}</title><rect x="{x:.1f}" y="{y + 2}" width="{wide:.1f}" '
                f'height="24" rx="2" fill="var({span.colour})"/>'
            )
            if wide > 7.2 * len(span.label) + 8:
                parts.append(text(x + 6, y + 18, span.label, css="onbar"))
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
    """Bars per bin, with an overlay drawn on top of each in the warning colour; labels = (x axis, y axis)."""
    low, high = float(edges[0]), float(edges[-1])
    peak = max([*(a + b for a, b in zip(counts, overlay, strict=True)), 1e-9])
    at_y, parts = y_axis(peak, peak * 1.04, height, lambda v: f"{v:,.0f}" if peak >= 10 else f"{v:g}")
    room = WIDTH - LEFT - RIGHT

    def at_x(value: float) -> float:
        return LEFT + room * (value - low) / max(high - low, 1e-9)

    base = at_y(0)
    parts.append(f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}" class="axis"/>')
    for place in (t for t in ticks(high, 10) if t >= low):
        parts.append(text(at_x(place), base + 17, f"{place:g}", "middle"))
    for count, extra, left, right in zip(counts, overlay, edges[:-1], edges[1:], strict=True):
        x, wide = at_x(left) + 1, max(1.0, at_x(right) - at_x(left) - 2)
        title = f"{left:g} to {right:g} {labels[0]}: {count:g} {labels[1]}" + (
            f", {extra:g} padding" if extra else ""
        )
        parts.append(
            f'<g><title>{html.escape(title)}</title><rect x="{x:.1f}" y="{at_y(count):.1f}" width="{wide:.1f}" '
            f'height="{base - at_y(count):.1f}" fill="var(--c0)"/>'
        )
        if extra:
            parts.append(f'<rect x="{x:.1f}" y="{at_y(count + extra):.1f}" width="{wide:.1f}" '
                         f'height="{at_y(count) - at_y(count + extra):.1f}" fill="var(--bad)"/>')
        parts.append("</g>")
    parts.append(text(WIDTH - RIGHT, TOP + 4, f"{labels[1]} by {labels[0]}", "end", "dim"))
    return svg(height, parts, about)


def share_bar(parts: Sequence[tuple[float, str, str]]) -> str:
    """One thin bar split by (value, colour variable, title)."""
    total = sum(value for value, _, _ in parts) or 1.0
    cells = "".join(
        f'<i style="width:{100 * value / total:.2f}%;background:var({colour})" title="{html.escape(title)}"></i>'
        for value, colour, title in parts
        if value
    )
    return f'<span class="share">{cells}</span>'


# -- pictures
# ---------------------------------------------------------------------------------------------------------


def palette(levels: int = LEVELS) -> bytes:
    """RGB bytes from dark blue over red to light yellow: rising lightness, readable in grey and for the
    colour-blind.
    """
    stops = np.array(
        [[0, 0, 8], [48, 12, 92], [138, 34, 106], [214, 72, 66], [250, 160, 40], [252, 252, 180]], dtype=float
    )
    at = np.linspace(0, len(stops) - 1, levels)
    colours = [np.interp(at, np.arange(len(stops)), stops[:, c]) for c in range(3)]
    return np.stack(colours, axis=1).round().astype(np.uint8).tobytes()


def png(levels: np.ndarray) -> bytes:
    """A PNG of palette indices u8[H, W] below LEVELS, row 0 on top."""
    height, width = levels.shape
    rows = np.zeros((height, width + 1), dtype=np.uint8)  # a filter byte 0 leads each row
    rows[:, 1:] = levels

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", palette())
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + chunk(b"IEND", b"")
    )


def picture(spectrogram: np.ndarray, width: int = PICTURE_WIDTH, height: int = PICTURE_HEIGHT) -> bytes:
    """A PNG of a log-mel array [M, T], low bins below; contrast from its own 2nd to 99.8th percentile."""
    values = np.asarray(spectrogram, dtype=np.float32)
    bins = np.linspace(0, values.shape[0], height + 1).astype(int)
    values = np.stack(
        [values[a : max(b, a + 1)].mean(axis=0) for a, b in zip(bins[:-1], bins[1:], strict=True)]
    )
    places = np.linspace(0, values.shape[1], width + 1).astype(int)
    values = np.stack(
        [values[:, a : max(b, a + 1)].max(axis=1) for a, b in zip(places[:-1], places[1:], strict=True)],
        axis=1,
    )
    low, high = np.percentile(values, [2.0, 99.8])
    scaled = np.clip((values - low) / max(1e-6, float(high - low)), 0, 1)
    return png((scaled[::-1] * (LEVELS - 1)).round().astype(np.uint8))


def data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")
