"""From the frames of nets to rows: which frames of which windows are a row's, and how they become one score.

Owns the rules by which overlapping windows are merged. Runs no net and knows no recording: the engine's
`window_rows` says which windows a row has.

A net that hears a context gives one score per frame, f64[F, K]. A row has `step` frames, the window's share
of the context; those of its own window begin `lead` frames behind the window's first. The window `o` rows
later holds the row's frames `o * step` earlier.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import SpecError
from ..spec import Member, Windows


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the frames of a row lie.

    frames  of a window;  step: of a row;  lead: of a window before those of its own row
    """

    frames: int
    step: int
    lead: int

    def part(self, offset: int) -> tuple[int, int]:
        """First and last + 1 of the row's frames in the window `offset` rows later; empty where none is."""
        low = self.lead - offset * self.step
        return max(0, low), max(0, min(low + self.step, self.frames))


def reach(windows: Windows, shift_seconds: float = 0.0) -> range:
    """The windows that hear a part of a row, in rows behind it: -1 is the window before, 0 its own.

    shift_seconds  what lies so far beside the row counts as a part of it
    """
    before = _before(windows) + shift_seconds
    after = _heard(windows) - windows.seconds - _before(windows) + shift_seconds
    return range(-_ceil(after / windows.seconds), _ceil(before / windows.seconds) + 1)


def _ceil(x: float) -> int:
    return -int(-round(x, 6) // 1)


def _heard(windows: Windows) -> float:
    return windows.seconds if windows.context_seconds is None else windows.context_seconds


def _before(windows: Windows) -> float:
    beside = _heard(windows) - windows.seconds
    return beside / 2 if windows.context_before is None else windows.context_before


def lay(windows: Windows, frames: int) -> Layout:
    """Layout for a net that gives so many frames per window.

    Source: FlorentinGe/Birdclef2026-2ndplace, 2nd place ensemble inference script, line 2561: F x 5 // 20
    frames per row of 5 s in 20 s, (F - that) // 2 before the first row.

    Raises  SpecError for fewer frames than rows in a context
    """
    heard = _heard(windows)
    step = int(frames * windows.seconds // heard)
    if step < 1:
        raise SpecError(f"the net gives {frames} frames for {heard:g} s: fewer than one per row")
    beside = heard - windows.seconds
    share = _before(windows) / beside if beside else 0.0
    return Layout(frames=frames, step=step, lead=int(round((frames - step) * share, 6)))


def _average_max(layout: Layout, answers: Mapping[int, np.ndarray]) -> np.ndarray:
    classes = next(iter(answers.values())).shape[1]
    total = np.zeros((layout.step, classes))
    count = np.zeros((layout.step, 1))
    for offset in sorted(answers):
        low, high = layout.part(offset)
        at = low - (layout.lead - offset * layout.step)
        total[at : at + high - low] += answers[offset][low:high]
        count[at : at + high - low] += 1
    heard = count[:, 0] > 0
    return np.asarray((total[heard] / count[heard]).max(axis=0))


def _max_average(layout: Layout, answers: Mapping[int, np.ndarray]) -> np.ndarray:
    whole = [offset for offset in sorted(answers) if np.ptp(layout.part(offset)) == layout.step]
    parts = [answers[offset][slice(*layout.part(offset))] for offset in whole or sorted(answers)]
    return np.asarray(np.mean([part.max(axis=0) for part in parts if len(part)], axis=0))


def _average(layout: Layout, answers: Mapping[int, np.ndarray]) -> np.ndarray:
    parts = [answers[offset][slice(*layout.part(offset))] for offset in sorted(answers)]
    return np.asarray(np.concatenate(parts).mean(axis=0))


Rule = Callable[[Layout, Mapping[int, np.ndarray]], np.ndarray]
# Layout and windows by offset, f64[F, K] each -> f64[K]. Sources: average_max as for `lay`; max_average
# yannan90/birdclef-2026-private-9th-public-2nd-solution infer_kernel_folds.py 557 and 782, whose windows of
# 10 s give two rows each.
RULES: dict[str, Rule] = {
    "average_max": _average_max,
    "max_average": _max_average,
    "average": _average,
}


def row_of(rule: str, layout: Layout, answers: Mapping[int, np.ndarray]) -> np.ndarray:
    """f64[K] of a row by the rule.

    answers  windows that reach the row, by their place in rows behind it: probabilities f64[F, K] each
    """
    reaching = {offset: x for offset, x in answers.items() if np.ptp(layout.part(offset)) > 0}
    return RULES[rule](layout, reaching)


def _timeline(
    layout: Layout, answers: Mapping[int, np.ndarray], low: int, high: int
) -> np.ndarray | None:
    """f64[high - low, K] of a row's frames low..high, averaged over all windows; None: one is unheard."""
    total = np.zeros((high - low, next(iter(answers.values())).shape[1]))
    count = np.zeros((high - low, 1))
    for offset in sorted(answers):
        first = offset * layout.step - layout.lead  # the window's first frame, counted from the row's
        start, stop = max(low, first), min(high, first + layout.frames)
        if start < stop:
            total[start - low : stop - low] += answers[offset][start - first : stop - first]
            count[start - low : stop - low] += 1
    return total / count if count.all() else None


@dataclass(frozen=True, kw_only=True)
class Merging:
    """How the windows' answers of one member become rows.

    rule           of RULES, for the frames
    clips          clip scores that stand in front of the frames of an answer: 0, 1 (of the window's own row)
                   or one for each row of a context
    clip_share     share of the clip scores' mean in a row, the frames have the rest; a row of which no window
                   gives a clip score has its frames alone
    shift_seconds  the frames' maximum is taken so much earlier and later, too, where windows hear all of it
    shift_share    share of these two in a row

    Sources: yannan90/birdclef-2026-private-9th-public-2nd-solution infer_kernel_folds.py 557 and 782 (clips,
    shift of 1 s with share 0.5), FlorentinGe/Birdclef2026-2ndplace 2nd place ensemble inference script 1117
    (one clip score per window, share 0.5).
    """

    windows: Windows
    rule: str
    clips: int = 0
    clip_share: float = 0.5
    shift_seconds: float = 0.0
    shift_share: float = 0.5

    @classmethod
    def of(cls, member: Member, windows: Windows) -> "Merging":
        """That of a member with `frames`."""
        return cls(
            windows=windows,
            rule=member.frames or "",
            clips=member.clips,
            clip_share=member.clip_share,
            shift_seconds=member.shift_seconds,
            shift_share=member.shift_share,
        )

    @property
    def reach(self) -> range:
        """As the function `reach`."""
        return reach(self.windows, self.shift_seconds)

    def row_of(self, answers: Mapping[int, np.ndarray]) -> np.ndarray:
        """f64[K] of a row.

        answers  as for the function `row_of`, f64[clips + F, K] each
        Raises  SpecError for answers that have fewer frames than rows in a context
        """
        frames = {offset: answer[self.clips :] for offset, answer in answers.items()}
        layout = lay(self.windows, len(next(iter(frames.values()))))
        own = row_of(self.rule, layout, frames)
        score = self._with_clips(own, answers) if self.clips else own
        shift = round(self.shift_seconds * layout.frames / _heard(self.windows))
        if not 0 < shift < layout.step:
            return score
        beside = [_timeline(layout, frames, at, at + layout.step) for at in (-shift, shift)]
        moved = [own if line is None else line.max(axis=0) for line in beside]
        return np.asarray((1 - self.shift_share) * score + self.shift_share * (moved[0] + moved[1]) / 2)

    def _with_clips(self, own: np.ndarray, answers: Mapping[int, np.ndarray]) -> np.ndarray:
        first = round(_before(self.windows) / self.windows.seconds) if self.clips > 1 else 0
        places = [(offset, first - offset) for offset in sorted(answers)]
        found = [answers[offset][place] for offset, place in places if 0 <= place < self.clips]
        if not found:
            return own
        return np.asarray(self.clip_share * np.mean(found, axis=0) + (1 - self.clip_share) * own)
