"""The first screen of the README: its picture and table are drawn from the measured figures beside them."""
from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from benchmarks import first_screen
from tests.helpers import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
FIGURES: dict[str, Any] = json.loads(first_screen.FIGURES.read_bytes())


def test_picture_and_table_are_those_of_the_figures() -> None:
    told = "run: python benchmarks/first_screen.py --draw"
    assert first_screen.PICTURE.read_text(encoding="utf-8") == first_screen.draw(FIGURES), told
    assert first_screen.fill(README, FIGURES) == README, told
    assert README.index("docs/first_screen.svg") < README.index(first_screen.BEGIN) < README.index("## ")


def test_the_rest_of_the_readme_stays_short() -> None:
    rest = README.partition(first_screen.END)[2]
    assert rest and len(rest.strip().splitlines()) < 100


def test_the_figures_are_of_all_faults_and_of_this_code() -> None:
    source = (REPOSITORY / "benchmarks" / "faults_baseline.py").read_text(encoding="utf-8")
    faults = re.findall(r"\bFault\(\s*name=\"([^\"]+)\"", source)
    assert list(FIGURES["faults"]) == faults and len(faults) == 24
    assert FIGURES["lines"] == {"plain": first_screen.count_lines(first_screen.SCRIPT),
                                "hourglass": first_screen.count_lines(first_screen.TOML)}
    assert FIGURES["largest_difference"] < 1e-5, "the same scores"


def test_the_table_counts_what_survived() -> None:
    verdicts = {"a": {"plain": "lost: no file", "hourglass": "survived"},
                "b": {"plain": "WRONG: other rows changed", "hourglass": "survived"}}
    rows = first_screen.table(FIGURES | {"faults": verdicts}).splitlines()
    assert next(row for row in rows if "faults" in row).startswith("| survived of 2 faults | 0 | 2 |")


def test_the_picture_is_complete() -> None:
    root = ElementTree.fromstring(first_screen.draw(FIGURES))
    squares = root.findall(".//{*}g")
    assert len(squares) == 2 * 24
    width, height = (float(number) for number in root.attrib["viewBox"].split()[2:])
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(box.attrib["x"]) + float(box.attrib["width"]) < width - 20
    for words in root.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 < float(words.attrib["y"]) < height


@pytest.mark.parametrize("text, count", [("'''One.'''\nx = 1\n\n# no\ny = '''a\nb'''\n", 3), ("", 0)])
def test_lines_that_somebody_wrote(text: str, count: int, tmp_path: Any) -> None:
    (tmp_path / "a.py").write_text(text)
    assert first_screen.count_lines(tmp_path / "a.py") == count
