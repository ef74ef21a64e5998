"""report.html: complete, escaped, self-contained, and readable in a real browser."""
from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from kernel.report import charts, pictures
from kernel.report.contents import Report
from kernel.report.page import encode_page, page
from tests.helpers.browser import BROWSER, measure
from tests.helpers.sample_report import make_json, make_report

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


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here to render report.html in")
@pytest.mark.parametrize("width", [1280, 700])
def test_no_horizontal_scroll_in_a_browser(tmp_path: Path, width: int) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(encode_page(page(full_report(), {"a<b>.wav": spectrogram()})))
    sizes = measure(path, width)
    assert sizes["inner"] == width and sizes["scroll"] <= width, sizes
    assert sizes["pictures"] == 12 * pictures.WIDTH, "every picture was decoded"
