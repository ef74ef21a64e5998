"""The kernel: the one file that is pushed to Kaggle. It guards the engine and always leaves a valid
submission.csv.

    python infer_kernel.py --bundle out/bundle --input IN --working OUT [--limits fat2019] [--seconds N]
    [--strict]
    python infer_kernel.py --rehearse --bundle out/bundle --clips DIR       (everything after it goes to
    kernel.rehearsal.command)

Owns the first second (prior submission), the trust in the bundle (manifest and wheel, by sha256), the clock
and the life of the engine process. Standard library only: numpy and torch are the engine's, and a machine
that cannot load them still gets its submission. Does not decode, predict or blend. After the prior only the
engine publishes. It is long because Kaggle takes one file. It reads from the top: after the constants main()
and execute() tell the story, the parts follow in the order in which they happen, small helpers come last.

`build_dataset.py` replaces the one line `CONSTANT = None` below by `CONSTANT = json.loads('...')`. Keys:
manifest_sha256, bundle, classes, prior, profile {name, seconds, ram_bytes, disk_bytes, cores, gpu}, output
{format, label_column, labels}, device, slug. While it is None the file is UNPINNED: it trusts the manifest it
is given by --bundle.

It runs in two processes. The watcher knows the clock and its child, the guard does everything else: a read
from a mount that stops answering can hold a process so that not even SIGKILL ends it.

Exit codes: 0 a valid submission is there; 1 with --strict, when anything at all was degraded; 2 no sample and
no clips, output unwritable, or bad arguments.
"""
import sys

if __name__ == "__main__" and "__file__" in globals():
    # A json.py beside this file must not be imported for the library's. sys is built in, all else is later:
    # `from __future__` would be looked for there, too, hence the quoted annotations.
    OWN_FOLDERS = ("", "" if sys.flags.safe_path else sys.path[0], __file__.rpartition("/")[0])
    sys.path[:] = [folder for folder in sys.path if folder not in OWN_FOLDERS]
    if "ipykernel" not in sys.modules:  # what ends a run waits until there is one: catch_signals hears it
        import _signal

        _signal.pthread_sigmask(_signal.SIG_BLOCK, (1, 2, 3, 15))

import time  # noqa: E402


def read_boot_clock() -> float:
    """Seconds since the machine's start, suspended ones too. Where there is no such clock, main() refuses."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


STARTED = time.monotonic()
STARTED_BOOT = read_boot_clock()

# The clock starts before anything else is imported
import argparse  # noqa: E402
import csv  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import signal  # noqa: E402

TYPE_CHECKING = False  # what follows is for mypy alone: these imports would cost the start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from gzip import GzipFile
    from typing import IO, Any, NoReturn

CONSTANT = None  # filled by build_dataset.py

KAGGLE_INPUT = "/kaggle/input"
KAGGLE_WORKING = "/kaggle/working"
SAMPLE_NAMES = ("sample_submission.csv", "sample_submission.csv.gz", "sample_submission.csv.zip",
                "sample_submission.zip", "samplesubmission.csv")
AUDIO_NAMES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".opus", ".m4a", ".au", ".w64")
# The same figures as kernel.limits.PROFILES["fat2019"]
DEFAULT_PROFILE = {
    "name": "fat2019",
    "seconds": 3600.0,
    "ram_bytes": 14 * 10**9,
    "disk_bytes": 5 * 10**9,
    "cores": 2,
    "gpu": True,
}
# Units of a size on the command line, the same as kernel.units.UNITS
UNITS = {"": 1, "b": 1}
for power, letter in enumerate("kmgt", 1):
    UNITS |= {letter: 1000**power, f"{letter}b": 1000**power, f"{letter}ib": 1024**power}
# Smallest value written; the engine's submissions have the same (kernel.scores.submission)
LEAST = 1e-30
# Nothing larger is read: it is none of ours
MANIFEST_BYTES = 1 << 20
WHEEL_BYTES = 64 << 20
SAMPLE_BYTES = 1 << 30
SAMPLE_PACKED_BYTES = 1 << 26
SAMPLE_ROWS = 5_000_000
SAMPLE_LINE = 1 << 24  # characters; 10,000 classes with long names are a tenth of it
# Bounds of a search, so that a folder of 50,000 clips costs nothing
SEARCH_S = 3.0
MAX_FOLDERS = 3000
FEW_FOLDERS = 100  # of these the plain places are looked at however long the others took
MAX_ENTRIES = 2000
MOST_PATIENCE_S = 60.0  # a mount that has not answered by then hangs; in a short run a tenth of its time
LEAST_BYTES_PER_S = 5e6  # of a disk that is slow but answers
LEAST_PATIENCE_S = 0.2  # where many hang
SAMPLE_SHARE = 0.25  # of the time that is left, for the one thing nothing can be done without
SAMPLE_DEPTH = 3  # /kaggle/input/competitions/SLUG
BUNDLE_DEPTH = 8  # /kaggle/input/models/OWNER/MODEL/FRAMEWORK/VARIATION/VERSION/x
MOST_SECONDS = 1e8  # a longer time is a slip, and more than the system's timers take
LEAST_BUDGET_S = 3.0  # below it only the prior
RESTART_ROOM_S = 3.0  # an engine needs about this long before it scores its first row
DRY_RUN_SHARE = 0.5  # of the time that is left
MAX_RESTARTS = 20
MAX_BARREN = 2  # a culprit is known after two crashes, so one barren restart proves nothing
EXIT_VERDICT = 3  # the engine names what a restart would meet again
START_FORECAST_S = 30.0  # importing torch from a cold disk
POLL_S = 0.05
HEARTBEAT_S = 0.3
BUSY_FACTOR = 3.0  # an engine that computes without a sign of life gets so much more time, at most
PAUSE_S = 2.0  # after such a gap between two looks at the heartbeat the whole machine stood still
FAREWELL_S = 1.0  # what the engine gets to publish after a signal to the guard
EXIT_S = 1.8  # what the whole exit may take after a signal
WATCHED_EXIT_S = 1.9  # the same for a guard that does not answer
REAP_S = 0.5  # what a process may take to vanish that has said its last word, or was killed
FIRST_WORD_S = 30.0  # a guard that has not even read its arguments by then does not answer
MOST_UNREAD = 4 << 20  # bytes of output that are kept for a reader who does not read
GUARD_WORD = "--as-guard"  # leads the arguments of a guard that was spawned
REHEARSAL_FAREWELL_S = 4.0  # a rehearsal ends a guard of its own first
# .NAME.*.tmp in the working folder are ours
TEMPORARY = (".submission.csv.", ".report.json.", ".report.html.")

# What the engine process runs. It dies with the guard, whatever it is doing: the end of a pipe that only the
# guard holds makes Linux send SIGKILL to the whole group (no thread of ours has to run for it), and the
# parent-death signal stands behind it.
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
elif entry == "dry-run":
    from kernel.rehearsal.dry_run import main
    main(*arguments)
else:
    from kernel.rehearsal.command import main
    sys.exit(main(arguments[1:], arguments[0]))
"""


# -- the whole run -------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Parse, run, end the process without waiting for anything that may be stuck."""
    if not sys.platform.startswith("linux"):
        print("[hourglass] this kernel and its rehearsal run on Linux only, as Kaggle does; here is "
              f"{sys.platform}: use a Linux machine, WSL or a container", file=sys.stderr)
        sys.exit(2)
    open_streams()
    hear_of_children()
    if arguments[:1] == [GUARD_WORD]:
        handle, lifeline, path = read_line(arguments[1:2])
        globals().setdefault("__file__", path)
        guard(arguments[2:], Line(handle, lifeline))
    code = watch_over(arguments)
    if not is_notebook():
        leave(code)
    if code:
        raise SystemExit(code)


def leave(code: int) -> "NoReturn":
    """End the process now."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads any more
    os._exit(code)


def guard(arguments: list[str], line: "Line") -> "NoReturn":
    """The guard's process, or the rehearsal's."""
    if "--rehearse" in arguments:
        code = rehearse(arguments, line)
        line.tell("done", code)
        leave(code)
    given = make_parser().parse_args(arguments)
    try:
        code = execute(Run(given, line))
    except Refusal as refusal:
        code = refuse(refusal)
    line.tell("done", code)
    leave(code)


def execute(run: "Run") -> int:
    """The whole run; gives the exit code."""
    catch_signals(run, EXIT_S)
    set_alarm(run)
    try:
        if run.line.handle < 0:
            run.fault("WatcherMissing", "guard",
                "no second process to be had: a mount that stops answering could hold this run for ever; "
                "allow one more process")
        run.line.tell("doing", f"preparing {run.working}")
        prepare_working(run)
        if run.arguments.offset is None and run.input == KAGGLE_INPUT:
            run.offset_s = find_offset(run.budget_s())
        set_alarm(run)
        run.line.tell("doing", f"looking for a sample submission below {run.input}")
        sample = find_sample(run, lambda nearest: publish_prior(run, nearest))
        if sample is not None:
            if run.prior is None or run.prior.sample is not sample:
                publish_prior(run, sample)
            report_columns(run)
        run.line.hold()
        try:
            serve(run)
        except Refusal:
            raise
        except Fault as fault:
            run.fault(fault.code, fault.where, fault)
        except Exception as error:
            # The guard's own defect must not cost the submission; it is named like any fault
            import traceback

            run.fault("GuardError", "guard", f"{type(error).__name__}: {error}")
            run.stacks = traceback.format_exc()
        return finish(run, run.prior or settle_sample(run))
    except Refusal as refusal:
        remove_tree(run.state)
        return refuse(refusal)


def refuse(fault: "Fault") -> int:
    """Exit code 2, and why."""
    try:
        print(printable(f"[hourglass] {fault.code} {fault.where}: {fault}"), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass  # nobody reads
    return 2


def absolute(path: str) -> str:
    """The path from the root. Raises Refusal when it is relative and the current folder is gone."""
    try:
        return os.path.abspath(path)
    except OSError as error:
        raise Refusal("FolderGone", path, f"the current folder is gone ({error}); go to another") from error


def serve(run: "Run") -> None:
    """From the prior to the engine's end; every fault here leaves the last valid submission."""
    run.line.tell("doing", f"reading the bundle {run.arguments.bundle or 'below ' + run.input}")
    code = open_bundle(run)
    set_limits(run)
    set_alarm(run)
    # An unpinned kernel learns the classes and their prior only now
    prior = run.prior if run.prior and run.constant else settle_sample(run)
    if run.budget_s() < LEAST_BUDGET_S or run.elapsed() >= run.marks().stop_s:
        raise Fault("BudgetTooSmall", "clock",
            f"{run.budget_s():g} s with {run.elapsed():.1f} s gone leave no time for more than the prior; "
            "give --seconds")
    adopt_orphans(run.line.handle >= 0)
    while True:
        run.line.tell("doing", "making a private folder")
        make_state(run, code, prior.sample)
        try:
            run.line.tell("doing", "watching the engine")
            run_engine(run, prior.sample)
            safely(run, try_clips, run)
            return
        except OSError as error:
            end_engine(run, 0.0)
            run.fault("StoreError", run.state, f"the private folder failed ({error}); another one is tried")
            run.refused.append(os.path.dirname(run.state))


# -- the watcher ---------------------------------------------------------------------------------------------


def watch_over(arguments: list[str]) -> int:
    """Exit code of a guard in a process of its own: forked, but in a notebook spawned, for forking a process
    that has threads is not safe.
    """
    notebook = is_notebook()
    if notebook and "__file__" not in globals():
        arguments = []  # a cell has none: the words are those of the notebook's own process
    try:
        watcher = Watcher(notebook, "--rehearse" in arguments)
        pid = watcher.spawn(arguments) if notebook else os.fork()
    except OSError as error:
        if notebook:  # somebody's process: a guard in it would end it
            return refuse(Refusal("WatcherMissing", "notebook", f"no process of its own to be had ({error}); "
                                  "run infer_kernel.py as a file, e.g. !python infer_kernel.py"))
        guard(arguments, Line())
    if pid == 0:
        guard(arguments, watcher.become_guard())
    return watcher.wait(pid)


def read_line(words: list[str]) -> tuple[int, int, str]:
    """(handle, lifeline, path of this file) of a guard that was spawned; ends the process when somebody else
    has typed its word.
    """
    match = re.fullmatch(r"(\d{1,9}),(\d{1,9}),(.*)", "".join(words), re.DOTALL)
    try:
        handles = [int(match[1]), int(match[2])] if match else []
        if match and all(os.fstat(handle).st_mode & 0o170000 == 0o010000 for handle in handles):
            return handles[0], handles[1], match[3]
    except OSError:
        pass  # no such descriptor
    leave(refuse(Refusal("BadArgument", GUARD_WORD, "is a word between two processes of ours; leave it out")))


def find_source() -> str:
    """This very source, or what runs it: after exec(open(...).read()) only its compiled form is to be had.

    Raises  OSError when neither is
    """
    import linecache
    import marshal

    source = "".join(linecache.getlines(main.__code__.co_filename))
    frame = None if "def main(" in source else sys._getframe()
    while frame is not None:
        if main.__code__ in frame.f_code.co_consts:
            return f"import marshal\nexec(marshal.loads({marshal.dumps(frame.f_code)!r}))\n"
        frame = frame.f_back
    if not source:
        raise OSError("the source is nowhere")
    return source


def is_notebook() -> bool:
    """True where this file runs inside somebody's process: in a cell, or beside threads."""
    return "ipykernel" in sys.modules or len(sys._current_frames()) > 1


class Line:
    """The guard's line to its watcher. Without a handle it leads nowhere: there is no watcher."""

    def __init__(self, handle: int = -1, lifeline: int = -1) -> None:
        self.handle = handle
        self.lifeline = lifeline
        self.doing = "starting"

    def tell(self, word: str, value: object) -> None:
        """Tell the watcher one thing it must know: the seconds `left` to the guard, the exit code that holds
        should the guard stop answering, the `engine`'s group, what it is `doing`, its exit code when it is
        `done`.
        """
        if word == "doing":
            self.doing = str(value)
        if self.handle >= 0:
            try:
                os.write(self.handle, f"{word} {printable(str(value))}\n".encode("utf-8", "replace"))
            except OSError:
                pass  # the watcher is dead, and this process is about to be

    def hold(self) -> None:
        """From now on die with the watcher: the end of a pipe that it alone holds makes Linux send SIGKILL.

        Not earlier, because the imports cost a millisecond of the prior's time.
        """
        if self.lifeline < 0:
            return
        import fcntl
        import select

        try:
            fcntl.fcntl(self.lifeline, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(self.lifeline, 10, signal.SIGKILL)  # F_SETSIG
            fcntl.fcntl(self.lifeline, fcntl.F_SETFL, os.O_ASYNC)
        except OSError:
            pass  # a sandbox without it: the parent-death signal comes later
        if select.select([self.lifeline], [], [], 0)[0]:
            os._exit(1)  # the watcher died before this line


class Relay:
    """One stream of the guard on its way to ours, by a pipe, or by a terminal of its own where ours is one.

    Whoever waits for the end of our output must not wait for a guard that cannot be killed. What is not read
    is kept, up to 4 MB, so that a reader who pauses holds up nobody.

    sink  our stream; None in a notebook, where text is printed
    """

    def __init__(self, stream: int, notebook: bool) -> None:
        self.streams = [stream]
        self.sink = None if notebook else stream
        self.pending = bytearray()
        self.lost = 0
        terminal = not notebook and os.isatty(stream)
        self.source, self.mouth = open_terminal(stream) if terminal else os.pipe()
        os.set_blocking(self.source, False)

    def take(self) -> None:
        """Read what the guard has written."""
        try:
            self.pending += os.read(self.source, 1 << 16)
        except OSError:
            return  # nothing yet, or the far end of a terminal is closed
        excess = len(self.pending) - MOST_UNREAD
        if excess > 0:
            del self.pending[:excess]
            self.lost += excess

    def give(self) -> None:
        """Write what fits without waiting: a pipe that is ready takes a page."""
        if self.lost:
            self.pending[:0] = f"[hourglass] {self.lost} bytes of output were not read in time\n".encode()
            self.lost = 0
        if self.sink is None:
            stream = sys.stdout if 1 in self.streams else sys.stderr
            stream.write(self.pending.decode("utf-8", "replace"))
            self.pending.clear()
            return
        try:
            del self.pending[:os.write(self.sink, self.pending[:4096])]
        except BlockingIOError:
            return
        except OSError:
            self.pending.clear()  # nobody reads any more


def open_terminal(stream: int) -> tuple[int, int]:
    """(our end, the guard's end) of a terminal of the size of `stream`; a pipe where there is none to be
    had.
    """
    import fcntl
    import termios

    try:
        ours, theirs = os.openpty()
    except OSError:
        return os.pipe()
    modes = termios.tcgetattr(theirs)
    modes[1] &= ~termios.OPOST  # line ends are the outer terminal's
    modes[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, fcntl.ioctl(stream, termios.TIOCGWINSZ, bytes(8)))
    return ours, theirs


def open_relays(notebook: bool, rehearsal: bool) -> list[Relay]:
    """Relays for those streams whose end somebody may be waiting for: not for a plain file. A rehearsal has
    them in any case: it prints much, and a stream that takes nothing must not end it.
    """
    relays: list[Relay] = []
    seen: list[tuple[int, int, Relay]] = []
    for stream in (1, 2):
        facts = os.fstat(stream)
        plain = not notebook and not rehearsal
        if plain and not os.isatty(stream) and facts.st_mode & 0o170000 not in (0o010000, 0o140000):
            continue  # no pipe, socket or terminal
        twin = [relay for device, number, relay in seen if (device, number) == (facts.st_dev, facts.st_ino)]
        if twin:  # one relay for both: their order stays
            twin[0].streams.append(stream)
            continue
        try:
            relays.append(Relay(stream, notebook))
        except OSError:
            for relay in relays:
                os.close(relay.source)
                os.close(relay.mouth)
            raise
        seen.append((facts.st_dev, facts.st_ino, relays[-1]))
    return relays


class Watcher:
    """Waits for the guard and ends in time, whatever that is stuck in.

    It opens no file: it knows the clock, its child, and what that tells it. The guard dies with it.
    """

    def __init__(self, notebook: bool, rehearsal: bool) -> None:
        self.notebook = notebook
        self.rehearsal = rehearsal
        self.lifeline, self.held = os.pipe()
        try:
            self.control, self.line = os.pipe()
            try:
                self.relays = open_relays(notebook, rehearsal)
            except OSError:
                os.close(self.control)
                os.close(self.line)
                raise
        except OSError:  # where descriptors are short the guard alone needs them
            os.close(self.lifeline)
            os.close(self.held)
            raise
        self.pid = 0
        self.status: int | None = None  # of the guard, once it is gone
        self.unread = b""
        self.hung_up = False
        self.until_s = FIRST_WORD_S  # by elapsed_s
        self.code = 2
        self.engine = 0
        self.doing = "starting"
        self.done: int | None = None  # the guard's exit code by its own account,
        self.reap_s = math.inf  # and how long it is waited for after that

    def become_guard(self) -> Line:
        """In the forked child: its streams lead to the relays, and it dies with the watcher."""
        for relay in self.relays:
            for stream in relay.streams:
                os.dup2(relay.mouth, stream)
            os.close(relay.mouth)
            os.close(relay.source)
        os.close(self.held)
        os.close(self.control)
        return Line(self.line, self.lifeline)

    def spawn(self, arguments: list[str]) -> int:
        """Process id of a guard that reads this very source from its standard input. Raises OSError."""
        import subprocess

        source = find_source()
        here = os.path.abspath(globals().get("__file__", ""))
        ends = {stream: relay.mouth for relay in self.relays for stream in relay.streams}
        process = subprocess.Popen(
            [sys.executable, "-I", "-u", "-", GUARD_WORD, f"{self.line},{self.lifeline},{here}", *arguments],
            stdin=subprocess.PIPE,
            stdout=ends[1],
            stderr=ends[2],
            pass_fds=(self.lifeline, self.line),
        )
        try:
            with process.stdin as file:  # type: ignore[union-attr]
                file.write(source.encode("utf-8", "surrogatepass"))
        except OSError:
            pass  # it has ended already: its exit code tells
        process.returncode = 0  # the watcher reaps it
        return process.pid

    def wait(self, pid: int) -> int:
        """Exit code of the run: the guard's own, or, when that stops answering or is killed, the one that
        holds for what lies there.
        """
        self.pid = pid
        for handle in (self.lifeline, self.line, *(relay.mouth for relay in self.relays)):
            os.close(handle)
        before = self.catch_signals()
        try:
            while not self.has_ended():
                self.turn()
                if self.elapsed_s() >= self.until_s:
                    self.abandon()
                    break
            self.drain()
        finally:
            for number, handler in before.items() if self.notebook else ():
                signal.signal(number, handler)
            for handle in (self.held, self.control, *(relay.source for relay in self.relays)):
                os.close(handle)
        if self.status is None or os.WIFSIGNALED(self.status):
            return self.code if self.done is None else self.done
        return os.WEXITSTATUS(self.status)

    def elapsed_s(self) -> float:
        return max(time.monotonic() - STARTED, read_boot_clock() - STARTED_BOOT)

    def catch_signals(self) -> dict[int, "Any"]:
        """Hand TERM, INT, QUIT and HUP to the guard, which has as long as ever to end in order."""
        def hand_on(number: int, _frame: object) -> None:
            within_s = 2 * REHEARSAL_FAREWELL_S + 1.0 if self.rehearsal else WATCHED_EXIT_S
            self.until_s = min(self.until_s, self.elapsed_s() + within_s)
            if self.status is None:
                os.kill(self.pid, number)

        before: dict[int, Any] = {}
        for number in find_endings():
            try:
                before[number] = signal.signal(number, hand_on)
            except ValueError:
                pass  # a notebook's second thread: signals are not its business
        signal.pthread_sigmask(signal.SIG_UNBLOCK, find_endings())
        return before

    def has_ended(self) -> bool:
        """True once the guard is gone, or has said its last word: a thread of it may be unable to end."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        self.status = status if pid else None
        if self.status is not None and os.WIFSIGNALED(self.status) and self.done is None:
            number = os.WTERMSIG(self.status)
            self.say(f"GuardKilled guard: killed by signal {number} while {self.doing}: {self.outcome()}")
        return self.status is not None or self.elapsed_s() > self.reap_s

    def turn(self) -> None:
        """Take in and pass on what there is, for at most a tenth of a second."""
        import select

        poll = select.poll()
        if not self.hung_up:
            poll.register(self.control, select.POLLIN)
        for relay in self.relays:
            poll.register(relay.source, select.POLLIN)
            if relay.pending and relay.sink is not None:
                poll.register(relay.sink, select.POLLOUT)
        # A guard that has hung up is about to be gone
        ready = {handle for handle, _ in poll.poll(2 if self.hung_up else 100)}
        if self.control in ready:
            self.listen()
        for relay in self.relays:
            if relay.source in ready:
                relay.take()
            if relay.pending and (relay.sink is None or relay.sink in ready):
                relay.give()

    def listen(self) -> None:
        """Take in what the guard tells."""
        text = os.read(self.control, 1 << 16)
        self.hung_up = not text
        *lines, self.unread = (self.unread + text).split(b"\n")
        for line in lines:
            word, _, value = line.decode("utf-8", "replace").partition(" ")
            if word == "left":
                self.until_s = self.elapsed_s() + float(value)
            elif word == "doing":
                self.doing = value
            elif word in ("code", "engine", "done"):
                setattr(self, word, int(value))
                if word == "done":
                    self.reap_s = self.elapsed_s() + REAP_S

    def abandon(self) -> None:
        """The guard does not answer: kill it and its engine as far as that goes, and say what holds."""
        for kill, pid in ((os.killpg, self.engine), (os.kill, self.pid)):
            try:
                if pid:
                    kill(pid, signal.SIGKILL)
            except OSError:
                pass  # already gone
        if self.done is None:
            self.say(f"GuardHung guard: no answer while {self.doing}: {self.outcome()}")
        self.until_s = self.elapsed_s() + REAP_S

    def outcome(self) -> str:
        """What the caller finds, in words."""
        if self.rehearsal:
            return "the rehearsal has no verdict; copy what does not answer to a disk of this machine"
        if self.code == 2:
            return "no submission.csv could be written; detach what does not answer, or give other folders"
        return f"submission.csv stays as it was last published, the report may be missing | exit {self.code}"

    def say(self, text: str) -> None:
        """One line on stdout, behind everything that the guard has written."""
        line = f"[hourglass] {printable(text)}\n".encode("utf-8", "backslashreplace")
        for relay in self.relays:
            if 1 in relay.streams:
                relay.take()
                relay.pending += line
                return
        os.write(1, line)

    def drain(self) -> None:
        """Pass on the guard's last words, as long as somebody reads and there is time."""
        for relay in self.relays:
            relay.take()
        while any(relay.pending for relay in self.relays) and self.elapsed_s() < self.until_s:
            self.hung_up = True
            self.turn()


# -- what a run knows ----------------------------------------------------------------------------------------


class Fault(Exception):
    """A fault that leaves the prior submission; report.json names its `code` and `where` it was met."""

    def __init__(self, code: str, where: str, message: object) -> None:
        super().__init__(message)
        self.code = code
        self.where = where


class Refusal(Fault):
    """One of the few faults that end with exit code 2."""


class Sample:
    """The sample submission as raw text; `cells` is what its first row holds beside the id."""

    def __init__(self, path: str | None, header: list[str], ids: list[str], cells: list[str]) -> None:
        self.path = path
        self.header = header
        self.ids = ids
        self.cells = cells


class Marks:
    """When what happens, in seconds since the start; the same figures as kernel.limits.marks."""

    def __init__(self, budget_s: float) -> None:
        self.budget_s = max(0.0, budget_s)
        margin = max(0.05 * self.budget_s, min(180.0, 0.25 * self.budget_s))
        self.stop_s = self.budget_s - margin
        self.term_s = self.stop_s + margin / 4
        self.kill_s = self.term_s + min(5.0, 0.03 * self.budget_s)
        self.exit_s = self.budget_s - min(90.0, 0.10 * self.budget_s)
        self.hung_least_s = 30.0
        self.hung_factor = 4.0
        self.hung_most_s = 0.25 * self.budget_s
        self.prior_only = self.budget_s < LEAST_BUDGET_S


class Run:
    """What this run knows so far; beside each part that changes stands who writes it."""

    def __init__(self, arguments: "argparse.Namespace", line: "Line | None" = None) -> None:
        self.arguments = arguments
        self.line = line or Line()
        self.constant: dict[str, Any] = CONSTANT or {}
        try:
            scratch = os.environ.get("TMPDIR")
            if scratch:  # the engine has another current folder
                os.environ["TMPDIR"] = os.path.abspath(scratch)
        except OSError:
            pass  # ours is gone: scratch_places passes over what is relative
        default_input = KAGGLE_INPUT if os.path.isdir(KAGGLE_INPUT) else os.path.join("..", "input")
        self.input = absolute(arguments.input or default_input)
        default_working = KAGGLE_WORKING if os.path.isdir(KAGGLE_WORKING) else "."
        self.working = absolute(arguments.working or default_working)
        self.clips = absolute(arguments.clips) if arguments.clips else None  # make_sample
        self.offset_s: float = arguments.offset or 0.0  # execute
        # set_limits; and make_state, where nothing may be spilled
        self.profile: dict[str, Any] = dict(self.constant.get("profile") or DEFAULT_PROFILE)
        self.reader = Reader(min(MOST_PATIENCE_S, max(0.0, 0.1 * self.budget_s())), self.fault)
        self.learn(self.constant)  # open_bundle
        self.prior: Prior | None = None  # publish_prior
        self.prior_s: float | None = None  # publish_prior
        self.stale_report = False  # prepare_working: one that is not ours lies there
        self.bundle: str | None = None  # open_bundle: the folder,
        self.manifest: dict[str, Any] = {}  # the manifest in it,
        self.manifest_text = b""  # and the bytes that were hashed
        self.making = ""  # make_state: the private folder that is being filled,
        self.state = ""  # and the one in use,
        self.lock = -1  # what says that we live,
        self.refused: list[str] = []  # and places that have failed
        self.engine: Engine | None = None  # attempt and end_engine
        self.attempts = 0  # attempt
        self.finished = False  # attempt
        self.stuck = False  # end_engine: one of ours cannot be killed, and keeps its locks
        self.published: Any = {}  # finish: what the engine said of each submission it put in place
        self.stacks = ""  # attempt, or execute when the guard itself fails
        self.deaths: list[dict[str, Any]] = []  # report_death
        self.faults: list[dict[str, Any]] = []  # fault
        self.signal = 0  # catch_signals

    def learn(self, facts: "dict[str, Any]") -> None:
        """Take in what the bundle is for; {} and [] mean not known yet."""
        self.classes: list[str] = facts.get("classes") or []
        self.class_prior: list[float] = facts.get("prior") or []
        self.output: dict[str, Any] = facts.get("output") or {}

    def fault(self, code: str, where: str, message: object) -> None:
        """Record a fault and say it: no degradation without a line here."""
        t = round(self.elapsed(), 2)
        self.faults.append({"t": t, "code": code, "where": where, "message": str(message)})
        say(f"{code} {where}: {message}")

    def elapsed(self) -> float:
        """Seconds since this file's first line, suspended ones too, plus what had passed before it.

        The wall clock is never read. The engine counts in the same way (kernel.limits.Clock).
        """
        return self.offset_s + max(time.monotonic() - STARTED, read_boot_clock() - STARTED_BOOT)

    def budget_s(self) -> float:
        return self.profile["seconds"] if self.arguments.seconds is None else self.arguments.seconds

    def marks(self) -> "Marks":
        return Marks(self.budget_s())


class Reader:
    """Reads what others have mounted, each time in a thread of its own: a read that the system never answers
    costs this long and not the run.

    fault  hears of what did not answer
    """

    def __init__(self, patience_s: float, fault: "Callable[[str, str, object], None]") -> None:
        self.patience_s = patience_s
        self.fault = fault
        self.hung: set[str] = set()  # what has not answered: named once, and asked for by no other way

    def ask(self, action: "Callable[..., Any]", *given: "Any", patience_s: float = 0.0) -> "Any":
        """What `action(*given)` gives; given[0] is what it reads.

        Raises  what the action raises; Hung when there is no answer in time
        """
        import _thread

        answer: list[Any] = []
        failure: list[BaseException] = []
        over = _thread.allocate_lock()
        over.acquire()

        def act() -> None:
            try:
                answer.append(action(*given))
            except BaseException as error:  # raised again where somebody waits for it
                failure.append(error)
            finally:
                over.release()

        try:
            _thread.start_new_thread(act, ())
        except RuntimeError:
            act()  # no thread to be had: the watcher stands behind this
        wait_s = patience_s or self.patience_s
        # Twice: the machine may have stood still, and the answer be here
        if not over.acquire(timeout=wait_s) and not over.acquire(timeout=POLL_S):
            if given[0] not in self.hung:
                self.fault("InputHung", str(given[0]), f"no answer in {wait_s:.1f} s; passed over")
            self.hung.add(given[0])
            raise Hung(f"{given[0]}: no answer in {wait_s:.1f} s")
        if failure:
            raise failure[0]
        return answer[0]

    def list_folder(self, folder: str) -> tuple[list[str], list[str]]:
        """(file names, subfolders) of a folder, or what is known of them by the time it stops answering.

        Each one that hangs halves what the next one gets: ten of them cost little more than one.
        """
        files: list[str] = []
        below: list[str] = []
        try:
            patience_s = max(LEAST_PATIENCE_S, self.patience_s / 2 ** min(9, len(self.hung)))
            self.ask(list_folder, folder, files, below, patience_s=min(self.patience_s, patience_s))
        except Hung:
            pass  # named already
        return sorted(files), sorted(below)


class Hung(OSError):
    """The system has not answered a read."""


# -- arguments -----------------------------------------------------------------------------------------------


def make_formatter(prog: str) -> "argparse.HelpFormatter":
    """Of a fixed width: asking for the terminal's would import shutil, at every start."""
    return argparse.RawDescriptionHelpFormatter(prog, width=108)


def make_parser() -> "argparse.ArgumentParser":
    parser = argparse.ArgumentParser(
        prog="infer_kernel.py", description=__doc__, allow_abbrev=False, formatter_class=make_formatter
    )
    add = parser.add_argument
    add("--bundle", metavar="DIR", help="folder with manifest.json (default: searched below the input)")
    add("--input", metavar="DIR",
        help="folder with sample_submission.csv and clips (default: /kaggle/input)")
    add("--clips", metavar="DIR", help="folder of clips (default: found below the input)")
    add("--working", metavar="DIR",
        help="folder of submission.csv and report.json (default: /kaggle/working)")
    add("--limits", metavar="PROFILE",
        help="fat2019, code-gpu, code-cpu, birdclef-cpu90 (default: bundle's)")
    add("--seconds", type=parse_seconds, help="time budget (default: the profile's)")
    add("--ram", type=parse_bytes, metavar="14GB", help="memory limit (default: the profile's)")
    add("--disk", type=parse_bytes, metavar="5GB", help="disk limit (default: the profile's)")
    add("--device", choices=("auto", "cpu", "cuda"), help="where the nets run (default: what works)")
    add("--backend", default="auto", choices=("auto", "torch", "fp32", "onnxruntime", "openvino"),
        help="how nets run (default: auto, the fastest that agrees)")
    add("--first", type=parse_count, metavar="N",
        help="predict the first N rows only; the others keep the prior (default: all)")
    add("--loaders", type=parse_count, metavar="N", help="loader threads (default: one per core)")
    add("--offset", type=parse_seconds, metavar="SECONDS", help="passed before the start (default: found)")
    add("--dry-run-clips", metavar="DIR",
        help="recordings below the input, tried while the test set is a placeholder (default: bundle's)")
    add("--dry-run", type=parse_count, metavar="N", help="how many of them (default: bundle's, else 10)")
    add("--strict", action="store_true", help="exit 1 when anything was degraded")
    add("--rehearse", action="store_true",
        help="rehearse with --clips under the limits: see --rehearse --bundle DIR --help")
    return parser


def parse_bytes(text: str) -> int:
    """Bytes of "14GB", "512 MiB", "1.5g" or "4096"; the same grammar as kernel.units.parse_bytes."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([a-z]*)\s*", text, re.ASCII | re.IGNORECASE)
    unit = match[2].lower() if match else ""
    if match is None or unit not in UNITS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no amount of memory; write a number and a unit, e.g. 14GB, 512MiB or 4096"
        )
    return round(float(match[1]) * UNITS[unit])


def parse_seconds(text: str) -> float:
    """Seconds, as kernel.units.parse_seconds; zero and below are allowed and leave the prior submission."""
    if not re.fullmatch(r"[+-]?\d{1,16}(\.\d*)?(e[+-]?\d\d?)?", text, re.ASCII | re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give seconds, e.g. 3600")
    if abs(float(text)) > MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is more than three years; give seconds, e.g. 3600")
    return float(text)


def parse_count(text: str) -> int:
    """A whole number of at least 1, as kernel.units.parse_count."""
    if not re.fullmatch(r"[1-9]\d{0,15}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give a whole number of at least 1")
    return int(text)


# -- the start -----------------------------------------------------------------------------------------------


def open_streams() -> None:
    """Standard streams that take every text; closed ones lead nowhere, so that no file of ours gets their
    numbers.
    """
    handle = open_nowhere()
    while handle <= 2:
        os.set_inheritable(handle, True)
        handle = os.dup(handle)
    os.close(handle)
    sys.stdout = sys.stdout or open(open_nowhere(), "w")
    sys.stderr = sys.stderr or open(open_nowhere(), "w")
    for stream in (sys.stdout, sys.stderr):
        settle = getattr(stream, "reconfigure", None)  # a notebook's stream has none, and takes everything
        if settle is not None:
            settle(errors="backslashreplace")


def hear_of_children() -> None:
    """Let the end of a child be known: a caller that ignores SIGCHLD hands that on, and exit codes go."""
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except ValueError:
            pass  # a notebook's second thread: signals are not its business


def open_nowhere() -> int:
    """Descriptor of /dev/null; of a pipe that nobody holds where there is none."""
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:
        ours, theirs = os.pipe()
        os.close(ours)
        return theirs


def drop_state(run: "Run") -> None:
    """Remove the private folder for good."""
    folders = (run.state, run.making)
    run.state = run.making = ""
    for folder in folders:
        remove_tree(folder)


def catch_signals(run: "Run", within_s: float) -> None:
    """Signals end the run in order; if that takes too long, or the exit mark comes, the alarm ends
    it at once.
    """
    def note(number: int, _frame: object) -> None:
        if not run.signal:
            run.signal = number
            signal.setitimer(signal.ITIMER_REAL, within_s)

    def abandon(_number: int, _frame: object) -> None:
        if run.engine is not None:
            run.engine.signal(signal.SIGKILL)
        code = 2 if run.prior is None else 1 if run.arguments.strict else 0
        why = signal.Signals(run.signal).name if run.signal else "the exit mark was reached"
        word = f"OutOfTime guard: {why} while {run.line.doing}: "
        if code == 2:
            word += "no submission.csv could be written; give more time, or detach what does not answer"
        else:
            word += f"submission.csv stays as it was last published, the report may be missing | exit {code}"
        try:
            os.write(2, f"[hourglass] {printable(word)}\n".encode("utf-8", "backslashreplace"))
        except OSError:
            pass  # nobody reads
        run.line.tell("done", code)
        if run.line.handle >= 0:  # the watcher waits for it no longer than it may
            drop_state(run)
        os._exit(code)

    for number in find_endings():
        signal.signal(number, note)
    signal.signal(signal.SIGALRM, abandon)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, find_endings())


def find_endings() -> list[int]:
    """Signals that end a run in order: all that ask for an end, but not HUP where nohup has put it off."""
    endings: list[int] = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
    return endings if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [*endings, signal.SIGHUP]


def set_alarm(run: "Run") -> None:
    """The last resort at the exit mark: whatever the guard is stuck in, the process ends with the file it
    has.
    """
    if not run.signal:
        marks = run.marks()
        left_s = max(marks.exit_s - run.elapsed(), 10.0 if marks.prior_only else 0.5)
        signal.setitimer(signal.ITIMER_REAL, left_s)
        # The watcher waits a little longer, for a guard whose alarm does not ring
        run.line.tell("left", left_s + 0.2 * (1.0 if marks.prior_only else marks.budget_s - marks.exit_s))


def prepare_working(run: "Run") -> None:
    """The output folder, without what an earlier run left in it. Raises Refusal when it cannot be there."""
    try:
        os.makedirs(run.working, exist_ok=True)
    except OSError as error:
        raise unwritable(run.working, error) from error
    sweep_temporary(run.working, held=run.stuck)
    for name in ("report.json", "report.html"):
        path = os.path.join(run.working, name)
        try:
            if os.path.isdir(path):
                move_aside(path)
            remove(path)
        except OSError as error:
            run.stale_report = True
            run.fault("OutputUnwritable", name, f"{error}: an older one stays, which is not this run's")


def unwritable(working: str, error: "OSError") -> "Refusal":
    advice = "free the disk" if error.errno in (28, 122) else "give --working a folder that takes files"
    if os.path.lexists(os.path.join(working, "submission.csv")):
        advice += ", or remove the submission.csv that is there"
    return Refusal("OutputUnwritable", working, f"{error}; {advice}")


def sweep_temporary(working: str, held: bool = False) -> None:
    """Remove half-written files of an engine or an earlier run from the working folder, as far as it goes.

    held  those that are locked, too: a stuck engine of ours will never finish them
    """
    try:
        names = os.listdir(working)
    except OSError:
        return  # whoever writes there next says so
    for name in names:
        if name.startswith(TEMPORARY) and name.endswith(".tmp"):
            path = os.path.join(working, name)
            try:
                if held or not is_held(path):  # another run's, which is being written
                    remove(path)
            except IsADirectoryError:
                remove_tree(path)
            except OSError:
                continue  # nobody needs its name


def hold_file(handle: int) -> None:
    """Lock a file while it is written, so that no other run takes it for a dead one's."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass  # a file system without locks


def is_held(path: str) -> bool:
    """True for a file that a living run is writing."""
    import fcntl

    try:
        handle = open_regular(path)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks
    finally:
        os.close(handle)
    return False


def find_offset(budget_s: float, proc: str = "/proc") -> float:
    """Seconds the oldest ancestor of this process has lived: on Kaggle the session's start-up, which counts.

    An ancestor older than a quarter of the budget is no start-up but somebody's own session: 0.
    """
    oldest = 0.0
    pid = "self"
    try:
        with open(os.path.join(proc, "uptime"), encoding="ascii") as file:
            uptime = float(file.read().split()[0])
        while pid != "0":
            facts = read_stat(pid, proc)
            oldest = max(oldest, uptime - int(facts[19]) / os.sysconf("SC_CLK_TCK"))
            pid = facts[1].decode()
    except (OSError, ValueError, IndexError):
        return 0.0
    return oldest if oldest <= 0.25 * budget_s else 0.0


# -- the sample ----------------------------------------------------------------------------------------------


def find_sample(run: "Run", first: "Callable[[Sample], object]" = lambda _: None) -> "Sample | None":
    """The sample below the input, or None: the one whose header has our classes, then the competition's own,
    then the nearest.

    first  is given the first one that can be read, before time is spent on the others
    """
    known = set(run.classes) if run.output.get("format") != "label" else set()
    ranked: list[tuple[int, tuple[bool, int], str, Sample]] = []
    hung: OSError | None = None
    until = math.inf
    for place, path in sorted((rank_place(path, run.input), path) for path in
                              find_files(run.reader, run.input, SAMPLE_DEPTH, SAMPLE_NAMES)):
        # The best place comes first and has the time; the others, all together, have a little: they may only
        # show that there are others
        left_s = min(SEARCH_S, run.reader.patience_s) if ranked else run.marks().exit_s - run.elapsed()
        within_s = min(left_s, until - time.monotonic()) if ranked else SAMPLE_SHARE * max(1.0, left_s)
        if within_s <= 0.0:
            run.fault("SampleMissing", path, "no time to read more samples; skipped, it and those after it")
            break
        try:
            sample = run.reader.ask(read_sample, path, within_s, patience_s=within_s)
        except Hung as error:
            hung = error
        except ValueError as error:
            run.fault("SampleMissing", path, f"{error}; skipped")
        else:
            if not ranked:
                first(sample)
                until = time.monotonic() + SEARCH_S
            ranked.append((len(known - set(sample.header)), (place[1], place[2]), path, sample))
    ranked.sort(key=lambda entry: entry[:3])
    samples = [sample for *_, sample in ranked]
    if any(sample.ids != samples[0].ids for sample in samples):
        run.fault("SampleAmbiguous", str(samples[0].path),
            f"one of {len(samples)} samples below {run.input}; give --input")
    if hung and not samples:  # made up from the clips it would not be the competition's
        raise Refusal("InputHung", run.input, f"{hung}; no sample_submission.csv could be read before a "
                      "submission was written: attach the competition again, or give --input")
    return samples[0] if samples else None


def rank_place(path: str, root: str) -> tuple[bool, bool, int]:
    """Order in which samples are read: plain files before packed ones, then the competition's own, then the
    nearest.
    """
    below = os.path.relpath(path, root).split(os.sep)
    return not path.lower().endswith(".csv"), below[0] != "competitions" and len(below) > 1, len(below)


def read_sample(path: str, within_s: float) -> "Sample":
    """A sample submission. Raises ValueError when it is none, or takes longer than `within_s` to read."""
    try:
        with open_sample(path) as raw, io.TextIOWrapper(raw, "utf-8", "surrogateescape", newline="") as text:
            rows = (row for row in csv.reader(bound(text, within_s)) if row)
            header = next(rows, [])
            first = next(rows, [])
            ids = [first[0], *(row[0] for row in rows)] if first else []
    except Exception as error:  # the readers of text, gzip and zip raise more than can be listed
        raise ValueError(f"cannot be read ({type(error).__name__}: {error})") from error
    if len(header) < 2:
        raise ValueError(f"header {header!r}: expected an id column and at least one more")
    return Sample(path, header, ids, first[1:])


def open_sample(path: str) -> "IO[bytes] | GzipFile":
    """Binary stream of a sample, unpacked if it is a .gz or .zip. Raises OSError when it is no plain file."""
    file = os.fdopen(open_regular(path, SAMPLE_BYTES), "rb")
    magic = file.peek(2)[:2]
    if magic not in (b"\x1f\x8b", b"PK"):
        return file
    if os.fstat(file.fileno()).st_size > SAMPLE_PACKED_BYTES:
        raise OSError(f"more than {SAMPLE_PACKED_BYTES} bytes packed; this is no sample submission")
    if magic == b"PK":
        import zipfile

        archive = zipfile.ZipFile(file)
        return archive.open(next(name for name in archive.namelist() if name.lower().endswith(".csv")))
    import gzip

    return gzip.open(file, "rb")


def bound(text: "IO[str]", within_s: float) -> "Iterator[str]":
    """The lines of a text, without a byte order mark, up to the size a sample can have and in this time."""
    until = time.monotonic() + within_s
    size = count = 0
    while line := text.readline(SAMPLE_LINE):
        yield line.removeprefix("\ufeff") if size == 0 else line
        size += len(line)
        count += 1
        if size > SAMPLE_BYTES or count > SAMPLE_ROWS or len(line) >= SAMPLE_LINE:
            raise ValueError(f"larger than a sample submission can be ({size} characters in {count} lines)")
        if count % 1000 == 0 and time.monotonic() > until:
            raise ValueError(f"not read to its end in {within_s:.1f} s")


def settle_sample(run: "Run") -> "Prior":
    """The prior submission of the sample that was found, or of one made from the clips.

    Raises  Refusal SampleMissing
    """
    sample = run.prior.sample if run.prior else make_sample(run)
    if sample is None:
        raise Refusal("SampleMissing", run.input,
            "no sample_submission.csv below it and nothing to make one from (clips, and a bundle that names "
            "the classes; rows of fixed windows always need the sample); give --input")
    publish_prior(run, sample)
    return report_columns(run)


def make_sample(run: "Run") -> "Sample | None":
    """A sample made from the clips, for an input without one, or None when there are no clips or no classes
    to name.

    Windowed bundles need the sample: the number of rows depends on the lengths, which the guard does not
    know.
    """
    root = run.clips or run.input
    windowed = run.manifest.get("ensemble", {}).get("windows")
    try:
        names = run.reader.ask(list_clips, root, patience_s=SAMPLE_SHARE * run.budget_s())
    except Hung:
        names = []
    if not names or windowed or not run.classes:
        return None
    names = [name for name in names if "test" in os.path.dirname(name).lower()] or names
    shared = os.path.commonpath([os.path.dirname(name) for name in names])
    if shared:  # one folder holds them all: it is the clip folder
        root = os.path.join(root, shared)
        names = [name[len(shared) + 1:] for name in names]
    run.clips = root
    run.fault("SampleMissing", run.input,
        f"no sample_submission.csv; made one from {len(names)} clips in {root}")
    labelled = run.output.get("format") == "label"
    columns = [run.output.get("label_column") or "label"] if labelled else run.classes
    return Sample(None, ["fname", *columns], names, [])


def list_clips(root: str) -> list[str]:
    """POSIX paths below `root` of every audio file, sorted."""
    names = []
    for folder, below, files in os.walk(root):
        below.sort()
        here = "" if folder == root else os.path.relpath(folder, root) + "/"
        names += [here + name for name in files if name.lower().endswith(AUDIO_NAMES)]
    return sorted(names)


# -- the prior submission ------------------------------------------------------------------------------------


class Prior:
    """The prior submission: the same cells in every row of the sample.

    cells     text of every column; one that is no class of ours gets 1 / number of columns, as in
              kernel.scores.submission
    labels    texts that may stand in the label column; None when every column is a number
    label_at  place of the label column among the columns
    """

    def __init__(self, sample: "Sample", run: "Run") -> None:
        columns = sample.header[1:]
        scores = dict(zip(run.classes, run.class_prior, strict=False))
        even = 1.0 / len(columns)
        self.sample = sample
        self.cells = [f"{min(1.0, max(LEAST, scores.get(name, even))):.6e}" for name in columns]
        self.labels: set[str] | None = None
        named = run.output.get("label_column")
        self.label_at = columns.index(named) if named in columns else 0
        texts = {name: name for name in run.classes} | (run.output.get("labels") or {})
        by_class = named not in columns and any(t in columns for t in [*texts, *texts.values()])
        if has_labels(sample, run.output.get("format")) and not by_class:  # which the engine refuses
            fallback = (sample.cells or run.classes or ["0"])[0]
            label = texts[max(scores, key=lambda name: scores[name])] if scores else fallback
            self.cells = [f"{even:.6e}"] * len(columns)
            self.cells[self.label_at] = label
            self.labels = {label, *(texts[name] for name in run.classes)}

    def lines(self) -> "Iterator[bytes]":
        """Text of submission.csv, line by line: it may be larger than the guard itself."""
        tail = ",".join(["", *map(quote, self.cells)]) + "\n"
        yield (",".join(map(quote, self.sample.header)) + "\n").encode("utf-8", "surrogateescape")
        for row_id in self.sample.ids:
            yield (quote(row_id) + tail).encode("utf-8", "surrogateescape")


def has_labels(sample: "Sample", form: str | None) -> bool:
    """True when the submission has a label column: by the bundle's output format, else by the sample's own
    first row.
    """
    if form is None:
        return len(sample.header) == 2 and not all(is_number(text) for text in sample.cells)
    return form == "label"


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return text == ""


def quote(text: str) -> str:
    """One CSV cell, quoted only where a reader would otherwise see something else."""
    return '"' + text.replace('"', '""') + '"' if text == "" or any(c in text for c in ',"\r\n') else text


def publish_prior(run: "Run", sample: "Sample") -> None:
    """The prior submission in place.

    Raises  Refusal OutputUnwritable
    """
    prior = Prior(sample, run)
    run.line.tell("doing", f"writing to {run.working}")
    try:
        write_prior(run.working, prior)
    except OSError as error:
        raise unwritable(run.working, error) from error
    run.prior = prior
    run.line.tell("code", 1 if run.arguments.strict else 0)
    if run.prior_s is None:
        run.prior_s = round(run.elapsed() - run.offset_s, 4)


def write_prior(working: str, prior: "Prior") -> None:
    """Put the prior submission in place in one step. Raises OSError."""
    os.makedirs(working, exist_ok=True)
    temporary = name_temporary(working, "submission.csv")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        hold_file(handle)
        os.posix_fallocate(handle, 0, sum(map(len, prior.lines())))
        with os.fdopen(handle, "wb", buffering=1 << 18, closefd=False) as file:
            file.writelines(prior.lines())
        os.fsync(handle)
        put_in_place(temporary, os.path.join(working, "submission.csv"))
    except BaseException:
        remove(temporary)
        raise
    finally:
        os.close(handle)
    handle = os.open(working, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def name_temporary(working: str, name: str) -> str:
    """A path beside a file for its next bytes, that nobody can have taken."""
    return os.path.join(working, f".{name}.{os.urandom(8).hex()}.tmp")


def put_in_place(temporary: str, path: str) -> None:
    """Replace a file in one step; a folder of its name is moved aside. Raises OSError."""
    try:
        os.replace(temporary, path)
    except IsADirectoryError:
        move_aside(path)
        os.replace(temporary, path)


def move_aside(path: str) -> None:
    """Give a folder that has the name of a file of ours another one. Raises OSError."""
    aside = f"{path}.{os.urandom(4).hex()}.folder"
    os.rename(path, aside)
    say(f"{path} was a folder: it is {os.path.basename(aside)} now")


def report_columns(run: "Run") -> "Prior":
    """The prior submission that is in place; a loud word where the sample's columns and the bundle's classes
    do not match.
    """
    prior = run.prior
    assert prior is not None, "publish_prior comes first"
    if not run.classes or prior.labels is not None:
        return prior
    columns = set(prior.sample.header[1:])
    classes = set(run.classes)
    for names, text in (
        (columns - classes, "are no class of the bundle and hold a constant"),
        (classes - columns, "are classes of the bundle without a column, their scores are not written"),
    ):
        if names:
            shown = ", ".join(map(repr, sorted(names)[:5])) + (" ..." if len(names) > 5 else "")
            run.fault("ColumnsUnknown", prior.sample.path or "sample",
                f"{len(names)} columns ({shown}) {text}")
    return prior


# -- the bundle ----------------------------------------------------------------------------------------------


def open_bundle(run: "Run") -> dict[str, bytes]:
    """Verified code of the bundle: {path in the wheel: bytes}. The run learns what the bundle is for.

    Raises  Fault
    """
    pinned = run.constant.get("manifest_sha256")
    last = None
    strangers: dict[str, str] = {}
    for path in find_manifests(run):
        try:
            text = run.reader.ask(read_bytes, path, MANIFEST_BYTES)
            if pinned and sha256(text) != pinned:
                strangers[path] = f"{path} has {sha256(text)[:16]}"
                continue
            manifest = parse_manifest(text, path)
            code = read_code(run.reader, os.path.dirname(path), manifest["wheel"])
        except OSError as error:
            last = Fault("BundleMissing", path, error)
        except Fault as fault:
            last = fault
        else:
            run.bundle = os.path.dirname(path)
            run.manifest = manifest
            run.manifest_text = text
            run.learn({**manifest["ensemble"], "prior": manifest["prior"]})
            return code
    if last is not None:
        raise last
    if not pinned or not strangers:
        raise Fault("BundleMissing", run.arguments.bundle or (KAGGLE_INPUT if pinned else "--bundle"),
            "no manifest.json found; "
            + ("attach the dataset to the kernel" if pinned
               else "give --bundle the folder that build_dataset.py wrote"))
    raise Fault("BundleHashMismatch", run.input,
        f"this kernel wants the manifest with sha256 {pinned[:16]}, but "
        + "; ".join(list(strangers.values())[:3])
        + ". Push the kernel again, or wait until the dataset is processed")


def find_manifests(run: "Run") -> "Iterator[str]":
    """Paths of manifest.json, in the order of trust: below --bundle alone, else at Kaggle's places for our
    slug, then wherever a bounded search finds one.
    """
    if run.arguments.bundle:
        yield from find_files(run.reader, run.arguments.bundle, 3, ("manifest.json",))
        return
    slug = run.constant.get("slug")
    if not slug:
        return
    import glob

    for pattern in (slug, f"datasets/*/{slug}", f"models/*/{slug}/*/*/*", f"notebooks/*/{slug}"):
        try:
            folders = run.reader.ask(glob.glob, os.path.join(glob.escape(run.input), pattern))
        except Hung:
            continue
        for folder in sorted(folders):
            yield from find_files(run.reader, folder, 3, ("manifest.json",))
    yield from find_files(run.reader, run.input, BUNDLE_DEPTH, ("manifest.json",))


def parse_manifest(text: bytes, path: str) -> "dict[str, Any]":
    """The manifest as plain data, checked as far as the guard uses it; the engine's strict loader checks the
    rest.
    """
    try:
        data: dict[str, Any] = json.loads(text)
        wheel = data["wheel"]
        classes = data["ensemble"]["classes"]
        output = data["ensemble"].get("output") or {}
        labels = output.get("labels") or {}
        entries = [wheel["entry"], *wheel["files"].values()]
        if not (
            all(isinstance(e["bytes"], int) and isinstance(e["sha256"], str) for e in entries)
            and isinstance(wheel["file"], str)
            and isinstance(classes, list)
            and all(map(is_text, [*classes, *labels, *labels.values()]))
            and all(is_text(output.get(key) or "") for key in ("format", "label_column"))
            and all(isinstance(p, (int, float)) and 0 <= p <= 1 for p in data["prior"])
            and len(data["prior"]) in (0, len(classes))
        ):
            raise ValueError("a field has the wrong type")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Fault("BundleInvalid", path,
            f"no manifest of ours ({type(error).__name__}: {error}); build it again") from error
    return data


def is_text(value: object) -> bool:
    """True for a text that a file can hold."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def read_code(reader: "Reader", folder: str, wheel: "dict[str, Any]") -> dict[str, bytes]:
    """Verified bytes of every file of the wheel, be it a wheel, renamed, or unpacked to a folder. Raises
    Fault.
    """
    if not all(map(is_safe, wheel["files"])):
        raise Fault("BundleInvalid", folder,
            "the manifest names files outside the wheel; build the bundle again")
    seen = []
    for path in find_wheels(reader, folder, wheel):
        try:
            data = reader.ask(read_bytes, path, WHEEL_BYTES)
        except OSError as error:
            seen.append(str(error))
            continue
        if sha256(data) == wheel["entry"]["sha256"]:
            return unpack(data, wheel["files"], path)
        seen.append(path)
    for root in [place for place, _, _ in walk(reader, folder, 3)]:
        if reader.ask(find_names, os.path.join(root, "kernel"), ("__init__.py",)):
            code = reader.ask(read_unpacked, root, wheel["files"])
            if code is not None:
                return code
            seen.append(root)
    raise Fault("BundleHashMismatch" if seen else "BundleMissing", folder,
                f"no copy of {wheel['file']} with sha256 {wheel['entry']['sha256'][:16]}"
                + (f"; differs: {', '.join(seen[:3])}" if seen else "") + ". Upload the bundle again")


def is_safe(name: str) -> bool:
    """True for a relative path that stays where it is put."""
    return (
        bool(name)
        and name.isprintable()
        and "\\" not in name
        and all(p not in ("", ".", "..") for p in name.split("/"))
    )


def find_wheels(reader: "Reader", folder: str, wheel: "dict[str, Any]") -> list[str]:
    """Files of the wheel's size: its own name first, then any other name, then in wrapper folders."""
    places = [os.path.join(folder, wheel["file"])]
    for place, files, _ in walk(reader, folder, 2):
        places += [os.path.join(place, name) for name in sorted(files)]
    sizes: list[int] = reader.ask(read_sizes, folder, places)
    return list(dict.fromkeys(p for p, size in zip(places, sizes, strict=True)
                              if size == wheel["entry"]["bytes"]))


def read_sizes(folder: str, places: list[str]) -> list[int]:
    """Bytes of each of these files in `folder`; -1 where there is none."""
    sizes = []
    for path in places:
        try:
            sizes.append(os.stat(path).st_size)
        except OSError:
            sizes.append(-1)
    return sizes


def unpack(data: bytes, expected: "dict[str, Any]", path: str) -> dict[str, bytes]:
    """The wheel's files, each checked again, so that what runs is what the manifest lists."""
    import zipfile

    code = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name, entry in expected.items():
            with archive.open(name) as file:
                code[name] = file.read(entry["bytes"] + 1)
            if sha256(code[name]) != entry["sha256"]:
                raise Fault("BundleHashMismatch", path,
                    f"{name} inside differs from the manifest; build the bundle again")
    return code


def read_unpacked(root: str, expected: "dict[str, Any]") -> dict[str, bytes] | None:
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


def set_limits(run: "Run") -> None:
    """The limits of --limits, --seconds, --ram and --disk over the profile.

    Raises  Refusal for an unknown profile or no memory
    """
    given = run.arguments
    profiles = run.manifest.get("profiles") or {}
    wanted = given.limits or (None if run.constant else run.manifest["ensemble"].get("profile"))
    if wanted in profiles:
        run.profile = {**profiles[wanted], "name": wanted}
    elif given.limits and given.limits != run.profile["name"]:
        raise Refusal("LimitError", f"--limits {wanted}",
            f"unknown; choose one of: {', '.join(sorted(profiles))}")
    if given.ram == 0:
        raise Refusal("LimitError", "--ram 0", "RAM must be above 0; give a size, e.g. 14GB")
    if given.ram is not None:
        run.profile["ram_bytes"] = given.ram
    if given.disk is not None:
        run.profile["disk_bytes"] = given.disk


# -- the private folder --------------------------------------------------------------------------------------


def make_state(run: "Run", code: dict[str, bytes], sample: "Sample | None" = None) -> None:
    """The private folder (0700) of this run with all that its process is given, after those of dead runs were
    removed. A place that has no room for it, or has failed, is passed over. Raises Fault.
    """
    tried = []
    for place in [*scratch_places(run.working, run.reader), run.working]:
        if place in run.refused:
            continue
        path = os.path.join(place, f"hourglass-{os.urandom(8).hex()}")
        try:
            run.reader.ask(sweep_stale, place)
            run.making = path
            lock = run.reader.ask(make_folder, path)
            size = sum(map(len, code.values())) + (count_bytes(sample) if sample else 0)
            patience_s = max(run.reader.patience_s, size / LEAST_BYTES_PER_S)
            run.reader.ask(prepare_state, path, run, sample, code, patience_s=patience_s)
        except OSError as error:
            tried.append(str(error))
            if place not in run.reader.hung:
                try:
                    run.reader.ask(remove_tree, path)
                except Hung:
                    pass  # named
            run.making = ""
            continue
        if run.state:
            carry(run.state, path)
            remove_tree(run.state)
        run.state, run.making = path, ""
        run.lock = lock
        if place == run.working:
            run.profile["disk_bytes"] = 0
            run.fault("ScratchRejected", place,
                "only the output folder is writable: nothing is spilled there, what does not fit "
                "into memory is computed again; set TMPDIR to a folder on a disk")
        elif is_memory(place):
            run.fault("ScratchRejected", place,
                "is memory, not a disk, and nothing else is writable: spilling there uses RAM")
        return
    raise Fault("StoreError", "scratch", f"no folder for private files ({'; '.join(tried)}); set TMPDIR")


def make_folder(path: str) -> int:
    """A new folder of ours alone; gives the descriptor that locks it. Raises OSError."""
    os.mkdir(path, 0o700)
    return lock_folder(path)


def count_bytes(sample: "Sample") -> int:
    """About what a sample takes as a file."""
    return sum(map(len, sample.ids)) + len(sample.ids) * len(sample.header)


def scratch_places(working: str, reader: "Reader") -> list[str]:
    """Folders for the private folder, best first: real disks, never the output folder."""
    try:
        os.mkdir("/kaggle/temp")
    except OSError:
        pass  # it is there, or this is not Kaggle, or it may not be: then the next place
    usable: dict[str, bool] = {}
    for place in (os.environ.get("TMPDIR"), "/kaggle/temp", "/tmp", "/var/tmp"):
        try:
            if place and os.path.isabs(place) and reader.ask(is_usable, place, working):
                usable[place] = reader.ask(is_memory, place)
        except Hung:
            continue  # named
    return sorted(usable, key=lambda place: usable[place])


def is_usable(place: str, working: str) -> bool:
    """True for a folder that takes files and is not the output folder."""
    return (os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)
            and os.path.realpath(place) != os.path.realpath(working))


def is_memory(path: str) -> bool:
    """True when a path lies on a memory file system: a spill there would fill the RAM it is to relieve."""
    real = os.path.realpath(path) + "/"
    try:
        with open("/proc/mounts", encoding="utf-8", errors="replace") as file:
            mounts = [line.split(" ")[1:3] for line in file]
    except OSError:
        return False  # a sandbox that hides its mounts: take the place for what it seems
    above = [(len(place), i, kind) for i, (place, kind) in enumerate(mounts)
             if real.startswith(place.rstrip("/") + "/")]
    deepest = max(above, default=(0, 0, ""))  # of equals the last: it hides the others
    return deepest[2] in ("tmpfs", "ramfs", "devtmpfs")


def lock_folder(path: str) -> int:
    """Descriptor of a folder that is locked while this process lives, whatever namespace others look from.

    Raises  OSError when somebody else has the lock, or swept the folder away before it was locked
    """
    import fcntl

    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_ino != os.stat(path, follow_symlinks=False).st_ino:
            raise FileNotFoundError(f"{path}: another folder is there now")
    except OSError:
        os.close(handle)
        raise
    return handle


def sweep_stale(place: str) -> None:
    """Remove private folders of guards that are dead (killed before they could clean up)."""
    for name in os.listdir(place):
        path = os.path.join(place, name)
        if not re.fullmatch("hourglass-[0-9a-f]{16}", name):
            continue
        try:
            handle = lock_folder(path)
        except OSError:
            continue  # a living run's, or not ours at all
        if os.fstat(handle).st_uid == os.getuid():
            remove_tree(path)
        os.close(handle)


def carry(old: str, new: str) -> None:
    """What an engine has scored and what it died of, as far as the old folder still gives it."""
    import shutil

    files = ("crashes", "quarantine", "published", "holds", "choices")
    for name in ("scores", "inflight", *(f"{file}.json" for file in files)):
        copy = shutil.copytree if os.path.isdir(os.path.join(old, name)) else shutil.copyfile
        try:
            copy(os.path.join(old, name), os.path.join(new, name))
        except OSError:
            continue  # it is scored again


def prepare_state(state: str, run: "Run", sample: "Sample | None", code: dict[str, bytes]) -> None:
    """Everything the engine is given: verified code and manifest, and the sample as a plain file."""
    for name, data in code.items():
        write_state(state, os.path.join("code", name), data)
    write_state(state, "manifest.json", run.manifest_text)
    if sample is None:
        return
    blank = "," * (len(sample.header) - 1)
    lines = [",".join(map(quote, sample.header)), *(quote(row_id) + blank for row_id in sample.ids)]
    text = ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")
    write_state(state, "sample_submission.csv", text)


def write_state(state: str, name: str, data: bytes) -> None:
    """Put a file into the private folder in one step."""
    path = os.path.join(state, name)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(path + ".new", "wb") as file:
        file.write(data)
    os.replace(path + ".new", path)


def describe_order(run: "Run", sample: "Sample") -> "dict[str, Any]":
    """run.json: what the engine is told; kernel.order.Order has the same keys."""
    given = run.arguments
    return {
        "bundle": os.path.abspath(run.bundle or ""),
        "manifest": os.path.join(run.state, "manifest.json"),
        "input": run.input,
        "clips": run.clips,
        "working": run.working,
        "state": run.state,
        "sample": {
            "path": os.path.join(run.state, "sample_submission.csv"),
            "header": sample.header,
            "ids": sample.ids,
        },
        "limits": {**run.profile, "seconds": run.budget_s()},
        "marks": vars(run.marks()),
        "started": STARTED,
        "started_boot": STARTED_BOOT,
        "offset_s": run.offset_s,
        "device": given.device or run.constant.get("device") or "auto",
        "loaders": given.loaders,
        "first": given.first,
        "attempt": run.attempts,
        **({} if given.backend == "auto" else {"backend": given.backend}),  # older bundles know no such key
    }


# -- the engine ----------------------------------------------------------------------------------------------


def run_engine(run: "Run", sample: "Sample") -> None:
    """Attempts until one finishes, time is up, or restarts no longer bring anything."""
    best = [0, 0, 0]
    barren = 0
    while not attempt(run, sample):
        gains = [max(pair) for pair in zip(count_gains(run.state), best, strict=True)]
        barren = 0 if gains != best or run.attempts == 1 else barren + 1
        best = gains
        left_s = run.marks().stop_s - run.elapsed()
        if run.signal or left_s < RESTART_ROOM_S or run.attempts > MAX_RESTARTS or barren >= MAX_BARREN:
            short = left_s < RESTART_ROOM_S
            reason = f"{max(0.0, left_s):.1f} s left" if short else "restarts brought nothing new"
            run.fault("EngineGivenUp", "engine", f"after {run.attempts} attempts: {reason}")
            return
        say(f"restarting the engine: attempt {run.attempts + 1}, {left_s:.0f} s left")


def count_gains(state: str) -> tuple[int, int, int]:
    """(rows scored, clips and batches quarantined, suspects named by crashes before the last one), as the
    engine last said.

    A new suspect is a gain: it goes first and alone from then on, so that faults which strike once each, in
    other clips every time, do not end the run.
    """
    beat = read_json(state, "heartbeat.json")
    named = sum(map(len, read_json(state, "quarantine.json").values()))
    crashes = read_json(state, "crashes.json") or []
    suspects = {(crash.get("kind"), crash.get("net"), i) for crash in crashes for i in crash.get("ids", ())}
    return int(beat.get("scored_rows", 0)), max(int(beat.get("quarantined", 0)), named), len(suspects)


def attempt(run: "Run", sample: "Sample") -> bool:
    """One life of the engine; true when there is nothing more to try."""
    run.attempts += 1
    # A dead engine's spill has no index any more, only weight
    remove_tree(os.path.join(run.state, "spill"))
    remove(os.path.join(run.state, "heartbeat.json"))
    sweep_temporary(run.working, held=run.stuck)
    write_state(run.state, "run.json", json.dumps(describe_order(run, sample)).encode())
    oom_kills = read_number("/proc/vmstat", "oom_kill ")  # of this machine's kernel, since it started
    began = run.elapsed()
    try:
        engine = run.engine = Engine(run, "engine", run.state)
    except OSError as error:
        run.fault("EngineStartFailed", "engine", error)
        return False
    why = watch(run, engine)
    if why == "hung":
        run.stacks = dump_stacks(run.state, engine)
    status = engine.process.poll()
    end_engine(run, FAREWELL_S if why == "signal" else 0.0)
    # Not the code alone: a library may end the process with 0
    if why == "exit" and read_json(run.state, "heartbeat.json").get("finished", status == 0):
        run.finished = True
        return True
    if status == EXIT_VERDICT:
        verdict = read_json(run.state, "verdict.json")
        message = verdict.get("message", "not enough memory for the engine")
        run.fault(verdict.get("code", "MemoryTooSmall"), "engine", message)
        return True
    oom = read_number("/proc/vmstat", "oom_kill ") > oom_kills
    return report_death(run, why, status, run.elapsed() - began, oom)


def try_clips(run: "Run") -> None:
    """The dry run, if one is wanted: training clips into side files, now that submission.csv is settled. None
    while Kaggle scores.
    """
    wanted = run.manifest["ensemble"].get("dry_run") or {}
    clips = run.arguments.dry_run_clips or wanted.get("clips")
    left_s = DRY_RUN_SHARE * (run.marks().stop_s - run.elapsed())
    if not clips or not run.finished or left_s <= 0 or "KAGGLE_IS_COMPETITION_RERUN" in os.environ:
        return
    run.line.tell("doing", f"trying clips of {clips}")
    until = time.monotonic() + left_s
    given = (run.arguments.dry_run_clips or "", str(run.arguments.dry_run or ""), str(left_s))
    engine = run.engine = Engine(run, "dry-run", run.state, *given)
    while engine.process.poll() is None and not run.signal and time.monotonic() < until:
        time.sleep(POLL_S)
    if engine.process.poll() != 0:
        run.fault("DryRunFailed", clips, "see above; submission.csv is not touched by this")
    end_engine(run, 0.0)


class Engine:
    """The engine's process, or the rehearsal's, in a session of its own; it imports nothing from the folders
    it works on. Raises OSError when it cannot be started.
    """

    def __init__(self, run: "Run", entry: str, *arguments: str) -> None:
        import subprocess

        code = os.path.join(run.state, "code")
        # The guard's end is held until the engine's: closing it ends the whole group
        read_end, self.lifeline = os.pipe()
        no_input, held = os.pipe()  # /dev/null may be missing
        os.close(held)
        try:
            self.process = subprocess.Popen(
                [sys.executable or "python3", "-I", "-B", "-c", BOOT, code, entry, str(read_end), *arguments],
                stdin=no_input,
                cwd=run.state,
                env=make_environment(run),
                start_new_session=True,
                pass_fds=(read_end,),
            )
        except BaseException:
            os.close(self.lifeline)
            raise
        finally:
            os.close(read_end)
            os.close(no_input)
        run.line.tell("engine", self.process.pid)

    def signal(self, number: int) -> None:
        """Send a signal to the whole group; it is not reaped yet, so its number cannot be another's."""
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # already gone

    def used_s(self) -> float:
        """Processor time of the whole group so far, in seconds."""
        ticks = 0
        for name in list_processes():
            try:
                facts = read_stat(name)
                if int(facts[2]) == self.process.pid:
                    ticks += sum(map(int, facts[11:15]))  # its own and its ended children's
            except (OSError, IndexError, ValueError):
                continue  # ended while we looked
        return ticks / os.sysconf("SC_CLK_TCK")


def make_environment(run: "Run") -> dict[str, str]:
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


def watch(run: "Run", engine: "Engine") -> str:
    """Why the engine ended: "exit", "hung", "deadline" or "signal"."""
    marks = run.marks()
    patience = Patience(marks, time.monotonic())
    next_beat = 0.0
    termed = spared = False
    while engine.process.poll() is None:
        now = time.monotonic()
        if run.signal:
            return "signal"
        if run.elapsed() >= marks.kill_s:
            return "deadline"
        if run.elapsed() >= marks.term_s and not termed:
            termed = True
            run.fault("DeadlineTerminated", "engine",
                f"still running at {marks.term_s:.1f} s; told to publish and leave")
            engine.signal(signal.SIGTERM)
        if now >= next_beat:
            next_beat = now + HEARTBEAT_S
            set_alarm(run)  # its timer stands still while the machine is suspended
            paused_s = patience.paused_s
            left_s = marks.stop_s - run.elapsed()
            if patience.ends(read_json(run.state, "heartbeat.json"), now, engine.used_s, left_s):
                if left_s > RESTART_ROOM_S:
                    return "hung"
                if not spared:  # too late for another engine: this one may yet come through
                    spared = True
                    run.fault("EngineHung", "engine",
                        "no progress for too long; no time for a restart, so it is left to go on")
            if patience.paused_s > paused_s:
                run.fault("Paused", "machine",
                    f"everything stood still for {patience.paused_s - paused_s:.1f} s")
        time.sleep(POLL_S)
    return "exit"


class Patience:
    """How long an engine may make no progress before it counts as hung; pauses of the whole machine are left
    out.

    Processor time used meanwhile is added: a library that holds the interpreter keeps the heartbeat back. At
    most threefold, and no more than half of the time that was left: another engine may have to come.
    """

    def __init__(self, marks: "Marks", now: float) -> None:
        self.marks = marks
        self.looked = now
        self.progressed = now
        self.progress: object = None
        self.forecast_s = START_FORECAST_S
        self.started = False
        self.paused_s = 0.0
        self.silent: tuple[float, float] | None = None  # at the last progress: processor time, time left

    def ends(self, beat: "dict[str, Any]", now: float, used_s: "Callable[[], float]" = lambda: 0.0,
             left_s: float = math.inf) -> bool:
        """Take in a heartbeat; true when the engine hangs.

        used_s  processor time of the engine so far;  left_s: to the stop mark
        """
        gap_s = now - self.looked
        self.looked = now
        if gap_s > PAUSE_S:
            self.paused_s += gap_s
            self.progressed += gap_s
        if beat and beat.get("progress") != self.progress:
            self.progress = beat.get("progress")
            self.progressed = now
            self.silent = None
        if beat and beat.get("unit") != "start":
            self.forecast_s = float(beat.get("forecast_s") or 0.0)
            self.started = True
        # A start has twice the time: with 20 s in all, importing torch may take 10
        most_s = self.marks.hung_most_s if self.started else 2 * self.marks.hung_most_s
        patience_s = max(self.marks.hung_least_s, self.marks.hung_factor * self.forecast_s)
        patience_s = min(patience_s, most_s)
        if self.silent is None:
            self.silent = used_s(), left_s
        if now - self.progressed <= patience_s:
            return False
        used_before_s, left_then_s = self.silent
        most_s = min(BUSY_FACTOR * patience_s, max(patience_s, left_then_s / 2))
        return now - self.progressed > min(patience_s + used_s() - used_before_s, most_s)


def dump_stacks(state: str, engine: "Engine") -> str:
    """Where a hung engine is, by its own account."""
    stacks = ""
    with open(os.path.join(state, "stacks.txt"), "a+", encoding="utf-8", errors="replace") as file:
        os.kill(engine.process.pid, signal.SIGUSR1)
        until = time.monotonic() + 0.5
        while time.monotonic() < until and not stacks:
            time.sleep(0.02)
            stacks = file.read(20_000)
    return stacks


def end_engine(run: "Run", grace_s: float) -> None:
    """End the engine's group: TERM, `grace_s` to leave by itself, then KILL."""
    engine = run.engine
    run.engine = None
    if engine is None:
        return
    if engine.process.poll() is None and grace_s > 0:
        engine.signal(signal.SIGTERM)
        until = time.monotonic() + grace_s
        while engine.process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
    engine.signal(signal.SIGKILL)
    os.close(engine.lifeline)
    until = time.monotonic() + REAP_S
    while engine.process.poll() is None:
        if time.monotonic() > until:
            run.stuck = True
            run.fault("EngineStuck", "engine",
                "cannot be killed: a read from a mount that does not answer holds it; left behind")
            break
        time.sleep(0.002)
    run.line.tell("engine", 0)


def report_death(run: "Run", why: str, status: int | None, life_s: float, oom: bool) -> bool:
    """Record how the engine died; true when that is final (the deadline, or a signal to us)."""
    if why == "signal":
        name = signal.Signals(run.signal).name
        run.fault("Interrupted", "guard", f"{name}: the last published submission stays")
    elif why == "deadline":
        run.fault("DeadlineKilled", "engine", "did not leave in time; the last published submission stays")
    elif why == "hung":
        run.fault("EngineHung", "engine",
            f"no progress in attempt {run.attempts}; ended after {life_s:.1f} s, see guard.stacks")
    else:
        name = signal.Signals(-status).name if status and status < 0 else f"exit code {status}"
        hint = " (out of memory: the kernel's OOM killer struck)" if oom else ""
        run.fault("EngineDied", "engine", f"{name}{hint} in attempt {run.attempts} after {life_s:.1f} s")
    scored = count_gains(run.state)[0]
    run.deaths.append({"attempt": run.attempts, "why": why, "status": status, "oom": oom,
                       "life_s": round(life_s, 2), "scored_rows": scored})
    return why in ("signal", "deadline")


# -- the end -------------------------------------------------------------------------------------------------


def finish(run: "Run", prior: "Prior") -> int:
    """Everything after the engine; gives the exit code, which the file that is there decides, whatever else
    goes wrong here.
    """
    safely(run, end_engine, run, 0.0)
    safely(run, end_children)
    run.published = safely(run, read_json, run.state, "published.json") if run.state else {}
    drop_state(run)  # before a large file is read, which the exit alarm may cut short
    path = os.path.join(run.working, "submission.csv")
    valid = safely(run, ensure_valid, run, prior) or find_invalid(path, prior) is None
    safely(run, sweep_temporary, run.working)
    report = safely(run, make_report, run, prior, True) or safely(run, make_report, run, prior, False)
    report = report or {"rows": len(prior.sample.ids), "faults": run.faults, "guard": {}}
    code = 2 if not valid else 1 if run.arguments.strict and is_degraded(report) else 0
    report["guard"]["exit_code"] = code
    safely(run, write_report, run, report)
    safely(run, print_banner, run, report, code)
    return code


def safely(run: "Run", action: "Callable[..., Any]", *given: "Any") -> "Any":
    """What the action gives; None when it fails, which is named."""
    try:
        return action(*given)
    except Exception as error:
        run.fault("GuardError", action.__name__, f"{type(error).__name__}: {error}")
        return None


def ensure_valid(run: "Run", prior: "Prior") -> bool:
    """True when submission.csv is valid, putting the prior back if it must."""
    path = os.path.join(run.working, "submission.csv")
    broken = find_invalid(path, prior)
    if broken is None:
        return True
    run.fault("CandidateRejected", "submission.csv", f"{broken}; the prior submission was put back")
    try:
        write_prior(run.working, prior)
    except OSError as error:
        run.fault("OutputUnwritable", run.working, f"{error}; overwriting in place")
        overwrite_prior(run, path, prior)
    return find_invalid(path, prior) is None


def find_invalid(path: str, prior: "Prior") -> str | None:
    """Why submission.csv cannot be scored, or None. Independent of both writers: reads the file from its
    start.
    """
    sample = prior.sample
    count = 0
    try:
        with open(open_regular(path), encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            if next(rows, None) != sample.header:
                return "the header differs from the sample's"
            for count, row in enumerate(rows, 1):
                if (
                    count > len(sample.ids)
                    or row[:1] != [sample.ids[count - 1]]
                    or len(row) != len(sample.header)
                ):
                    return f"row {count} is not the sample's row {count}"
                cells = row[1:]
                if prior.labels is not None and cells.pop(prior.label_at) not in prior.labels:
                    return f"row {count} has an unknown label"
                if not all(0.0 <= value <= 1.0 for value in map(float, cells)):
                    return f"row {count} has a value outside 0..1"
    except Exception as error:  # whatever lies there: it is no submission
        return f"row {count}: {type(error).__name__}: {error}"
    return None if count == len(sample.ids) else f"{count} rows, the sample has {len(sample.ids)}"


def overwrite_prior(run: "Run", path: str, prior: "Prior") -> None:
    """The prior over the bytes that are already there: the last way on a full disk."""
    try:
        with open(open_regular(path, flags=os.O_RDWR), "r+b") as file:
            file.writelines(prior.lines())
            file.truncate()
    except OSError as error:
        run.fault("OutputUnwritable", run.working, error)


def count_rows(run: "Run", prior: "Prior") -> dict[str, int]:
    """Rows, prior rows and partial rows of what lies in submission.csv: as the engine said when it put these
    bytes there, else as they read.
    """
    import zlib

    path = os.path.join(run.working, "submission.csv")
    rows = len(prior.sample.ids)
    crc = plain = 0
    with open(open_regular(path), "rb") as file:
        while data := file.read(1 << 20):
            crc = zlib.crc32(data, crc)
    for line in prior.lines():
        plain = zlib.crc32(line, plain)
    published = run.published
    for told in published if isinstance(published, list) else []:
        if told["crc"] == crc:
            return {"rows": rows, "prior_rows": int(told["prior"]), "partial_rows": int(told["partial"])}
    if crc == plain:
        return {"rows": rows, "prior_rows": rows, "partial_rows": 0}
    if published:
        run.fault("SubmissionChanged", "submission.csv", "holds something else than the engine published")
    if prior.labels is not None:  # a predicted label may be the prior's
        return {"rows": rows}
    with open(open_regular(path), encoding="utf-8", errors="surrogateescape", newline="") as text:
        same = sum(row[1:] == prior.cells for row in csv.reader(text))
    return {"rows": rows, "prior_rows": same}


def make_report(run: "Run", prior: "Prior", engines: bool) -> dict[str, "Any"]:
    """The report with the guard's section: the engine's, or a complete one of our own when it left none (or
    one that is none of ours: not `engines`). The rows are counted in the file itself.
    """
    counts = safely(run, count_rows, run, prior) or {}
    report = read_json(run.working, "report.json") if engines and not run.stale_report else {}
    if not isinstance(report, dict) or not report:
        report = {
            "rows": len(prior.sample.ids),
            "prior_rows": len(prior.sample.ids),
            "partial_rows": 0,
            "members": [],
            "store": {},
            "faults": [],
            "fault_counts": {},
            "peak_ram_bytes": 0,
            "limits": {**run.profile, "seconds": run.budget_s()},
            "random_weights": bool(run.manifest.get("random_weights")),
        }
    elif any(report.get(key) != value for key, value in counts.items()):
        said = ", ".join(f"{key} {report.get(key)}" for key in counts)
        here = ", ".join(f"{key} {value}" for key, value in counts.items())
        run.fault("ReportCorrected", "report.json", f"said {said}; submission.csv has {here}")
    report.update(counts)
    report.setdefault("faults", []).extend(run.faults)
    named = report.setdefault("fault_counts", {})
    for fault in run.faults:
        named[fault["code"]] = named.get(fault["code"], 0) + 1
    report["wall_s"] = round(run.elapsed(), 3)
    told = ("prior_s", "attempts", "deaths", "faults", "finished", "bundle", "offset_s", "stacks", "signal")
    report["guard"] = {name: getattr(run, name) for name in told} | {
        "pinned": bool(run.constant),
        "peak_bytes": 1024 * read_number("/proc/self/status", "VmHWM"),  # resident, of this process
        "sample": prior.sample.path,
    }
    return report


def write_report(run: "Run", report: "dict[str, Any]") -> None:
    """Put report.json in place; a full disk costs the report, not the run."""
    temporary = name_temporary(run.working, "report.json")
    try:
        with open(temporary, "w", encoding="ascii") as file:
            hold_file(file.fileno())
            json.dump(report, file, indent=1)
            file.flush()
            put_in_place(temporary, os.path.join(run.working, "report.json"))
    except OSError as error:
        remove(temporary)
        run.fault("OutputUnwritable", "report.json", error)


def is_degraded(report: "dict[str, Any]") -> bool:
    return any(report.get(key) for key in ("faults", "fault_counts", "prior_rows", "partial_rows"))


def print_banner(run: "Run", report: "dict[str, Any]", code: int) -> None:
    """The last lines of the log: what is in the file, and loudly what is not."""
    rows = report.get("rows", 0)
    prior = report.get("prior_rows", 0)
    say(f"submission.csv: {rows} rows, {rows - prior} predicted, {prior} prior | {run.elapsed():.1f} s of "
        f"{run.budget_s():.0f} s | exit {code}")
    if report.get("random_weights"):
        say("RANDOM WEIGHTS: this bundle was built to be timed; its scores mean nothing")
    if not run.constant:
        say("UNPINNED: the manifest's sha256 was not compiled in; this is the repository's file, not a "
            "pushed one")
    if report["guard"].get("sample", "") is None:
        say("SAMPLE MADE UP: there was no sample_submission.csv; the rows are the clips', and Kaggle takes "
            "them only if its own sample has the same")
    if is_degraded(report):
        counted = sorted(report.get("fault_counts", {}).items())
        counts = " | " + ", ".join(f"{name} x{count}" for name, count in counted) if counted else ""
        say(f"DEGRADED: {prior} prior rows, {report.get('partial_rows', 0)} partial rows{counts}")


# -- the rehearsal -------------------------------------------------------------------------------------------


def rehearse(arguments: list[str], line: "Line") -> int:
    """The rehearsal out of the bundle's verified code; gives its exit code."""
    known, _ = make_parser().parse_known_args([a for a in arguments if a not in ("-h", "--help")])
    try:
        run = Run(known, line)
    except Refusal as refusal:
        return refuse(refusal)
    catch_signals(run, 2 * REHEARSAL_FAREWELL_S)
    line.tell("left", math.inf)  # it has its own limits
    line.hold()
    try:
        if run.clips:
            try:
                run.reader.ask(os.listdir, run.clips)
            except Hung as error:
                raise Fault("InputHung", run.clips, f"{error}; copy the clips to another disk") from error
            except OSError:
                pass  # the rehearsal says what it is
        if not known.bundle:
            raise Fault("BundleMissing", "--bundle", "give the folder that build_dataset.py wrote")
        code = open_bundle(run)
        make_state(run, code)
        kept = [a for a in arguments if a != "--rehearse"]
        # It runs in a folder of its own: its paths begin in the caller's, and the bundle is the verified one
        try:
            places = ["--folder", os.getcwd(), "--bundle", str(run.bundle)]
        except OSError as error:
            raise Fault("OutputUnwritable", "the current folder", f"{error}; change to another") from error
        engine = run.engine = Engine(run, "rehearsal", os.path.abspath(__file__), *kept, *places)
        while engine.process.poll() is None and not run.signal:
            time.sleep(POLL_S)
        status = engine.process.poll()
        end_engine(run, REHEARSAL_FAREWELL_S)
        if run.signal:
            name = signal.Signals(run.signal).name
            refuse(Fault("Interrupted", "rehearsal", f"{name}: ended before a verdict"))
            return 1
        return status if status is not None and status >= 0 else 1
    except Fault as fault:
        return refuse(fault)
    finally:
        remove_tree(run.state)


# -- small helpers: words, files, processes ------------------------------------------------------------------


def say(text: str) -> None:
    """One line on stdout; what cannot be printed is escaped, so that a file name cannot write to the
    terminal.
    """
    try:
        print(f"[hourglass] {printable(text)}", flush=True)
    except (OSError, ValueError):
        sys.stdout = open(open_nowhere(), "w")  # nobody reads any more; report.json still tells


def printable(text: str) -> str:
    """The text on one line, with escapes for what cannot be printed."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text
    )


def find_files(reader: "Reader", root: str, depth: int, names: tuple[str, ...]) -> list[str]:
    """Paths below `root` whose lower-case name is one of `names`, nearest first, within the bounds of a
    search.
    """
    found = []
    for folder, files, below in walk(reader, root, depth):
        here = {name for name in files if name.lower() in names}
        short = len(files) + len(below) >= MAX_ENTRIES or not (files or below)
        if short and folder not in reader.hung:  # cut short: ask for them by name
            try:
                here |= reader.ask(find_names, folder, names)
            except Hung:
                pass  # named already
        found += [os.path.join(folder, name) for name in sorted(here)]
    return found


def find_names(folder: str, names: tuple[str, ...]) -> set[str]:
    return {name for name in names if os.path.isfile(os.path.join(folder, name))}


def walk(reader: "Reader", root: str, depth: int) -> "Iterator[tuple[str, list[str], list[str]]]":
    """(folder, its file names, its subfolders) of `root` and of `depth` levels below it, nearest first,
    within the bounds of a search.

    One slow dataset hides no other: after the time is up a few folders are listed still, and a few two levels
    below `root` are given unlisted.
    """
    until = time.monotonic() + SEARCH_S
    queue = [(root, 0)]
    for seen, (folder, level) in enumerate(queue):  # it grows while it is read
        late = time.monotonic() > until
        if seen >= MAX_FOLDERS or (late and (level > 2 or seen >= FEW_FOLDERS)):
            return
        files, below = reader.list_folder(folder) if not late or level < 2 else ([], [])
        yield folder, files, below
        if level < depth:
            below.sort(key=lambda path: os.path.basename(path) != "competitions")  # where samples are
            queue += [(path, level + 1) for path in below]


def list_folder(folder: str, files: list[str], below: list[str]) -> None:
    """Add the file names and the subfolders of a folder; a large one is cut short, which only hides folders
    behind 2,000 files. An entry that cannot be looked at is taken for a file.
    """
    links = []
    try:
        with os.scandir(folder) as entries:
            for _, entry in zip(range(MAX_ENTRIES), entries):  # noqa: B905
                if entry.is_symlink():
                    links.append(entry)
                else:
                    (below if entry.is_dir() else files).append(entry.path if entry.is_dir() else entry.name)
    except OSError:  # a folder that cannot be listed further holds nothing more for us
        pass
    for entry in links:  # last: they may lead to what does not answer, or round in a circle
        try:
            leads_to_folder = entry.is_dir()
        except OSError:
            leads_to_folder = False
        (below if leads_to_folder else files).append(entry.path if leads_to_folder else entry.name)


def open_regular(path: str, limit: int = sys.maxsize, flags: int = os.O_RDONLY) -> int:
    """Descriptor of a regular file of at most `limit` bytes: a FIFO is never waited for. Raises OSError."""
    import stat

    handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > limit:
        os.close(handle)
        raise OSError(f"{path}: no regular file of at most {limit} bytes")
    return handle


def read_bytes(path: str, limit: int) -> bytes:
    """Bytes of a regular file of at most `limit` bytes. Raises OSError."""
    with os.fdopen(open_regular(path, limit), "rb") as file:
        blocks = []  # one read of `limit` would want its memory at once
        while limit >= 0 and (block := file.read(1 << 20)):
            blocks.append(block)
            limit -= len(block)
    if limit < 0:
        raise OSError(f"{path}: grew while it was read")
    return b"".join(blocks)


def sha256(data: bytes) -> str:
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


def read_json(folder: str, name: str) -> "Any":
    """What a JSON file of the engine holds; {} while it is not there."""
    try:
        return json.loads(read_bytes(os.path.join(folder, name), SAMPLE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def remove_tree(folder: str) -> None:
    """Remove a private folder, if there is one, as far as it goes: what stays is swept by the next run."""
    if folder:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


def read_stat(pid: int | str, proc: str = "/proc") -> list[bytes]:
    """Facts of a process from its state on: [1] is its parent, [19] its start in ticks. Raises OSError."""
    with open(os.path.join(proc, str(pid), "stat"), "rb") as file:
        return file.read().rpartition(b")")[2].split()


def list_processes() -> list[str]:
    """Numbers of all processes; none where /proc is not mounted."""
    try:
        return list(filter(str.isdigit, os.listdir("/proc")))
    except OSError:
        return []


def read_number(path: str, name: str) -> int:
    """The figure on the line of a /proc file that begins with `name`, or 0."""
    try:
        with open(path, encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(name)), 0)
    except (OSError, ValueError):
        return 0


def adopt_orphans(watched: bool) -> None:
    """Become the parent of whatever the engine leaves behind, so that it can be ended; and die with the
    watcher, if there is one, where its pipe does not see to that.
    """
    import ctypes

    library = ctypes.CDLL(None)
    library.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    if watched:
        library.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def end_children() -> None:
    """Kill and reap every child, and theirs as they become ours, for at most one second."""
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        for name in list_processes():
            try:
                parent = int(read_stat(name)[1])
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


if __name__ == "__main__":
    main(sys.argv[1:])
