"""The sections of report.html that say what a run cost: memory, spans, members, lengths, the store, the plan.

Owns their words and what each chart shows; charts draws. What came of the run is page_outcome's.
"""
from collections.abc import Mapping, Sequence
from html import escape

from ..memory import RAM_MARK
from . import charts
from .contents import LengthGroups, MemberReport, MemoryPoint, PlanReport, Report, StepReport, StoreReport
from .page_pieces import (
    GB,
    bytes_text,
    key,
    member_colours,
    net_colour,
    rows_table,
    scroll,
    section,
    small,
    square,
)

MAX_STEPS = 400  # lines of the table; the rest is in report.json
FOLDED_STEPS = 12  # a longer table is folded away
MAX_GROUPS = 3  # charts of length groups


def draw_memory(points: Sequence[MemoryPoint], ram_bytes: int) -> str:
    """Memory in use, the store's part of it and the spill over the run, below the limit."""
    if len(points) < 2:
        return ""
    series = [
        charts.Series(name="used", points=[(p.t, p.used / GB) for p in points], colour="--c0"),
        charts.Series(
            name="store (spectrograms in RAM)",
            points=[(p.t, p.store / GB) for p in points],
            colour="--c2",
            fill=True,
        ),
        charts.Series(name="spill on disk", points=[(p.t, p.disk / GB) for p in points], colour="--c1"),
    ]
    limit = min(ram_bytes, points[-1].limit) / GB
    mark = RAM_MARK * limit
    words = f"{100 * RAM_MARK:.0f} %: spectrograms go to disk from here ({mark:.1f} GB)"
    levels = [
        charts.Level(name=f"limit {limit:.1f} GB", y=limit, colour="--bad"),
        charts.Level(name=words, y=mark, colour="--warn"),
    ]
    return section(
        "Memory",
        "Memory that counts against the limit, the part of it that the store holds, and the spill file, "
        "over the run.",
        key([(s.name, s.colour) for s in series])
        + scroll(charts.line_chart(series, levels, lambda v: f"{v:.3g} GB", "memory over time")),
    )


def draw_spans(report: Report) -> str:
    """What ran when, one lane per device."""
    if not report.stages:
        return ""
    known = member_colours(report.members)
    bars = [
        charts.Bar(
            lane=span.device,
            start=span.start_s,
            stop=span.end_s,
            colour=net_colour(span.name, known),
            label=span.name,
            title=f"{span.name}: {span.start_s:.1f} to {span.end_s:.1f} s"
            + ("" if span.rows is None else f", {span.rows} rows"),
        )
        for span in report.stages
    ]
    bars.sort(key=lambda bar: (bar.lane != "main", bar.lane, bar.start))
    end = max([bar.stop for bar in bars] + [point.t for point in report.timeline[-1:]])
    return section(
        "Stages",
        "What ran when, one lane per device; hover over a bar for its times. Grey: set-up and publications.",
        key(list(known.items())) + scroll(charts.lanes(bars, end, "stages over time")),
    )


def draw_members(report: Report) -> str:
    """What each member covered and took, and what went wrong with its nets."""
    known = member_colours(report.members)
    total = sum(member.seconds for member in report.members) or 1.0
    rows = []
    for member in report.members:
        colour = known[member.name]
        covered = [
            (member.rows, colour, f"{member.rows} rows by at least one fold"),
            (max(0, report.rows - member.rows), "--faint", "not by this member"),
        ]
        done = sum(net.rows for net in member.nets)
        rows.append(
            (
                f"{square(colour)} {escape(member.name)}<br>"
                f'<span class="soft">{escape(_family(member))}</span>',
                " to ".join(f"{weight:g}" for weight in dict.fromkeys(member.weights or (member.weight,))),
                f"{member.nets_done}/{len(member.nets)}",
                f"{member.rows:,}{charts.share_bar(covered)}",
                f"{member.seconds:.1f}",
                f"{100 * member.seconds / total:.0f} %",
                f"{1000 * member.seconds / done:.1f}" if done else "",
                "<br>".join(_ways(member)),
            )
        )
    header = ("member", "weight", "nets", "rows covered", "seconds", "share", "ms/row/net", "ran on")
    return section(
        "Members",
        "What each member of the ensemble covered and cost. Coverage counts rows that at least one fold of "
        "the member has scored; seconds include loading.",
        rows_table(header, rows, (1, 2, 4, 5, 6), long=(0, 7)),
    )


def draw_embeddings(report: Report) -> str:
    """How often each graph ran for the heads that read its vectors."""
    if not report.embeddings:
        return ""
    rows = [
        (escape(name), f"{work.rows:,}", f"{work.passes:,}", f"{work.vectors:,}", f"{work.nets}",
         f"{work.seconds:.1f}", f"{work.failed:,}", escape(work.path))
        for name, work in report.embeddings.items()
    ]
    header = ("embedding", "rows", "passes", "vectors", "nets that read it", "seconds", "failed", "ran on")
    return section(
        "Embeddings",
        "A graph runs once per row, for all heads and folds that read its vectors; a row that found no place "
        "in RAM or on disk counts again. Seconds of all loader threads together.",
        rows_table(header, rows, (1, 2, 3, 4, 5, 6), long=(0, 7)),
    )


def _family(member: MemberReport) -> str:
    """The family, and how many classes it knows where its nets have some of their own."""
    if member.knows is None:
        return member.family
    others = "others decide the rest" if member.missing is None else f"{member.missing:.3g} in the rest"
    return f"{member.family}; knows {member.knows[0]} of {member.knows[1]} classes, {others}"


def _ways(member: MemberReport) -> list[str]:
    """How a member's nets ran, and what was wrong with them."""
    lines = [escape(path) for path in sorted({net.path for net in member.nets if net.path})]
    failed = [(net.id, net.failed) for net in member.nets if net.failed]
    lines += [f'<span class="bad">{escape(name)}: {escape(why[:160])}</span>' for name, why in failed[:3]]
    skipped = max((net.skipped_rows for net in member.nets), default=0)
    if skipped:
        lines.append(f'<span class="warn">{skipped} rows skipped</span>')
    tiled = sum(net.tiled_rows for net in member.nets)
    if tiled:
        lines.append(f'<span class="warn">{tiled} rows in tiles (memory)</span>')
    return lines


def draw_lengths(report: Report) -> str:
    """How long the rows are, and in which widths each member ran over them."""
    body = ""
    lengths = report.lengths_s
    if sum(lengths.counts):
        none = [0] * len(lengths.counts)
        words = ("seconds", "rows")
        body += scroll(
            charts.histogram(lengths.counts, none, lengths.edges_s, words, "lengths of the clips", 170)
        )
    alike: dict[LengthGroups, list[str]] = {}
    for name, groups in report.groups.items():
        alike.setdefault(groups, []).append(name)
    for groups, names in list(alike.items())[:MAX_GROUPS]:
        body += _draw_groups(groups, names)
    if len(alike) > MAX_GROUPS:
        body += small(f"{len(alike) - MAX_GROUPS} more in report.json")
    return section(
        "Lengths",
        "Clips are predicted at full length. On a CPU each alone; on a GPU in groups of nearly equal "
        "length, so that next to nothing is padding.",
        body,
    )


def _draw_groups(groups: LengthGroups, names: Sequence[str]) -> str:
    """The widths of members that computed the same."""
    share = sum(groups.padding) / max(1, sum(groups.cells))
    plural = "s" if groups.widths != 1 else ""
    words = (
        f'<p class="note" style="margin-top:10px"><b>{escape(", ".join(names))}</b>: {groups.forwards:,} '
        f"forward passes in {groups.widths:,} different length{plural}; "
        f"{100 * share:.2f} % of the computed frames are padding.</p>"
    )
    if groups.widths < 2:
        return words
    own = [cells - padding for cells, padding in zip(groups.cells, groups.padding, strict=True)]
    labels = ("frames per clip", "frames computed")
    return words + scroll(
        charts.histogram(own, groups.padding, groups.edges, labels, "length groups", 170)
    )


def draw_store(store: StoreReport) -> str:
    """Where spectrograms were found."""
    if not store.hits:
        return ""
    stored = {
        "ram": ("--c2", "in RAM", bytes_text(store.ram_peak_bytes)),
        "disk": ("--c1", "in the spill file", bytes_text(store.disk_peak_bytes)),
    }
    total = sum(store.hits.values()) or 1
    rows = []
    shares = []
    for name, count in store.hits.items():
        colour, words, peak = stored.get(name, ("--c7", "computed again", ""))
        rows.append(
            (f"{square(colour)} {escape(name)}", words, f"{count:,}", f"{100 * count / total:.1f} %", peak)
        )
        shares.append((count, colour, f"{name}: {count}"))
    spilled = "Nothing was spilled."
    if store.first_spill_s is not None:
        spilled = f"The first array went to disk after {store.first_spill_s:.1f} s."
    return section(
        "Store",
        f"Where spectrograms were found when a net asked for them. {spilled}",
        charts.share_bar(shares)
        + rows_table(("tier", "", "hits", "share", "peak size"), rows, (2, 3, 4))
        + small("<br>".join(escape(note) for note in store.notes[:6])),
    )


def draw_plan(plan: PlanReport, members: Sequence[MemberReport]) -> str:
    """Forecast against outcome, step by step."""
    if not plan.steps:
        return ""
    known = member_colours(members)
    longest = max(1e-9, *(max(step.seconds, step.forecast_s) for step in plan.steps))
    rows = [_step_row(step, longest, known) for step in plan.steps[:MAX_STEPS]]
    table = rows_table(
        ("net", "step", "rows", "forecast s", "took s", "of it loading", "ratio", "forecast (grey), outcome"),
        rows,
        (2, 3, 4, 5, 6),
    )
    if len(rows) > FOLDED_STEPS:
        table = f"<details><summary>{len(rows)} steps</summary>{table}</details>"
    middle = f" Median outcome / forecast: {plan.median_ratio:.2f}." if plan.median_ratio else ""
    return section(
        "Plan against outcome",
        "What the plan expected of each step just before it started, and what it took; it learns from every "
        f"step.{middle}",
        table,
    )


def _step_row(step: StepReport, longest: float, known: Mapping[str, str]) -> Sequence[str]:
    bars = [(step.forecast_s, "--c7", 3), (step.seconds, net_colour(step.net, known), 2)]
    return (
        escape(step.net),
        escape(step.kind),
        f"{step.done:,}/{step.rows:,}",
        f"{step.forecast_s:.1f}",
        f"{step.seconds:.1f}",
        f"{step.loading_s:.1f}",
        f"{step.seconds / step.forecast_s:.2f}" if step.forecast_s > 0 else "",
        "".join(
            f'<span class="meter" style="margin-top:{gap}px"><i style="width:{100 * value / longest:.1f}%;'
            f'background:var({colour})"></i></span>'
            for value, colour, gap in bars
        ),
    )
