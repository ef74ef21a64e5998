"""Windows of soundscape winners: their cuts, and their rows out of nets that answer what theirs answered.

Goldens: tests/goldens/soundscape_windows.json, outputs of the original functions.
"""
from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter1d

from kernel import spec
from kernel.errors import ClipEmpty, SpecError
from kernel.sound.clips import find_clips
from kernel.sound.decode import Clip
from kernel.sound.frontends import build
from kernel.sound.recording import Recordings
from kernel.sound.rows import Row, list_rows, window_ids
from kernel.sound.scopes import join
from kernel.spec import Windows
from kernel.spec.ensemble import check
from tests.helpers import TESTS, small_ensembles
from tests.helpers.ensemble_runs import read_scores, run_clean, write_sample

CASES = json.loads((TESTS / "goldens" / "soundscape_windows.json").read_text())["cases"]
RATE = 8_000  # Hz
ZEROS = {  # scheme of a golden -> our keys
    "zeros to the next multiple, every started window is a row": {},
    "7.5 s of zeros on both sides, only complete 5 s rows": {"context_seconds": 20.0},
    "only complete rows (file floor)": {},
    "always 12 rows: zeros behind or cut at 60 s": {"edges": "silence"},
    "ceil rows, short last piece padded on the LEFT": {"edges": "front"},
    "zeros on both sides": {"context_seconds": 10.0},
}


def cases_of(step: str) -> list[Any]:
    """Those goldens, under their sources and numbers."""
    found = [case for case in CASES if case["step"] == step]
    return [pytest.param(case, id=f"{case['source'].split()[0]}-{i}") for i, case in enumerate(found)]


def drawn(given: list[Any]) -> np.ndarray:
    """The input of a golden: f32 of ["probs" or "logits", name, *shape]."""
    kind, name, *shape = given
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    if kind == "probs":
        return (rng.uniform(0.001, 0.999, shape) ** 3).astype(np.float32)
    return (rng.standard_normal(shape) * 2.0 - 1.0).astype(np.float32)


def logit(p: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(p.astype(np.float64)) - np.log1p(-p.astype(np.float64)))


def say(
    tmp_path: Path, answers: np.ndarray, rows: int, windows: Windows, **keys: Any
) -> np.ndarray:
    """f64[rows, K] of a whole run over one recording whose windows have the answers f[folds, W, F, K]."""
    at = 0 if windows.context_before == 0 else round(((windows.context_seconds or 5.0) - 5.0) / 2 * RATE)
    member = spec.Member(
        name="told",
        family=f"{TESTS}/ensembles/told.py:Told",
        params={"windows": answers.shape[1], "frames": answers.shape[2], "at": at},
        frontend="wave",
        folds=tuple(range(len(answers))),
        fold_mean="arithmetic",
        **keys,
    )
    ensemble = check(spec.Ensemble(
        name="told",
        classes=tuple("abcdefgh"[: answers.shape[3]]),
        members=(member,),
        frontends={"wave": {"preset": "wave", "rate": RATE}},
        windows=windows,
    ))
    (tmp_path / "weights").mkdir()
    for fold, told in enumerate(answers):
        state = {"answers": torch.from_numpy(told.astype(np.float32))}
        save_file(state, tmp_path / "weights" / f"told_{fold}.safetensors")
    folder = tmp_path / "in" / "test_soundscapes"
    folder.mkdir(parents=True)
    levels = np.repeat(np.arange(1, rows + 1) * 1024, round(windows.seconds * RATE)).astype(np.int16)
    soundfile.write(folder / "scape.wav", levels, RATE)
    ids = window_ids("scape", rows * windows.seconds, windows)
    write_sample(tmp_path / "in", ["row_id", *ensemble.classes], ids)
    bundle = small_ensembles.build(ensemble, tmp_path / "built", tmp_path / "weights")
    found = read_scores(run_clean(tmp_path, bundle))
    return np.stack([found[id] for id in ids])


@pytest.mark.parametrize("case", cases_of("y_windows_to_rows"))
def test_windows_of_two_rows_with_clip_scores_and_time_shifts(tmp_path: Path, case: dict[str, Any]) -> None:
    given, clips = case["args"], case["args"]["rows_per_window"]
    frame_logits = drawn(case["input"]["frame_logits"])
    clip_logits = drawn(case["input"]["clip_logits"])
    clip_logits = clip_logits.reshape(*frame_logits.shape[:2], clips, -1)
    every = 1 if given["overlap"] else clips
    answers = np.concatenate([clip_logits, frame_logits], axis=2).repeat(every, axis=1)
    shift = given["shift_tta"] or {"seconds": 0.0, "main": 0.5}
    windows = Windows(
        context_seconds=5.0 * clips,
        context_before=0.0,
        context_every=every,
        edges="inside" if clips > 1 else "zeros",
    )
    found = say(
        tmp_path, answers, given["rows"], windows, frames="max_average", clips=clips,
        clip_share=1.0 - given["share_frame_max"], shift_seconds=shift["seconds"],
        **({"shift_share": 1.0 - shift["main"]} if given["shift_tta"] else {}),
    )
    np.testing.assert_allclose(found, case["output"], atol=1e-5)


@pytest.mark.parametrize("case", cases_of("overlap_average_max"))
def test_frames_of_twenty_seconds_averaged_and_their_maximum(tmp_path: Path, case: dict[str, Any]) -> None:
    answers = logit(drawn(case["input"]["frame_probs"]))[None]
    found = say(
        tmp_path, answers, answers.shape[1], Windows(context_seconds=20.0), frames="average_max"
    )
    np.testing.assert_allclose(found, case["output"], atol=1e-5)


@pytest.mark.parametrize("case", cases_of("clip_frame_half_gauss"))
def test_half_clip_and_half_frame_maximum(tmp_path: Path, case: dict[str, Any]) -> None:
    clip_logits, frame_logits = (drawn(case["input"][name]) for name in ("clip_logits", "frame_logits"))
    answers = np.concatenate([clip_logits[:, :, None], frame_logits], axis=2)
    found = say(tmp_path, answers, answers.shape[1], Windows(), frames="average_max", clips=1,
                clip_share=case["args"]["share_clip"])
    smoothed = gaussian_filter1d(found, case["args"]["sigma"], axis=0, mode="nearest")
    np.testing.assert_allclose(smoothed, case["output"], atol=1e-5)


def described(cut: np.ndarray) -> list[int]:
    """[first, last, zeros in front, zeros behind] of a cut out of a ramp."""
    places = np.flatnonzero(cut)
    if not len(places):
        return [0, 0, len(cut), 0]
    first, last = int(cut[places[0]]), int(cut[places[-1]])
    return [first, last, int(places[0]), len(cut) - 1 - int(places[-1])]


@pytest.mark.parametrize("case", cases_of("windows"))
def test_cuts_of_the_winners(tmp_path: Path, case: dict[str, Any]) -> None:
    count = case["input"]["wave"][1]
    ramp = np.arange(1, count + 1, dtype=np.int16)
    soundfile.write(tmp_path / "r.wav", ramp.repeat(RATE // case["args"]["rate"]), RATE)
    windows = Windows(**ZEROS[case["args"]["scheme"]])
    ids = window_ids("r", 5.0 * len(case["output"]), windows)
    recordings = Recordings()
    rows = list_rows(ids, find_clips(tmp_path, ["r"]), windows)
    cuts = [np.rint(recordings.cut(row).samples[:: RATE // case["args"]["rate"]] * 32768) for row in rows]
    assert [described(cut) for cut in cuts] == case["output"]


def test_a_context_of_halves_repeats_the_edge_windows_own_half() -> None:
    case = next(case for case in CASES if case["step"] == "context_frames")
    per_row, count = case["args"]["frames_per_row"], case["args"]["rows"]
    fe = build({"preset": "birdclef2024_1st_stitched", "top_db": "none", "scale": "linear"}).of_recording()
    line = np.arange(per_row * count, dtype=np.float32)
    wave = np.arange(count * 160_000, dtype=np.float32)
    stored = join(fe.fe, wave, lambda part: line[int(part[0]) // 500 :][None, None, :per_row], True)
    clip = Clip(id="r", rate=32_000, samples_claimed=count * 160_000, channels=1)
    for number, expected in enumerate(case["output"]):
        row = Row(id=f"r_{number}", clip=clip, start=number * 160_000, stop=(number + 1) * 160_000)
        assert fe.read(stored, row)[0, 0, [0, 159, 160, 479, 480, 639]].tolist() == expected


def test_silence_is_heard_behind_a_sound_recording_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.flac"
    noise = (np.random.default_rng(0).standard_normal(48_000) * 3000).astype(np.int16)  # 6 s
    soundfile.write(path, noise, RATE)
    whole = path.read_bytes()
    cases = (whole, "silence", True), (whole, "zeros", False), (whole[:-9_000], "silence", False)
    for data, edges, heard in cases:
        path.write_bytes(data)
        windows = Windows(edges=edges)
        row = list_rows(["r_20"], find_clips(tmp_path, ["r"]), windows)[0]
        if heard:
            assert not Recordings().cut(row).samples.any()
        else:
            with pytest.raises(ClipEmpty, match="keeps the prior"):
                Recordings().cut(row)


@pytest.mark.parametrize(("windows", "keys", "words"), [
    (Windows(context_seconds=10.0), {"frames": "average", "clips": 2}, "clips: 2; give 0, 1 or"),
    (Windows(), {"clips": 1}, "clips: only a net of frames"),
    (Windows(), {"frames": "average", "clip_share": 0.2}, "clip_share: changes nothing without `clips`"),
    (Windows(), {"frames": "average", "shift_share": 0.2}, "shift_share: changes nothing without `shift"),
    (Windows(), {"frames": "average", "shift_seconds": 5.0}, "shift_seconds: 5.0; give 0 to less than"),
    (Windows(), {"frames": "average", "clips": 1, "clip_share": 1.5}, "clip_share: 1.5; give 0 to 1"),
    (Windows(context_every=2), {"frames": "average"}, "context_every: 2; a context of 5 s holds 1 whole"),
    (Windows(context_seconds=10.0, context_every=2), {}, "context_every: every row needs a context of its"),
])
def test_keys_that_do_not_go_together_are_refused(windows: Windows, keys: dict[str, Any], words: str) -> None:
    member = spec.Member(name="m", family="none", frontend="mel", **keys)
    ensemble = spec.Ensemble(name="e", classes=("a", "b"), members=(member,), windows=windows,
                             frontends={"mel": {"preset": "ex4_mel"}})
    with pytest.raises(SpecError, match=words):
        check(ensemble)
