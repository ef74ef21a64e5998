"""docs/formats.md holds every format that `make formats` tries, and each of them agrees."""
from __future__ import annotations

from tests.helpers.formats import FORMATS, LARGEST, PAGE, PLACE


def test_the_page_has_every_format_and_each_agrees() -> None:
    place = PLACE.search(PAGE.read_text(encoding="utf-8"))
    assert place, "docs/formats.md has no place for the table"
    rows = [line.split(" | ") for line in place[0].splitlines()[3:-1]]
    assert [row[1] for row in rows] == [form.writes for form in FORMATS.values()]
    for row in rows:
        assert float(row[3].split()[0]) <= LARGEST, row
