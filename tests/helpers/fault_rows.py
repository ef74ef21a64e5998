"""The rows of the fault matrix as data: tests/fault_rows.toml, read.

Owns ROWS (what each row is), NOT_OURS (rows that do not apply, and why) and ELSEWHERE (tests that cover a row
and live with the room that they test). Tests written for the matrix alone lie in tests/faults/ and carry
`@pytest.mark.fault(row=..., injection="...", outcome="...")` themselves.
"""
from __future__ import annotations

import tomllib
from collections import defaultdict
from dataclasses import dataclass

from tests.helpers import TESTS


@dataclass(frozen=True)
class Entry:
    """A test in another file: what it does to the product and what the user gets."""

    file: str
    test: str
    injection: str
    outcome: str


DATA = tomllib.loads((TESTS / "fault_rows.toml").read_text(encoding="utf-8"))
ROWS: dict[int, str] = {int(row): text for row, text in DATA["rows"].items()}
NOT_OURS: dict[int, str] = {int(row): text for row, text in DATA["not_ours"].items()}
ELSEWHERE: dict[int, list[Entry]] = defaultdict(list)
for each in DATA["elsewhere"]:
    ELSEWHERE[each["row"]].append(Entry(*each["test"].split("::"), each["injection"], each["outcome"]))
