"""A bundle whose engine is a few lines, so that the guard can be tested alone: no numpy, no torch.

Owns `make_bundle`, `pin` and `make_input`, and `check`, what must hold after a run of the guard with such a
bundle. The stub's behaviour is the test's own source text, run as kernel/run.py.
"""
from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.guard_runs import KERNEL, GuardRun
from tests.helpers.invariants import find_broken

CLASSES = ("Bark", "Meow", "Run, water")
PRIOR = (0.5, 0.25, 0.125)
PRIOR_CELLS = ",".join(f"{p:.6e}" for p in PRIOR)  # what the prior writes in a row,
STUB_CELLS = ",".join(["7.000000e-01"] * 3)  # and what the stub's publish() does
PROFILES = {
    "fat2019": {"seconds": 3600.0, "ram_bytes": 14 * 10**9, "disk_bytes": 5 * 10**9, "cores": 2, "gpu": True},
    "code-cpu": {
        "seconds": 43200.0,
        "ram_bytes": 29 * 10**9,
        "disk_bytes": 20 * 10**9,
        "cores": 4,
        "gpu": False,
    },
}
EMPTY = "CONSTANT = None  # filled by build_dataset.py"
WHEEL = "hourglass-0-py3-none-any.whl"

# What every stub engine can use: the run, a heartbeat, a submission and a report.
PRELUDE = """
import csv, json, os, signal, sys, threading, time
from pathlib import Path
RUN = {}
def beat(progress=0, unit="work", forecast_s=0.0, scored=0, quarantined=0):
    path = Path(RUN["state"]) / "heartbeat.json"
    text = json.dumps({"t": time.monotonic(), "progress": progress, "unit": unit, "forecast_s": forecast_s,
                       "scored_rows": scored, "quarantined": quarantined})
    path.with_suffix(".tmp").write_text(text)
    os.replace(path.with_suffix(".tmp"), path)
def publish(value="7.000000e-01", name="submission.csv"):
    path = Path(RUN["working"]) / ".submission.csv.1.tmp"
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\\n")
        writer.writerow(RUN["sample"]["header"])
        writer.writerows([i, *[value] * (len(RUN["sample"]["header"]) - 1)] for i in RUN["sample"]["ids"])
    os.replace(path, Path(RUN["working"]) / name)
def report(prior_rows=0, **more):
    rows = len(RUN["sample"]["ids"])
    told = {"rows": rows, "prior_rows": prior_rows, "partial_rows": 0, "faults": [], "fault_counts": {}}
    (Path(RUN["working"]) / "report.json").write_text(json.dumps({**told, **more}))
def count(name):
    path = Path(RUN["state"]) / name
    number = int(path.read_text()) + 1 if path.exists() else 1
    path.write_text(str(number))
    return number
def main(state):
    RUN.update(json.loads((Path(state) / "run.json").read_bytes()))
    run()
"""
GOOD = "def run():\n    beat(1, scored=1)\n    publish()\n    report()\n"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A stub bundle on disk and the constant that pins it."""

    folder: Path
    constant: dict[str, Any]


def make_bundle(
    folder: Path, run: str = GOOD, *, extra: dict[str, str] | None = None, **manifest: Any
) -> Bundle:
    """A bundle whose wheel holds kernel/run.py = PRELUDE + `run`; `manifest` replaces keys of the
    manifest.
    """
    folder.mkdir(parents=True)
    sources = {
        "kernel/__init__.py": "",
        "kernel/run.py": PRELUDE + run,
        "hourglass-0.dist-info/RECORD": "",
        **(extra or {}),
    }
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sources.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    (folder / WHEEL).write_bytes(raw.getvalue())
    data = {**describe_bundle(raw.getvalue(), sources), **manifest}
    text = json.dumps(data).encode()
    (folder / "manifest.json").write_bytes(text)
    constant = {
        "manifest_sha256": hashlib.sha256(text).hexdigest(),
        "bundle": "stub",
        "classes": data["ensemble"]["classes"],
        "prior": data["prior"],
        "profile": {"name": "fat2019", **PROFILES["fat2019"]},
        "device": "auto",
        "slug": "stub-data",
        "output": data["ensemble"]["output"],
    }
    return Bundle(folder=folder, constant=constant)


def describe_bundle(wheel: bytes, sources: dict[str, str]) -> dict[str, Any]:
    """The manifest of a wheel with these files, as far as the guard reads it."""
    return {
        "format": 1,
        "bundle": "stub",
        "version": "0",
        "files": {},
        "nets": [],
        "prior": list(PRIOR),
        "profiles": PROFILES,
        "ensemble": {
            "name": "stub",
            "classes": list(CLASSES),
            "members": [],
            "profile": "fat2019",
            "output": {"format": "probabilities", "label_column": None, "labels": {}},
            "windows": None,
        },
        "wheel": {
            "file": WHEEL,
            "entry": entry(wheel),
            "files": {name: entry(text.encode()) for name, text in sources.items()},
        },
    }


def entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def pin(bundle: Bundle, path: Path, **changes: Any) -> Path:
    """The pushed form of the guard: its one line filled in."""
    text = json.dumps({**bundle.constant, **changes})
    source = KERNEL.read_text(encoding="utf-8").replace(
        EMPTY, f"CONSTANT = json.loads({text!r})  # filled by build_dataset.py"
    )
    path.write_text(source, encoding="utf-8")
    return path


def make_input(
    folder: Path, ids: tuple[str, ...] = ("a.wav", "b.wav"), header: tuple[str, ...] = ("fname", *CLASSES)
) -> Path:
    """An input folder with a sample; the clips themselves do not matter to the guard."""
    folder.mkdir(parents=True)
    lines = [",".join(f'"{name}"' if "," in name else name for name in header)]
    lines += [i + ",0" * (len(header) - 1) for i in ids]
    (folder / "sample_submission.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def check(run: GuardRun, fault: str | None = None, **more: Any) -> None:
    """Nothing, when the run broke no invariant and named `fault`, or no fault at all."""
    assert find_broken(run, fault=fault, **more) == [], run.out
    if fault is None:
        assert run.faults == [], run.out


def is_prior(run: GuardRun) -> bool:
    """True when every row holds the prior of the bundle."""
    return all(line.endswith(PRIOR_CELLS) for line in run.submission.splitlines()[1:])


def has_published(working: Path) -> bool:
    """True once the stub's own scores are in the submission."""
    path = working / "submission.csv"
    return path.exists() and STUB_CELLS in path.read_text()
