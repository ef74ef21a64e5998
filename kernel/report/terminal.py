"""What people read on the terminal when a run or a rehearsal is over: two tables of text.

Owns their words, and printing where nobody may read any more. How far a run is while it goes on is
progress'; the same figures as a page are page's.
"""
import os
import sys

from ..units import gigabytes, seconds_text
from .contents import RehearsalReport, Report, VerdictLine

MAX_FAULTS = 10  # listed; the rest is in report.json


def say(text: str) -> None:
    """Print for whoever still reads: a closed pipe or terminal is no reason to end a run."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # open for the life of the process


def run_table(report: Report) -> str:
    """A run for people: what ran, what it cost, what went wrong."""
    limits = report.limits
    store = report.store
    hits = ", ".join(f"{tier} {count} hits" for tier, count in store.hits.items())
    lines = [
        f"rows {report.rows}: {report.rows - report.prior_rows} predicted, "
        f"{report.partial_rows} of them by a part of the ensemble, {report.prior_rows} prior",
        f"time {seconds_text(report.wall_s)} of {seconds_text(limits.seconds)} | "
        f"peak RAM {gigabytes(report.peak_own_bytes)} of {gigabytes(limits.ram_bytes)} | "
        f"peak spill {gigabytes(store.disk_peak_bytes)} of {gigabytes(limits.disk_bytes)}",
        f"device {report.device.about} | {report.device.path}",
        f"{'member':<28}{'nets':>5}{'rows':>8}{'seconds':>10}{'weight':>8}",
        *(
            f"{m.name:<28}{m.nets_done:>2}/{len(m.nets):<2}{m.rows:>8}{m.seconds:>10.1f}{m.weight:>8.2f}"
            + (f"  knows {m.knows[0]} of {m.knows[1]} classes" if m.knows else "")
            for m in report.members
        ),
        *(
            f"embedding {name}: {work.rows} rows, {work.passes} passes, {work.vectors} vectors in "
            f"{seconds_text(work.seconds)} | read by {work.nets} nets | {work.path}"
            for name, work in (report.embeddings or {}).items()
        ),
        f"store {hits} | RAM {gigabytes(store.ram_bytes)}, disk {gigabytes(store.disk_bytes)}",
    ]
    if report.random_weights:
        lines.append("RANDOM WEIGHTS: this bundle was built to be timed; its scores mean nothing")
    if report.fault_counts:
        counts = ", ".join(f"{code} x{count}" for code, count in sorted(report.fault_counts.items()))
        lines.append(f"DEGRADED: {counts}")
        lines += [f"  {f.code} {f.where!r}: {f.message[:160]}" for f in report.faults[:MAX_FAULTS]]
    return "\n".join(lines)


def verdict_table(rehearsal: RehearsalReport) -> str:
    """What the hidden test set needs, limit by limit, against what is allowed."""
    slower = f"x {rehearsal.slowdown:g} slower"
    return "\n".join(
        [
            f"forecast for {rehearsal.clips} rows, {rehearsal.hours:.2f} h of audio "
            "(allowed time: the kernel's own stop mark)",
            f"      {'':<26}{'here':>12}{slower:>14}{'allowed':>12}   margin",
            *(_verdict_line(line) for line in rehearsal.verdict),
            *(f"      {note}" for note in rehearsal.notes),
        ]
    )


def _verdict_line(line: VerdictLine) -> str:
    here, scaled, allowed = (show(value, line.unit) for value in (line.raw, line.scaled, line.allowed))
    word = "PASS" if line.passed else "FAIL"
    return f"{word}  {line.what:<26}{here:>12}{scaled:>14}{allowed:>12}   {100 * line.margin:+.0f} %"


def show(value: float, unit: str) -> str:
    """A figure of the verdict: seconds, bytes or a count."""
    if unit == "s":
        return seconds_text(value)
    return gigabytes(value) if unit == "B" else f"{value:.0f}"
