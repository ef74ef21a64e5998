"""A net for the fault matrix that breaks on demand, and the strikes themselves. Never part of the product.

The environment names what strikes: HOURGLASS_STRIKES = JSON list of {"at", "do", ...}, HOURGLASS_MARKS = a
folder that counts strikes over restarts. `at`: "import" | "list" | "probe" | "decode" | "read" (of a
recording with windows: id "CLIP@SAMPLES", those read before) | "open" | "row" | "forward" | "publish"; `do`:
a key of DEEDS, or for "forward" an answer of ANSWERS. Optional: "id" (clip, row or folder it is for), "times"
(how often in all; default always), "seconds", "bytes".
"""
import asyncio
import ctypes
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from torch import nn

PLAN = json.loads(os.environ.get("HOURGLASS_STRIKES", "[]"))
HELD = []  # ballast that must not be freed
CURRENT = threading.local()


def hold_the_interpreter(strike):
    """C code that never returns and never lets another thread run."""
    re.match("(a+)+$", "a" * 40 + "b")


def leave_a_grandchild(strike):
    """A process that ignores SIGTERM, in a session of its own, whose parent is gone."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    start = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}], start_new_session=True)"
    )
    subprocess.run([sys.executable, "-c", start], check=True)


def ignore_sigterm(strike):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    ctypes.CDLL(None).signal(15, 1)  # SIG_IGN; Python sets handlers in its main thread only


def leave_a_thread(strike):
    """A thread that interpreter exit would wait for."""
    threading.Thread(target=time.sleep, args=(strike.get("seconds", 60),), daemon=False).start()


def hold_memory(strike):
    HELD.append(bytearray(strike["bytes"]))
    HELD[-1][::4096] = b"x" * len(HELD[-1][::4096])


def connect(strike):
    with socket.socket() as client:
        client.settimeout(1)
        client.connect(("192.0.2.1", 80))


def fail(error):
    def deed(strike):
        raise error
    return deed


DEEDS = {
    "kill": lambda s: os.kill(os.getpid(), signal.SIGKILL),
    "segv": lambda s: (
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
        signal.raise_signal(signal.SIGSEGV),  # in this very thread, as a fault of its code would
    ),
    "abort": lambda s: (resource.setrlimit(resource.RLIMIT_CORE, (0, 0)), os.abort()),
    "exit0": lambda s: os._exit(0),
    "sysexit": lambda s: sys.exit(0),
    "raise": fail(RuntimeError("struck")),
    "strange": fail(ZeroDivisionError("struck")),
    "memory_error": fail(MemoryError()),
    "cuda_lost": fail(RuntimeError("CUDA error: device-side assert triggered")),
    "interrupt": fail(KeyboardInterrupt()),
    "cancel": fail(asyncio.CancelledError()),
    "generator_exit": fail(GeneratorExit()),
    "hang": lambda s: time.sleep(3600),
    "sleep": lambda s: time.sleep(s["seconds"]),
    "stop": lambda s: os.kill(os.getpid(), signal.SIGSTOP),
    "hold_the_interpreter": hold_the_interpreter,
    "grandchild": leave_a_grandchild,
    "deaf": ignore_sigterm,
    "thread": leave_a_thread,
    "hold_memory": hold_memory,
    "torch_memory": lambda s: HELD.append(torch.empty(s["bytes"], dtype=torch.uint8).fill_(1)),
    "connect": connect,
}
ANSWERS = {
    "nan": lambda y: torch.full_like(y, float("nan")),
    "inf": lambda y: torch.full_like(y, float("inf")),
    "zeros": torch.zeros_like,
    "huge": lambda y: torch.full_like(y, -1e30),
    "wide": lambda y: torch.cat([y, y], dim=1),
}


def counts(strike, number):
    """True while this strike may still fall; each fall leaves a mark that outlives the process."""
    if "times" not in strike:
        return True
    for n in range(strike["times"]):
        try:
            (Path(os.environ["HOURGLASS_MARKS"]) / f"{number}.{n}").touch(exist_ok=False)
            return True
        except FileExistsError:
            continue
    return False


def due(at, name):
    for number, strike in enumerate(PLAN):
        if strike["at"] == at and strike.get("id", name) == name and counts(strike, number):
            yield strike


def strike(at, name=""):
    """Do what the plan says for this moment."""
    CURRENT.row = name
    for found in due(at, name):
        DEEDS[found["do"]](found)


class Frames(nn.Module):
    """A convolution over f32[B, 1, M, T] that gives 12 scores along time, f32[B, 12, K]."""

    def __init__(self, classes: int, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.head = nn.Conv1d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv(x)).mean(dim=2)
        return self.head(nn.functional.adaptive_avg_pool1d(y, 12)).transpose(1, 2)


class Net(nn.Module):
    """A small convolution over f32[B, 1, M, T]; its answers can be spoilt row by row."""

    def __init__(self, classes: int, width: int = 4) -> None:
        super().__init__()
        strike("open")
        CURRENT.row = None
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch.Tensor) or torch.jit.is_tracing():
            raise TypeError("this net cannot be traced")  # a trace would run without its strikes
        y = self.head(torch.relu(self.conv(x)).mean(dim=(2, 3)))
        # Not while a back end tries the net
        for found in due("forward", CURRENT.row) if getattr(CURRENT, "row", None) else ():
            if found["do"] in ANSWERS:
                y = ANSWERS[found["do"]](y)
            else:
                DEEDS[found["do"]](found)
        return y
