"""What ships: everything that runs inside the Kaggle kernel. Read the rooms in the order of a clip's way.

sound      which file an id means, decoding, front ends          wave -> stored array
cache      where stored arrays lie: RAM, disk or nowhere         (front end, row) -> array
models     the families of nets                                  inputs -> logits
inference  cut, finish and run a net                             stored array -> probabilities
scores     means, steps on the finished table, submission.csv    probabilities -> file
engine     drives it all: what runs when, on which device        order of the guard -> scores of every net
report     what happened                                         figures -> report.json, report.html, lines
rehearsal  what will happen, tried on the user's machine         bundle, clips, limits -> PASS or FAIL

Beside the rooms: library (`from kernel import score, listen`; `spectrogram` is report's), run (the engine's
entry), order (what the guard tells it), spec (ensembles and manifests), limits, memory, bundle, pin (the
pushed file's constant), units, files, errors. Imports point one way: tests/kernel/test_imports.py.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What people import, on demand: the engine and the guard's tests load this package without pandas."""
    if name == "spectrogram":
        from .report.drawing import spectrogram

        return spectrogram
    if name not in ("score", "listen"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import library

    return getattr(library, name)
