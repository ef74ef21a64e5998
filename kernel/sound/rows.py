"""Which rows a sample submission asks for: one per clip, or one per window of a long recording.

Owns the pattern of window ids and where a window begins and ends. Which file an id means is `clips`; headers
are read by `decode.probe`, samples never.
"""
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ClipUnreadable
from ..spec import Windows
from ..spec.windows import check_windows
from .clips import ClipIndex
from .decode import Clip, probe


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the submission: a whole clip, or samples start..stop of it at the clip's own rate.

    before, after  samples around a window that a net hears, too
    edges          what it hears beyond the ends of the recording: spec.Windows
    """

    id: str
    clip: Clip
    start: int | None = None
    stop: int | None = None
    before: int = 0
    after: int = 0
    edges: str = "zeros"

    @property
    def window(self) -> int:
        """Samples of the window; 0 for a whole clip."""
        return 0 if self.start is None or self.stop is None else self.stop - self.start

    @property
    def heard(self) -> int:
        """Samples that a net hears: the window with what lies around it, or the clip as its header claims."""
        return self.before + self.window + self.after if self.window else self.clip.samples_claimed


def _window_pattern(windows: Windows) -> re.Pattern[str]:
    check_windows(windows)
    text = re.escape(windows.pattern).replace(r"\{stem\}", r"(?P<stem>.+)")
    return re.compile(text.replace(r"\{end\}", r"(?P<end>[0-9]+(?:\.[0-9]+)?)"), re.DOTALL)


def window_ids(stem: str, seconds: float, windows: Windows) -> list[str]:
    """Row ids of a recording of `seconds`: one per window, the last one padded if it is not whole."""
    _window_pattern(windows)
    ends = (windows.seconds * (i + 1) for i in range(math.ceil(round(seconds / windows.seconds, 6))))
    return [windows.pattern.replace("{stem}", stem).replace("{end}", f"{end:.12g}") for end in ends]


def clip_ids(ids: Sequence[str], windows: Windows | None) -> list[str]:
    """Ids of the recordings behind row ids, each once, in order; the row ids themselves without windows."""
    if windows is None:
        return list(dict.fromkeys(ids))
    pattern = _window_pattern(windows)
    matches = (pattern.fullmatch(id) for id in ids)
    return list(dict.fromkeys(match["stem"] for match in matches if match))


def list_rows(ids: Sequence[str], index: ClipIndex, windows: Windows | None,
              prober: Callable[[str, Path, Sequence[Path]], Clip] = probe) -> list[Row]:
    """One Row per id, in the order of `ids`; headers are read once per clip, broken clips carry their error.

    prober  reads one header like `decode.probe`; a caller may wrap it to beat, to name the clip in flight, or
            to refuse one

    Raises  SpecError for a window pattern without {stem} and {end}
    """
    wanted = clip_ids(ids, windows)
    if windows is not None and any(id not in index.paths and id not in index.ambiguous for id in wanted):
        index = index.of_ids(wanted)  # the index was made from row ids
    clips: dict[str, Clip] = {}
    for id in wanted:
        path = index.path(id)
        clips[id] = Clip(id=id, error=index.error(id)) if path is None else prober(id, path, index.roots)
    if windows is None:
        return [Row(id=id, clip=clips[id]) for id in ids]
    pattern = _window_pattern(windows)
    return [_window_row(id, pattern, windows, clips) for id in ids]


def _window_row(id: str, pattern: re.Pattern[str], windows: Windows, clips: dict[str, Clip]) -> Row:
    match = pattern.fullmatch(id)
    if match is None:
        reason = f"does not fit the window pattern {windows.pattern!r}; correct `windows.pattern`"
        return Row(id=id, clip=Clip(id=id, error=ClipUnreadable(f"{id!r}: {reason}")))
    clip = clips[match["stem"]]
    if clip.error is not None:
        return Row(id=id, clip=clip)
    start = round((float(match["end"]) - windows.seconds) * clip.rate)
    if start < 0:
        reason = f"a window of {windows.seconds} s cannot end at {match['end']} s; correct `windows.seconds`"
        error = ClipUnreadable(f"{id!r}: {reason}")
        return Row(id=id, clip=Clip(id=clip.id, path=clip.path, error=error))
    stop = start + round(windows.seconds * clip.rate)
    before, after = _around(windows, clip.rate)
    return Row(id=id, clip=clip, start=start, stop=stop, before=before, after=after, edges=windows.edges)


def _around(windows: Windows, rate: int) -> tuple[int, int]:
    """Samples before and behind a window that a net hears."""
    beside_s = (windows.context_seconds or windows.seconds) - windows.seconds
    before_s = beside_s / 2 if windows.context_before is None else windows.context_before
    before = round(before_s * rate)
    return before, round(beside_s * rate) - before
