"""Windows of long recordings as data: `[windows]` of an ensemble, and its rules.

Owns what the keys mean. Which row is which window is sound.rows', cutting them sound.recording's.
"""
from dataclasses import dataclass

from .strict import require, require_choice

EDGES = ("zeros", "repeat", "front", "inside")


@dataclass(frozen=True, kw_only=True)
class Windows:
    """One row per fixed window of a long recording, cut from the waveform at its own rate.

    seconds          length of a window
    pattern          row id, of {stem} (the file name without suffix) and {end} (the window's end in seconds)
    context_seconds  seconds that a net hears for a row, the window and what lies around it; None = the window
                     alone
    context_before   seconds of these that lie before the window; None = as many as behind it
    edges            what a net hears beyond the ends of a recording: "zeros"; "repeat" = its first or last
                     window again; "front" = zeros, and a last window that is not whole has them in front;
                     "inside" = nothing: where frames are merged, contexts that reach beyond are left out if
                     another one hears the row
    """

    seconds: float = 5.0
    pattern: str = "{stem}_{end}"
    context_seconds: float | None = None
    context_before: float | None = None
    edges: str = "zeros"


def check_windows(windows: Windows) -> None:
    """Raises SpecError, unless the pattern names every window and windows have a length."""
    require(
        windows.pattern.count("{stem}") == 1 and windows.pattern.count("{end}") == 1,
        f"windows.pattern: {windows.pattern!r}; it needs {{stem}} and {{end}} once each",
    )
    require(windows.seconds > 0, f"windows.seconds: {windows.seconds}; give a number above 0")
    require_choice(windows.edges, EDGES, "windows.edges")
    heard = windows.seconds if windows.context_seconds is None else windows.context_seconds
    beside = heard - windows.seconds
    require(
        beside >= 0,
        f"windows.context_seconds: {heard} is shorter than a window of {windows.seconds} s; count that in",
    )
    require(
        0 <= (windows.context_before or 0.0) <= beside,
        f"windows.context_before: {windows.context_before}; give 0 to {beside:g}, the rest of the context",
    )
    require(
        windows.edges != "front" or not beside,
        'windows.edges: "front" moves a window that is not whole; with context_seconds write "zeros"',
    )
