"""A user's ONNX graph, run in a process of its own that has a time limit.

Owns that process: a graph may loop for ever or end the process it runs in, and the build is told so in a
sentence. Run as a script, this file is that process. Whether the answer fits the member is dry_run's.
"""
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 120.0  # For loading the runtime and a pass over one cut; a pass of the largest nets takes seconds.
GRAPH, INPUTS, WANTED, ANSWERS = "net.onnx", "inputs.npz", "wanted.json", "answers.npz"
REFUSED = 3  # Exit code of the process when the runtime refused the graph; its output says why.


class GraphFailed(Exception):
    """The graph gave no tensor; the message says why."""


@dataclass
class Memory:
    """Bytes that a graph has taken: once it was opened, and at most beside that while it ran."""

    open_bytes: int = 0
    run_bytes: int = 0


def run_graph(graph: bytes, inputs: Mapping[str, np.ndarray], wanted: Sequence[int] = (0,),
              seconds: float = SECONDS, memory: Memory | None = None) -> list[np.ndarray]:
    """Outputs of an ONNX graph on the CPU, those at the places `wanted` among all.

    inputs   by name; a single one may have any name in the graph
    memory   is filled with what it took
    Raises   GraphFailed: refused, not a tensor of numbers, too slow, or it ended its process
    """
    with tempfile.TemporaryDirectory(prefix="hourglass-graph-") as made:
        folder = Path(made)
        (folder / GRAPH).write_bytes(graph)
        arrays: dict[str, Any] = dict(inputs)
        np.savez(folder / INPUTS, **arrays)
        (folder / WANTED).write_text(json.dumps(list(wanted)))
        command = [sys.executable, "-P", str(Path(__file__).resolve()), made]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                timeout=seconds, check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise GraphFailed(f"it did not end in {seconds:g} s: a loop without an end?") from error
        if done.returncode == REFUSED:
            raise GraphFailed(done.stdout.strip())
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [""])[-1]
            how = f"exit code {done.returncode} {last}".strip()
            raise GraphFailed(f"the process that ran it ended with {how}")
        try:
            with np.load(folder / ANSWERS, allow_pickle=False) as held:
                if memory is not None:
                    memory.open_bytes, memory.run_bytes = (int(value) for value in held["memory"])
                return [held[str(place)] for place in wanted]
        except (OSError, ValueError, KeyError) as error:
            raise GraphFailed(f"the process that ran it left no answer ({error})") from error


def _answer(folder: Path) -> None:
    """Run the graph of `folder` and leave its answers there."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # as the kernel runs it: what is measured is one caller's
    # Bytes, not the path: a graph by path may read other files of this machine as its weights.
    graph = (folder / GRAPH).read_bytes()
    before = _resident()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    opened = _resident()
    _forget_peak()
    with np.load(folder / INPUTS, allow_pickle=False) as held:
        inputs = {name: held[name] for name in held.files}
    names = [entry.name for entry in session.get_inputs()]
    if len(names) != 1 or len(inputs) != 1:
        names = list(inputs)  # Several inputs go by name; a single one may have any name.
    wanted = json.loads((folder / WANTED).read_text())
    every = [entry.name for entry in session.get_outputs()]
    outs = session.run([every[place] for place in wanted], dict(zip(names, inputs.values(), strict=True)))
    for place, out in zip(wanted, outs, strict=True):
        if not isinstance(out, np.ndarray) or out.dtype.kind not in "fiub":
            found = f"holds {out.dtype}" if isinstance(out, np.ndarray) else f"is a {type(out).__name__}"
            which = f"its output {every[place]!r}" if len(every) > 1 else "its first output"
            raise TypeError(f"{which} {found}, expected a tensor of numbers")
    taken = np.array([opened - before, _peak() - opened]).clip(min=0)
    answers = {str(place): out for place, out in zip(wanted, outs, strict=True)}
    np.savez(folder / ANSWERS, memory=taken, **answers)


def _resident() -> int:
    """Bytes of this process in memory; elsewhere than on Linux the most there have been."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return _peak()


def _forget_peak() -> None:
    """Let the peak begin anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Most bytes of this process in memory since `_forget_peak`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    try:
        _answer(Path(sys.argv[1]))
    except Exception as error:  # ONNX Runtime raises types of its own, none of them public.
        print(error)
        sys.exit(REFUSED)
