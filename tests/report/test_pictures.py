"""Pictures of rows: each recording is read once, and not longer than there is time."""
from __future__ import annotations

from pathlib import Path

from kernel.report.pictures import draw_rows
from kernel.sound.rows import Row
from tests.helpers.sounds import clip_of, sound, write


def make_rows(folder: Path) -> list[Row]:
    """Windows of two recordings, in no order; the last one has no sound."""
    clips = [clip_of(write(folder / f"{name}.wav", sound(90.0, 8_000), 8_000)) for name in "ab"]
    starts = ((0, 80), (1, 5), (0, 10), (1, 60), (0, 30), (0, 95))
    return [Row(id=f"{clips[i].id}_{start}", clip=clips[i], start=8_000 * start, stop=8_000 * (start + 5))
            for i, start in starts]


def test_windows_are_drawn_out_of_one_reading_per_recording(tmp_path: Path, opened: list[str]) -> None:
    rows = make_rows(tmp_path)
    drawn = draw_rows(rows, float("inf"), lambda: False)
    assert set(drawn) == {row.id for row in rows[:5]} and opened == ["a.wav", "b.wav"]
    alone = draw_rows(rows[:1], float("inf"), lambda: False)
    assert alone[rows[0].id] == drawn[rows[0].id]


def test_a_long_way_to_a_window_ends_when_time_is_up(tmp_path: Path) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3  # once before the row, then after each read: the window needs three

    assert draw_rows(make_rows(tmp_path)[:1], float("inf"), stop) == {} and len(asked) <= 5
