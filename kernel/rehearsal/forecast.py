"""The forecast: what a hidden test set will need, from the costs that one run measured.

Owns the figures and their PASS or FAIL per limit, as pure values. Does not run anything (command), measure
(the engine) or print (report's terminal and page).

seconds = fixed (guard, imports, devices, page)  +  rows x (probing headers, last publication)
          + per net (set-up + rows x a + frames x b + different widths x c) / devices
          + audio x (decode + front end)  +  spilled bytes / disk speed
"""
from collections.abc import Sequence

from ..limits import Limits, marks
from ..memory import RAM_MARK
from ..report.contents import MemberCost, Report, VerdictLine

SLOWDOWN = 1.3  # a Kaggle machine may be this much slower than this one; our choice
DISK_BYTES_PER_S = 100e6  # spill files, written and read, when this run spilled nothing: a slow network disk


def forecast(
    report: Report, clips: int, hours: float, limits: Limits, slowdown: float = SLOWDOWN
) -> list[VerdictLine]:
    """What `clips` rows with `hours` of audio need, by the costs in a report; one line per limit."""
    audio = hours * 3600 / max(1e-9, report.seconds_of_audio)  # times the audio of this run
    base = max(0, report.peak_own_bytes - report.store.ram_peak_bytes)
    mark = RAM_MARK * limits.ram_bytes
    stored = report.store.stored_bytes * audio
    in_ram = min(stored, max(0.0, mark - base))
    spilled = stored - in_ram
    nets = sum(len(member.nets) for member in report.members)
    seconds = total_seconds(report, clips, audio) + spilled * nets / DISK_BYTES_PER_S
    lines = [
        _judge("time of everything", seconds, seconds * slowdown, marks(limits.seconds).stop_s, "s"),
        _judge("memory beside the cache", base, base, mark, "B"),
        _judge("memory with the cache", base + in_ram, base + in_ram, mark, "B"),
        _judge("spill to disk", spilled, spilled, limits.disk_bytes, "B"),
    ]
    unknown = len(unmeasured(report))
    if unknown:
        lines.append(_judge("members not measured", unknown, unknown, 0, ""))
    return lines


def _judge(what: str, raw: float, scaled: float, allowed: float, unit: str) -> VerdictLine:
    """One limit with its PASS or FAIL."""
    return VerdictLine(
        what=what,
        raw=raw,
        scaled=scaled,
        allowed=allowed,
        unit=unit,
        passed=scaled <= allowed,
        margin=1 - scaled / allowed if allowed else -scaled,
    )


def unmeasured(report: Report) -> list[str]:
    """Members of which no net ran, so that no forecast can hold them."""
    return [member.name for member in report.members if not any(net.rows for net in member.nets)]


def total_seconds(report: Report, clips: int, audio: float) -> float:
    """Seconds of a whole run on `clips` rows with `audio` times the audio of this one, on as many devices."""
    busy = [(span.start_s, span.end_s) for span in report.stages if span.device != "main"]
    last = max((end for _, end in busy), default=0.0)
    by_row = sum(
        span.end_s - span.start_s
        for span in report.stages
        if span.name == "clips" or (span.name == "publish" and span.start_s >= last)
    )
    fixed = max(0.0, report.wall_s - union(busy) - by_row)
    devices = max(1, len(report.device.names))
    loading = report.seconds_of_audio * sum(report.costs.frontends.values())
    waited = sum(net.loading_s for member in report.members for net in member.nets)
    fixed += max(0.0, waited - loading) / devices  # filter banks and caches, made once
    work = (nets_seconds(report, clips, audio) + loading * audio) / devices
    return fixed + by_row / max(1, report.rows) * clips + work


def nets_seconds(report: Report, clips: int, audio: float) -> float:
    """Seconds of all nets one after the other, loading excluded."""
    total = 0.0
    for member in report.members:
        cost = report.costs.members.get(member.name)
        if cost is None:  # a stacker: its seconds follow the rows
            total += sum(net.seconds for net in member.nets) * clips / max(1, report.rows)
            continue
        frames = cost.frames_per_row * report.rows * audio  # frames follow the audio, not the rows
        total += len(member.nets) * (
            cost.setup_s
            + clips * cost.seconds_a
            + frames * cost.seconds_b
            + count_shapes(cost, report.rows, clips) * cost.shape_s
        )
    return total


def count_shapes(cost: MemberCost, rows: int, clips: int) -> float:
    """Different widths to expect among `clips` rows, after so many among `rows` of them.

    Source: Chao (1984), the number of classes not seen from those seen once and twice; Colwell et al. (2012),
    eq. 9, how many of them a larger sample will show
    """
    once = cost.shapes_once
    if clips <= rows or once == 0:
        return min(cost.shapes, clips)
    unseen = once * once / (2 * cost.shapes_twice) if cost.shapes_twice else once * (once - 1) / 2
    share = 1 - (1 - once / (rows * unseen + once)) ** (clips - rows) if unseen else 0.0
    return min(clips, cost.shapes + unseen * share)


def union(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds covered by at least one of the (start, end) spans."""
    covered = 0.0
    until = float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered
