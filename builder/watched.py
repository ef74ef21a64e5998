"""One command in a process of its own, watched: however it ends, the user is told, and nothing is left.

Owns signals, the standard streams and the exit code of a command. A user's own file may leave the process
(os._exit) or crash it; the process that watches has loaded none of it. Knows nothing of what the command
does, and imports the standard library only.
"""
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
PATIENCE_S = 10.0  # After a signal, for what has to be put back; then the command is killed.
ECHO_S = 1.0  # A terminal gives Ctrl-C to both processes, so that it arrives twice.
DIED = 1
GAVE_UP = 70  # Exit code of a process that has said itself why it ends: EX_SOFTWARE of sysexits.h.
OWN_CODE_S = 600.0  # What a user's own file may take for one trial.


class Ended(KeyboardInterrupt):
    """A signal asked the command to end; `number` is its number.

    A KeyboardInterrupt, because that is what code which takes every other exception lets pass.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def tell_interrupt(error: KeyboardInterrupt) -> tuple[str, int]:
    """The first words about an interrupt, and its exit code, which is what shells use."""
    number = error.number if isinstance(error, Ended) else int(signal.SIGINT)
    return f"interrupted ({signal.Signals(number).name})", 128 + number


class Lenient:
    """A standard stream whose reader may go away, or whose disk may be full: the work goes on without it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Number of characters taken."""
        try:
            self.stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """From now on nothing is written; what still waits in the stream goes nowhere."""
        self.lost = self.lost or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@dataclass
class _Watch:
    """The watching process: the command's process, and the signal that was passed on to it."""

    child: int
    asked: int = 0

    def relay(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on; a command that does not end by it is killed later."""
        self.asked = self.asked or number
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, number)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)

    def kill(self, number: int, frame: FrameType | None) -> None:
        """The patience is over."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)


@contextlib.contextmanager
def limited(what: str, seconds: float | None = None) -> Iterator[None]:
    """Ends the command with a sentence where `what`, which runs code of the user's, has not returned in time.

    From another thread and without an exception: code that loops for ever may hear of none.
    """
    seconds = OWN_CODE_S if seconds is None else seconds

    def give_up() -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"OwnCodeHung: {what} has not returned after {seconds:g} s, and nothing was built; "
                        "look for a loop that does not end, a wait for input, or a download\n".encode())
        os._exit(GAVE_UP)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def run(work: Callable[[], int], clean: Callable[[], None]) -> int:
    """Exit code of `work`, or 1 with a sentence when its process ended without giving one.

    clean  removes what the command left when it ended so
    """
    _open_standard_streams()
    if not hasattr(os, "fork"):
        return work()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # Ignored, it would take the exit code away.
    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup, `&`
    signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
    heard, told = os.pipe()
    alive, living = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(heard)
        os.close(living)
        _work(work, heeded, told, alive)
    os.close(told)
    os.close(alive)
    watch = _Watch(child=child)
    signal.signal(signal.SIGALRM, watch.kill)
    for number in heeded:
        signal.signal(number, watch.relay)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, heeded)
    _, status = os.waitpid(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in heeded:
        signal.signal(number, signal.SIG_IGN)
    os.set_blocking(heard, False)  # A process that the command left behind may hold the other end.
    try:
        answer = os.read(heard, 1)
    except BlockingIOError:
        answer = b""
    if answer:
        return answer[0]
    clean()
    return _tell_death(status, watch.asked)


def _tell_death(status: int, asked: int) -> int:
    """Exit code of a command that died, once it is said why."""
    if asked:
        line, code = tell_interrupt(Ended(asked))
        line += ", and stopped in the middle of its work"
    else:
        ended = os.waitstatus_to_exitcode(status)
        if ended == GAVE_UP:
            return DIED
        how = f"with exit code {ended}" if ended >= 0 else f"by signal {signal.Signals(-ended).name}"
        line = (f"CommandDied: the process ended {how} before its work was done: a file of yours left it "
                "(os._exit), a library crashed, or the system ended it (SIGKILL: out of memory)")
        code = DIED
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
    return code


def _open_standard_streams() -> None:
    """No other file gets the number of a standard stream that was closed."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)


def _work(work: Callable[[], int], heeded: list[signal.Signals], told: int, alive: int) -> NoReturn:
    """The command's process: it does the work, tells its exit code, and ends."""
    last = 0.0

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > ECHO_S:
            raise Ended(number)

    for number in heeded:
        signal.signal(number, end)
    threading.Thread(target=_end_with_watcher, args=(alive,), daemon=True).start()
    out, err = _make_lenient()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, heeded)
        code = work()
    except KeyboardInterrupt as error:
        line, code = tell_interrupt(error)
        print(line, file=sys.stderr)
    except Exception:  # A fault of ours: the traceback is what is needed.
        traceback.print_exc()
        code = DIED
    except BaseException as error:  # SystemExit(0) and the like, from a user's own file: no success.
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = DIED
    for stream in (out, err):
        stream.flush()
    if out.lost is not None and not isinstance(out.lost, BrokenPipeError):
        print(f"the messages could not all be written: {out.lost.strerror}; exit code {code} holds",
              file=sys.stderr, flush=True)
    os.write(told, bytes([code]))
    sys.exit(code)


def _make_lenient() -> tuple[Lenient, Lenient]:
    """Standard output and error, replaced by streams that raise nothing."""
    made = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  It lasts as long as the process.
        stream.reconfigure(errors="backslashreplace")
        made.append(Lenient(stream))
        setattr(sys, name, cast(TextIO, made[-1]))
    return made[0], made[1]


def _end_with_watcher(alive: int) -> None:
    """Ends the command when the process that watches it is gone."""
    os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGTERM)
