"""Spectrogram pictures of rows for the report's page.

Owns which rows are drawn and how; one picture is a PNG as a data URI. Does not choose colours or write pages
(charts, report_page). A row that cannot be drawn has no picture: a picture is never worth a run.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import ClipError
from ..sound import decode, frontends
from . import charts

PRESET = "argus"  # one log-mel for every picture, whatever the members read: pictures of one page compare


def draw_rows(rows: Sequence[decode.Row], max_seconds: float, stop: Callable[[], bool]) -> dict[str, str]:
    """Row id -> data URI of its log-mel spectrogram; rows without readable audio and those after `stop()` are
    left out.
    """
    fe = frontends.build({"preset": PRESET})
    pictures: dict[str, str] = {}
    for row in rows:
        if stop():
            break
        try:
            wave = decode.load(row, fe.rate, max_seconds)
        except ClipError:  # named where it was predicted
            continue
        pictures[row.id] = charts.data_uri(charts.picture(fe(wave.samples)[0]))
    return pictures
