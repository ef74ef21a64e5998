"""Front ends of 2024 to 2026: golden numbers where they are at hand, and twins in librosa and plain numpy."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import scipy.signal
import torch

from kernel.errors import SpecError
from kernel.inference import finish, views
from kernel.sound import filter_banks
from kernel.sound.frontends import FrontEnd, build
from kernel.sound.presets import PRESETS
from tests import contracts, modern_fronts
from tests.helpers import recipe

GOLDENS = (
    "HOURGLASS_GOLDENS"  # a folder that holds frontends2026.json; its numbers are no part of this repository
)
FLOAT32_EPS = np.finfo(np.float32).eps


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """A tone that fades in and out of noise, so that dB ranges are wide."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(samples) * 0.05) * np.hanning(samples) + 0.01 * rng.standard_normal(samples)
    return (0.4 * wave).astype(np.float32)


def test_every_golden_within_both_tolerances() -> None:
    if GOLDENS not in os.environ:
        pytest.skip(f"the golden numbers of 2026 are not at hand: set {GOLDENS} to their folder")
    golden = json.loads((Path(os.environ[GOLDENS]) / "frontends2026.json").read_text())
    assert set(golden["frontends"]) == set(modern_fronts.FRONTENDS) <= set(contracts.FRONTENDS)
    failed = []
    for name, entry in golden["frontends"].items():
        for case in entry["cases"]:
            w = golden["waves"][case["wave"]]
            wave = recipe.make_wave(case["wave"], w["seconds"], entry["rate"], w["begin"], w["end"])
            array = contracts.FRONTENDS[name](wave * np.float32(case.get("gain", 1)))
            assert (list(array.shape), str(array.dtype)) == (case["shape"], case["dtype"]), name
            away = np.abs(
                array.reshape(-1)[case["probe_index"]].astype(float) - np.array(case["probe_value"])
            )
            figures = (abs(getattr(array.astype(float), key)() - case[key]) for key in ("mean", "std"))
            if away.max() > entry["tolerance"] or max(away.mean(), *figures) > entry["tolerance_mean"]:
                failed.append(f"{name} {case['wave']}: {away.max():.1e}, mean {away.mean():.1e}")
    assert not failed


# Twins: the same numbers by librosa or by plain numpy, in float64


def padded(wave: np.ndarray, n_fft: int, mode: Any = "reflect") -> np.ndarray:
    return np.pad(wave.astype(np.float64), n_fft // 2, mode=mode)


def plain_power(wave: np.ndarray, n_fft: int, hop: int, window: np.ndarray) -> np.ndarray:
    """f64[n_fft//2+1, T] of a padded wave: one frame after the other."""
    starts = range(0, len(wave) - n_fft + 1, hop)
    return np.stack([np.abs(np.fft.rfft(wave[i : i + n_fft] * window)) ** 2 for i in starts], axis=1)


def decibels(x: np.ndarray, top: float | None = None) -> np.ndarray:
    x = 10 * np.log10(np.maximum(x, 1e-10))
    return x if top is None else np.maximum(x, x.max() - top)


@pytest.mark.parametrize("scale, norm", [("htk", "none"), ("htk", "slaney"), ("slaney", "none")])
@pytest.mark.parametrize("rate, n_fft, mels, fmin", [(32000, 2048, 128, 20.0), (16000, 400, 40, 0.0)])
def test_mel_banks_are_librosa_s(
    scale: str, norm: str, rate: int, n_fft: int, mels: int, fmin: float
) -> None:
    want = librosa.filters.mel(
        sr=rate,
        n_fft=n_fft,
        n_mels=mels,
        fmin=fmin,
        fmax=rate / 2,
        htk=scale == "htk",
        norm=None if norm == "none" else norm,
    )
    got = filter_banks.mel_weights(rate, n_fft, mels, fmin, rate / 2, scale, norm)
    assert np.abs(got - want).max() <= 1e-6 * want.max()


def test_kaldi_banks_are_straight_on_the_mel_scale() -> None:
    got = filter_banks.mel_weights(16000, 512, 23, 20.0, 8000.0, "kaldi", "none")
    mel = 1127 * np.log(1 + np.arange(257) * 31.25 / 700)
    edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700), 25)
    for k in range(23):
        want = np.interp(mel, edges[k : k + 3], [0, 1, 0], left=0, right=0)
        assert np.abs(got[k] - want).max() < 1e-6
    assert not got[:, -1].any()


@pytest.mark.parametrize("samples", [159_999, 40_321, 3000])
def test_torchaudio_s_log_mel_by_librosa(samples: int) -> None:
    wave = noise(samples)
    mel = librosa.feature.melspectrogram(
        y=wave,
        sr=32000,
        n_fft=2048,
        hop_length=512,
        n_mels=128,
        fmin=20,
        fmax=16000,
        htk=True,
        norm=None,
        pad_mode="reflect",
    )
    for precision, tolerance in (("auto", 1e-3), ("single", 0.1)):  # torchaudio's own is single
        fe = build({"preset": "torchaudio_htk_none", "precision": precision})
        assert np.abs(fe(wave)[0] - decibels(mel)).max() < tolerance


@pytest.mark.parametrize("preset, kind, gain", [("ast", "hann", 1.0), ("beats", "povey", 32768.0)])
@pytest.mark.parametrize("samples", [16000, 5123, 400])
def test_kaldi_filter_banks_by_hand(preset: str, kind: str, gain: float, samples: int) -> None:
    wave = noise(samples) + np.float32(0.05)  # an offset that the frames' means take off again
    fe = build({"preset": preset, "layout": "plain", "norm": "none"})
    window = np.hanning(400) ** (0.85 if kind == "povey" else 1.0)
    bank = filter_banks.mel_weights(16000, 512, 128, 20.0, 8000.0, "kaldi", "none").astype(np.float64)
    want = []
    for start in range(0, samples - 399, 160):
        frame = wave[start : start + 400].astype(np.float64) * gain
        frame -= frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.rfft(frame * window, 512)) ** 2
        want.append(np.log(np.maximum(bank @ power, FLOAT32_EPS)))
    got = fe(wave)[0].T
    assert got.shape == (len(want), 128) and fe.max_frames(samples) == len(want)
    loud = np.array(want) > np.max(want) - 14  # 60 dB: below it float32 frames blur
    assert np.abs(got - want)[loud].max() < 1e-3


def test_yamnet_reads_magnitudes_from_the_first_sample_on() -> None:
    wave = noise(16000)
    window = np.pad(scipy.signal.get_window("hann", 400), (0, 112))
    power = plain_power(np.pad(wave.astype(np.float64), (0, 112)), 512, 160, window)
    bank = filter_banks.mel_weights(16000, 512, 64, 125.0, 7500.0, "kaldi", "none")
    want = np.log(bank @ np.sqrt(power) + 0.001)
    assert np.abs(build({"preset": "yamnet"})(wave)[0] - want).max() < 1e-3


def test_a_short_window_is_centred_and_symmetric_where_asked() -> None:
    wave = noise(32000)
    shortened = (wave[1:] - 0.97 * wave[:-1]).astype(np.float32)
    window = np.pad(np.hanning(800), 112)
    bank = filter_banks.mel_weights(32000, 1024, 128, 0.0, 15500.0, "kaldi", "none")
    want = (np.log(bank @ plain_power(padded(shortened, 1024), 1024, 320, window) + 1e-5) + 4.5) / 5
    assert np.abs(build({"preset": "passt"})(wave)[0] - want).max() < 1e-3


@pytest.mark.parametrize("samples", [32000, 9001])
def test_constant_q_by_hand(samples: int) -> None:
    wave = noise(samples)
    q = 1 / (2 ** (1 / 27) - 1)
    frames = np.lib.stride_tricks.sliding_window_view(padded(wave, 8192), 8192)[::250]
    got = build({"preset": "birdclef2024_4th_cqt"})(wave)[0]
    for k in (0, 1, 26, 27, 80, 159):
        frequency = 256 * 2 ** (k / 27)
        length = int(np.ceil(q * 32000 / frequency))
        window = scipy.signal.get_window(("tukey", 0.5), length)
        kernel = window * np.exp(2j * np.pi * np.arange(length) * frequency / 32000) / window.sum()
        start = int(np.ceil(4096 - length / 2)) - length % 2
        want = np.abs(frames[:, start : start + length] @ kernel) * np.sqrt(length)
        assert np.abs(got[k] - want).max() < 1e-5


@pytest.mark.parametrize("power", [1.0, 2.0, 1.5, 0.5])
@pytest.mark.parametrize("norm, unit", [("none", 1.0), ("window", 384.0), ("n_fft", 1024.0)])
def test_any_power_and_both_window_norms(power: float, norm: str, unit: float) -> None:
    wave = noise(8000)
    keys = {"rate": 16000, "n_fft": 1024, "hop": 256, "spectrum": "stft", "scale": "linear"}
    got = build({**keys, "power": power, "window_norm": norm})(wave)[0]
    want = (plain_power(padded(wave, 1024), 1024, 256, scipy.signal.get_window("hann", 1024)) / unit) ** (
        power / 2
    )
    assert np.abs(got - want).max() < 1e-4 * want.max()


@pytest.mark.parametrize("kind", ["hann", "hamming", "blackman"])
@pytest.mark.parametrize("periodic", [True, False])
def test_windows_are_scipy_s(kind: str, periodic: bool) -> None:
    wave = noise(4000)
    got = build(
        {
            "rate": 16000,
            "n_fft": 256,
            "hop": 64,
            "spectrum": "stft",
            "scale": "linear",
            "window": kind,
            "periodic": periodic,
        }
    )(wave)[0]
    window = scipy.signal.get_window(kind, 256, fftbins=periodic)
    assert np.abs(got - plain_power(padded(wave, 256), 256, 64, window)).max() < 1e-3


@pytest.mark.parametrize(
    "keys, want",
    [
        ({"ref": "max", "top_db": 60.0}, lambda mel: librosa.power_to_db(mel, ref=np.max, top_db=60)),
        (
            {"ref": 0.01, "amin": 1e-6, "top_db": "none"},
            lambda mel: librosa.power_to_db(mel, ref=0.01, amin=1e-6, top_db=None),
        ),
        (
            {"mel_exponent": 0.5, "db_factor": 20.0, "amin": 1e-5, "ref": "max"},
            lambda mel: librosa.amplitude_to_db(np.sqrt(mel), ref=np.max),
        ),
        ({"scale": "log", "log_offset": 0.0, "log_floor": 1e-3}, lambda mel: np.log(np.maximum(mel, 1e-3))),
    ],
)
def test_constants_of_db_and_ln(keys: dict[str, Any], want: Any) -> None:
    wave = noise(20_000)
    mel = librosa.feature.melspectrogram(
        y=wave, sr=16000, n_fft=512, hop_length=128, n_mels=32, fmin=20, fmax=8000, pad_mode="reflect"
    )
    got = build({"rate": 16000, "n_fft": 512, "hop": 128, "mels": 32, **keys})(wave)[0]
    assert np.abs(got - want(mel)).max() < 2e-3


def test_normalisations_of_a_window() -> None:
    base = {"rate": 16000, "n_fft": 512, "hop": 128, "mels": 32}
    wave = noise(20_000)
    x = build(base)(wave).astype(np.float64)
    z = (x - x.mean()) / (x.std(ddof=1) + 1e-6)
    for norm, eps, want in (
        ("z", 1e-6, z),
        ("minmax", 1e-6, (x - x.min()) / (np.ptp(x) + 1e-6)),
        ("z_minmax", 0.1, (z - z.min()) / (np.ptp(z) + 0.1)),
    ):
        keys = {"norm": norm} if norm == "z" else {"norm": norm, "minmax_eps": eps}
        assert np.abs(build({**base, **keys})(wave) - want).max() < 1e-5
    flat = build({**base, "norm": "z_minmax", "minmax_eps": 0.0})(np.zeros(4000, np.float32))
    assert flat.shape[1] == 32 and not flat.any()


def test_levels_and_gain() -> None:
    wave = noise(4000)
    for keys, want in (
        ({"level": "peak"}, wave / np.abs(wave).max()),
        ({"level": "std"}, wave / wave.std(ddof=1)),
        ({"gain": 3.0}, 3 * wave),
        ({"short": "repeat", "min_seconds": 0.6}, np.pad(np.tile(wave, 2), (0, 1600))),
        ({"short": "end", "min_seconds": 0.2, "step_seconds": 0.04}, np.pad(wave, (0, 480))),
    ):
        got = build({"rate": 16000, "spectrum": "wave", "pad_value": 0.0, **keys})(wave)[0, 0]
        assert got.shape == want.shape and np.allclose(got, want, rtol=1e-6)
    silent = np.zeros(100, np.float32)
    assert not build({"spectrum": "wave", "level": "std"})(silent).any()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "keys",
    [{"resize_kind": "bicubic", "align_corners": True}, {"antialias": True}, {"resize_kind": "nearest"}],
)
def test_resizing_before_and_after_the_norm(first: bool, keys: dict[str, Any]) -> None:
    base = {"rate": 16000, "n_fft": 512, "hop": 128, "mels": 32}
    wave = noise(16_000)
    fe = build({**base, "norm": "minmax", "resize": [24, 50], "resize_first": first, **keys})
    got = fe(wave)
    assert got.shape == (1, 24, 50) == (1, fe.bins, fe.fixed)
    x = torch.from_numpy(build({**base, "norm": "none" if first else "minmax"})(wave))[None]
    kind = keys.get("resize_kind", "bilinear")
    more = {} if kind == "nearest" else {k: keys.get(k, False) for k in ("align_corners", "antialias")}
    want = torch.nn.functional.interpolate(x, (24, 50), mode=kind, **more)[0].numpy()
    want = (want - want.min()) / (np.ptp(want) + 1e-6) if first else want
    assert np.abs(got - want).max() < 1e-5


# Scopes


def pieces_of(wave: np.ndarray, samples: int) -> list[np.ndarray]:
    return [wave[i : i + samples] for i in range(0, len(wave), samples)]


def test_batch_scope_looks_for_the_top_in_all_windows() -> None:
    fe = build({"preset": "birdclef2026_2nd_128", "piece_seconds": 1.0})
    wave = np.concatenate([noise(32000), 1e-3 * noise(32000, 1), np.zeros(32000, np.float32)]).astype(
        np.float32
    )
    raw = [build({"preset": "torchaudio_htk_none"})(piece)[0] for piece in pieces_of(wave, 32000)]
    floor = max(x.max() for x in raw) - 80
    want = []
    for x in raw:
        x = np.maximum(x, floor)
        want.append((x - x.min()) / (np.ptp(x) + 1e-6))
    assert np.abs(fe(wave)[0] - np.concatenate(want, axis=1)).max() < 1e-4
    alone = build({"preset": "birdclef2026_2nd_128", "scope": "window", "piece_seconds": 0.0})(
        wave[32000:64000]
    )
    assert np.abs(alone[0] - want[1]).max() > 0.1  # what a cache of windows would have given


def test_recording_scope_of_one_transform() -> None:
    fe = build({"preset": "birdclef2025_1st_recording"})
    wave = noise(10 * 32000)
    frames = 2 * 128 + 2 * 192
    missing = (frames - 1) * 1252 - len(wave)
    want = build({"preset": "birdclef2025_1st"})(np.pad(wave, (missing // 2, missing - missing // 2)))
    assert fe(wave).shape == want.shape == (1, 224, frames) and np.abs(fe(wave) - want).max() < 1e-4


def test_neighbours_halves_of_windows_that_stand_apart() -> None:
    fe = build({"preset": "birdclef2024_1st_stitched"})
    wave = noise(14 * 32000)  # the third window is one second short
    apart = build({"preset": "birdclef2024_1st", "scale": "linear"})
    parts = [apart(np.pad(p, (0, 160000 - len(p))))[..., :320] for p in pieces_of(wave, 160000)]
    want = decibels(np.concatenate([parts[0][..., -160:], *parts, parts[-1][..., :160]], axis=-1), 100.0)
    assert fe(wave).shape == (1, 128, 3 * 320 + 320) and np.abs(fe(wave) - want).max() < 1e-2


# Refusals


@pytest.mark.parametrize(
    "spec, words",
    [
        ({"hop_length": 512}, "frontends.m.hop_length: unknown key; did you mean 'hop'"),
        ({"n_mels": 64}, "'mels'"),
        ({"center": False}, "'edges'"),
        ({"win_length": 4096, "n_fft": 2048}, "win_length = 4096 must not exceed n_fft"),
        ({"mel_scale": "kaldi"}, 'mel_norm = "none"'),
        ({"mel_scale": "hkt"}, "did you mean 'htk'"),
        ({"ref": "maximum"}, "ref = 'maximum'"),
        ({"ref": 0.0}, "ref = 0"),
        ({"ref": 2.0, "scale": "log"}, "ref = 2.0 changes nothing with scale = 'log'"),
        ({"log_floor": 1e-5}, "wants scale = 'log'"),
        ({"scale": "log", "log_offset": 0.0}, "minus infinity"),
        ({"minmax_eps": 0.5, "norm": "z"}, "minmax_eps"),
        ({"bins_per_octave": 24}, "wants spectrum = 'cqt'"),
        ({"spectrum": "cqt", "fmin": 32.0, "mels": 200}, "lower mels"),
        ({"spectrum": "cqt", "fmin": 32.0, "mels": 60}, "raise n_fft"),
        ({"win_place": "start"}, "wants edges = 'none'"),
        ({"resize": [128]}, "bins, frames"),
        ({"antialias": True}, "needs resize"),
        ({"resize": [0, 64], "norm": "image", "stored": "uint8"}, "resize"),
        ({"scope": "batch"}, "wants piece_seconds"),
        ({"scope": "file"}, "scope"),
        ({"piece_seconds": 5.0}, 'scope = "recording"'),
        ({"scope": "recording", "trim_db": 60.0}, "trim_db"),
        ({"scope": "recording", "piece_seconds": 5.0, "context_frames": 9}, "piece_frames"),
        ({"preemphasis": 97.0}, "0.97"),
        ({"top_db": -80.0}, "top_db"),
        ({"fmin": 9000.0, "rate": 16000}, "below fmax"),
        ({"power": 0.0}, "power"),
        ({"eps": -1.0}, "eps"),
        ({"mel_norm": True}, "expected str"),
    ],
)
def test_wrong_keys_are_named(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        build(spec, "frontends.m")
    assert words in str(caught.value) and str(caught.value).startswith("frontends.m")


def test_old_names_and_values_mean_what_they_meant() -> None:
    assert build({"window": "single"}).key == build({"window": "hann_float32"}).key
    assert build({"window": "exact"}).key == build({}).key
    assert build({"top_db": "none"}).top_db is None and build({"fmax": "none"}).fmax is None


def test_every_key_changes_the_key_of_the_cache() -> None:
    assert build({"mel_scale": "htk"}).key != build({}).key != build({"periodic": False}).key


# The steps behind them


def test_time_first_and_fold() -> None:
    fe = build({"preset": "htsat"})
    x = torch.arange(2 * 64 * 1024, dtype=torch.float32).reshape(2, 1, 64, 1024)
    folded = finish.build([{"kind": "fold", "frames": 256}], fe)(x)
    assert folded.shape == (2, 1, 256, 256) and folded[1, 0, 64 * 3 + 5, 7] == x[1, 0, 5, 3 * 256 + 7]
    turned = finish.build(["time_first"], fe)
    assert torch.equal(turned(x), x.transpose(2, 3)) and turned.frames(1024) == 1024 and turned.time_first
    with pytest.raises(SpecError, match="multiple of 100"):
        finish.build([{"kind": "fold", "frames": 100}], fe)


@pytest.mark.parametrize("samples", [1, 399, 400, 32000, 100_001])
@pytest.mark.parametrize(
    "preset",
    [
        name
        for name in PRESETS
        if PRESETS[name].get("scope")
        or name in ("ast", "yamnet_patches", "clap_fusion", "passt", "birdclef2024_4th_cqt")
    ],
)
def test_frames_are_known_before(preset: str, samples: int) -> None:
    fe = build({"preset": preset})
    assert isinstance(fe, FrontEnd) and fe(noise(samples)).shape[2] == fe.max_frames(samples)


def test_a_view_cannot_cut_the_wave_of_a_recording_first() -> None:
    fe = build({"preset": "birdclef2026_2nd_128"})
    with pytest.raises(SpecError, match='"window"'):
        views.build({"kind": "tiles", "frames": 32000, "step": 32000, "domain": "wave"}, fe)
