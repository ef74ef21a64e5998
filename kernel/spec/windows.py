"""Windows of long recordings as data: `[windows]` of an ensemble, and its rules.

Owns what the keys mean. Which row is which window is sound.rows', cutting them sound.recording's.
"""
from dataclasses import dataclass

from .parts import Member
from .strict import require, require_choice

EDGES = ("zeros", "repeat", "front", "inside", "silence")


@dataclass(frozen=True, kw_only=True)
class Windows:
    """One row per fixed window of a long recording, cut from the waveform at its own rate.

    seconds          length of a window
    pattern          row id, of {stem} (the file name without suffix) and {end} (the window's end in seconds)
    context_seconds  seconds that a net hears for a row, the window and what lies around it; None = the window
                     alone
    context_before   seconds of these that lie before the window; None = as many as behind it
    context_every    where frames are merged: a net hears the context of every so many rows of a recording,
                     from the first on, and the rows between take their frames from these
    edges            what a net hears beyond the ends of a recording: "zeros"; "repeat" = its first or last
                     window again; "front" = zeros, and a last window that is not whole has them in front;
                     "inside" = nothing: where frames are merged, contexts that reach beyond are left out if
                     another one hears the row; "silence" = zeros, and a window that begins behind the last
                     sample of a sound recording is heard, too, as zeros: elsewhere its row keeps the prior
    """

    seconds: float = 5.0
    pattern: str = "{stem}_{end}"
    context_seconds: float | None = None
    context_before: float | None = None
    context_every: int = 1
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
    rows = int(round(heard / windows.seconds, 6))
    require(
        1 <= windows.context_every <= rows,
        f"windows.context_every: {windows.context_every}; a context of {heard:g} s holds {rows} whole rows, "
        f"so give 1 to {rows}",
    )
    require(
        windows.edges != "front" or not beside,
        'windows.edges: "front" moves a window that is not whole; with context_seconds write "zeros"',
    )


def check_frame_keys(member: Member, windows: Windows, where: str) -> None:
    """The rules of what stands beside `frames`. Raises SpecError."""
    heard = windows.seconds if windows.context_seconds is None else windows.context_seconds
    rows = heard / windows.seconds
    before = (heard - windows.seconds) / 2 if windows.context_before is None else windows.context_before
    whole = all(abs(x - round(x)) < 1e-6 for x in (rows, before / windows.seconds))
    allowed = (0, 1, round(rows)) if whole else (0, 1)
    require(
        member.clips in allowed,
        f"{where}.clips: {member.clips}; give 0, 1 or, where a context is whole rows, their number",
    )
    for share, of in (("clip_share", "clips"), ("shift_share", "shift_seconds")):
        require(
            bool(getattr(member, of)) or getattr(member, share) == 0.5,
            f"{where}.{share}: changes nothing without `{of}`; add that or remove it",
        )
    require(0 <= member.clip_share <= 1, f"{where}.clip_share: {member.clip_share}; give 0 to 1")
    require(0 <= member.shift_share <= 1, f"{where}.shift_share: {member.shift_share}; give 0 to 1")
    require(
        0 <= member.shift_seconds < windows.seconds,
        f"{where}.shift_seconds: {member.shift_seconds}; give 0 to less than windows.seconds, "
        f"{windows.seconds:g}",
    )


def check_no_frame_keys(member: Member, where: str) -> None:
    """Raises SpecError for a key that says nothing without `frames`."""
    for key, usual in (("clips", 0), ("clip_share", 0.5), ("shift_seconds", 0.0), ("shift_share", 0.5)):
        require(
            getattr(member, key) == usual,
            f"{where}.{key}: only a net of frames has these; add `frames` or remove it",
        )
