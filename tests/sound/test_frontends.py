"""Front ends give the originals' pictures, whatever the clip and the thread count; runs over PRESETS."""
from __future__ import annotations

import json
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.errors import ClipEmpty, SpecError
from kernel.inference import finish
from kernel.sound import filter_banks, scales, spectra, waves
from kernel.sound.__main__ import table
from kernel.sound.frontends import build
from kernel.sound.presets import PRESETS
from tests import contracts
from tests.helpers import recipe

GOLDEN = json.loads((contracts.GOLDENS / "frontends.json").read_text())
CASES = [(name, case) for name, entry in GOLDEN["frontends"].items() for case in entry["cases"]]
presets = pytest.mark.parametrize("preset", PRESETS)


def make_wave(name: str, rate: int) -> np.ndarray:
    """One of the three golden waves."""
    w = GOLDEN["waves"][name]
    return recipe.make_wave(name, w["seconds"], rate, w["begin"], w["end"])


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


# Goldens


@pytest.mark.parametrize("name, case", CASES, ids=[f"{name}-{case['wave']}" for name, case in CASES])
def test_golden(name: str, case: dict[str, Any]) -> None:
    array = contracts.FRONTENDS[name](make_wave(case["wave"], GOLDEN["frontends"][name]["rate"]))
    assert list(array.shape) == case["shape"] and array.dtype == case["dtype"]
    got = array.reshape(-1)[case["probe_index"]].astype(np.float64)
    want = np.array(case["probe_value"])
    if array.dtype == np.uint8:
        assert np.abs(got - want).max() <= 1 and (got != want).mean() <= 0.05
    elif array.dtype == np.float16:
        assert (
            np.abs(got - want) <= np.spacing(np.abs(want).astype(np.float16)).astype(np.float64) + 5e-7
        ).all()
    elif name == "simongrest_pcen":
        assert (np.abs(got - want) <= 1e-4 * np.abs(want)).all()
    else:  # dB / 100, dB / own std, natural logarithms, statistics: all far below the 1e-3 that is allowed
        scale = {
            "argus": 1e-5,
            "osciiart_pad8": 2e-5,
            "osciiart_pad64": 2e-5,
            "qrfaction_stats": 1e-6,
            "qrfaction_length": 1e-6,
        }
        assert np.abs(got - want).max() <= scale.get(name, 1e-3)
    for statistic in ("mean", "std", "min", "max"):
        value = getattr(array.astype(np.float64), statistic)()
        step = 1.0 if array.dtype == np.uint8 else 1e-3
        assert abs(value - case[statistic]) <= step * max(
            1.0, abs(case[statistic]) if array.dtype == np.float16 else 1.0
        )


def test_every_golden_has_a_front_end() -> None:
    assert set(contracts.FRONTENDS) >= set(GOLDEN["frontends"])


@pytest.mark.parametrize("name", GOLDEN["trim"])
def test_trim_points(name: str) -> None:
    kind, rate = name.split("@")
    wave = make_wave(kind, int(rate))
    want = GOLDEN["trim"][name]
    assert (len(wave), *waves.trim_bounds(wave)) == (want["samples"], want["start"], want["stop"])


# Contract of every preset


@presets
@pytest.mark.parametrize("samples", [1, 2, 100, 1300, 40000])
@pytest.mark.parametrize("kind", ["silence", "noise", "constant", "click"])
def test_short_and_silent_clips_are_finite(preset: str, samples: int, kind: str) -> None:
    fe = build({"preset": preset})
    wave = {
        "silence": np.zeros(samples, np.float32),
        "noise": noise(samples),
        "constant": np.full(samples, 0.25, np.float32),
        "click": np.eye(1, samples, samples // 2, dtype=np.float32)[0],
    }[kind]
    before = wave.copy()
    array = fe(wave)
    assert np.array_equal(wave, before)
    assert array.shape[:2] == (fe.channels, fe.bins) and array.dtype == fe.dtype and array.flags.c_contiguous
    assert 1 <= array.shape[2] <= fe.max_frames(samples) and array.nbytes <= fe.max_bytes(samples)
    assert np.isfinite(array.astype(np.float64)).all()
    if fe.fixed is not None:
        assert array.shape[2] == fe.fixed


@presets
def test_thread_count_changes_no_bit(preset: str) -> None:
    fe = build({"preset": preset})
    wave = noise(round(2.3 * fe.rate))
    before = torch.get_num_threads()
    try:
        arrays = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            arrays.append(fe(wave))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(arrays[0], array) for array in arrays[1:])


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(1, 60000), hop=st.integers(50, 900), n_fft=st.sampled_from([64, 255, 400, 1024]),
       edges=st.sampled_from(["reflect", "zeros"]))
def test_frame_bound_is_exact_without_trim(samples: int, hop: int, n_fft: int, edges: str) -> None:
    fe = build({"n_fft": n_fft, "hop": hop, "mels": 8, "edges": edges, "rate": 16000})
    assert fe(noise(samples)).shape[2] == fe.max_frames(samples)


def test_no_samples_is_a_clip_error() -> None:
    with pytest.raises(ClipEmpty, match="argus"):
        build({"preset": "argus"})(np.zeros(0, np.float32))


def test_key_tells_values_apart() -> None:
    assert build({"preset": "argus"}).key == build({"preset": "argus"}).key
    assert build({"preset": "argus"}).key != build({"preset": "argus", "hop": 345}).key
    assert len({build({"preset": p}).key for p in PRESETS}) == len(PRESETS)


@pytest.mark.parametrize(
    "spec, word",
    [
        ({"preset": "argos"}, "argus"),
        ({"preset": "argus", "hopp": 1}, "hop"),
        ({"spectrum": "mell"}, "mel"),
        ({"scale": "dB"}, "db"),
        ({"hop": "690"}, "int"),
        ({"norm": "image"}, "uint8"),
        ({"layout": "canvas"}, "layout_frames"),
        ({"layout": "bands", "mels": 128}, "divisible"),
        ({"pad_value": "min"}, "clip_min"),
        ({"power": -1.0}, "power"),
        ({"rate": 0}, "positive"),
    ],
)
def test_wrong_specs_are_named(spec: dict[str, Any], word: str) -> None:
    with pytest.raises(SpecError, match=word):
        build(spec)


def test_table_lists_every_preset() -> None:
    text = table()
    assert all(f"\n{name} " in text for name in PRESETS)


# Against librosa


@pytest.mark.parametrize(
    "rate, n_fft, hop, mels", [(44100, 2560, 690, 128), (16000, 1024, 250, 128), (44100, 1920, 690, 64)]
)
@pytest.mark.parametrize("edges, pad_mode", [("reflect", "reflect"), ("zeros", "constant")])
def test_log_mel_equals_librosa(
    rate: int, n_fft: int, hop: int, mels: int, edges: str, pad_mode: str
) -> None:
    # Its quiet cells lie 75 dB below loud neighbours: the hard case for single precision
    clean = make_wave("wave-c", rate)
    fe = {"rate": rate, "n_fft": n_fft, "hop": hop, "mels": mels, "edges": edges}
    for wave, precision, tolerance in (
        (clean, "auto", 1e-3),
        (noise(9000), "single", 1e-3),
        (clean, "double", 1e-4),
    ):
        mel = librosa.feature.melspectrogram(
            y=wave,
            sr=rate,
            n_fft=n_fft,
            hop_length=hop,
            n_mels=mels,
            fmin=20,
            fmax=rate / 2,
            pad_mode=pad_mode,
        )
        got = build({**fe, "precision": precision})(wave)[0]
        assert np.abs(got - librosa.power_to_db(mel)).max() <= tolerance


def test_pcen_equals_librosa_from_zero_state() -> None:
    power = build({"preset": "simongrest", "scale": "linear"})(
        noise(44100) * np.linspace(0, 1, 44100, dtype=np.float32)
    )[0]
    want = librosa.pcen(
        power,
        sr=44100,
        hop_length=689,
        gain=0.6,
        bias=0.1,
        power=0.2,
        time_constant=0.4,
        eps=1e-9,
        zi=np.zeros((256, 1)),
    )
    got = scales.pcen(power, frames_per_second=44100 / 689)
    assert np.abs(got - want).max() <= 1e-5 * want.max()


def test_chroma_equals_librosa_at_zero_tuning() -> None:
    power = np.abs(librosa.stft(noise(30000), n_fft=2048, hop_length=512)) ** 2
    power[:, 3] = 0
    bank = filter_banks.chroma_bank(44100, 2048)
    got = spectra.chroma(torch.from_numpy(np.ascontiguousarray(power.T)), bank)
    assert np.abs(got.numpy().T - librosa.feature.chroma_stft(S=power, sr=44100, tuning=0)).max() <= 1e-5


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("frames", [9, 10, 33])
def test_delta_equals_librosa(order: int, frames: int) -> None:
    x = np.random.default_rng(0).standard_normal((128, frames)).astype(np.float32) * 30
    got = finish.delta(torch.from_numpy(x), 9, order).numpy()
    assert np.abs(got - librosa.feature.delta(x, width=9, order=order)).max() <= 1e-4


def test_trim_equals_librosa_away_from_the_edges() -> None:
    wave = np.concatenate([np.zeros(20000), noise(9000), np.zeros(15001)]).astype(np.float32)
    assert waves.trim_bounds(wave) == tuple(librosa.effects.trim(wave)[1])


def test_all_silent_clip_is_not_trimmed() -> None:
    assert waves.trim_bounds(np.zeros(5000, np.float32)) == (0, 5000)


@pytest.mark.filterwarnings("ignore:Empty filters")
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("n_fft", [64, 512, 1023, 2048, 2560])
def test_filter_banks_are_librosa_s_to_the_last_bit(rate: int, n_fft: int) -> None:
    for mels, fmin, fmax in (
        (26, 0.0, rate / 2),
        (64, 27.5, 3800.25),
        (128, 20.0, rate / 2),
        (128, 1200.0, 3000.0),
    ):
        want = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=mels, fmin=fmin, fmax=fmax)
        got = filter_banks.mel_weights(rate, n_fft, mels, fmin, fmax)
        assert got.dtype == want.dtype and np.array_equal(got, want)
    want = librosa.filters.chroma(sr=rate, n_fft=n_fft, tuning=0.0)
    assert np.array_equal(filter_banks.chroma_weights(rate, n_fft), want)


@pytest.mark.filterwarnings("ignore:Empty filters")
@pytest.mark.parametrize(
    "rate, n_fft, mels, fmin",
    [(44100, 2560, 128, 20.0), (44100, 13440, 672, 20.0), (16000, 512, 40, 0.0), (8000, 64, 128, 0.0)],
)
def test_mel_bands_equal_the_dense_bank(rate: int, n_fft: int, mels: int, fmin: float) -> None:
    dense = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=mels, fmin=fmin, fmax=rate / 2)
    out = torch.empty(n_fft // 2 + 1, mels)
    filter_banks.mel_bank(rate, n_fft, mels, fmin, rate / 2)(torch.eye(n_fft // 2 + 1), out)
    assert np.array_equal(out.numpy().T, dense)


# Rules of single systems


def test_argus_half_second_window_ignores_the_trim_start() -> None:
    wave = np.zeros(60000, np.float32)
    wave[40000:50000] = noise(10000)
    start, stop = waves.trim_bounds(wave)
    assert stop - start < 22050
    fe = build({"preset": "argus", "spectrum": "wave"})
    centre = (stop - start) // 2
    want = wave[max(0, centre - 11025) : centre + 11025]
    left = (22050 - len(want)) // 2
    assert fe(wave).shape == (1, 1, 22050)
    assert np.array_equal(fe(wave)[0, 0, left : left + len(want)], want)


def test_canvas_is_filled_with_zero_decibels() -> None:
    image = build({"preset": "hackerearth"})(noise(20000) * 0.01)[0]
    clip = 1 + 20000 // 512
    assert (image[:, clip:] == image.max()).all()  # 0 dB is the bright end of a quiet clip


def test_long_canvas_keeps_its_first_frames_but_the_range_of_the_whole_clip() -> None:
    quiet = noise(300000) * 1e-3
    loud = noise(100000)
    fe = build({"preset": "hackerearth", "norm": "none", "stored": "float32"})
    assert fe(np.concatenate([quiet, loud])).shape == (1, 128, 455)
    assert fe(np.concatenate([quiet, 100 * loud])).min() > fe(quiet).min()


def test_statistics_come_from_numpy_percentiles() -> None:
    wave = noise(12800)
    row = build({"preset": "qrfaction_statistics"})(wave)[0, 64]
    part = wave[64 * 100 - 50 : 64 * 100 + 150].astype(np.float64)
    want = [part.mean(), part.std(), np.ptp(part), *np.percentile(part, [0, 1, 25, 30, 50, 60, 75, 99, 100])]
    assert np.allclose(row, want, rtol=1e-5, atol=1e-7)


def test_flat_clip_is_a_black_image() -> None:
    assert not build({"preset": "daisukelab"})(np.zeros(90000, np.float32)).any()


def test_bands_are_low_middle_high() -> None:
    t = np.arange(44100 * 4) / 44100
    picture = build({"preset": "filipmu_colour"})(np.sin(2 * np.pi * 300 * t).astype(np.float32))
    assert picture.shape == (3, 224, 237) and picture[0].max() == 255 > picture[2].max()
