"""The engine's entry: light start-up, memory check, then the engine itself.

Owns what must happen before numpy and torch are imported: the heartbeat, the stack dump on request and the
verdict that there is not enough memory. Started by the guard in its own process; everything else is
kernel.engine.loop.
"""
import faulthandler
import gc
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

from .errors import BundleError, HourglassError, MemoryTooSmall, SpecError
from .memory import Meter
from .order import load_order

# torch, numpy and the engine before the first clip: 230 MB measured on CPU, plus one small net
ENGINE_BYTES = 350_000_000
# The same for RLIMIT_DATA, which counts what is only reserved too: 360 MB end the engine at its start
DATA_BYTES = 450_000_000
# The same as address space: 1.0 GB measured (libraries are mapped whole), plus stacks and one net
MAPPED_BYTES = 1_300_000_000
EXIT_VERDICT = 3  # the guard does not restart after this: the next engine would end the same way


def check_memory(ram_bytes: int) -> None:
    """Nothing, when the engine fits.

    Raises  MemoryTooSmall with the number of bytes that are needed
    """
    for name, need, letter in (("RLIMIT_AS", MAPPED_BYTES, "v"), ("RLIMIT_DATA", DATA_BYTES, "d")):
        allowed = resource.getrlimit(getattr(resource, name))[0]
        if allowed != resource.RLIM_INFINITY and allowed < need:
            raise MemoryTooSmall(f"{name} is {allowed / 1e6:.0f} MB, the engine needs {need / 1e6:.0f} MB: "
                                 f"ulimit -{letter} unlimited. The prior submission stays.")
    reading = Meter(cap_bytes=ram_bytes).read()
    free = reading.limit_bytes - reading.used_bytes
    if free < ENGINE_BYTES:
        raise MemoryTooSmall(
            f"{free / 1e6:.0f} MB are free under the limit of {reading.limit_bytes / 1e6:.0f} MB "
            f"({reading.source}); the engine needs {ENGINE_BYTES / 1e6:.0f} MB: give --ram at least "
            f"{(reading.used_bytes + ENGINE_BYTES) / 1e6:.0f}MB. The prior submission stays."
        )


def main(state: str) -> None:
    """Run the engine for the state folder prepared by the guard; ends the process."""
    folder = Path(state)
    # Open for the life of the process
    stacks = open(folder / "stacks.txt", "a", encoding="utf-8")
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR1, file=stacks)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    from .engine.heartbeat import Heartbeat
    from .engine.outside import deny_outside

    heartbeat = Heartbeat(folder / "heartbeat.json")
    status = 0
    try:
        order = load_order((folder / "run.json").read_bytes())
        check_memory(order.limits.ram_bytes)
        deny_outside(order)
        from .engine.loop import Engine

        gc.freeze()  # what is loaded stays: looking through it again after each net took 0.2 s
        Engine(order, heartbeat).execute()
    except (MemoryTooSmall, SpecError, BundleError) as error:
        (folder / "verdict.json").write_text(json.dumps({"code": error.code, "message": str(error)}))
        print(f"[hourglass] {error.code}: {error}", file=sys.stderr, flush=True)
        status = EXIT_VERDICT
    except HourglassError as error:
        print(f"[hourglass] {error.code}: {error}", file=sys.stderr, flush=True)
        status = 1
    except BaseException:  # said here, because the interpreter's own exit is skipped
        traceback.print_exc()
        status = 1
    leave(status)


def leave(status: int) -> None:
    """End the process now: a thread that a library left behind must not keep it, nor a signal change its exit
    code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            continue  # nobody reads any more
    os._exit(status)
