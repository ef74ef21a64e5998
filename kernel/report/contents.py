"""What report.json holds, as types: what the engine writes, the guard's section and the rehearsal's.

Owns the keys of the file, the strict loader and the way back to JSON. Does not compute, draw or print.

A field has the name of its key in the file, so a few keep an older word: "stages" are spans, "walls" say what
the sandbox enforces, "truth" holds a row's labels. What may be absent from the file is None by default. Times
are seconds since the guard's start, sizes bytes.
"""
import json
from dataclasses import dataclass, fields
from typing import Any

from ..cache.tiers import Stats
from ..limits import Limits, Marks
from ..spec import load
from .embedding_work import EmbeddingReport
from .explanations import Explanation


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One degradation: `code` is a class name of kernel.errors, `where` a row, a net, a path or a device."""

    t: float
    code: str
    where: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Span:
    """A timed part of the run, on a device or on the main thread ("main"); a net's span has its forecast."""

    name: str
    device: str
    start_s: float
    end_s: float
    rows: int | None = None
    forecast_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryPoint:
    """Bytes at one moment: in use, of it held by the store, the limit, and spilled to disk."""

    t: float
    used: int
    store: int
    limit: int
    disk: int


@dataclass(frozen=True, kw_only=True)
class NetReport:
    """What one net did: rows scored, cells computed and padded, and why it failed, if it did."""

    id: str
    rows: int
    seconds: float
    loading_s: float
    setup_s: float
    batches: int
    cells: int
    padded_cells: int
    tiled_rows: int
    skipped_rows: int
    path: str
    failed: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class MemberReport:
    """A member or stacker with its nets; `rows` counts those that at least one fold has scored.

    weights  smallest and largest weight, where it depends on the class
    knows    classes that it knows and classes in all, where its nets have some of their own; missing: its
             score of the others, None where other members decide them
    """

    name: str
    family: str
    weight: float
    rows: int
    seconds: float
    nets_done: int
    nets: tuple[NetReport, ...]
    weights: tuple[float, ...] | None = None
    knows: tuple[int, ...] | None = None
    missing: float | None = None


@dataclass(frozen=True, kw_only=True)
class StoreReport(Stats):
    """Where arrays were found, what the store held, and the bytes of all arrays together."""

    stored_bytes: int


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One step of the plan: what was expected of it, what it took, and how many of its rows were scored."""

    net: str
    kind: str
    forecast_s: float
    seconds: float
    loading_s: float
    rows: int
    done: int


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """Every step, and outcome / forecast over the finished ones."""

    steps: tuple[StepReport, ...]
    median_ratio: float | None
    worst_ratio: float | None


@dataclass(frozen=True, kw_only=True)
class MemberCost:
    """Measured seconds of a net: per row (a), frame (b) and new width (shape), and for its set-up."""

    seconds_a: float
    seconds_b: float
    shape_s: float
    setup_s: float
    shapes: int
    shapes_once: int
    shapes_twice: int
    frames_per_row: float


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs by member, and seconds per second of audio by front end."""

    members: dict[str, MemberCost]
    frontends: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Histogram of the rows' lengths in seconds."""

    counts: tuple[int, ...]
    edges_s: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class LengthGroups:
    """Histogram of a member's cells, and of those that are padding, by the width of the forward in frames."""

    edges: tuple[float, ...]
    cells: tuple[int, ...]
    padding: tuple[int, ...]
    widths: int
    forwards: int


@dataclass(frozen=True, kw_only=True)
class DeviceReport:
    """The devices, in words too, and the way the nets ran on them."""

    names: tuple[str, ...]
    about: str
    path: str


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """A row with its best classes and scores; a worst row also has its labels and the best one's rank."""

    row: str
    best: tuple[str, ...]
    scores: tuple[float, ...]
    truth: tuple[str, ...] | None = None
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class Crash:
    """What one thread of a dead engine had in flight: clips, or rows with a net."""

    attempt: int
    kind: str
    ids: tuple[str, ...]
    net: str | None = None


@dataclass(frozen=True, kw_only=True)
class Death:
    """How one engine ended before it was done."""

    attempt: int
    why: str
    status: int | None
    oom: bool
    life_s: float
    scored_rows: int


@dataclass(frozen=True, kw_only=True)
class GuardReport:
    """The guard's section."""

    prior_s: float | None
    attempts: int
    deaths: tuple[Death, ...]
    faults: tuple[Fault, ...]
    finished: bool
    pinned: bool
    bundle: str | None
    offset_s: float
    peak_bytes: int
    sample: str | None
    stacks: str
    signal: int
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class VerdictLine:
    """One limit: the forecast here and on a slower machine (scaled), what is allowed, and the share left."""

    what: str
    raw: float
    scaled: float
    allowed: float
    unit: str
    passed: bool
    margin: float


@dataclass(frozen=True, kw_only=True)
class RehearsalReport:
    """The rehearsal's section: the forecast for `clips` rows, `hours` of audio; metrics if it had labels.
    problems  why it fails; concerns: what to look at although every limit holds
    """

    walls: tuple[str, ...]
    clips: int
    hours: float
    slowdown: float
    passed: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    verdict: tuple[VerdictLine, ...]
    lwlrap: float | None = None
    macro_auc: float | None = None
    padded_cmap: float | None = None
    concerns: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """The verdict in a word or two."""
        if not self.passed:
            return "FAIL"
        return "PASS, degraded" if self.concerns else "PASS"


@dataclass(frozen=True, kw_only=True)
class EveryReport:
    """What every report says, whoever wrote it."""

    rows: int
    prior_rows: int
    partial_rows: int
    wall_s: float
    peak_ram_bytes: int
    limits: Limits
    random_weights: bool
    members: tuple[MemberReport, ...]
    faults: tuple[Fault, ...]
    fault_counts: dict[str, int]
    guard: GuardReport | None = None


@dataclass(frozen=True, kw_only=True)
class BareReport(EveryReport):
    """What the guard writes alone when no engine left a report: no members, an empty store."""

    store: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Report(EveryReport):
    """A complete report.

    peak_own_bytes  most resident bytes of engine and guard: the peak that people read, and that a forecast
                    starts from; peak_ram_bytes: most that counted against the limit, others' memory included
    broken_rows     row id -> code of the error that leaves it with the prior; clip_notes: -> remarks
    crashes         what was in flight when engines died; quarantined: clip ids in flight at two crashes
    meter           where the memory figures were read; embeddings: name -> what its graph did
    page            "report.html", or why it was not written
    explained       the uncertain rows again: what each member says of them, and where in time
    """

    peak_own_bytes: int
    marks: Marks
    broken_rows: dict[str, str]
    extra_clips: int
    bundle: str
    ensemble: str
    attempt: int
    crashes: tuple[Crash, ...]
    quarantined: tuple[str, ...]
    device: DeviceReport
    store: StoreReport
    meter: str
    forecast: PlanReport
    costs: Costs
    seconds_of_audio: float
    longest_s: float
    lengths_s: Lengths
    groups: dict[str, LengthGroups]
    remarks: tuple[str, ...]
    uncertain: tuple[ShownRow, ...]
    stages: tuple[Span, ...]
    timeline: tuple[MemoryPoint, ...]
    publications: tuple[float, ...]
    clip_notes: dict[str, tuple[str, ...]]
    embeddings: dict[str, EmbeddingReport] | None = None
    explained: tuple[Explanation, ...] = ()
    page: str | None = None
    rehearsal: RehearsalReport | None = None
    worst: tuple[ShownRow, ...] | None = None


def load_report(text: bytes) -> Report | BareReport:
    """The report of a report.json; a BareReport where the guard had to write it alone.

    Raises  SpecError naming the key that is unknown, missing or of another type
    """
    data = json.loads(text)
    kind: type[Report | BareReport] = Report if "costs" in data else BareReport
    return load(kind, data, "report.json")


def encode_report(report: Report | BareReport) -> bytes:
    """The bytes of report.json."""
    return (json.dumps(report, indent=1, default=_present) + "\n").encode()


def _present(part: Any) -> dict[str, Any]:
    """Key -> value of a dataclass, without the parts that are absent."""
    absent = {own.name for own in fields(part) if own.default is None and getattr(part, own.name) is None}
    return {name: value for name, value in vars(part).items() if name not in absent}
