"""report.html: one self-contained page out of a report, for people.

Owns the frame: the title, the order of the sections, and how the run was made. The other sections are
page_outcome's, page_costs' and page_rows'. Works offline: no script, no font, no file beside it. Every figure
on the page is in report.json. A section that has nothing to show is left out.
"""
from collections.abc import Mapping
from html import escape

from ..units import seconds_text
from .contents import Report
from .page_costs import draw_lengths, draw_members, draw_memory, draw_plan, draw_spans, draw_store
from .page_outcome import draw_faults, draw_tiles, draw_verdict
from .page_pieces import rows_table, section
from .page_rows import draw_uncertain, draw_worst
from .page_style import CSS

STYLES = {"PASS": "pass", "PASS, degraded": "mid", "FAIL": "fail"}  # of a verdict's badge


def page(report: Report, pictures: Mapping[str, str]) -> str:
    """The page as text.

    pictures  row id -> data URI of a spectrogram, for the rows shown
    """
    sections = [
        draw_verdict(report.rehearsal),
        draw_tiles(report),
        draw_faults(report),
        draw_memory(report.timeline, report.limits.ram_bytes),
        draw_spans(report),
        draw_members(report),
        draw_lengths(report),
        draw_store(report.store),
        draw_plan(report.forecast, report.members),
        draw_worst(report.worst or (), pictures),
        draw_uncertain(report.uncertain, report.explained, pictures),
        _draw_provenance(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(f'Hourglass: {report.ensemble}')}</title><style>{CSS}</style></head>"
        f"<body><main>{_draw_top(report)}{''.join(sections)}</main></body></html>\n"
    )


def encode_page(text: str) -> bytes:
    """UTF-8 bytes; names that are no text (surrogates) are shown escaped."""
    return text.encode("utf-8", "backslashreplace")


def _draw_top(report: Report) -> str:
    """Title, verdict and the one sentence that says what this page is."""
    rehearsal = report.rehearsal
    if rehearsal is not None:
        badge = (STYLES[rehearsal.word], rehearsal.word)
        about = (
            f"Rehearsal of {report.rows:,} rows, and what it foretells for a hidden test set of "
            f"{rehearsal.clips:,} rows, {rehearsal.hours:.1f} h of audio."
        )
    else:
        degraded = report.prior_rows or report.partial_rows or report.fault_counts
        badge = ("mid", "DEGRADED") if degraded else ("pass", "COMPLETE")
        about = "One run of the kernel: what it predicted, what it cost, and what went wrong."
    if report.random_weights:
        about += " Random weights: this bundle was built to be timed; its scores mean nothing."
    about = " ".join([about, *(text[0].upper() + text[1:] for text in report.remarks)])
    style, word = badge
    return (
        f'<h1>Hourglass: {escape(report.ensemble)}<span class="badge {style}">{word}</span></h1>'
        f'<p class="soft">{escape(about)}</p>'
    )


def _draw_provenance(report: Report) -> str:
    """How the run was made; a line without words is left out."""
    marks = report.marks
    stops = (marks.stop_s, marks.term_s, marks.kill_s, marks.exit_s)
    times = report.publications
    lines = {
        "bundle": report.bundle,
        "device": report.device.about,
        "back end": report.device.path,
        "memory read from": _shorten_source(report.meter),
        "limits": report.limits.name,
        "stop, TERM, KILL, exit": ", ".join(seconds_text(value) for value in stops),
        "publications": f"{len(times)}, the last at {seconds_text(times[-1])}" if times else "",
        "hours of audio": f"{report.seconds_of_audio / 3600:.2f}",
        "clips not in the sample": str(report.extra_clips),
    }
    guard = report.guard
    if guard is not None:
        lines |= {
            "engine starts": str(guard.attempts),
            "prior submission written after": "" if guard.prior_s is None else f"{guard.prior_s:.2f} s",
            "kernel": "pushed form, bundle pinned by sha256" if guard.pinned else "UNPINNED",
            "exit code": str(guard.exit_code),
        }
    rows = [(escape(name), escape(words)) for name, words in lines.items() if words]
    table = rows_table(("", ""), rows, long=(1,))
    return section("How it ran", "All figures of this page are in report.json.", table)


def _shorten_source(meter: str) -> str:
    """What the meter read, without the long path of a control group."""
    kind, slash, path = meter.partition(" /")
    return f"{kind}, {path.rpartition('/')[2]}" if slash else meter
