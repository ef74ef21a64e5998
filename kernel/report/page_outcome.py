"""The sections of report.html that say what came of a run: the tiles on top, the verdict, faults.

Owns their words. What the run cost is page_costs'; the forecast of the verdict is the rehearsal's.
"""
from collections.abc import Sequence
from html import escape

from ..units import seconds_text
from . import charts
from .contents import RehearsalReport, Report, VerdictLine
from .page_pieces import bytes_text, rows_table, section, show, small, tile

MAX_FAULTS = 40  # lines of the table; the rest is in report.json


def draw_tiles(report: Report) -> str:
    """Rows, time, memory, disk and faults at one glance."""
    limits = report.limits
    disk = report.store.disk_peak_bytes
    faults = sum(report.fault_counts.values())
    tiles = [
        tile(
            f"{report.rows - report.prior_rows:,} of {report.rows:,}",
            f"rows predicted, {report.partial_rows:,} of them by a part of the ensemble, "
            f"{report.prior_rows:,} hold the prior",
        ),
        tile(
            seconds_text(report.wall_s),
            f"of {seconds_text(limits.seconds)} wall time",
            report.wall_s / max(1e-9, limits.seconds),
        ),
        tile(
            bytes_text(report.peak_own_bytes),
            f"peak memory of {bytes_text(limits.ram_bytes)}",
            report.peak_own_bytes / max(1, limits.ram_bytes),
        ),
        tile(
            bytes_text(disk),
            f"peak spill to disk of {bytes_text(limits.disk_bytes)}",
            disk / max(1, limits.disk_bytes),
        ),
        tile(f"{faults:,}" if faults else "none", "faults" if faults != 1 else "fault"),
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def draw_verdict(rehearsal: RehearsalReport | None) -> str:
    """The forecast against every limit; nothing for a run that was no rehearsal."""
    if rehearsal is None:
        return ""
    slower = f"x {rehearsal.slowdown:g} slower"
    header = ("", "limit", "forecast here", slower, "allowed", "margin", "share of the limit")
    problems = "".join(f'<p class="bad">{escape(text)}</p>' for text in rehearsal.problems)
    problems += "".join(f'<p class="warn">{escape(text)}</p>' for text in rehearsal.concerns)
    notes = "".join(f"<br>{escape(line)}." for line in rehearsal.notes)
    walls = escape("; ".join(rehearsal.walls))
    return section(
        "Will it fit?",
        "Forecast for the hidden test set from the costs measured in this rehearsal; time is also shown for "
        f"a machine {rehearsal.slowdown:g} times slower. Allowed time is the kernel's own stop mark.",
        problems
        + rows_table(header, [_verdict_row(line) for line in rehearsal.verdict], (2, 3, 4, 5))
        + small(f"Walls of this rehearsal: {walls}.{notes}"),
    )


def _verdict_row(line: VerdictLine) -> Sequence[str]:
    margin = 1 - line.scaled / line.allowed if line.allowed else 0.0
    bar = charts.share_bar(
        [
            (min(line.scaled, line.allowed), "--good" if line.passed else "--bad", "forecast"),
            (max(0.0, line.allowed - line.scaled), "--faint", "room"),
        ]
    )
    return (
        '<b class="good">PASS</b>' if line.passed else '<b class="bad">FAIL</b>',
        escape(line.what),
        show(line.raw, line.unit),
        show(line.scaled, line.unit),
        show(line.allowed, line.unit),
        f"{100 * margin:+.0f} %",
        bar,
    )


def draw_faults(report: Report) -> str:
    """What went wrong: every kind counted, the first ones in full."""
    if not report.fault_counts:
        return ""
    counts = sorted(report.fault_counts.items(), key=lambda item: -item[1])
    summary = ", ".join(f"{code} x {count}" for code, count in counts)
    rows = [
        (
            f"{fault.t:.1f} s",
            escape(fault.code),
            f"<code>{escape(fault.where)}</code>",
            escape(fault.message[:300]),
        )
        for fault in report.faults[:MAX_FAULTS]
    ]
    more = len(report.faults) - MAX_FAULTS
    return section(
        "What went wrong",
        f"Every degradation is listed; a fault costs a row or a member, never the run. {summary}.",
        rows_table(("when", "fault", "where", "what happened, and what to do"), rows, long=(2, 3))
        + (small(f"... and {more} more in report.json") if more > 0 else ""),
    )
