"""Rows that are windows under a front end that looks at the whole recording: stored once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kernel import spec
from kernel.errors import ClipEmpty, ClipError, ClipUnreadable, SpecError
from kernel.inference.recipe import open_source
from kernel.sound.decode import Clip
from kernel.sound.frontends import FrontEnd, build
from kernel.sound.rows import Row
from kernel.sound.scopes import OfRecording
from tests.helpers import small_ensembles
from tests.helpers.ensemble_runs import read_scores, run_clean, write_sample
from tests.helpers.stores import GB, Producer, RiggedStore

RATE = 8000
SECONDS = 2.0
BATCH = {
    "rate": RATE,
    "n_fft": 512,
    "hop": 128,
    "mels": 32,
    "fmax": 4000.0,
    "scope": "batch",
    "piece_seconds": SECONDS,
    "norm": "minmax",
}
WHOLE = {
    **BATCH,
    "scope": "recording",
    "pieces": "whole",
    "piece_frames": 126,
    "context_frames": 40,
    "norm": "z_minmax",
}
APART = {**BATCH, "scope": "recording", "piece_frames": 120, "context_frames": 60, "norm": "z"}
FRONTS = pytest.mark.parametrize("keys", [BATCH, WHOLE, APART], ids=["batch", "whole", "apart"])


def make_recording(name: str, seconds: float) -> np.ndarray:
    """A noise whose loudness falls by 70 dB: windows differ most by what they are compared with."""
    rng = np.random.default_rng(len(name))
    wave = rng.standard_normal(int(seconds * RATE)) * np.logspace(-0.5, -4, int(seconds * RATE))
    return wave.astype(np.float32)


class Recordings(Producer):
    """Arrays of made-up recordings; a name that begins with "broken" has none."""

    def __call__(self, fe: Any, rows: Sequence[Row]) -> Iterator[tuple[Row, np.ndarray | ClipError]]:
        self.calls += 1
        for row in rows:
            self.clock.now += self.seconds
            self.made.append(row.id)
            if row.clip.id.startswith("broken"):
                yield row, ClipEmpty(f"{row.clip.id}: no samples")
            else:
                yield row, fe.of_row(make_recording(row.clip.id, row.clip.samples_claimed / RATE), row.id)


def rows_of(name: str, seconds: float) -> list[Row]:
    clip = Clip(id=name, rate=RATE, samples_claimed=int(seconds * RATE), channels=1)
    step = int(SECONDS * RATE)
    return [
        Row(id=f"{name}_{i}", clip=clip, start=i * step, stop=(i + 1) * step)
        for i in range(int(np.ceil(seconds / SECONDS)))
    ]


def source(keys: dict[str, Any]) -> OfRecording:
    fe = build(keys)
    assert isinstance(fe, FrontEnd)
    return fe.of_recording()


@FRONTS
@pytest.mark.parametrize("ram, disk", [(GB, 0), (0, GB), (0, 0)], ids=["ram", "disk", "recompute"])
def test_every_row_is_its_part_of_the_whole(
    tmp_path: Path, keys: dict[str, Any], ram: int, disk: int
) -> None:
    producer = Recordings()
    store = RiggedStore(tmp_path, ram, disk, producer=producer)
    fe = source(keys)
    rows = [*rows_of("a", 10.0), *rows_of("bb", 6.0)]
    store.warm(fe, rows)
    step = fe.fixed - 2 * keys.get("context_frames", 0)
    for name in ("a", "bb"):
        own = [row for row in rows if row.clip.id == name]
        whole = build(keys)(make_recording(name, own[0].clip.samples_claimed / RATE))
        for i, row in enumerate(own):
            got = store.get(fe, row)
            assert store.frames(fe, row) == fe.fixed == got.shape[2]
            if keys["scope"] == "recording":
                want = whole[..., i * step : i * step + fe.fixed]
            else:
                want = whole[..., i * step : (i + 1) * step]
            assert np.abs(got - want).max() < 1e-5, row.id
    if ram:
        assert producer.made == ["a", "bb"]  # stored once per recording
    store.check_books()
    store.close()


@FRONTS
def test_order_and_other_recordings_change_no_bit(tmp_path: Path, keys: dict[str, Any]) -> None:
    rows = [*rows_of("a", 7.0), *rows_of("bb", 6.0)]
    arrays = []
    for number, chosen in enumerate((rows, rows[::-1], rows[:4])):
        store = RiggedStore(tmp_path / str(number), GB if number else 0, producer=Recordings())
        fe = source(keys)
        arrays.append({row.id: store.get(fe, row).tobytes() for row in chosen})
        store.close()
    assert arrays[0] == arrays[1] and all(arrays[0][id] == array for id, array in arrays[2].items())


def test_a_broken_recording_costs_its_own_rows(tmp_path: Path) -> None:
    store = RiggedStore(tmp_path, producer=Recordings())
    fe = source(BATCH)
    for row in rows_of("broken", 6.0):
        with pytest.raises(ClipEmpty, match="broken"):
            store.get(fe, row)
    assert store.get(fe, rows_of("a", 4.0)[1]).shape == (1, 32, fe.fixed)
    store.close()


def test_rows_between_windows_and_behind_the_end_are_named() -> None:
    fe = source(BATCH)
    stored = fe.of_row(make_recording("a", 4.0), "a")
    rows = rows_of("a", 6.0)
    with pytest.raises(ClipEmpty, match="a_2: the window begins after"):
        fe.read(stored, rows[2])
    with pytest.raises(ClipUnreadable, match="0.500 windows"):
        fe.read(stored, replace(rows[0], start=RATE))


def test_the_windows_of_rows_and_front_end_are_alike() -> None:
    ensemble = spec.Ensemble(
        name="x", classes=("a",), members=(), frontends={"mel": BATCH}, windows=spec.Windows(seconds=5.0)
    )
    with pytest.raises(SpecError, match="frontends.mel: piece_seconds = 2 and windows.seconds = 5"):
        open_source(ensemble, "mel")
    assert isinstance(open_source(replace(ensemble, windows=None), "mel"), FrontEnd)


def test_a_run_over_soundscapes_gives_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    members = [
        spec.Member(name=name, family="simple_cnn", params={"base": 4, "channels": 1}, frontend=name)
        for name in ("batch", "whole")
    ]
    ensemble = spec.check(
        spec.Ensemble(
            name="scopes",
            classes=("one", "two"),
            members=tuple(members),
            windows=spec.Windows(seconds=SECONDS),
            frontends={"batch": BATCH, "whole": WHOLE},
        )
    )
    bundle = small_ensembles.build(ensemble, tmp_path / "built")
    ids = {"long": [f"long_{2 * i}" for i in range(1, 8)], "brief": [f"brief_{2 * i}" for i in range(1, 4)]}
    scores = []
    for place, order in (("one", ("long", "brief")), ("two", ("brief", "long"))):
        folder = tmp_path / place / "in" / "test_soundscapes"
        folder.mkdir(parents=True)
        for name in order:
            soundfile.write(folder / f"{name}.wav", make_recording(name, 2 * len(ids[name]) - 0.5), RATE)
        write_sample(
            tmp_path / place / "in", ["row_id", *ensemble.classes], [id for n in order for id in ids[n]]
        )
        run = run_clean(tmp_path / place, bundle, "--loaders", "4" if place == "two" else "1")
        scores.append(sorted(run.submission.splitlines()))
        assert len({tuple(row) for row in read_scores(run).values()}) == 10
    assert scores[0] == scores[1]
