"""Loading ahead of a net: windows of recordings are decoded once per front end, whatever the blocks."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kernel import spec
from kernel.cache.ram import StoreLimits
from kernel.engine.cpu import BLOCK_ROWS
from kernel.engine.feed import Feed
from kernel.engine.heartbeat import Heartbeat
from kernel.engine.journal import Journal
from kernel.engine.run_rows import open_rows
from kernel.inference.recipe import Recipe, build_recipe
from kernel.limits import Clock
from kernel.report.recorder import Recorder
from kernel.sound.clips import find_clips
from kernel.sound.rows import list_rows, window_ids
from tests.helpers.stores import FakeMeter

RATE = 4_000
RECORDINGS = 3
SECONDS = 400  # no multiple of a block of rows
WINDOWS = spec.Windows(seconds=4.0)
COUNT = SECONDS // 4


@pytest.fixture
def make_feed(tmp_path: Path) -> Iterator[Callable[..., tuple[Feed, Recipe]]]:
    """A feed over the windows of three recordings; the room for their arrays is chosen."""
    ids: list[str] = []
    for i in range(RECORDINGS):
        wave = np.arange(SECONDS * RATE) % (97 + i) / 200
        soundfile.write(tmp_path / f"r{i}.wav", wave, RATE, subtype="FLOAT")
        ids += window_ids(f"r{i}", SECONDS, WINDOWS)
    member = spec.Member(name="net", family="simple_cnn", frontend="wave")
    ensemble = spec.Ensemble(
        name="e",
        classes=("a", "b"),
        members=(member,),
        frontends={"wave": {"preset": "wave", "rate": RATE}},
        windows=WINDOWS,
    )
    feeds: list[Feed] = []

    def make(ram: int = 10**9, loaders: int = 2, limit: int = 10**9) -> tuple[Feed, Recipe]:
        clock = Clock(
            started=time.monotonic(), started_boot=time.clock_gettime(time.CLOCK_BOOTTIME), offset_s=0.0
        )
        listed = list_rows(ids, find_clips(tmp_path, ["r0", "r1", "r2"]), WINDOWS)
        rows = open_rows(listed, None, ensemble.longest_s, True, Recorder(clock=clock))
        meter: Any = FakeMeter(limit)
        feed = Feed(
            rows=rows,
            longest_s=ensemble.longest_s,
            journal=Journal(tmp_path / "state", 1),
            heartbeat=Heartbeat(tmp_path / "heartbeat.json"),
            meter=meter,
            limits=StoreLimits(ram_bytes=ram, disk_bytes=0),
            scratch=tmp_path / "spill",
            loaders=loaders,
        )
        feeds.append(feed)
        return feed, build_recipe(ensemble, member)

    yield make
    for feed in feeds:
        feed.store.close()


def blocks_of(feed: Feed) -> list[list[int]]:
    wanted = feed.rows.wanted
    return [wanted[start:start + BLOCK_ROWS] for start in range(0, len(wanted), BLOCK_ROWS)]


def check_row(feed: Feed, recipe: Recipe, i: int) -> None:
    row = feed.rows.all[i]
    assert row.start is not None and row.stop is not None
    number = int(row.clip.id[1:])
    expected = (np.arange(row.start, row.stop) % (97 + number) / 200).astype(np.float32)
    np.testing.assert_array_equal(feed.store.get(recipe.stages["x"].fe, row)[0, 0], expected)


@pytest.mark.parametrize(
    ("ram", "limit"),  # room for all, for some, in hand for one block, in hand for five rows, for none
    [(10**9, 10**9), (2 * 10**6, 10**9), (0, 10**9), (0, 13 * 10**6), (0, 10**6)],
)
@pytest.mark.parametrize("readers", [1, 3])
def test_a_pass_over_all_rows_decodes_each_recording_once(
    make_feed: Callable[..., tuple[Feed, Recipe]], opened: list[str], ram: int, limit: int, readers: int
) -> None:
    feed, recipe = make_feed(ram, limit=limit)
    for again in range(2):
        with ThreadPoolExecutor(readers) as pool:
            for block in blocks_of(feed):
                feed.load(recipe, block, lambda: False)
                list(pool.map(lambda i: check_row(feed, recipe, i), block))
        passes = 1 if ram == 10**9 else 1 + again  # what is not kept is decoded in every pass, once
        assert sorted(opened) == sorted(["r0", "r1", "r2"] * passes)


@pytest.mark.parametrize("loaders", [1, 4])
def test_loaders_that_are_blocks_ahead_decode_each_recording_once(
    make_feed: Callable[..., tuple[Feed, Recipe]], opened: list[str], loaders: int
) -> None:
    feed, recipe = make_feed(loaders=loaders)
    blocks = blocks_of(feed)
    for block in blocks:
        feed.prefetch(recipe, block)
    for block in blocks:
        feed.load(recipe, block, lambda: False)
        for i in block:
            check_row(feed, recipe, i)
    assert sorted(opened) == ["r0", "r1", "r2"]


@pytest.mark.parametrize("ram", [10**9, 0])
def test_a_suspect_is_decoded_once_before_any_net(
    make_feed: Callable[..., tuple[Feed, Recipe]], opened: list[str], ram: int
) -> None:
    feed, recipe = make_feed(ram)
    rows = [row for row in feed.rows.all if row.clip.id == "r1"]
    feed.load_first([recipe, recipe], rows, lambda: False)
    assert len(rows) == COUNT and opened == ["r1"]
    produced = feed.store.stats().produced
    assert produced == COUNT


def test_windows_of_a_suspect_that_ends_early_are_lost_with_their_reason(
    make_feed: Callable[..., tuple[Feed, Recipe]], tmp_path: Path
) -> None:
    feed, recipe = make_feed()
    soundfile.write(tmp_path / "r1.wav", np.zeros(50 * RATE), RATE, subtype="FLOAT")
    rows = [row for row in feed.rows.all if row.clip.id == "r1"]
    feed.load_first([recipe], rows, lambda: False)
    assert sorted(feed.rows.reasons) == sorted(row.id for row in rows[13:])
    messages = [fault.message for fault in feed.rows.recorder.faults]
    assert all("the audio ends at 50.00 s" in message for message in messages)
