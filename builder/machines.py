"""Kaggle's accelerators: which a kernel of ours may ask for, and which are not for everybody.

Owns their names and the check of `machine_shape`. The rest of the metadata is metadata's.
Source: the documentation of the `kaggle` package 2.2.5 (Oct 2026) and its pull requests: 1192 (retired), 1198
(admin-only and gated).
"""
from typing import Any

from kernel.errors import UploadError, did_you_mean

OPEN_MACHINES = ("NvidiaTeslaT4",)  # Two T4.
GATED_MACHINES = ("NvidiaL4", "NvidiaL4X1", "NvidiaTeslaA100", "NvidiaH100", "NvidiaRtxPro6000")
ADMIN_MACHINES = ("NvidiaTeslaT4Highmem",)
RETIRED_MACHINES = ("NvidiaTeslaP100",)  # Kaggle puts the default GPU in its place without a word.


def check_machine(machine: Any) -> None:
    """Nothing, when a kernel may ask for this accelerator; None or "" is the CPU.

    Raises  UploadError
    """
    if machine in (None, ""):
        return
    if str(machine).startswith("Tpu"):
        raise _fail(machine, f"the kernel has no path for a TPU; use {OPEN_MACHINES[0]}, or none for the CPU")
    if machine in RETIRED_MACHINES:
        raise _fail(machine, f"retired, silently substituted; use {OPEN_MACHINES[0]}")
    if machine in ADMIN_MACHINES:
        raise _fail(machine, f"for Kaggle's own staff only; use {OPEN_MACHINES[0]}")
    if machine not in (*OPEN_MACHINES, *GATED_MACHINES):
        raise _fail(machine, did_you_mean(str(machine), (*OPEN_MACHINES, *GATED_MACHINES)))


def _fail(machine: Any, rule: str) -> UploadError:
    return UploadError(f"machine_shape: {machine!r}; {rule}")


def explain_machine(machine: str | None) -> str | None:
    """What the user must know of an accelerator that not everybody gets; None for the others."""
    if machine not in GATED_MACHINES:
        return None
    return (
        f"machine_shape {machine} is gated: Kaggle gives it in some competitions and to some accounts only; "
        f"everybody gets {OPEN_MACHINES[0]}"
    )
