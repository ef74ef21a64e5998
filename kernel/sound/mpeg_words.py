"""Keeps what libmpg123 prints about damaged tags off the terminal: many lines that say nothing of a row.

Owns standard error for as long as one file is opened, and gives back what others wrote there meanwhile. What
is wrong with the audio itself stands in the clip's notes (decode).
"""
import fcntl
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2
MAX_BYTES = 1 << 20  # given back at most
# libmpg123 prints an empty line, then one of these (src/libmpg123/debug.h and lfs_wrap.c of mpg123 1.3x)
WORDS = re.compile(rb"\n?(?:\[src/libmpg123/|Warning: Xing stream size )[^\n]*\n?")
_alone = threading.Lock()  # standard error is one for all threads


@contextmanager
def drop_tag_warnings() -> Iterator[None]:
    """Inside, standard error is held back; afterwards all of it is written but libmpg123's words."""
    with _alone:
        held = _divert()
        try:
            yield
        finally:
            if held is not None:
                _give_back(*held)


def _divert() -> tuple[int, int] | None:
    """(the real standard error, what holds lines back); None where there is none or the system refuses."""
    try:
        real = os.dup(STDERR)
    except OSError:
        return None
    try:
        held = os.memfd_create("stderr")
    except (OSError, AttributeError):  # AttributeError: no Linux
        os.close(real)
        return None
    fcntl.fcntl(held, fcntl.F_SETFL, os.O_APPEND)  # threads write side by side: none over another's words
    os.dup2(held, STDERR)
    return real, held


def _give_back(real: int, held: int) -> None:
    os.dup2(real, STDERR)
    os.close(real)
    others = WORDS.sub(b"", os.pread(held, MAX_BYTES, 0))
    os.close(held)
    try:
        while others:
            others = others[os.write(STDERR, others):]
    except OSError:
        pass  # nobody reads any more
