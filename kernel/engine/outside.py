"""What a rehearsal's engine may open: files of the bundle, the input and the environment, as on Kaggle.

Owns the refusal of all other files and of the network, and the log that names what was asked for. It hears
Python's own calls (sys.addaudithook); what C libraries open is left to the sandbox. On Kaggle nothing of it
is switched on.
"""
import errno
import os
import site
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..order import Order

# Set by a rehearsal: the log, and the user's own home
LOG, HOME = "REHEARSAL_OUTSIDE", "REHEARSAL_HOME"
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/sys", "/dev", "/run", "/opt")
CODE = (".py", ".pyc", ".so", ".pth", ".egg-link")  # of packages, wherever they were installed from
MOST_TOLD = 50


class Outside:
    """Tells what lies outside `places`, and logs it once.

    places     folders whose files are there on Kaggle as well
    home       the user's own, which the sandbox may hide: what is asked for in it counts if it is not there
    temporary  folder for temporary files: Kaggle's is empty at the start
    """

    def __init__(self, log: Path, places: Iterable[Path | str], home: str, temporary: str) -> None:
        self._log = log
        self._home = home
        self._temporary = os.path.realpath(temporary)
        self._began = time.time()
        self._told: set[str] = set()
        wanted = [str(place) for place in (log, *places) if os.path.isabs(place) and str(place) != "/"]
        self._places = tuple({text for place in wanted for text in (place, os.path.realpath(place))})

    def hear(self, event: str, given: tuple[Any, ...]) -> None:
        """An audit hook. Raises OSError for what Kaggle would not have."""
        if event == "open" and isinstance(given[0], (str, bytes, os.PathLike)):
            asked = os.fsdecode(given[0])
            if self.is_outside(asked, bool(given[2] & (os.O_WRONLY | os.O_RDWR))):
                self._tell(asked)
                raise FileNotFoundError(errno.ENOENT, "not there on Kaggle (see the rehearsal)", asked)
        elif event == "socket.getaddrinfo":
            self._tell(f"network: {given[0]}")
            raise OSError(errno.ENETUNREACH, "there is no network on Kaggle")

    def is_outside(self, path: str, writes: bool) -> bool:
        """True for a file of this machine that Kaggle would not have."""
        text, real = os.path.abspath(path), os.path.realpath(path)
        if text.endswith(CODE):
            return False
        if any(_is_below(name, place) for place in self._places for name in (text, real)):
            return False
        if not os.path.lexists(text):
            return _is_below(text, self._home)
        if _is_below(real, self._temporary):
            return not writes and os.stat(text).st_mtime < self._began
        return True

    def _tell(self, asked: str) -> None:
        """One line in the log for each thing that was asked for, up to a number of them."""
        if asked in self._told or len(self._told) >= MOST_TOLD:
            return
        self._told.add(asked)
        with open(self._log, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(asked.replace("\n", "?") + "\n")


def _is_below(path: str, place: str) -> bool:
    return path == place or path.startswith(place + os.sep)


def find_packages() -> list[str]:
    """Folders of packages beside the environment's own: a .pth file leads to another one's."""
    return [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]


def deny_outside(order: Order) -> None:
    """Where a rehearsal wants it: from now on what Kaggle would not have is refused, and named in the log."""
    log = os.environ.get(LOG)
    if not log:
        return
    own = (order.input, order.bundle, order.working, order.state, *([order.clips] if order.clips else []))
    packages = (sys.prefix, sys.base_prefix, *site.getsitepackages(), *find_packages())
    home = os.environ.get(HOME) or "/nonexistent"
    sys.addaudithook(Outside(Path(log), (*own, *packages, *SYSTEM), home, tempfile.gettempdir()).hear)
