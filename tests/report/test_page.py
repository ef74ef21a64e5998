"""report.html: complete, escaped, self-contained, and readable in a real browser."""
from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kernel.report import charts, pictures
from kernel.report.contents import Report
from kernel.report.explanations import BINS
from kernel.report.page import encode_page, page
from tests.helpers.browser import BROWSER, measure
from tests.helpers.sample_report import explain_row, make_json, make_report

VERDICT = {
    "walls": ["network: off"],
    "notes": ["clips: 50 files repeated to 100"],
    "clips": 3361,
    "hours": 9.7,
    "slowdown": 1.3,
    "passed": False,
    "problems": ["spill to disk: too much"],
    "verdict": [
        {
            "what": "time of everything",
            "raw": 600.0,
            "scaled": 780.0,
            "allowed": 3420.0,
            "unit": "s",
            "passed": True,
            "margin": 0.77,
        },
        {
            "what": "spill to disk",
            "raw": 6e9,
            "scaled": 6e9,
            "allowed": 5e9,
            "unit": "B",
            "passed": False,
            "margin": -0.2,
        },
    ],
}


def full_report() -> Report:
    """A report with something in every section, and names that want to break out."""
    nasty = "<script>alert(1)</script>\udcff" + "x" * 150
    worst = {
        "row": nasty,
        "truth": ["hiss"],
        "rank": 3,
        "best": ["bark", "meow", "hiss"],
        "scores": [0.9, 0.05, 0.01],
    }
    data = make_json()
    data["members"][0]["nets"][1]["failed"] = "ModelLoadFailed: " + "a_very_long_key_name." * 20
    return make_report(
        rehearsal=VERDICT,
        fault_counts={"ClipEmpty": 3},
        worst=[worst],
        faults=[{"t": 1.0, "code": "ClipEmpty", "where": nasty, "message": nasty}],
        members=data["members"],
        uncertain=data["uncertain"] * 12,
        explained=[explain_row("a<b>.wav", ["bark", nasty, "m" * 60], ["w" * 60, *"cdefghi", nasty], 4)],
    )


def spectrogram() -> str:
    return pictures.data_uri(pictures.draw_spectrogram(np.random.default_rng(0).normal(size=(128, 300))))


def test_every_section_is_there() -> None:
    text = page(full_report(), {"a<b>.wav": spectrogram()})
    for title in (
        "Will it fit?",
        "What went wrong",
        "Memory",
        "Stages",
        "Members",
        "Lengths",
        "Store",
        "Plan against outcome",
        "Worst predictions",
        "Most uncertain clips",
        "How it ran",
    ):
        assert f"<h2>{title}</h2>" in text
    for figure in (
        "100 of 100",
        "3,361",
        "9.7 h",
        "FAIL",
        "+77 %",
        "-20 %",
        "limit 14.0 GB",
        "0.97 %",
        "75.0 %",
        "after 3.5 s",
        "1.33",
        "ClipEmpty x 3",
        "rank 3",
    ):
        assert figure in text, figure


def test_an_uncertain_row_has_its_reasons() -> None:
    """What each member says, who says another class, and where in time: in words, and as a strip."""
    text = page(make_report(), {"a<b>.wav": spectrogram()}).partition("Most uncertain clips")[2]
    assert '<span class="said">cnn: bark 0.41, meow 0.4</span>' in text
    assert '<span class="said warn">sed&lt;: bark 0.41, meow 0.4; says hiss 0.5</span>' in text
    said = "cnn.0, by its passes, as they were scored: bark most at 3.9 s, meow most at 0.3 s"
    assert text.count(said) == 2 and f'alt="{said}"' in text, "on the page, and for a screen reader"
    strip = base64.b64decode(re.findall(r'class="time" src="data:image/png;base64,([^"]*)', text)[0])
    assert strip[16:24] == (BINS).to_bytes(4) + (2).to_bytes(4), "a pixel per bin, a line per class"
    crowd = page(full_report(), {}).partition("Most uncertain clips")[2]
    assert "and 7 more members in report.json" in crowd


def test_a_report_without_reasons_has_its_cards() -> None:
    """Bundles of before write none; a net that heard nothing leaves no strip."""
    text = page(make_report(explained=[]), {}).partition("Most uncertain clips")[2]
    assert "a&lt;b&gt;.wav" in text and "said" not in text
    told = explain_row("a<b>.wav", ["bark", "meow"], ["cnn"])
    told["moments"][0] |= {"scores": [[None] * BINS] * 2, "aligned": False}
    assert 'class="time"' not in page(make_report(explained=[told]), {})
    told["moments"][0]["scores"] = [[0.0] * BINS] * 2
    assert "bark most at 0.1 s" in page(make_report(explained=[told]), {})
    assert "not the clip&#x27;s own seconds" in page(make_report(explained=[told]), {})


def test_it_needs_nothing_from_outside() -> None:
    text = page(full_report(), {"a<b>.wav": spectrogram()})
    assert "<script" not in text and "<link" not in text and "@import" not in text and "http" not in text
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', text))
    assert len(text) < 200_000


def test_names_cannot_break_out() -> None:
    data = encode_page(page(full_report(), {}))
    assert b"&lt;script&gt;" in data and b"<script" not in data and b"\\udcff" in data


def test_sections_with_nothing_to_show_are_left_out() -> None:
    """A run that ended before any net ran."""
    data = make_json()
    poor = make_report(
        rows=5,
        prior_rows=5,
        members=[],
        stages=[],
        timeline=[],
        publications=[],
        uncertain=[],
        groups={},
        lengths_s={"counts": [0], "edges_s": [0.0, 1.0]},
        forecast={"steps": [], "median_ratio": None, "worst_ratio": None},
        store=data["store"] | {"hits": {}},
        faults=[{"t": 1.0, "code": "EngineDied", "where": "engine", "message": "SIGKILL"}],
        fault_counts={"EngineDied": 1},
        guard=None,
    )
    text = page(poor, {})
    assert "0 of 5" in text and "DEGRADED" in text
    assert re.findall("<h2>(.*?)</h2>", text) == ["What went wrong", "How it ran"]


def test_a_run_without_a_rehearsal_is_complete_or_degraded() -> None:
    assert "COMPLETE" in page(make_report(), {}) and "DEGRADED" in page(make_report(prior_rows=1), {})


@pytest.mark.parametrize("shape", [(128, 300), (128, 1), (64, 5000), (1, 7)])
def test_pictures_are_valid_png(shape: tuple[int, int]) -> None:
    data = pictures.draw_spectrogram(np.random.default_rng(1).normal(size=shape))
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
    width, height = (int.from_bytes(data[at:at + 4], "big") for at in (16, 20))
    start = data.index(b"IDAT") + 4
    rows = zlib.decompress(data[start:start + int.from_bytes(data[start - 8:start - 4], "big")])
    assert (width, height) == (pictures.WIDTH, pictures.HEIGHT)
    assert len(rows) == height * (width + 1) and max(rows) < pictures.LEVELS


def test_low_frequencies_are_at_the_bottom() -> None:
    low = np.zeros((128, 300))
    low[:10] = 1.0
    data = pictures.draw_spectrogram(low)
    start = data.index(b"IDAT") + 4
    rows = np.frombuffer(zlib.decompress(data[start:-16]), np.uint8).reshape(pictures.HEIGHT, -1)
    image = rows[:, 1:]  # a filter byte leads each row
    assert image[-1].min() == pictures.LEVELS - 1 and image[0].max() == 0


def test_thinning_keeps_the_peak_and_the_end() -> None:
    points = [(float(i), 1.0) for i in range(10_000)]
    points[7_777] = (7_777.0, 9.0)
    thin = charts.thin(points)
    assert len(thin) <= 505 and (7_777.0, 9.0) in thin and thin[-1] == points[-1]
    assert [x for x, _ in thin] == sorted(x for x, _ in thin)


def test_a_limit_far_above_breaks_the_axis() -> None:
    series = [charts.Series(name="used", points=[(0.0, 0.3), (10.0, 0.4)], colour="--c0")]
    level = charts.Level(name="limit", y=14.0, colour="--bad")
    assert "axis broken" in charts.line_chart(series, [level], str, "memory")
    near = charts.Level(name="limit", y=0.5, colour="--bad")
    assert "axis broken" not in charts.line_chart(series, [near], str, "memory")


in_a_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here to render report.html in")


def crowded_report() -> Report:
    """A report whose names are as long, and whose nets, devices and lengths as many, as they can be."""
    data = make_json()
    names = [f"{'mw' * 30}_{number}" for number in range(9)]
    member = data["members"][0]
    data["members"] = [{**member, "name": name, "family": "a_module_of_mine.py:MyNet"} for name in names]
    spans = [
        {"name": f"{name}.{fold}", "device": f"cuda:{fold}", "start_s": 4.0 * i, "end_s": 4.0 * i + 3.9}
        for i, name in enumerate([*names, "mmmm", "wwwwwwwww", "m"])
        for fold in (0, 1)
    ]
    groups = {name: {**group, "cells": [9_999_999, 9_999_999]} for name, group in data["groups"].items()}
    concerns = ["the engine was restarted 2 times (no progress for 30 s): look at 'What went wrong'"]
    return make_report(
        members=data["members"],
        stages=spans,
        groups=groups,
        ensemble="m" * 64,
        rehearsal={**VERDICT, "problems": [], "passed": True, "concerns": concerns},
        fault_counts={"BundleHashMismatch": 123_456},
        faults=[{"t": 1234.5, "code": "BundleHashMismatch", "where": names[0], "message": "w" * 200}],
    )


@in_a_browser
@pytest.mark.parametrize("width", [1280, 700, 400])
@pytest.mark.parametrize("made", [full_report, crowded_report])
def test_every_word_can_be_read_in_a_browser(
    made: Callable[[], Report], width: int, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(encode_page(page(made(), {"a<b>.wav": spectrogram()})))
    sizes = measure(path, width)
    assert sizes["found"] == []
    assert sizes["inner"] == width and sizes["scroll"] <= width, sizes
    if made is full_report:
        assert sizes["pictures"] == 12 * (pictures.WIDTH + BINS), "every picture was decoded"


@in_a_browser
def test_the_browser_sees_what_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><body style='margin:0'><div style='width:600px'>wide</div>"
        "<p style='width:1px;overflow-wrap:anywhere'>PASS</p>"
        "<p style='position:absolute;top:300px'>one</p><p style='position:absolute;top:302px'>two</p>"
        "<svg width=300 height=100 style='overflow:hidden'><rect x=0 y=20 width=300 height=50 />"
        "<text x=10 y=50>over</text><g><rect x=50 y=80 width=10 height=20 /><text x=51 y=95 "
        "class=onbar>beyond</text></g><text x=290 y=12>cut off</text></svg></body>"
    )
    sizes = measure(path, 400)
    assert sizes["scroll"] == 600
    kinds = {text.partition(":")[0] for text in sizes["found"]}
    assert kinds == {
        "letter under letter", "text over text", "label over a bar", "label beyond its bar", "label cut off"
    }
