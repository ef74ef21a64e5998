"""Report: what happened in a run, as data, as one page and as lines on a terminal.

In: faults, spans, figures. Out: report.json, report.html, progress. Owns what is shown and how. Decides
nothing.
"""
