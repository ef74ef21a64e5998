"""The kernel: the one file that is pushed to Kaggle. It guards the engine and always leaves a valid
submission.csv.

    python infer_kernel.py --bundle out/bundle --input IN --working OUT [--limits fat2019] [--seconds N]
    [--strict]
    python infer_kernel.py --rehearse --bundle out/bundle --clips DIR       (everything after it goes to
    kernel.rehearsal.command)

Owns the first second (prior submission), the trust in the bundle (manifest and wheel, by sha256), the clock
and the life of the engine process. Standard library only: numpy and torch are the engine's, and a machine
that cannot load them still gets its submission. Does not decode, predict or blend. After the prior only the
engine publishes. It is long because Kaggle takes one file; read it from the end: execute() tells the story.

`build_dataset.py` replaces the one line `CONSTANT = None` below by `CONSTANT = json.loads('...')`. Keys:
manifest_sha256, bundle, classes, prior, profile {name, seconds, ram_bytes, disk_bytes, cores, gpu}, output
{format, label_column, labels}, device, slug. While it is None the file is UNPINNED: it trusts the manifest it
is given by --bundle.

Exit codes: 0 a valid submission is there; 1 with --strict, when anything at all was degraded; 2 no sample and
no clips, output unwritable, or bad arguments.
"""
import time

if hasattr(time, "CLOCK_BOOTTIME"):
    read_boot_clock = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)  # noqa: E731 (no import may come before the clock)
else:
    read_boot_clock = time.monotonic  # not Linux: main() says where to go
STARTED, STARTED_BOOT = time.monotonic(), read_boot_clock()

import argparse  # noqa: E402 (the clock starts before anything is imported)
import csv  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402

CONSTANT = None  # filled by build_dataset.py

KAGGLE_INPUT, KAGGLE_WORKING = "/kaggle/input", "/kaggle/working"
SAMPLE_NAMES = (
    "sample_submission.csv",
    "sample_submission.csv.gz",
    "sample_submission.csv.zip",
    "sample_submission.zip",
    "samplesubmission.csv",
)
AUDIO_NAMES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".opus", ".m4a", ".au", ".w64")
DEFAULT_PROFILE = {
    "name": "fat2019",
    "seconds": 3600.0,
    "ram_bytes": 14 * 10**9,
    "disk_bytes": 5 * 10**9,
    "cores": 2,
    "gpu": True,
}
SUFFIXES = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "m": 10**6,
    "mb": 10**6,
    "g": 10**9,
    "gb": 10**9,
    "t": 10**12,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
# smallest value written; the engine's submissions have the same width (kernel.scores.submission)
LEAST = 1e-30
# nothing larger is read: it is none of ours
MANIFEST_BYTES, WHEEL_BYTES, SAMPLE_BYTES = 1 << 20, 64 << 20, 1 << 30
# bounds of a search, so that a folder of 50,000 clips costs nothing
SEARCH_S, MAX_FOLDERS, MAX_ENTRIES = 3.0, 3000, 2000
# /kaggle/input/competitions/SLUG; .../models/OWNER/MODEL/FRAMEWORK/VARIATION/VERSION/x
SAMPLE_DEPTH, BUNDLE_DEPTH = 3, 8
LEAST_BUDGET_S = 3.0  # DESIGN 9: below it only the prior
RESTART_ROOM_S = 3.0  # an engine needs about this long before it scores its first row
MAX_RESTARTS, MAX_BARREN = 20, 2  # a culprit is known after two crashes, so one barren restart proves nothing
EXIT_MEMORY = 3  # the engine's verdict "not enough memory": a restart would end the same way
START_FORECAST_S = 30.0  # importing torch from a cold disk
# a gap of PAUSE_S between two polls: the whole machine stood still
POLL_S, HEARTBEAT_S, PAUSE_S = 0.05, 0.3, 2.0
FAREWELL_S, EXIT_S = 1.0, 1.8  # after a signal: what the engine gets to publish, and the whole exit
REHEARSAL_FAREWELL_S = 4.0  # a rehearsal ends a guard of its own first
# .NAME.*.tmp in the working folder are ours
TEMPORARY = (".submission.csv.", ".report.json.", ".report.html.")

# What the engine process runs. It dies with the guard, whatever it is doing: the end of a pipe that only the
# guard holds makes
# Linux send SIGKILL to the whole group (no thread of ours has to run for it), and the parent-death signal
# stands behind it.
BOOT = """
import ctypes, fcntl, os, select, signal, sys
code, entry, pipe, *arguments = sys.argv[1:]
try:
    fcntl.fcntl(int(pipe), fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(int(pipe), 10, signal.SIGKILL)  # F_SETSIG
    fcntl.fcntl(int(pipe), fcntl.F_SETFL, os.O_ASYNC)
except OSError:
    pass  # a sandbox without it
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if select.select([int(pipe)], [], [], 0)[0]:
    sys.exit(1)  # the guard died before this line
sys.path.insert(0, code)
if entry == "engine":
    from kernel.run import main
    main(*arguments)
else:
    from kernel.rehearsal.command import main
    sys.exit(main(arguments[1:], arguments[0]))
"""


class Refusal(Exception):
    """One of the few faults that end with exit code 2."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Fault(Exception):
    """A fault that leaves the prior submission; `code` is a class name of kernel.errors."""

    def __init__(self, code, where, message):
        super().__init__(message)
        self.code, self.where = code, where


class Clock:
    """Seconds since the file's first line, blind to changes of the wall clock, plus what had passed
    before.
    """

    def __init__(self, offset_s=0.0, now=time.monotonic, boot=read_boot_clock):
        self.offset_s, self.now, self.boot = offset_s, now, boot

    def elapsed(self):
        return self.offset_s + max(self.now() - STARTED, self.boot() - STARTED_BOOT)


def find_marks(budget_s):
    """When what happens, in seconds since the start (DESIGN 9); the same formulas as kernel.limits.marks."""
    budget_s = max(0.0, budget_s)
    margin = max(0.05 * budget_s, min(180.0, 0.25 * budget_s))
    stop = budget_s - margin
    term = stop + margin / 4
    return {"budget_s": budget_s, "stop_s": stop, "term_s": term, "kill_s": term + min(5.0, 0.03 * budget_s),
            "exit_s": budget_s - min(90.0, 0.10 * budget_s), "hung_least_s": 30.0, "hung_factor": 4.0,
            "hung_most_s": 0.25 * budget_s, "prior_only": budget_s < LEAST_BUDGET_S}


class Run:
    """What this run knows so far."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.clock = Clock()
        self.constant = CONSTANT or {}
        self.manifest = None
        self.profile = dict(self.constant.get("profile") or DEFAULT_PROFILE)
        self.faults = []
        self.deaths = []
        self.attempts = 0
        self.input = self.working = self.state = self.bundle = None
        self.clips = arguments.clips
        self.sample = None
        self.prior_s = None
        self.engine = None
        self.finished = False
        self.signal = 0
        self.stacks = ""

    def fault(self, code, where, message):
        """Record a fault and say it: no degradation without a line here."""
        self.faults.append(
            {"t": round(self.clock.elapsed(), 2), "code": code, "where": str(where), "message": str(message)}
        )
        say(f"{code} {where}: {message}")

    def classes(self):
        return self.constant.get("classes") or (self.manifest or {}).get("ensemble", {}).get("classes") or []

    def prior(self):
        return self.constant.get("prior") or (self.manifest or {}).get("prior") or []

    def output(self):
        """The format of submission.csv; {} = not known yet."""
        return self.constant.get("output") or (self.manifest or {}).get("ensemble", {}).get("output") or {}

    def budget_s(self):
        return self.profile["seconds"] if self.arguments.seconds is None else self.arguments.seconds

    def marks(self):
        return find_marks(self.budget_s())


def say(text):
    """One line on stdout; what cannot be printed is escaped, so that a file name cannot write to the
    terminal.
    """
    line = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in str(text)
    )
    try:
        print(f"[hourglass] {line}", flush=True)
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # nobody reads any more; report.json still tells


# -- arguments
# ----------------------------------------------------------------------------------------------------------


def parse_bytes(text):
    """Bytes of "14GB", "512MiB" or "4096"."""
    number = text.strip().rstrip("abgikmtABGIKMT ")
    unit = text.strip()[len(number):].strip().lower()
    if unit not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number and a unit, e.g. 14GB or 512MiB")
    try:
        value = float(number) * SUFFIXES[unit]
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number and a unit, e.g. 14GB or 512MiB")
    return int(value)


def parse_seconds(text):
    """Finite seconds; zero and below are allowed and leave the prior submission."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give seconds, e.g. 3600")
    return value


def parse_count(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of at least 1")
    return value


def make_parser():
    parser = argparse.ArgumentParser(prog="infer_kernel.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bundle", metavar="DIR", help="folder with manifest.json (default: searched below the input)"
    )
    parser.add_argument(
        "--input",
        metavar="DIR",
        help="folder with sample_submission.csv and the clips (default: /kaggle/input)",
    )
    parser.add_argument(
        "--clips", metavar="DIR", help="folder of clips, if not the one found below the input"
    )
    parser.add_argument(
        "--working",
        metavar="DIR",
        help="folder for submission.csv and report.json (default: /kaggle/working)",
    )
    parser.add_argument(
        "--limits", metavar="PROFILE", help="named limits, e.g. fat2019, code-gpu, code-cpu, birdclef-cpu90"
    )
    parser.add_argument("--seconds", type=parse_seconds, help="time budget instead of the profile's")
    parser.add_argument(
        "--ram", type=parse_bytes, metavar="14GB", help="memory limit instead of the profile's"
    )
    parser.add_argument("--disk", type=parse_bytes, metavar="5GB", help="disk limit instead of the profile's")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), help="where the nets run (default: what works)"
    )
    parser.add_argument(
        "--first",
        type=parse_count,
        metavar="N",
        help="predict the first N rows only; the others keep the prior",
    )
    parser.add_argument(
        "--loaders", type=parse_count, metavar="N", help="loader threads (default: one per core)"
    )
    parser.add_argument(
        "--offset", type=parse_seconds, metavar="SECONDS", help="seconds that had passed before the start"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 when anything was degraded")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="rehearse with --clips under the limits: see --rehearse --help",
    )
    return parser


# -- the sample
# -----------------------------------------------------------------------------------------------------------


def list_folder(folder):
    """(file names, subfolders) of a folder; a large one is cut short, which only hides folders behind 2,000
    files.
    """
    files, below = [], []
    try:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                if count >= MAX_ENTRIES:
                    break
                (below if entry.is_dir() else files).append(entry.name)
    except OSError:  # a folder that cannot be listed holds nothing for us
        return [], []
    return files, [os.path.join(folder, name) for name in sorted(below)]


def survey(root, depth, names):
    """Paths below `root` whose lower-case name is one of `names`, nearest first, within the bounds of a
    search.
    """
    found, level, seen, until = [], [root], 0, time.monotonic() + SEARCH_S
    for _ in range(depth + 1):
        deeper = []
        for folder in level:
            seen += 1
            if seen > MAX_FOLDERS or time.monotonic() > until:
                return found
            files, below = list_folder(folder)
            here = [name for name in files if name.lower() in names]
            if len(files) + len(below) >= MAX_ENTRIES:
                here += [
                    name for name in names if name not in here and os.path.isfile(os.path.join(folder, name))
                ]
            found += [os.path.join(folder, name) for name in sorted(here)]
            deeper += below
        level = deeper
    return found


def open_sample(path):
    """Binary stream of a sample, unpacked if it is a .gz or .zip."""
    with open(path, "rb") as file:
        magic = file.read(2)
    if magic == b"\x1f\x8b":
        import gzip

        return gzip.open(path, "rb")
    if magic == b"PK":
        import zipfile

        archive = zipfile.ZipFile(path)
        return archive.open(next(name for name in archive.namelist() if name.lower().endswith(".csv")))
    return open(path, "rb")


def read_sample(path):
    """{"path", "header", "ids", "cells"} of a sample as raw text; cells = the first row. Raises ValueError
    when it is none.
    """
    import io
    import zlib

    try:
        with open_sample(path) as raw, io.TextIOWrapper(raw, "utf-8", "surrogateescape", newline="") as text:
            rows = (row for row in csv.reader(_bounded(text, path)) if row)
            header = next(rows, [])
            first = next(rows, None)
            ids = [] if first is None else [first[0], *(row[0] for row in rows)]
    except (
        OSError,
        csv.Error,
        EOFError,
        zlib.error,
        StopIteration,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise ValueError(f"cannot be read ({type(error).__name__}: {error})") from error
    except Exception as error:  # zipfile's own class, named without importing zipfile for a plain file
        if type(error).__name__ != "BadZipFile":
            raise
        raise ValueError(f"cannot be read ({error})") from error
    if len(header) < 2:
        raise ValueError(f"header {header!r}: expected an id column and at least one more")
    return {"path": path, "header": header, "ids": ids, "cells": first or []}


def _bounded(lines, path):
    """The lines of a text, without a byte order mark, up to the size a sample can have."""
    size = 0
    for number, line in enumerate(lines):
        size += len(line)
        if size > SAMPLE_BYTES:
            raise ValueError(f"more than {SAMPLE_BYTES} bytes; this is no sample submission")
        yield line.removeprefix("\ufeff") if number == 0 else line


def find_sample(run):
    """The sample below the input, or None: the one whose header has our classes, then the competition's own,
    then the nearest.
    """
    known = set(run.classes())
    samples = []
    for path in survey(run.input, SAMPLE_DEPTH, SAMPLE_NAMES):
        try:
            sample = read_sample(path)
        except ValueError as error:
            run.fault("SampleMissing", path, f"{error}; skipped")
            continue
        below = os.path.relpath(path, run.input).split(os.sep)
        strangers = len(known - set(sample["header"])) if run.output().get("format") != "label" else 0
        samples.append(((strangers, below[0] != "competitions" and len(below) > 1, len(below), path), sample))
    samples.sort(key=lambda ranked: ranked[0])
    if len(samples) > 1 and any(s["ids"] != samples[0][1]["ids"] for _, s in samples[1:]):
        run.fault(
            "SampleAmbiguous",
            samples[0][1]["path"],
            f"one of {len(samples)} samples below {run.input}; give --input",
        )
    return samples[0][1] if samples else None


def list_clips(root):
    """POSIX paths below `root` of every audio file, sorted."""
    names = []
    for folder, below, files in os.walk(root):
        below.sort()
        here = "" if folder == root else os.path.relpath(folder, root) + "/"
        names += [here + name for name in files if name.lower().endswith(AUDIO_NAMES)]
    return sorted(names)


def make_sample(run):
    """A sample made from the clips, for an input without one, or None when there are no clips or no classes
    to name.

    Windowed bundles need the sample: the number of rows depends on the lengths, which the guard does not
    know.
    """
    classes = run.classes()
    windowed = (run.manifest or {}).get("ensemble", {}).get("windows")
    root = run.clips or run.input
    names = list_clips(root) if classes and not windowed and os.path.isdir(root) else []
    if not names:
        return None
    names = [name for name in names if "test" in os.path.dirname(name).lower()] or names
    shared = os.path.commonpath([os.path.dirname(name) for name in names])
    if shared:  # one folder holds them all: it is the clip folder
        root, names = os.path.join(root, shared), [name[len(shared) + 1:] for name in names]
    run.clips, output = root, run.output()
    columns = [output.get("label_column") or "label"] if output.get("format") == "label" else classes
    run.fault(
        "SampleMissing", run.input, f"no sample_submission.csv; made one from {len(names)} clips in {root}"
    )
    return {"path": None, "header": ["fname", *columns], "ids": names, "cells": []}


# -- submission.csv
# -------------------------------------------------------------------------------------------------------


def quote(text):
    """One CSV cell, quoted only where a reader would otherwise see something else."""
    return '"' + text.replace('"', '""') + '"' if text == "" or any(c in text for c in ',"\r\n') else text


def is_number(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return text == ""


def has_labels(run):
    """True when the submission has a label column: by the bundle's output format, else by the sample's own
    first row.
    """
    form = run.output().get("format")
    if form is None:
        return len(run.sample["header"]) == 2 and not all(is_number(text) for text in run.sample["cells"][1:])
    return form == "label"


def label_column(run):
    columns, name = run.sample["header"][1:], run.output().get("label_column")
    return columns.index(name) if name in columns else 0


def prior_cells(run):
    """Cells of every row of the prior submission, in the order of the sample's header.

    A column that is no class of ours gets 1 / number of columns, as in kernel.scores.submission.
    """
    columns, prior = run.sample["header"][1:], dict(zip(run.classes(), run.prior(), strict=False))
    cells = [f"{min(1.0, max(LEAST, prior.get(name, 1.0 / len(columns)))):.6e}" for name in columns]
    if has_labels(run):
        best = max(prior, key=prior.get) if prior else None
        labels = run.output().get("labels") or {}
        fallback = run.sample["cells"][1:] or run.classes() or ["0"]
        cells = [f"{1.0 / len(columns):.6e}"] * len(columns)
        cells[label_column(run)] = labels.get(best, best) if best is not None else fallback[0]
    return cells


def report_columns(run):
    """Say it loudly when the sample's columns and the bundle's classes do not match."""
    if not run.classes() or has_labels(run):
        return
    columns, classes = set(run.sample["header"][1:]), set(run.classes())
    for names, text in (
        (columns - classes, "are no class of the bundle and hold a constant"),
        (classes - columns, "are classes of the bundle without a column, their scores are not written"),
    ):
        if names:
            shown = ", ".join(map(repr, sorted(names)[:5])) + (" ..." if len(names) > 5 else "")
            run.fault(
                "ColumnsUnknown", run.sample["path"] or "sample", f"{len(names)} columns ({shown}) {text}"
            )


def prior_lines(run):
    """Text of the prior submission, line by line: it may be larger than the guard itself."""
    tail = ",".join(["", *map(quote, prior_cells(run))]) + "\n"
    yield (",".join(map(quote, run.sample["header"])) + "\n").encode("utf-8", "surrogateescape")
    for row_id in run.sample["ids"]:
        yield (quote(row_id) + tail).encode("utf-8", "surrogateescape")


def write_prior(run):
    """Put the prior submission in place in one step. Raises OSError."""
    target = os.path.join(run.working, "submission.csv")
    temporary = os.path.join(run.working, f".submission.csv.{os.getpid()}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(handle, 0, sum(map(len, prior_lines(run))))
        with os.fdopen(handle, "wb", buffering=1 << 18, closefd=False) as file:
            for line in prior_lines(run):
                file.write(line)
        os.fsync(handle)
        os.replace(temporary, target)
    except OSError:
        remove(temporary)
        raise
    finally:
        os.close(handle)
    sync_folder(run.working)


def sync_folder(folder):
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def publish_prior(run):
    """The prior submission, and a loud word on columns it cannot fill. Raises Refusal OutputUnwritable."""
    try:
        write_prior(run)
    except OSError as error:
        raise Refusal(
            "OutputUnwritable", f"{run.working}: {error}; give --working a folder that takes files"
        ) from error
    if run.prior_s is None:
        run.prior_s = round(run.clock.elapsed() - run.clock.offset_s, 4)
    report_columns(run)


def allowed_labels(run):
    """Texts that may stand in the label column, or None when there is no label column."""
    if not has_labels(run):
        return None
    labels = run.output().get("labels") or {}
    return {labels.get(name, name) for name in run.classes()} | {prior_cells(run)[label_column(run)]}


def find_invalid(run):
    """Why submission.csv cannot be scored, or None. Independent of both writers: reads the file from its
    start.
    """
    path, sample, count = os.path.join(run.working, "submission.csv"), run.sample, 0
    allowed, label_at = allowed_labels(run), label_column(run)
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            if next(rows, None) != sample["header"]:
                return "the header differs from the sample's"
            for count, row in enumerate(rows, 1):
                if (
                    count > len(sample["ids"])
                    or row[:1] != [sample["ids"][count - 1]]
                    or len(row) != len(sample["header"])
                ):
                    return f"row {count} is not the sample's row {count}"
                cells = row[1:]
                if allowed is not None and cells.pop(label_at) not in allowed:
                    return f"row {count} has an unknown label"
                if not all(0.0 <= value <= 1.0 for value in map(float, cells)):
                    return f"row {count} has a value outside 0..1"
    except (OSError, ValueError, csv.Error) as error:
        return f"row {count}: {error}"
    return None if count == len(sample["ids"]) else f"{count} rows, the sample has {len(sample['ids'])}"


def ensure_valid(run):
    """True when submission.csv is valid, putting the prior back if it must."""
    broken = find_invalid(run)
    if broken is None:
        return True
    run.fault("CandidateRejected", "submission.csv", f"{broken}; the prior submission was put back")
    try:
        write_prior(run)
    except OSError as error:
        run.fault("OutputUnwritable", run.working, f"{error}; overwriting in place")
        overwrite_prior(run)
    return find_invalid(run) is None


def overwrite_prior(run):
    """The prior over the bytes that are already there: the last way on a full disk."""
    try:
        with open(os.path.join(run.working, "submission.csv"), "r+b") as file:
            for line in prior_lines(run):
                file.write(line)
            file.truncate()
    except OSError as error:
        run.fault("OutputUnwritable", run.working, error)


# -- the bundle
# -----------------------------------------------------------------------------------------------------------


def sha256(data):
    """Hex sha256. The interpreter's own module where it has one: hashlib would bring in OpenSSL, 4 MB for one
    small file.
    """
    try:
        from _sha2 import sha256 as digest  # Python 3.12 and later
    except ImportError:
        try:
            from _sha256 import sha256 as digest
        except ImportError:
            from hashlib import sha256 as digest
    return digest(data).hexdigest()


def read_bytes(path, limit):
    """Bytes of a regular file of at most `limit` bytes. Raises OSError."""
    import stat

    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > limit:
            raise OSError(f"{path}: no regular file of at most {limit} bytes")
        return file.read(limit)


def find_manifests(run):
    """Paths of manifest.json, in the order of trust: --bundle, Kaggle's places for our slug, a bounded
    search.
    """
    if run.arguments.bundle:
        return survey(run.arguments.bundle, 3, ("manifest.json",))
    slug = run.constant.get("slug")
    if not slug:
        return []
    import glob

    roots = [run.input] if run.arguments.input else [KAGGLE_INPUT, run.input]
    for root in roots:
        near = [
            path
            for pattern in (slug, f"datasets/*/{slug}", f"models/*/{slug}/*/*/*", f"notebooks/*/{slug}")
            for path in sorted(glob.glob(os.path.join(glob.escape(root), pattern)))
        ]
        found = [path for folder in near for path in survey(folder, 3, ("manifest.json",))]
        if any(sha256_of(path) == run.constant["manifest_sha256"] for path in found):
            return found
    return [path for root in roots for path in survey(root, BUNDLE_DEPTH, ("manifest.json",))]


def sha256_of(path):
    """sha256 of a possible manifest, or None when it cannot be one."""
    try:
        return sha256(read_bytes(path, MANIFEST_BYTES))
    except OSError:
        return None


def parse_manifest(text, path):
    """The manifest as plain data, checked as far as the guard uses it; the engine's strict loader checks the
    rest.
    """
    try:
        data = json.loads(text)
        wheel, classes, prior = data["wheel"], data["ensemble"]["classes"], data["prior"]
        entries = [wheel["entry"], *wheel["files"].values()]
        good = all(isinstance(e["bytes"], int) and isinstance(e["sha256"], str) for e in entries)
        good = good and isinstance(wheel["file"], str) and all(isinstance(c, str) for c in classes)
        good = (
            good
            and all(isinstance(p, (int, float)) and 0 <= p <= 1 for p in prior)
            and len(prior) in (0, len(classes))
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Fault(
            "BundleInvalid", path, f"no manifest of ours ({type(error).__name__}: {error}); build it again"
        ) from error
    if not good:
        raise Fault(
            "BundleInvalid", path, "a field of the manifest has the wrong type; build the bundle again"
        )
    return data


def open_bundle(run):
    """Verified code of the bundle: {path in the wheel: bytes}. Sets run.bundle and run.manifest. Raises
    Fault.
    """
    pinned = run.constant.get("manifest_sha256")
    paths, last = find_manifests(run), None
    if not paths:
        where = run.arguments.bundle or (KAGGLE_INPUT if pinned else "--bundle")
        raise Fault(
            "BundleMissing",
            where,
            "no manifest.json found; "
            + (
                "attach the dataset to the kernel"
                if pinned
                else "give --bundle the folder that build_dataset.py wrote"
            ),
        )
    strangers = []
    for path in paths:
        try:
            text = read_bytes(path, MANIFEST_BYTES)
            if pinned and sha256(text) != pinned:
                strangers.append(f"{path} has {sha256(text)[:16]}")
                continue
            manifest = parse_manifest(text, path)
            code = read_code(os.path.dirname(path), manifest["wheel"])
        except OSError as error:
            last = Fault("BundleMissing", path, error)
        except Fault as fault:
            last = fault
        else:
            run.bundle, run.manifest, run.manifest_text = os.path.dirname(path), manifest, text
            return code
    raise last or Fault(
        "BundleHashMismatch",
        run.input,
        f"this kernel wants the manifest with sha256 {pinned[:16]}, but "
        + "; ".join(strangers[:3])
        + ". Push the kernel again, or wait until the dataset is processed",
    )


def is_safe(name):
    """True for a relative path that stays where it is put."""
    return (
        bool(name)
        and name.isprintable()
        and "\\" not in name
        and all(p not in ("", ".", "..") for p in name.split("/"))
    )


def read_code(folder, wheel):
    """Verified bytes of every file of the wheel, be it a wheel, renamed, or unpacked to a folder. Raises
    Fault.
    """
    expected = {name: e for name, e in wheel["files"].items() if is_safe(name)}
    if len(expected) != len(wheel["files"]):
        raise Fault(
            "BundleInvalid", folder, "the manifest names files outside the wheel; build the bundle again"
        )
    seen = []
    for path in find_wheels(folder, wheel):
        data = read_bytes(path, WHEEL_BYTES)
        if sha256(data) == wheel["entry"]["sha256"]:
            return unpack(data, expected, path)
        seen.append(path)
    for root in find_unpacked(folder):
        code = read_unpacked(root, expected)
        if code is not None:
            return code
        seen.append(root)
    raise Fault("BundleHashMismatch" if seen else "BundleMissing", folder,
                f"no copy of {wheel['file']} with sha256 {wheel['entry']['sha256'][:16]}"
                + (f"; differs: {', '.join(seen[:3])}" if seen else "") + ". Upload the bundle again")


def find_wheels(folder, wheel):
    """Files of the wheel's size: its own name first, then any other name, then in wrapper folders."""
    size, own = wheel["entry"]["bytes"], os.path.join(folder, wheel["file"])
    places, level = [own], [folder]
    for _ in range(3):
        listed = [(place, *list_folder(place)) for place in level]
        places += [os.path.join(place, name) for place, files, _ in listed for name in sorted(files)]
        level = [path for _, _, below in listed for path in below]
    return [
        p
        for i, p in enumerate(places)
        if (i == 0 or p != own) and os.path.isfile(p) and os.path.getsize(p) == size
    ]


def find_unpacked(folder):
    """Folders in and below the bundle that hold a folder `kernel`."""
    found, level = [], [folder]
    for _ in range(4):
        found += [place for place in level if os.path.isfile(os.path.join(place, "kernel", "__init__.py"))]
        level = [path for place in level for path in list_folder(place)[1]]
    return found


def unpack(data, expected, path):
    """The wheel's files, each checked again, so that what runs is what the manifest lists."""
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        code = {}
        for name, entry in expected.items():
            with archive.open(name) as file:
                code[name] = file.read(entry["bytes"] + 1)
            if sha256(code[name]) != entry["sha256"]:
                raise Fault(
                    "BundleHashMismatch",
                    path,
                    f"{name} inside differs from the manifest; build the bundle again",
                )
    return code


def read_unpacked(root, expected):
    """The files of an unpacked wheel, or None when one under kernel/ is missing or differs."""
    code = {}
    for name, entry in expected.items():
        try:
            data = read_bytes(os.path.join(root, name), WHEEL_BYTES)
        except OSError:
            data = b""
        if sha256(data) == entry["sha256"]:
            code[name] = data
        elif ".dist-info/" not in name:
            # Python files are what runs; an unpacker may drop the wheel's own papers
            return None
    return code


# -- the private folder
# ---------------------------------------------------------------------------------------------------


def is_memory(path):
    """True when a path lies on a memory file system: a spill there would fill the RAM it is to relieve."""
    best, kind, real = "", "", os.path.realpath(path) + "/"
    try:
        with open("/proc/mounts", encoding="utf-8", errors="replace") as mounts:
            lines = [line.split(" ") for line in mounts]
    except OSError:
        return False  # a sandbox that hides its mounts: take the place for what it seems
    for _, place, name, *_ in lines:
        if real.startswith(place.rstrip("/") + "/") and len(place) >= len(best):
            best, kind = place, name
    return kind in ("tmpfs", "ramfs", "devtmpfs")


def scratch_places(run):
    """Folders for the private folder, best first: real disks, never the output folder."""
    places = [os.environ.get("TMPDIR"), "/kaggle/temp", "/tmp", "/var/tmp"]
    try:
        os.mkdir("/kaggle/temp")
    except OSError:
        pass  # it is there, or this is not Kaggle, or it may not be: then the next place
    usable = [p for p in places if p and os.path.isdir(p) and os.access(p, os.W_OK | os.X_OK)
              and os.path.realpath(p) != os.path.realpath(run.working)]
    return sorted(dict.fromkeys(usable), key=is_memory)


def describe_process(pid):
    """(boot id, start time in ticks) of a process, which together with its pid name it for ever; None if it
    is gone.
    """
    try:
        with (
            open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot,
            open(f"/proc/{pid}/stat", "rb") as stat,
        ):
            return [boot.read().strip(), int(stat.read().rpartition(b")")[2].split()[19])]
    except (OSError, ValueError, IndexError):
        return None


def sweep_stale(place):
    """Remove private folders of guards that are dead (killed before they could clean up)."""
    for entry in os.scandir(place):
        if not entry.name.startswith("hourglass-") or entry.is_symlink() or not entry.is_dir():
            continue
        if entry.stat(follow_symlinks=False).st_uid != os.getuid():
            continue
        try:
            with open(os.path.join(entry.path, "owner.json"), encoding="ascii") as file:
                owner = json.load(file)
            alive = describe_process(int(owner["pid"])) == owner["process"]
        except (OSError, ValueError, KeyError, TypeError):
            # no owner yet: just made, unless it is old; or not ours at all
            code = entry.name.removeprefix("hourglass-")
            ours = len(code) == 16 and set(code) <= set("0123456789abcdef")
            alive = not ours or time.time() - entry.stat(follow_symlinks=False).st_mtime < 60
        if not alive:
            remove_tree(entry.path)


def make_state(run):
    """The private folder (0700) of this run, after those of dead runs were removed. Raises Fault."""
    tried = []
    for place in [*scratch_places(run), run.working]:
        path = os.path.join(place, f"hourglass-{os.urandom(8).hex()}")
        try:
            sweep_stale(place)
            os.mkdir(path, 0o700)
            with open(os.path.join(path, "owner.json"), "w", encoding="ascii") as file:
                json.dump({"pid": os.getpid(), "process": describe_process(os.getpid())}, file)
        except OSError as error:
            tried.append(str(error))
            continue
        run.state = path
        if place == run.working:
            run.profile["disk_bytes"] = 0
            run.fault(
                "ScratchRejected",
                place,
                "only the output folder is writable: nothing is spilled there, what does not fit "
                "into memory is computed again; set TMPDIR to a folder on a disk",
            )
        elif is_memory(place):
            run.fault(
                "ScratchRejected",
                place,
                "is memory, not a disk, and nothing else is writable: spilling there uses RAM",
            )
        return
    raise Fault(
        "StoreError",
        "scratch",
        f"no folder for private files ({'; '.join(tried) or 'none writable'}); set TMPDIR",
    )


def write_state(run, name, data):
    """Put a file into the private folder in one step."""
    path = os.path.join(run.state, name)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(path + ".new", "wb") as file:
        file.write(data)
    os.replace(path + ".new", path)
    return path


def prepare_state(run, code):
    """Everything the engine is given: verified code and manifest, and the sample as a plain file."""
    for name, data in code.items():
        write_state(run, os.path.join("code", name), data)
    write_state(run, "manifest.json", run.manifest_text)
    lines = [",".join(map(quote, run.sample["header"]))]
    blank = "," * (len(run.sample["header"]) - 1)
    lines += [quote(row_id) + blank for row_id in run.sample["ids"]]
    run.sample["copy"] = write_state(
        run, "sample_submission.csv", ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")
    )


def describe_run(run):
    """run.json: what the engine is told."""
    a = run.arguments
    return {
        "bundle": os.path.abspath(run.bundle),
        "manifest": os.path.join(run.state, "manifest.json"),
        "input": run.input,
        "clips": run.clips,
        "working": run.working,
        "state": run.state,
        "sample": {"path": run.sample["copy"], "header": run.sample["header"], "ids": run.sample["ids"]},
        "limits": {**run.profile, "seconds": run.budget_s()},
        "marks": run.marks(),
        "started": STARTED,
        "offset_s": run.clock.offset_s,
        "device": a.device or run.constant.get("device") or "auto",
        "loaders": a.loaders,
        "first": a.first,
        "strict": a.strict,
        "attempt": run.attempts,
        "pinned": bool(run.constant),
        "deaths": run.deaths,
    }


# -- the engine
# -----------------------------------------------------------------------------------------------------------


def make_environment(run):
    """Environment of the engine: thread counts before anything loads, caches in the private folder, no
    secrets.
    """
    threads = str(max(1, min(int(run.profile["cores"]), len(os.sched_getaffinity(0)))))
    kept = {k: v for k, v in os.environ.items()
            if not k.startswith("PYTHON") and not (k.startswith("KAGGLE") and k.endswith(("TOKEN", "KEY")))}
    return kept | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": "1",
        "NUMEXPR_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "THP_MEM_ALLOC_ENABLE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **dict.fromkeys(
            ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCH_HOME"),
            os.path.join(run.state, "cache"),
        ),
    }


def start(run, entry, *arguments):
    """The engine (or the rehearsal) in a session of its own; it imports nothing from the folders it works
    on.
    """
    import subprocess

    read_end, write_end = os.pipe()
    command = [
        sys.executable or "python3",
        "-I",
        "-B",
        "-c",
        BOOT,
        os.path.join(run.state, "code"),
        entry,
        str(read_end),
    ]
    try:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            cwd=run.state,
            env=make_environment(run),
            start_new_session=True,
            pass_fds=(read_end,),
        )
    except BaseException:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    process.lifeline = write_end  # held until the end: closing it ends the whole group
    return process


def signal_group(process, number):
    """Send a signal to the engine's own group; it is not reaped yet, so its number cannot be another's."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # already gone


def adopt_orphans():
    """Become the parent of whatever the engine leaves behind, so that it can be ended. False where Linux
    cannot.
    """
    import ctypes

    return ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0


def end_children():
    """Kill and reap every child, and theirs as they become ours, for at most one second."""
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue  # ended while we looked
            if parent == os.getpid():
                os.kill(int(name), signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(0.005)
        except ChildProcessError:
            return


def end_engine(run, grace_s):
    """End the engine's group: TERM, `grace_s` to leave by itself, then KILL."""
    process, run.engine = run.engine, None
    if process is None:
        return
    if process.poll() is None and grace_s > 0:
        signal_group(process, signal.SIGTERM)
        until = time.monotonic() + grace_s
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
    signal_group(process, signal.SIGKILL)
    process.wait()
    os.close(process.lifeline)


def read_json(path, default):
    """A JSON file of the engine, or the default while it is not there."""
    try:
        with open(path, "rb") as file:
            return json.load(file)
    except (OSError, ValueError):
        return default


def count_gains(run):
    """(rows scored, clips and batches quarantined, suspects named by crashes before the last one), as the
    engine last said.

    A new suspect is a gain: it goes first and alone from then on, so that faults which strike once each, in
    other clips every time, do not end the run.
    """
    beat = read_json(os.path.join(run.state, "heartbeat.json"), {})
    kept = read_json(os.path.join(run.state, "quarantine.json"), {})
    named = sum(len(v) for v in kept.values()) if isinstance(kept, dict) else len(kept)
    crashes = read_json(os.path.join(run.state, "crashes.json"), [])
    suspects = {
        (c.get("kind"), c.get("net"), i) for c in crashes if isinstance(c, dict) for i in c.get("ids", ())
    }
    return int(beat.get("scored_rows", 0)), max(int(beat.get("quarantined", 0)), named), len(suspects)


def count_oom_kills():
    """Processes this machine's kernel has killed for memory since it started."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except (OSError, ValueError):
        return 0


class Watch:
    """Says when an engine counts as hung: no progress for too long, pauses of the whole machine left out."""

    def __init__(self, marks, now):
        self.marks, self.last, self.seen, self.poll = marks, now, None, now
        self.forecast_s, self.started, self.paused_s = START_FORECAST_S, False, 0.0

    def see(self, beat, now):
        """Take a heartbeat; true when the engine hangs."""
        if now - self.poll > PAUSE_S:
            self.paused_s += now - self.poll
            self.last += now - self.poll
        self.poll = now
        if beat and beat.get("progress") != self.seen:
            self.seen, self.last = beat.get("progress"), now
        # a start is no step: with 20 s, importing torch may take 10
        m, most_s = self.marks, 2 * self.marks["hung_most_s"]
        if beat and beat.get("unit") != "start":
            self.forecast_s, self.started = float(beat.get("forecast_s") or 0.0), True
        if self.started:
            most_s = m["hung_most_s"]
        return now - self.last > min(max(m["hung_least_s"], m["hung_factor"] * self.forecast_s), most_s)


def watch(run):
    """Why the engine ended: "exit", "hung", "deadline" or "signal"."""
    marks, guard = run.marks(), Watch(run.marks(), time.monotonic())
    beats, next_beat, termed = os.path.join(run.state, "heartbeat.json"), 0.0, False
    spared = False
    while run.engine.poll() is None:
        now = time.monotonic()
        if run.signal:
            return "signal"
        if run.clock.elapsed() >= marks["kill_s"]:
            return "deadline"
        if run.clock.elapsed() >= marks["term_s"] and not termed:
            termed = True
            run.fault(
                "DeadlineTerminated",
                "engine",
                f"still running at {marks['term_s']:.1f} s; told to publish and leave",
            )
            signal_group(run.engine, signal.SIGTERM)
        if now >= next_beat:
            next_beat, paused_s = now + HEARTBEAT_S, guard.paused_s
            if guard.see(read_json(beats, {}), now):
                if marks["stop_s"] - run.clock.elapsed() > RESTART_ROOM_S:
                    return "hung"
                if not spared:  # too late for another engine: this one may yet come through
                    spared = True
                    run.fault(
                        "EngineHung",
                        "engine",
                        "no progress for too long; no time for a restart, so it is left to go on",
                    )
            if guard.paused_s > paused_s:
                run.fault(
                    "Paused", "machine", f"everything stood still for {guard.paused_s - paused_s:.1f} s"
                )
        time.sleep(POLL_S)
    return "exit"


def dump_stacks(run):
    """Ask a hung engine where it is; its answer goes into the report."""
    path = os.path.join(run.state, "stacks.txt")
    before = os.path.getsize(path) if os.path.exists(path) else 0
    os.kill(run.engine.pid, signal.SIGUSR1)
    until = time.monotonic() + 0.5
    while time.monotonic() < until and not (os.path.exists(path) and os.path.getsize(path) > before):
        time.sleep(0.02)
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            file.seek(before)
            run.stacks = file.read(20_000)


def attempt(run):
    """One life of the engine; true when there is nothing more to try."""
    run.attempts += 1
    remove_tree(os.path.join(run.state, "spill"))  # a dead engine's spill has no index any more, only weight
    remove(os.path.join(run.state, "heartbeat.json"))
    sweep_temporary(run)
    write_state(run, "run.json", json.dumps(describe_run(run)).encode())
    oom_kills, began = count_oom_kills(), run.clock.elapsed()
    try:
        run.engine = start(run, "engine", run.state)
    except OSError as error:
        run.fault("EngineStartFailed", "engine", error)
        return False
    why = watch(run)
    if why == "hung":
        dump_stacks(run)
    end_status = run.engine.poll()
    end_engine(run, FAREWELL_S if why == "signal" else 0.0)
    beat = read_json(os.path.join(run.state, "heartbeat.json"), {})
    # not the code alone: a library may end the process with 0
    if why == "exit" and beat.get("finished", end_status == 0):
        run.finished = True
        return True
    verdict = read_json(os.path.join(run.state, "verdict.json"), {})
    if end_status == EXIT_MEMORY:
        run.fault(
            verdict.get("code", "MemoryTooSmall"),
            "engine",
            verdict.get("message", "not enough memory for the engine"),
        )
        return True
    return report_death(run, why, end_status, began, count_oom_kills() > oom_kills)


def report_death(run, why, status, began, oom):
    """Record how the engine died; true when that is final (the deadline, or a signal to us)."""
    life_s = run.clock.elapsed() - began
    if why == "signal":
        run.fault(
            "Interrupted", "guard", f"{signal.Signals(run.signal).name}: the last published submission stays"
        )
    elif why == "deadline":
        run.fault("DeadlineKilled", "engine", "did not leave in time; the last published submission stays")
    elif why == "hung":
        run.fault(
            "EngineHung",
            "engine",
            f"no progress in attempt {run.attempts}; ended after {life_s:.1f} s, see guard.stacks",
        )
    else:
        name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        hint = " (out of memory: the kernel's OOM killer struck)" if oom else ""
        run.fault("EngineDied", "engine", f"{name}{hint} in attempt {run.attempts} after {life_s:.1f} s")
    run.deaths.append(
        {
            "attempt": run.attempts,
            "why": why,
            "status": status,
            "oom": oom,
            "life_s": round(life_s, 2),
            "scored_rows": count_gains(run)[0],
        }
    )
    return why in ("signal", "deadline")


def run_engine(run):
    """Attempts until one finishes, time is up, or restarts no longer bring anything."""
    marks, best, barren = run.marks(), (0, 0, 0), 0
    while not attempt(run):
        gains = count_gains(run)
        barren = (
            0
            if any(new > old for new, old in zip(gains, best, strict=True)) or run.attempts == 1
            else barren + 1
        )
        best = tuple(max(pair) for pair in zip(gains, best, strict=True))
        left_s = marks["stop_s"] - run.clock.elapsed()
        if run.signal or left_s < RESTART_ROOM_S or run.attempts > MAX_RESTARTS or barren >= MAX_BARREN:
            reason = (
                f"{max(0.0, left_s):.1f} s left"
                if left_s < RESTART_ROOM_S
                else "restarts brought nothing new"
            )
            run.fault("EngineGivenUp", "engine", f"after {run.attempts} attempts: {reason}")
            return
        say(f"restarting the engine: attempt {run.attempts + 1}, {left_s:.0f} s left")


# -- the end
# --------------------------------------------------------------------------------------------------------------


def sweep_temporary(run):
    """Remove half-written files of an engine or an earlier run from the working folder."""
    for name in os.listdir(run.working):
        if name.startswith(TEMPORARY) and name.endswith(".tmp"):
            remove(os.path.join(run.working, name))


def peak_bytes():
    """Largest resident size of this process so far."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")), 0)


def make_report(run):
    """The engine's report with the guard's section; a complete one of our own when the engine left none."""
    rows = len(run.sample["ids"]) if run.sample else 0
    report = read_json(os.path.join(run.working, "report.json"), None)
    if not isinstance(report, dict):
        beat = read_json(os.path.join(run.state, "heartbeat.json"), {}) if run.state else {}
        scored = min(rows, int(beat.get("scored_rows") or 0))
        report = {
            "rows": rows,
            "prior_rows": rows - scored,
            "partial_rows": 0,
            "members": [],
            "store": {},
            "faults": [],
            "fault_counts": {},
            "peak_ram_bytes": 0,
            "limits": {**run.profile, "seconds": run.budget_s()},
            "random_weights": bool((run.manifest or {}).get("random_weights")),
        }
    counts = report.setdefault("fault_counts", {})
    for fault in run.faults:
        report.setdefault("faults", []).append(fault)
        counts[fault["code"]] = counts.get(fault["code"], 0) + 1
    report["wall_s"] = round(run.clock.elapsed(), 3)
    report["guard"] = {
        "prior_s": run.prior_s,
        "attempts": run.attempts,
        "deaths": run.deaths,
        "faults": run.faults,
        "finished": run.finished,
        "pinned": bool(run.constant),
        "bundle": run.bundle,
        "offset_s": run.clock.offset_s,
        "peak_bytes": peak_bytes(),
        "sample": run.sample and run.sample["path"],
        "stacks": run.stacks,
        "signal": run.signal,
    }
    return report


def write_report(run, report):
    """Put report.json in place; a full disk costs the report, not the run."""
    temporary = os.path.join(run.working, f".report.json.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="ascii") as file:
            json.dump(report, file, indent=1)
        os.replace(temporary, os.path.join(run.working, "report.json"))
    except OSError as error:
        remove(temporary)
        run.fault("OutputUnwritable", "report.json", error)


def is_degraded(report):
    return bool(
        report.get("faults")
        or report.get("fault_counts")
        or report.get("prior_rows")
        or report.get("partial_rows")
    )


def print_banner(run, report, code):
    """The last lines of the log: what is in the file, and loudly what is not."""
    rows, prior = report.get("rows", 0), report.get("prior_rows", 0)
    say(
        f"submission.csv: {rows} rows, {rows - prior} predicted, {prior} prior | {run.clock.elapsed():.1f} s of "
        f"{run.budget_s():.0f} s | exit {code}"
    )
    if report.get("random_weights"):
        say("RANDOM WEIGHTS: this bundle was built to be timed; its scores mean nothing")
    if not run.constant:
        say(
            "UNPINNED: the manifest's sha256 was not compiled in; this is the repository's file, not a pushed one"
        )
    if is_degraded(report):
        counts = ", ".join(
            f"{name} x{count}" for name, count in sorted(report.get("fault_counts", {}).items())
        )
        say(
            f"DEGRADED: {prior} prior rows, {report.get('partial_rows', 0)} partial rows"
            + (f" | {counts}" if counts else "")
        )


def finish(run):
    """Everything after the engine; gives the exit code."""
    end_engine(run, 0.0)
    end_children()
    valid = ensure_valid(run)
    sweep_temporary(run)
    report = make_report(run)
    code = 2 if not valid else 1 if run.arguments.strict and is_degraded(report) else 0
    report["guard"]["exit_code"] = code
    write_report(run, report)
    remove_state(run)
    print_banner(run, report, code)
    return code


def remove_tree(folder):
    """Remove a private folder, as far as it goes: what stays is swept by the next run."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def remove_state(run):
    if run.state:
        remove_tree(run.state)


# -- the whole run
# --------------------------------------------------------------------------------------------------------


def set_folders(run):
    """Input and working folder, as absolute paths. Raises Refusal when the output cannot be there."""
    a = run.arguments
    default_input = KAGGLE_INPUT if os.path.isdir(KAGGLE_INPUT) else os.path.join("..", "input")
    run.input = os.path.abspath(a.input or default_input)
    run.working = os.path.abspath(a.working or (KAGGLE_WORKING if os.path.isdir(KAGGLE_WORKING) else "."))
    run.clips = a.clips and os.path.abspath(a.clips)
    try:
        os.makedirs(run.working, exist_ok=True)
        remove(os.path.join(run.working, "report.json"))
        remove(os.path.join(run.working, "report.html"))
        sweep_temporary(run)
    except OSError as error:
        raise Refusal("OutputUnwritable", f"{run.working}: {error}; give --working a folder that takes files") from error


def find_offset(budget_s, proc="/proc"):
    """Seconds the oldest ancestor of this process has lived: on Kaggle the session's start-up, which counts.

    An ancestor older than a quarter of the budget is no start-up but somebody's own session: 0.
    """
    try:
        with open(os.path.join(proc, "uptime"), encoding="ascii") as file:
            uptime = float(file.read().split()[0])
        oldest, pid = 0.0, "self"
        while pid != "0":
            with open(os.path.join(proc, pid, "stat"), "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            oldest = max(oldest, uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
            pid = fields[1].decode()
    except (OSError, ValueError, IndexError):
        return 0.0
    return oldest if oldest <= 0.25 * budget_s else 0.0


def set_limits(run):
    """The limits of --limits, --seconds, --ram and --disk over the profile. Raises Refusal for an unknown
    profile.
    """
    a, manifest = run.arguments, run.manifest or {}
    profiles = manifest.get("profiles") or {}
    wanted = a.limits or (None if run.constant else manifest.get("ensemble", {}).get("profile"))
    if wanted in profiles:
        run.profile = {**profiles[wanted], "name": wanted}
    elif a.limits and a.limits != run.profile["name"]:
        raise Refusal(
            "LimitError", f"--limits {wanted}: unknown; choose one of: {', '.join(sorted(profiles))}"
        )
    run.profile["ram_bytes"] = run.profile["ram_bytes"] if a.ram is None else a.ram
    run.profile["disk_bytes"] = run.profile["disk_bytes"] if a.disk is None else a.disk


def catch_signals(run, within_s):
    """TERM, INT and HUP end the run in order; if that takes too long, or the exit mark comes, the alarm ends
    it at once.
    """
    def note(number, _frame):
        if not run.signal:
            run.signal = number
            signal.setitimer(signal.ITIMER_REAL, within_s)

    def abandon(_number, _frame):
        if run.engine is not None:
            signal_group(run.engine, signal.SIGKILL)
        os._exit(2 if run.prior_s is None else 1 if run.arguments.strict else 0)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, note)
    signal.signal(signal.SIGALRM, abandon)


def set_alarm(run):
    """The last resort at the exit mark: whatever the guard is stuck in, the process ends with the file it
    has.
    """
    if not run.signal:
        left_s = run.marks()["exit_s"] - run.clock.elapsed()
        signal.setitimer(signal.ITIMER_REAL, max(left_s, 10.0 if run.marks()["prior_only"] else 0.5))


def settle_sample(run):
    """The sample or one made from the clips, and its prior submission. Raises Refusal SampleMissing."""
    run.sample = run.sample or make_sample(run)
    if run.sample is None:
        raise Refusal(
            "SampleMissing",
            f"no sample_submission.csv below {run.input} and nothing to make one from (clips, and a "
            "bundle that names the classes; rows of fixed windows always need the sample); give --input",
        )
    publish_prior(run)


def trust_bundle(run):
    """Verified code; with an unpinned kernel the prior is now that of the manifest. Raises Fault and
    Refusal.
    """
    try:
        code = open_bundle(run)
    except Fault:
        if run.sample is None:
            settle_sample(run)
        raise
    set_limits(run)
    set_alarm(run)
    if run.sample is None or not run.constant:
        settle_sample(run)
    return code


def serve(run):
    """From the prior to the engine's end; every fault here leaves the last valid submission."""
    code = trust_bundle(run)
    if run.budget_s() < LEAST_BUDGET_S or run.clock.elapsed() >= run.marks()["stop_s"]:
        raise Fault(
            "BudgetTooSmall",
            "clock",
            f"{run.budget_s():g} s with {run.clock.elapsed():.1f} s gone leave no time for "
            "more than the prior; give --seconds",
        )
    adopt_orphans()
    make_state(run)
    try:
        prepare_state(run, code)
        run_engine(run)
    except OSError as error:
        raise Fault(
            "StoreError", run.state, f"the private folder failed ({error}); free the disk or set TMPDIR"
        ) from error


def execute(run):
    """The whole run; gives the exit code."""
    catch_signals(run, EXIT_S)
    try:
        set_folders(run)
        run.clock.offset_s = run.arguments.offset or 0.0
        if run.arguments.offset is None and run.input == KAGGLE_INPUT:
            run.clock.offset_s = find_offset(run.budget_s())
        set_alarm(run)
        run.sample = find_sample(run)
        if run.sample is not None:
            publish_prior(run)
        try:
            serve(run)
        except Fault as fault:
            run.fault(fault.code, fault.where, fault)
        except Refusal:
            raise
        except Exception as error:
            # the guard's own defect must not cost the submission; it is named like any fault
            import traceback

            run.fault("GuardError", "guard", f"{type(error).__name__}: {error}")
            run.stacks = traceback.format_exc()
        if run.sample is None:
            settle_sample(run)
        return finish(run)
    except Refusal as refusal:
        print(f"[hourglass] {refusal.code}: {refusal}", file=sys.stderr, flush=True)
        remove_state(run)
        return 2


def rehearse(arguments):
    """The rehearsal out of the bundle's verified code; gives its exit code."""
    known, _ = make_parser().parse_known_args([a for a in arguments if a not in ("-h", "--help")])
    run = Run(known)
    catch_signals(run, 2 * REHEARSAL_FAREWELL_S)
    try:
        set_folders_for_rehearsal(run)
        code = open_bundle(run)
        make_state(run)
        for name, data in code.items():
            write_state(run, os.path.join("code", name), data)
        kept = [a for a in arguments if a != "--rehearse"]
        run.engine = start(run, "rehearsal", os.path.abspath(__file__), *absolute_paths(kept))
        while run.engine.poll() is None and not run.signal:
            time.sleep(POLL_S)
        status = run.engine.poll()
        end_engine(run, REHEARSAL_FAREWELL_S)
        return 1 if status is None else status if status >= 0 else 1
    except Fault as fault:
        print(f"[hourglass] {fault.code} {fault.where}: {fault}", file=sys.stderr, flush=True)
        return 2
    finally:
        remove_state(run)


def set_folders_for_rehearsal(run):
    run.input = os.path.abspath(run.arguments.input or ".")
    run.working = os.path.abspath(run.arguments.working or ".")


def absolute_paths(arguments):
    """The arguments with existing or future paths made absolute: the rehearsal runs in a folder of its
    own.
    """
    out, folder = [], False
    for text in arguments:
        name, equals, value = text.partition("=")
        if folder and not text.startswith("--"):
            text = os.path.abspath(text)
        elif equals and name in PATH_ARGUMENTS:
            text = f"{name}={os.path.abspath(value)}"
        folder = name in PATH_ARGUMENTS and not equals
        out.append(text)
    return out


PATH_ARGUMENTS = ("--bundle", "--input", "--clips", "--working", "--labels")


def open_streams():
    """Standard streams that take every text; closed ones lead nowhere, so that no file of ours gets their
    numbers.
    """
    handle = os.open(os.devnull, os.O_RDWR)
    while handle <= 2:
        os.set_inheritable(handle, True)
        handle = os.dup(handle)
    os.close(handle)
    sys.stdout, sys.stderr = sys.stdout or open(os.devnull, "w"), sys.stderr or open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def main(arguments):
    """Parse, run, end the process without waiting for anything that may be stuck."""
    if not sys.platform.startswith("linux"):
        print(
            f"[hourglass] this kernel and its rehearsal run on Linux only, as Kaggle does; here is {sys.platform}: use a Linux "
            "machine, WSL or a container",
            file=sys.stderr,
        )
        sys.exit(2)
    open_streams()
    code = (
        rehearse(arguments)
        if "--rehearse" in arguments
        else execute(Run(make_parser().parse_args(arguments)))
    )
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads any more
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
