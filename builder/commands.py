"""Other programs that the builder runs (pip, the kaggle client), behind one type that tests stand in for.

Owns how they are run and what becomes of their output. What it means is the caller's.
"""
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]
BAR = re.compile(r"B/s\]\s*$")  # The end of tqdm's progress bar over bytes.


def run_command(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The finished process with what it printed; its exit code is the caller's to judge."""
    return subprocess.run(command, capture_output=True, text=True, check=False)


def clean_lines(text: str) -> list[str]:
    """Lines as a terminal shows them in the end, without progress bars and empty ones."""
    shown = [line.rpartition("\r")[2].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return [line for line in shown if line and not BAR.search(line)]


def watch_command(
    command: Sequence[str],
    environment: Mapping[str, str],
    say: Callable[[str], None] | None,
    seconds: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """The finished process with what it printed; its lines are said as they come.

    Progress bars go to a terminal only.

    say      None: nothing is said
    seconds  it is killed after them, and its last line says so
    Raises   OSError when it cannot be started
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "PYTHONUNBUFFERED": "1"},
    )
    heard: list[list[bytes]] = [[], []]
    assert process.stdout is not None and process.stderr is not None
    threads = [
        threading.Thread(target=_listen, args=(process.stdout, heard[0], say, False)),
        threading.Thread(target=_listen, args=(process.stderr, heard[1], say, sys.stderr.isatty())),
    ]
    try:
        for thread in threads:
            thread.start()
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        heard[1].append(f"\ntimed out after {seconds:g} s\n".encode())
    except BaseException:
        process.kill()
        raise
    finally:
        for thread in threads:
            thread.join()
    out, err = (b"".join(parts).decode(errors="replace") for parts in heard)
    return subprocess.CompletedProcess(list(command), process.returncode, out, err)


def _listen(
    stream: IO[bytes], heard: list[bytes], say: Callable[[str], None] | None, raw: bool
) -> None:
    """Keep all bytes of a stream and say them: as they are to a terminal, else line by line."""
    with stream:
        while part := os.read(stream.fileno(), 65536) if raw else stream.readline():
            heard.append(part)
            if say is None:
                continue
            if raw:
                sys.stderr.buffer.write(part)
                sys.stderr.flush()
            else:
                for line in clean_lines(part.decode(errors="replace")):
                    say(line)
