"""Other programs that the builder runs (pip, the kaggle client), behind one type that tests stand in for."""
import subprocess
from collections.abc import Callable, Sequence

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def run_command(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The finished process with what it printed; its exit code is the caller's to judge."""
    return subprocess.run(command, capture_output=True, text=True, check=False)
