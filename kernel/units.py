"""Bytes and seconds as text, there and back.

Owns the grammar of sizes on a command line and how sizes and times are printed. Knows no limits and no clock.
"""
from __future__ import annotations

import re

from .errors import LimitError

GB = 10**9
UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "m": 10**6,
    "mb": 10**6,
    "g": GB,
    "gb": GB,
    "t": 10**12,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_bytes(text: str) -> int:
    """Bytes of "14GB", "512 MiB", "1.5g" or "4096": decimal units, binary with an i.

    Raises  LimitError
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    unit = match.group(2).lower() if match else ""
    if match is None or unit not in UNITS:
        raise LimitError(
            f"{text!r} is no amount of memory; write a number and a unit, e.g. 14GB, 512MiB or 4096"
        )
    return (
        int(float(match.group(1)) * UNITS[unit])
        if "." in match.group(1)
        else int(match.group(1)) * UNITS[unit]
    )


def seconds_text(seconds: float) -> str:
    """1:02:03 or 2:03."""
    whole = int(max(0.0, seconds) + 0.5)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
