"""What leaves the engine: submission.csv again and again, report.json beside it, and report.html at the end.

Owns when each is written, how much of the time that may take, and what a refusal costs. Does not blend
(scores), describe a run (summary) or draw (report).
"""
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import HourglassError
from ..files import write_atomically
from ..limits import Marks
from ..report.contents import Report, encode_report
from ..report.page import encode_page, page
from ..report.pictures import draw_rows
from ..scores import blend, submission
from .explain import add_moments
from .state import Run

PAGE_S = 8.0  # report.html may take this long
NOT_ASKED = ("what nets say over time is left out: an engine ended while they were asked for it, after the "
             "submission was written.")
PUBLISH_EVERY_S = 60.0
EVERY_SHARE = 0.05  # of the budget: a short run shows its first scores early, too
COST_SHARE = 0.05  # of an engine's life that its publications may take, the last one aside
# The last one has this many times its expected seconds before the guard ends the engine: with one measured,
# and with none
LAST_ONE, UNMEASURED = 1.5, 3.0
# Seconds before anything is measured, per value of the table: in the file, and in the blend for each net.
# Measured on 24,000 x 264 and 1,000,000 x 20 values: 0.45 and 0.01 microseconds of a processor, more than
# twice as much by the clock where nets use it, too.
FILE_S = 1e-6
BLEND_S = 0.05e-6


@dataclass(frozen=True, kw_only=True)
class Pace:
    """When to publish, as pure values.

    every_s     most seconds without a publication, while the share allows one
    expected_s  what the next one will take
    spent_s     what all so far have taken
    """

    every_s: float
    expected_s: float
    spent_s: float = 0.0

    def allows(self, life_s: float, left_s: float) -> bool:
        """True when one more keeps all of them within a twentieth of the engine's life so far, and is over
        before the last one is due in `left_s`.
        """
        return self.spent_s + self.expected_s <= COST_SHARE * life_s and self._most_s <= left_s

    @property
    def _most_s(self) -> float:
        """What the next one takes at most: far from what is expected while none was measured."""
        return (LAST_ONE if self.spent_s else UNMEASURED) * self.expected_s

    def learn(self, seconds: float) -> "Pace":
        """The pace after a publication that took so long."""
        return replace(self, expected_s=seconds, spent_s=self.spent_s + seconds)

    def stop_s(self, marks: Marks) -> float:
        """The stop mark, or earlier, down to half of it: the last publication must end before the guard ends
        the engine.
        """
        return min(marks.stop_s, max(marks.stop_s / 2, marks.term_s - self._most_s))


class Publication:
    """The files of one run in the working folder."""

    def __init__(self, run: Run) -> None:
        self._run = run
        sample = submission.read_sample(run.order.sample.path)
        path = run.order.working / "submission.csv"
        self._publisher = submission.Publisher(path, sample, run.ensemble.output, run.ensemble.classes)
        classes = len(run.ensemble.classes)
        self._prior = np.array(run.manifest.prior or (1.0 / classes,) * classes)
        self._announced: list[dict[str, int]] = []
        values = classes * len(sample.ids)
        self.pace = Pace(
            every_s=max(1.0, min(PUBLISH_EVERY_S, EVERY_SHARE * run.order.marks.budget_s)),
            expected_s=values * (FILE_S + BLEND_S * len(run.nets)),
        )

    def learn(self, seconds: float) -> None:
        """Take in how long a publication took, its report included."""
        self.pace = self.pace.learn(seconds)

    def publish(self) -> blend.Blend:
        """Blend what is there and replace the submission; a refused one leaves the old file and is named."""
        run = self._run
        with run.recorder.span("publish", device="main"):
            finished = {net.net_id for net in run.nets.values() if net.failed or not net.lacking().rows}
            count = run.board.count()  # before the blend: nets may go on meanwhile
            merged = run.levels.blend(run.board, self._prior, finished, run.rows.lost)
            try:
                self._publisher.publish(merged.values, lambda crc: self._announce(crc, merged))
                run.journal.note_published(count)
                run.recorder.publications.append(round(run.recorder.now(), 2))
            except HourglassError as error:
                run.recorder.error("submission.csv", error)
        return merged

    def _announce(self, crc: int, merged: blend.Blend) -> None:
        """Tell the guard what is in the file that comes now, and in the one before it: it counts by that."""
        partial = int((~merged.prior_rows & ~merged.full).sum())
        told = {"crc": crc, "prior": int(merged.prior_rows.sum()), "partial": partial}
        self._announced = [told, *self._announced[:1]]
        try:
            write_atomically(
                self._run.order.state / "published.json", json.dumps(self._announced).encode()
            )
        except OSError:
            return  # the guard counts the rows as they read

    def write_report(self, report: Report) -> None:
        """report.json; an output disk that refuses it costs the report, not the run."""
        recorder = self._run.recorder
        try:
            write_atomically(self._run.order.working / "report.json", encode_report(report))
        except OSError as error:
            if not recorder.counts["ReportUnwritable"]:
                recorder.fault(
                    "ReportUnwritable",
                    "report.json",
                    f"{error.strerror}; the submission is not touched by this",
                )

    def write_page(self, report: Report, stopping: Callable[[], bool]) -> Report:
        """The report with what became of report.html: drawn last, once, if there is time; its failure is not
        the run's.
        """
        run = self._run
        state = run.order.state
        begun, asked, again = state / "page", state / "page-asked", state / "page-again"
        until = min(run.recorder.now() + PAGE_S, run.order.marks.term_s)

        def late() -> bool:
            return stopping() or run.recorder.now() > until - PAGE_S / 2

        died = begun.exists()
        if died and (again.exists() or not asked.exists()):
            return replace(report, page="report.html was not written: an engine died while it was drawn")
        if late():
            return replace(report, page="report.html was not written: too little time was left")
        run.heartbeat.begin("page", PAGE_S)
        try:
            (again if died else begun).touch()
            report = self._finish_page(report, late, None if died else asked)
        except Exception as error:  # the submission is complete; report.json says why the page is not there
            return replace(report, page=f"report.html was not written: {type(error).__name__}: {error}")
        return replace(report, page="report.html")

    def _finish_page(self, report: Report, late: Callable[[], bool], asked: Path | None) -> Report:
        """report.html, and the report with all that stands on it.

        asked  the mark that nets are asked again; None: an engine died of that, so that none is
        """
        run = self._run
        shown = {entry.row for entry in report.uncertain}
        numbers = {row.id: i for i, row in reversed(list(enumerate(run.rows.all))) if row.id in shown}
        rows = [run.rows.all[i] for i in numbers.values()]
        pictures = draw_rows(rows, run.ensemble.longest_s, late)
        if asked is None:
            report = replace(report, remarks=(*report.remarks, NOT_ASKED))
        else:
            asked.touch()
            rows_told = [numbers[entry.row] for entry in report.explained]
            report = replace(report, explained=add_moments(run, report.explained, rows_told, late))
        write_atomically(run.order.working / "report.html", encode_page(page(report, pictures)))
        return report
