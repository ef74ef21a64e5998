"""Pictures for people who look: spectrograms of files, what an ensemble hears, errors that are sentences."""
from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile

import kernel
from kernel import library
from kernel.errors import ClipEmpty, ClipUnreadable, HourglassError, SampleMissing, SpecError
from kernel.report import drawing
from kernel.report.explanations import Explanation
from kernel.spec import load
from tests.helpers.bundles import built_once
from tests.helpers.sample_report import explain_row

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def no_window() -> Iterator[None]:
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Two seconds of a tone in noise."""
    t = np.arange(2 * 22_050) / 22_050
    wave = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.01 * np.random.default_rng(0).standard_normal(len(t))
    soundfile.write(tmp_path / "tone.wav", wave, 22_050)
    return tmp_path / "tone.wav"


def told(**changes: Any) -> Explanation:
    row = explain_row("tone.wav", ["bark", "meow", "hiss"], ["cnn", "sed"])
    return load(Explanation, row | changes)


def test_a_preset_draws_its_own_array(clip: Path) -> None:
    axes = kernel.spectrogram(clip, "argus")
    (image,) = axes.get_images()
    assert image.get_array().shape[0] == 128 and axes.get_xlabel() == "seconds"
    assert 1.8 < image.get_extent()[1] <= 2.05 and "front end argus" in axes.get_title()
    assert image.get_array().argmax(axis=0).std() < 5, "a tone is a line"
    other = kernel.spectrogram(clip, {"preset": "argus", "mels": 64, "trim_db": "none"}, axes=axes)
    assert other is axes and axes.get_images()[-1].get_array().shape[0] == 64


def test_a_wave_is_a_line_and_colours_are_named(clip: Path) -> None:
    assert kernel.spectrogram(clip, "wave").get_lines()
    assert "channel 1 of 3" in kernel.spectrogram(clip, "hackerearth_3channel").get_title()


@pytest.mark.parametrize(
    "name, preset, error, reason",
    [
        ("tone.wav", "agrus", SpecError, "did you mean 'argus'"),
        ("tone.wav", {}, SpecError, "give a preset by name"),
        ("gone.wav", "argus", ClipUnreadable, "gone.wav"),
        ("text.wav", "argus", ClipUnreadable, "text.wav"),
        ("empty.wav", "argus", ClipEmpty, "empty.wav"),
    ],
)
def test_what_cannot_be_drawn_is_named(
    clip: Path, name: str, preset: Any, error: type[HourglassError], reason: str
) -> None:
    (clip.parent / "text.wav").write_text("no audio")
    soundfile.write(clip.parent / "empty.wav", np.zeros(0), 22_050)
    with pytest.raises(error, match=reason):
        kernel.spectrogram(clip.parent / name, preset)


def test_without_matplotlib_nothing_is_scored(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    for call in (lambda: kernel.spectrogram(clip), lambda: kernel.listen("nowhere", clip)):
        with pytest.raises(HourglassError, match="pip install matplotlib"):
            call()


def test_who_disagrees_is_said() -> None:
    assert drawing.title_of(told()) == "tone.wav: bark; disagreeing: sed says hiss"
    assert drawing.title_of(told(members=())) == "tone.wav: no member has a say; it holds the prior"
    agreed = explain_row("a", ["bark"], ["cnn"])
    assert drawing.title_of(load(Explanation, agreed)) == "a: bark; every member says so"


def test_a_clips_figure_has_every_part(clip: Path) -> None:
    drawing.draw_told(clip, told())
    figure = plt.gcf()
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 3 and titles[1] == "cnn.0: score of each part, by its passes"
    assert [tick.get_text() for tick in figure.axes[2].get_xticklabels()] == ["cnn", "sed (!)"]
    assert [tick.get_text() for tick in figure.axes[1].get_yticklabels()] == ["bark", "meow"]
    drawing.draw_told(clip, told(moments=[], members=[]))
    plt.gcf().canvas.draw()


def test_listening_to_a_clip_gives_what_it_draws(clip: Path) -> None:
    found = kernel.listen(built_once(), clip, device="cpu")
    scores = kernel.score(built_once(), clip.parent, names=["tone.wav"], device="cpu", progress=False)
    assert list(found.columns) == ["ensemble", "plain", "tiled"] and found.index.name == "tone.wav"
    assert found["ensemble"].to_dict() == scores.iloc[0].to_dict(), "the kernel's own numbers"
    best = found[["plain", "tiled"]].idxmax()
    assert found.attrs["disagree"] == {name: who for name, who in best.items() if who != found.index[0]}
    assert len(plt.gcf().axes) >= 2


def test_a_recording_has_its_windows_over_time(
    clip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawing.draw_windows(clip, ["a_1", "a_2"], np.eye(2), ["bark", "meow"], 1.0)
    assert plt.gcf().axes[1].get_images()[0].get_extent()[:2] == [0.0, 2.0]


def test_a_clip_without_a_score_says_why(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame({"bark": [0.5]}, index=["tone.wav"])
    monkeypatch.setattr(library, "score", lambda *_, **__: table)
    table.attrs["report"] = {"broken_rows": {"tone.wav": "ClipEmpty"}, "explained": []}
    with pytest.raises(HourglassError, match="nothing was heard: ClipEmpty"):
        kernel.listen(built_once(), clip)
    table.attrs["report"] = {"broken_rows": {}}
    with pytest.raises(HourglassError, match="older than this; build it again"):
        kernel.listen(built_once(), clip)
    with pytest.raises(SampleMissing, match="no such file"):
        kernel.listen(built_once(), clip.parent)
