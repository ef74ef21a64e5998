"""Which rows share a forward pass on a GPU: rows of about equal length, within a cap of cells.

Owns `group`. Works on lengths alone: it does not pad or run anything (gpu) and masks nothing (models).
"""
import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import SpecError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows that run together.

    rows    positions in the given list of lengths
    frames  exact length of each of them, before any padding
    width   cells that are computed per row, >= every one of `frames`
    """

    rows: tuple[int, ...]
    frames: tuple[int, ...]
    width: int

    @property
    def cells(self) -> int:
        """Frames that are computed, padding included."""
        return self.width * len(self.rows)

    @property
    def padding(self) -> float:
        """Share of the cells that is padding, 0..1."""
        return 1.0 - sum(self.frames) / self.cells


def group(frames: Sequence[int], *, max_cells: int, max_rows: int, padding: float, exact: bool,
          min_frames: int = 1) -> list[Batch]:
    """Batches that hold every row exactly once, widest first (what fits then fits all along).

    frames      exact length of each row, >= 1
    max_cells   rows x width of one batch; a longer row runs alone
    max_rows    rows of one batch
    padding     largest share of a batch's cells that may be padding, 0..1 (what min_frames forces is not
                counted)
    exact       True: only rows of equal length share a batch and nothing is padded but up to min_frames
    min_frames  least width the net accepts

    Widths are snapped up to a ladder with rungs of `padding`, the same in every call, so that a long run
    meets few different shapes; a snap that would break the cap is not made. The result depends on `frames`
    alone.

    Raises  SpecError for a length or limit that makes no sense
    """
    if max_cells < 1 or max_rows < 1 or min_frames < 1 or not 0 <= padding < 1:
        raise SpecError(
            f"batches: max_cells {max_cells}, max_rows {max_rows}, min_frames {min_frames} must be >= 1 "
            f"and padding {padding} in [0, 1)")
    if any(f < 1 for f in frames):
        raise SpecError(f"batches: a row has {min(frames)} frames; leave empty rows out before grouping")
    lengths = [max(f, min_frames) for f in frames]
    order = sorted(range(len(frames)), key=lambda i: (-lengths[i], i))
    widths = ladder(max(lengths, default=1), padding)
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        count = 0
        used = 0
        snapped = longest if exact else widths[bisect.bisect_left(widths, longest)]
        width = longest if snapped > max_cells else snapped
        for i in order[start:start + max_rows]:
            cells = width * (count + 1)
            full = count > 0 and cells > max_cells
            loose = lengths[i] != longest if exact else cells - used - lengths[i] > padding * cells
            if full or (loose and count > 0):
                break
            count += 1
            used += lengths[i]
        if width * count - used > padding * width * count:
            width = longest  # a lone short row: no snap keeps the cap
        rows = order[start:start + count]
        batches.append(Batch(rows=tuple(rows), frames=tuple(frames[i] for i in rows), width=width))
        start += count
    return batches


def ladder(longest: int, rung: float) -> list[int]:
    """Widths 1 .. >= longest, each the largest integer within a factor 1 + rung of the last one."""
    widths = [1]
    while widths[-1] < longest:
        widths.append(max(widths[-1] + 1, int(widths[-1] * (1.0 + rung))))
    return widths
