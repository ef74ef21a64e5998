"""Headers are read side by side, suspects alone, and not beyond their time."""
import threading
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from kernel.engine import headers
from kernel.engine.journal import Journal
from kernel.engine.run_rows import UNKNOWN_S, open_rows
from kernel.errors import ClipUnreadable
from kernel.limits import Clock
from kernel.report.recorder import Recorder
from kernel.sound.clips import ClipIndex, find_clips
from kernel.sound.decode import Clip, decode, probe
from kernel.sound.rows import Row
from tests.helpers.whole_runs import render_clip

CLIPS = 100


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    place = tmp_path_factory.mktemp("clips")
    ids = [f"c{i:03d}.wav" for i in range(CLIPS)]
    for i, id in enumerate(ids):
        render_clip(place / id, 0.01 * (1 + i), i)
    return find_clips(place, ids)


def ids_of(index: ClipIndex) -> list[str]:
    return sorted(index.paths)


def test_headers_are_read_side_by_side_and_each_once(tmp_path: Path, index: ClipIndex) -> None:
    """Four readers must meet before any of them may go on: one after the other would never end."""
    meeting = threading.Barrier(1 + CLIPS // headers.ROWS_PER_READER)
    seen: list[str] = []

    def probe_together(id: str, path: Path, roots: Sequence[Path]) -> Clip:
        if id in ids_of(index)[:4]:
            meeting.wait(30)
        seen.append(id)
        return probe(id, path, roots)

    with mock.patch.object(headers, "probe", probe_together):
        clips = headers.read_headers(ids_of(index), index, Journal(tmp_path, 1), lambda: None, lambda: False)
    assert sorted(seen) == ids_of(index)
    assert clips == {id: probe(id, index.paths[id], index.roots) for id in ids_of(index)}


def test_what_is_not_read_in_time_is_read_when_it_is_decoded(tmp_path: Path, index: ClipIndex) -> None:
    read: list[str] = []

    def late() -> bool:
        return len(read) >= 10

    clips = headers.read_headers(ids_of(index), index, Journal(tmp_path, 1), lambda: read.append(""), late)
    unread = [clip for clip in clips.values() if clip.unread]
    assert len(clips) == CLIPS and 10 <= CLIPS - len(unread) < CLIPS
    whole = probe(unread[0].id, index.paths[unread[0].id], index.roots)
    assert unread[0].rate == 0 and unread[0].error is None
    assert np.array_equal(decode(unread[0], 900.0).samples, decode(whole, 900.0).samples)
    rows = [Row(id=id, clip=clip) for id, clip in clips.items()]
    opened = open_rows(rows, None, 900.0, False, Recorder(clock=Clock(started=0.0, started_boot=0.0)))
    known = [clip.samples_claimed / clip.rate for clip in clips.values() if not clip.unread]
    assert all(opened.seconds[i] == np.median(known) for i, row in enumerate(rows) if row.clip.unread)
    assert len(opened.wanted) == CLIPS


def test_without_any_header_lengths_are_guessed_and_windows_lost(tmp_path: Path, index: ClipIndex) -> None:
    clips = headers.read_headers(ids_of(index), index, Journal(tmp_path, 1), lambda: None, lambda: True)
    assert all(clip.unread for clip in clips.values())
    rows = [Row(id=id, clip=clip) for id, clip in clips.items()]
    opened = open_rows(rows, None, 900.0, False, Recorder(clock=Clock(started=0.0, started_boot=0.0)))
    assert set(opened.seconds) == {UNKNOWN_S}
    refused = headers.refuse_unread(clips)
    assert all(isinstance(clip.error, ClipUnreadable) and "not read in time" in str(clip.error)
               for clip in refused.values())


def test_a_missing_file_behind_an_unread_header_is_named(tmp_path: Path) -> None:
    clip = Clip(id="gone.wav", path=tmp_path / "gone.wav", unread_below=(tmp_path,))
    with pytest.raises(ClipUnreadable, match="gone.wav"):
        decode(clip, 900.0)


def test_a_suspect_is_read_alone_and_a_quarantined_clip_not_at_all(tmp_path: Path, index: ClipIndex) -> None:
    first, second, *_ = ids_of(index)
    for attempt, ids in enumerate(([second], [first, second]), 1):  # what two dead engines had in flight
        journal = Journal(tmp_path, attempt)
        for id in ids:
            with pytest.raises(RuntimeError), journal.flight("clip", [id]):
                raise RuntimeError("CUDA error: the mark stays")
    journal = Journal(tmp_path, 3)
    assert journal.suspects == {first} and journal.quarantined_clips == {second}
    seen: list[tuple[str, int]] = []

    def probe_seen(id: str, path: Path, roots: Sequence[Path]) -> Clip:
        seen.append((id, threading.get_ident()))
        return probe(id, path, roots)

    with mock.patch.object(headers, "probe", probe_seen):
        clips = headers.read_headers(ids_of(index), index, journal, lambda: None, lambda: False)
    assert seen[0] == (first, threading.get_ident()) and second not in dict(seen)
    assert "quarantin" in type(clips[second].error).__name__.lower()
