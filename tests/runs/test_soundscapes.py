"""Windows of long recordings score like the same cuts saved as clips."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from kernel import spec
from kernel.sound import decode, frontends
from kernel.sound.loading import load_wave
from kernel.sound.recording import Recordings
from kernel.sound.rows import Row
from tests.helpers import TESTS, small_ensembles
from tests.helpers.ensemble_runs import read_scores, run_clean, write_sample
from tests.helpers.small_ensembles import published, shrink

SMOOTHING = (0.1, 0.8, 0.1)
SOUNDSCAPE_SECONDS = 600
WINDOW_SECONDS = 5
RATE = 8_000  # Hz


def make_soundscape() -> np.ndarray:
    """i16[S]: a rising tone in noise."""
    wave = np.sin(np.cumsum(np.linspace(0.05, 2.5, SOUNDSCAPE_SECONDS * RATE))) * 0.3
    return ((wave + 0.02 * np.random.default_rng(0).standard_normal(len(wave))) * 32767).astype(np.int16)


def test_windows_of_a_ten_minute_soundscape_score_like_clips(tmp_path: Path) -> None:
    argus = shrink(published("argus"), folds=1)
    plain = replace(argus, members=argus.members[:1], stackers=())
    windowed = replace(plain, windows=spec.Windows(), output=spec.Output(smoothing=SMOOTHING))
    samples = make_soundscape()
    length = WINDOW_SECONDS * RATE
    cuts = [samples[start:start + length] for start in range(0, len(samples), length)]
    for where in ("long", "short"):
        (tmp_path / where / "in" / "test_soundscapes").mkdir(parents=True)
    soundfile.write(tmp_path / "long" / "in" / "test_soundscapes" / "scape_1.wav", samples, RATE)
    ids = [f"scape_1_{WINDOW_SECONDS * (i + 1)}" for i in range(len(cuts))]
    for id, cut in zip(ids, cuts, strict=True):
        soundfile.write(tmp_path / "short" / "in" / "test_soundscapes" / f"{id}.wav", cut, RATE)
    write_sample(tmp_path / "long" / "in", ["row_id", *plain.classes], ids)
    write_sample(tmp_path / "short" / "in", ["row_id", *plain.classes], ids)
    long = run_clean(tmp_path / "long", small_ensembles.build(windowed, tmp_path / "built_long"))
    short = read_scores(run_clean(tmp_path / "short", small_ensembles.build(plain, tmp_path / "built_short")))
    assert len(ids) == 120 and ids[-1] == "scape_1_600" and list(read_scores(long)) == ids
    clips = np.stack([short[id] for id in ids])
    padded = np.pad(clips, ((1, 1), (0, 0)))
    weights = np.convolve(np.ones(len(ids)), SMOOTHING, "same")[:, None]
    expected = sum(w * padded[i:i + len(ids)] for i, w in enumerate(SMOOTHING)) / weights
    np.testing.assert_allclose(np.stack(list(read_scores(long).values())), expected, rtol=2e-6)
    assert np.abs(np.diff(clips, axis=0)).max() > 1e-3


def test_a_window_is_the_same_sound_as_the_cut_saved_as_a_clip(tmp_path: Path) -> None:
    samples = (np.random.default_rng(0).standard_normal(20 * 22_050) * 3000).astype(np.int16)
    soundfile.write(tmp_path / "scape.wav", samples, 22_050)
    soundfile.write(tmp_path / "cut.wav", samples[10 * 22_050:15 * 22_050], 22_050)
    long, cut = (decode.probe(name, tmp_path / f"{name}.wav", [tmp_path]) for name in ("scape", "cut"))
    window = Row(id="scape_15", clip=long, start=10 * 22_050, stop=15 * 22_050)
    front = frontends.build({"preset": "daisukelab"})
    whole = Row(id="cut", clip=cut, start=None, stop=None)
    arrays = [front(load_wave(row, front.rate, Recordings(900.0)).samples) for row in (window, whole)]
    assert np.array_equal(*arrays)


def test_rows_made_of_the_frames_of_overlapping_contexts(tmp_path: Path) -> None:
    """The engine's rows against the net, called here on every context, and the averaged timeline."""
    windows = spec.Windows(context_seconds=20.0)
    member = spec.Member(
        name="framed", family=f"{TESTS}/ensembles/faulty.py:Frames", frontend="mel", frames="average_max"
    )
    ensemble = spec.Ensemble(
        name="framed",
        classes=("a", "b", "c"),
        members=(member,),
        frontends={"mel": {"preset": "ex4_mel"}},
        windows=windows,
    )
    folder = tmp_path / "in" / "test_soundscapes"
    folder.mkdir(parents=True)
    samples = make_soundscape()[: 62 * RATE]
    soundfile.write(folder / "scape.wav", samples, RATE)
    ids = [f"scape_{5 * (i + 1)}" for i in range(13)]
    write_sample(tmp_path / "in", ["row_id", *ensemble.classes], ids)
    net = small_ensembles.write_weights(ensemble, tmp_path / "weights")["framed.0"]
    bundle = small_ensembles.build(ensemble, tmp_path / "built", tmp_path / "weights")
    found = read_scores(run_clean(tmp_path, bundle))
    front = frontends.build({"preset": "ex4_mel"})
    padded = np.pad(samples.astype(np.float32) / 32768, (round(7.5 * RATE), 20 * RATE))
    step = 12 * 5 // 20
    total, count = np.zeros((12 * step + 12, 3)), np.zeros((12 * step + 12, 1))
    for i in range(13):
        wave = decode.Wave(samples=padded[i * 5 * RATE:][: 20 * RATE].copy(), rate=RATE)
        x = torch.from_numpy(front(decode.resample(wave, front.rate).samples)[None]).float()
        with torch.inference_mode():
            total[i * step:][:12] += torch.sigmoid(net(x))[0].double().numpy()
        count[i * step:][:12] += 1
    line = (total / count)[(12 - step) // 2:][: 13 * step]
    expected = line.reshape(13, step, 3).max(axis=1)
    np.testing.assert_allclose(np.stack([found[id] for id in ids]), expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-3
