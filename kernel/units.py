"""Bytes, seconds and counts as text, there and back.

Owns the grammar of sizes, times and counts on a command line, and how sizes and times are printed. The guard
(infer_kernel.py) has a copy of the three parsers, because it can import nothing of ours; tests/guard compares
the two. Knows no limits and no clock.
"""
import re
from argparse import ArgumentTypeError

from .errors import LimitError

GB = 10**9
MOST_SECONDS = 1e8  # A longer time is a slip, and more than the system's timers take.
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


class TextError(LimitError, ArgumentTypeError):
    """A text that is no size, no time or no count. argparse prints its message as it stands."""


def parse_bytes(text: str) -> int:
    """Bytes of "14GB", "512 MiB", "1.5g" or "4096": decimal units, binary with an i.

    Raises  TextError
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([a-z]*)\s*", text, re.ASCII | re.IGNORECASE)
    unit = match[2].lower() if match else ""
    if match is None or unit not in UNITS:
        raise TextError(
            f"{text!r} is no amount of memory; write a number and a unit, e.g. 14GB, 512MiB or 4096"
        )
    return round(float(match[1]) * UNITS[unit])


def parse_seconds(text: str) -> float:
    """Seconds of "3600", "0.5" or "-1": a plain number without a unit.

    Raises  TextError
    """
    if not re.fullmatch(r"[+-]?\d{1,16}(\.\d*)?(e[+-]?\d\d?)?", text, re.ASCII | re.IGNORECASE):
        raise TextError(f"{text!r} is no time; give seconds, e.g. 3600")
    if abs(float(text)) > MOST_SECONDS:
        raise TextError(f"{text!r} is more than three years; give seconds, e.g. 3600")
    return float(text)


def parse_count(text: str) -> int:
    """A whole number of at least 1.

    Raises  TextError
    """
    if not re.fullmatch(r"[1-9]\d{0,15}", text, re.ASCII):
        raise TextError(f"{text!r} is no count; give a whole number of at least 1")
    return int(text)


def seconds_text(seconds: float) -> str:
    """1:02:03 or 2:03."""
    whole = int(max(0.0, seconds) + 0.5)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
