"""`--compare` is silent where the training code agrees, and names the planted mistake where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import scipy.signal
import soundfile
import torch

from builder import assembly, causes, compare, random_weights
from kernel import models
from kernel.errors import SpecError
from kernel.inference.member import load_net, predict_alone, row_inputs
from kernel.inference.recipe import build_recipe
from kernel.sound import decode
from kernel.sound.frontends import build
from kernel.sound.rows import Row
from kernel.spec import Cost, load_ensemble
from tests.helpers.bundles import order

RATE = 16000
OWN_RATE = 22050  # of the clip
TOML = """
name = "compared"
classes = ["a", "b", "c"]
[frontends.mel]
rate = 16000
n_fft = 512
hop = 200
mels = 40
fmin = 50.0
fmax = 7000.0
{keys}
[[members]]
name = "cnn"
family = "simple_cnn"
params = {{ base = 4, channels = {channels} }}
frontend = "mel"
finish = [{finish}]
"""
MEL = {"rate": RATE, "n_fft": 512, "hop": 200, "mels": 40, "fmin": 50.0, "fmax": 7000.0}


def make_clip(seconds: float = 2.0, rate: int = OWN_RATE, channels: int = 1) -> np.ndarray:
    """f32[S] or [S, channels]: chirps in noise between two quiet ends."""
    rng = np.random.default_rng(1)
    t = np.arange(int(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * f * t * (1 + 0.5 * t)) for f in (300, 1100, 2900))
    envelope = np.clip(np.minimum(t - 0.3, seconds - 0.4 - t) / 0.05, 0, 1)
    waves = [
        0.2 * tones * envelope + a * envelope * rng.standard_normal(len(t)) for a in (0.02, 0.3)[:channels]
    ]
    wave = np.stack(waves, axis=1) + 1e-5 * rng.standard_normal((len(t), channels))
    return (wave[:, 0] if channels == 1 else wave).astype(np.float32)


def soxr_hq(wave: np.ndarray) -> np.ndarray:
    return librosa.resample(wave, orig_sr=OWN_RATE, target_sr=RATE, res_type="soxr_hq")


class Bench:
    """A folder with a TOML, and builds of it that are compared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def build(
        self, arrays: dict[str, Any], keys: str = "", finish: str = "", channels: int = 1, **more: Any
    ) -> list[str]:
        """The build's output. Raises SpecError where it fails."""
        (self.folder / "x.toml").write_text(TOML.format(keys=keys, finish=finish, channels=channels))
        np.savez(self.folder / "pairs.npz", **arrays)
        self.said: list[str] = []
        request = order(
            self.folder / "out", ensemble=self.folder / "x.toml", compare=self.folder / "pairs.npz", **more
        )
        assembly.build(request, say=self.said.append)
        return self.said

    def fail(self, arrays: dict[str, Any], **more: Any) -> str:
        """What a build that fails said."""
        with pytest.raises(SpecError, match="differ from the training code"):
            self.build(arrays, **more)
        return "\n".join(self.said)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def pairs(array: np.ndarray, wave: np.ndarray | None = None) -> dict[str, Any]:
    return {
        "dog/wave": make_clip() if wave is None else wave,
        "dog/rate": OWN_RATE,
        "dog/frontends/mel": array,
    }


def mel(wave: np.ndarray, **more: Any) -> np.ndarray:
    """librosa's power mel with the TOML's settings."""
    keys = {
        "sr": RATE,
        "n_fft": 512,
        "hop_length": 200,
        "n_mels": 40,
        "fmin": 50,
        "fmax": 7000,
        "pad_mode": "reflect",
    }
    return librosa.feature.melspectrogram(y=wave, **{**keys, **more})


def db(power: np.ndarray, **more: Any) -> np.ndarray:
    return librosa.power_to_db(power, **more)


WAVE = soxr_hq(make_clip())
LOUD_CLIP = make_clip()[int(0.7 * OWN_RATE) : int(1.3 * OWN_RATE)]  # up to both ends
LOUD = soxr_hq(LOUD_CLIP)


def trimmed() -> np.ndarray:
    return librosa.effects.trim(WAVE, top_db=30)[0]


# What the training code did, and what must be named; the TOML has the plain settings
PLANTED = {
    "ref": (lambda: db(mel(WAVE), ref=np.max), "ref: 0 dB is max"),
    "htk": (lambda: db(mel(WAVE, htk=True)), "mel scale: htk there"),
    "area": (lambda: db(mel(WAVE, norm=None)), "area norm of the mel filters: none there"),
    "padding": (
        lambda: db(mel(LOUD, pad_mode="constant")),
        "centre and padding: frames at the edges read zeros",
    ),
    "centre": (lambda: db(mel(WAVE, center=False)), "centre and padding: frames at the edges read none"),
    "trim": (lambda: db(mel(trimmed())), "trim: silent ends are cut at"),
    "power": (lambda: db(mel(WAVE, power=1.0)), "power: magnitudes to the power 1.0 there"),
    "z": (lambda: causes._z(db(mel(WAVE))), "per-clip normalisation"),
    "minmax": (lambda: causes._minmax(db(mel(WAVE))), "per-clip normalisation"),
    "255": (lambda: db(mel(WAVE)) / 255, "/255"),
    "kaiser": (
        lambda: db(mel(scipy.signal.resample_poly(make_clip(), 320, 441).astype(np.float32))),
        "resampler: scipy's resample_poly",
    ),
    "top_db": (lambda: db(mel(WAVE), top_db=60), "top_db: 60.0 there"),
    "symmetric": (lambda: db(mel(WAVE, window=np.hanning(512))), "periodic False there"),
    "log": (lambda: np.log(mel(WAVE) + 1e-6), "1e-06 there"),
    "turned": (lambda: db(mel(WAVE)).T, "axes: time stands before frequency"),
    "upside down": (lambda: db(mel(WAVE))[::-1], "rows stand the other way round"),
    "int16": (lambda: db(mel(WAVE * 32768)), "level of the wave: x 32768"),
    "torchaudio": (lambda: db(mel(WAVE, htk=True, norm=None)), "htk there"),
    "amplitude": (lambda: librosa.amplitude_to_db(mel(WAVE, power=1.0)), "20.0 log10"),
}


def test_it_is_silent_on_the_right_one(bench: Bench) -> None:
    said = bench.build(pairs(db(mel(WAVE))))
    lines = [line for line in said if "front end mel" in line]
    assert len(lines) == 1 and "agrees" in lines[0] and "cause" not in lines[0]


@pytest.mark.parametrize("name", PLANTED)
def test_the_planted_cause_is_named(bench: Bench, name: str) -> None:
    make, words = PLANTED[name]
    said = bench.fail(pairs(make(), LOUD_CLIP if name == "padding" else None))
    assert "DIFFERS" in said and words in said.split("likeliest cause: ")[1], said


def test_the_trim_of_a_later_librosa_is_named(bench: Bench) -> None:
    rng = np.random.default_rng(5)
    quiet = 10 ** (-28.5 / 20) * 0.3 * rng.standard_normal(OWN_RATE // 2)
    clip = np.concatenate([quiet, 0.3 * rng.standard_normal(OWN_RATE)]).astype(np.float32)
    array = db(mel(librosa.effects.trim(soxr_hq(clip), top_db=30)[0]))
    said = bench.fail(pairs(array, clip), keys="trim_db = 30.0")
    assert "trim: frames at the wave's ends read zeros" in said.split("likeliest cause: ")[1], said
    said = "\n".join(bench.build(pairs(array, clip), keys='trim_db = 30.0\ntrim_edges = "zeros"'))
    assert "agrees" in said and "cause" not in said


def test_channel_order_and_255_of_what_the_net_sees(bench: Bench) -> None:
    finish = (
        '"repeat", { kind = "normalise", mean = [0.0, 1.0, 2.0], std = [1.0, 2.0, 3.0] }, '
        '{ kind = "scale", divide = 255.0 }'
    )
    image = db(mel(WAVE))[None].repeat(3, axis=0)
    seen = (image - np.array([0, 1, 2])[:, None, None]) / np.array([1, 2, 3])[:, None, None] / 255
    given = {"dog/wave": make_clip(), "dog/rate": OWN_RATE}
    for array, words in (
        (seen[::-1], "channel order"),
        (seen * 255, "/255"),
        (seen / 255, "/255 is done twice"),
    ):
        said = bench.fail({**given, "dog/inputs/cnn": array}, finish=finish, channels=3)
        assert words in said.split("likeliest cause: ")[1], said
    said = bench.build({**given, "dog/inputs/cnn": seen}, finish=finish, channels=3)
    assert any("input of member cnn, clip dog: agrees" in line for line in said)


def test_scores_are_compared_and_their_cause_is_looked_for_in_the_front_end(bench: Bench) -> None:
    given = {"dog/wave": make_clip(), "dog/rate": OWN_RATE}
    with pytest.raises(SpecError):
        bench.build({**given, "dog/members/cnn": np.zeros(3)}, finish='{ kind = "scale", divide = 100.0 }')
    assert not (bench.folder / "out" / "bundle").exists()
    ensemble = load_ensemble(bench.folder / "x.toml")
    module = models.build("simple_cnn", dict(ensemble.members[0].params), 3).eval()
    state = random_weights.draw_state(module, "simple_cnn", ensemble.members[0].params)
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})

    def scores(array: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return torch.sigmoid(module(torch.from_numpy(array)[None, None].float() / 100))[0].numpy()

    finish = '{ kind = "scale", divide = 100.0 }'
    said = bench.build({**given, "dog/members/cnn": scores(db(mel(WAVE)))}, finish=finish)
    assert any("scores of member cnn, clip dog: agrees" in line for line in said)
    wrong = {**given, "dog/members/cnn": scores(db(mel(WAVE), ref=np.max))}
    with pytest.raises(SpecError, match="1 of 1 comparisons"):
        bench.build(wrong, finish=finish)
    assert "ref: 0 dB is max" in "\n".join(bench.said)
    assert (
        bench.build(wrong, finish=finish, compare_allow=True) and (bench.folder / "out" / "bundle").exists()
    )
    assert "agrees" in "\n".join(bench.build(wrong, finish=finish, compare_tolerance=1.0))


def test_a_difference_of_its_own_has_no_cause_but_a_place(bench: Bench) -> None:
    array = db(mel(WAVE)).copy()
    array[5:8, 20:25] += 30.0
    said = bench.fail(pairs(array))
    assert "bins 5..7 of 40, frames 20..24 of 161" in said and "none of the known ones" in said


def test_arrays_of_another_size_that_nothing_explains(bench: Bench) -> None:
    said = bench.fail(pairs(np.zeros((41, 7))))
    assert "ours [40, 161], training [41, 7]" in said and "none of the known ones" in said


def test_files_and_their_first_channel(bench: Bench) -> None:
    stereo = make_clip(channels=2)
    soundfile.write(bench.folder / "dog.wav", stereo, OWN_RATE, subtype="FLOAT")
    mono, first = soxr_hq(stereo.mean(axis=1)), soxr_hq(np.ascontiguousarray(stereo[:, 0]))
    given = {"dog/file": "dog.wav"}
    assert "agrees" in "\n".join(bench.build({**given, "dog/frontends/mel": db(mel(mono))}))
    with pytest.raises(SpecError, match="1 of 1"):
        bench.build({**given, "dog/frontends/mel": db(mel(first))})
    assert "mixing: the first channel" in "\n".join(bench.said)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({}, "it is empty"),
        ({"a/wave": np.zeros(9), "a/rate": 9}, "no array to compare with"),
        ({"a/frontends/mel": np.zeros((2, 3))}, "a/wave and a/rate"),
        ({"a/frontend/mel": np.zeros((2, 3))}, "did you mean 'frontends/NAME'"),
        ({"a/wave": np.zeros(999), "a/rate": 99, "a/frontends/mal": np.zeros(3)}, "did you mean 'mel'"),
        ({"a/file": "none.wav", "a/frontends/mel": np.zeros(3)}, "cannot be read"),
    ],
)
def test_a_wrong_file_of_pairs_is_named(bench: Bench, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        bench.build(arrays)


def test_pickled_arrays_are_refused(bench: Bench) -> None:
    with pytest.raises(SpecError, match="plain arrays"):
        bench.build(pairs(np.array([{"a": 1}], dtype=object)))


def test_torchaudio_s_resampler_is_known() -> None:
    """Against torchaudio 2.11's own answer for this wave, whose first samples are written down here."""
    wave = np.sin(np.arange(60) * 0.3).astype(np.float32)
    got = causes.RESAMPLERS["torchaudio's resample"](wave, 441, 320)
    assert len(got) == -(-60 * 320 // 441)
    want = np.sin(np.arange(len(got)) * 0.3 * 441 / 320)
    assert np.abs(got - want)[8:-8].max() < 0.02


def test_the_keys_of_causes_are_keys() -> None:
    here = build({**MEL})
    for cause in causes.key_causes({key: getattr(here, key) for key in here.__dataclass_fields__}):
        assert set(cause.keys) <= set(here.__dataclass_fields__) and "{" not in cause.words


def test_numbers_that_a_finish_takes_from_the_checkpoint_are_compared_too(tmp_path: Path) -> None:
    text = """
    name = "waved"
    classes = ["a", "b", "c"]
    [frontends.wave]
    rate = 16000
    spectrum = "wave"
    [[members]]
    name = "net"
    family = "mel_densenet"
    params = { growth = 2 }
    frontend = "wave"
    finish = [{ kind = "mel_in_net", rate = 16000, hop = 128 }]
    """
    (tmp_path / "waved.toml").write_text(text, encoding="utf-8")
    ensemble = load_ensemble(tmp_path / "waved.toml")
    member = ensemble.members[0]
    module = models.build(member.family, dict(member.params), 3).eval()
    state = random_weights.draw_state(module, member.family, member.params)
    state |= {"finish.x.0.wave_scale": torch.tensor([3.0]), "finish.x.0.wave_offset": torch.tensor([0.1])}
    case = compare.Case(name="clip", rate=RATE, samples=make_clip(0.6, RATE), wanted={})
    row = Row(id="clip", clip=decode.Clip(id="clip"))
    net = load_net(build_recipe(ensemble, member), state, 3, compare.CPU, Cost())
    waves = compare._OneWave(case, compare.NOTHING)
    made = compare.Comparison(ensemble, {"net": module}, {"net": lambda: [state]})
    got = made.evaluate("members", "net")(case, compare.NOTHING)
    np.testing.assert_allclose(got, predict_alone(net, waves, row), rtol=1e-6)
    wanted = row_inputs(net, waves, row)["x"].numpy()
    assert np.array_equal(made.evaluate("inputs", "net")(case, compare.NOTHING), wanted)
    plain = compare.Comparison(ensemble, {"net": module}, {}).evaluate("inputs", "net")
    assert not np.allclose(plain(case, compare.NOTHING), wanted, rtol=0.5)


def test_of_a_mapped_member_the_classes_that_it_knows_are_compared(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("label,class\nx,a\ny,c\n")
    own = 'classes_from = ["w", "x", "y"]\nclasses_map = "map.csv"\n'
    (tmp_path / "x.toml").write_text(TOML.format(keys="", finish="", channels=1) + own)
    ensemble = load_ensemble(tmp_path / "x.toml")
    module = models.build("simple_cnn", dict(ensemble.members[0].params), 3).eval()
    state = random_weights.draw_state(module, "simple_cnn", ensemble.members[0].params)
    made = compare.Comparison(ensemble, {"cnn": module}, {"cnn": lambda: [state]})
    case = compare.Case(name="clip", rate=RATE, samples=make_clip(0.6, RATE), wanted={})
    known = made.evaluate("members", "cnn")(case, compare.NOTHING)
    assert known.shape == (2,) and known.min() > 0
    for third, holds in ((known[1], True), (known[1] + 0.1, False)):
        told = np.array([known[0], np.nan, third])  # it has nothing to say of b
        wanted = {("members", "cnn"): told}
        (found,) = compare.compare(made, [compare.replace(case, wanted=wanted)], None, "here")
        assert found.holds == holds and np.isfinite(found.difference.largest)
