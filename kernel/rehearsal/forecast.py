"""What a hidden test set will need, foretold from the costs that one run measured.

Owns the forecast and its PASS or FAIL per limit, as pure values. Does not run anything (rehearsal) or measure
(engine).

seconds = fixed (guard, imports, devices, page)  +  rows x (probing headers, last publication)
          + per net (set-up + rows x a + frames x b + different widths x c) / devices
          + audio x (decode + front end)  +  spilled bytes / disk speed
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..limits import Limits, marks
from ..units import gigabytes, seconds_text

SLOWDOWN = 1.3  # a Kaggle machine may be this much slower than this one: kaggle.md 2.1
DISK_BYTES_PER_S = 100e6  # spill files, written and read, when this run spilled nothing: a slow network disk


@dataclass(frozen=True, kw_only=True)
class Line:
    """One limit of the verdict: what is foretold, raw and on a slower machine, against what is allowed."""

    what: str
    raw: float
    scaled: float
    allowed: float
    unit: str

    @property
    def passed(self) -> bool:
        return self.scaled <= self.allowed

    @property
    def margin(self) -> float:
        """Share of the limit that is left; negative when it is exceeded."""
        return 1 - self.scaled / self.allowed if self.allowed else -self.scaled

    def show(self, value: float) -> str:
        return {"s": seconds_text, "B": gigabytes}.get(self.unit, lambda v: f"{v:.0f}")(value)

    def text(self) -> str:
        cells = f"{self.show(self.raw):>12}{self.show(self.scaled):>14}{self.show(self.allowed):>12}"
        return f"{'PASS' if self.passed else 'FAIL'}  {self.what:<26}{cells}   {100 * self.margin:+.0f} %"

    def problem(self) -> str:
        """What is wrong with a limit that does not hold, and what helps."""
        cure = {
            "s": "fewer or lighter nets; without a GPU also build_dataset.py --export onnx --wheels onnxruntime"
        }.get(self.unit, "fewer or smaller arrays and nets")
        return f"{self.what}: {self.show(self.scaled)} foretold on a slower machine, {self.show(self.allowed)} allowed; {cure}"


def foretell(
    report: Mapping[str, Any], clips: int, hours: float, limits: Limits, slowdown: float = SLOWDOWN
) -> list[Line]:
    """What `clips` rows with `hours` of audio need, by the costs in a report; one line per limit."""
    audio = hours * 3600 / max(1e-9, report["seconds_of_audio"])  # times the audio of this run
    stored = report["store"]["stored_bytes"] * audio
    base = max(
        0, report["peak_own_bytes"] + report["guard"]["peak_bytes"] - report["store"]["ram_peak_bytes"]
    )
    mark = 0.95 * limits.ram_bytes
    in_ram = min(stored, max(0.0, mark - base))
    spilled = stored - in_ram
    nets = sum(len(m["nets"]) for m in report["members"])
    seconds = total_seconds(report, clips, audio) + spilled * nets / DISK_BYTES_PER_S
    lines = [
        Line(
            what="time of everything",
            raw=seconds,
            scaled=seconds * slowdown,
            allowed=marks(limits.seconds).stop_s,
            unit="s",
        ),
        Line(what="memory beside the cache", raw=base, scaled=base, allowed=mark, unit="B"),
        Line(what="memory with the cache", raw=base + in_ram, scaled=base + in_ram, allowed=mark, unit="B"),
        Line(what="spill to disk", raw=spilled, scaled=spilled, allowed=limits.disk_bytes, unit="B"),
    ]
    unknown = unmeasured(report)
    if unknown:
        lines.append(
            Line(what="members not measured", raw=len(unknown), scaled=len(unknown), allowed=0, unit="")
        )
    return lines


def unmeasured(report: Mapping[str, Any]) -> list[str]:
    """First-level members of which no net ran, so that no forecast can hold them."""
    return [m["name"] for m in report["members"] if not any(n["rows"] for n in m["nets"])]


def total_seconds(report: Mapping[str, Any], clips: int, audio: float) -> float:
    """Seconds of a whole run on `clips` rows with `audio` times the audio of this one, on as many devices."""
    rows = max(1, report["rows"])
    busy = [(s["start_s"], s["end_s"]) for s in report["stages"] if s.get("device", "main") != "main"]
    last = max((end for _, end in busy), default=0.0)
    by_row = sum(s["end_s"] - s["start_s"] for s in report["stages"]
                 if s["name"] == "clips" or (s["name"] == "publish" and s["start_s"] >= last))
    fixed = max(0.0, report["wall_s"] - union(busy) - by_row)
    devices = max(1, len(report["device"]["names"]))
    loading = report["seconds_of_audio"] * sum(report["costs"]["frontends"].values())
    waited = sum(n["loading_s"] for m in report["members"] for n in m["nets"])
    fixed += max(0.0, waited - loading) / devices  # filter banks and caches, made once
    return fixed + by_row / rows * clips + (nets_seconds(report, clips, audio) + loading * audio) / devices


def nets_seconds(report: Mapping[str, Any], clips: int, audio: float) -> float:
    """Seconds of all nets one after the other, loading excluded."""
    total = 0.0
    for member in report["members"]:
        cost = report["costs"]["members"].get(member["name"])
        if cost is None:  # a stacker: its seconds follow the rows
            total += sum(n["seconds"] for n in member["nets"]) * clips / max(1, report["rows"])
            continue
        frames = cost["frames_per_row"] * report["rows"] * audio  # frames follow the audio, not the rows
        total += len(member["nets"]) * (
            cost["setup_s"]
            + clips * cost["seconds_a"]
            + frames * cost["seconds_b"]
            + count_shapes(cost, report["rows"], clips) * cost["shape_s"]
        )
    return total


def count_shapes(cost: Mapping[str, float], rows: int, clips: int) -> float:
    """Different widths to expect among `clips` rows, after so many among `rows` of them.

    Source: Chao (1984), the number of classes not seen from those seen once and twice; Colwell et al. (2012),
    eq. 9, how many of them a larger sample will show
    """
    seen, once, twice = cost["shapes"], cost["shapes_once"], cost["shapes_twice"]
    if clips <= rows or once == 0:
        return min(seen, clips)
    unseen = once * once / (2 * twice) if twice else once * (once - 1) / 2
    share = 1 - (1 - once / (rows * unseen + once)) ** (clips - rows) if unseen else 0.0
    return min(clips, seen + unseen * share)


def union(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds covered by at least one of the (start, end) spans."""
    covered, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered
