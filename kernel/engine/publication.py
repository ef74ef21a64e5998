"""What leaves the engine: submission.csv again and again, report.json beside it, and report.html at the end.

Owns how each is written and what a refusal costs; when is loop's. Does not blend (scores), describe a run
(summary) or draw (report).
"""
from collections.abc import Callable

import numpy as np

from ..errors import HourglassError
from ..files import write_atomically
from ..report.contents import Report, encode_report
from ..report.page import encode_page, page
from ..report.pictures import draw_rows
from ..scores import blend, output, submission
from .state import Run

PAGE_S = 8.0  # report.html may take this long


class Publication:
    """The files of one run in the working folder."""

    def __init__(self, run: Run) -> None:
        self._run = run
        sample = submission.read_sample(run.order.sample.path)
        path = run.order.working / "submission.csv"
        self._publisher = submission.Publisher(path, sample, run.ensemble.output, run.ensemble.classes)
        classes = len(run.ensemble.classes)
        self._prior = np.array(run.manifest.prior or (1.0 / classes,) * classes)

    def publish(self) -> blend.Blend:
        """Blend what is there and replace the submission; a refused one leaves the old file and is named."""
        run = self._run
        with run.recorder.span("publish", device="main"):
            finished = {net.net_id for net in run.nets.values() if not net.missing()}
            merged = blend.blend(run.ensemble, run.board, self._prior, finished)
            try:
                values = output.apply(merged.values, run.rows.all, run.ensemble.output, merged.prior_rows)
                self._publisher.publish(values)
                run.recorder.publications.append(round(run.recorder.now(), 2))
            except HourglassError as error:
                run.recorder.error("submission.csv", error)
        return merged

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

    def write_page(self, report: Report, stopping: Callable[[], bool]) -> str:
        """What became of report.html: drawn last, once, if there is time; its failure is not the run's."""
        run = self._run
        begun = run.order.state / "page"
        until = min(run.recorder.now() + PAGE_S, run.order.marks.term_s)

        def late() -> bool:
            return stopping() or run.recorder.now() > until - PAGE_S / 2

        if begun.exists():
            return "report.html was not written: an engine died while it was drawn"
        if late():
            return "report.html was not written: too little time was left"
        begun.touch()
        run.heartbeat.begin("page", PAGE_S)
        try:
            shown = {entry.row for entry in report.uncertain}
            pictures = draw_rows(
                [row for row in run.rows.all if row.id in shown], run.ensemble.longest_s, late
            )
            write_atomically(run.order.working / "report.html", encode_page(page(report, pictures)))
            return "report.html"
        except Exception as error:  # the submission is complete; report.json says why the page is not there
            return f"report.html was not written: {type(error).__name__}: {error}"
