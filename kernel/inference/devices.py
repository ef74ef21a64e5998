"""Devices: which are there and work, and what their errors mean.

Owns the probe (a real operation, never a flag) and the reading of torch's error texts. How a net runs on a
device is `backends`; which device gets which net is the engine's.
"""
from dataclasses import dataclass

import torch

from ..errors import DeviceError, text_of

# What torch's errors say where they have no type of their own.
NO_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
)
# A library found no way to compute what was asked, often for want of memory that it does not name. cuBLAS and
# cuFFT say so when their handle or plan finds no room.
NO_ENGINE = (
    "unable to find an engine",
    "Unable to find a valid cuDNN algorithm",
    "no valid execution plans",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_MAPPING_ERROR",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUFFT_INTERNAL_ERROR",
)
LOST = ("CUDA error", "CUDNN_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_EXECUTION_FAILED")


@dataclass(frozen=True, kw_only=True)
class Device:
    """One usable device.

    name          for torch: "cpu", "cuda:0"; about: for people
    memory_bytes  0 = the host's
    """

    name: str
    about: str
    memory_bytes: int = 0

    @property
    def cuda(self) -> bool:
        return self.name.startswith("cuda")


def probe(name: str) -> Device:
    """The device after a convolution really ran on it.

    Raises  DeviceError when it is absent, broken, or the build has no kernels for it (a P100 under cu128)
    """
    try:
        device = torch.device(name)
        x = torch.ones(1, 1, 8, 8, device=device)
        y = torch.nn.functional.conv2d(x, torch.ones(1, 1, 3, 3, device=device)).sum().item()
        if y != 324.0:
            raise DeviceError(f"{name}: a 3x3 convolution of ones gave {y}, not 324; the device is not used")
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises AssertionError
        raise DeviceError(f"{name}: the probe operation failed ({error}); the device is not used") from error
    if device.type != "cuda":
        return Device(name="cpu", about=f"{torch.get_num_threads()} CPU threads")
    properties = torch.cuda.get_device_properties(device)
    return Device(name=name, about=properties.name, memory_bytes=properties.total_memory)


def find_devices(wanted: str) -> tuple[list[Device], list[str]]:
    """Usable devices and the notes on those that failed; the CPU when no GPU works.

    wanted  "auto", "cpu" or "cuda" (then a missing GPU is a note, and the CPU is used)
    """
    devices: list[Device] = []
    notes: list[str] = []
    if wanted != "cpu":
        for index in range(torch.cuda.device_count()):
            try:
                devices.append(probe(f"cuda:{index}"))
            except DeviceError as error:
                notes.append(str(error))
        if not devices and wanted == "cuda":
            notes.append("cuda: asked for, but no GPU passed the probe; running on the CPU")
    return devices or [probe("cpu")], notes


def is_out_of_memory(error: BaseException) -> bool:
    """True for a GPU or host allocation failure, which halving a batch can cure."""
    text = text_of(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(part in text for part in NO_MEMORY)


def lacks_engine(error: BaseException) -> bool:
    """True where a library found no way to compute a batch: a smaller one may find one, a single row must."""
    text = text_of(error).lower()
    return any(part.lower() in text for part in NO_ENGINE) and not is_out_of_memory(error)


def is_lost(error: BaseException) -> bool:
    """True for a CUDA error that poisons the context: only a new process helps."""
    found = any(part in text_of(error) for part in LOST)
    return found and not is_out_of_memory(error) and not lacks_engine(error)


def release(device: Device) -> None:
    """Give cached GPU memory back after an out-of-memory error."""
    if device.cuda:
        torch.cuda.empty_cache()
