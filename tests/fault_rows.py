"""The rows of the fault matrix, and the tests that cover a row beside their own module.

Owns ROWS (what each row is), NOT_OURS (rows of another architecture) and ELSEWHERE. Tests written for the matrix carry
`@pytest.mark.fault(row=..., injection=..., outcome=...)` themselves; `tests.faults_page` puts both on one page.
"""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A test in another file: what it does to the product and what the user gets."""

    file: str
    test: str
    injection: str
    outcome: str


ELSEWHERE: dict[int, list[Entry]] = {}
